"""One server in one round: it is started, seen to do the job, and driven a moment at a time."""

from __future__ import annotations

import contextlib
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.contest.cores import Core
from benchmarks.contest.figures import Figures
from benchmarks.contest.job import WORKLOADS, check, check_lines, fill, works
from benchmarks.contest.load import Driven, Work, drive
from benchmarks.contest.peers import LOGS, Peer
from benchmarks.contest.server import Failed, Server, free_port, serving
from benchmarks.contest.stores import Stores
from benchmarks.driver.result import Latencies


class Contestant:
    """A server that runs, and what has been measured of it."""

    def __init__(self, peer: Peer, server: Server, paths: Sequence[str]) -> None:
        """
        :param paths: of the entries that it has.
        """
        self._leaves_lines = LOGS in peer.job
        self._server = server
        self._works = works(list(paths))
        self._found = {workload: _Found() for workload in WORKLOADS}

    def warm_up(self, workload: str, connections: int, seconds: float) -> None:
        """Drives it, and forgets what came of it.

        :raises Failed: an answer was not in order.
        """
        _drive(self._server, self._works[workload], connections, seconds)

    def measure(self, workload: str, connections: int, seconds: float) -> None:
        """Drives it, and adds what came of it to what is known.

        :raises Failed: an answer was not in order, or left no line in the log.
        """
        server = self._server
        lines, cpu = server.count_lines(), server.cpu_seconds()
        driven = _drive(server, self._works[workload], connections, seconds)
        self._found[workload].add(driven, server.cpu_seconds() - cpu)
        if self._leaves_lines:
            check_lines(server, lines + len(driven.latencies))

    def figures(self) -> dict[str, Figures]:
        """By workload, each of which has been measured."""
        return {workload: found.figures() for workload, found in self._found.items()}


class _Found:
    """What came of one workload, of all the times that it was driven."""

    def __init__(self) -> None:
        self._latencies = array('d')
        self._seconds = self._busy_seconds = self._cpu_seconds = 0.0

    def add(self, driven: Driven, cpu_seconds: float) -> None:
        self._latencies += driven.latencies.values
        self._seconds += driven.seconds
        self._busy_seconds += driven.busy * driven.seconds
        self._cpu_seconds += cpu_seconds

    def figures(self) -> Figures:
        latencies = Latencies(self._latencies)
        return Figures(len(latencies) / self._seconds, 1000 * latencies.percentile(99),
                       1e6 * self._cpu_seconds / len(latencies),
                       self._busy_seconds / self._seconds)


@contextlib.contextmanager
def contestant(peer: Peer, stores: Stores, core: Core) -> Iterator[Contestant]:
    """Runs a server on a new store meanwhile.

    :raises Failed: it cannot be started, or does not do its part of the job.
    :raises OSError: there is no such program.
    """
    with tempfile.TemporaryDirectory() as folder, stores.new(Path(folder)) as store:
        port = free_port()
        with serving(peer.start(port, store), port, Path(folder, 'log'), core) as server:
            made = fill(server)
            check(peer, server, made)
            yield Contestant(peer, server, list(made))


def _drive(server: Server, work: Work, connections: int, seconds: float) -> Driven:
    driven = drive(server.port, work, connections, seconds)
    if driven.errors:
        kinds = ', '.join(f'{kind}: {count}' for kind, count in sorted(driven.errors.items()))
        raise Failed(f'{work.requests[0].splitlines()[0].decode()}: {kinds}')
    if not driven.latencies:
        raise Failed('answers nothing')
    return driven

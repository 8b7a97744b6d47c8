"""Measures servers in turn, round after round: machines are noisy, and shall be so for all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from benchmarks.contest.cores import Cores, on
from benchmarks.contest.figures import Figures
from benchmarks.contest.job import WORKLOADS, check, check_lines, fill, works
from benchmarks.contest.load import Driven, Work, drive
from benchmarks.contest.peers import LOGS, Peer
from benchmarks.contest.server import Failed, Server, free_port, serving
from benchmarks.contest.stores import Stores, stores_of

WARM_UP_PART = 0.2
"""Of the seconds asked for."""


class Plan(NamedTuple):
    """What is to be done."""

    peers: Sequence[Peer]
    engine: str
    rounds: int
    seconds: float
    """For each workload of each server in each round."""
    connections: int


class Outcome(NamedTuple):
    """What came of it."""

    found: dict[str, dict[str, list[Figures]]]
    """By name and workload, one for each round."""

    failures: dict[str, str]
    """Why a server is not among them, by name."""


def compare(plan: Plan, cores: Cores, tell: Callable[[str], None]) -> Outcome:
    """Measures every server once in each round; each round begins with another. One that fails
    takes part no more, and is not in what was found."""
    outcome = Outcome({peer.name: {name: [] for name in WORKLOADS} for peer in plan.peers}, {})
    with stores_of(plan.engine, cores.others) as stores, on(cores.load):
        for number, peer in turns(plan):
            if peer.name in outcome.found:
                tell(f'round {number + 1} of {plan.rounds}: {peer.title}')
                _take_turn(peer, plan, stores, cores, outcome)
    return outcome


def turns(plan: Plan) -> Iterator[tuple[int, Peer]]:
    """Who is measured when, with the number of the round."""
    peers = list(plan.peers)
    for number in range(plan.rounds):
        start = number % len(peers)
        yield from ((number, peer) for peer in peers[start:] + peers[:start])


def _take_turn(peer: Peer, plan: Plan, stores: Stores, cores: Cores, outcome: Outcome) -> None:
    try:
        for workload, figures in _measure(peer, plan, stores, cores).items():
            outcome.found[peer.name][workload].append(figures)
    except (Failed, OSError, HTTPException) as failure:
        del outcome.found[peer.name]
        outcome.failures[peer.name] = ' '.join(str(failure).split())


def _measure(peer: Peer, plan: Plan, stores: Stores, cores: Cores) -> dict[str, Figures]:
    """Starts a server on a new store, sees that it does the job, and measures it."""
    with tempfile.TemporaryDirectory() as folder, stores.new(Path(folder)) as store:
        port = free_port()
        with serving(peer.start(port, store), port, Path(folder, 'log'), cores.server) as server:
            made = fill(server)
            check(peer, server, made)
            work = works(list(made))
            return {name: _figures(peer, server, work[name], plan) for name in WORKLOADS}


def _figures(peer: Peer, server: Server, work: Work, plan: Plan) -> Figures:
    _drive(server, work, plan, WARM_UP_PART)
    lines, before = server.count_lines(), server.cpu_seconds()
    driven = _drive(server, work, plan)
    cpu, count = server.cpu_seconds() - before, len(driven.latencies)
    if LOGS in peer.job:
        check_lines(server, lines + count)
    return Figures(driven.throughput, 1000 * driven.latencies.percentile(99), 1e6 * cpu / count,
                   driven.busy)


def _drive(server: Server, work: Work, plan: Plan, part: float = 1.0) -> Driven:
    """
    :raises Failed: an answer was not in order.
    """
    driven = drive(server.port, work, plan.connections, plan.seconds * part)
    if driven.errors:
        kinds = ', '.join(f'{kind}: {count}' for kind, count in sorted(driven.errors.items()))
        raise Failed(f'{work.requests[0].splitlines()[0].decode()}: {kinds}')
    if not driven.latencies:
        raise Failed('answers nothing')
    return driven

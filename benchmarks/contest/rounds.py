"""Measures servers side by side: machines are noisy, and shall be so for all.

In each round all servers run at once, and are driven in turn, a moment each: what slows the
machine down for longer than a moment slows all of them. Who has no turn waits, and takes nothing
from the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from typing import NamedTuple

from benchmarks.contest.contestant import Contestant, contestant
from benchmarks.contest.cores import Cores, on
from benchmarks.contest.figures import Figures
from benchmarks.contest.job import WORKLOADS
from benchmarks.contest.peers import Peer
from benchmarks.contest.server import Failed
from benchmarks.contest.stores import Stores, stores_of

TURN_SECONDS = 0.25
"""So long a server is driven, at most, before the next one is."""


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
    """Measures every server in each round. One that fails takes part no more, and is not in what
    was found."""
    outcome = Outcome({peer.name: {name: [] for name in WORKLOADS} for peer in plan.peers}, {})
    with stores_of(plan.engine, cores.others) as stores, on(cores.load):
        for number in range(plan.rounds):
            with contextlib.ExitStack() as running:
                part = _Round(plan, outcome, f'round {number + 1} of {plan.rounds}: ', tell)
                part.start(running, stores, cores)
                part.measure()
    return outcome


class _Round:
    """Every server that has not failed, once, with all workloads."""

    def __init__(self, plan: Plan, outcome: Outcome, name: str, tell: Callable[[str], None]
                 ) -> None:
        self._plan = plan
        self._outcome = outcome
        self._name = name
        self._tell = tell
        self._contestants: dict[str, Contestant] = {}

    def start(self, running: contextlib.ExitStack, stores: Stores, cores: Cores) -> None:
        """Starts them; `running` ends them."""
        for peer in self._plan.peers:
            if peer.name in self._outcome.found:
                self._tell(f'{self._name}starts {peer.title}')
                with self._leaving_out(peer.name):
                    self._contestants[peer.name] = running.enter_context(
                        contestant(peer, stores, cores.server))

    def measure(self) -> None:
        """Adds the figures of this round to the outcome."""
        for workload, title in WORKLOADS.items():
            self._tell(self._name + title)
            self._drive(workload)
        for name, each in self._contestants.items():
            for workload, figures in each.figures().items():
                self._outcome.found[name][workload].append(figures)

    def _drive(self, workload: str) -> None:
        connections = self._plan.connections
        for number, name, seconds in turns(tuple(self._contestants), self._plan.seconds):
            if each := self._contestants.get(name):
                with self._leaving_out(name):
                    if number == 0:
                        each.warm_up(workload, connections, seconds)
                    each.measure(workload, connections, seconds)

    @contextlib.contextmanager
    def _leaving_out(self, name: str) -> Iterator[None]:
        """A server that fails meanwhile takes part no more."""
        try:
            yield
        except (Failed, OSError, HTTPException) as failure:
            self._contestants.pop(name, None)
            del self._outcome.found[name]
            self._outcome.failures[name] = ' '.join(str(failure).split())


def turns(names: Sequence[str], seconds: float) -> Iterator[tuple[int, str, float]]:
    """Who is driven when: so many seconds each, in as many turns as it takes. Each turn begins
    with another.

    :return: the number of the turn, a name, and the seconds.
    """
    count = math.ceil(seconds / TURN_SECONDS)
    for number in range(count):
        start = number % max(len(names), 1)
        for name in (*names[start:], *names[:start]):
            yield number, name, seconds / count

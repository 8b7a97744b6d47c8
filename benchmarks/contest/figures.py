"""What the rounds have measured, and what of it is told: medians, and ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.contest.job import WORKLOADS
from benchmarks.contest.peers import Peer

NEARLY_ALL = 0.9
"""Of a core: a generator that needs as much may have slowed the server down."""


class Figures(NamedTuple):
    """One server, one workload, one round."""

    throughput: float
    """Requests per second."""

    p99: float
    """Milliseconds that 99 percent of the answers did not exceed."""

    cpu: float
    """Microseconds of the server's CPU time per request."""

    generator: float
    """The share of a core that the load generator used."""


Rounds = Mapping[str, Sequence[Figures]]
"""Of one server, by workload."""


class Row(NamedTuple):
    """One server, in sum."""

    peer: Peer
    median: Mapping[str, Figures]
    """By workload."""
    ratio: Mapping[str, float]
    """To the base, by workload; nothing where there is no base."""

    def is_bound(self, workload: str) -> bool:
        """Whether the server may be able to do more than was measured."""
        return self.median[workload].generator >= NEARLY_ALL


def summarize(found: Mapping[str, Rounds], peers: Sequence[Peer], base: str) -> list[Row]:
    """One row for each server that something was found of, the fastest first.

    :param found: by name, each with as many rounds.
    :param base: the name of the server that all are compared with, if it is there.
    """
    rows = [Row(peer, {of: median_of(found[peer.name][of]) for of in WORKLOADS},
                _ratios(found[peer.name], found.get(base)))
            for peer in peers if peer.name in found]
    return sorted(rows, key=_rank)


def median_of(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(*(statistics.median(column) for column in zip(*rounds, strict=True)))


def ratio_of(rounds: Sequence[Figures], base: Sequence[Figures]) -> float:
    """The median of the ratios of throughput that the rounds have: what slows a machine down for
    longer than a round slows both."""
    return statistics.median(each.throughput / other.throughput
                             for each, other in zip(rounds, base, strict=True))


def _rank(row: Row) -> float:
    return -row.ratio.get('get', row.median['get'].throughput)


def _ratios(rounds: Rounds, base: Rounds | None) -> Mapping[str, float]:
    return {of: ratio_of(rounds[of], base[of]) for of in WORKLOADS} if base else {}

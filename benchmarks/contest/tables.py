"""What was found, in Markdown for people and as a document for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.contest.figures import NEARLY_ALL, Row
from benchmarks.contest.job import WORKLOADS
from benchmarks.contest.rounds import Outcome, Plan

NO_RATIO = '–'
BOUND = '≥ '


def markdown(rows: Sequence[Row], base: str) -> Iterator[str]:
    """Two tables: how the servers compare, and the figures behind that.

    :param base: the title of the server that all are compared with, if it is there.
    """
    if base:
        yield f'Requests per second, as a multiple of those of {base}:'
        yield ''
        yield from _table(['server', *WORKLOADS.values()],
                          [_ratios(row) for row in rows])
        yield ''
    yield 'Medians of the rounds:'
    yield ''
    yield from _table(['server', 'workload', 'requests/s', 'p99 ms', 'CPU µs/request', 'generator'],
                      [_details(row, name) for name in WORKLOADS for row in rows])
    if any(row.is_bound(name) for row in rows for name in WORKLOADS):
        yield ''
        yield (f'{BOUND}The load generator used {NEARLY_ALL:.0%} of its core or more: the server '
               'may be faster than this. Its CPU time per request tells what it needs.')


def document(plan: Plan, rows: Sequence[Row], outcome: Outcome) -> dict[str, Any]:
    """All figures, as JSON has them."""
    return {
        'engine': plan.engine, 'rounds': plan.rounds, 'seconds': plan.seconds,
        'connections': plan.connections, 'failures': outcome.failures,
        'servers': [{
            'name': row.peer.name, 'title': row.peer.title,
            'workloads': {name: _workload(row, name, outcome) for name in WORKLOADS},
        } for row in rows]}


def _workload(row: Row, name: str, outcome: Outcome) -> Mapping[str, Any]:
    return {**row.median[name]._asdict(), 'ratio': row.ratio.get(name),
            'rounds': [figures._asdict() for figures in outcome.found[row.peer.name][name]]}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, all others to the right."""
    yield _line(head)
    yield f'|---|{"---:|" * (len(head) - 1)}'
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _ratio(row: Row, name: str) -> str:
    ratio = row.ratio.get(name)
    return NO_RATIO if ratio is None else f'{BOUND * row.is_bound(name)}{ratio:.2f}'


def _ratios(row: Row) -> list[str]:
    return [row.peer.title, *(_ratio(row, name) for name in WORKLOADS)]


def _details(row: Row, name: str) -> list[str]:
    median = row.median[name]
    return [row.peer.title, WORKLOADS[name], f'{BOUND * row.is_bound(name)}{median.throughput:.0f}',
            f'{median.p99:.2f}', f'{median.cpu:.0f}', f'{median.generator:.0%}']

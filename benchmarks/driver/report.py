"""What a run tells: a table for people, a document for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from benchmarks.driver.plan import OPERATIONS
from benchmarks.driver.result import Latencies, Result

T = TypeVar('T')

PERCENTILES = (50.0, 90.0, 99.0, 99.9)

NEARLY_ALL = 0.8
"""Of a core: a generator that needs more is slowed down by itself."""


def report(result: Result) -> str:
    """For people: a table of latencies, and what else there is to know."""
    return '\n'.join([*_title(result), '', *_table(result), '', *_notes(result)])


def percentile_report(latencies: Latencies) -> str:
    """The distribution as HdrHistogram prints it, in milliseconds."""
    lines = [f'{"Value":>12} {"Percentile":>14} {"TotalCount":>10} {"1/(1-Percentile)":>14}', '']
    for value, percent, count in latencies.distribution():
        inverse = 100 / (100 - percent) if percent < 100 else math.inf
        lines.append(f'{value * 1000:12.3f} {percent / 100:2.12f} {count:10d} {inverse:14.2f}')
    return '\n'.join(lines)


def document(result: Result) -> dict[str, Any]:
    """For machines: all figures as JSON has them, latencies in milliseconds."""
    return {
        'plan': dataclasses.asdict(result.plan),
        'duration_seconds': result.duration, 'interrupted': result.interrupted,
        'requests': result.count, 'requests_per_second': result.throughput,
        'latency_ms': {
            'all': _figures(result.latencies()),
            **{name: _figures(result.latencies(name)) for name in OPERATIONS}},
        'answers': _named(result.statuses), 'errors': _named(result.errors),
        'generator': {'cpu': result.busy, 'lateness_ms': _figures(Latencies(result.lateness))},
        'connections_opened': result.opened, 'entries_left': result.left}


def _figures(latencies: Latencies) -> dict[str, float]:
    seconds = {'mean': latencies.mean,
               **{f'p{percent:g}': latencies.percentile(percent) for percent in PERCENTILES},
               'max': latencies.maximum}
    return {'count': len(latencies),
            **{name: round(value * 1000, 6) for name, value in seconds.items()}}


def _title(result: Result) -> Iterator[str]:
    rate, end = result.plan.rate, ', broken off' * result.interrupted
    arrivals = 'evenly' if result.plan.is_even else 'at random'
    loop = f'open loop, {rate:g} requests/s {arrivals}' if rate else 'closed loop'
    yield (f'{result.plan.url}: {loop}, {result.plan.connections} connections, '
           f'{result.duration:.1f} s{end}')
    yield ('Milliseconds from when a request was due to the answer.' if rate else
           'Milliseconds from sending to the answer; that hides how long a stall keeps others '
           'waiting: see a run with a rate.')


def _table(result: Result) -> Iterator[str]:
    columns = ('mean', *(f'p{percent:g}' for percent in PERCENTILES), 'max')
    yield f'{"ms":9}{"count":>9}{"errors":>8}' + ''.join(f'{name:>11}' for name in columns)
    for operation in filter(result.samples.get, OPERATIONS):
        yield _row(operation, result.latencies(operation), result.errors_of(operation))
    yield _row('all', result.latencies(), result.errors.total())


def _row(name: str, latencies: Latencies, errors: int) -> str:
    count, *figures = _figures(latencies).values()
    return f'{name:9}{count:9}{errors:8}' + ''.join(f'{figure:11.3f}' for figure in figures)


def _notes(result: Result) -> Iterator[str]:
    yield (f'{result.throughput:.1f} requests/s answered as expected, '
           f'on {result.opened} connections')
    yield f'answers: {counts(result.statuses)}'
    if result.errors:
        yield f'errors: {counts(result.errors)}'
    limit = ' (more than it should need: the service may be faster than this)'
    yield (f'generator: {result.busy:.0%} of a core{limit * (result.busy > NEARLY_ALL)}'
           f'{_late(Latencies(result.lateness))}')
    if result.left:
        yield f'entries: up to {result.left} could not be removed'


def _late(lateness: Latencies) -> str:
    if not lateness:
        return ''
    median, p99 = (1000 * lateness.percentile(percent) for percent in (50, 99))
    return (f'; sent late by its own fault: p50 {median:.3f} ms, p99 {p99:.3f} ms, '
            f'max {1000 * lateness.maximum:.3f} ms')


def counts(of: Mapping[tuple[str, T], int]) -> str:
    """`get 200: 17, put 204: 3`."""
    return ', '.join(f'{name}: {times}' for name, times in _named(of).items()) or 'none'


def _named(counts: Mapping[tuple[str, T], int]) -> dict[str, int]:
    return {f'{name} {key}': times for (name, key), times in sorted(counts.items(), key=str)}

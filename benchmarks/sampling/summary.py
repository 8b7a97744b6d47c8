"""What a profile tells in numbers: what a request costs, by layer, and the dearest functions."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.layers import Breakdown
from benchmarks.sampling.measuring import Findings, Window

FUNCTIONS = 10


def report(findings: Findings) -> Iterator[str]:
    """The lines of the summary."""
    plain, profiled = findings.plain, findings.profiled
    breakdown = Breakdown(findings.session['frame_records'])
    yield from _windows(plain, profiled)
    yield ''
    yield from _layers(breakdown, plain.loop, profiled.loop)
    yield ''
    yield from _functions(breakdown, plain.loop)
    yield ''
    yield (f'Sampled was the event loop, which waited for {breakdown.idle:.1%} of the time, also '
           'for a core; the rest is')
    yield ('100 %. With the profiler calls of Python functions are dearer than without it, so what '
           f'is said of {plain.loop:.0f} µs')
    yield 'is an estimate.'


def _windows(plain: Window, profiled: Window) -> Iterator[str]:
    yield f'{"":20} {"requests":>9} {"a second":>12} {"µs of CPU":>9}  {"in threads":>10}'
    for name, window in (('without the profiler', plain), ('with it', profiled)):
        yield (f'{name:20} {window.requests:9} {window.requests / window.seconds:12.0f} '
               f'{window.loop:9.0f}  {window.threads:10.0f}')


def _layers(breakdown: Breakdown, plain: float, profiled: float) -> Iterator[str]:
    """
    :param plain: microseconds of a request without the profiler.
    :param profiled: the same with it.
    """
    yield f'{"layer":20} {"share":>9} {_part(plain):>12} {f"of {profiled:.0f}":>9}'
    for layer, share in (*breakdown.shares(), ('sum', 1.0)):
        yield f'{layer:20} {share:9.1%} {share * plain:12.1f} {share * profiled:9.1f}'


def _functions(breakdown: Breakdown, plain: float) -> Iterator[str]:
    yield f'{"layer":20} {"own time":>9} {_part(plain):>12}  function'
    for function, share in breakdown.largest(FUNCTIONS):
        yield (f'{function.layer:20} {share:9.1%} {share * plain:12.1f}  '
               f'{function.name}, {function.place}')


def _part(each: float) -> str:
    return f'µs of {each:.0f}'

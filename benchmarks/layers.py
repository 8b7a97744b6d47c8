"""Whose a sampled stack is: which layer of the service, and which function, a moment belongs to."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from addrservice import ROOT_DIR
from addrservice.utils.profiler import WAITING

HTTP, HANDLERS, VALIDATION, ENGINE, LOGGING, TRACING, LOOP, OTHER, IDLE = (
    'HTTP', 'handlers', 'validation', 'engine', 'logging', 'tracing and metrics', 'event loop',
    'other', 'idle')
LAYERS = (HTTP, HANDLERS, VALIDATION, ENGINE, LOGGING, TRACING, LOOP, OTHER)
"""All but `IDLE`, in which nobody's request is worked on."""

FILES = (
    (OTHER, r'addrservice/(tornado/(admin|diagnosis|server)|utils/(profiler|tasks|watchdog))\.py'
            r'|pyinstrument/.+'),
    (HTTP, r'addrservice/tornado/(connection|\w*transport|plain|reader|framing|exchange|messages'
           r'|listening|admission)\.py'
           r'|tornado/(iostream|httputil|http1connection|tcpserver|netutil)\.py'),
    (VALIDATION, r'addrservice/datamodel\.py'),
    (LOGGING, r'addrservice/utils/logutils\.py|logging/\w+\.py'),
    (TRACING, r'addrservice/(tornado/telemetry|database/observed_db|utils/\w+)\.py'
              r'|(opentelemetry|prometheus_client)/.+'),
    (ENGINE, r'addrservice/database/\w+\.py|(sqlite3|asyncpg)/.+'),
    (HANDLERS, r'addrservice/(service|tornado/\w+)\.py|tornado/(web|routing)\.py'),
    (LOOP, r'asyncio/\w+\.py|selectors\.py|tornado/(ioloop|gen|concurrent|platform/\w+)\.py'))
"""How the files of a layer end; the first that fits counts. A file that is not here, such as one of
`json` or `re`, works for whoever called it."""

BUILT_IN = '<built-in>'

_PATTERNS = [(layer, re.compile(rf'(?:.*/)?(?:{files})')) for layer, files in FILES]
_LIBRARIES = re.compile(r'.*(/site-packages/|/lib/python3\.\d+/)')


class Frame(NamedTuple):
    """A function on the stack; the file of one that is written in C is `BUILT_IN`."""

    function: str
    file: str


class Function(NamedTuple):
    """What has time of its own."""

    name: str
    place: str
    """Its file; of one written in C, that of its caller."""
    layer: str


class Breakdown:
    """Seconds by layer, and by function; each sample is in exactly one of either."""

    def __init__(self, records: Iterable[tuple[Sequence[str], float]]) -> None:
        """
        :param records: stacks, outermost first, as pyinstrument's sessions have them, with the
            seconds that each stands for.
        """
        self.layers: Counter[str] = Counter()
        self.functions: Counter[Function] = Counter()
        for stack, seconds in records:
            frames = [_parse(frame) for frame in stack]
            layer = layer_of(frames)
            self.layers[layer] += seconds  # type: ignore[assignment]  # float does
            if layer != IDLE:
                self.functions[_own(frames, layer)] += seconds  # type: ignore[assignment]

    @property
    def busy(self) -> float:
        """Seconds in which the event loop was at work."""
        return sum(self.layers[layer] for layer in LAYERS)

    @property
    def idle(self) -> float:
        """The share of time, from 0 to 1, in which it waited."""
        return self.layers[IDLE] / (self.layers.total() or 1)

    def shares(self) -> Iterator[tuple[str, float]]:
        """Every layer with its share, from 0 to 1, of the time at work."""
        for layer in LAYERS:
            yield layer, self.layers[layer] / (self.busy or 1)

    def largest(self, number: int) -> Iterator[tuple[Function, float]]:
        """The functions with most time of their own, and their shares."""
        for function, seconds in self.functions.most_common(number):
            yield function, seconds / (self.busy or 1)


def layer_of(stack: Sequence[Frame]) -> str:
    """The layer of the innermost frame whose file has one."""
    if stack and stack[-1] == _WAITING:
        return IDLE
    return next(filter(None, (_layer_of_file(frame.file) for frame in reversed(stack))), OTHER)


@functools.cache
def _layer_of_file(file: str) -> str | None:
    return next((layer for layer, files in _PATTERNS if files.fullmatch(file)), None)


def _own(stack: Sequence[Frame], layer: str) -> Function:
    last = stack[-1] if stack else Frame('', '')
    callers = [frame for frame in stack if frame.file != BUILT_IN]
    place = callers[-1].file if callers else ''
    return Function(last.function + ' (C)' * (last.file == BUILT_IN), _short(place), layer)


@functools.cache
def _short(file: str) -> str:
    """A path as one would import it."""
    return _LIBRARIES.sub('', file, count=1).removeprefix(f'{ROOT_DIR}/')


@functools.cache
def _parse(frame: str) -> Frame:
    """A frame as pyinstrument writes it: function, file and line; then marks, one for a class."""
    identifier, *marks = frame.split('\1')
    function, file, _ = identifier.split('\0')
    of_class = next((f'{mark[1:]}.' for mark in marks if mark.startswith('c')), '')
    return Frame(of_class + function, file)


_WAITING = _parse(WAITING)

"""The flight recorder: the last requests, the slowest and the failed ones, in bounded memory."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Protocol

from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext, Status, format_span_id

MAX_TEXT = 4096
"""Characters of one attribute."""

KINDS = ('last', 'slowest', 'failed')


class ReadableSpan(Protocol):
    """A span as it can be looked at, whoever has made it."""

    @property
    def name(self) -> str: ...

    @property
    def parent(self) -> SpanContext | None: ...

    @property
    def start_time(self) -> int | None: ...

    @property
    def end_time(self) -> int | None: ...

    @property
    def attributes(self) -> Mapping[str, Any] | None: ...

    @property
    def status(self) -> Status: ...

    def get_span_context(self) -> SpanContext | None: ...


class Recording:
    """One request: its spans as they begin, its own the first, up to a number; in the end its line.

    A span that has no end yet may still get it.
    """

    line: Mapping[str, Any]
    """The fields of its canonical line: ``req_id``, ``route``, ``status``, ``time_ms`` and more."""

    dropped = 0
    """Spans that were one too many."""

    def __init__(self, span: ReadableSpan, maximum: int) -> None:
        """
        :param span: of the request itself.
        :param maximum: so many are kept, it among them; of more it is known how many.
        """
        self.spans = [span]
        self.maximum = maximum

    def append(self, span: ReadableSpan) -> None:
        """Takes note of a span that has begun."""
        if len(self.spans) < self.maximum:
            self.spans.append(span)
        else:
            self.dropped += 1

    def started(self) -> int:
        """When the request began, in nanoseconds since the epoch."""
        return self.spans[0].start_time or 0

    def summary(self) -> dict[str, Any]:
        """What a list of requests shows of it."""
        names = ('req_id', 'trace_id', 'method', 'uri', 'route', 'status', 'time_ms')
        return {**{name: self.line.get(name) for name in names},
                'started': _time(self.started()), 'spans': len(self.spans) + self.dropped}

    def document(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        line = {name: value for name, value in self.line.items() if value is not None}
        trace = line.pop('trace', None)
        return {'req_id': line['req_id'], 'trace_id': line['trace_id'],
                'started': _time(self.started()), 'line': line, 'spans': self._documents(),
                'spans_dropped': self.dropped, **({'trace': trace} if trace else {})}

    def _documents(self) -> list[dict[str, Any]]:
        started = self.started()
        own, *others = (_span(span, started) for span in self.spans)
        return [{**own, 'attributes': {**attributes_of(self.line), **own['attributes']}}, *others]


class FlightRecorder:
    """Keeps requests that have ended.

    Slow and failed ones are kept apart, so that traffic cannot flush them out;
    the slow ones for each route, as a listing is always slower than a look at
    one entry, and the failed ones for each class of error, as an overload refuses many.
    """

    def __init__(self, last: int, slowest: int, failed: int) -> None:
        """
        :param last: how many of the last requests to keep.
        :param slowest: how many of the slowest, for each route.
        :param failed: how many of those that ended with a status of 500 or
            more, for each status and class of error.
        """
        self._last: deque[Recording] = deque(maxlen=last)
        self._count = slowest
        self._slowest: dict[str | None, list[tuple[float, int, Recording]]] = {}
        # Of each route, how slow a request must be to be among them.
        self._slow: dict[str | None, float] = {}
        self._slow_at_first = 0.0 if slowest else math.inf
        self._failed_count = failed
        self._failed: dict[object, deque[Recording]] = {}
        self._numbers = itertools.count()  # of two that are as slow, which is kept

    def add(self, recording: Recording, line: Mapping[str, Any],
            error: BaseException | None = None) -> None:
        """Takes note of a request that has ended.

        :param line: the fields of its canonical line.
        :param error: what it ended with; itself it is not kept.
        """
        recording.line = line
        self._last.append(recording)
        if line['status'] >= 500:
            kind = line['status'], type(error)
            self._failed.setdefault(kind, deque(maxlen=self._failed_count)).append(recording)
        if line['time_ms'] >= self._slow.get(line['route'], self._slow_at_first):
            self._keep_as_slow(recording)

    def summaries(self, kind: str) -> list[dict[str, Any]]:
        """What is kept, the newest or slowest first.

        :param kind: one of `KINDS`.
        """
        return [recording.summary() for recording in self._kept(kind)]

    def find(self, req_id: str) -> list[dict[str, Any]]:
        """Requests with that id, the newest first; a client may use one twice."""
        found = {id(recording): recording for kind in KINDS for recording in self._kept(kind)
                 if recording.line['req_id'] == req_id}
        return [recording.document() for recording in _newest_first(found.values())]

    def _keep_as_slow(self, recording: Recording) -> None:
        kept = self._slowest.setdefault(recording.line['route'], [])
        item = (recording.line['time_ms'], next(self._numbers), recording)
        if len(kept) < self._count:
            heapq.heappush(kept, item)
        else:
            heapq.heapreplace(kept, item)
        if len(kept) == self._count:
            self._slow[recording.line['route']] = kept[0][0]

    def _kept(self, kind: str) -> Iterable[Recording]:
        match kind:
            case 'slowest':
                every = itertools.chain.from_iterable(self._slowest.values())
                return [recording for *_, recording in sorted(every, reverse=True)]
            case 'failed':
                return _newest_first(itertools.chain.from_iterable(self._failed.values()))
            case _:
                return reversed(self._last)


def attributes_of(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a request's span says of it, under the names of OpenTelemetry's conventions
    (https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server).

    :param line: the fields of its canonical line.
    """
    path, _, query = line['uri'][:MAX_TEXT].partition('?')
    attributes = {
        'http.request.method': line['method'], 'url.path': path, 'url.query': query or None,
        'http.route': line['route'], 'http.response.status_code': line['status'],
        'client.address': line['ip'], 'addrservice.req_id': line['req_id']}
    return {name: value for name, value in attributes.items() if value is not None}


def ids_of(span: ReadableSpan) -> SpanContext:
    """The ids of a span, whoever records it."""
    return span.get_span_context() or INVALID_SPAN_CONTEXT


def _newest_first(recordings: Iterable[Recording]) -> list[Recording]:
    return sorted(recordings, key=lambda recording: recording.started(), reverse=True)


def _time(nanoseconds: float) -> str:
    moment = datetime.fromtimestamp(nanoseconds / 1e9, timezone.utc)
    return moment.isoformat(timespec='milliseconds')


def _span(span: ReadableSpan, started: float) -> dict[str, Any]:
    start, end = span.start_time or 0, span.end_time
    return {'name': span.name, 'span_id': format_span_id(ids_of(span).span_id),
            'parent_id': format_span_id(span.parent.span_id) if span.parent else None,
            'start_ms': _milliseconds(start - started),
            'duration_ms': None if end is None else _milliseconds(end - start),
            'attributes': dict(span.attributes or {}),
            'error': span.status.description}


def _milliseconds(nanoseconds: float) -> float:
    return round(nanoseconds / 1e6, 3)

"""Records every request for the flight recorder and the metrics, without OpenTelemetry's SDK.

A span that nobody exports is looked at here or forgotten. So it holds what is shown of it, and is
made in a fraction of the time that the SDK's take, which can do more; for those who call
`trace.get_current_span()` it is a span like any other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace

from addrservice.utils.metrics import Metrics
from addrservice.utils.flight_recorder import MAX_TEXT, FlightRecorder, Recording
from addrservice.utils.tracing import (
    CURRENT_SPAN, Attributes, Ids, RequestTrace, Tracing, client_span, context_of, fail, ids_under,
    span_context)

SEE_ALL = ('ring', 'metrics')
"""The collectors that see every request, whether it is sampled or not."""

MAX_ATTRIBUTES = 32
"""Of one span."""

_NUMBERS = frozenset((bool, int, float))
_UNSET = trace.Status()

OnEnd = Callable[[str, float], object]
"""Gets the name of a span that has ended, and its duration in seconds."""


class RecordedSpan(trace.Span):
    """A piece of work for a request: name, start, end, attributes, error."""

    # Of each span, until it is told something else.
    end_time: int | None = None
    attributes: Mapping[str, Any] | None = None
    status = _UNSET
    tell: OnEnd | None = None
    """Is told when it ends."""
    ids: Ids | None = None
    """Of a request's own span; those under it get theirs when somebody asks."""
    _span_context: trace.SpanContext | None = None

    def __init__(self, name: str, parent: RecordedSpan | trace.SpanContext | None,
                 start_time: int) -> None:
        """
        :param parent: what it is under: another of the request, or the client's.
        :param start_time: in nanoseconds since the epoch.
        """
        # Not the request, which knows the list that the span is in: they would be left to the
        # garbage collector together.
        self.name = name
        self._parent = parent
        self.start_time = start_time

    @property
    def parent(self) -> trace.SpanContext | None:
        """The ids of the span that this one is under."""
        parent = self._parent
        return parent.get_span_context() if isinstance(parent, RecordedSpan) else parent

    def get_span_context(self) -> trace.SpanContext:
        # Few spans are ever asked. In one step, as threads may ask at once.
        return self._span_context or vars(self).setdefault('_span_context', span_context(
            self.ids or ids_under(self.parent or trace.INVALID_SPAN_CONTEXT)))

    def end(self, end_time: int | None = None) -> None:
        if self.end_time is None:
            self.end_time = end_time or time.time_ns()
            if self.tell:
                self.tell(self.name, (self.end_time - self.start_time) / 1e9)

    def is_recording(self) -> bool:
        return self.end_time is None

    def set_attribute(self, key: str, value: Any) -> None:
        self.set_attributes({key: value})

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = _bounded({**(self.attributes or {}), **attributes})

    def set_status(self, status: trace.Status | trace.StatusCode, description: str | None = None
                   ) -> None:
        if isinstance(status, trace.StatusCode):
            status = trace.Status(status, description)
        self.status = status

    def update_name(self, name: str) -> None:
        self.name = name

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        pass  # nothing shows events

    def record_exception(self, exception: BaseException, attributes: Any = None,
                         timestamp: int | None = None, escaped: bool = False) -> None:
        pass  # the request's line has the traceback


class RecordedRequest(RequestTrace, Recording):
    """Makes the spans under that of a request, and keeps them."""

    def __init__(self, name: str, ids: Ids, context: otel_context.Context, start_time: int,
                 maximum: int, tell: OnEnd | None) -> None:
        """
        :param name: of the request's own span.
        :param ids: of that span.
        :param context: what was known before: the client's span, if it has told.
        :param start_time: in nanoseconds since the epoch.
        :param maximum: so many spans are kept, its own among them.
        :param tell: is told of each that ends.
        """
        parent = client_span(context) if context else None
        span = RecordedSpan(name, parent if parent and parent.is_valid else None, start_time)
        span.ids = ids
        if tell:
            span.tell = tell
        RequestTrace.__init__(self, span, ids, context)
        Recording.__init__(self, span, maximum)
        self._own, self._tell = span, tell

    def start_span(self, name: str, context: otel_context.Context,
                   attributes: Attributes | None) -> RecordedSpan:
        """A span under the current one of a context."""
        current = context.get(CURRENT_SPAN)
        # Or of the request's own, where a library has made a span that is none of ours.
        parent = current if isinstance(current, RecordedSpan) else self._own
        span = RecordedSpan(name, parent, time.time_ns())
        if attributes:
            span.attributes = _bounded(attributes)
        if self._tell:
            span.tell = self._tell
        if len(self.spans) < self.maximum:  # as in `append`, and no call
            self.spans.append(span)
        else:
            self.dropped += 1
        return span


class RecordedTracing(Tracing):
    """Records every request for the collectors `ring` and `metrics`."""

    def __init__(self, settings: Mapping[str, Any], metrics: Metrics) -> None:
        """
        :param settings: the section ``tracing``; see schema/config-v1.0.json.
        :param metrics: the collector ``metrics`` counts there.
        """
        super().__init__(settings['sample-ratio'])
        collectors: Mapping[str, Any] = settings['collectors']
        ring = collectors.get('ring')
        self.recorder = FlightRecorder(ring['last'], ring['slowest'], ring['failed']) \
            if ring else None
        self._max_spans = ring['max-spans'] if ring else 0
        self._tell = metrics.span_ended if 'metrics' in collectors else None

    def begin(self, name: str, headers: Mapping[str, str], start_time: int) -> RequestTrace:
        context = context_of(headers)
        return RecordedRequest(
            name, self._ids(context), context, start_time, self._max_spans, self._tell)

    def end(self, request: RequestTrace, line: Mapping[str, Any], error: BaseException | None
            ) -> None:
        if not isinstance(request, Recording):
            return
        span = request.span
        if error is not None and line['status'] >= 500:
            fail(span, error)
        span.end(request.started() + int(line['time_ms'] * 1_000_000))
        if self.recorder:
            self.recorder.add(request, line, error)


def _bounded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of which none is long, and not many: what a request brings is kept for a while."""
    if len(attributes) > MAX_ATTRIBUTES:
        attributes = dict(itertools.islice(attributes.items(), MAX_ATTRIBUTES))
    for value in attributes.values():
        is_text = value.__class__ is str and len(value) <= MAX_TEXT
        if not is_text and value.__class__ not in _NUMBERS:
            return {name: value if value.__class__ in _NUMBERS else str(value)[:MAX_TEXT]
                    for name, value in attributes.items()}
    return dict(attributes)


def are_recorded_only(collectors: Sequence[str]) -> bool:
    """Whether all of these see every request, so that there is nothing to export."""
    return all(name in SEE_ALL for name in collectors)

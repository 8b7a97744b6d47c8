"""Traces: the `@traced` decorator, and the part that each request has in a trace.

A trace is a tree of spans, each a piece of work with a start and an end, in
however many services (https://opentelemetry.io/docs/concepts/signals/traces/).
Here is what every request has, also if nobody collects spans: ids that other
services' lines can be found by. Who collects stands in `collectors.py`.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import random
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from addrservice.utils import logutils

if TYPE_CHECKING:
    from addrservice.utils.flight_recorder import FlightRecorder, SpanList

Function = TypeVar('Function', bound=Callable[..., Any])
Attributes = Mapping[str, str | bool | int | float]
MakeAttributes = Attributes | Callable[..., Attributes] | None

MAX_DESCRIPTION = 256
"""Characters that a span keeps of what an error says."""

_PROPAGATOR = TraceContextTextMapPropagator()

# What the propagator would log about, for every request that a client may send.
_SANE_TRACEPARENT = re.compile(r'[\x21-\x2b\x2d-\x7e]{55,128}')
_SANE_TRACESTATE = re.compile(r'(?:[a-z0-9][a-z0-9_*/@-]*=[\x21-\x2b\x2d-\x3c\x3e-\x7e]*[ \t]*'
                              r'(?:,[ \t]*|$))+')
_MAX_TRACESTATE = 512
_MAX_TRACESTATE_MEMBERS = 32

CURRENT_SPAN, = trace.set_span_in_context(trace.INVALID_SPAN, otel_context.Context())
"""The name under which a context has its current span."""

_CONTEXT: contextvars.ContextVar[otel_context.Context] = (
    otel_context._RUNTIME_CONTEXT._current_context)  # type: ignore[attr-defined]  # its own
"""Has the context that `get_current` tells and `attach` sets, by two calls more each."""

_NOTHING_KNOWN = otel_context.Context()
_IS_OURS = False  # the SpanContext did not come from another service
_NO_SPAN = trace.INVALID_SPAN_CONTEXT
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_NOT_SAMPLED = trace.TraceFlags(trace.TraceFlags.DEFAULT)


StartSpan = Callable[[str, otel_context.Context, Attributes | None], trace.Span]
"""From a name, a context and attributes to a span under the current one of the context."""

# Set while the work of a request is recorded.
_START_SPAN: contextvars.ContextVar[StartSpan | None] = contextvars.ContextVar(
    'start_span', default=None)


class RequestTrace:
    """The part that one request has in a trace: a span of its own, for others to be under."""

    __slots__ = ('span', 'start_span', 'context', 'start_time', 'spans', 'trace_id', 'span_id')

    def __init__(self, span: trace.Span, start_span: StartSpan | None = None,
                 context: otel_context.Context | None = None, start_time: int = 0,
                 spans: SpanList | None = None, ids: trace.SpanContext | None = None) -> None:
        """
        :param span: of the whole request.
        :param start_span: makes the spans under it; None: there are to be none.
        :param context: what was known before the span.
        :param start_time: of the request, in nanoseconds since the epoch.
        :param spans: where those of the request are kept, if anywhere.
        :param ids: of the span, if they are known.
        """
        self.span = span
        self.start_span = start_span
        self.context = context
        self.start_time = start_time
        self.spans = spans
        # A tuple; by their names its fields take a call each.
        trace_id, span_id, *_ = ids or span.get_span_context()
        self.trace_id = f'{trace_id:032x}'
        self.span_id = f'{span_id:016x}'

    def enter(self) -> None:
        """From now on the current task, and those it starts, work for this request."""
        _START_SPAN.set(self.start_span)
        before = _CONTEXT.get() if self.context is None else self.context
        _CONTEXT.set(_with_span(before, self.span))


class Tracing:
    """Gives requests their ids, and records nothing."""

    recorder: FlightRecorder | None = None
    """Where requests that have ended can be looked at, if they can."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        """
        :param sample_ratio: the share of the traces that begin here of which the
            services that are called from here are told to collect their spans.
        """
        self._sample_ratio = sample_ratio

    def begin(self, name: str, headers: Mapping[str, str], start_time: int) -> RequestTrace:
        """The trace that a request belongs to: the one that its client names
        in ``traceparent`` (https://www.w3.org/TR/trace-context/), else a new one.

        :param name: of the request's span.
        :param headers: of the request.
        :param start_time: of the request, in nanoseconds since the epoch.
        """
        return self.identify(headers)

    def identify(self, headers: Mapping[str, str]) -> RequestTrace:
        """As `begin`, for a request of which nothing is recorded."""
        return RequestTrace(trace.NonRecordingSpan(self._ids(context_of(headers))))

    def _ids(self, context: otel_context.Context) -> trace.SpanContext:
        """Those of a request: under the client's, if it has any; sampled as the client
        or, without one, the ratio says."""
        parent = client_span(context)
        if parent is _NO_SPAN or not parent.is_valid:
            flags = _SAMPLED if random.random() < self._sample_ratio else _NOT_SAMPLED
            return trace.SpanContext(
                random.getrandbits(128) or 1, random.getrandbits(64) or 1, _IS_OURS, flags)
        return ids_under(parent)

    def end(self, request: RequestTrace, line: Mapping[str, Any], error: BaseException | None
            ) -> None:
        """A request that began here has ended.

        :param line: the fields of its canonical line.
        :param error: what it ended with, if it did.
        """

    def stop(self) -> None:
        """Hands over what has been recorded; waits for it, for a bounded time."""


def context_of(headers: Mapping[str, str]) -> otel_context.Context:
    """What a client says about its trace; what makes no sense counts as not said."""
    if 'traceparent' not in headers or not _SANE_TRACEPARENT.fullmatch(headers['traceparent']):
        return _NOTHING_KNOWN
    carrier = {'traceparent': headers['traceparent']}
    tracestate = headers.get('tracestate', '')
    if _is_sane_tracestate(tracestate):
        carrier['tracestate'] = tracestate
    return _PROPAGATOR.extract(carrier, otel_context.Context())


def client_span(context: otel_context.Context) -> trace.SpanContext:
    """The span of the client that a context knows of; one that is not valid if it knows none."""
    return trace.get_current_span(context).get_span_context() if context else _NO_SPAN


def ids_under(parent: trace.SpanContext) -> trace.SpanContext:
    """Those of a new span of this service, in the trace of another."""
    return trace.SpanContext(parent.trace_id, random.getrandbits(64) or 1, _IS_OURS,
                             parent.trace_flags, parent.trace_state)


def _with_span(context: otel_context.Context, span: trace.Span) -> otel_context.Context:
    """A context with another current span."""
    return otel_context.Context({**context, CURRENT_SPAN: span})


def _is_sane_tracestate(text: str) -> bool:
    return (len(text) <= _MAX_TRACESTATE and text.count(',') < _MAX_TRACESTATE_MEMBERS
            and _SANE_TRACESTATE.fullmatch(text) is not None)


def outgoing_headers() -> dict[str, str]:
    """Headers for a call to another service, so that its log lines and spans
    and ours can be found by one id: ``X-Request-ID``, ``traceparent`` and, if
    there is one, ``tracestate``. Empty outside a request."""
    headers: dict[str, str] = {}
    req_id = logutils.get_log_context().get('req_id')
    if req_id:
        headers['X-Request-ID'] = str(req_id)
    _PROPAGATOR.inject(headers)
    return headers


def fail(span: trace.Span, error: BaseException) -> None:
    """Notes in a span how its work has failed."""
    kind = type(error).__qualname__
    span.set_attribute('error.type', kind)
    span.set_status(trace.StatusCode.ERROR, f'{kind}: {_text_of(error)}'[:MAX_DESCRIPTION])


def _text_of(error: BaseException) -> str:
    """What an error says, if it can say it."""
    try:
        return str(error)
    except Exception as fault:
        return f'<{type(fault).__qualname__} in its text>'


@overload
def traced(function: Function) -> Function: ...


@overload
def traced(*, name: str | None = None, attributes: MakeAttributes = None
           ) -> Callable[[Function], Function]: ...


def traced(function: Function | None = None, *, name: str | None = None,
           attributes: MakeAttributes = None) -> Any:
    """Records a span for each call: name, start, duration, attributes, error.

    For functions, coroutine functions and asynchronous generators. It
    records while a request is worked on whose trace is collected; else the
    function is called and nothing more.

    :param name: of the span; by default the function's qualified name.
    :param attributes: of the span; or what makes them, called with the
        arguments of each call that is recorded.
    """
    def decorate(function: Function) -> Any:
        how = _Recipe(name or function.__qualname__, attributes)
        innermost = inspect.unwrap(function)  # another decorator may hide what it is
        if inspect.isasyncgenfunction(innermost):
            return _generator(function, how)
        if inspect.isgeneratorfunction(innermost):
            raise TypeError(f'{function.__qualname__}: generators cannot be traced')
        is_coroutine = inspect.iscoroutinefunction(innermost)
        return _coroutine(function, how) if is_coroutine else _function(function, how)

    return decorate if function is None else decorate(function)


class _Recipe:
    """How the spans of a function are made."""

    def __init__(self, name: str, attributes: MakeAttributes) -> None:
        self.name = name
        self._make = attributes if callable(attributes) else None
        self._attributes = None if callable(attributes) else attributes

    def start(self, start_span: StartSpan, before: otel_context.Context, args: Sequence[Any],
              kwargs: Mapping[str, Any]) -> trace.Span:
        """A span under the current one of a context."""
        if self._make is None:
            return start_span(self.name, before, self._attributes)
        try:
            attributes = self._make(*args, **kwargs)
        except Exception as error:  # looking must not break what is looked at
            attributes = {'addrservice.attributes_error': type(error).__qualname__}
        return start_span(self.name, before, attributes)


class _Attached:
    """A context that is the current one while work is done in it; more than once, if need be."""

    __slots__ = ('context', 'before')

    def __init__(self, context: otel_context.Context) -> None:
        self.context = context

    def __enter__(self) -> None:
        self.before = _CONTEXT.get()
        _CONTEXT.set(self.context)

    def __exit__(self, *_: object) -> None:
        _CONTEXT.set(self.before)


def _end_failed(span: trace.Span, error: BaseException) -> None:
    fail(span, error)
    span.end()


def _function(function: Callable[..., Any], how: _Recipe) -> Callable[..., Any]:

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start_span = _START_SPAN.get()
        if start_span is None:
            return function(*args, **kwargs)
        before = _CONTEXT.get()
        span = how.start(start_span, before, args, kwargs)
        _CONTEXT.set(_with_span(before, span))
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            _end_failed(span, error)
            raise
        finally:
            _CONTEXT.set(before)
        span.end()
        return result

    return wrapper


def _coroutine(function: Callable[..., Coroutine[Any, Any, Any]], how: _Recipe
               ) -> Callable[..., Coroutine[Any, Any, Any]]:

    async def call(start_span: StartSpan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        before = _CONTEXT.get()
        span = how.start(start_span, before, args, kwargs)
        _CONTEXT.set(_with_span(before, span))
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            _end_failed(span, error)
            raise
        finally:
            # Not by a token, which is good for one context only: a coroutine may be
            # closed by whoever finds it.
            _CONTEXT.set(before)
        span.end()
        return result

    # No coroutine of its own, which would be one more for every call that is not recorded.
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        start_span = _START_SPAN.get()
        return function(*args, **kwargs) if start_span is None else call(start_span, args, kwargs)

    return wrapper


def _generator(function: Callable[..., AsyncGenerator[Any, Any]], how: _Recipe
               ) -> Callable[..., AsyncGenerator[Any, Any]]:

    async def iterate(start_span: StartSpan, args: Sequence[Any], kwargs: Mapping[str, Any]
                      ) -> AsyncGenerator[Any, Any]:
        before = _CONTEXT.get()
        span = how.start(start_span, before, args, kwargs)
        attached = _Attached(_with_span(before, span))
        items = function(*args, **kwargs)
        step = items.__anext__()
        try:
            while True:
                # Between two steps the caller has its own span: the context is shared with it.
                with attached:
                    item = await step
                try:
                    step = items.asend((yield item))
                except GeneratorExit:
                    with attached:
                        await items.aclose()
                    raise
                except BaseException as error:
                    step = items.athrow(error)
        except (StopAsyncIteration, GeneratorExit):
            span.end()
        except BaseException as error:
            _end_failed(span, error)
            raise

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        start_span = _START_SPAN.get()
        return function(*args, **kwargs) if start_span is None else iterate(
            start_span, args, kwargs)

    return wrapper

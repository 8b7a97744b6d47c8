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
    from addrservice.utils.flight_recorder import FlightRecorder

Function = TypeVar('Function', bound=Callable[..., Any])
Attributes = Mapping[str, str | bool | int | float]
Make = Callable[..., Attributes]
MakeAttributes = Attributes | Make | None

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

_Context = otel_context.Context
_NOTHING_KNOWN = _Context()
_IS_OURS = False  # the SpanContext did not come from another service
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_NOT_SAMPLED = trace.TraceFlags(trace.TraceFlags.DEFAULT)


StartSpan = Callable[[str, otel_context.Context, Attributes | None], trace.Span]
"""From a name, a context and attributes to a span under the current one of the context."""

Ids = tuple[str, str, trace.TraceFlags, trace.TraceState | None]
"""What tells a span from all others: the ids of its trace and its own in hexadecimal digits,
and what services tell each other of the trace. A `SpanContext` of them takes more steps, and
few spans are ever asked for one."""

# Set while the work of a request is recorded.
_START_SPAN: contextvars.ContextVar[StartSpan | None] = contextvars.ContextVar(
    'start_span', default=None)


class RequestTrace:
    """The part that one request has in a trace: a span of its own, for others to be under."""

    start_span: StartSpan | None = None
    """Makes the spans under it; None: there are to be none."""

    def __init__(self, span: trace.Span, ids: Ids, context: otel_context.Context | None = None
                 ) -> None:
        """
        :param span: of the whole request.
        :param ids: of the span.
        :param context: what was known before the span.
        """
        self.span = span
        self.context = context
        self.trace_id, self.span_id, _, _ = ids

    def enter(self) -> None:
        """From now on the current task, and those it starts, work for this request."""
        _START_SPAN.set(self.start_span)
        before = _CONTEXT.get() if self.context is None else self.context
        _CONTEXT.set(_Context({**before, CURRENT_SPAN: self.span}))


class UnrecordedSpan(trace.NonRecordingSpan):
    """The span of a request of which nothing is recorded but its ids."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    @functools.cached_property
    def _context(self) -> trace.SpanContext:  # type: ignore[override]  # made when asked for
        return span_context(self._ids)


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
        ids = self._ids(context_of(headers))
        return RequestTrace(UnrecordedSpan(ids), ids)

    def _ids(self, context: otel_context.Context) -> Ids:
        """Those of a request: under the client's, if it has any; sampled as the client
        or, without one, the ratio says."""
        if context and (parent := client_span(context)).is_valid:
            return ids_under(parent)
        flags = _SAMPLED if random.random() < self._sample_ratio else _NOT_SAMPLED
        digits = '%048x' % random.getrandbits(192)
        return digits[:32], digits[32:], flags, None

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
    return trace.get_current_span(context).get_span_context()


def ids_under(parent: trace.SpanContext) -> Ids:
    """Those of a new span of this service, in the trace of another."""
    return (trace.format_trace_id(parent.trace_id), '%016x' % random.getrandbits(64),
            parent.trace_flags, parent.trace_state)


def span_context(ids: Ids) -> trace.SpanContext:
    """As OpenTelemetry wants to have them."""
    trace_id, span_id, flags, state = ids
    return trace.SpanContext(int(trace_id, 16), int(span_id, 16), _IS_OURS, flags, state)


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
        own_name = name or function.__qualname__
        fixed, make = (None, attributes) if callable(attributes) else (attributes, None)
        innermost = inspect.unwrap(function)  # another decorator may hide what it is
        if inspect.isasyncgenfunction(innermost):
            return _generator(function, own_name, fixed, make)
        if inspect.isgeneratorfunction(innermost):
            raise TypeError(f'{function.__qualname__}: generators cannot be traced')
        trace_calls = _coroutine if inspect.iscoroutinefunction(innermost) else _function
        return trace_calls(function, own_name, fixed, make)

    return decorate if function is None else decorate(function)


def _made(make: Make, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Attributes:
    """What somebody's function says of a call."""
    try:
        return make(*args, **kwargs)
    except Exception as error:  # looking must not break what is looked at
        return {'addrservice.attributes_error': type(error).__qualname__}


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


def _function(function: Callable[..., Any], name: str, fixed: Attributes | None,
              make: Make | None) -> Callable[..., Any]:

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start_span = _START_SPAN.get()
        if start_span is None:
            return function(*args, **kwargs)
        before = _CONTEXT.get()
        span = start_span(name, before, _made(make, args, kwargs) if make else fixed)
        _CONTEXT.set(_Context({**before, CURRENT_SPAN: span}))
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


def _coroutine(function: Callable[..., Coroutine[Any, Any, Any]], name: str,
               fixed: Attributes | None, make: Make | None
               ) -> Callable[..., Coroutine[Any, Any, Any]]:

    async def call(start_span: StartSpan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        before = _CONTEXT.get()
        span = start_span(name, before, _made(make, args, kwargs) if make else fixed)
        _CONTEXT.set(_Context({**before, CURRENT_SPAN: span}))
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


def _generator(function: Callable[..., AsyncGenerator[Any, Any]], name: str,
               fixed: Attributes | None, make: Make | None
               ) -> Callable[..., AsyncGenerator[Any, Any]]:

    async def iterate(start_span: StartSpan, args: Sequence[Any], kwargs: Mapping[str, Any]
                      ) -> AsyncGenerator[Any, Any]:
        before = _CONTEXT.get()
        span = start_span(name, before, _made(make, args, kwargs) if make else fixed)
        attached = _Attached(_Context({**before, CURRENT_SPAN: span}))
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

"""Who collects spans: from the section ``tracing`` of the configuration to OpenTelemetry's SDK.

A span goes to every collector that is configured. `ring`, which needs no SDK, and
`metrics` see each; `log`, `file`, `otlp` and any other exporter see those of sampled
requests: the share that ``sample-ratio`` says, and those that the caller of this
service has sampled. The SDK makes the spans of these, `recording` those of the others.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import (
    ReadableSpan, Span, SpanLimits, SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from addrservice.errors import ConfigError
from addrservice.utils import logutils
from addrservice.utils.metrics import Metrics
from addrservice.utils.flight_recorder import MAX_TEXT, Recording, attributes_of, ids_of
from addrservice.utils.recording import (
    MAX_ATTRIBUTES, SEE_ALL, RecordedRequest, RecordedTracing)
from addrservice.utils.trace_file import TraceEventFile
from addrservice.utils.tracing import Attributes, RequestTrace, UnrecordedSpan, context_of

FLUSH_SECONDS = 3.0
"""For what has been collected to be handed over at the end."""

LIMITS = SpanLimits(max_span_attributes=MAX_ATTRIBUTES, max_events=8, max_links=8,
                    max_attribute_length=MAX_TEXT)
"""What one span may hold, so that memory is bounded whatever a request brings."""


class SampledRequest(RequestTrace, Recording):
    """Has the SDK make the spans under that of a request, and keeps them."""

    def __init__(self, span: Span, context: otel_context.Context, maximum: int,
                 tracer: trace.Tracer) -> None:
        """
        :param span: of the request itself.
        :param context: what was known before that.
        :param maximum: so many spans are kept, its own among them.
        :param tracer: makes the others.
        """
        own = span.get_span_context()
        RequestTrace.__init__(self, span, (
            trace.format_trace_id(own.trace_id), trace.format_span_id(own.span_id),
            own.trace_flags, own.trace_state), context)
        Recording.__init__(self, span, maximum)
        self._tracer = tracer

    def start_span(self, name: str, context: otel_context.Context,
                   attributes: Attributes | None) -> trace.Span:
        span = self._tracer.start_span(name, context, attributes=attributes)
        if isinstance(span, Span):  # as from the tracer of the request's own
            self.append(span)
        return span


class CollectedTracing(RecordedTracing):
    """Records spans, and hands those of sampled requests to collectors of the SDK."""

    def __init__(self, settings: Mapping[str, Any], service: str, version: str,
                 logger: logging.Logger, metrics: Metrics) -> None:
        """
        :param settings: the section ``tracing``; see schema/config-v1.0.json.
        :param service: its name, for those who see spans of many services;
            the environment variables of OpenTelemetry win over it.
        :param version: of the service.
        :param logger: the collector ``log`` writes to its child ``spans``.
        :param metrics: the collector ``metrics`` counts there.
        :raises ConfigError: a collector cannot be made.
        """
        super().__init__(settings, metrics)
        self._sees_all = any(name in SEE_ALL for name in settings['collectors'])
        faults = Faults(logger)
        self._collectors = Collectors(
            {name: _processor(name, own or {}, logger, metrics, faults)
             for name, own in settings['collectors'].items() if name != 'ring'}, faults)
        resource = Resource({'service.name': service, 'service.version': version})
        # What comes to the provider has been chosen already.
        self._tracer = TracerProvider(
            sampler=ALWAYS_ON, span_limits=LIMITS, shutdown_on_exit=False,
            resource=resource.merge(OTELResourceDetector().detect()),
            active_span_processor=self._collectors).get_tracer('addrservice', version)

    def begin(self, name: str, headers: Mapping[str, str], start_time: int) -> RequestTrace:
        context = context_of(headers)
        ids = *_, flags, _ = self._ids(context)
        if flags.sampled:
            span = self._tracer.start_span(
                name, context, trace.SpanKind.SERVER, start_time=start_time)
            if isinstance(span, Span):  # unless by OTEL_SDK_DISABLED
                return SampledRequest(span, context, self._max_spans, self._tracer)
        if self._sees_all:
            return RecordedRequest(name, ids, context, start_time, self._max_spans, self._tell)
        return RequestTrace(UnrecordedSpan(ids), ids)

    def end(self, request: RequestTrace, line: Mapping[str, Any], error: BaseException | None
            ) -> None:
        if isinstance(request.span, Span):
            request.span.set_attributes(attributes_of(line))
            if line['status'] >= 500 and error is not None:
                request.span.record_exception(error)
        super().end(request, line, error)

    def stop(self) -> None:
        self._collectors.stop(FLUSH_SECONDS)


class Faults:
    """Tells in the log which collectors fail: each once, until it works again."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._failing: set[str] = set()

    def tell(self, name: str, reason: str | Exception) -> None:
        """A collector has failed."""
        if name not in self._failing:
            self._failing.add(name)
            error = reason if isinstance(reason, Exception) else None
            logutils.log_line(self._logger, logging.ERROR, {
                'message': 'SPANS LOST', 'collector': name,
                'reason': type(error).__qualname__ if error else reason,
                'trace': error and logutils.one_line_trace(error)})

    def end(self, name: str) -> None:
        """It works again, or what it does next is worth a line of its own."""
        self._failing.discard(name)


class Collectors(SynchronousMultiSpanProcessor):
    """All that are configured, each told of the spans that it wants to know of.

    What goes wrong in one of them, of a disk or in somebody's own class, is kept
    from requests and from the others.
    """

    def __init__(self, processors: Mapping[str, SpanProcessor], faults: Faults) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library is half typed
        self._processors = processors
        self._faults = faults
        self._at_start = [(name, processor.on_start) for name, processor in processors.items()
                          if type(processor).on_start is not SpanProcessor.on_start]
        self._at_end = [(name, processor.on_end) for name, processor in processors.items()
                        if type(processor).on_end is not SpanProcessor.on_end]

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        for name, tell in self._at_start:
            try:
                tell(span, parent_context)
            except Exception as error:
                self._faults.tell(name, error)

    def on_end(self, span: ReadableSpan) -> None:
        for name, tell in self._at_end:
            try:
                tell(span)
            except Exception as error:
                self._faults.tell(name, error)

    def stop(self, seconds: float) -> None:
        """Has them hand over what they have, side by side, and waits so long at most:
        in threads that end with the process, so that a back end that hangs holds up nobody."""
        stopping = {name: threading.Thread(target=self._stop_one, args=(name,), daemon=True)
                    for name in self._processors}
        for thread in stopping.values():
            thread.start()
        deadline = time.monotonic() + seconds
        for name, thread in stopping.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._faults.end(name)
                self._faults.tell(name, f'It has not handed over all within {seconds:g} s')

    def _stop_one(self, name: str) -> None:
        try:
            self._processors[name].shutdown()
        except Exception as error:
            self._faults.end(name)
            self._faults.tell(name, error)


class WatchedExporter(SpanExporter):
    """An exporter whose faults are told. The SDK, which calls it in a thread of its own,
    would tell of them without saying whose they are."""

    def __init__(self, name: str, exporter: SpanExporter, faults: Faults) -> None:
        self._name = name
        self._exporter = exporter
        self._faults = faults

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._faults.tell(self._name, error)
            return SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._faults.end(self._name)
        else:
            self._faults.tell(self._name, 'It could not hand over what it had')
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class MetricsCollector(SpanProcessor):
    """Counts spans by name and duration."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_end(self, span: ReadableSpan) -> None:
        self._metrics.span_ended(span.name, seconds_of(span))


class LogCollector(SpanProcessor):
    """Writes a line for each span of a sampled request."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def on_end(self, span: ReadableSpan) -> None:
        ids = ids_of(span)
        fields = {
            'message': 'SPAN', 'name': span.name,
            'trace_id': trace.format_trace_id(ids.trace_id),
            'span_id': trace.format_span_id(ids.span_id),
            'parent_id': trace.format_span_id(span.parent.span_id) if span.parent else None,
            'time_ms': round(1000 * seconds_of(span), 3), 'error': span.status.description}
        # No attribute can pass for one of these.
        logutils.log_line(self._logger, logging.INFO,
                          {**fields, **(span.attributes or {}), **fields})


def seconds_of(span: ReadableSpan) -> float:
    """How long the work of a span that has ended took."""
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9


def _processor(name: str, settings: Mapping[str, Any], logger: logging.Logger, metrics: Metrics,
               faults: Faults) -> SpanProcessor:
    match name:
        case 'metrics':
            return MetricsCollector(metrics)
        case 'log':
            return LogCollector(logger.getChild('spans'))
        case 'file':
            collector = _made(name, TraceEventFile, settings)
        case 'otlp':
            collector = _otlp(settings)
        case _:
            collector = _made(name, _imported(name), settings)
    if isinstance(collector, SpanExporter):
        collector = BatchSpanProcessor(WatchedExporter(name, collector, faults))
    if not isinstance(collector, SpanProcessor):
        raise ConfigError(f'tracing.collectors.{name}: is neither a SpanProcessor nor '
                          'a SpanExporter of opentelemetry.sdk.trace')
    return collector


def _otlp(settings: Mapping[str, Any]) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    return OTLPSpanExporter(
        endpoint=settings['endpoint'], headers=settings['headers'], timeout=settings['timeout'],
        compression=Compression(settings['compression']))


def _imported(name: str) -> Callable[[Mapping[str, Any]], Any]:
    module, _, attribute = name.rpartition('.')
    try:
        found: Callable[[Mapping[str, Any]], Any] = getattr(
            importlib.import_module(module), attribute)
    except Exception as error:  # whatever that module does when it is imported
        raise ConfigError(f'tracing.collectors.{name}: cannot be imported: {error}') from error
    return found


def _made(name: str, make: Callable[[Mapping[str, Any]], Any], settings: Mapping[str, Any]) -> Any:
    try:
        return make(settings)
    except Exception as error:  # of somebody's own class, perhaps
        raise ConfigError(f'tracing.collectors.{name}: {error}') from error

"""All that is counted and measured, for Prometheus to collect.

Names are those of OpenTelemetry's semantic conventions, as Prometheus writes
them, where there are any: ``http_server_*`` (with the short labels ``method``,
``route`` and ``status``), ``db_client_connection_*``; ``process_*`` and
``python_gc_*`` are those of every Prometheus client. The rest is called
``addrservice_*``. Whatever clients send, the number of series is bounded.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPMethod
from typing import Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry, Counter, GCCollector, Gauge, Histogram, ProcessCollector,
    disable_created_metrics)

from addrservice import MULTIPROCESS, __version__
from addrservice.utils.exposition import forget, prepare_folder, sum_of_all, text_of
from addrservice.utils.tallies import BATCH, BeforeCollecting, Tallies, Tally, observe_all

METHODS = frozenset(HTTPMethod.__members__)
"""Those that have a name of their own; clients may invent others without number."""

UNKNOWN_ROUTE = '(unknown)'
OTHER_METHOD = '_OTHER'
OTHER_SPAN = '(other)'
MAX_SPAN_NAMES = 100

REFUSALS: Mapping[int, str] = {
    408: 'request_timeout', 413: 'content_too_large', 414: 'uri_too_long',
    415: 'unsupported_media_type', 417: 'expectation_failed', 428: 'precondition_required',
    429: 'too_many_requests', 431: 'header_fields_too_large'}
"""Why a request was refused, where its status says it."""

NOT_NOW = ('overloaded', 'storage_unavailable', 'too_many_connections')
"""Why one was refused that would be served at another time."""

REQUEST_BUCKETS = (.001, .0025, .005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)
"""Seconds: those that OpenTelemetry advises, and two more at the lower end."""

OPERATION_BUCKETS = (.00001, .000025, .00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025,
                     .05, .1, .25, .5, 1, 2.5, 5)
SPAN_BUCKETS = OPERATION_BUCKETS
LAG_BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)
SIZE_BUCKETS = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
"""Bytes."""

RequestKey = tuple[str, str | None, int]
"""Method, route and status."""

EndedRequest = tuple[float, int, int | None, str | None, float]
"""Seconds, bytes of both bodies, and the trace; when it ended, in seconds since the epoch."""


class Metrics:
    """Counts and measures, and tells Prometheus.

    What each request brings waits in tallies until somebody looks.

    With several processes that share a folder (`MULTIPROCESS`) each of them tells
    the sum of all; the library has no exemplars then, and what is of one
    process (memory, CPU time, garbage collections) has a label ``pid``.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """
        :param registry: where the metrics are; a new one if left out.
        :raises ConfigError: the folder that processes share cannot be used.
        """
        self._registry = CollectorRegistry() if registry is None else registry
        self.is_shared = MULTIPROCESS in os.environ
        """Whether other processes tell what this one counts, and the other way round."""

        if self.is_shared:
            prepare_folder(os.environ[MULTIPROCESS])
        # A third of all series, which say when the process started, as another one does.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library is half typed
        self._registry.register(BeforeCollecting(self._pour))
        self._make_http_metrics()
        self._make_storage_metrics()
        self._make_process_metrics()
        self._under_way = 0
        self._requests = Tallies(self._request_tally)
        self._operations = Tallies(self._operation_tally)
        self._spans = Tallies(self._span_tally)
        self._gauges: dict[str, Gauge] = {}

    def request_began(self) -> None:
        """A request is under way; it must end in `request_ended`, in the same thread."""
        self._under_way += 1

    def request_ended(self, method: str, route: str | None, status: int, seconds: float,
                      request_size: int, response_size: int | None, trace_id: str | None) -> None:
        """A request has ended, however it did.

        :param route: the template of its path; None for an unknown one.
        :param request_size: bytes of its body.
        :param response_size: bytes of the answer's body, if known.
        :param trace_id: of the trace that it belongs to.
        """
        self._under_way -= 1
        tally = self._requests[method, route, status]
        tally.append((seconds, request_size, response_size, trace_id, time.time()))
        if len(tally) >= BATCH:
            tally.pour()
        if status in REFUSALS:
            self.refused(REFUSALS[status])

    def refused(self, reason: str) -> None:
        """A request was refused for another reason than what it asks for.

        :param reason: one of `REFUSALS`, which `request_ended` counts itself, or of `NOT_NOW`.
        """
        self._refused.labels(reason).inc()

    def operation_ended(self, engine: str, operation: str, outcome: str, seconds: float) -> None:
        """A call of the storage engine has ended.

        :param outcome: ``ok``, or the name of an error.
        """
        tally = self._operations[engine, operation, outcome]
        tally.append(seconds)
        if len(tally) >= BATCH:
            tally.pour()

    def unreadable_record(self) -> None:
        """A damaged record was met."""
        self._unreadable.inc()

    def loop_lagged(self, seconds: float) -> None:
        """The event loop ran something so much later than it should have."""
        self._lag.observe(seconds)

    def span_ended(self, name: str, seconds: float) -> None:
        """A span has ended, in any thread. Of very many names, the later ones count as one."""
        tally = self._spans[name]
        tally.append(seconds)
        if len(tally) >= BATCH:
            tally.pour()

    def set_connections(self, used: int, idle: int, maximum: int) -> None:
        """How many connections the storage engine has to its database, and may have."""
        count = self._gauge('db_client_connection_count', 'Connections to the database.',
                            ('state',))
        count.labels('used').set(used)
        count.labels('idle').set(idle)
        self._gauge('db_client_connection_max',
                    'Connections to the database that there may be.').set(maximum)

    def set_entries(self, count: int | None) -> None:
        """How many entries the book has; None: that is not known any more."""
        if count is not None or 'addrservice_entries' in self._gauges:
            gauge = self._gauge('addrservice_entries', 'Entries in the book.', mode='mostrecent')
            gauge.set(math.nan if count is None else count)

    def set_ready(self, is_ready: bool) -> None:
        """Whether requests should be sent here now."""
        self._ready.set(is_ready)

    def refresh(self) -> None:
        """Brings up to date what others tell of this process: what it has counted, and what the
        system knows of it; to be called about once a second where metrics are shared."""
        self._pour()
        for family in self._own.collect():
            for name, labels, value, *_ in family.samples:
                gauge = self._gauge(name, family.documentation, tuple(labels), 'liveall')
                (gauge.labels(**labels) if labels else gauge).set(value)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics, as text for Prometheus.

        :param accept: the request's Accept header (RFC 9110 section 12.5.1): whoever
            takes OpenMetrics gets that, with exemplars, everyone else the older format.
        :return: the body and its media type.
        """
        if not self.is_shared:
            return text_of(self._registry, accept)
        self.refresh()
        return text_of(sum_of_all(os.environ[MULTIPROCESS]), accept)

    def stop(self) -> None:
        """From now on other processes do not tell of this one what is only true while it runs."""
        if self.is_shared:
            self._pour()
            forget(os.getpid(), os.environ[MULTIPROCESS])

    def _pour(self) -> None:
        """Brings up to date what waits until somebody looks."""
        self._active.set(self._under_way)
        for tallies in (self._requests, self._operations, self._spans):
            tallies.pour()

    def _make_http_metrics(self) -> None:
        self._active = Gauge(
            'http_server_active_requests', 'Requests under way.',
            registry=self._registry, multiprocess_mode='livesum')
        self._request = Histogram(
            'http_server_request_duration_seconds', 'How long requests took.',
            ('method', 'route', 'status'), registry=self._registry, buckets=REQUEST_BUCKETS)
        self._request_size = Histogram(
            'http_server_request_body_size_bytes', 'Bytes of request bodies, where there is one.',
            ('method', 'route'), registry=self._registry, buckets=SIZE_BUCKETS)
        self._response_size = Histogram(
            'http_server_response_body_size_bytes', 'Bytes of response bodies.',
            ('method', 'route'), registry=self._registry, buckets=SIZE_BUCKETS)
        self._refused = Counter(
            'addrservice_requests_refused', 'Requests and connections that were refused.',
            ('reason',), registry=self._registry)
        for reason in (*REFUSALS.values(), *NOT_NOW):
            self._refused.labels(reason)  # there from the start, so that the first one counts

    def _make_storage_metrics(self) -> None:
        self._operation = Histogram(
            'addrservice_db_operation_duration_seconds', 'How long the storage engine took.',
            ('engine', 'operation', 'outcome'), registry=self._registry,
            buckets=OPERATION_BUCKETS)
        self._unreadable = Counter(
            'addrservice_unreadable_records', 'Damaged records that were met, each time.',
            registry=self._registry)

    def _make_process_metrics(self) -> None:
        self._lag = Histogram(
            'addrservice_event_loop_lag_seconds', 'How late the event loop runs what is due.',
            registry=self._registry, buckets=LAG_BUCKETS)
        self._span = Histogram(
            'addrservice_span_duration_seconds', 'How long the work of a span took.', ('name',),
            registry=self._registry, buckets=SPAN_BUCKETS)
        self._ready = Gauge(
            'addrservice_ready', 'Whether requests should be sent here now.',
            registry=self._registry, multiprocess_mode='livemin')
        Gauge('addrservice_build_info', 'What runs here.', ('version', 'python'),
              registry=self._registry, multiprocess_mode='livemax').labels(
                  __version__, platform.python_version()).set(1)
        self._own = CollectorRegistry() if self.is_shared else self._registry
        ProcessCollector(registry=self._own)
        GCCollector(registry=self._own)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str] = (),
               mode: Literal['livesum', 'mostrecent', 'liveall'] = 'livesum') -> Gauge:
        """A gauge that is there from when it is first set: 0 would be wrong."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, documentation, labels, registry=self._registry,
                                       multiprocess_mode=mode)
        return self._gauges[name]

    def _request_tally(self, key: RequestKey) -> Tally[EndedRequest]:
        method, route, status = key
        labels = _method(method), route or UNKNOWN_ROUTE
        histograms = _RequestHistograms(
            self._request.labels(*labels, str(status)), self._request_size.labels(*labels),
            self._response_size.labels(*labels))
        return self._requests.setdefault((labels[0], route, status), Tally(histograms.observe))

    def _operation_tally(self, key: tuple[str, str, str]) -> Tally[float]:
        count = partial(observe_all, self._operation.labels(*key))
        return self._operations.setdefault(key, Tally(count))

    def _span_tally(self, name: str) -> Tally[float]:
        label = name if len(self._spans) < MAX_SPAN_NAMES else OTHER_SPAN
        return self._spans.setdefault(label, Tally(partial(observe_all, self._span.labels(label))))


class _RequestHistograms(NamedTuple):
    """Where requests of one method, route and status are counted."""

    duration: Histogram
    received: Histogram
    sent: Histogram

    def observe(self, ended: Sequence[EndedRequest]) -> None:
        seconds, received, sent, trace_ids, times = zip(*ended)
        observe_all(self.duration, seconds, trace_ids, times)
        # Most requests have no body, and would hide how large those of others are.
        observe_all(self.received, [size for size in received if size])
        observe_all(self.sent, [size for size in sent if size is not None])


def _method(method: str) -> str:
    return method if method in METHODS else OTHER_METHOD

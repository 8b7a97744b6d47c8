"""All that is counted and measured, for Prometheus to collect.

Names are those of OpenTelemetry's semantic conventions, as Prometheus writes
them, where there are any: ``http_server_*`` (with the short labels ``method``,
``route`` and ``status``), ``db_client_connection_*``; ``process_*`` and
``python_gc_*`` are those of every Prometheus client. The rest is called
``addrservice_*``. Whatever clients send, the number of series is bounded.
"""

from __future__ import annotations

import bisect
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from http import HTTPMethod
from typing import Literal

from prometheus_client import (
    CollectorRegistry, Counter, GCCollector, Gauge, Histogram, ProcessCollector,
    disable_created_metrics)

from addrservice import MULTIPROCESS, __version__
from addrservice.utils.exposition import forget, prepare_folder, sum_of_all, text_of

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


class Metrics:
    """Counts and measures, and tells Prometheus.

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
        self._make_http_metrics()
        self._make_storage_metrics()
        self._make_process_metrics()
        self._requests: dict[tuple[str, str | None, int], Histogram] = {}
        self._sizes: dict[tuple[str, str | None], tuple[Histogram, Histogram]] = {}
        self._exemplified: dict[tuple[tuple[str, str | None, int], int], int] = {}
        self._operations: dict[tuple[str, str, str], Histogram] = {}
        self._spans: dict[str, Histogram] = {}
        self._gauges: dict[str, Gauge] = {}

    def request_began(self) -> None:
        """A request is under way; it must end in `request_ended`."""
        self._active.inc()

    def request_ended(self, method: str, route: str | None, status: int, seconds: float,
                      request_size: int, response_size: int | None, trace_id: str | None) -> None:
        """A request has ended, however it did.

        :param route: the template of its path; None for an unknown one.
        :param request_size: bytes of its body.
        :param response_size: bytes of the answer's body, if known.
        :param trace_id: of the trace that it belongs to.
        """
        self._active.dec()
        key = method, route, status
        duration = self._requests.get(key) or self._request_child(key)
        is_example = trace_id and self._is_first_of_second(key, seconds)
        duration.observe(seconds, {'trace_id': str(trace_id)} if is_example else None)
        received, sent = self._sizes.get(key[:2]) or self._size_children(key[:2])
        if request_size:  # most requests have no body, and would hide how large those of others are
            received.observe(request_size)
        if response_size is not None:
            sent.observe(response_size)
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
        key = engine, operation, outcome
        child = self._operations.get(key)
        if child is None:
            child = self._operations[key] = self._operation.labels(*key)
        child.observe(seconds)

    def unreadable_record(self) -> None:
        """A damaged record was met."""
        self._unreadable.inc()

    def loop_lagged(self, seconds: float) -> None:
        """The event loop ran something so much later than it should have."""
        self._lag.observe(seconds)

    def span_ended(self, name: str, seconds: float) -> None:
        """A span has ended. Of very many names, the later ones count as one."""
        child = self._spans.get(name)
        if child is None:
            label = name if len(self._spans) < MAX_SPAN_NAMES else OTHER_SPAN
            child = self._spans[label] = self._span.labels(label)
        child.observe(seconds)

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
        """Brings up to date what the system knows of this process, for others to tell;
        to be called about once a second where metrics are shared."""
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
            forget(os.getpid(), os.environ[MULTIPROCESS])

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

    def _is_first_of_second(self, key: tuple[str, str | None, int], seconds: float) -> bool:
        """Whether no other request of its kind that took as long has ended in this second: a
        trace is named for each bucket (an exemplar), and is looked at every few seconds."""
        now, kind = int(time.monotonic()), (key, bisect.bisect_left(REQUEST_BUCKETS, seconds))
        is_first = self._exemplified.get(kind) != now
        if is_first and key[0] in METHODS:
            self._exemplified[kind] = now
        return is_first

    def _request_child(self, key: tuple[str, str | None, int]) -> Histogram:
        method, route, status = key
        child = self._request.labels(_method(method), route or UNKNOWN_ROUTE, str(status))
        if method in METHODS:
            self._requests[key] = child
        return child

    def _size_children(self, key: tuple[str, str | None]) -> tuple[Histogram, Histogram]:
        labels = _method(key[0]), key[1] or UNKNOWN_ROUTE
        children = self._request_size.labels(*labels), self._response_size.labels(*labels)
        if key[0] in METHODS:
            self._sizes[key] = children
        return children


def _method(method: str) -> str:
    return method if method in METHODS else OTHER_METHOD

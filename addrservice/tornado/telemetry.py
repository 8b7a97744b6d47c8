"""A request began, a request ended: one event, reported in one place."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import operator
import random
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from addrservice.errors import Overloaded, StorageUnavailable
from addrservice.tornado.messages import Headers, Request
from addrservice.utils import logutils
from addrservice.utils.metrics import METHODS, Metrics
from addrservice.utils.tracing import RequestTrace, Tracing

_WENT_WELL = (
    'req_id="%s" method="%s" uri="%s" ip="%s" trace_id="%s" span_id="%s" message="RESPONSE" '
    'status=%s time_ms=%s route="%s" bytes=%s')

_SANE_REQUEST_ID = re.compile(r'[A-Za-z0-9._:-]{1,64}')


def request_id(headers: Headers) -> str:
    """The client's own X-Request-ID if it is fit for logs, else a new one."""
    sent = headers.fields.get('X-Request-Id')
    if sent and _SANE_REQUEST_ID.fullmatch(sent):
        return sent
    return '%032x' % random.getrandbits(128)


@functools.lru_cache(maxsize=64)
def span_name(method: str, route: str | None) -> str:
    """What a request's span is called: nothing that a client may choose
    (https://opentelemetry.io/docs/specs/semconv/http/http-spans/#name)."""
    known = method if method in METHODS else 'HTTP'
    return f'{known} {route}' if route else known


class RequestEvent:
    """One request, from its first line to its end."""

    # Of each request, until there is more to tell.
    status = 0
    time_ms = 0.0
    body_bytes_received = 0
    body_bytes_sent: int | None = None
    reason: str | None = None
    detail: str | None = None
    error: BaseException | None = None
    cause: str | None = None

    def __init__(self, req_id: str, method: str, uri: str, ip: str, route: str | None,
                 is_probe: bool, trace: RequestTrace) -> None:
        """
        :param route: the template of its path; None for an unknown one.
        :param is_probe: whether an orchestrator asks for its own sake.
        :param trace: the part that it has in a trace.
        """
        self.req_id, self.method, self.uri, self.ip = req_id, method, uri, ip
        self.route, self.is_probe, self.trace = route, is_probe, trace
        self.identity: Mapping[str, str] = {
            'req_id': req_id, 'method': method, 'uri': uri, 'ip': ip,
            'trace_id': trace.trace_id, 'span_id': trace.span_id}
        """What every line of this request carries."""

    def enter(self) -> None:
        """From now on the current task works for this request: its lines carry
        the identity, its spans stand under the request's own."""
        logutils.add_log_context(self.identity)
        self.trace.enter()

    def line(self, shows_traces: bool) -> Mapping[str, Any]:
        """The fields of its canonical line.

        :param shows_traces: also of what was refused, and is no fault of ours.
        """
        trace = None
        if self.error is not None and (self.status >= 500 or shows_traces):
            trace = logutils.one_line_trace(self.error)
        return {
            **self.identity, 'reason': self.reason, 'message': 'RESPONSE', 'status': self.status,
            'time_ms': self.time_ms, 'route': self.route, 'bytes': self.body_bytes_sent,
            'detail': self.detail, 'cause': self.cause, 'trace': trace}


class Telemetry:
    """Tells of each request: in a line, in the metrics, and in its trace.

    The line is a canonical one (https://brandur.org/canonical-log-lines): it
    holds all there is to know about the request.
    """

    def __init__(self, logger: logging.Logger, tracing: Tracing, metrics: Metrics | None,
                 debug: bool = False) -> None:
        """
        :param logger: gets the lines: INFO below status 400, WARNING below
            500, ERROR from there; DEBUG for a probe that succeeds.
        :param tracing: gives requests their ids, and collects their spans;
            those of probes are not recorded.
        :param metrics: where requests are counted, if anywhere.
        :param debug: whether refused requests have a trace in their line, too.
        """
        self.logger = logger
        self.tracing = tracing
        self.metrics = metrics
        self.debug = debug
        self._refused_at = float('-inf')
        self._ended: list[RequestEvent] = []

    def connection_refused(self, ip: str) -> None:
        """Reports a client whose connection was one too many, so that there is no request."""
        if self.metrics:
            self.metrics.refused('too_many_connections')
        # Once a second: whoever floods the port shall not flood the log.
        if time.monotonic() - self._refused_at >= 1:
            self._refused_at = time.monotonic()
            logutils.log(self.logger, logging.WARNING, message='CONNECTION REFUSED', ip=ip,
                         reason='Too many connections')

    def began(self, request: Request, route: str | None, is_probe: bool
              ) -> RequestEvent:
        """Takes note of a request; each one must end in `ended`.

        :param route: the template of its path; None for an unknown one.
        """
        if self.metrics:
            self.metrics.request_began()
        method, headers = request.method or '', request.headers
        if is_probe:
            trace = self.tracing.identify(headers)
        else:
            # Tornado tells how long it has been under way, and keeps since when.
            start_time = int(1e9 * request._start_time)
            trace = self.tracing.begin(span_name(method, route), headers, start_time)
        return RequestEvent(request_id(headers), method, request.uri or '',
                            request.remote_ip or '', route, is_probe, trace)

    def ended(self, event: RequestEvent) -> None:
        """Takes note of the end of a request; to be called once for each. All that have ended
        in one turn of the event loop are reported one after the other in the next: the same
        steps for one request after the other find the processor's caches filled with them."""
        self._ended.append(event)
        if len(self._ended) == 1:
            # In no request's context, which it would keep alive.
            asyncio.get_running_loop().call_soon(self._report_all, context=contextvars.Context())

    def _report_all(self) -> None:
        ended, self._ended = self._ended, []
        self.report(ended)

    def report(self, ended: Iterable[RequestEvent]) -> None:
        """Reports requests that have ended."""
        lines: list[tuple[int, str]] = []
        for event in ended:
            try:
                if line := self._line_of(event):
                    lines.append(line)
                if self.metrics:
                    _count(event, self.metrics)
            except Exception as fault:  # the others' must not miss
                _tell(fault)
            # Its traceback knows the handler: both would be left to the collector.
            event.error = None
        for level, group in itertools.groupby(lines, key=operator.itemgetter(0)):
            try:
                logutils.log_texts(self.logger, level, [text for _, text in group])
            except Exception as fault:
                _tell(fault)

    def _line_of(self, event: RequestEvent) -> tuple[int, str] | None:
        """Ends the trace of a request.

        :return: the level and the text of its line; None if nobody wants it.
        """
        line = event.line(self.debug)
        try:
            self.tracing.end(event.trace, line, event.error)
        except Exception as fault:  # the line, and the count of those under way, must not miss
            logutils.log(self.logger, logging.ERROR, message='SPANS LOST',
                         trace=logutils.one_line_trace(fault))
        level = _level(event)
        if not self.logger.isEnabledFor(level):
            return None
        return level, _text_of(event) or logutils.logfmt(line)


def _tell(fault: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({
        'message': 'The end of a request could not be told', 'exception': fault})


def _count(event: RequestEvent, metrics: Metrics) -> None:
    metrics.request_ended(event.method, event.route, event.status, event.time_ms / 1000,
                          event.body_bytes_received, event.body_bytes_sent, event.trace.trace_id)
    if event.error is None:
        return
    if isinstance(event.error, Overloaded):
        metrics.refused('overloaded')
    elif isinstance(event.error, StorageUnavailable):
        metrics.refused('storage_unavailable')


def _level(event: RequestEvent) -> int:
    if event.status < 400:
        return logging.DEBUG if event.is_probe else logging.INFO
    return logging.WARNING if event.status < 500 else logging.ERROR


def _text_of(event: RequestEvent) -> str | None:
    """The line of a request that went well, in one go: nearly all lines are of this kind, and
    `logfmt` looks at each field by itself. None if there is more to tell, or to escape."""
    went_well = event.error is None and event.reason is event.detail is event.cause is None
    if not went_well or event.route is None or event.body_bytes_sent is None:
        return None
    identity = event.identity.values()
    if not logutils.is_plain(''.join(identity) + event.route):
        return None
    return _WENT_WELL % (
        *identity, event.status, event.time_ms, event.route, event.body_bytes_sent)

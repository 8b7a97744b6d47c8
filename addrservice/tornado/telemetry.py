"""A request began, a request ended: one event, reported in one place."""

from __future__ import annotations

import logging
import re
import uuid
from dataclasses import dataclass

from tornado import httputil

from addrservice.utils import logutils

_SANE_REQUEST_ID = re.compile(r'[A-Za-z0-9._:-]{1,64}')


def request_id(headers: httputil.HTTPHeaders) -> str:
    """The client's own X-Request-ID if it is fit for logs, else a new one."""
    given = headers.get('X-Request-ID', '')
    return given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


@dataclass
class RequestEvent:
    """One request, from its first line to its end."""

    req_id: str
    method: str
    uri: str
    ip: str
    route: str | None
    is_probe: bool
    status: int = 0
    time_ms: float = 0.0
    body_bytes_sent: int | None = None
    reason: str | None = None
    detail: str | None = None
    error: BaseException | None = None
    cause: str | None = None

    def identity(self) -> dict[str, object]:
        """What every line of this request carries."""
        return {'req_id': self.req_id, 'method': self.method, 'uri': self.uri, 'ip': self.ip}


class Telemetry:
    """Writes the canonical line of each request.

    See https://brandur.org/canonical-log-lines: one line per request that
    holds all there is to know about it.
    """

    def __init__(self, logger: logging.Logger, debug: bool = False) -> None:
        """
        :param logger: gets the lines: INFO below status 400, WARNING below
            500, ERROR from there; DEBUG for a probe that succeeds.
        :param debug: whether refused requests have a trace in their line, too.
        """
        self.logger = logger
        self.debug = debug

    def ended(self, event: RequestEvent) -> None:
        """Writes a request's line; to be called once for each."""
        level = self._level(event)
        if self.logger.isEnabledFor(level):
            logutils.log_line(self.logger, level, self._fields(event))

    def _level(self, event: RequestEvent) -> int:
        if event.status >= 500:
            return logging.ERROR
        if event.status >= 400:
            return logging.WARNING
        return logging.DEBUG if event.is_probe else logging.INFO

    def _fields(self, event: RequestEvent) -> dict[str, object]:
        return {
            **event.identity(),
            'reason': event.reason,
            'message': 'RESPONSE',
            'status': event.status,
            'time_ms': event.time_ms,
            'route': event.route,
            'bytes': event.body_bytes_sent,
            'detail': event.detail,
            'cause': event.cause,
            'trace': self._trace(event),
        }

    def _trace(self, event: RequestEvent) -> str | None:
        if event.error is None or not (event.status >= 500 or self.debug):
            return None
        return logutils.one_line_trace(event.error)

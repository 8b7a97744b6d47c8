"""What all request handlers share: JSON in, JSON out, errors as documents."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import random
import sys
import time
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import Any

import tornado.web
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from addrservice import errors
from addrservice.service import AddressBookService
from addrservice.tornado.admission import Admission
from addrservice.tornado.brief_handler import BriefRequestHandler
from addrservice.tornado.conditions import compressed_etag, is_compressed, read_tags
from addrservice.tornado.json_body import (
    parse_json, read_entry, require_json_type, to_json)
from addrservice.tornado.telemetry import Telemetry
from addrservice.utils import logutils

STATUS_OF: Mapping[type[BaseException], int] = {
    errors.InvalidJSON: 400,
    errors.InvalidAddress: 400,
    errors.AddressNotFound: 404,
    errors.AddressExists: 412,
    errors.AddressChanged: 412,
    errors.Overloaded: 503,
    errors.ProfilerBusy: 409,
    errors.StorageUnavailable: 503,
}
"""The HTTP status of each error; for a class that is not here its base class
decides, and what has none is a fault of ours: 500."""

CLIENT_CLOSED_REQUEST = 'Client Closed Request'
"""Of status 499, which nobody receives; the log needs a name for it."""

STANDARD_PHRASES = {**http.client.responses, 413: 'Content Too Large', 414: 'URI Too Long',
                    499: CLIENT_CLOSED_REQUEST}
"""Reason phrases; those that RFC 9110 (section 15.5) has changed since Python
learnt them are as it has them."""

RETRY_AFTER_SECONDS = (1, 3)
"""Bounds of the random advice on a 503, so that clients do not return as one."""


class BaseRequestHandler(BriefRequestHandler):
    """A request handler that speaks JSON and reports how its request ended."""

    SUPPORTED_METHODS = ('GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS')
    is_probe = False
    """Probes are answered however busy the service is, and logged at DEBUG."""

    hung_up = False

    def initialize(self, service: AddressBookService, telemetry: Telemetry,
                   admission: Admission, route: str | None = None) -> None:
        """Called for every request, also one that is refused.

        :param service: the address book.
        :param telemetry: is told how the request ended.
        :param admission: says whether it is one too many.
        :param route: the template of the path, for logs; None for an unknown one.
        """
        self.service = service
        self.telemetry = telemetry
        self.admission = admission
        self.event = telemetry.began(self.request, route, self.is_probe)
        admission.enter(self.is_probe)
        self._headers.fields['X-Request-Id'] = self.event.req_id

    def prepare(self) -> Awaitable[None] | None:
        """Called before the method; a handler may override it with a coroutine."""
        self.event.enter()
        assert self.task is not None  # who starts the handler knows it
        self.admission.work_in(self.task)
        if self.admission.is_overloaded() and not self.is_probe:
            raise errors.Overloaded('There is more to do than this server takes on; try later')
        return None

    async def options(self, *args: str, **kwargs: str) -> None:
        """What may be done here (RFC 9110 section 9.3.7)."""
        self.set_header('Allow', self.allowed_methods())
        self.set_status(204)

    @classmethod
    def allowed_methods(cls) -> str:
        """The methods that this handler implements, as ``Allow`` lists them."""
        return ', '.join(method for method in cls.SUPPORTED_METHODS
                         if getattr(cls, method.lower())
                         is not getattr(tornado.web.RequestHandler, method.lower()))

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """A part of the path as text; called by Tornado."""
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise HTTPError(400, 'The path is not UTF-8') from error

    def read_json(self) -> Any:
        """The document in the request's body.

        :raises HTTPError: 415, it is of another type.
        :raises InvalidJSON: it is not JSON.
        """
        require_json_type(self.request.headers)
        return parse_json(self.request.body)

    def read_entry(self) -> object:
        """The entry in the request's body, or the document there that is none.

        :raises HTTPError: 415, it is of another type.
        :raises InvalidJSON: it is not JSON.
        """
        require_json_type(self.request.headers)
        return read_entry(self.request.body)

    def set_status(self, status_code: int, reason: str | None = None) -> None:
        """Sets the status line; the phrase is the standard one if left out."""
        if reason:
            super().set_status(status_code, reason)
        else:
            self._status_code = status_code
            self._reason = STANDARD_PHRASES.get(status_code, 'Unknown')
        self.event.reason = (reason or self._reason) if status_code >= 400 else None

    def check_etag_header(self) -> bool:
        """Whether the client has that answer, so that it is 304; called by Tornado."""
        if 'If-None-Match' not in self.request.headers.fields:
            return False
        etag = self._headers.get('Etag')
        tags = read_tags(self.request.headers, 'If-None-Match') if etag else None
        if etag is None or tags is None or not tags.match_weakly(etag.strip('"')):
            return False
        # The tag that a 200 would have had (section 15.4.5).
        if is_compressed(self.request.headers, sum(map(len, self._write_buffer))):
            self.set_header('Etag', compressed_etag(etag))
        self.clear_header('Content-Length')
        return True

    def set_json_type(self) -> None:
        """The answer is going to be JSON."""
        self._headers.fields['Content-Type'] = 'application/json; charset=UTF-8'

    def finish_json(self, document: object) -> None:
        """Ends the request with a document."""
        self.set_json_type()
        self.finish(to_json(document))

    def on_connection_close(self) -> None:
        """Called by Tornado when the client hangs up before it is answered."""
        self.hung_up = True
        super().on_connection_close()

    def log_exception(self, typ: type[BaseException] | None, value: BaseException | None,
                      tb: TracebackType | None) -> None:
        """Called by Tornado for every exception that leaves a handler. Those
        that were raised on purpose stand in the canonical line alone."""
        if not isinstance(value, (HTTPError, errors.AddrServiceError, StreamClosedError,
                                  asyncio.CancelledError)):
            logutils.log(logging.getLogger('tornado.application'), logging.ERROR,
                         message='Uncaught exception', error=getattr(typ, '__name__', None),
                         trace=value and logutils.one_line_trace(value))

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answers with an error; called by Tornado when a handler raised."""
        error = sys.exc_info()[1]
        self.event.error = error
        self.event.cause = getattr(error, 'cause', None)
        if isinstance(error, errors.AddrServiceError):
            status_code, kwargs['reason'] = status_of(error), error.reason or None
        elif isinstance(error, asyncio.CancelledError):
            status_code = 503
        self.event.status = status_code
        if self._headers_written:
            self._cut_off()
        else:
            super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Writes the error document; called by Tornado's `send_error`."""
        self.event.detail = detail_of(self.event.error)
        self.set_header('X-Request-ID', self.event.req_id)
        if status_code == 405:
            self.set_header('Allow', self.allowed_methods())
        if status_code == 503:
            self.set_header('Retry-After', random.randint(*RETRY_AFTER_SECONDS))
        self.set_json_type()
        # ASCII, as it may quote what the client sent, however broken.
        self.finish(json.dumps(self._error_document(status_code)))

    def _error_document(self, status_code: int) -> dict[str, object]:
        event = self.event
        document: dict[str, object] = {
            'method': event.method, 'uri': event.uri, 'code': status_code,
            'message': event.reason, 'req_id': event.req_id}
        if event.detail:
            document['detail'] = event.detail
        if isinstance(event.error, errors.InvalidAddress):
            document['errors'] = [fault._asdict() for fault in event.error.faults]
        if self.telemetry.debug and event.error is not None:
            document['trace'] = logutils.one_line_trace(event.error)
        return document

    def _cut_off(self) -> None:
        """Ends an answer whose start has been sent. Its end must not look like
        one, or the client would take what it has for the whole."""
        self.hung_up = isinstance(self.event.error, StreamClosedError)
        connection: Any = self.request.connection  # any of Tornado's has a stream
        connection.stream.close()
        self.finish()


class ErrorRequestHandler(BaseRequestHandler):
    """Answers any request with one error: what cannot even reach a handler
    of its own looks like every other error."""

    def initialize(self, service: AddressBookService, telemetry: Telemetry,
                   admission: Admission, route: str | None = None,
                   error: HTTPError | None = None) -> None:
        """
        :param error: what is wrong with the request; left out: nothing is
            served on its path.
        """
        super().initialize(service, telemetry, admission, route)
        self.error = error or HTTPError(404, 'Nothing is served on this path',
                                        reason='Unknown Endpoint')

    def prepare(self) -> None:
        super().prepare()
        raise self.error

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        # Also in place of the 405 that an unknown method would get.
        try:
            raise self.error
        except HTTPError as error:
            super().send_error(error.status_code, exc_info=sys.exc_info())


class DefaultRequestHandler(ErrorRequestHandler):
    """Answers requests for paths that nothing is served on."""

    def prepare(self) -> None:
        # ``OPTIONS *`` is about the server, and no path (RFC 9110 section 9.3.7).
        if (self.request.method, self.request.path) != ('OPTIONS', '*'):
            super().prepare()

    @classmethod
    def allowed_methods(cls) -> str:
        return ', '.join(cls.SUPPORTED_METHODS)


def log_request(handler: BaseRequestHandler) -> None:
    """Reports the end of a request; Tornado calls it once for each."""
    event, request = handler.event, handler.request
    exchange: Any = request.connection
    event.status = event.status or handler._status_code
    if hasattr(exchange, 'undelivered'):  # one of ours
        event.body_bytes_sent = exchange.body_bytes_sent
        event.body_bytes_received = exchange.body_bytes_received
        if exchange.undelivered and event.status < 500:
            handler.hung_up = True
    else:
        event.body_bytes_received = len(request.body)
    if handler.hung_up:
        event.status, event.reason = 499, CLIENT_CLOSED_REQUEST
    # Tornado tells how long it has been under way, and keeps since when.
    event.time_ms = round(1000 * (time.time() - request._start_time), 3)
    handler.admission.leave(handler.is_probe, handler.task)
    handler.telemetry.ended(event)


def status_of(error: BaseException) -> int:
    """The HTTP status of an error: that of the nearest class in `STATUS_OF`."""
    return next((STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF), 500)


def detail_of(error: BaseException | None) -> str | None:
    """What an error has to say to the client, beyond its reason phrase."""
    if isinstance(error, errors.AddrServiceError):
        return error.detail or None
    if isinstance(error, HTTPError):
        return error.get_message()
    return None

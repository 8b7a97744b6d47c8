"""Tornado's `RequestHandler`, run the short way.

It does what Tornado's own does, and does without what no handler of ours needs: looks for a way
to get a body, for templates, and for what an answer might have been told. Tests in
`tests/unit/tornado_app_handlers_test.py` hold it against the original.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from asyncio import Future
from collections.abc import Sequence
from typing import Any

import tornado.web
from tornado import httputil
from tornado.util import ObjectDict
from tornado.web import HTTPError, _UIModuleNamespace

from addrservice.tornado.messages import Headers, Request
from addrservice.utils import logutils


_REPRESENTATION = frozenset(('Content-Encoding', 'Content-Language', 'Content-Type'))
"""Header fields of what an answer holds, which one without a body has not got."""


class BriefRequestHandler(tornado.web.RequestHandler):
    """A request handler that is made, run and ended in few steps."""

    request: Request
    _headers: Headers

    etag: str | None = None
    """The tag of the answer to GET or HEAD, if it has one."""

    task: asyncio.Task[object] | None = None
    """Works for the request; set by who starts it."""

    def __init__(self, application: tornado.web.Application, request: httputil.HTTPServerRequest,
                 **arguments: Any) -> None:
        """
        :param arguments: for `initialize`.
        """
        # All that Tornado's own sets; what only templates need is made when one is rendered.
        self.application = application
        self.request = request  # type: ignore[assignment]  # or Tornado's
        if request.headers.__class__ is not Headers:  # it has come to a server of Tornado's
            request.headers = Headers.of(request.headers)
        self._headers_written = self._finished = False
        self._transforms = []
        self.clear()
        request.connection.set_close_callback(  # type: ignore[union-attr]  # says Tornado, too
            self.on_connection_close)
        self.initialize(**arguments)

    @functools.cached_property
    def ui(self) -> ObjectDict:  # type: ignore[override]  # Tornado sets it for each request
        """What templates have: the application's ``ui_methods`` and ``ui_modules``."""
        application = self.application
        ui = ObjectDict({name: self._ui_method(method)
                         for name, method in application.ui_methods.items()})
        ui['modules'] = ui['_tt_modules'] = _UIModuleNamespace(self, application.ui_modules)
        return ui

    def clear(self) -> None:
        """Begins the answer anew, with what all answers have in their header. It replaces
        Tornado's own, which formats the date for each, and sets a Content-Type."""
        self._headers = common_headers(int(time.time())).copy()
        self._write_buffer = []
        self._status_code, self._reason = 200, 'OK'

    async def run(self, path_args: Sequence[bytes]) -> None:
        """Answers the request, whatever happens. In place of Tornado's `_execute`, which looks
        for ways to get a body, and for options, that are not used here.

        :param path_args: of the path, for the method.
        """
        try:
            method = self.request.method
            if method not in self.SUPPORTED_METHODS:
                raise HTTPError(405)
            self.path_args = list(map(self.decode_argument, path_args))
            self._cross_origin_protection()
            prepared = self.prepare()
            if prepared is not None:
                await prepared
            if not self._finished:
                answered = getattr(self, method.lower())(*self.path_args)
                if answered is not None:
                    await answered
            if not self._finished:
                self.finish()
        except (Exception, asyncio.CancelledError) as error:
            if self._is_to_end(error):
                if not self._finished:
                    self._fail(error)  # or the client would wait for ever
                raise
            self._fail(error)

    def _is_to_end(self, error: BaseException) -> bool:
        """Whether this has come from outside, and not from something that was waited for."""
        is_cancelled = isinstance(error, asyncio.CancelledError)
        return is_cancelled and self.task is not None and self.task.cancelling() > 0

    def _fail(self, error: BaseException) -> None:
        try:
            self._handle_request_exception(error)
        except Exception as fault:
            logutils.log(logging.getLogger('tornado.application'), logging.ERROR,
                         message='An error could not be answered',
                         trace=logutils.one_line_trace(fault))

    def write(self, chunk: str | bytes | dict[str, Any]) -> None:
        """Adds to the answer, as Tornado's own, with one look at a text."""
        if chunk.__class__ is str and not self._finished:
            self._write_buffer.append(chunk.encode())
        else:
            super().write(chunk)

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        """Ends the request. An answer that is whole goes the short way, which does what
        Tornado's own does, and asks less."""
        if chunk is not None:
            self.write(chunk)
        # Ours; on a connection of Tornado's, all goes Tornado's way.
        send = getattr(self.request.connection, 'answer', None)
        if not send or self._headers_written or self._finished or hasattr(self, '_new_cookie'):
            return super().finish()
        body = self._whole_body()
        self._headers_written = True
        for transform in self._transforms:
            self._status_code, headers, body = transform.transform_first_chunk(
                self._status_code, self._headers, body, True)
            self._headers = headers  # type: ignore[assignment]  # ours, which it has added to
        sent: Future[None] = send(self._status_code, self._reason, self._headers,
                                  b'' if self.request.method == 'HEAD' else body)
        self._log()
        self._finished = True
        self.on_finish()
        self._break_cycles()
        return sent

    def _whole_body(self) -> bytes:
        """What the answer holds; its header is told of it."""
        if self._status_code == 200 and self.request.method in ('GET', 'HEAD'):
            self.set_etag_header()
            if 'If-None-Match' in self.request.headers.fields and self.check_etag_header():
                self._write_buffer = []
                self.set_status(304)
        body = b''.join(self._write_buffer)
        if self._status_code not in (204, 304):
            self._headers.fields['Content-Length'] = str(len(body))
        elif body:
            raise RuntimeError(f'An answer with status {self._status_code} has no body')
        else:
            self._clear_representation_headers()
        return body

    def _clear_representation_headers(self) -> None:
        if not _REPRESENTATION.isdisjoint(self._headers.fields):
            super()._clear_representation_headers()

    def set_etag_header(self) -> None:
        """Gives an answer to GET and HEAD its tag; called at the end, by Tornado, too."""
        if self.etag:
            self._headers.fields['Etag'] = self.etag


@functools.lru_cache(maxsize=1)
def common_headers(seconds: int) -> Headers:
    """The header fields that every answer begins with; of the many of one second, the first has
    them made.

    :param seconds: the time, since the epoch.
    """
    headers = Headers()
    headers['Server'] = 'addrservice'
    headers['Date'] = httputil.format_timestamp(seconds)
    headers['Cache-Control'] = 'no-store'
    headers['X-Content-Type-Options'] = 'nosniff'
    return headers

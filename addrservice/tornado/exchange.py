"""One request's way out: from a handler's answer to bytes on a connection."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Protocol

from tornado import httputil
from tornado.iostream import StreamClosedError

from addrservice.tornado.messages import Headers

TCP_INFO_SIZE = 128
TCP_INFO_BYTES_ACKED = 120
"""Offset of ``tcpi_bytes_acked`` in ``struct tcp_info`` of linux/tcp.h."""


class Stream(Protocol):
    """What an exchange needs of a connection; Tornado's `IOStream` is one."""

    socket: socket.socket

    def write(self, data: bytes, /) -> asyncio.Future[None]:
        """Sends bytes; done when the last one has left.

        :raises StreamClosedError: it is closed.
        """

    def closed(self) -> bool:
        """Whether nothing can be sent any more."""

    def close(self) -> None:
        """Closes it at once, whatever has not left yet."""


class Peer(NamedTuple):
    """Who sent a request, as `HTTPServerRequest` wants to know it."""

    remote_ip: str
    protocol: str = 'http'


UNKNOWN = httputil.RequestStartLine('-', '-', 'HTTP/1.0')
"""Of a request that has not been read."""


class Exchange(httputil.HTTPConnection):
    """One request's way out: what its handler writes the answer to."""

    request_start_line = UNKNOWN
    close_after = True
    body_bytes_sent = 0
    body_bytes_received = 0
    """Of the request, as they were sent: compressed, perhaps."""

    undelivered = False
    """Whether the connection was closed before the answer was out."""

    has_ended = False
    _chunked = False
    _body_left: int | None = None
    _last_write: asyncio.Future[None] | None = None
    _close_callback: Callable[[], None] | None = None

    def __init__(self, stream: Stream, peer: Peer, write_timeout: float,
                 is_draining: Callable[[], bool], on_end: Callable[[Exchange], None]) -> None:
        """
        :param stream: the connection.
        :param peer: whom handlers are told they talk to.
        :param write_timeout: seconds for which the client may acknowledge
            nothing of an answer that waits for it.
        :param is_draining: whether connections should end with their answers.
        :param on_end: gets the exchange once, when the connection may go on to its next
            request. It refers to no exchange itself, or both would be left to the garbage
            collector, whose pauses requests would have to wait for.
        """
        self.write_timeout = write_timeout
        self.is_draining = is_draining
        self.stream = stream
        self.context = peer
        self._on_end = on_end

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """The callback runs if the client hangs up before it has its answer."""
        self._close_callback = callback

    def write_headers(self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
                      headers: httputil.HTTPHeaders, chunk: bytes | None = None
                      ) -> asyncio.Future[None]:
        assert isinstance(start_line, httputil.ResponseStartLine)
        self._decide_framing(start_line.code, headers)
        fields = headers.lines() if isinstance(headers, Headers) else ''.join(
            [f'{name}: {value}\r\n' for name, value in headers.get_all()])
        head = f'HTTP/1.1 {start_line.code} {start_line.reason}\r\n{fields}\r\n'
        data = head.encode('latin-1')
        return self._send(data + self._framed(chunk) if chunk else data)

    def answer(self, status: int, reason: str, headers: Headers, body: bytes
               ) -> asyncio.Future[None]:
        """Sends an answer that is whole, in one piece, and ends: as `write_headers` and
        `finish` do, where nothing is to be found out about its length.

        :param headers: with Content-Length, if there can be a body.
        :param body: nothing where none is sent, as to HEAD.
        """
        self._say_whether_it_closes(headers)
        self._close_callback = None
        self.body_bytes_sent = len(body)
        head = f'HTTP/1.1 {status} {reason}\r\n{headers.lines()}\r\n'
        sent = self._send(head.encode('latin-1') + body)
        if sent.done():  # as nearly always
            self.end()
        else:
            self._end_after(sent)
        return sent

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        return self._send(self._framed(chunk))

    def finish(self) -> None:
        if self._body_left and not self.stream.closed():
            self._break_off(f'{self._body_left} bytes less than Content-Length')
        if self._chunked:
            self._send(b'0\r\n\r\n')
        self._end_after(self._last_write)

    def send_continue(self) -> None:
        """Tells the client to send the body (RFC 9110 section 15.2.1)."""
        self._send(b'HTTP/1.1 100 Continue\r\n\r\n')

    def end(self) -> None:
        """The connection may go on to its next request."""
        if not self.has_ended:
            self.has_ended = True
            self._on_end(self)

    def _end_after(self, write: asyncio.Future[None] | None) -> None:
        if write is None or write.done():
            self.end()
        else:
            write.add_done_callback(lambda _: self.end())

    def on_hang_up(self) -> None:
        """The client has closed the connection; called by the stream."""
        callback, self._close_callback = self._close_callback, None
        if callback:
            callback()
        self.end()

    def _decide_framing(self, status: int, headers: httputil.HTTPHeaders) -> None:
        """How the client learns where the answer ends (RFC 9112 section 6)."""
        method = self.request_start_line.method
        has_body = method != 'HEAD' and status not in (204, 304) and status >= 200
        if not has_body:
            self._body_left = 0
        elif 'Content-Length' in headers:
            self._body_left = int(headers['Content-Length'])
        elif self.request_start_line.version != 'HTTP/1.0':
            self._chunked = True
            headers['Transfer-Encoding'] = 'chunked'
        else:
            self.close_after = True
        self._say_whether_it_closes(headers)

    def _say_whether_it_closes(self, headers: httputil.HTTPHeaders) -> None:
        if self.close_after or self.is_draining():
            self.close_after = True
            headers['Connection'] = 'close'
        elif self.request_start_line.version == 'HTTP/1.0':
            headers['Connection'] = 'keep-alive'

    def _break_off(self, fault: str) -> NoReturn:
        """Keeps what comes next from being taken for part of this answer, or that for this."""
        self.stream.close()
        raise httputil.HTTPOutputError(f'Tried to write {fault}')

    def _framed(self, chunk: bytes) -> bytes:
        if self._body_left is not None:
            self._body_left -= len(chunk)
            if self._body_left < 0:
                self._break_off('more than Content-Length')
        self.body_bytes_sent += len(chunk)
        if self._chunked and chunk:
            return b'%x\r\n%b\r\n' % (len(chunk), chunk)
        return chunk

    def _send(self, data: bytes) -> asyncio.Future[None]:
        try:
            self._last_write = self.stream.write(data)
        except StreamClosedError as error:
            self.undelivered = True
            self._last_write = asyncio.get_running_loop().create_future()
            self._last_write.set_exception(error)
            self._last_write.exception()  # nobody needs to look at it
        if not self._last_write.done():
            self._last_write.add_done_callback(self._notice_failure)
            self._cut_off_if_stalled(self._last_write)
        return self._last_write

    def _cut_off_if_stalled(self, write: asyncio.Future[None], acknowledged: int = -1) -> None:
        """Closes the connection if its client acknowledges nothing for a whole time-out."""
        now_acknowledged = bytes_acknowledged(self.stream)
        if now_acknowledged == acknowledged:
            self.stream.close()
        if not write.done():
            timer = asyncio.get_running_loop().call_later(
                self.write_timeout, self._cut_off_if_stalled, write, now_acknowledged)
            write.add_done_callback(lambda _: timer.cancel())

    def _notice_failure(self, write: asyncio.Future[None]) -> None:
        if not write.cancelled() and write.exception():
            self.on_hang_up()


def bytes_acknowledged(stream: Stream) -> int:
    """How many bytes the client's side has taken, where the system tells (Linux
    does); else 0. A stream tells only when its last byte has left."""
    if stream.closed() or not hasattr(socket, 'TCP_INFO'):
        return 0
    info = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    return int.from_bytes(info[TCP_INFO_BYTES_ACKED:TCP_INFO_BYTES_ACKED + 8], sys.byteorder)

"""HTTP/1.1 connections: one answer and one log line to every request, in time.

Tornado's own HTTPServer answers what goes wrong below a handler (a malformed
line, a slow header, a body too large) with a bare 400 or by hanging up, and
nothing is told of it. This server keeps Tornado's streams, parser and
`Application`, and reads requests itself: whatever it refuses goes to a
`RequestHandler` too, and so gets the same error document, log line and
headers as any other error. Only public interfaces of Tornado are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import re
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tornado import httputil
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer
from tornado.web import Application, HTTPError

from addrservice.tornado import framing
from addrservice.utils import logutils

READ_SIZE = 64 * 1024
MAX_CHUNK_LINE = 4 * 1024
MAX_TRAILER_LINES = 100
LINGER_SECONDS = 2.0
TCP_INFO_SIZE = 128
TCP_INFO_BYTES_ACKED = 120
"""Offset of ``tcpi_bytes_acked`` in ``struct tcp_info`` of linux/tcp.h."""

IDLE_GRACE = 1.0
"""Seconds of a drain, or of a connection made during it, in which a client may
still use an idle connection."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Refuse = Callable[[httputil.HTTPServerRequest, HTTPError], httputil.HTTPMessageDelegate]


@dataclass(frozen=True)
class Limits:
    """What one connection may cost; sizes in bytes, time-outs in seconds."""

    max_connections: int
    max_body_size: int
    max_header_size: int
    idle_timeout: float
    header_timeout: float
    body_timeout: float
    write_timeout: float
    trusted_proxies: Sequence[Network] = ()


class Peer(NamedTuple):
    """Who sent a request, as `HTTPServerRequest` wants to know it."""

    remote_ip: str
    protocol: str = 'http'


class HTTPServer(TCPServer):
    """Accepts connections and serves an application on them until drained."""

    def __init__(self, application: Application, refuse: Refuse, limits: Limits,
                 logger: logging.Logger) -> None:
        """
        :param application: what requests are for.
        :param refuse: from a request that cannot be served, and the error, to
            the delegate that answers it.
        :param logger: is told of connections that are not accepted.
        """
        # Room for a header that is over the limit and is to be told so, and
        # for what a client sends ahead; more closes the connection.
        super().__init__(max_buffer_size=limits.max_header_size + limits.max_body_size
                         + 4 * READ_SIZE, read_chunk_size=READ_SIZE)
        self.application = application
        self.refuse = refuse
        self.limits = limits
        self.logger = logger
        self.draining = False
        self.connections: set[ClientConnection] = set()
        self._listening: list[socket.socket] = []
        self._last: set[asyncio.Future[None]] = set()
        self._refused_at = self._drained_at = float('-inf')

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]
                      ) -> Coroutine[Any, Any, None] | None:
        """Serves one connection to its end; called by Tornado."""
        if len(self.connections) >= self.limits.max_connections:
            self._refuse_connection(stream, address[0])
            return None
        connection = ClientConnection(self, stream, address[0])
        # Known from now on, not from when its task first runs: a drain waits for it.
        self.connections.add(connection)
        return self._serve(connection)

    async def _serve(self, connection: ClientConnection) -> None:
        try:
            await connection.serve()
        finally:
            self.connections.discard(connection)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts connections on these listening sockets until `stop`."""
        self._listening = list(sockets)
        super().add_sockets(self._listening)

    def stop(self) -> None:
        """Accepts no more connections but those that the system has accepted
        for us: closing the socket breaks them, and what was sent on them."""
        spares = [listening.dup() for listening in self._listening]
        self._listening = []
        super().stop()
        for connection, address in (last for spare in spares for last in accept_last(spare)):
            stream = IOStream(connection, max_buffer_size=self.max_buffer_size,
                              read_chunk_size=self.read_chunk_size)
            if serving := self.handle_stream(stream, address):
                task = asyncio.ensure_future(serving)
                self._last.add(task)
                task.add_done_callback(self._last.discard)

    def drain(self) -> None:
        """From now on every answer closes its connection."""
        self.draining = True
        self._drained_at = time.monotonic()

    async def until_drained(self) -> None:
        """Returns when no connection is left. One that is at work ends with
        its answer; an idle one is closed after a moment in which its client
        may still use it."""
        while self.connections:
            for connection in tuple(self.connections):
                if time.monotonic() >= max(self._drained_at, connection.made_at) + IDLE_GRACE:
                    connection.close_if_idle()
            await asyncio.sleep(0.02)

    def close_connections(self) -> None:
        """Closes what is still open, whatever it does."""
        for connection in tuple(self.connections):
            connection.stream.close()

    def _refuse_connection(self, stream: IOStream, ip: str) -> None:
        stream.close()
        # Once a second: whoever floods the port shall not flood the log.
        if time.monotonic() - self._refused_at >= 1:
            self._refused_at = time.monotonic()
            logutils.log(self.logger, logging.WARNING, message='CONNECTION REFUSED', ip=ip,
                         reason='Too many connections')


def accept_last(listening: socket.socket) -> list[tuple[socket.socket, tuple[Any, ...]]]:
    """Accepts what waits, and closes the socket so soon that nothing comes in between."""
    accepted = []
    try:
        while True:
            accepted.append(listening.accept())
    except OSError:
        listening.close()
    return accepted


class Exchange(httputil.HTTPConnection):
    """One request's way out: what its handler writes the answer to."""

    def __init__(self, server: HTTPServer, stream: IOStream, peer: Peer) -> None:
        self.server = server
        self.stream = stream
        self.context = peer
        self.request_start_line = httputil.RequestStartLine('-', '-', 'HTTP/1.0')
        self.close_after = True
        self.body_bytes_sent = 0
        self.undelivered = False
        """Whether the connection was closed before the answer was out."""
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunked = False
        self._last_write: asyncio.Future[None] | None = None
        self._close_callback: Callable[[], None] | None = None

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """The callback runs if the client hangs up before it has its answer."""
        self._close_callback = callback

    def write_headers(self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
                      headers: httputil.HTTPHeaders, chunk: bytes | None = None
                      ) -> asyncio.Future[None]:
        assert isinstance(start_line, httputil.ResponseStartLine)
        self._decide_framing(start_line.code, headers)
        lines = [f'HTTP/1.1 {start_line.code} {start_line.reason}',
                 *(f'{name}: {value}' for name, value in headers.get_all())]
        head = '\r\n'.join([*lines, '', '']).encode('latin-1')
        return self._send(head + self._framed(chunk or b''))

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        return self._send(self._framed(chunk))

    def finish(self) -> None:
        if self._chunked:
            self._send(b'0\r\n\r\n')
        if self._last_write is None or self._last_write.done():
            self.end()
        else:
            self._last_write.add_done_callback(lambda _: self.end())

    def send_continue(self) -> None:
        """Tells the client to send the body (RFC 9110 section 15.2.1)."""
        self._send(b'HTTP/1.1 100 Continue\r\n\r\n')

    def end(self) -> None:
        """The connection may go on to its next request."""
        if not self.answered.done():
            self.answered.set_result(None)

    def on_hang_up(self) -> None:
        """The client has closed the connection; called by the stream."""
        callback, self._close_callback = self._close_callback, None
        if callback:
            callback()
        self.end()

    def _decide_framing(self, status: int, headers: httputil.HTTPHeaders) -> None:
        """How the client learns where the answer ends (RFC 9112 section 6)."""
        method, _, version = self.request_start_line
        has_body = method != 'HEAD' and status not in (204, 304)
        ends_with_connection = has_body and 'Content-Length' not in headers
        self._chunked = ends_with_connection and version != 'HTTP/1.0'
        self.close_after |= self.server.draining or (ends_with_connection and not self._chunked)
        if self._chunked:
            headers['Transfer-Encoding'] = 'chunked'
        if self.close_after:
            headers['Connection'] = 'close'
        elif version == 'HTTP/1.0':
            headers['Connection'] = 'keep-alive'

    def _framed(self, chunk: bytes) -> bytes:
        if not self.stream.closed():
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
            self._cut_off_if_stalled(self._last_write)
        return self._last_write

    def _cut_off_if_stalled(self, write: asyncio.Future[None], acknowledged: int = -1) -> None:
        """Closes the connection if its client takes nothing for a whole time-out."""
        now_acknowledged = bytes_acknowledged(self.stream)
        if now_acknowledged == acknowledged:
            self.stream.close()
        if not write.done():
            timer = asyncio.get_running_loop().call_later(
                self.server.limits.write_timeout, self._cut_off_if_stalled, write,
                now_acknowledged)
            write.add_done_callback(lambda _: timer.cancel())


class Input:
    """What a client sends: taken in pieces that the reader asks for.

    A stream could look for the end of a header, too, but closes the connection
    when that does not come; here there is somebody left to be told.
    """

    def __init__(self, stream: IOStream) -> None:
        self.stream = stream
        self.buffer = bytearray()

    async def wait(self) -> None:
        """Returns when there is something to take.

        :raises StreamClosedError: there never will be.
        """
        if not self.buffer:
            await self._receive()

    async def take_until(self, end: re.Pattern[bytes], max_size: int) -> bytes:
        """Takes everything up to what the pattern matches, and that.

        :raises OverflowError: there is no match in so many bytes.
        """
        searched = 0
        while (match := end.search(self.buffer, searched)) is None:
            if len(self.buffer) > max_size:
                raise OverflowError
            searched = max(0, len(self.buffer) - 3)  # a match may have begun
            await self._receive()
        return self._take(match.end())

    async def take(self, size: int) -> bytes:
        """Takes so many bytes."""
        while len(self.buffer) < size:
            await self._receive()
        return self._take(size)

    async def discard_all(self) -> None:
        """Takes and forgets whatever comes, until the client closes."""
        while True:
            self.buffer.clear()
            await self._receive()
            await asyncio.sleep(0)  # others have their turn, however fast it comes

    async def _receive(self) -> None:
        self.buffer += await self.stream.read_bytes(READ_SIZE, partial=True)

    def _take(self, size: int) -> bytes:
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken


class ClientConnection:
    """One client's connection: its requests are read and answered in turn."""

    def __init__(self, server: HTTPServer, stream: IOStream, ip: str) -> None:
        self.server = server
        self.limits = server.limits
        self.stream = stream
        self.input = Input(stream)
        self.ip = ip
        self.idle = True
        self.made_at = time.monotonic()

    async def serve(self) -> None:
        """Returns when the connection is closed."""
        self.stream.set_nodelay(True)
        try:
            while await self._next_request():
                exchange = Exchange(self.server, self.stream, Peer(self.ip))
                await self._answer(exchange)
                if exchange.close_after or self.stream.closed():
                    break
        finally:
            self.stream.close()

    def close_if_idle(self) -> None:
        """Closes the connection unless a request is, or may be, under way."""
        if self.idle and self.stream.reading() and not self._has_input():
            self.stream.close()

    def _has_input(self) -> bool:
        """Whether something has arrived that the event loop has not seen yet."""
        try:
            return bool(self.stream.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    async def _next_request(self) -> bool:
        """Waits for the first bytes of the next request; False if none come."""
        self.idle = True
        try:
            async with asyncio.timeout(self.limits.idle_timeout):
                await self.input.wait()
            return True
        except (TimeoutError, StreamClosedError):
            return False
        finally:
            self.idle = False

    async def _answer(self, exchange: Exchange) -> None:
        reader = RequestReader(self.input, self.limits, exchange)
        try:
            request = await reader.read()
            delegate: httputil.HTTPMessageDelegate = self.server.application.find_handler(request)
        except HTTPError as error:
            exchange.close_after = True
            request = reader.request
            delegate = self.server.refuse(request, error)
            request.body = b''
        await self._run(delegate, request, exchange)
        if reader.unread_input:
            await self._linger()

    async def _run(self, delegate: httputil.HTTPMessageDelegate,
                   request: httputil.HTTPServerRequest, exchange: Exchange) -> None:
        prepared = delegate.headers_received(exchange.request_start_line, request.headers)
        if prepared is not None:
            await prepared
        if request.body and not exchange.answered.done():
            delegate.data_received(request.body)
        delegate.finish()
        await asyncio.sleep(0)
        if not exchange.answered.done():
            self.stream.set_close_callback(exchange.on_hang_up)
            await exchange.answered
            self.stream.set_close_callback(None)

    async def _linger(self) -> None:
        """Reads on for a moment before closing, as TCP would otherwise throw
        away an answer that the client has not read yet (RFC 9112 section 9.6)."""
        if self.stream.closed() or self.stream.reading():
            return
        with contextlib.suppress(OSError, TimeoutError):
            self.stream.socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER_SECONDS):
                await self.input.discard_all()


class RequestReader:
    """Reads one request."""

    def __init__(self, source: Input, limits: Limits, exchange: Exchange) -> None:
        self.input = source
        self.limits = limits
        self.exchange = exchange
        self.request = _request(exchange, httputil.HTTPHeaders())
        """The request, as far as it is known."""
        self.unread_input = True
        """Whether the client may be sending something that nobody will read."""

    async def read(self) -> httputil.HTTPServerRequest:
        """Reads a request whole, with its body inflated.

        :raises HTTPError: it is refused; 408 when it does not come in time,
            499 when the client hangs up in its middle.
        """
        try:
            async with asyncio.timeout(self.limits.header_timeout):
                data = await self._read_head()
            self._understand_head(data)
            async with asyncio.timeout(self.limits.body_timeout):
                body = await self._read_body()
        except TimeoutError as error:
            raise HTTPError(408, 'The request did not come in time') from error
        except StreamClosedError as error:
            raise HTTPError(499, 'The client hung up', reason='Client Closed Request') from error
        self.unread_input = False
        self.request.body = self._decoded(body)
        return self.request

    async def _read_head(self) -> bytes:
        await self.input.wait()
        if not framing.can_start_request(bytes(self.input.buffer[:1])):
            raise HTTPError(400, 'This is not HTTP/1.1')
        try:
            return await self.input.take_until(framing.END_OF_HEAD, self.limits.max_header_size)
        except OverflowError as error:
            start = bytes(self.input.buffer[:framing.MAX_TARGET_LENGTH])
            self._guess_start_line(start)
            raise HTTPError(431, 'The header is too large') from error

    def _guess_start_line(self, data: bytes) -> None:
        start_line = self.exchange.request_start_line = framing.likely_start_line(data)
        self.request.method, self.request.uri, _ = start_line

    def _understand_head(self, data: bytes) -> None:
        exchange = self.exchange
        self._guess_start_line(data)
        start_line, headers = framing.parse_head(data, self.limits.max_header_size)
        exchange.request_start_line = start_line
        exchange.context = Peer(client_ip(exchange.context.remote_ip, headers,
                                          self.limits.trusted_proxies))
        self.request = _request(exchange, headers)
        exchange.close_after = framing.wants_close(start_line, headers)

    async def _read_body(self) -> bytes:
        length = framing.body_length(self.exchange.request_start_line, self.request.headers)
        if length == 0:
            return b''
        self._require_body_within_limit(length or 0)
        self._invite_body()
        if length is None:
            return await self._read_chunked()
        return await self.input.take(length)

    def _invite_body(self) -> None:
        """Sends the 100 that a client may wait for (RFC 9110 section 10.1.1)."""
        if self.request.version == 'HTTP/1.0':
            return
        expectation = self.request.headers.get('Expect', '').lower()
        if expectation == '100-continue':
            self.exchange.send_continue()
        elif expectation:
            raise HTTPError(417, 'The only expectation that is met is 100-continue')

    async def _read_chunked(self) -> bytes:
        body = bytearray()
        for count in itertools.count():
            size = framing.parse_chunk_size(await self._read_line())
            if size == 0:
                await self._skip_trailers()
                return bytes(body)
            self._require_body_within_limit(len(body) + size)
            body += await self.input.take(size)
            if await self.input.take(2) != b'\r\n':
                raise HTTPError(400, 'A chunk is longer than its size says')
            if count % 100 == 0:
                await asyncio.sleep(0)  # others have their turn, however small the chunks are
        raise AssertionError('counting has no end')

    async def _skip_trailers(self) -> None:
        for _ in range(MAX_TRAILER_LINES):
            line = await self._read_line()
            if line == b'\r\n':
                return
            if not line.endswith(b'\r\n'):
                raise HTTPError(400, 'A line behind the last chunk does not end in CRLF')
        raise HTTPError(400, 'There are too many lines behind the last chunk')

    async def _read_line(self) -> bytes:
        try:
            return await self.input.take_until(framing.END_OF_LINE, MAX_CHUNK_LINE)
        except OverflowError as error:
            raise HTTPError(400, 'A line in the chunked body is too long') from error

    def _require_body_within_limit(self, length: int) -> None:
        if length > self.limits.max_body_size:
            raise HTTPError(413, f'The body is larger than {self.limits.max_body_size} bytes')

    def _decoded(self, body: bytes) -> bytes:
        """Undoes a Content-Encoding that we know; others are for the handler to refuse."""
        coding = self.request.headers.get('Content-Encoding', '').lower()
        if coding not in ('gzip', 'x-gzip'):
            return body
        del self.request.headers['Content-Encoding']
        return framing.inflate(body, self.limits.max_body_size)


def bytes_acknowledged(stream: IOStream) -> int:
    """How many bytes the client's side has taken, where the system tells (Linux
    does); else 0. A stream tells only when its last byte has left."""
    if stream.closed() or not hasattr(socket, 'TCP_INFO'):
        return 0
    info = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    return int.from_bytes(info[TCP_INFO_BYTES_ACKED:TCP_INFO_BYTES_ACKED + 8], sys.byteorder)


def client_ip(peer: str, headers: httputil.HTTPHeaders, trusted: Sequence[Network]) -> str:
    """The address that a request comes from.

    :param peer: who is at the other end of the connection.
    :param trusted: proxies whose X-Forwarded-For is believed; from the right,
        the first address in it that is not one of them is the client's.
    """
    ip = peer
    for candidate in reversed(headers.get('X-Forwarded-For', '').split(',')):
        if not _is_trusted(ip, trusted) or _address(candidate.strip()) is None:
            break
        ip = candidate.strip()
    return ip


def _is_trusted(ip: str, trusted: Sequence[Network]) -> bool:
    address = _address(ip)
    return address is not None and any(address in network for network in trusted)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # Without a scope (``%eth0``): it means nothing here, and may hold any text.
        address = ipaddress.ip_address(text.replace('%', ' '))
    except ValueError:
        return None
    # On a socket for both families IPv4 peers look like ::ffff:192.0.2.1.
    return getattr(address, 'ipv4_mapped', None) or address


def _request(exchange: Exchange, headers: httputil.HTTPHeaders) -> httputil.HTTPServerRequest:
    try:
        return httputil.HTTPServerRequest(
            connection=exchange, headers=headers, start_line=exchange.request_start_line)
    except httputil.HTTPInputError as error:
        raise HTTPError(400, 'The Host or the query string cannot be read') from error

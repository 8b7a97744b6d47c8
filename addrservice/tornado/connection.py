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
import ctypes
import socket
import struct
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from tornado import httputil
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer
from tornado.web import Application, HTTPError

from addrservice.tornado.exchange import Exchange, Peer
from addrservice.tornado.reader import READ_SIZE, Input, Limits, RequestReader

LINGER_SECONDS = 2.0
IDLE_GRACE = 1.0
"""Seconds of a drain, or of a connection made during it, in which a client may
still use an idle connection."""

ACCEPT_SECONDS = 0.1
"""For connections to be accepted that are being made when accepting ends."""

SO_ATTACH_FILTER = 26
DROP_SYN = b''.join(struct.pack('HBBI', *instruction) for instruction in (
    (0x30, 0, 0, 13),            # load byte 13 of the TCP header: the flags
    (0x45, 0, 1, 0x02),          # if SYN is not among them, skip one
    (0x06, 0, 0, 0),             # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF)))   # keep the packet
"""A packet filter in the language of linux/filter.h."""

Refuse = Callable[[httputil.HTTPServerRequest, HTTPError], httputil.HTTPMessageDelegate]


class HTTPServer(TCPServer):
    """Accepts connections and serves an application on them until drained."""

    def __init__(self, application: Application, refuse: Refuse, limits: Limits,
                 on_refused: Callable[[str], None]) -> None:
        """
        :param application: what requests are for.
        :param refuse: from a request that cannot be served, and the error, to
            the delegate that answers it.
        :param limits: what connections may cost.
        :param on_refused: gets the address of each client whose connection is one too many.
        """
        # Room for a header that is over the limit and is to be told so, and
        # for what a client sends ahead; more closes the connection.
        super().__init__(max_buffer_size=limits.max_header_size + limits.max_body_size
                         + 4 * READ_SIZE, read_chunk_size=READ_SIZE)
        self.application = application
        self.refuse = refuse
        self.limits = limits
        self.on_refused = on_refused
        self.draining = False
        self.connections: dict[ClientConnection, None] = {}
        """Those that are open, the oldest first."""
        self._listening: list[socket.socket] = []
        self._drained_at = float('-inf')

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]
                      ) -> Coroutine[Any, Any, None] | None:
        """Serves one connection to its end; called by Tornado."""
        if len(self.connections) >= self.limits.max_connections and not self._make_room():
            stream.close()
            self.on_refused(address[0])
            return None
        connection = ClientConnection(self, stream, address[0])
        # Known from now on, not from when its task first runs: a drain waits for it.
        self.connections[connection] = None
        return self._serve(connection)

    async def _serve(self, connection: ClientConnection) -> None:
        try:
            await connection.serve()
        finally:
            self.connections.pop(connection, None)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts connections on these listening sockets until `stop`."""
        self._listening = list(sockets)
        super().add_sockets(self._listening)

    async def stop_accepting(self) -> None:
        """Serves who has connected, and lets nobody else connect."""
        for listening in self._listening:
            drop_new_connections(listening)
        await asyncio.sleep(ACCEPT_SECONDS)
        self.stop()

    def drain(self) -> None:
        """From now on every answer closes its connection."""
        self.draining = True
        self._drained_at = time.monotonic()

    def take_out(self, is_out: bool) -> None:
        """From now on answers close their connections, as in a drain, or keep them again."""
        self.draining = is_out

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

    def _make_room(self) -> bool:
        """Closes an idle connection, so that idle clients cannot keep others,
        probes above all, from being served."""
        for connection in tuple(self.connections):
            if connection.close_if_idle():
                del self.connections[connection]
                return True
        return False


def drop_new_connections(listening: socket.socket) -> None:
    """Has the system ignore attempts to connect, where it can (Linux).

    When a listening socket is closed, connections that wait to be accepted are
    reset, with what was sent on them; between the last look and the closing
    there is always time for one more. A filter on packets that carry SYN keeps
    them away. Whoever is ignored tries again, and is refused by then.
    """
    if sys.platform == 'linux':
        program = ctypes.create_string_buffer(DROP_SYN)
        length_and_address = struct.pack('HP', len(DROP_SYN) // 8, ctypes.addressof(program))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, length_and_address)


class ClientConnection:
    """One client's connection: its requests are read and answered in turn."""

    def __init__(self, server: HTTPServer, stream: IOStream, ip: str) -> None:
        """
        :param server: whose connection it is.
        :param stream: the connection itself.
        :param ip: the address at its other end.
        """
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
                exchange = Exchange(self.stream, Peer(self.ip), self.limits.write_timeout,
                                    lambda: self.server.draining)
                await self._answer(exchange)
                if exchange.close_after or self.stream.closed():
                    break
        finally:
            self.stream.close()

    def close_if_idle(self) -> bool:
        """Closes the connection unless a request is, or may be, under way.

        :return: whether it is closed.
        """
        is_idle = self.idle and self.stream.reading() and not self._has_input()
        if is_idle:
            self.stream.close()
        return is_idle

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
        if reader.unread_input or (exchange.close_after and self.input.buffer):
            await self._linger()

    async def _run(self, delegate: httputil.HTTPMessageDelegate,
                   request: httputil.HTTPServerRequest, exchange: Exchange) -> None:
        prepared = delegate.headers_received(exchange.request_start_line, request.headers)
        if prepared is not None:
            await prepared
        if request.body and not exchange.answered.done():
            delegate.data_received(request.body)
        delegate.finish()
        await asyncio.sleep(0)  # most answers need no more, and nobody to watch the client
        if not exchange.answered.done():
            await self._answered_or_closed(exchange)

    async def _answered_or_closed(self, exchange: Exchange) -> None:
        self.stream.set_close_callback(exchange.on_hang_up)
        if self.stream.closed():  # before anyone wanted to know
            exchange.on_hang_up()
        await exchange.answered
        self.stream.set_close_callback(None)

    async def _linger(self) -> None:
        """Reads on for a moment before closing, as TCP would otherwise throw
        away an answer that the client has not read yet (RFC 9112 section 9.6)."""
        if self.stream.closed():
            return
        with contextlib.suppress(OSError, TimeoutError):
            self.stream.socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER_SECONDS):
                await self.input.discard_all()

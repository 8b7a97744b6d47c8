"""HTTP/1.1 connections: one answer and one log line to every request, in time.

Tornado's own HTTPServer answers what goes wrong below a handler (a malformed
line, a slow header, a body too large) with a bare 400 or by hanging up, and
nothing is told of it. This server keeps Tornado's `Application` and what it
talks to, and reads requests itself: whatever it refuses goes to a
`RequestHandler` too, and so gets the same error document, log line and
headers as any other error. Only public interfaces of Tornado are used.

How bytes come and go is the business of a transport: `transport.py` or
`stream_transport.py`. Each has a kind of `Connection`.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import fcntl
import socket
import ssl
import struct
import sys
import termios
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from tornado import httputil
from tornado.concurrent import future_set_result_unless_cancelled
from tornado.iostream import StreamClosedError
from tornado.netutil import add_accept_handler
from tornado.web import Application, HTTPError

from addrservice.tornado.exchange import Exchange, Peer, Stream
from addrservice.tornado.reader import Input, Limits, RequestReader

LINGER_SECONDS = 2.0
IDLE_GRACE = 1.0
"""Seconds of a drain, or of a connection made during it, in which a client may
still use an idle connection."""

ACCEPT_SECONDS = 0.1
"""For connections to be accepted that are being made when accepting ends."""

MAX_UNSENT = 64 * 1024
"""Bytes, about, that the system takes for a client and cannot send yet."""

SO_ATTACH_FILTER = 26
DROP_SYN = b''.join(struct.pack('HBBI', *instruction) for instruction in (
    (0x30, 0, 0, 13),            # load byte 13 of the TCP header: the flags
    (0x45, 0, 1, 0x02),          # if SYN is not among them, skip one
    (0x06, 0, 0, 0),             # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF)))   # keep the packet
"""A packet filter in the language of linux/filter.h."""

Refuse = Callable[[httputil.HTTPServerRequest, HTTPError], httputil.HTTPMessageDelegate]


class HTTPServer:
    """Accepts connections and serves an application on them until drained."""

    def __init__(self, application: Application, refuse: Refuse, limits: Limits,
                 on_refused: Callable[[str], None], connect: Connect,
                 tls: ssl.SSLContext | None = None) -> None:
        """
        :param application: what requests are for.
        :param refuse: from a request that cannot be served, and the error, to
            the delegate that answers it.
        :param limits: what connections may cost.
        :param on_refused: gets the address of each client whose connection is one too many.
        :param connect: makes a connection that serves of one that was accepted: the transport.
        :param tls: with which connections are encrypted, if they are.
        """
        self.application = application
        self.refuse = refuse
        self.limits = limits
        self.on_refused = on_refused
        self.tls = tls
        self.draining = False
        self.connections: dict[Connection, None] = {}
        """Those that are open, the oldest first."""
        self.idle = IdleConnections(limits.idle_timeout)
        self._connect = connect
        self._listening: list[socket.socket] = []
        self._stop_accepting: list[Callable[[], None]] = []
        self._drained_at = float('-inf')

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts connections on these listening sockets until `stop`."""
        self._listening = list(sockets)
        self._stop_accepting = [add_accept_handler(listening, self._on_connection)
                                for listening in self._listening]

    async def stop_accepting(self) -> None:
        """Serves who has connected, and lets nobody else connect."""
        for listening in self._listening:
            drop_new_connections(listening)
        await asyncio.sleep(ACCEPT_SECONDS)
        self.stop()

    def stop(self) -> None:
        """Accepts no connection any more."""
        for stop_accepting in self._stop_accepting:
            stop_accepting()
        for listening in self._listening:
            listening.close()
        self._stop_accepting, self._listening = [], []

    def drain(self) -> None:
        """From now on every answer closes its connection."""
        self.draining = True
        self._drained_at = time.monotonic()

    def take_out(self, is_out: bool) -> None:
        """From now on answers close their connections, as in a drain, or keep them again."""
        self.draining = is_out

    def is_draining(self) -> bool:
        """Whether every answer closes its connection."""
        return self.draining

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
            connection.close()

    def has_closed(self, connection: Connection) -> None:
        """Called by a connection that is no more."""
        self.connections.pop(connection, None)
        self.idle.discard(connection)

    def _on_connection(self, accepted: socket.socket, address: tuple[Any, ...]) -> None:
        if len(self.connections) >= self.limits.max_connections and not self.idle.close_oldest():
            accepted.close()
            self.on_refused(address[0])
            return
        try:
            keep_little_unsent(accepted)
            connection = self._connect(self, accepted, address[0])
        except OSError:  # gone already: TLS has looked for who is at the other end
            return accepted.close()
        # Known from now on, not from when it first does something: a drain waits for it.
        self.connections[connection] = None


class IdleConnections:
    """Those that wait for a request, the longest first; none waits longer than it may."""

    def __init__(self, timeout: float) -> None:
        """
        :param timeout: seconds that a connection may wait.
        """
        self._timeout = timeout
        self._since: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> None:
        """It waits from now on."""
        now = time.monotonic()
        self._since[connection] = now
        if self._timer is None:
            self._wait(self._timeout)

    def discard(self, connection: Connection) -> None:
        """It does not wait any more, if it did."""
        self._since.pop(connection, None)

    def __contains__(self, connection: object) -> bool:
        return connection in self._since

    def close_oldest(self) -> bool:
        """Closes one, so that idle clients cannot keep others, probes above all,
        from being served.

        :return: whether there was one.
        """
        return any(connection.close_if_idle() for connection in tuple(self._since))

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._close_expired)

    def _close_expired(self) -> None:
        self._timer, now = None, time.monotonic()
        for connection, since in tuple(self._since.items()):
            if since + self._timeout > now:
                return self._wait(since + self._timeout - now)
            connection.close_if_idle()


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


def keep_little_unsent(accepted: socket.socket) -> None:
    """Has the system take no more for a client than is about to be sent, where it can (Linux).

    Else it takes megabytes, and asks for more when a third of them has gone: of a long list to a
    slow client a megabyte at once would be made then, and others would have to wait for it.
    """
    if hasattr(socket, 'TCP_NOTSENT_LOWAT'):
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)


class Connection(ABC):
    """One client's connection: its requests are read and answered in turn."""

    def __init__(self, server: HTTPServer, stream: Stream, source: Input, ip: str) -> None:
        """
        :param server: whose connection it is.
        :param stream: takes what is sent.
        :param source: has what comes.
        :param ip: the address at the other end.
        """
        self.server = server
        self.limits = server.limits
        self.stream = stream
        self.input = source
        self._peer = Peer(ip, 'https' if server.tls else 'http')
        self.made_at = time.monotonic()

    @abstractmethod
    def watch_client(self, on_hang_up: Callable[[], None] | None) -> None:
        """What to call when the client hangs up while it waits for its answer."""

    def close(self) -> None:
        """Closes the connection, whatever it does."""
        self.stream.close()

    def close_if_idle(self) -> bool:
        """Closes the connection unless a request is, or may be, under way.

        :return: whether it is closed.
        """
        is_idle = self in self.server.idle and self.is_waiting() and not self._has_input()
        if is_idle:
            self.close()
            self.server.has_closed(self)
        return is_idle

    def is_waiting(self) -> bool:
        """Whether nothing has come that an idle connection is about to learn of."""
        return True

    def exchange(self, on_end: Callable[[Exchange], None]) -> Exchange:
        """The way out for the answer to the next request.

        :param on_end: gets it when it has been answered, or cannot be.
        """
        return Exchange(self.stream, self._peer, self.limits.write_timeout,
                        self.server.is_draining, on_end)

    def delegate_of(self, request: httputil.HTTPServerRequest, exchange: Exchange
                    ) -> httputil.HTTPMessageDelegate:
        """Who answers a request."""
        try:
            return self.server.application.find_handler(request)
        except HTTPError as error:
            return self._refusal(request, error, exchange)

    async def answer_next(self) -> bool:
        """Reads the request that begins in the input, and answers it, whatever it is.

        :return: whether the connection may go on.
        """
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        exchange = self.exchange(lambda _: future_set_result_unless_cancelled(answered, None))
        reader = RequestReader(self.input, self.limits, exchange)
        try:
            request = await reader.read()
            delegate = self.delegate_of(request, exchange)
        except HTTPError as error:
            request = reader.request
            delegate = self._refusal(request, error, exchange)
        try:
            await self._run(delegate, request, exchange, answered)
        except Exception as error:
            self.fail(error, exchange)
            return False
        if reader.unread_input or (exchange.close_after and self.input.buffer):
            await self._linger()
        return not (exchange.close_after or self.stream.closed())

    def fail(self, error: Exception, exchange: Exchange) -> None:
        """Closes the connection of a handler that failed where it cannot answer."""
        asyncio.get_running_loop().call_exception_handler({
            'message': 'A request could not be handed to its handler', 'exception': error})
        self.close()
        exchange.on_hang_up()

    def _refusal(self, request: httputil.HTTPServerRequest, error: HTTPError, exchange: Exchange
                 ) -> httputil.HTTPMessageDelegate:
        exchange.close_after = True
        request.body = b''
        return self.server.refuse(request, error)

    async def _run(self, delegate: httputil.HTTPMessageDelegate,
                   request: httputil.HTTPServerRequest, exchange: Exchange,
                   answered: asyncio.Future[None]) -> None:
        prepared = delegate.headers_received(exchange.request_start_line, request.headers)
        if prepared is not None:
            await prepared
        if request.body and not answered.done():
            received = delegate.data_received(request.body)
            if received is not None:
                await received
        delegate.finish()
        await asyncio.sleep(0)  # most answers need no more, and nobody to watch the client
        if not answered.done():
            self.watch_client(exchange.on_hang_up)
            await answered
            self.watch_client(None)

    async def _linger(self) -> None:
        """Reads on for a moment before closing, as TCP would otherwise throw
        away an answer that the client has not read yet (RFC 9112 section 9.6)."""
        if self.stream.closed():
            return
        with contextlib.suppress(OSError, StreamClosedError, TimeoutError):
            if self.server.tls is None:  # with it, the other side would take that for an attack
                self.stream.socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER_SECONDS):
                await self.input.discard_all()

    def _has_input(self) -> bool:
        """Whether something has arrived that the event loop has not seen yet."""
        count = array.array('i', [0])
        with contextlib.suppress(OSError, ValueError):  # it is closed
            fcntl.ioctl(self.stream.socket, termios.FIONREAD, count)
        return count[0] > 0


Connect = Callable[[HTTPServer, socket.socket, str], Connection]
"""From a server, a connection that it has accepted and the address at its other
end to the connection that serves."""

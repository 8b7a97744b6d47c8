"""Connections on asyncio's transports: the fast way to Tornado's `Application`.

A request that has come whole and is plain (`plain.py`) is handed to its handler at once, in the
callback that brought its bytes, and its answer is sent in the call that made it: no task waits
for it, no stream is between. Whatever else comes is read with care, by the code that serves on
Tornado's streams, too. Meant for uvloop, it runs on any event loop of asyncio.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from tornado import httputil
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from addrservice.tornado.connection import Connection, HTTPServer
from addrservice.tornado.exchange import Exchange
from addrservice.tornado.plain import PlainRequest, read_plain
from addrservice.tornado.reader import READ_SIZE, Input, request_for


class PushedInput(Input):
    """What a transport has brought."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: asyncio.Transport | None = None
        """None: there is none yet, or any more."""
        self.is_paused = False
        """Whether the transport has been told to fetch nothing."""
        self._waiter: asyncio.Future[None] | None = None

    def push(self, data: bytes) -> None:
        """Takes what has come. Of what nobody takes, no more than a bit is fetched."""
        self.buffer += data
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)
        elif self.transport and not self.is_paused and len(self.buffer) > READ_SIZE:
            self.is_paused = True
            self.transport.pause_reading()

    def end(self) -> None:
        """Nothing more will come."""
        self.transport = None
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(StreamClosedError())

    async def receive(self) -> None:
        if self.transport is None:
            raise StreamClosedError
        self.resume()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def resume(self) -> None:
        """Fetches more, if it was not."""
        if self.is_paused and self.transport:
            self.is_paused = False
            self.transport.resume_reading()


class TransportStream(asyncio.Protocol):
    """Sends on a transport of asyncio, and tells what comes of it."""

    def __init__(self, accepted: socket.socket, connection: FastConnection) -> None:
        """
        :param accepted: what the transport is going to be on.
        :param connection: is told what happens.
        """
        self.socket = accepted
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._is_closed = False
        self._sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing waits for being sent."""
        self._sent.set_result(None)

    def write(self, data: bytes) -> asyncio.Future[None]:
        transport = self._transport
        if transport is None or self._is_closed or transport.is_closing():
            raise StreamClosedError
        transport.write(data)
        return self._sent

    def closed(self) -> bool:
        return self._is_closed or (self._transport is not None and self._transport.is_closing())

    def close(self) -> None:
        self._is_closed = True
        if self._transport:
            self._transport.abort()

    # What follows is called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._is_closed:
            return self._transport.abort()
        # Paused is the stream whenever there is something that has not been sent: more than
        # the limit on a plain transport, as much or more on one with TLS.
        is_plain = transport.get_extra_info('sslcontext') is None
        self._transport.set_write_buffer_limits(high=0 if is_plain else 1, low=0)
        self._connection.on_made(self._transport)

    def data_received(self, data: bytes) -> None:
        self._connection.on_data(data)

    def pause_writing(self) -> None:
        self._sent = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if not self._sent.done():
            self._sent.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        if not self._sent.done():
            self._sent.set_exception(StreamClosedError(error))
            self._sent.exception()  # nobody needs to look at it
        self._connection.on_lost()


class FastConnection(Connection):
    """A connection that is served from its transport's callbacks."""

    input: PushedInput

    def __init__(self, server: HTTPServer, accepted: socket.socket, ip: str) -> None:
        """
        :param server: whose connection it is.
        :param accepted: the connection itself.
        :param ip: the address at its other end.
        """
        stream = TransportStream(accepted, self)
        super().__init__(server, stream, PushedInput(), ip)
        self._is_answering = False
        self._on_hang_up: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = asyncio.create_task(
            self._connect(stream, accepted))

    def watch_client(self, on_hang_up: Callable[[], None] | None) -> None:
        self._on_hang_up = on_hang_up
        if on_hang_up and self.stream.closed():  # before anyone wanted to know
            on_hang_up()

    def on_made(self, transport: asyncio.Transport) -> None:
        """There is a transport: from now on, requests are waited for."""
        self.input.transport = transport
        self.server.idle.add(self)

    def on_data(self, data: bytes) -> None:
        """Something has come."""
        if self._is_answering:
            return self.input.push(data)
        self.server.idle.discard(self)
        self._is_answering = True
        self._answer_next(data)

    def on_lost(self) -> None:
        """The connection is no more."""
        self.input.end()
        self.server.has_closed(self)
        if self._on_hang_up:
            self._on_hang_up()

    async def _connect(self, stream: TransportStream, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: stream, accepted, ssl=self.server.tls,
                ssl_handshake_timeout=self.limits.header_timeout if self.server.tls else None)
        except OSError:  # it is gone already, or does not speak TLS
            accepted.close()
            self.on_lost()
        if self._task is asyncio.current_task():  # and no request has come yet
            self._task = None  # or it would be kept for as long as the connection

    def _answer_next(self, data: bytes) -> None:
        """Answers the request that the data begins with.

        :param data: all that has come and is not answered.
        """
        plain = read_plain(data, self.limits)
        if plain is None or not self._answer(plain, data):
            self.input.push(data)
            self._task = asyncio.create_task(self._answer_with_care())

    async def _answer_with_care(self) -> None:
        may_go_on = False
        try:
            may_go_on = await self.answer_next()
        finally:
            self._go_on(may_go_on)

    def _answer(self, plain: PlainRequest, data: bytes) -> bool:
        """Hands a request to its handler.

        :param data: what it is the start of.
        :return: whether it could be; else nothing has happened.
        """
        start_line, headers, body, closes, size = plain
        exchange = self.exchange(self._has_answered)
        try:
            request = request_for(
                exchange, start_line, headers, closes, self.limits.trusted_proxies)
        except HTTPError:
            return False
        if size < len(data):
            self.input.push(data[size:])
        if body:
            exchange.body_bytes_received = len(body)
            request.body = body
        delegate = self.delegate_of(request, exchange)
        self._on_hang_up = exchange.on_hang_up
        try:
            self._start(delegate, request, exchange)
        except Exception as error:
            self.fail(error, exchange)
        return True

    def _start(self, delegate: httputil.HTTPMessageDelegate, request: httputil.HTTPServerRequest,
               exchange: Exchange) -> None:
        prepared = delegate.headers_received(exchange.request_start_line, request.headers)
        if not request.body:
            delegate.finish()
        elif prepared is None:
            self._hand_over(delegate, request, exchange)
        else:
            asyncio.ensure_future(prepared).add_done_callback(
                lambda _: self._hand_over(delegate, request, exchange))

    def _hand_over(self, delegate: httputil.HTTPMessageDelegate,
                   request: httputil.HTTPServerRequest, exchange: Exchange) -> None:
        if exchange.has_ended:  # without the body, or the client is gone
            return
        try:
            received = delegate.data_received(request.body)
            if received is None:
                delegate.finish()
            else:
                self._task = asyncio.create_task(self._finish_after(received, delegate, exchange))
        except Exception as error:
            self.fail(error, exchange)

    async def _finish_after(self, received: Awaitable[None],
                            delegate: httputil.HTTPMessageDelegate, exchange: Exchange) -> None:
        try:
            await received
            if not exchange.has_ended:
                delegate.finish()
        except Exception as error:
            self.fail(error, exchange)

    def _has_answered(self, exchange: Exchange) -> None:
        self._on_hang_up = None
        if not exchange.close_after:
            self._go_on(not self.stream.closed())
        elif self.input.buffer:
            self._task = asyncio.create_task(self._close_slowly())
        else:
            self.close()

    async def _close_slowly(self) -> None:
        await self._linger()
        self.close()

    def _go_on(self, may_go_on: bool) -> None:
        """Takes the next request, or closes."""
        if not may_go_on:
            return self.close()
        if self.input.is_paused:
            self.input.resume()
        if self.input.buffer:
            # Not now: who has answered is about to write its line.
            asyncio.get_running_loop().call_soon(self._answer_what_waits)
        else:
            self._is_answering = False
            self.server.idle.add(self)

    def _answer_what_waits(self) -> None:
        if not self.stream.closed():
            self._answer_next(self.input.take_all())

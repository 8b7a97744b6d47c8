"""Connections on Tornado's own streams, and whatever event loop there is.

A task reads one request after the other. This is the transport that shows how it
is done; `transport.py` has the one that does it faster.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.netutil import ssl_wrap_socket

from addrservice.tornado.connection import Connection, HTTPServer
from addrservice.tornado.reader import READ_SIZE, Input


class StreamInput(Input):
    """What comes on a stream."""

    def __init__(self, stream: IOStream) -> None:
        super().__init__()
        self._stream = stream
        self._read: Awaitable[bytes] | None = None

    async def receive(self) -> None:
        # A time-out must not cancel the read itself: a stream takes no other then.
        self._read = self._read or self._stream.read_bytes(READ_SIZE, partial=True)
        self.buffer += await asyncio.shield(self._read)
        self._read = None


class StreamConnection(Connection):
    """A connection on a stream, served by a task of its own."""

    def __init__(self, server: HTTPServer, accepted: socket.socket, ip: str) -> None:
        """
        :param server: whose connection it is.
        :param accepted: the connection itself.
        :param ip: the address at its other end.
        """
        limits = server.limits
        # Room for a header that is over the limit and is to be told so, and
        # for what a client sends ahead; more closes the connection.
        sizes = {'read_chunk_size': READ_SIZE, 'max_buffer_size': (
            limits.max_header_size + limits.max_body_size + 4 * READ_SIZE)}
        if server.tls:
            self._io: IOStream = SSLIOStream(
                ssl_wrap_socket(accepted, server.tls, server_side=True,
                                do_handshake_on_connect=False), **sizes)
        else:
            self._io = IOStream(accepted, **sizes)
        super().__init__(server, self._io, StreamInput(self._io), ip)
        self._io.set_nodelay(True)
        self._serving = asyncio.create_task(self._serve())

    def watch_client(self, on_hang_up: Callable[[], None] | None) -> None:
        self._io.set_close_callback(on_hang_up)
        if on_hang_up and self._io.closed():  # before anyone wanted to know
            on_hang_up()

    def is_waiting(self) -> bool:
        return self._io.reading()

    async def _serve(self) -> None:
        try:
            await self._shake_hands()
            while await self._next_request() and await self.answer_next():
                pass
        except (StreamClosedError, TimeoutError, ssl.SSLError):
            pass  # no request has come yet
        finally:
            self.close()
            self.server.has_closed(self)

    async def _shake_hands(self) -> None:
        if isinstance(self._io, SSLIOStream):
            async with asyncio.timeout(self.limits.header_timeout):
                await asyncio.shield(self._io.wait_for_handshake())

    async def _next_request(self) -> bool:
        """Waits for the first bytes of the next request; False if none come."""
        self.server.idle.add(self)
        try:
            await self.input.wait()
            return True
        except StreamClosedError:
            return False
        finally:
            self.server.idle.discard(self)

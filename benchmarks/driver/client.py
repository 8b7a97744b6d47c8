"""HTTP for a load generator: bytes out, and of the answer what matters."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

import httptools

Address = tuple[str, int]

NO_CONNECTION, CLOSED, MALFORMED, TIMEOUT = 'no connection', 'closed', 'malformed', 'timeout'


class Failure(Exception):
    """A request has no answer; the text is one of those above."""


class Answer(NamedTuple):
    """What matters of an HTTP response."""

    status: int
    location: bytes


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection, kept alive (RFC 9112 section 9.3), for one request at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._location = b''

    async def exchange(self, request: bytes) -> Answer:
        """Sends a request and returns its answer.

        :raises Failure: there is none.
        """
        self._waiter, self._location = asyncio.get_running_loop().create_future(), b''
        self._transport.write(request)
        try:
            return await self._waiter
        except BaseException:
            self.close()  # or the rest of an answer would be taken for the next one
            raise
        finally:
            self._waiter = None

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(MALFORMED)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._fail(CLOSED)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b'location':
            self._location = value

    def on_message_complete(self) -> None:
        waiter = self._waiter
        if waiter is None or not self._parser.should_keep_alive():
            self.close()
        if waiter and not waiter.done():
            waiter.set_result(Answer(self._parser.get_status_code(), self._location))

    def _fail(self, kind: str) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(Failure(kind))


class Client:
    """Asks one request after the other, and connects when that is needed."""

    def __init__(self, address: Address, timeout: float) -> None:
        """
        :param timeout: seconds for a request, with connecting for it.
        """
        self.address = address
        """A name becomes the address that answered to it: the time that a look-up takes at each
        new connection is not the service's."""
        self.timeout = timeout
        self.opened = 0
        """Connections, one after the other."""
        self._connection: Connection | None = None

    async def ask(self, request: bytes) -> Answer:
        """One request, sent once: an answer that is lost is an error, and shall show.

        :raises Failure: there is no answer.
        """
        try:
            async with asyncio.timeout(self.timeout):
                return await (await self.connected()).exchange(request)
        except TimeoutError as error:
            raise Failure(TIMEOUT) from error

    async def connected(self) -> Connection:
        """The connection, a new one if that is needed.

        :raises Failure: there is none.
        """
        if self._connection is None or not self._connection.is_open:
            loop = asyncio.get_running_loop()
            try:
                transport, connection = await loop.create_connection(Connection, *self.address)
            except OSError as error:
                raise Failure(NO_CONNECTION) from error
            self.opened += 1
            peer = transport.get_extra_info('peername')  # None if it has been reset already
            self.address = peer[:2] if peer else self.address
            self._connection = connection
        return self._connection

    def close(self) -> None:
        if self._connection:
            self._connection.close()

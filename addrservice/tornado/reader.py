"""One request's way in: from bytes on a connection to a request, or a refusal."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from tornado import httputil
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from addrservice.tornado import framing
from addrservice.tornado.exchange import Exchange
from addrservice.tornado.messages import Headers, Request

READ_SIZE = 64 * 1024
MAX_CHUNK_LINE = 4 * 1024
MAX_TRAILER_LINES = 100

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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


class Input(ABC):
    """What a client sends: taken in pieces that the reader asks for.

    A stream of Tornado could look for the end of a header, too, but closes the
    connection when that does not come; here there is somebody left to be told.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        """What has come and has not been taken."""

    @abstractmethod
    async def receive(self) -> None:
        """Returns when there is more in the buffer than before. It may be cancelled.

        :raises StreamClosedError: there never will be.
        """

    async def wait(self) -> None:
        """Returns when there is something to take.

        :raises StreamClosedError: there never will be.
        """
        if not self.buffer:
            await self.receive()

    async def take_until(self, end: re.Pattern[bytes], max_size: int) -> bytes:
        """Takes everything up to what the pattern matches, and that.

        :raises OverflowError: there is no match in so many bytes.
        """
        searched = 0
        while (match := end.search(self.buffer, searched)) is None:
            if len(self.buffer) > max_size:
                raise OverflowError
            searched = max(0, len(self.buffer) - 3)  # a match may have begun
            await self.receive()
        if match.end() > max_size:
            raise OverflowError
        return self._take(match.end())

    async def take(self, size: int) -> bytes:
        """Takes so many bytes.

        :raises StreamClosedError: fewer came.
        """
        while len(self.buffer) < size:
            await self.receive()
        return self._take(size)

    async def discard_all(self) -> None:
        """Takes and forgets whatever comes, until the client closes."""
        while True:
            self.buffer.clear()
            await self.receive()
            await asyncio.sleep(0)  # others have their turn, however fast it comes

    def take_all(self) -> bytes:
        """Takes what is there."""
        return self._take(len(self.buffer))

    def _take(self, size: int) -> bytes:
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken


class RequestReader:
    """Reads one request."""

    def __init__(self, source: Input, limits: Limits, exchange: Exchange) -> None:
        """
        :param source: what the client sends.
        :param limits: what it may cost.
        :param exchange: is told what there is to answer.
        """
        self.input = source
        self.limits = limits
        self.exchange = exchange
        self.request: httputil.HTTPServerRequest = Request(
            exchange, exchange.request_start_line, Headers())
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
            raise HTTPError(499, 'The client hung up') from error
        self.unread_input = False
        self.exchange.body_bytes_received = len(body)
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
        self._guess_start_line(data)
        start_line, headers = framing.parse_head(data, self.limits.max_header_size)
        closes = framing.wants_close(start_line.version, headers)
        self.request = request_for(
            self.exchange, start_line, headers, closes, self.limits.trusted_proxies)

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


def request_for(exchange: Exchange, start_line: httputil.RequestStartLine,
                headers: Headers, closes: bool, trusted: Sequence[Network]
                ) -> httputil.HTTPServerRequest:
    """The request that has this head; the exchange is told what there is to answer.

    :param closes: whether the connection ends with it.
    :param trusted: as for `client_ip`.
    :raises HTTPError: 400, its Host or its query string makes no sense.
    """
    exchange.request_start_line = start_line
    if trusted:
        exchange.context = exchange.context._replace(
            remote_ip=client_ip(exchange.context.remote_ip, headers, trusted))
    try:
        request = Request(exchange, start_line, headers)
    except httputil.HTTPInputError as error:
        raise HTTPError(400, 'The Host or the query string cannot be read') from error
    exchange.close_after = closes
    return request

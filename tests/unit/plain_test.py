"""The short way to read a request understands what the careful one does, or nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import unittest
from collections.abc import Coroutine
from pathlib import Path
from random import Random
from socket import socket as Socket
from typing import Any, NamedTuple, TypeVar

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import given, settings, strategies as st
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from addrservice.tornado.exchange import Exchange, Peer
from addrservice.tornado.plain import MAX_REMEMBERED_SIZE, read_plain
from addrservice.tornado.reader import Input, Limits, RequestReader, request_for
from tests.grammar import Grammar

Result = TypeVar('Result')

EXAMPLES = int(os.environ.get('ADDRSERVICE_PLAIN_EXAMPLES', '400'))
"""How many pipelines are tried; more take longer, and find more."""

property_test = settings(derandomize=EXAMPLES < 1000, deadline=None, database=None,
                         max_examples=EXAMPLES)


def limits(max_header_size: int = 16_384, max_body_size: int = 65_536) -> Limits:
    return Limits(max_connections=1, max_body_size=max_body_size, max_header_size=max_header_size,
                  idle_timeout=60, header_timeout=60, body_timeout=60, write_timeout=60)


USUAL = limits()
TIGHT = limits(1000, 200)

# --- Requests: name -> bytes ---

CURL = b'Host: 127.0.0.1:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n'
JSON = b'{"full_name": "Asha Example"}'

ORDINARY = {
    'curl': b'GET /addresses HTTP/1.1\r\n' + CURL + b'\r\n',
    'curl -d': b'POST /addresses HTTP/1.1\r\n' + CURL + b'Content-Length: 29\r\n'
               b'Content-Type: application/x-www-form-urlencoded\r\n\r\n' + JSON,
    'curl -T': b'PUT /addresses/1 HTTP/1.1\r\n' + CURL + b'Content-Length: 29\r\n\r\n' + JSON,
    'curl -I': b'HEAD /addresses HTTP/1.1\r\n' + CURL + b'\r\n',
    'curl -X DELETE': b'DELETE /addresses/1 HTTP/1.1\r\n' + CURL + b'If-Match: "x"\r\n\r\n',
    'wrk': b'GET /healthz HTTP/1.1\r\nHost: localhost:8080\r\n\r\n',
    'requests': b'POST /addresses HTTP/1.1\r\nHost: localhost:8080\r\n'
                b'User-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\n'
                b'Accept: */*\r\nConnection: keep-alive\r\nContent-Length: 29\r\n'
                b'Content-Type: application/json\r\n\r\n' + JSON,
    'requests without a body': b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n',
    'http.client': b'GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: identity\r\n\r\n',
    'Firefox': b'GET /addresses?after=a&limit=5 HTTP/1.1\r\nHost: x.example\r\n'
               b'User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0'
               b'\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n'
               b'Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n'
               b'DNT: 1\r\nConnection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\n'
               b'Sec-Fetch-Dest: document\r\nPriority: u=0, i\r\n\r\n',
    'Chromium': b'GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n'
                b'sec-ch-ua: "Chromium";v="131", "Not_A Brand";v="24"\r\nCookie: a=b; c=d\r\n'
                b'Cache-Control: max-age=0\r\nIf-None-Match: W/"abc"\r\n\r\n',
    'ab -k': b'GET / HTTP/1.1\r\nConnection: Keep-Alive\r\nHost: x\r\nAccept: */*\r\n\r\n',
    'haproxy': b'GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.1\r\n'
               b'x-forwarded-proto: http\r\n\r\n',
    'OPTIONS of a browser': b'OPTIONS /addresses HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n'
                            b'Access-Control-Request-Method: PUT\r\n\r\n',
    'the longest target': b'GET /%b HTTP/1.1\r\nHost: x\r\n\r\n' % (b'a' * 8191),
    'the most fields': b'GET / HTTP/1.1\r\nHost: x\r\n%b\r\n' % (b'X: y\r\n' * 99),
    'the largest header': b'GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n' % (b'a' * 16_352),
    'the largest body': b'PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n'
                        + b'a' * 65_536,
    'empty values': b'GET / HTTP/1.1\r\nHost: x\r\nX:\r\nY: \r\nZ: a\r\n\r\n',
    'spaces around values': b'GET / HTTP/1.1\r\nHost:x\r\nX: \t a\tb \t\r\n\r\n',
    'bytes beyond ASCII in a value': b'GET / HTTP/1.1\r\nHost: x\r\nX: \xe9\xff\r\n\r\n',
    'a body that looks like a request': b'PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 36\r\n\r\n'
                                        b'GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n!',
}
"""What is read the short way."""

CLOSING = {
    'nginx as a proxy': b'GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n'
                        b'X-Real-IP: 192.0.2.1\r\nConnection: close\r\n\r\n',
    'ab': b'PUT / HTTP/1.1\r\nHost: x\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}',
}
"""So is this, behind which nothing is read."""

FULL = b'PUT / HTTP/1.1\r\nHost: x\r\n%b\r\nhello'

UNUSUAL = {
    'HTTP/1.0': b'GET / HTTP/1.0\r\nHost: x\r\n\r\n',
    'an empty line first': b'\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n',
    'absolute form': b'GET http://h/ HTTP/1.1\r\nHost: x\r\n\r\n',
    'asterisk': b'OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n',
    'a method of nobody': b'FOO / HTTP/1.1\r\nHost: x\r\n\r\n',
    'chunked': b'PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    '100-continue': FULL % b'Expect: 100-continue\r\nContent-Length: 5\r\n',
    '100-continue without a body': b'GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n',
    'an upgrade': b'GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n',
    'an upgrade that nobody asks for': b'GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n',
    'CONNECT': b'CONNECT /x HTTP/1.1\r\nHost: x\r\n\r\n',
}
"""What is not, but is read."""

REFUSED = {
    'two spaces': b'GET  / HTTP/1.1\r\nHost: x\r\n\r\n',
    'two spaces behind the target': b'GET /  HTTP/1.1\r\nHost: x\r\n\r\n',
    'a space behind the version': b'GET / HTTP/1.1 \r\nHost: x\r\n\r\n',
    'HTTP/2.0': b'GET / HTTP/2.0\r\nHost: x\r\n\r\n',
    'HTTP/0.9': b'GET / HTTP/0.9\r\nHost: x\r\n\r\n',
    'another protocol': b'OPTIONS / RTSP/1.0\r\nHost: x\r\n\r\n',
    'LF behind the request line': b'GET / HTTP/1.1\nHost: x\r\n\r\n',
    'LF behind a field': b'GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n',
    'LF LF before the end': b'GET / HTTP/1.1\r\nHost: x\n\nGET / HTTP/1.1\r\n\r\n',
    'CR CR LF': b'GET / HTTP/1.1\r\nHost: x\r\r\n\r\n',
    'a fold': b'GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n',
    'a space before the colon': FULL % b'Content-Length : 5\r\n',
    'NUL': b'GET / HTTP/1.1\r\nHost: x\r\nX: a\0\r\n\r\n',
    'DEL': b'GET / HTTP/1.1\r\nHost: x\r\nX: a\x7f\r\n\r\n',
    'a name beyond ASCII': b'GET / HTTP/1.1\r\nHost: x\r\n\xe9: a\r\n\r\n',
    'no Host': b'GET / HTTP/1.1\r\nX: x\r\n\r\n',
    'two Hosts': b'GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n',
    'a Host that is none': b'GET / HTTP/1.1\r\nHost: a b\r\n\r\n',
    'a fragment': b'GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n',
    'a target beyond ASCII': b'GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n',
    'a target one byte too long': b'GET /%b HTTP/1.1\r\nHost: x\r\n\r\n' % (b'a' * 8192),
    'one field too many': b'GET / HTTP/1.1\r\nHost: x\r\n%b\r\n' % (b'X: y\r\n' * 100),
    'one byte too many in the header': b'GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n' % (
        b'a' * 16_353),
    'one byte too many in the body': b'PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n'
                                     + b'a' * 65_537,
    'two lengths': FULL % b'Content-Length: 5\r\nContent-Length: 5\r\n',
    'a list of lengths': FULL % b'Content-Length: 5, 5\r\n',
    'no length': FULL % b'Content-Length:\r\n',
    'a signed length': FULL % b'Content-Length: +5\r\n',
    'a length of more than 18 digits': FULL % b'Content-Length: 0000000000000000005\r\n',
    'a length that does not fit': FULL % b'Content-Length: 18446744073709551621\r\n',
    'a length and a coding': FULL % b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n',
    'an expectation of nobody': FULL % b'Expect: x\r\nContent-Length: 5\r\n',
    'a body cut short': FULL % b'Content-Length: 6\r\n',
    'a header cut short': b'GET / HTTP/1.1\r\nHost: x\r\n',
    'nothing': b'',
}
"""What is neither."""


class Understood(NamedTuple):
    """All that a handler gets to know of a request, and how far it went."""

    line: tuple[str | None, str | None, str]
    headers: list[tuple[str, str]]
    body: bytes
    closes: bool
    size: int


class SilentStream:
    """A connection of which nobody is at the other end."""

    socket: Socket

    def write(self, data: bytes, /) -> asyncio.Future[None]:
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.set_result(None)
        return sent

    def closed(self) -> bool:
        return False

    def close(self) -> None:
        pass


class EndingInput(Input):
    """What has come, and that no more will."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.buffer += data

    async def receive(self) -> None:
        raise StreamClosedError


def exchange() -> Exchange:
    return Exchange(SilentStream(), Peer('192.0.2.1'), 60, lambda: False, lambda _: None)


def read_short(data: bytes, limits: Limits) -> Understood | None:
    """What the short way makes of the start of these bytes."""
    plain = read_plain(data, limits)
    if plain is None:
        return None
    way_out = exchange()
    try:
        request = request_for(way_out, plain.start_line, plain.headers, plain.closes,
                              limits.trusted_proxies)
    except HTTPError:
        return None
    request.body = plain.body
    return understood(request, way_out, plain.size)


async def read_carefully(data: bytes, limits: Limits) -> Understood | None:
    """What the careful way makes of them; None: they are refused, or not whole."""
    source, way_out = EndingInput(data), exchange()
    try:
        request = await RequestReader(source, limits, way_out).read()
    except HTTPError:
        return None
    return understood(request, way_out, len(data) - len(source.buffer))


def understood(request: HTTPServerRequest, way_out: Exchange, size: int) -> Understood:
    return Understood((request.method, request.uri, request.version),
                      list(request.headers.get_all()), request.body, way_out.close_after, size)


class PlainTest(unittest.TestCase):
    """Both ways, on the same bytes."""

    runner: asyncio.Runner

    @classmethod
    def setUpClass(cls) -> None:
        cls.runner = cls.enterClassContext(asyncio.Runner())

    def test_ordinary_requests_are_read_the_short_way(self) -> None:
        for name, data in {**ORDINARY, **CLOSING}.items():
            with self.subTest(name):
                short = self.assert_same(data + b'GET /next HTTP/1.1\r\n')
                assert short is not None
                self.assertEqual(short.size, len(data))

    def test_unusual_requests_are_left_to_the_careful_way(self) -> None:
        for name, data in UNUSUAL.items():
            with self.subTest(name):
                self.assertIsNone(read_plain(data, USUAL))
                self.assertIsNotNone(self.run_soon(read_carefully(data, USUAL)))

    def test_what_is_refused_is_not_read_the_short_way_either(self) -> None:
        for name, data in REFUSED.items():
            with self.subTest(name):
                self.assertIsNone(read_short(data, USUAL))
                self.assertIsNone(self.run_soon(read_carefully(data, USUAL)))
                if name != 'a Host that is none':  # which is seen when the request is made
                    self.assertIsNone(read_plain(data, USUAL))

    def test_a_request_that_has_not_come_whole_is_left_to_the_careful_way(self) -> None:
        data = ORDINARY['curl -d']
        for size in range(len(data)):
            self.assertIsNone(read_plain(data[:size], USUAL), size)
            if size % 20 == 0:
                self.assertIsNotNone(self.assert_same(data))

    def test_whatever_came_before_leaves_no_trace(self) -> None:
        for name, before in {**ORDINARY, **UNUSUAL, **REFUSED}.items():
            for data in (ORDINARY['curl'], ORDINARY['requests']):
                with self.subTest(name):
                    read_short(before, USUAL)
                    self.assertIsNotNone(self.assert_same(data))

    def test_what_is_done_to_one_request_does_not_change_the_next(self) -> None:
        data = ORDINARY['http.client']
        first = read_plain(data, USUAL)
        assert first is not None
        first.headers.add('Host', 'y')
        first.headers['Accept-Encoding'] = 'gzip'
        del first.headers['Host']
        first.headers['X'] = 'z'
        self.assertIsNotNone(self.assert_same(data))

    def test_fields_that_are_too_long_to_be_remembered_are_read_as_well(self) -> None:
        for size in (MAX_REMEMBERED_SIZE - 17, MAX_REMEMBERED_SIZE - 16):
            data = b'GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n' % (b'a' * size)
            for _ in range(2):
                self.assertIsNotNone(self.assert_same(data))

    def test_requests_are_read_one_after_the_other(self) -> None:
        rest = b''.join(ORDINARY.values())
        for name, data in ORDINARY.items():
            with self.subTest(name):
                short = self.assert_same(rest)
                assert short is not None
                self.assertEqual(short.size, len(data))
                rest = rest[short.size:]
        self.assertEqual(rest, b'')

    @property_test
    @given(st.integers(min_value=0), st.sampled_from([USUAL, TIGHT]),
           st.sampled_from([0.003, 0.02, 0.08]))
    def test_any_requests_are_understood_alike_or_not_at_all(
            self, seed: int, limits: Limits, oddity: float) -> None:
        grammar = Grammar(Random(seed), oddity)
        for _ in range(4):
            rest = grammar.pipeline(3)
            while short := self.assert_same(rest, limits):
                rest = rest[short.size:]

    @property_test
    @given(st.binary(max_size=100), st.sampled_from(list(ORDINARY.values())), st.data())
    def test_any_bytes_within_a_request_are_understood_alike_or_not_at_all(
            self, noise: bytes, data: bytes, choice: st.DataObject) -> None:
        start = choice.draw(st.integers(0, min(len(data), 300)))
        end = start + choice.draw(st.integers(0, 5))
        self.assert_same(data[:start] + noise + data[end:])
        self.assert_same(data)

    def assert_same(self, data: bytes, limits: Limits = USUAL) -> Understood | None:
        """Both ways understand the same, or the short one nothing.

        :return: what it does.
        """
        short = read_short(data, limits)
        if short is not None:
            self.assertEqual(short, self.run_soon(read_carefully(data, limits)), data)
        return short

    def run_soon(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(coroutine)


if __name__ == '__main__':
    unittest.main()

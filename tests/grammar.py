"""Requests as clients send them, and as nobody should: what servers are compared with."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from random import Random

TARGETS = (b'/echo', b'/echo?a=b&c=%20d', b'/stream', b'/stream?x', b'/pieces', b'/slow',
           b'/no-content', b'/not-modified', b'/none')
"""What the application of `transport_test.py` serves, and one that it does not."""

_METHODS = (b'GET', b'POST', b'PUT', b'HEAD', b'DELETE', b'OPTIONS')
_ODD_METHODS = (b'get', b'FOO', b'G(T', b'CONNECT', b'PATCH', b'QUERY', b'PRI', b'SOURCE',
                b'M-SEARCH', b'GE', b'GETT', b'', b'\r\nGET', b'\r\n\r\nGET', b'\nGET', b' GET',
                b"F!#$%&'*+-.^_`|~0", b'POST\t', b'TRACE', b'\x16\x03\x01')
_ODD_TARGETS = (b'http://h/echo', b'http://h:81?q', b'HTTP://H/stream', b'http:///echo',
                b'https://u@h/echo', b'ftp://h/echo', b'*', b'echo', b'//echo', b'/a b', b'/a#b',
                b'/\xc3\xa9', b'/\x7f', b'/a\tb', b'/a\0', b'/%00%0d%0a', b'/"<>\\^`{|}', b'x:80',
                b'', b'/a\rb', b'/echo?' + b'&a' * 1500, b'/' + b'a' * 700, b'/../echo')
_VERSIONS = (b'HTTP/1.0', b'HTTP/1.0', b'HTTP/2.0', b'HTTP/1.2', b'HTTP/0.9', b'http/1.1', b'',
             b'HTTP/1.10', b'HTTP/11', b'HTTP/1.1 ', b'RTSP/1.0', b'ICE/1.0', b'HTTP/ 1.1',
             b'HTTP/1.\xb9')
_LINE_ENDS = (b'\n', b'\r', b'\r\r\n', b'\n\r', b'\0\r\n', b' \r\n', b'\t\r\n', b'\r\n\n',
              b'\r\n\r\n', b'\r\n \r\n', b'')
_GAPS = (b'  ', b'\t', b'', b' \t', b'\x0b', b'\r\n ', b'\xa0')
_HOSTS = (b'', b'Host: x\r\nHost: x', b'host:x', b'Host : x', b'Host: a b', b'Host:', b'Host: a,b',
          b'Host: u@h', b'Host: [::1]:80', b'HOST:\tx:80 ', b'Host: \xff', b'Host: x\r\nhOsT: y',
          b'Host: x\r\n\ty', b'Hosts: x', b'Host: a<>')
_FIELDS = (b'User-Agent: curl/8.5.0', b'Accept: */*', b'Accept-Encoding: gzip, deflate, br',
           b'Connection: keep-alive', b'Cookie: a=b; c="d"', b'X-Empty:', b'X-Space: \t a b \t',
           b'Content-Type: application/json', b'Content-Type: application/x-www-form-urlencoded',
           b'If-None-Match: "x", W/"y"', b'X-Latin: \xe9\xff', b'X-Two: 1\r\nx-two: 2',
           b'Connection: close', b'X-Forwarded-For: 192.0.2.1', b'DNT:1')
_ODD_FIELDS = (b'Connection: x, close', b'Connection: Close', b'Connection: upgrade',
               b'Connection: close\r\nConnection: keep-alive', b'Connection:keep-alive,close ',
               b'Proxy-Connection: close', b'Connection: upgrade\r\nUpgrade: websocket',
               b'Upgrade: h2c', b'Upgrade:', b'Expect: 100-continue', b'Expect: 100-Continue',
               b'Expect: 200-ok', b'Expect:', b'X : a', b'X\t: a', b': a', b'X', b' X: a', b'\tX:',
               b'X: a\r\n b', b'X: a\r\n\tb', b'X: a\0b', b'X: a\rb', b'X: a\nb', b'X: a\x0bb',
               b'X: a\x7f', b'X: \x1b', b'\xc3\xa4: a', b'A B: c', b'X\0: a', b'X:\x0ba', b'X: a\r',
               b"!#$%&'*+-.^_`|~0: a", b'(X): a', b'X: "a\r\nb"', b'X: ' + b'a' * 1500, b'X:: a',
               b'Content-Encoding: br', b'Content-Encoding: gzip', b'Content-Encoding:',
               b'Keep-Alive: timeout=5', b'Trailer: X', b'TE: trailers', b'\r\nX: a', b' ')
_LENGTHS = (b'0', b'1', b'%d, %d', b'%d,%d', b'+%d', b'-%d', b'0x%d', b'0%d', b'000000000%d',
            b'%030d', b'%d ', b'\t%d\t', b'%d 0', b'%d_0', b'%d.0', b'"%d"', b'', b'%d;', b'%dx',
            b'99999', b'4294967296', b'18446744073709551616', b'18446744073709551621', b'9' * 30,
            b'\xb2', b'%d\x0b', b'%d\r\nContent-Length: %d', b'%d\r\ncontent-length: 7', b'%d\0')
_CODINGS = (b'Chunked', b'CHUNKED ', b'\tchunked', b'xchunked', b'gzip, chunked', b'chunked, gzip',
            b'chunked, chunked', b'chunked\r\nTransfer-Encoding: chunked', b'identity', b'',
            b'\x0bchunked', b'chunked\x0b', b'"chunked"', b'chunked;q=1', b'chunked,', b',chunked',
            b'chunked\r\nContent-Length: 3', b'\r\n chunked', b'chunked\0', b'gzip')
_CHUNK_LINES = (b'%x ', b' %x', b'0x%x', b'+%x', b'-%x', b'%x;', b'%x;a=b', b'%x;a="b;\xff"',
                b'%x ;a', b'000%x', b'%x\t', b'%x,', b'%xg', b'', b'%x;a\rb', b'%x;a\nb', b'%x\x0b',
                b'%020x', b'FFFFFFFF', b'FFFFFFFFFFFFFFFF', b'1%x', b'"%x"', b'%x;' + b'a' * 80)
_TRAILERS = (b'X: y\r\n', b'Content-Length: 5\r\n', b'X: y\n', b'X\r\n', b' X: y\r\n',
             b'X: y\r\n' * 120, b'\0\r\n')
_BODIES = (b'{}', b'hello', b'a=b&c=d', b'{"full_name": "Asha Example"}', b'a=%ff&' * 50,
           b'GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n', b'0\r\n\r\n', b'\r\n\r\n', b'x' * 1000,
           b'\0\xff' * 60, b'y' * 2999)
_BYTES = (b'\0', b'\r', b'\n', b'\r\n', b'\t', b' ', b':', b';', b',', b'\x0b', b'\x7f', b'\x80',
          b'\xff', b'0', b'a', b'/', b'"')


class Grammar:
    """Makes requests, of which most are as they should be in all but one or two places."""

    def __init__(self, random: Random, oddity: float = 0.03) -> None:
        """
        :param random: decides.
        :param oddity: how probable it is in each place that something odd stands there.
        """
        self._random = random
        self._oddity = oddity

    def pipeline(self, most: int) -> bytes:
        """Some requests, the one behind the other; the last one may be cut short."""
        count = self._random.randint(1, most)
        data = b''.join(self.request() for _ in range(count))
        return data[:self._random.randrange(len(data) + 1)] if self._is_odd() else data

    def request(self) -> bytes:
        """One request, with whatever body its fields announce, or another."""
        framing, body = self._framing()
        fields = [self._or_odd(b'Host: x', _HOSTS), *self._fields(), *framing]
        if self._is_odd():
            self._random.shuffle(fields)
        line = (self._or_odd(self._one_of(_METHODS), _ODD_METHODS) + self._gap()
                + self._or_odd(self._one_of(TARGETS), _ODD_TARGETS) + self._gap()
                + self._or_odd(b'HTTP/1.1', _VERSIONS))
        lines = [line, *(field for field in fields if field), b'']
        return self._damaged(b''.join(line + self._or_odd(b'\r\n', _LINE_ENDS, 0.2)
                                      for line in lines) + body)

    def _fields(self) -> list[bytes]:
        fields = [self._or_odd(self._one_of(_FIELDS), _ODD_FIELDS)
                  for _ in range(self._random.randint(0, 4))]
        if self._is_odd():
            fields += [b'X-Many: %d' % number for number in range(self._random.randint(90, 110))]
        return fields

    def _framing(self) -> tuple[list[bytes], bytes]:
        """The fields that say how long the body is, and the body."""
        kind = self._random.randrange(8)
        body = self._one_of(_BODIES) if kind < 5 else b''
        if body and self._is_odd(3):
            zipped = gzip.compress(body, mtime=0)
            body = self._or_odd(zipped, (zipped[:-1], zipped + b'x', zipped + zipped, body), 5)
            coding = [self._one_of((b'Content-Encoding: gzip', b'Content-Encoding: X-Gzip'))]
        else:
            coding = []
        if kind in (0, 1) or (kind == 7 and self._is_odd()):
            return coding + [b'Transfer-Encoding: ' + self._or_odd(b'chunked', _CODINGS)], (
                self._chunked(body))
        if kind == 7 and not self._is_odd(5):
            return [], b''
        length = self._or_odd(b'%d', _LENGTHS)
        numbers = (len(body),) * length.count(b'%')
        return coding + [b'Content-Length: ' + length % numbers], body

    def _chunked(self, body: bytes) -> bytes:
        chunks = []
        while body:
            size = self._random.randint(1, len(body))
            chunk, body = body[:size], body[size:]
            chunks.append(self._chunk_line(size) + chunk + self._or_odd(b'\r\n', _LINE_ENDS, 0.3))
        trailers = self._one_of(_TRAILERS) if self._is_odd() else b''
        return b''.join(chunks) + self._chunk_line(0) + trailers + self._or_odd(
            b'\r\n', _LINE_ENDS, 0.3)

    def _chunk_line(self, size: int) -> bytes:
        line = self._or_odd(b'%x', _CHUNK_LINES, 0.5)
        return (line % size if b'%' in line else line) + self._or_odd(b'\r\n', _LINE_ENDS, 0.3)

    def _gap(self) -> bytes:
        return self._or_odd(b' ', _GAPS, 0.5)

    def _damaged(self, data: bytes) -> bytes:
        """The same, but perhaps with a byte lost, repeated, changed or put in."""
        if not data or not self._is_odd():
            return data
        place = self._random.randrange(len(data))
        before, at, behind = data[:place], data[place:place + 1], data[place + 1:]
        return before + self._one_of((b'', at + at, self._one_of(_BYTES),
                                      at + self._one_of(_BYTES), at.swapcase())) + behind

    def _is_odd(self, factor: float = 1) -> bool:
        return self._random.random() < self._oddity * factor

    def _or_odd(self, usual: bytes, odd: Sequence[bytes], factor: float = 1) -> bytes:
        return self._one_of(odd) if self._is_odd(factor) else usual

    def _one_of(self, choices: Sequence[bytes]) -> bytes:
        return self._random.choice(choices)

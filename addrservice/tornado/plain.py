"""Requests that leave nothing to doubt, read the short way.

Nearly every request is of this kind: it has come whole, names its length if it has a body, and
asks for nothing unusual. What is not, or might not be, is left for `reader.py`, which takes the
same bytes and decides with care; so nothing is refused here. `plain_test.py` holds that both
understand the same of all that is understood here.

The header fields are parsed by llhttp, and those of the last requests are remembered: of what a
client asks one thing after the other, little more than the target changes.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import httptools
from tornado import httputil

from addrservice.tornado.framing import (
    MAX_HEADER_FIELDS, MAX_LENGTH_DIGITS, MAX_TARGET_LENGTH, wants_close)
from addrservice.tornado.messages import Headers
from addrservice.tornado.reader import Limits

END_OF_HEAD = b'\r\n\r\n'

MAX_REMEMBERED_SIZE = 1024
"""Bytes of header fields that are remembered; more are parsed each time."""

_REQUEST_LINE = re.compile(rb'(GET|HEAD|POST|PUT|DELETE|OPTIONS) (/[!-"$-~]{0,%d}) HTTP/1\.1\r\n'
                           % (MAX_TARGET_LENGTH - 1))
_STRAY_LINE_BREAK = re.compile(rb'(?<!\r)\n|\r(?!\n)')
_UNUSUAL = frozenset(('Content-Encoding', 'Expect', 'Transfer-Encoding', 'Upgrade'))
"""Fields by which a request is read in another way."""


class PlainRequest(NamedTuple):
    """A request as it stands in the input."""

    start_line: httputil.RequestStartLine
    headers: Headers
    body: bytes
    closes: bool
    """Whether the connection ends with it."""

    size: int
    """Bytes that it takes in the input."""


# The constructors that named tuples have are functions in Python.
_make_request = functools.partial(tuple.__new__, PlainRequest)
_make_line = functools.partial(tuple.__new__, httputil.RequestStartLine)


class Fields(NamedTuple):
    """Header fields that are plain."""

    headers: Headers
    """Not to be changed: they are of all requests that have sent the same."""

    length: int
    """Bytes of the body."""

    closes: bool


def read_plain(data: bytes, limits: Limits) -> PlainRequest | None:
    """The request that the data starts with; None if it is not plain, or not whole.

    :param data: what a client has sent.
    :param limits: larger requests are none that are read here.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        return None
    start = line.end()
    head_end = data.find(END_OF_HEAD, start - 2) + len(END_OF_HEAD)
    if not start < head_end <= limits.max_header_size:
        return None
    lines = data[start:head_end]
    fields = _remembered(lines) if len(lines) <= MAX_REMEMBERED_SIZE else _parse(lines)
    if fields is None or fields.length > min(limits.max_body_size, len(data) - head_end):
        return None
    method, target = line.groups()
    end = head_end + fields.length
    return _make_request((
        _make_line((method.decode(), target.decode(), 'HTTP/1.1')),
        fields.headers.copy(), data[head_end:end], fields.closes, end))


@functools.lru_cache(maxsize=512)
def _remembered(data: bytes) -> Fields | None:
    return _parse(data)


def _parse(data: bytes) -> Fields | None:
    """
    :param data: all header fields, and the empty line behind them.
    """
    if _STRAY_LINE_BREAK.search(data):
        return None
    found: list[tuple[bytes, bytes]] = []
    try:
        httptools.HttpRequestParser(_Listener(found)).feed_data(b'GET / HTTP/1.1\r\n' + data)
        return _plain(found)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade, httputil.HTTPInputError):
        return None


class _Listener:
    """Is told by the parser what it finds."""

    def __init__(self, found: list[tuple[bytes, bytes]]) -> None:
        self._found = found

    def on_header(self, name: bytes, value: bytes) -> None:
        self._found.append((name, value))


def _plain(found: list[tuple[bytes, bytes]]) -> Fields | None:
    if len(found) > MAX_HEADER_FIELDS:
        return None
    headers = Headers()
    for field, content in found:
        name, value = field.decode('latin-1'), content.decode('latin-1').rstrip(' \t')
        if name in headers:
            headers.add(name, value)
        else:  # the parser has checked them
            headers[name] = value
    digits = headers.get('Content-Length', '0')
    is_plain = (len(headers.get_list('Host')) == 1 and len(digits) <= MAX_LENGTH_DIGITS
                and digits.isdecimal() and _UNUSUAL.isdisjoint(headers))
    return Fields(headers, int(digits), wants_close('HTTP/1.1', headers)) if is_plain else None

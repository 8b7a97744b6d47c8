"""Requests that leave nothing to doubt, read the short way.

Nearly every request is of this kind: it has come whole, names its length if it has a body, and
asks for nothing unusual. What is not, or might not be, is left for `reader.py`, which takes the
same bytes and decides with care; so nothing is refused here. `transport_test.py` holds that both
understand the same of all that is understood here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import httptools
from tornado import httputil

from addrservice.tornado.framing import MAX_HEADER_FIELDS, MAX_LENGTH_DIGITS, MAX_TARGET_LENGTH
from addrservice.tornado.messages import Headers
from addrservice.tornado.reader import Limits

END_OF_HEAD = b'\r\n\r\n'

_UNUSUAL = frozenset(('Content-Encoding', 'Expect', 'Transfer-Encoding', 'Upgrade'))
"""Fields by which a request is read in another way."""

_TARGET = re.compile(rb'/[!-"$-~]{0,%d}' % (MAX_TARGET_LENGTH - 1))


class PlainRequest(NamedTuple):
    """A request as it stands in the input."""

    start_line: httputil.RequestStartLine
    headers: httputil.HTTPHeaders
    body: bytes
    size: int
    """Bytes that it takes in the input."""


class PlainReader:
    """Looks for a plain request at the start of what a client has sent.

    The parser is llhttp, which is kept from one request to the next; a request
    that it does not get to the end of takes it along.
    """

    def __init__(self, limits: Limits) -> None:
        """
        :param limits: larger requests are none that are read here.
        """
        self._limits = limits
        self._parser: httptools.HttpRequestParser | None = None

    def read(self, data: bytearray) -> PlainRequest | None:
        """The request that the data starts with; None if it is not plain, or not whole.

        :param data: what the client has sent; stays as it is.
        """
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if not len(END_OF_HEAD) <= end <= self._limits.max_header_size:
            return None
        parser, self._parser = self._parser or httptools.HttpRequestParser(self), None
        self._target, self._is_whole = b'', False
        self._fields: list[tuple[bytes, bytes]] = []
        try:
            return self._read(parser, data, end)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, httputil.HTTPInputError):
            return None

    def _read(self, parser: httptools.HttpRequestParser, data: bytearray, end: int
              ) -> PlainRequest | None:
        parser.feed_data(data[:end])
        headers = self._headers()
        if headers is None:
            return None
        digits = headers['Content-Length'] if 'Content-Length' in headers else '0'
        if len(digits) > MAX_LENGTH_DIGITS:
            return None
        length = int(digits)
        if length:
            parser.feed_data(data[end:end + length])
        line = b'%b %b HTTP/1.1\r\n' % (parser.get_method(), self._target)
        # Whole is none of which more bytes are to come, nor one whose head has not ended there.
        if (not self._is_whole or length > self._limits.max_body_size
                or not data.startswith(line)):
            return None
        if parser.should_keep_alive():
            self._parser = parser
        start_line = httputil.RequestStartLine(
            parser.get_method().decode(), self._target.decode(), 'HTTP/1.1')
        return PlainRequest(start_line, headers, bytes(data[end:end + length]), end + length)

    def _headers(self) -> httputil.HTTPHeaders | None:
        """The fields as Tornado has them, if they are plain."""
        if len(self._fields) > MAX_HEADER_FIELDS or not _TARGET.fullmatch(self._target):
            return None
        headers = Headers()
        for field, content in self._fields:
            name, value = field.decode('latin-1'), content.decode('latin-1').rstrip(' \t')
            if name in headers:
                headers.add(name, value)
            else:  # the parser has checked them
                headers[name] = value
        is_plain = len(headers.get_list('Host')) == 1 and _UNUSUAL.isdisjoint(headers)
        return headers if is_plain else None

    # What follows is called by the parser.

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_message_complete(self) -> None:
        self._is_whole = True

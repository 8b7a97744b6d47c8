"""What bytes may be a request: where it starts and ends, and what is refused.

Pure functions from bytes to values. A message that two programs could read in
two ways is refused, never repaired: that is how requests are smuggled past a
proxy. Lines and header fields are parsed by Tornado; what stands here is
what Tornado leaves open, or reads more generously than RFC 9112.
"""

from __future__ import annotations

import re
import zlib
from typing import cast

from tornado import httputil
from tornado.web import HTTPError

from addrservice.tornado.messages import Headers

MAX_HEADER_FIELDS = 100
MAX_TARGET_LENGTH = 8 * 1024
MAX_LENGTH_DIGITS = 18
END_OF_HEAD = re.compile(rb'\r?\n\r?\n')
END_OF_LINE = re.compile(rb'\n')

_STRAY_LINE_BREAK = re.compile(rb'(?<!\r)\n|\r(?!\n)|\0')
_FIRST_BYTE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z\r]")
_LIKELY_START = re.compile(rb'([!-~]{1,32}) ([!-~\x80-\xff]{1,8192})')
_LENGTH = re.compile(r'[0-9]{1,%d}' % MAX_LENGTH_DIGITS)
_CHUNK_LINE = re.compile(rb'([0-9A-Fa-f]{1,16})(?:;[\t -~\x80-\xff]*)?\r\n')
_ABSOLUTE_FORM = re.compile(r'https?://([^/?#]*)(.*)', re.IGNORECASE)


def can_start_request(byte: bytes) -> bool:
    """Whether a request line, or an empty line before it, may start so.

    A client that speaks TLS to a plain port is told at once this way.
    """
    return _FIRST_BYTE.fullmatch(byte) is not None


def parse_head(data: bytes, max_size: int) -> tuple[httputil.RequestStartLine, Headers]:
    """Reads request line and header fields (RFC 9112 sections 2 to 5).

    :param data: everything up to and including the empty line.
    :param max_size: bytes that are accepted.
    :raises HTTPError: 400, 414 or 431, with what is wrong.
    """
    if len(data) > max_size:
        raise HTTPError(431, 'The header is too large')
    if _STRAY_LINE_BREAK.search(data):
        raise HTTPError(400, 'A line in the header does not end in CRLF, or holds NUL')
    # One empty line before a request is ignored (RFC 9112 section 2.2).
    line, _, fields = data.removeprefix(b'\r\n').partition(b'\r\n')
    start_line = _parse_start_line(line.decode('latin-1'))
    headers = _parse_fields(fields.decode('latin-1'))
    return _in_origin_form(start_line, headers), headers


def likely_start_line(data: bytes) -> httputil.RequestStartLine:
    """Method and target of a request that cannot be read, as far as they can
    be guessed, for its line in the log; ``-`` where they cannot."""
    match = _LIKELY_START.match(data.lstrip(b'\r\n'))
    method, target = match.groups() if match else (b'-', b'-')
    return httputil.RequestStartLine(method.decode(), target.decode('latin-1'), 'HTTP/1.0')


def body_length(start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders
                ) -> int | None:
    """How long the body is (RFC 9112 section 6.3).

    :return: bytes, or None for a chunked body.
    :raises HTTPError: 400 where the length is not beyond doubt.
    """
    if 'Transfer-Encoding' in headers:
        _require_chunked(start_line, headers)
        return None
    lengths = headers.get_list('Content-Length')
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise HTTPError(400, 'Content-Length must be one number')
    return int(lengths[0])


def parse_chunk_size(line: bytes) -> int:
    """The size of the chunk that this line announces (RFC 9112 section 7.1).

    :raises HTTPError: 400, it announces none.
    """
    match = _CHUNK_LINE.fullmatch(line)
    if match is None:
        raise HTTPError(400, 'A chunk does not start with its size in hexadecimal digits')
    return int(match[1], 16)


def inflate(data: bytes, max_size: int) -> bytes:
    """Undoes gzip (RFC 1952) without ever holding more than `max_size` bytes.

    :raises HTTPError: 413 for more than that, 400 for what is not gzip.
    """
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, max_size + 1)
    except zlib.error as error:
        raise HTTPError(400, 'The body is not gzip, as its Content-Encoding says') from error
    if len(inflated) > max_size:
        raise HTTPError(413, f'The body is larger than {max_size} bytes when inflated')
    if not inflater.eof or inflater.unused_data:
        raise HTTPError(400, 'The body is cut off, or goes on behind its end as gzip')
    return inflated


def wants_close(version: str, headers: httputil.HTTPHeaders) -> bool:
    """Whether the connection ends with this request (RFC 9112 section 9.3)."""
    if 'Connection' not in headers:
        return version == 'HTTP/1.0'
    options = {option.strip().lower() for option in headers['Connection'].split(',')}
    return 'close' in options or (version == 'HTTP/1.0' and 'keep-alive' not in options)


def _parse_start_line(line: str) -> httputil.RequestStartLine:
    try:
        start_line = httputil.parse_request_start_line(line)
    except httputil.HTTPInputError as error:
        raise HTTPError(400, 'The request line cannot be read') from error
    if len(start_line.path) > MAX_TARGET_LENGTH:
        raise HTTPError(414, f'The target is longer than {MAX_TARGET_LENGTH} bytes')
    if not start_line.path.isascii() or '#' in start_line.path:
        raise HTTPError(400, 'The target holds characters that must be percent-encoded')
    return start_line


def _parse_fields(text: str) -> Headers:
    if text.count('\r\n') > MAX_HEADER_FIELDS + 1:
        raise HTTPError(431, f'There are more than {MAX_HEADER_FIELDS} header fields')
    try:
        return cast(Headers, Headers.parse(text))
    except httputil.HTTPInputError as error:
        raise HTTPError(400, 'A header field cannot be read') from error


def _in_origin_form(start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders
                    ) -> httputil.RequestStartLine:
    """``GET http://host/path`` becomes ``GET /path`` with that host (RFC 9112
    section 3.2.2); of other targets only ``/path``, and ``OPTIONS *``, are served."""
    hosts = len(headers.get_list('Host'))
    if hosts > 1 or (hosts == 0 and start_line.version != 'HTTP/1.0'):
        raise HTTPError(400, 'There must be one Host')
    absolute = _ABSOLUTE_FORM.fullmatch(start_line.path)
    if absolute and absolute[1]:
        headers['Host'] = absolute[1]
        rest = absolute[2]
        return start_line._replace(path=rest if rest.startswith('/') else f'/{rest}')
    if start_line.path.startswith('/') or (start_line.method, start_line.path) == ('OPTIONS', '*'):
        return start_line
    raise HTTPError(400, 'The target is neither a path nor an http URL')


def _require_chunked(start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders
                     ) -> None:
    if 'Content-Length' in headers:
        raise HTTPError(400, 'Content-Length and Transfer-Encoding exclude each other')
    if start_line.version == 'HTTP/1.0' or headers['Transfer-Encoding'].lower() != 'chunked':
        raise HTTPError(400, 'The only Transfer-Encoding is chunked, in HTTP/1.1')

"""Whatever is sent: one answer, one line in the log, nothing done that was not asked for."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import sys
import tempfile
import threading
import time
import unittest
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import (
    ROOT, Answer, ServerProcess, on_each_transport, parse_logfmt, read_to_end, split_answers)

Document = dict[str, Any]

ENTRY: Document = {
    'full_name': 'Asha Example',
    'addresses': [{'kind': 'home', 'street_name': 'Example Road', 'pincode': '00144',
                   'country': 'India'}],
    'phone_numbers': [{'kind': 'work', 'country_code': 91, 'local_number': '0123'}],
    'fax_numbers': [{'kind': 'work', 'country_code': 91, 'local_number': 123}],
    'emails': [{'kind': 'home', 'email': 'asha@example.org'}]}

KB = 1024
MAX_BODY, MAX_HEADER, MAX_TARGET, MAX_FIELDS = 64 * KB, 16 * KB, 8 * KB, 100
NO_ID = '0' * 32
"""An id that no entry has."""

SMUGGLED = b'GET /addresses/smuggled HTTP/1.1\r\nHost: x\r\n\r\n'

STANDARD_HEADERS = {
    'server', 'date', 'cache-control', 'x-content-type-options', 'x-request-id', 'content-type',
    'content-length', 'connection', 'vary', 'allow', 'retry-after'}

PHRASES = {phrase: status for status, phrases in {
    400: ('Bad Request', 'Invalid JSON body', 'JSON Schema validation failed'),
    404: ('Not Found', 'Unknown Endpoint'), 405: ('Method Not Allowed',),
    408: ('Request Timeout',), 412: ('Precondition Failed',),
    413: ('Content Too Large',), 414: ('URI Too Long',),
    415: ('Unsupported Media Type',), 417: ('Expectation Failed',),
    431: ('Request Header Fields Too Large',)}.items() for phrase in phrases}
"""Every reason phrase that an error may have -> its status."""

INSIDES = re.compile(
    r'traceback|exception|errno|codec|\bdecimal|unicode|expecting|python|tornado|jsonschema|zlib'
    r"|\.py\b|\bsql|select |b'|0x[0-9a-f]{4}|/tmp|<class|line \d+, in", re.IGNORECASE)
"""What the inside looks like. `uri` and `method` say what the client said, and are exempt."""


class Row(NamedTuple):
    """A request, and what must come of it."""

    name: str
    data: bytes
    status: int
    or_status: int = 0
    """Another one that will do."""

    closes: bool | None = False
    """Whether the server closes the connection; None: either."""

    uri: str | None = None
    """What the line in the log, and the answer, say was asked for."""

    reason: str = ''
    pointers: Sequence[str] = ()
    allow: str = ''


# --- Requests ---


def request(method: str, target: str | bytes, *fields: bytes, body: bytes = b'',
            version: str = 'HTTP/1.1') -> bytes:
    """A request with a Host and these fields, and with a Content-Length if it has a body."""
    path = target.encode() if isinstance(target, str) else target
    length = [b'Content-Length: %d' % len(body)] if body else []
    lines = [b'%b %b %b' % (method.encode(), path, version.encode()), b'Host: x', *fields, *length]
    return b'\r\n'.join([*lines, b'', body])


def post(body: bytes | object, *fields: bytes) -> bytes:
    """A POST of these bytes, or of this document."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request('POST', '/addresses', *fields, body=data)


def framed(*fields: bytes, body: bytes = b'', version: str = 'HTTP/1.1') -> bytes:
    """A POST whose framing is said by these fields alone."""
    return b'\r\n'.join([b'POST /addresses ' + version.encode(), b'Host: x', *fields, b'', body])


def chunked(body: bytes, *fields: bytes) -> bytes:
    """A POST with this chunked body, chunk lines included."""
    return framed(b'Transfer-Encoding: chunked', *fields, body=body)


def chunks_of(data: bytes, size: int) -> bytes:
    """A chunked body that holds the data."""
    parts = [data[start:start + size] for start in range(0, len(data), size)]
    return b''.join(b'%x\r\n%b\r\n' % (len(part), part) for part in [*parts, b''])


def padded(size: int) -> bytes:
    """A good document of that many bytes."""
    return json.dumps(ENTRY).encode().ljust(size)


def changed(path: str, value: object) -> Document:
    """The sample with another value at a JSON pointer."""
    document: Document = json.loads(json.dumps(ENTRY))
    *way, last = path.split('/')[1:]
    place: Any = document
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return document


def show(value: object) -> str:
    """A value in the name of a row."""
    text = ascii(value)
    return text if len(text) < 30 else f'{text[:30]}… ({len(text)})'


# --- The rows ---

FRAMING = [
    *(Row(f'{name} as Content-Length', framed(b'Content-Length: ' + value, body=b'{}'),
          400, closes=True, uri='/addresses')
      for name, value in {
          '+20': b'+20', '2_0': b'2_0', '-1': b'-1', '0x14': b'0x14', 'nothing': b'',
          '5 000 digits': b'9' * 5000, 'a list': b'2, 2', 'a fraction': b'2.0',
          'a superscript': b'2\xb2', 'a quoted number': b'"2"'}.items()),
    *(Row(f'{name} as Transfer-Encoding', framed(b'Transfer-Encoding:' + value, body=b'0\r\n\r\n'),
          400, closes=True, uri='/addresses')
      for name, value in {
          'xchunked': b' xchunked', 'gzip, chunked': b' gzip, chunked', 'nothing': b'',
          'chunked twice': b' chunked, chunked', 'VT chunked': b' \x0bchunked',
          'NUL chunked': b' \0chunked', 'chunked VT': b' chunked\x0b', 'identity': b' identity',
          'quoted chunked': b' "chunked"', 'a parameter': b' chunked;q=1',
          'a fold': b'\r\n chunked'}.items()),
    *(Row(f'chunk line {line!r}', chunked(line + b'hello\r\n0\r\n\r\n'),
          400, closes=True, uri='/addresses')
      for line in (b'-1\r\n', b'+14\r\n', b'ZZ\r\n', b'\r\n', b'0x5\r\n', b' 5\r\n', b'5 \r\n',
                   b'5\n', b'5;a\n', b'5;a\rb\r\n', b'5;\0\r\n', b'1_0\r\n', b'4\r\n', b'6\r\n',
                   b'F' * 17 + b'\r\n')),
    Row('Content-Length with Transfer-Encoding', framed(
        b'Content-Length: 5', b'Transfer-Encoding: chunked', body=b'0\r\n\r\n'), 400, closes=True),
    Row('Transfer-Encoding with Content-Length', framed(
        b'Transfer-Encoding: chunked', b'Content-Length: 5', body=b'0\r\n\r\n'), 400, closes=True),
    Row('the same without a body, on GET', request(
        'GET', '/addresses', b'Transfer-Encoding: chunked', b'Content-Length: 0'),
        400, closes=True),
    Row('two differing lengths', framed(
        b'Content-Length: 2', b'Content-Length: 3', body=b'{}'), 400, closes=True),
    Row('two lengths, the second in capitals', framed(
        b'Content-Length: 2', b'CONTENT-LENGTH: 3', body=b'{}'), 400, closes=True),
    Row('two Transfer-Encodings', framed(
        b'Transfer-Encoding: chunked', b'Transfer-Encoding: chunked', body=b'0\r\n\r\n'),
        400, closes=True),
    Row('two Transfer-Encodings that differ', framed(
        b'Transfer-Encoding: chunked', b'Transfer-Encoding: identity', body=b'0\r\n\r\n'),
        400, closes=True),
    Row('Transfer-Encoding in HTTP/1.0', framed(
        b'Transfer-Encoding: chunked', body=b'0\r\n\r\n', version='HTTP/1.0'), 400, closes=True),
    Row('space before the colon of a length', framed(b'Content-Length : 2', body=b'{}'),
        400, closes=True),
    Row('space before the colon of a coding', framed(
        b'Transfer-Encoding : chunked', body=b'0\r\n\r\n'), 400, closes=True),
    Row('chunk without CRLF', chunked(b'5\r\nhello0\r\n\r\n'), 400, closes=True),
    Row('chunk with two bytes in place of CRLF', chunked(b'5\r\nhelloXX0\r\n\r\n'),
        400, closes=True),
    Row('chunk with LF only', chunked(b'5\r\nhello\n0\r\n\r\n'), 400, closes=True),
    Row('chunk line that never ends', chunked(b'5;' + b'a' * 5000), 400, closes=True),
    Row('chunk line of 200 000 bytes', chunked(b'5;' + b'a' * 200000), 400, closes=True),
    Row('trailer with LF only', chunked(b'0\r\nX: y\n\r\n'), 400, closes=True),
    Row('trailer that never ends', chunked(b'0\r\nX: ' + b'a' * 200000), 400, closes=True),
    Row('2 000 trailers', chunked(b'0\r\n' + b'X: y\r\n' * 2000 + b'\r\n'), 400, closes=True),
    Row('chunk size FFFFFFFFFF and no data', chunked(b'FFFFFFFFFF\r\n'), 413, 400, closes=True),
    Row('chunk size of 16 digits', chunked(b'F' * 16 + b'\r\n'), 413, 400, closes=True),
]

HEADS = [
    *(Row(name, b'GET /healthz HTTP/1.1\r\nHost: x\r\n' + fields + b'\r\n', 400, closes=True,
          uri='/healthz')
      for name, fields in {
          'NUL in a value': b'X: a\0b\r\n', 'bare CR in a value': b'X: a\rb\r\n',
          'VT in a value': b'X: a\x0bb\r\n', 'DEL in a value': b'X: a\x7f\r\n',
          'obs-fold': b'X: a\r\n b\r\n', 'obs-fold with a tab': b'X: a\r\n\tb\r\n',
          'field without colon': b'X\r\n', 'field without name': b': x\r\n',
          'space before the colon': b'X : a\r\n', 'space in the name': b'A B: c\r\n',
          'name beyond ASCII': b'\xc3\x84: a\r\n', 'bare LF': b'X: a\n', 'CR CR LF': b'X: a\r\r\n',
          'a line of one space': b' \r\n'}.items()),
    *(Row(f'request line {line!r}', line + b'\r\nHost: x\r\n\r\n', 400, closes=True, uri=uri)
      for line, uri in {
          b'GET /a\rb HTTP/1.1': None, b'GET /a\x0bb HTTP/1.1': None, b'GET /\0 HTTP/1.1': None,
          b'GET /a b HTTP/1.1': None, b'GET /a#b HTTP/1.1': '/a#b', b'GET /': None,
          b'GET  / HTTP/1.1': None, b'GET\t/ HTTP/1.1': None, b'GET / HTTP/2.0': '/',
          b'GET / HTTP/1.10': '/', b'GET / http/1.1': '/', b'G(T / HTTP/1.1': '/',
          b'GET healthz HTTP/1.1': 'healthz', b'GET * HTTP/1.1': '*',
          b'CONNECT x:80 HTTP/1.1': 'x:80', b'GET ftp://x/ HTTP/1.1': 'ftp://x/',
          b'GET / HTTP/1.1 ': '/', b' GET / HTTP/1.1': None, b'it is not http': None}.items()),
    Row('HTTP/2 preface', b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400, closes=True, uri='*'),
    Row('TLS ClientHello', bytes.fromhex('16030100c8010000c40303') + bytes(range(189)),
        400, closes=True),
    Row('SSH', b'\0\0\1\x14\x07\x14', 400, closes=True),
    Row('LF first', b'\nGET / HTTP/1.1\r\nHost: x\r\n\r\n', 400, closes=True),
    Row('LF only', b'GET / HTTP/1.1\nHost: x\n\n', 400, closes=True),
    Row('two empty lines first', b'\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n', 400, closes=True),
    Row('no Host', b'GET /healthz HTTP/1.1\r\n\r\n', 400, closes=True, uri='/healthz'),
    Row('two Hosts', request('GET', '/healthz', b'Host: x'), 400, closes=True),
    *(Row(f'Host {host!r}', b'GET /healthz HTTP/1.1\r\nHost: ' + host + b'\r\n\r\n',
          400, closes=True, uri='/healthz')
      for host in (b'a b<>', b'a,b', b'a/b', b'a@b', b'"', b'\xff')),
    Row('absolute target without authority', request('GET', 'http:///healthz'), 400, closes=True),
    Row('absolute target with userinfo', request('GET', 'http://a@b/healthz'), 400, closes=True),
]

SIZES = [
    *(Row(f'header of {size} bytes', request('GET', '/healthz', b'X: ' + b'a' * size),
          431, 400, closes=True) for size in (MAX_HEADER, 70_000, 100_000, 1_000_000)),
    *(Row(f'{count} header fields', request('GET', '/healthz', *[b'X: y'] * (count - 1)),
          431, 400, closes=True) for count in (MAX_FIELDS + 1, 2_000, 20_000)),
    Row('target one byte over', request('GET', '/' + 'a' * MAX_TARGET), 414, closes=True),
    Row('target of 100 000 bytes', request('GET', '/' + 'a' * 100_000), 431, 414, closes=True),
    Row('query of 3 000 names', request('GET', '/healthz?' + '&a' * 3000), 400, 200, closes=None),
    Row('200 MB declared, nothing sent', framed(b'Content-Length: 209715200'), 413, closes=True),
    Row('200 MB declared, nothing sent, 100 expected', framed(
        b'Content-Length: 209715200', b'Expect: 100-continue'), 413, closes=True),
    Row('200 MB declared on an unknown path', request(
        'POST', '/x', b'Content-Length: 209715200'), 413, closes=True),
    Row('200 MB declared on GET', request('GET', '/', b'Content-Length: 209715200'),
        413, closes=True),
    Row('limit + 1 byte', post(padded(MAX_BODY + 1)), 413, closes=True),
    Row('limit + 1 byte in one chunk', chunked(chunks_of(padded(MAX_BODY + 1), MAX_BODY + 1)),
        413, closes=True),
    Row('limit + 1 byte in many chunks', chunked(chunks_of(padded(MAX_BODY + 1), 1000)),
        413, closes=True),
    Row('gzip of limit + 1 byte', post(gzip.compress(padded(MAX_BODY + 1)),
                                       b'Content-Encoding: gzip'), 413, closes=None),
    Row('gzip of 10 MB in chunks', chunked(chunks_of(gzip.compress(bytes(10**7)), 999),
                                           b'Content-Encoding: gzip'), 413, closes=None),
    *(Row(f'{coding.decode()} {name}', post(data, b'Content-Encoding: ' + coding), 400, closes=None)
      for coding in (b'gzip', b'X-GZIP')
      for name, data in {
          'that is none': b'{"full_name": "Asha"}', 'cut': gzip.compress(padded(99))[:-1],
          'with more behind': gzip.compress(padded(99)) + b'x',
          'with a wrong checksum': gzip.compress(padded(99))[:-8] + bytes(8)}.items()),
    Row('gzip of no JSON', post(gzip.compress(b'it is not json'), b'Content-Encoding: gzip'),
        400, reason='Invalid JSON body'),
]

STRANGE_IDS = {
    'unknown': NO_ID, 'dots': '..', 'one dot': '.', 'escaped way up': '%2e%2e%2f',
    'escaped way to a file': '%2e%2e%2fcanary', 'escaped slash': 'a%2fb', 'NUL': 'a%00b',
    'temporary name': '.tmp-x', 'file name': '{id}.json', 'escaped file name': '{id}%2ejson',
    'trailing space': '{id}%20', 'trailing newline': '{id}%0a', '300 letters': 'a' * 300,
    'lock name': '.in-use', 'escaped backslash': '..%5ccanary', 'header': 'a%0d%0aSet-Cookie:x=1',
    'capitals beyond ASCII': '%c4%b0', 'not UTF-8': '%ff', 'overlong slash': '%c0%af',
    'parameter': '{id};v=1', 'asterisk': '*', 'cut escape': '%e', 'twice escaped': '%252e%252e'}

METHODS = {'GET': b'', 'PUT': json.dumps(ENTRY).encode(), 'DELETE': b''}

ROUTES = [
    *(Row(f'{method} /{book}, {name} as id', request(method, f'/{book}/{nickname}', body=body),
          404, 400 if name in ('not UTF-8', 'overlong slash') else 0, uri=f'/{book}/{nickname}')
      for method, body in METHODS.items() for book in ('addresses', 'addressbook')
      for name, nickname in STRANGE_IDS.items()),
    *(Row(f'{method} {target}', request(method, target, body=b'{}' if method == 'POST' else b''),
          404, uri=target, reason='Unknown Endpoint')
      for method in ('GET', 'POST')
      for target in ('/', '/x', '/x/', '/addresses/a/b', '/addresses//', '//addresses',
                     '/../addresses', '/addresses/../../etc/passwd', '/healthz/x', '/healthzz',
                     '/Addresses', '/address', '/%61ddresses', '/x?%0d%0aSet-Cookie:x=1',
                     '/%0d%0aSet-Cookie:x=1', '/readiness/../healthz', '/addresses;x',
                     '/.git/config', '/static/x', '/favicon.ico', '/"',
                     "/'", '/\\', '/{}', '/<b>')),
    Row('DELETE with a header in its query', request(
        'DELETE', f'/addresses/{NO_ID}?%0d%0aSet-Cookie:x=1'), 404, reason='Not Found'),
]

INJECTIONS = [Row(f'log: {path!r}', request('GET', path), status, closes=status == 400,
                  uri=path.decode('latin-1'))
              for path, status in (
                  (b'/\\"status=200', 404), (b'/"status=200', 404),
                  (b'/\\', 404), (b'/\\"', 404), (b'/\\\\"', 404), (b'/=', 404), (b'/%22', 404),
                  (b'/%0amessage="RESPONSE"', 404), (b'/\\nmessage=RESPONSE', 404),
                  (b'/{}${x}%s%(x)s%', 404), (b'/\xff\xfe', 400), (b'/\xc2\x85', 400),
                  (b'/\x85', 400), (b'/\xe2\x80\xa8status=200', 400), (b'/\xc3\xa9', 400),
                  (b'/\xed\xa0\x80', 400), (b'/\xc2\xadx', 400))]

BOOK_METHODS, ENTRY_METHODS = 'GET, HEAD, POST, OPTIONS', 'GET, HEAD, PUT, DELETE, OPTIONS'
PROBE_METHODS = 'GET, HEAD, OPTIONS'

UNKNOWN_METHODS = [
    Row(f'{method} {target} {body!r}', request(method, target, body=body), 405,
        allow=allow, uri=target)
    for allow, target, methods in (
        (BOOK_METHODS, '/addresses', ('PATCH', 'TRACE', 'FOO', 'PUT', 'DELETE', 'get', 'LINK')),
        (BOOK_METHODS, '/addressbook/', ('PATCH', 'TRACE', 'FOO')),
        (ENTRY_METHODS, '/addresses/{id}', ('PATCH', 'TRACE', 'FOO', 'POST', 'CONNECT')),
        (PROBE_METHODS, '/healthz', ('POST', 'PUT', 'DELETE', 'PATCH', 'FOO', "F'|`~")),
        (PROBE_METHODS, '/readiness', ('POST', '__class__', 'prepare', 'INITIALIZE')))
    for method in methods for body in (b'', b'{}')]

TYPES = [
    *(Row(f'{method} {target} {field.decode()}',
          request(method, target, field, body=METHODS['PUT']), 415)
      for method, target in (('POST', '/addresses'), ('PUT', '/addresses/{id}'),
                             ('PUT', f'/addresses/{NO_ID}'))
      for field in (
          b'Content-Type: text/plain', b'Content-Type: multipart/form-data; boundary=x',
          b'Content-Type: application/json; charset=latin-1', b'Content-Type: application/xml',
          b'Content-Type: application/json; charset="utf-16"', b'Content-Type: */*',
          b'Content-Encoding: br', b'Content-Encoding: deflate', b'Content-Encoding: gzip, gzip')),
    Row('two Content-Types', post(ENTRY, b'Content-Type: application/json',
                                  b'Content-Type: text/plain'), 415),
    Row('a body in a bad form', post(b'a=%ff&b', b'Content-Type: multipart/form-data'), 415),
]

BAD_JSON = {
    'nothing': b'', 'words': b'it is not json', 'byte 0xff': b'\xff', '0xff in text': b'"\xff"',
    'a form': b'full_name=Asha', 'BOM': b'\xef\xbb\xbf' + METHODS['PUT'],
    'UTF-16': json.dumps(ENTRY).encode('utf-16'), 'UTF-16LE': json.dumps(ENTRY).encode('utf-16-le'),
    'UTF-32': json.dumps(ENTRY).encode('utf-32'), 'trailing comma': b'{"full_name": "a",}',
    'text behind': b'{"full_name": "a"} x', 'a second value': b'{"full_name": "a"}{}',
    'a NUL behind': b'{"full_name": "a"}\0', '50 000 brackets': b'[' * 50_000,
    '25 000 levels': b'[' * 25_000 + b']' * 25_000,
    '10 000 levels in a member': b'{"full_name": %b%b}' % (b'[' * 10_000, b']' * 10_000),
    '10 000 objects': b'{"a":' * 10_000 + b'1' + b'}' * 10_000,
    'NaN': b'{"full_name": NaN}', '-Infinity': b'{"full_name": -Infinity}',
    '1e400': b'{"full_name": 1e400}', '5 000 digits': b'{"full_name": %b}' % (b'9' * 5000),
    'too many digits': b'{"full_name": 0.1000000000000000000000001}',
    'a huge exponent': b'{"full_name": 1e99999999999999999999}',
    'a huge negative exponent': b'{"full_name": 1e-99999999999999999999}',
    'raw NUL': b'{"full_name": "a\0"}', 'raw newline': b'{"full_name": "a\n"}',
    'raw ESC': b'{"full_name": "\x1b"}', 'member twice': b'{"full_name": "a", "full_name": "a"}',
    'member twice within': b'{"full_name": "a", "emails": [{"kind": "home", "kind": "home"}]}',
    'member twice by escape': b'{"full_name": "a", "\\u0066ull_name": "b"}',
    'surrogate in UTF-8': b'{"full_name": "\xed\xa0\x80"}', 'single quotes': b"{'full_name': 'a'}",
    'constructor': b'{"full_name": __import__("os")}'}

JSON = [Row(f'{method} {target}, {name}', request(
            method, target, *([] if body else [b'Content-Length: 0']), body=body),
            400, reason='Invalid JSON body')
        for method, target in (('POST', '/addresses'), ('PUT', '/addresses/{id}'),
                               ('PUT', f'/addresses/{NO_ID}'))
        for name, body in BAD_JSON.items()]

LONG = 'x' * 257

BAD_KINDS: Sequence[object] = (
    '', 'Home', 'other', 0, None, True, ['home'], {'home': 'home'})

BAD_DIGITS: Sequence[object] = (
    True, False, -1, -0.5, 1.5, 10**15, '', '+91', '1 2', '\u0661', '1' * 16, None, [], '-1', '0x1')

BAD_VALUES: dict[str, Sequence[object]] = {
    '/full_name': ('', ' ', '\u00a0\u2003\u3000', 5, None, True, [], {}, 'x' * 513, 'a\0', 'a\n',
                   '\x1b[2J', '\ud800', '\udc00', 'a\ud800b', '\x7f', '\x85'),
    '/nickname': ('x',), '/__proto__': ({},), '/__class__': ('x',), '/constructor': ({},),
    '/Full_name': ('x',), '/0': (1,), '/': (1,), '/addresses/0/floor': (1,),
    **{f'/{part}/0/kind': BAD_KINDS
       for part in ('addresses', 'phone_numbers', 'fax_numbers', 'emails')},
    **{f'/{part}/0/{member}': BAD_DIGITS for part in ('phone_numbers', 'fax_numbers')
       for member in ('country_code', 'area_code', 'local_number')},
    **{f'/{part}': ({}, 'x', None, 5, ENTRY[part] * 51)
       for part in ('addresses', 'phone_numbers', 'fax_numbers', 'emails')},
    '/emails/0/email': (
        '', 'asha', 'asha@', '@example.org', 'a@b', 'a b@example.org', 'a@b@c.org', '.a@x.org',
        'a@example..org', 'a@-x.org', 'a@example.org\n', 5, None, 'a@x.org, b@x.org', '<a@x.org>',
        'a' * 65 + '@x.org', 'a@' + 'b.' * 130 + 'org', 'a\0@x.org', 'a' * 50_000 + '!'),
    '/addresses/0/street_name': ('', ' ', 5, None, LONG, '\0', '\u2028'),
    '/addresses/0/country': ('', ' ', 5, LONG),
    '/addresses/0/pincode': ('', ' ', -1, True, None, LONG, 10**15),
    '/addresses/0/unit_number': ('12', True, -1, None, 10**400),
    '/addresses/0/street_number': (True, -1, [], LONG, '\x1b'),
    '/addresses/0/building_name': (5, LONG, '\n'),
    '/addresses/0/locality': ({}, LONG),
    '/addresses/0/city': (5, None, LONG, '\ud800'),
    '/addresses/0/province': (False, LONG),
}
"""JSON pointer -> what must not stand there."""

FAULTS: dict[str, tuple[object, Sequence[str]]] = {
    '[]': ([], ['']), 'null': (None, ['']), '5': (5, ['']), 'text': ('x', ['']),
    'true': (True, ['']), 'a list of entries': ([ENTRY], ['']), '{}': ({}, ['/full_name']),
    'a member that needs escapes': ({**ENTRY, 'a/b~c': 1}, ['/a~1b~0c']),
    'items of no kind at all': (
        {**ENTRY, 'emails': [[], 5, None, {}]},
        ['/emails/0', '/emails/1', '/emails/2', '/emails/3/kind', '/emails/3/email']),
    'several at once': (
        {'full_name': '', 'x': 1, 'emails': [{'kind': 'home', 'email': 'x'}],
         'addresses': [{'kind': 'away', 'pincode': -1, 'country': ''}]},
        ['/full_name', '/x', '/emails/0/email', '/addresses/0/kind', '/addresses/0/pincode',
         '/addresses/0/country', '/addresses/0/street_name']),
    **{f'{show(value)} at {pointer}': (changed(pointer, value), [pointer])
       for pointer, values in BAD_VALUES.items() for value in values},
}
"""A document, and where its faults are."""

VALUES = [Row(f'{method} {target}, {name}', request(
              method, target, body=json.dumps(document).encode()),
              400, reason='JSON Schema validation failed', pointers=pointers)
          for method, target in (('POST', '/addresses'), ('PUT', '/addresses/{id}'),
                                 ('PUT', f'/addresses/{NO_ID}'))
          for name, (document, pointers) in FAULTS.items()]

EXPECTATIONS = [
    Row('another expectation', post(ENTRY, b'Expect: 200-ok'), 417, closes=True),
    Row('two expectations', post(ENTRY, b'Expect: 100-continue, x'), 417, closes=True),
]

STALE_CONDITIONS = [
    b'If-Match: {stale}', b'If-Match: W/{tag}', b'If-Match: "x", W/{tag}, {stale}', b'If-Match: ""',
    b'If-Match: {tag}\r\nIf-None-Match: {tag}', b'If-Match: *\r\nIf-None-Match: "x", W/{tag}',
    b'If-Match: "a,b"', b'If-Match: "*"', b'If-Match: "\xe9\x80"', b'If-Match:\t,, {stale} ,',
    b'If-None-Match: {tag}', b'If-None-Match: W/{tag}', b'If-None-Match: {stale}, {tag}',
    b'If-None-Match: {stale}\r\nIf-None-Match: {tag}', b'If-None-Match: *',
    b'If-Match: {tag}\r\nIf-None-Match: *']
"""Conditions that do not let the entry be changed."""

NO_TAGS = [b'', b',', b'x', b'{id}', b'"', b'"x', b'x"', b"'x'", b'*, *', b'*, {tag}', b'{tag}, *',
           b'{tag} {stale}', b'{tag}{stale}', b'{tag}; q=1', b'w/{tag}', b'W/ {tag}', b'W/', b'W/*',
           b'"a b"', b'"a\tb"', b'\xff', b'{tag}, "', b'\xa0{tag}', b'"a\\"b"',
           b'"x", ' * 3_000 + b'x', b'"a"' + b' ' * 12_000 + b'x', b', ' * 6_000, b'"' * 12_001]
"""What is no list of entity tags; some of it long."""

NO_CHANGE = b'{"full_name": ""}'

CONDITIONS = [
    *(Row(f'{method} {show(field)} {body!r:.20}',
          request(method, '/addresses/{id}', field, body=body), 412)
      for method, bodies in (('PUT', (METHODS['PUT'], b'it is not json', NO_CHANGE)),
                             ('DELETE', (b'',)))
      for field in STALE_CONDITIONS for body in bodies),
    *(Row(f'GET {show(field)}', request('GET', '/addresses/{id}', field), 412)
      for field in STALE_CONDITIONS if b'None' not in field),
    *(Row(f'{method} {name} {number} {show(value)}',
          request(method, '/addresses/{id}', name.encode() + b': ' + value, body=body), 400,
          reason='Bad Request')
      for method, body in METHODS.items() for name in ('If-Match', 'If-None-Match')
      for number, value in enumerate(NO_TAGS)),
    *(Row(f'{method} {field.decode()} of no entry', request(
          method, f'/addresses/{NO_ID}', field, body=body), 404, reason='Not Found')
      for method, body in METHODS.items()
      for field in (b'If-Match: *', b'If-Match: {tag}', b'If-Match: "x"', b'If-Match: W/"x", "y"',
                    b'If-None-Match: {tag}', b'If-Match: *\r\nIf-None-Match: *')),
    *(Row(f'PUT of a new entry, {name} as id', request(
          'PUT', f'/addresses/{nickname}', b'If-None-Match: *', body=METHODS['PUT']),
          404, 400 if name in ('not UTF-8', 'overlong slash') else 0)
      for name, nickname in STRANGE_IDS.items() if name != 'unknown'),
    *(Row(f'PUT of a new entry, {name}', request(
          'PUT', f'/addresses/{NO_ID}', b'If-None-Match: *', *fields, body=body), status)
      for name, status, body, fields in (
          ('no JSON', 400, b'it is not json', []), ('of another type', 415, METHODS['PUT'],
                                                    [b'Content-Type: text/plain']))),
    Row('PUT of a new entry without a name', request(
        'PUT', f'/addresses/{NO_ID}', b'If-None-Match: *', body=NO_CHANGE), 400,
        pointers=['/full_name']),
    Row('PUT of no JSON with the right tag', request(
        'PUT', '/addresses/{id}', b'If-Match: {tag}', body=b'it is not json'), 400,
        reason='Invalid JSON body'),
    Row('PUT without a name with the right tag', request(
        'PUT', '/addresses/{id}', b'If-Match: {tag}', body=NO_CHANGE), 400,
        pointers=['/full_name']),
]

PAGES = [
    Row(f'GET /{book}?{show(query)}', request('GET', f'/{book}?{query}'), 400,
        uri=f'/{book}?{query}', reason='Bad Request')
    for book in ('addresses', 'addressbook/')
    for query in (
        'limit=', 'limit', 'limit=0', 'limit=1001', 'limit=-1', 'limit=1e2', 'limit=%ff',
        'limit=%d9%a1', 'limit=1%0a', 'limit=1&limit=1', 'limit=' + '9' * 5000,
        "limit=1';--", 'limit=1%00', 'limit=%0d%0aSet-Cookie:x=1',
        'cursor=', 'cursor=x', 'cursor={id}', 'cursor=%ff', 'cursor=..%2fcanary',
        'cursor=' + 'A' * 7000, 'cursor=AAAAAAAAYQ', 'cursor=AAAAAAAAYQ==&limit=1',
        'limit=1&cursor=x&cursor=x', 'count=', 'count=1', 'count=TRUE', 'count=true&count=true')]

# --- The same, but good ---

ACCEPTED = {
    'curl -d': post(ENTRY, b'Content-Type: application/x-www-form-urlencoded'),
    'no Content-Type': post(ENTRY),
    'an empty Content-Type': post(ENTRY, b'Content-Type:'),
    'capitals and a charset': post(ENTRY, b'content-type: Application/JSON; Charset="UTF-8"'),
    'identity': post(ENTRY, b'Content-Encoding: identity'),
    'a field without value': post(ENTRY, b'X:'),
    'a value beyond ASCII': post(ENTRY, b'X: \xff\xe4'),
    'as many fields as may be': post(ENTRY, *[b'X: y'] * (MAX_FIELDS - 2)),
    'a header of exactly the limit': post(
        ENTRY, b'X: ' + b'a' * (MAX_HEADER - len(post(ENTRY, b'X: ')) + len(json.dumps(ENTRY)))),
    'a body of exactly the limit': post(padded(MAX_BODY)),
    'that in one chunk': chunked(chunks_of(padded(MAX_BODY), MAX_BODY)),
    'that in many chunks': chunked(chunks_of(padded(MAX_BODY), 1000)),
    'that in gzip': post(gzip.compress(padded(MAX_BODY)), b'Content-Encoding: gzip'),
    'gzip in chunks': chunked(
        chunks_of(gzip.compress(padded(MAX_BODY)), 10), b'Content-Encoding: GZIP'),
    'one byte a chunk': chunked(chunks_of(padded(600), 1)),
    'a length with zeros': framed(
        b'Content-Length: 00000%d' % len(METHODS['PUT']), body=METHODS['PUT']),
    'CHUNKED': framed(b'TRANSFER-ENCODING: CHUNKED', body=chunks_of(METHODS['PUT'], 99)),
    'chunk extensions': chunked(b'%x;a=b;c="d"\r\n%b\r\n000;e\r\n\r\n' % (
        len(METHODS['PUT']), METHODS['PUT'])),
    'capital and leading digits': chunked(b'00%X\r\n%b\r\n0\r\n\r\n' % (
        len(METHODS['PUT']), METHODS['PUT'])),
    'trailers': chunked(chunks_of(METHODS['PUT'], 99)[:-2]
                        + b'X: y\r\nContent-Length: 5\r\n\r\n'),
    'an empty line before': b'\r\n' + post(ENTRY),
    'the absolute form': request('POST', 'http://example.org:8080/addresses', body=METHODS['PUT']),
    'a trailing slash': request('POST', '/addresses/', body=METHODS['PUT']),
    'a query': request('POST', '/addresses?a=b&%ff', body=METHODS['PUT']),
    'the other name': request('POST', '/addressbook', body=METHODS['PUT']),
    'an empty Host': post(ENTRY).replace(b'Host: x', b'Host:'),
    'HTTP/1.0 kept alive': request('POST', '/addresses', b'Connection: keep-alive',
                                   body=METHODS['PUT'], version='HTTP/1.0'),
}

TEXTS = {
    'astral': '\U0001d11e\U0001f468\u200d\U0001f469\u200d\U0001f467', 'last': '\U0010ffff',
    'combining marks': 'e\u0301 a\u0323\u0307 \u0928\u093f', 'composed': '\u00e9',
    'right to left': '\u05d0\u05d1 \u202e\u0627\u0644', 'separators': 'a\u2028b\u2029c',
    'BOM within': 'a\ufeffb', 'noncharacter': 'a\uffffb', 'quotes': '"\\\'/<>&',
    'escapes': '\\u0000 \\n %00 &#0;', 'private use': '\ue000', 'spaces': ' a  b ',
}

SANE_IDS = ('a', 'A-b_c.d:e', '0' * 64, '9ebbac6fd8d1461aaf936d238d5443af', '-', '..')

INSANE_IDS = (b'', b'a' * 65, b'a b', b'a"b', b'\xc3\xa9', b'a\\', b'a=b', b'a,b', b"a'b", b'a/b',
              b'<a>', b'a\tb', b'\xff', b'a;b', b'{a}', b'%0a')

SLOW_DOCUMENTS = {
    '20 000 wrong items': {'full_name': 'a', 'phone_numbers': [0] * 20_000},
    '20 000 items in place of a document': [0] * 20_000,
    '6 000 unknown members': {f'{number:x}': 0 for number in range(6_000)},
    '50 faults in each of 50 items': {
        'full_name': 'a', 'addresses': [{f'{number:x}': 0 for number in range(50)}] * 50},
    'an e-mail of 50 000 letters': changed('/emails/0/email', 'a' * 50_000 + '!'),
    'an e-mail of 25 000 labels': changed('/emails/0/email', 'a@' + 'a.' * 25_000),
    'an e-mail at its limit': changed('/emails/0/email', 'a@' + 'a' * 251 + '!'),
    'a name of 60 000 spaces': changed('/full_name', ' ' * 60_000),
}


class Log:
    """The lines that a server has written since one has asked last."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.skip()

    def skip(self) -> None:
        """Forgets what has been written so far."""
        self.position = self.server.log_file.stat().st_size

    def until(self, req_id: str) -> list[Document]:
        """All new lines, up to that request's."""
        lines: list[Document] = []

        def has_come() -> bool:
            lines.extend(self._new())
            return any(line.get('req_id') == req_id and line['message'] == 'RESPONSE'
                       for line in lines)

        self.server.wait_for(has_come)
        return lines

    def _new(self) -> list[Document]:
        with self.server.log_file.open('rb') as file:
            file.seek(self.position)
            data = file.read()
        complete = data[:data.rfind(b'\n') + 1]
        self.position += len(complete)
        return [parse_logfmt(line) for line in complete.decode().splitlines()]


@on_each_transport
class BadInputTest(unittest.TestCase):
    """Every row, on the memory engine."""

    server: ClassVar[ServerProcess]
    folder: ClassVar[Path]
    nickname: ClassVar[str]
    tag: ClassVar[str]
    stale: ClassVar[str]
    listing: ClassVar[bytes]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        (cls.folder / 'canary.json').write_bytes(METHODS['PUT'])
        cls.server = cls.enterClassContext(ServerProcess({'addr-db': cls.engine()}))
        for _ in range(2):
            created = cls.server.request('POST', '/addresses', METHODS['PUT'])
        location, cls.stale = created.headers['Location'], created.headers['Etag']
        cls.tag = cls.server.request('PUT', location, METHODS['PUT']).headers['Etag']
        cls.nickname = location.rpartition('/')[2]
        cls.listing = cls.server.request('GET', '/addresses').body

    @classmethod
    def engine(cls) -> Document:
        return {'memory': None}

    def setUp(self) -> None:
        self.log = Log(self.server)
        self.line_of(self.only_answer(request('GET', '/healthz')))

    # --- Refused ---

    def test_a_request_whose_end_is_in_doubt_is_refused_and_hides_no_other(self) -> None:
        self.check_all(FRAMING)

    def test_what_is_no_http_1_is_refused(self) -> None:
        self.check_all(HEADS)

    def test_what_is_too_large_is_refused(self) -> None:
        self.check_all(SIZES)

    def test_an_unknown_path_or_id_is_not_found_and_touches_no_file(self) -> None:
        self.check_all(ROUTES)

    def test_no_path_breaks_or_forges_a_line_of_the_log(self) -> None:
        self.check_all(INJECTIONS)

    def test_an_unknown_method_is_refused_and_told_which_are_known(self) -> None:
        self.check_all(UNKNOWN_METHODS)

    def test_other_media_types_are_refused(self) -> None:
        self.check_all(TYPES)

    def test_what_is_no_json_is_refused(self) -> None:
        self.check_all(JSON)

    def test_a_bad_value_is_refused_with_a_pointer_to_each_fault_before_the_404(self) -> None:
        self.check_all(VALUES)

    def test_an_expectation_that_cannot_be_met_is_refused(self) -> None:
        self.check_all(EXPECTATIONS)

    def test_a_condition_that_is_not_met_or_none_at_all_leaves_the_entry_as_it_was(self) -> None:
        self.check_all(CONDITIONS)
        answer = self.only_answer(request('GET', '/addresses/{id}'))
        self.assertEqual((answer.json(), answer.headers['Etag']), (ENTRY, self.tag))

    def test_a_page_that_cannot_be_is_refused(self) -> None:
        self.check_all(PAGES)

    def check_all(self, rows: Sequence[Row]) -> None:
        self.assertEqual(len({row.name for row in rows}), len(rows))
        for row in rows:
            with self.subTest(row.name):
                self.check(row)

    def check(self, row: Row) -> None:
        """Sends the row's request, and a good one after it."""
        req_id = uuid.uuid4().hex
        good = request('GET', '/addresses', b'Connection: close',
                       f'X-Request-ID: {req_id}'.encode())
        files = files_in(self.folder)
        self.log.skip()
        answers = split_answers(self.server.send(
            self.fill(row.data) + (SMUGGLED if row.closes else good)))
        closed = len(answers) < 2
        last, = split_answers(self.server.send(good)) if closed else answers[1:]
        lines = self.log.until(req_id)
        self.assertTrue(answers, 'no answer at all')
        self.assertIn(row.closes, (closed, None), 'is the connection closed?')
        self.assertEqual((last.status, last.body), (200, self.listing), 'the good request')
        self.assertEqual(files_in(self.folder), files)
        self.assertEqual(answers[0].headers['Connection'], 'close' if closed else None)
        self.assert_is_error(row, answers[0])
        self.assert_has_one_line(row, answers[0], lines)

    def fill(self, data: bytes) -> bytes:
        for name, value in (('id', self.nickname), ('tag', self.tag), ('stale', self.stale)):
            data = data.replace(f'{{{name}}}'.encode(), value.encode())
        return data

    def assert_is_error(self, row: Row, answer: Answer) -> None:
        self.assertIn(answer.status, (row.status, row.or_status))
        self.assertEqual(PHRASES.get(answer.reason), answer.status, answer.reason)
        names = [name.lower() for name in answer.headers]
        self.assertEqual(len(set(names)), len(names), names)
        self.assertLessEqual(set(names), STANDARD_HEADERS)
        self.assertEqual(answer.headers['Content-Type'], 'application/json; charset=UTF-8')
        document = answer.json()
        self.assertEqual((document['code'], document['message']), (answer.status, answer.reason))
        self.assertEqual(document['req_id'], answer.headers['X-Request-ID'])
        self.assert_shows_no_insides(document)
        if row.reason:
            self.assertEqual(answer.reason, row.reason)
        self.assertEqual(answer.headers['Allow'] or '', row.allow)
        self.assert_points_at_faults(row, document)

    def assert_shows_no_insides(self, document: Document) -> None:
        self.assertLessEqual(set(document), {
            'method', 'uri', 'code', 'message', 'detail', 'req_id', 'errors'})
        said = json.dumps({key: value for key, value in document.items()
                           if key not in ('method', 'uri')})
        for inside in (str(self.folder), str(ROOT), str(self.server.folder)):
            self.assertNotIn(inside, said)
        self.assertFalse(INSIDES.search(said), said)

    def assert_points_at_faults(self, row: Row, document: Document) -> None:
        faults = document.get('errors', [])
        self.assertEqual([fault['pointer'] for fault in faults], list(row.pointers))
        for fault in faults:
            self.assertEqual(set(fault), {'pointer', 'message'})
            self.assertTrue(fault['message'])

    def assert_has_one_line(self, row: Row, answer: Answer, lines: list[Document]) -> None:
        self.assertEqual([line for line in lines if 'trace' in line or line['level'] == 'ERROR'],
                         [])
        responses = [line for line in lines if line['message'] == 'RESPONSE']
        self.assertEqual(len(responses), 2, responses)
        line, document = responses[0], answer.json()
        self.assertEqual(
            {key: line[key] for key in ('level', 'req_id', 'status', 'reason', 'ip', 'bytes')},
            {'level': 'WARNING', 'req_id': document['req_id'], 'status': answer.status,
             'reason': answer.reason, 'ip': '127.0.0.1', 'bytes': len(answer.body)})
        self.assertEqual((line['method'], line['uri']), (document['method'], document['uri']))
        if row.uri is not None:
            self.assertEqual(line['uri'], row.uri.replace('{id}', self.nickname))

    # --- Accepted ---

    def test_the_good_neighbours_of_bad_requests_are_accepted(self) -> None:
        for name, data in ACCEPTED.items():
            with self.subTest(name):
                self.assert_created(ENTRY, data)

    def test_any_text_comes_back_unchanged(self) -> None:
        for name, text in TEXTS.items():
            for is_escaped in (False, True):
                with self.subTest(name, is_escaped=is_escaped):
                    document = changed('/full_name', text)
                    self.assert_created(document, post(
                        json.dumps(document, ensure_ascii=is_escaped).encode()))

    def test_a_probe_is_answered_in_any_form(self) -> None:
        for data in (request('GET', '/healthz'), request('GET', 'http://x/healthz'),
                     request('GET', '/healthz/'), request('GET', '/healthz?%0d%0aX:y'),
                     request('GET', '/healthz', b'X-Request-ID:'),
                     request('GET', '/healthz', b'X: ' + b'a' * 16_000),
                     request('GET', '/healthz', body=b'ignored'),
                     b'GET /healthz HTTP/1.0\r\n\r\n',
                     b'\r\nGET /healthz HTTP/1.1\r\nHost:x\r\n\r\n'):
            with self.subTest(data[:80]):
                answer = self.only_answer(data)
                self.assertEqual((answer.status, list(answer.json())), (200, ['uptime']))

    def test_http_1_0_is_served_and_closed(self) -> None:
        for method, target, status in (('GET', '/addresses', 200), ('GET', '/x', 404)):
            data = self.server.send(f'{method} {target} HTTP/1.0\r\n\r\n'.encode() + SMUGGLED)
            answer, = split_answers(data)
            self.assertEqual((answer.status, answer.headers['Connection']), (status, 'close'))
            self.assertNotIn('Transfer-Encoding', answer.headers)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        data = (request('GET', '/addresses/{id}') + request('GET', '/x') + post(b'no')
                + request('FOO', '/addresses', body=b'x') + request('HEAD', '/x')
                + request('GET', '/addresses', b'Connection: close') + SMUGGLED)
        headless = self.server.send(self.fill(data))
        head = re.search(rb'HTTP/1.1 404 [^{]*?\r\n\r\n(?=HTTP)', headless)
        assert head is not None
        answers = split_answers(headless.replace(head[0], b''))
        self.assertEqual([answer.status for answer in answers], [200, 404, 400, 405, 200])
        self.assertEqual(answers[0].json(), ENTRY)
        self.assertEqual(answers[4].body, self.listing)

    def test_many_large_pipelined_requests_are_all_served(self) -> None:
        one = request('PUT', '/addresses/{id}', body=padded(MAX_BODY - 1000))
        answers = split_answers(self.server.send(self.fill(
            one * 12 + request('GET', '/addresses', b'Connection: close'))))
        self.assertEqual([answer.status for answer in answers], [204] * 12 + [200])
        self.assertEqual(answers[-1].body, self.listing)

    def test_head_is_get_without_a_body(self) -> None:
        for target in ('/addresses', '/addresses/{id}', '/healthz', '/readiness', '/x',
                       f'/addresses/{NO_ID}'):
            with self.subTest(target):
                get, head = (
                    self.server.send(self.fill(request(method, target, b'Connection: close')))
                    for method in ('GET', 'HEAD'))
                answer = split_answers(get)[0]
                lines = head.decode().split('\r\n')
                self.assertEqual(lines[-2:], ['', ''])
                self.assertEqual(lines[0], f'HTTP/1.1 {answer.status} {answer.reason}')
                self.assertEqual({line.partition(':')[0] for line in lines[1:-2]},
                                 set(answer.headers))
                if target in ('/addresses', '/addresses/{id}'):
                    self.assertIn(f'Etag: {answer.headers["Etag"]}', lines)

    def test_options_tells_the_methods_of_every_path(self) -> None:
        for target, allow in (('/addresses', BOOK_METHODS), ('/addressbook/', BOOK_METHODS),
                              ('/addresses/{id}', ENTRY_METHODS), ('/healthz', PROBE_METHODS),
                              (f'/addressbook/{NO_ID}', ENTRY_METHODS),
                              ('/readiness', PROBE_METHODS)):
            with self.subTest(target):
                answer = self.only_answer(request('OPTIONS', target))
                self.assertEqual((answer.status, answer.body, answer.headers['Allow']),
                                 (204, b'', allow))
                self.assertNotIn('Content-Length', answer.headers)

    def test_options_of_the_server_as_a_whole_is_answered(self) -> None:
        answer = self.only_answer(request('OPTIONS', '*'))
        self.assertEqual((answer.status, answer.body), (204, b''))

    def test_100_continue_comes_before_the_answer_and_the_body(self) -> None:
        with self.server.connect() as connection:
            connection.sendall(framed(b'Expect: 100-Continue', b'Content-Length: %d' % (
                len(METHODS['PUT'])), b'Connection: close'))
            self.assertEqual(connection.recv(1000), b'HTTP/1.1 100 Continue\r\n\r\n')
            connection.sendall(METHODS['PUT'])
            answer, = split_answers(read_to_end(connection))
        self.assertEqual(answer.status, 201)
        self.remove(answer)

    def test_100_continue_is_sent_once_for_a_chunked_body_and_not_without_a_body(self) -> None:
        expecting = b'Expect: 100-continue'
        data = self.server.send(
            chunked(chunks_of(b'no', 1), expecting)
            + request('GET', '/healthz', expecting, b'Connection: close'))
        self.assertEqual(re.findall(rb'HTTP/1.1 (\d+)', data), [b'100', b'400', b'200'])

    def test_100_continue_means_nothing_in_http_1_0(self) -> None:
        data = self.server.send(request('POST', '/addresses', b'Expect: 100-continue', body=b'no',
                                        version='HTTP/1.0'))
        self.assertEqual(re.findall(rb'HTTP/1.1 (\d+)', data), [b'400'])

    def test_no_100_is_sent_before_a_refusal(self) -> None:
        for fields, status in ((b'Content-Length: 99999999', b'413'),
                               (b'Content-Length: x', b'400'),
                               (b'Content-Length: 5\r\nTransfer-Encoding: chunked', b'400')):
            with self.subTest(fields):
                data = self.server.send(framed(b'Expect: 100-continue', fields))
                self.assertEqual(re.findall(rb'HTTP/1.1 (\d+)', data), [status])

    # --- Conditions (RFC 9110 section 13) that are met ---

    def test_what_the_client_has_already_is_not_sent_again(self) -> None:
        for target in ('/addresses/{id}', '/addresses'):
            tag = self.only_answer(request('GET', target)).headers['Etag']
            for method in ('GET', 'HEAD'):
                for condition in (tag, f'"x", {tag}', f'{tag},"x"', f'W/{tag}', '*',
                                  f'"a,b" , W/"x", W/{tag}'):
                    with self.subTest(target, method=method, condition=condition):
                        answer = self.only_answer(request(
                            method, target, f'If-None-Match: {condition}'.encode()))
                        self.assertEqual(
                            (answer.status, answer.body, answer.headers['Etag']), (304, b'', tag))
                        self.assertNotIn('Content-Type', answer.headers)

    def test_what_the_client_does_not_have_is_sent(self) -> None:
        tag = self.only_answer(request('GET', '/addresses/{id}')).headers['Etag']
        for condition in ('"x"', '""', 'W/"x"', tag[:-2] + '"', tag[:-1] + '0"', '"*"', '"x", "y"',
                          '"\xe9"', self.stale, f'{self.stale} ,, W/"a,b",'):
            with self.subTest(condition):
                answer = self.only_answer(request(
                    'GET', '/addresses/{id}', f'If-None-Match: {condition}'.encode('latin-1')))
                self.assertEqual((answer.status, answer.json()), (200, ENTRY))
                self.assertEqual(answer.headers['Etag'], tag)

    def test_a_condition_does_not_make_an_entry_exist(self) -> None:
        for condition in (b'*', b'"x"'):
            answer = self.only_answer(request(
                'GET', f'/addresses/{NO_ID}', b'If-None-Match: ' + condition))
            self.assertEqual(answer.status, 404)

    def test_a_condition_that_is_met_lets_the_entry_be_read_replaced_and_removed(self) -> None:
        for condition in (b'If-Match: {tag}', b'If-Match: *', b'If-Match: {stale}, W/{tag}, {tag}',
                          b'If-Match: ,"a,b" ,{tag},', b'If-Match: {stale}\r\nIf-Match: {tag}',
                          b'If-None-Match: {stale}', b'If-None-Match: "\xff"',
                          b'If-Match: {tag}\r\nIf-None-Match: {stale}'):
            with self.subTest(condition):
                created = self.only_answer(post(ENTRY))
                place, tag = created.headers['Location'], created.headers['Etag']
                for method, status in (('GET', 200), ('PUT', 204), ('DELETE', 204)):
                    met = condition.replace(b'{tag}', tag.encode())
                    answer = self.only_answer(request(method, place, met, body=METHODS[method]))
                    self.assertEqual(answer.status, status)
                    tag = answer.headers['Etag']
                self.assertEqual(self.only_answer(request('GET', place)).status, 404)

    # --- Who asks ---

    def test_a_sane_request_id_is_taken_over_also_by_an_error(self) -> None:
        for req_id in SANE_IDS:
            field = f'X-Request-ID: {req_id}'.encode()
            for data, status in ((request('GET', '/addresses', field), 200),
                                 (request('GET', '/x', field), 404),
                                 (post(b'no', field), 400),
                                 (request('FOO', '/addresses', field), 405),
                                 (framed(field, b'Content-Length: 99999999'), 413),
                                 (framed(field, b'Content-Length: x'), 400)):
                with self.subTest(req_id, status=status):
                    answer = self.only_answer(data)
                    self.assertEqual((answer.status, answer.headers['X-Request-ID']),
                                     (status, req_id))
                    self.assertEqual(self.line_of(answer)['req_id'], req_id)

    def test_another_request_id_is_replaced(self) -> None:
        for given in INSANE_IDS:
            with self.subTest(given):
                answer = self.only_answer(request('GET', '/x', b'X-Request-ID: ' + given))
                self.assertRegex(answer.headers['X-Request-ID'], '^[0-9a-f]{32}$')
                self.assertEqual(self.line_of(answer)['req_id'], answer.json()['req_id'])

    def test_two_request_ids_are_none(self) -> None:
        answer = self.only_answer(request('GET', '/x', b'X-Request-ID: a', b'X-Request-ID: b'))
        self.assertRegex(answer.headers['X-Request-ID'], '^[0-9a-f]{32}$')

    def test_nobody_but_a_trusted_proxy_says_whose_request_it_is(self) -> None:
        for field in (b'X-Forwarded-For: 198.51.100.7', b'X-Real-Ip: 198.51.100.7',
                      b'X-Forwarded-For: " status=200', b'Forwarded: for=198.51.100.7'):
            with self.subTest(field):
                answer = self.only_answer(request('GET', '/x', field))
                self.assertEqual(self.line_of(answer)['ip'], '127.0.0.1')

    # --- What it costs ---

    def test_a_bomb_costs_little_memory(self) -> None:
        bomb = gzip.compress(bytes(60 * KB * KB))
        self.assertLess(len(bomb), MAX_BODY)
        rows = [Row('bomb', post(bomb, b'Content-Encoding: gzip'), 413, closes=None),
                Row('announced', framed(b'Content-Length: 209715200'), 413, closes=True),
                Row('chunk', chunked(b'FFFFFFFFFF\r\n'), 413, closes=True)]
        for row in rows:
            self.check(row)
        before = self.memory()
        for row in rows * 3:
            self.check(row)
        for name, size in self.memory().items():
            self.assertLess(size - before[name], 8 * KB, f'KB of {name}')

    def test_a_document_of_nothing_but_faults_is_refused_quickly(self) -> None:
        for name, document in SLOW_DOCUMENTS.items():
            with self.subTest(name):
                data = post(document)
                self.assertLessEqual(len(data), MAX_BODY + 100)
                self.assertLess(min(self.seconds_to_refuse(data) for _ in range(3)), 0.1)

    def test_probes_are_answered_while_documents_are_refused(self) -> None:
        data = post(SLOW_DOCUMENTS['20 000 wrong items'])
        done = threading.Event()
        slowest = [0.0]
        thread = threading.Thread(target=self.probe_until, args=(done, slowest))
        thread.start()
        try:
            for _ in range(10):
                self.seconds_to_refuse(data)
        finally:
            done.set()
            thread.join()
        self.assertGreater(slowest[0], 0)
        self.assertLess(slowest[0], 1)

    def probe_until(self, done: threading.Event, slowest: list[float]) -> None:
        while not done.is_set():
            start = time.monotonic()
            if self.server.request('GET', '/healthz').status != 200:
                slowest[0] = float('inf')
            slowest[0] = max(slowest[0], time.monotonic() - start)

    def seconds_to_refuse(self, data: bytes) -> float:
        start = time.monotonic()
        answer = self.only_answer(data)
        seconds = time.monotonic() - start
        self.assertEqual(answer.status, 400)
        self.assertIn(len(answer.json()['errors']), range(1, 101))
        self.assertLess(len(answer.body), 32 * KB)
        return seconds

    def memory(self) -> dict[str, int]:
        """KB of memory in use by the server: now, and at most so far."""
        assert self.server.process is not None
        status = Path(f'/proc/{self.server.process.pid}/status').read_text()
        sizes = re.findall(r'(VmRSS|VmHWM):\s+(\d+) kB', status)
        return {name: int(size) for name, size in sizes}

    # --- Helpers ---

    def only_answer(self, data: bytes) -> Answer:
        """The answer to one request, read as its Content-Length says."""
        with self.server.connect() as connection:
            connection.sendall(self.fill(data))
            response = http.client.HTTPResponse(connection, method=data.split(b' ')[0].decode())
            with contextlib.closing(response):
                response.begin()
                return Answer(response.status, response.reason, response.headers, response.read())

    def line_of(self, answer: Answer) -> Document:
        """The line of a request, read from the log."""
        req_id = answer.headers['X-Request-ID']
        return next(line for line in self.log.until(req_id) if line.get('req_id') == req_id)

    def assert_created(self, document: Document, data: bytes) -> None:
        answer = self.only_answer(data)
        self.assertEqual((answer.status, answer.body), (201, b''))
        self.assertRegex(answer.headers['Location'], '^/address(es|book)/[0-9a-f]{32}$')
        self.assertEqual(self.server.request('GET', answer.headers['Location']).json(), document)
        self.remove(answer)

    def remove(self, answer: Answer) -> None:
        status = self.server.request('DELETE', answer.headers['Location']).status
        self.assertEqual(status, 204)


class BadInputOnFilesTest(BadInputTest):
    """The same on the file engine: what is refused touches no file."""

    @classmethod
    def engine(cls) -> Document:
        return {'fs': str(cls.folder / 'store')}


def files_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of everything in a folder."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b'')
            for path in (folder, *folder.rglob('*'))}


if __name__ == '__main__':
    unittest.main()

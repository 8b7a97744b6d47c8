"""What is one request, one document and one client, and what is refused as none."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import json
import sys
import unittest
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec
from hypothesis import given, settings, strategies as st
from tornado.httputil import HTTPHeaders, RequestStartLine
from tornado.web import HTTPError

from addrservice.datamodel import AddressEntry
from addrservice.errors import InvalidAddress, InvalidJSON
from addrservice.service import entry_of
from addrservice.tornado import framing, json_body
from addrservice.tornado.json_body import parse_json, read_entry, require_json_type
from addrservice.tornado.messages import Headers
from addrservice.tornado.reader import client_ip
from data import address_data_suite

property_test = settings(derandomize=True, deadline=None, database=None, max_examples=200)

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-10**300, 10**300) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda items: st.lists(items) | st.dictionaries(st.text(), items), max_leaves=20)
BODIES = st.binary(max_size=50) | st.text(
    '0123456789eE+-.[]{}:,"a \\u', max_size=30).map(str.encode)

MAX_HEAD = 16384

# --- Heads: name -> bytes; {} stands for what a row is about ---

GOOD_HEADS = {
    'plain': (b'GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n', ('GET', '/a?b=c', 'HTTP/1.1')),
    'HTTP/1.0 without Host': (b'GET / HTTP/1.0\r\n\r\n', ('GET', '/', 'HTTP/1.0')),
    'one empty line before': (b'\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n', ('GET', '/', 'HTTP/1.1')),
    'unusual method': (b"F!#$%&'*+-.^_`|~0 / HTTP/1.1\r\nHost: x\r\n\r\n",
                       ("F!#$%&'*+-.^_`|~0", '/', 'HTTP/1.1')),
    'quotes and backslash in the target': (
        b'GET /a"\\status=200 HTTP/1.1\r\nHost: x\r\n\r\n',
        ('GET', '/a"\\status=200', 'HTTP/1.1')),
    'empty Host': (b'GET / HTTP/1.1\r\nHost:\r\n\r\n', ('GET', '/', 'HTTP/1.1')),
    'empty value': (b'GET / HTTP/1.1\r\nHost: x\r\nX:\r\n\r\n', ('GET', '/', 'HTTP/1.1')),
    'no space before a value, more behind': (
        b'GET / HTTP/1.1\r\nHost:x \t \r\n\r\n', ('GET', '/', 'HTTP/1.1')),
    'bytes beyond ASCII in a value': (
        b'GET / HTTP/1.1\r\nHost: x\r\nX: \xe4\xff\r\n\r\n', ('GET', '/', 'HTTP/1.1')),
    'two slashes are a path': (b'GET //x/ HTTP/1.1\r\nHost: x\r\n\r\n',
                               ('GET', '//x/', 'HTTP/1.1')),
    'asterisk': (b'OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n', ('OPTIONS', '*', 'HTTP/1.1')),
    'absolute form': (b'GET http://h:81/a?b HTTP/1.1\r\nHost: x\r\n\r\n',
                      ('GET', '/a?b', 'HTTP/1.1')),
    'absolute form without path': (b'GET HTTPS://h HTTP/1.1\r\nHost: x\r\n\r\n',
                                   ('GET', '/', 'HTTP/1.1')),
    'absolute form with a query only': (b'GET http://h?q HTTP/1.1\r\nHost: x\r\n\r\n',
                                        ('GET', '/?q', 'HTTP/1.1')),
    'longest target': (b'GET /%b HTTP/1.1\r\nHost: x\r\n\r\n' % (b'a' * 8191),
                       ('GET', '/' + 'a' * 8191, 'HTTP/1.1')),
    'most fields': (b'GET / HTTP/1.1\r\nHost: x\r\n%b\r\n' % (b'X: y\r\n' * 99),
                    ('GET', '/', 'HTTP/1.1')),
}

BAD_START_LINES = {
    'empty': b'', 'no target': b'GET HTTP/1.1', 'no version': b'GET /', 'no method': b'/ HTTP/1.1',
    'two spaces before the target': b'GET  / HTTP/1.1', 'two behind': b'GET /  HTTP/1.1',
    'tab for a space': b'GET\t/ HTTP/1.1', 'space in the target': b'GET /a b HTTP/1.1',
    'space before': b' GET / HTTP/1.1', 'space behind': b'GET / HTTP/1.1 ',
    'HTTP/2.0': b'GET / HTTP/2.0', 'HTTP/0.9': b'GET / HTTP/0.9', 'HTTP/11': b'GET / HTTP/11',
    'HTTP/1.10': b'GET / HTTP/1.10', 'http/1.1': b'GET / http/1.1', 'HTTP/1,1': b'GET / HTTP/1,1',
    'another protocol': b'GET / RTSP/1.0', 'a digit beyond ASCII': b'GET / HTTP/1.\xb9',
    'parenthesis in the method': b'G(T / HTTP/1.1', 'colon in the method': b'GET: / HTTP/1.1',
    'method beyond ASCII': b'G\xc3\x89T / HTTP/1.1',
    'CR in the target': b'GET /a\rb HTTP/1.1', 'LF in the target': b'GET /a\nb HTTP/1.1',
    'VT in the target': b'GET /a\x0bb HTTP/1.1', 'NUL in the target': b'GET /a\0b HTTP/1.1',
    'ESC in the target': b'GET /\x1b[2J HTTP/1.1', 'DEL in the target': b'GET /\x7f HTTP/1.1',
    'U+0085 in the target': b'GET /\xc2\x85 HTTP/1.1', 'not UTF-8': b'GET /\xff HTTP/1.1',
    'fragment': b'GET /a#b HTTP/1.1', 'no slash': b'GET a HTTP/1.1',
    'asterisk': b'GET * HTTP/1.1', 'authority': b'CONNECT x:80 HTTP/1.1',
    'another scheme': b'GET ftp://x/ HTTP/1.1', 'no authority': b'GET http:///a HTTP/1.1',
    'HTTP/2 preface': b'PRI * HTTP/2.0',
}

BAD_FIELDS = {
    'no Host': b'X: y\r\n', 'two Hosts': b'Host: x\r\nHost: x\r\n',
    'two Hosts in other case': b'Host: x\r\nhOST: y\r\n',
    'no colon': b'Host: x\r\nX\r\n', 'no name': b'Host: x\r\n: y\r\n',
    'space before the colon': b'Host: x\r\nX : y\r\n', 'tab before it': b'Host: x\r\nX\t: y\r\n',
    'space in the name': b'Host: x\r\nA B: y\r\n', 'space before the name': b'Host: x\r\n X: y\r\n',
    'first field indented': b' Host: x\r\n',
    'obs-fold': b'Host: x\r\nX: y\r\n z\r\n', 'obs-fold with a tab': b'Host: x\r\nX: y\r\n\tz\r\n',
    'blank line that is not empty': b'Host: x\r\n \r\n',
    'NUL in a value': b'Host: x\r\nX: a\0b\r\n', 'bare CR in a value': b'Host: x\r\nX: a\rb\r\n',
    'bare LF behind a field': b'Host: x\nX: y\r\n', 'CR before CRLF': b'Host: x\r\r\n',
    'VT in a value': b'Host: x\r\nX: a\x0bb\r\n', 'VT around a value': b'Host: x\r\nX: \x0bab\r\n',
    'DEL in a value': b'Host: x\r\nX: a\x7f\r\n', 'ESC in a value': b'Host: x\r\nX: \x1b\r\n',
    'name beyond ASCII': b'Host: x\r\n\xc3\x84: y\r\n', 'NUL in a name': b'Host: x\r\nX\0: y\r\n',
}

TOO_LARGE_HEADS = {
    'one byte over': (431, b'GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n' % (
        b'a' * (MAX_HEAD - len('GET / HTTP/1.1\r\nHost: x\r\nX: \r\n\r\n') + 1))),
    'one field over': (431, b'GET / HTTP/1.1\r\nHost: x\r\n%b\r\n' % (b'X: y\r\n' * 100)),
    'target one byte over': (414, b'GET /%b HTTP/1.1\r\nHost: x\r\n\r\n' % (b'a' * 8192)),
    'Host among too many fields': (431, b'GET / HTTP/1.1\r\n%b\r\n' % (b'Host: x\r\n' * 1000)),
}

# --- Bodies ---

GOOD_LENGTHS = {'none': ([], 0), 'zero': (['0'], 0), 'some': (['5'], 5), 'zeros': (['00005'], 5),
                'many digits': (['9' * 18], 10**18 - 1)}

BAD_LENGTHS: dict[str, list[str]] = {
    'plus': ['+20'], 'underscore': ['2_0'], 'minus': ['-1'], 'hexadecimal': ['0x14'],
    'hexadecimal digits': ['1f'], 'empty': [''], '5 000 digits': ['9' * 5000], 'list': ['5, 5'],
    'list without space': ['5,5'], 'two': ['5', '5'], 'two that differ': ['5', '6'],
    'superscript': ['5\xb2'], 'fraction': ['5.0'], 'exponent': ['5e0'], 'words': ['five'],
    'space within': ['5 5'], 'comma': ['5,'], 'first empty': ['', '5'], 'quoted': ['"5"'],
}

BAD_CODINGS: dict[str, list[str]] = {
    'xchunked': ['xchunked'], 'gzip before': ['gzip, chunked'], 'twice': ['chunked, chunked'],
    'two fields': ['chunked', 'chunked'], 'identity': ['identity'], 'empty': [''],
    'control before': ['\x0bchunked'], 'control behind': ['chunked\x0b'], 'quoted': ['"chunked"'],
    'parameter': ['chunked;q=1'], 'comma': ['chunked,'], 'comma before': [',chunked'],
    'identity behind': ['chunked, identity'], 'first empty': ['', 'chunked'],
    'no-break space': ['chunked\xa0'], 'missing': ['gzip'],
}

GOOD_CHUNK_LINES = {
    b'0\r\n': 0, b'5\r\n': 5, b'1f\r\n': 31, b'1F\r\n': 31, b'0005\r\n': 5, b'000\r\n': 0,
    b'5;name=value\r\n': 5, b'5;a="b;c"\r\n': 5, b'5;\r\n': 5, b'5;\xff\t\r\n': 5,
    b'FFFFFFFFFFFFFFFF\r\n': 2**64 - 1,
}

BAD_CHUNK_LINES = (
    b'', b'\r\n', b'-1\r\n', b'+14\r\n', b'ZZ\r\n', b'0x5\r\n', b'1_0\r\n', b' 5\r\n', b'5 \r\n',
    b'5\t\r\n', b'5 ;a\r\n', b'5\n', b'5', b'5\r', b'5;a\n', b'5;a\rb\r\n', b'5;\0\r\n', b'5,\r\n',
    b'5\x0b\r\n', b'\xb2\r\n', b'5.\r\n', b'5\r\n\r\n', b'5h\r\n', b';a\r\n', b'"5"\r\n',
    b'0' * 17 + b'\r\n', b'F' * 17 + b'\r\n')

ZIPPED = gzip.compress(b'a document')

BAD_ZIPS = {
    'empty': b'', 'text': b'{"full_name": "Asha"}', 'zlib': zlib.compress(b'a document'),
    'cut': ZIPPED[:-1], 'cut in the header': ZIPPED[:5], 'data behind': ZIPPED + b'x',
    'a second one behind': ZIPPED + ZIPPED, 'wrong checksum': ZIPPED[:-8] + b'\0' * 8,
    'wrong length': ZIPPED[:-1] + b'\xff', 'damaged': ZIPPED[:12] + b'\xff\xff' + ZIPPED[14:],
}

# --- Documents ---

GOOD_DOCUMENTS: dict[str, Any] = {
    '{}': {}, ' \t\r\n[1] \n': [1], '"\\u0041"': 'A', '"\U0001d11e"': '\U0001d11e',
    '"\\ud834\\udd1e"': '\U0001d11e', '0.1': 0.1, '1.50': 1.5, '1e2': 100.0, '-0': 0,
    '1E-2': 0.01, '9007199254740993': 9007199254740993, '5e-324': 5e-324,
    '0e5': 0.0, '{"a": 1, "b": {"a": 1}}': {'a': 1, 'b': {'a': 1}}, 'null': None,
    '1.7976931348623157e308': 1.7976931348623157e308, '[' * 50 + ']' * 50: None,
}

BAD_DOCUMENTS = {
    'empty': b'', 'blank': b' \n', 'words': b'it is not json', 'byte 0xff': b'\xff',
    '0xff in text': b'"\xff"', 'BOM': b'\xef\xbb\xbf{}', 'UTF-16 with BOM': '{}'.encode('utf-16'),
    'UTF-16': '{}'.encode('utf-16-le'), 'UTF-32': '{}'.encode('utf-32-be'),
    'overlong UTF-8': b'"\xc0\xaf"', 'surrogate in UTF-8': b'"\xed\xa0\x80"',
    'trailing comma': b'{"a": 1,}', 'text behind': b'{} x', 'two values': b'{}{}',
    'NUL behind': b'{}\0', 'no-break space': '\xa0{}'.encode(), 'form feed': b'\x0c{}',
    'single quotes': b"{'a': 1}", 'comment': b'{} // no', 'member without quotes': b'{a: 1}',
    'cut': b'{"a": ', 'cut text': b'"a', 'cut escape': b'"\\u12"', 'unknown escape': b'"\\x41"',
    'NUL in text': b'"a\0b"', 'newline in text': b'"a\nb"', 'ESC in text': b'"\x1b"',
    '50 000 brackets': b'[' * 50000, '25 000 levels': b'[' * 25000 + b']' * 25000,
    '10 000 objects': b'{"a":' * 10000 + b'1' + b'}' * 10000,
    'NaN': b'NaN', '-Infinity': b'-Infinity', 'Infinity within': b'[Infinity]',
    '1e400': b'1e400', '-1e400': b'-1e400', '5 000 digits': b'9' * 5000,
    'fraction of 5 000 digits': b'0.' + b'1' * 5000, 'too precise': b'0.10000000000000000001',
    'underflow': b'1e-400', 'huge exponent': b'1e99999999999999999999',
    'huge negative exponent': b'1e-99999999999999999999',
    'exponent of 5 000 digits': b'1e-' + b'9' * 5000,
    'leading zero': b'01', 'plus': b'+1', 'hexadecimal': b'0x1', 'digits beyond ASCII':
    '\u0661'.encode(), 'dot first': b'.5', 'dot last': b'5.', 'member twice': b'{"a": 1, "a": 1}',
    'member twice within': b'[{"a": {"b": 1, "c": 2, "b": 3}}]',
    'member twice by escape': b'{"a": 1, "\\u0061": 2}',
    'True': b'True', 'undefined': b'undefined',
}

GOOD_TYPES: tuple[dict[str, str], ...] = (
    {}, {'Content-Type': ''}, {'Content-Type': 'application/json'},
    {'Content-Type': 'APPLICATION/JSON'}, {'Content-Type': 'application/json;charset=utf-8'},
    {'Content-Type': 'application/json ; Charset="UTF-8"'},
    {'Content-Type': 'application/json; odata=verbose'},
    {'Content-Type': 'application/x-www-form-urlencoded'}, {'Content-Encoding': 'identity'},
    {'Content-Encoding': 'IDENTITY'})

BAD_TYPES = (
    {'Content-Type': 'text/plain'}, {'Content-Type': 'multipart/form-data; boundary=x'},
    {'Content-Type': 'application/xml'}, {'Content-Type': 'json'}, {'Content-Type': '*/*'},
    {'Content-Type': 'application/jsonx'}, {'Content-Type': 'application/json, text/plain'},
    {'Content-Type': 'application/json; charset=latin-1'},
    {'Content-Type': 'application/json; charset=utf-16'},
    {'Content-Type': 'application/json; charset=utf-8; charset=latin-1'},
    {'Content-Type': 'application/json; charset='}, {'Content-Encoding': 'br'},
    {'Content-Encoding': 'gzip, gzip'}, {'Content-Encoding': 'deflate'})

# --- Clients: peer, X-Forwarded-For, whose address counts ---

TRUSTED = [ipaddress.ip_network('10.0.0.0/8'), ipaddress.ip_network('fd00::/8')]

CLIENTS = {
    'no proxy': ('192.0.2.1', '', '192.0.2.1'),
    'an untrusted peer claims': ('192.0.2.1', '198.51.100.7', '192.0.2.1'),
    'an untrusted peer claims to be a proxy': ('192.0.2.1', '198.51.100.7, 10.0.0.1', '192.0.2.1'),
    'a proxy says nothing': ('10.0.0.1', '', '10.0.0.1'),
    'a proxy': ('10.0.0.1', '198.51.100.7', '198.51.100.7'),
    'two proxies': ('10.0.0.1', '198.51.100.7, 10.9.9.9', '198.51.100.7'),
    'the client claims, too': ('10.0.0.1', '203.0.113.9, 198.51.100.7', '198.51.100.7'),
    'the client claims a proxy': ('10.0.0.1', '10.5.5.5, 198.51.100.7', '198.51.100.7'),
    'nothing but proxies': ('10.0.0.1', '10.0.0.3,10.0.0.2', '10.0.0.3'),
    'no address': ('10.0.0.1', 'unknown', '10.0.0.1'),
    'no address behind a proxy': ('10.0.0.1', 'unknown, 10.0.0.2', '10.0.0.2'),
    'no address, quoted': ('10.0.0.1', '" status=200', '10.0.0.1'),
    'empty items': ('10.0.0.1', ', ,', '10.0.0.1'),
    'a port is no address': ('10.0.0.1', '198.51.100.7:80', '10.0.0.1'),
    'spaces and tabs': ('10.0.0.1', ' \t198.51.100.7\t ', '198.51.100.7'),
    'IPv6': ('fd00::1', '2001:db8::7', '2001:db8::7'),
    'untrusted IPv6': ('2001:db8::1', '198.51.100.7', '2001:db8::1'),
    'IPv4 within IPv6': ('::ffff:10.0.0.1', '198.51.100.7', '198.51.100.7'),
    'untrusted IPv4 within IPv6': ('::ffff:192.0.2.1', '198.51.100.7', '::ffff:192.0.2.1'),
    'text behind a scope': ('10.0.0.1', 'fe80::1%" status=200', '10.0.0.1'),
}


class HeadTest(unittest.TestCase):
    """Where a request starts, and what it says of itself."""

    def test_a_good_head_is_read(self) -> None:
        for name, (data, start_line) in GOOD_HEADS.items():
            with self.subTest(name):
                self.assertEqual(framing.parse_head(data, MAX_HEAD)[0], start_line)

    def test_header_fields_are_read_with_spaces_around_values_removed(self) -> None:
        _, headers = framing.parse_head(
            b'GET / HTTP/1.1\r\nHost:x\r\na:  b c\t \r\nA: d\r\nE:\r\n\r\n', MAX_HEAD)
        self.assertEqual(list(headers.get_all()),
                         [('Host', 'x'), ('A', 'b c'), ('A', 'd'), ('E', '')])

    def test_the_host_of_an_absolute_target_wins(self) -> None:
        _, headers = framing.parse_head(
            b'GET http://h:81/ HTTP/1.1\r\nHost: x\r\n\r\n', MAX_HEAD)
        self.assertEqual(headers.get_list('Host'), ['h:81'])

    def test_an_absolute_target_does_not_stand_in_for_a_missing_host(self) -> None:
        self.assert_refused(400, framing.parse_head, b'GET http://h/ HTTP/1.1\r\n\r\n', MAX_HEAD)

    def test_a_bad_request_line_is_refused(self) -> None:
        for name, line in BAD_START_LINES.items():
            with self.subTest(name):
                self.assert_refused(
                    400, framing.parse_head, line + b'\r\nHost: x\r\n\r\n', MAX_HEAD)

    def test_bad_header_fields_are_refused(self) -> None:
        for name, fields in BAD_FIELDS.items():
            with self.subTest(name):
                self.assert_refused(
                    400, framing.parse_head, b'GET / HTTP/1.1\r\n' + fields + b'\r\n', MAX_HEAD)

    def test_a_head_that_is_too_large_is_refused(self) -> None:
        for name, (status, data) in TOO_LARGE_HEADS.items():
            with self.subTest(name):
                self.assert_refused(status, framing.parse_head, data, MAX_HEAD)

    def test_a_head_of_exactly_the_limit_is_read(self) -> None:
        _, data = TOO_LARGE_HEADS['one byte over']
        self.assertEqual(framing.parse_head(data.replace(b': a', b': ', 1), MAX_HEAD)[0].path, '/')

    def test_only_a_byte_that_can_start_a_request_does(self) -> None:
        starters = b"!#$%&'*+-.^_`|~\r0123456789" \
            b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
        for code in range(256):
            byte = bytes([code])
            self.assertEqual(framing.can_start_request(byte), byte in starters, byte)

    @property_test
    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        try:
            framing.parse_head(data + b'\r\n\r\n', MAX_HEAD)
        except HTTPError as error:
            self.assertIn(error.status_code, (400, 414, 431))

    @property_test
    @given(st.binary(max_size=200))
    def test_a_guess_at_any_bytes_has_a_method_and_a_target(self, data: bytes) -> None:
        guess = framing.likely_start_line(data)
        self.assertTrue(guess.method and guess.path)
        self.assertTrue(guess.method.isascii() and guess.method.isprintable())

    def test_method_and_target_of_a_bad_head_are_guessed(self) -> None:
        for data, guess in ((b'GET /a b\r\n\r\n', ('GET', '/a')),
                            (b'\r\nPUT /\xff HTTP/1.1\r\n\r\n', ('PUT', '/\xff')),
                            (b'G(T /"x HTTP/1.1\r\n\r\n', ('G(T', '/"x')),
                            (b'\x16\x03\x01\r\n\r\n', ('-', '-')), (b'', ('-', '-')),
                            (b'GET', ('-', '-'))):
            with self.subTest(data):
                self.assertEqual(framing.likely_start_line(data)[:2], guess)

    def assert_refused(self, status: int, function: Callable[..., object], *args: object) -> None:
        assert_refused(self, status, function, *args)


class BodyTest(unittest.TestCase):
    """Where a body ends, and what is in it."""

    def test_a_length_is_read(self) -> None:
        for name, (values, length) in GOOD_LENGTHS.items():
            with self.subTest(name):
                self.assertEqual(self.length('Content-Length', values), length)

    def test_a_length_that_is_not_beyond_doubt_is_refused(self) -> None:
        for name, values in BAD_LENGTHS.items():
            with self.subTest(name):
                assert_refused(self, 400, self.length, 'Content-Length', values)

    def test_a_chunked_body_has_no_length(self) -> None:
        for coding in ('chunked', 'Chunked', 'CHUNKED'):
            self.assertIsNone(self.length('Transfer-Encoding', [coding]))

    def test_any_other_transfer_coding_is_refused(self) -> None:
        for name, values in BAD_CODINGS.items():
            with self.subTest(name):
                assert_refused(self, 400, self.length, 'Transfer-Encoding', values)

    def test_a_chunked_body_is_refused_in_http_1_0(self) -> None:
        assert_refused(self, 400, self.length, 'Transfer-Encoding', ['chunked'], 'HTTP/1.0')

    def test_a_length_beside_a_transfer_coding_is_refused(self) -> None:
        for coding in ('chunked', 'identity', ''):
            fields = HTTPHeaders({'Transfer-Encoding': coding, 'Content-Length': '5'})
            assert_refused(self, 400, framing.body_length, start_line(), fields)

    def test_a_chunk_size_is_read(self) -> None:
        for line, size in GOOD_CHUNK_LINES.items():
            with self.subTest(line):
                self.assertEqual(framing.parse_chunk_size(line), size)

    def test_a_bad_chunk_size_is_refused(self) -> None:
        for line in BAD_CHUNK_LINES:
            with self.subTest(line):
                assert_refused(self, 400, framing.parse_chunk_size, line)

    def test_gzip_is_inflated_up_to_the_limit(self) -> None:
        self.assertEqual(framing.inflate(ZIPPED, 10), b'a document')
        self.assertEqual(framing.inflate(gzip.compress(b''), 10), b'')

    def test_gzip_of_more_than_the_limit_is_refused(self) -> None:
        assert_refused(self, 413, framing.inflate, ZIPPED, 9)
        assert_refused(self, 413, framing.inflate, gzip.compress(b'\0' * 10**7), 65536)

    def test_what_is_not_gzip_is_refused(self) -> None:
        for name, data in BAD_ZIPS.items():
            with self.subTest(name):
                assert_refused(self, 400, framing.inflate, data, 1000)

    @property_test
    @given(st.binary(max_size=300))
    def test_gzip_of_anything_comes_back(self, data: bytes) -> None:
        self.assertEqual(framing.inflate(gzip.compress(data), 300), data)

    def test_a_connection_closes_when_either_side_expects_it_to(self) -> None:
        for version, options, closes in (
                ('HTTP/1.1', [], False), ('HTTP/1.1', ['close'], True),
                ('HTTP/1.1', ['Close'], True), ('HTTP/1.1', ['keep-alive'], False),
                ('HTTP/1.1', ['x , close'], True), ('HTTP/1.1', ['x', 'close'], True),
                ('HTTP/1.1', ['closed'], False), ('HTTP/1.0', [], True),
                ('HTTP/1.0', ['keep-alive'], False), ('HTTP/1.0', ['Keep-Alive'], False),
                ('HTTP/1.0', ['close'], True), ('HTTP/1.0', ['keep-alive, close'], True)):
            with self.subTest(version, options=options):
                self.assertEqual(
                    framing.wants_close(version, fields_of('Connection', options)),
                    closes)

    def length(self, field: str, values: list[str], version: str = 'HTTP/1.1') -> int | None:
        return framing.body_length(start_line(version), fields_of(field, values))


class JSONTest(unittest.TestCase):
    """What is a document."""

    def test_a_document_is_read(self) -> None:
        for text, document in GOOD_DOCUMENTS.items():
            with self.subTest(text):
                value = parse_json(text.encode())
                if document is not None:
                    self.assertEqual((value, type(value)), (document, type(document)))

    def test_what_is_no_document_is_refused(self) -> None:
        for name, body in BAD_DOCUMENTS.items():
            with self.subTest(name):
                with self.assertRaises(InvalidJSON) as caught:
                    parse_json(body)
                self.assertTrue(caught.exception.detail)
                self.assertNotRegex(caught.exception.detail, 'codec|Error|Expecting|limit')

    def test_a_zero_with_any_exponent_is_zero_or_refused(self) -> None:
        for exponent in ('9' * 20, '-' + '9' * 20, '9' * 5000):
            with self.subTest(exponent[:9]), contextlib.suppress(InvalidJSON):
                self.assertEqual(parse_json(f'0e{exponent}'.encode()), 0)

    def test_the_detail_says_where(self) -> None:
        for body, place in ((b'{"a": 1,\n "b" 2}', 'line 2, column 6'), (b'"ab\xff"', 'byte 3')):
            with self.subTest(body), self.assertRaisesRegex(InvalidJSON, place):
                parse_json(body)

    @property_test
    @given(DOCUMENTS)
    def test_any_document_comes_back_the_same(self, document: Any) -> None:
        self.assertEqual(repr(parse_json(json.dumps(document).encode())), repr(document))

    @property_test
    @given(BODIES)
    def test_any_bytes_are_a_document_or_refused(self, body: bytes) -> None:
        with contextlib.suppress(InvalidJSON):
            parse_json(body)

    @property_test
    @given(BODIES | DOCUMENTS.map(json.dumps).map(str.encode) | DOCUMENTS.map(msgspec.json.encode))
    def test_what_is_read_the_short_way_is_what_the_careful_parser_reads(self, body: bytes
                                                                         ) -> None:
        with contextlib.suppress(InvalidJSON):
            self.assertEqual(repr(parse_json(body)), repr(json_body._parse_with_care(body)))

    def test_the_short_way_is_the_usual_one(self) -> None:
        with mock.patch.object(json_body, '_parse_with_care', side_effect=AssertionError):
            for document in address_data_suite().values():
                text = json.dumps(document, ensure_ascii=False)
                self.assertEqual(parse_json(text.encode()), document)

    def test_json_types_are_accepted(self) -> None:
        for headers in GOOD_TYPES:
            with self.subTest(headers):
                require_json_type(Headers.of(HTTPHeaders(headers)))

    def test_other_types_are_refused(self) -> None:
        for headers in BAD_TYPES:
            with self.subTest(headers):
                assert_refused(self, 415, require_json_type, Headers.of(HTTPHeaders(headers)))


PLACE = '{"kind":"home","building_name":"b","unit_number":%s,"street_name":"s","locality":"l",' \
        '"city":"c","province":"p","pincode":"1","country":"c"}'
NUMBERS = ('1', '1.0', '1.50', '10e1', '1e2', '0.1', '-0.0', '0.30000000000000001', '1e400', 'NaN',
           '9007199254740993', '12345678901234567890.5', '3.1415926535897931', '2.4999999999999999')


def entry_bodies() -> Iterator[bytes]:
    """Bodies of entries as clients may write them, and of what is nearly one."""
    for document in address_data_suite().values():
        backwards = dict(reversed(document.items()))
        for sent in (document, backwards, {**document, 'full_name': 'É\u2028"\\/'}):
            for style in ({}, {'indent': 2}, {'separators': (',', ':')}, {'ensure_ascii': False}):
                yield json.dumps(sent, **style).encode()
        yield json.dumps({**document, 'more': 1}).encode()
        yield json.dumps({**document, 'full_name': ' '}).encode()
    for number in NUMBERS:
        yield ('{"full_name":"x","addresses":[%s]}' % (PLACE % number)).encode()
    for text in ('{"full_name":"x","full_name":"x"}', '{"full_name":"x","full_name":"y"}',
                 '{"full_name":"x"} ', '{"full_name":"x"}x', '{"full_name":"x",}', '[]', '', 'null',
                 '{"full_name":"\\u0078"}', '{"full_name":"a\\/b"}', '{"full_name":"\\ud800"}',
                 '\ufeff{"full_name":"x"}', '{"full_name":"\\u0000"}', '[' * 100_000):
        yield text.encode()
    yield b'{"full_name":"\xff"}'


class EntryTest(unittest.TestCase):
    """An entry in a body is read the short way, and means what it means to those who look
    at all of it."""

    def test_it_is_what_the_careful_parser_and_the_rules_make_of_it(self) -> None:
        for body in entry_bodies():
            with self.subTest(body=body[:200]):
                self.assertEqual(self.outcome(read_entry, body),
                                 self.outcome(json_body._parse_with_care, body))

    def outcome(self, read: Callable[[bytes], object], body: bytes) -> object:
        """The text that is stored, or all that is said of what is wrong."""
        try:
            return entry_of(read(body)).to_json()
        except InvalidAddress as error:
            return error.faults
        except InvalidJSON as error:
            return error.detail

    def test_the_short_way_is_the_usual_one(self) -> None:
        for document in address_data_suite().values():
            for sent in (document, dict(reversed(document.items()))):
                with mock.patch.object(json_body, 'parse_json', side_effect=AssertionError):
                    entry = read_entry(json.dumps(sent, ensure_ascii=False).encode())
                self.assertIsInstance(entry, AddressEntry)


class ClientTest(unittest.TestCase):
    """Whose request it is."""

    def test_only_trusted_proxies_are_believed(self) -> None:
        for name, (peer, forwarded, client) in CLIENTS.items():
            with self.subTest(name):
                headers = HTTPHeaders({'X-Forwarded-For': forwarded})
                self.assertEqual(client_ip(peer, headers, TRUSTED), client)

    def test_no_proxy_is_trusted_unless_configured(self) -> None:
        headers = HTTPHeaders({'X-Forwarded-For': '198.51.100.7'})
        self.assertEqual(client_ip('127.0.0.1', headers, []), '127.0.0.1')

    def test_several_fields_are_one_list(self) -> None:
        headers = fields_of('X-Forwarded-For', ['203.0.113.9', '198.51.100.7, 10.0.0.2'])
        self.assertEqual(client_ip('10.0.0.1', headers, TRUSTED), '198.51.100.7')

    def test_other_headers_are_not_believed(self) -> None:
        headers = HTTPHeaders({'X-Real-Ip': '198.51.100.7', 'Forwarded': 'for=198.51.100.7'})
        self.assertEqual(client_ip('10.0.0.1', headers, TRUSTED), '10.0.0.1')


def start_line(version: str = 'HTTP/1.1') -> RequestStartLine:
    return RequestStartLine('POST', '/', version)


def fields_of(name: str, values: list[str]) -> HTTPHeaders:
    """Header fields as a parser would leave them that lets more through than Tornado's."""
    headers = HTTPHeaders()
    if values:
        headers[name] = values[0]
    for value in values[1:]:
        headers.add(name, value)
    return headers


def assert_refused(test: unittest.TestCase, status: int, function: Callable[..., object],
                   *args: object) -> None:
    """The call raises an HTTPError that has something to say, and none of it from elsewhere."""
    with test.assertRaises(HTTPError) as caught:
        function(*args)
    test.assertEqual(caught.exception.status_code, status)
    test.assertTrue(caught.exception.log_message)
    test.assertIsNone(caught.exception.reason)


if __name__ == '__main__':
    unittest.main()

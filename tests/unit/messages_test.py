"""Header fields and requests that were made the short way are what Tornado's own are."""

from __future__ import annotations

import sys
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tornado import httputil
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from addrservice.tornado.exchange import Peer
from addrservice.tornado.messages import Headers, Request

FIELDS = (('host', 'example.org'), ('X-Request-ID', 'a'), ('accept', 'x'), ('Accept', 'y'),
          ('Empty', ''))


class Connection:
    """What a request knows of its connection."""

    context = Peer('192.0.2.1', 'https')


class HeadersTest(unittest.TestCase):
    def setUp(self) -> None:
        self.ours, self.tornados = Headers(), HTTPHeaders()
        for headers in (self.ours, self.tornados):
            for name, value in FIELDS:
                headers.add(name, value)

    def test_they_hold_the_same_under_the_same_names(self) -> None:
        self.assertEqual(list(self.ours.get_all()), list(self.tornados.get_all()))
        self.assertEqual((4, list(self.ours)), (len(self.ours), list(self.tornados)))
        self.assertEqual(str(self.ours), str(self.tornados))
        for name in ('Host', 'hOST', 'x-request-id', 'ACCEPT', 'Accept-Encoding', ''):
            with self.subTest(name=name):
                self.assertEqual(name in self.ours, name in self.tornados)
                self.assertEqual(self.ours.get(name), self.tornados.get(name))
                self.assertEqual(self.ours.get(name, 'z'), self.tornados.get(name, 'z'))
                self.assertEqual(self.ours.get_list(name), self.tornados.get_list(name))
        self.assertNotIn(7, self.ours)

    def test_they_can_be_made_of_tornados(self) -> None:
        self.assertEqual(list(Headers.of(self.tornados).get_all()), list(self.tornados.get_all()))

    def test_what_is_no_field_is_refused_whether_or_not_there_is_one(self) -> None:
        for headers in (self.ours, self.tornados):
            for name, value in (('Accept', 'a\nb'), ('Other', 'a\0b'), ('a b', 'x')):
                with self.subTest(name), self.assertRaises(httputil.HTTPInputError):
                    headers.add(name, value)

    def test_a_copy_holds_the_same_and_is_another(self) -> None:
        copied = self.ours.copy()
        copied['Host'] = 'b'
        self.assertEqual(self.ours['Host'], 'example.org')

    def test_a_copy_stays_one_whatever_is_done_to_either(self) -> None:
        copied = self.ours.copy()
        self.assertIsInstance(copied, Headers)
        copied.add('Accept', 'z')
        self.ours.add('Host', 'c')
        self.assertEqual(self.ours.get_list('Accept'), ['x', 'y'])
        self.assertEqual(copied.get_list('Host'), ['example.org'])

    def test_a_copy_of_a_copy_is_one_whichever_is_changed_and_however(self) -> None:
        changes: tuple[Callable[[Headers], object], ...] = (
            lambda headers: headers.add('Accept', 'z'), lambda headers: headers.pop('Host'),
            lambda headers: headers.update({'Host': 'c'}), lambda headers: headers.clear(),
            lambda headers: headers.setdefault('X', 'y'),
            lambda headers: headers.get_list('Accept').append('z'),
            lambda headers: headers.parse_line('Accept: z'))
        for change in changes:
            for place in range(3):
                before = list(self.ours.get_all())
                one = self.ours.copy()
                copies = [one, one.copy(), one.copy().copy()]
                change(copies[place])
                for headers in [self.ours, *copies[:place], *copies[place + 1:]]:
                    self.assertEqual(list(headers.get_all()), before)
                    self.assertEqual(headers['Accept'], 'x,y')

    def test_what_is_put_has_replaced_what_was_there(self) -> None:
        self.assertEqual(self.ours['Accept'], 'x,y')  # and is remembered
        self.ours.fields['Accept'] = 'z'
        self.tornados['Accept'] = 'z'
        self.assertEqual(self.ours['Accept'], 'z')
        self.assertEqual(list(self.ours.get_all()), list(self.tornados.get_all()))
        for headers in (self.ours, self.tornados):
            headers.add('accept', 'y')
        self.assertEqual(self.ours.get_list('Accept'), self.tornados.get_list('Accept'))
        self.assertEqual('z,y', self.ours['Accept'])

    def test_their_lines_are_what_is_sent(self) -> None:
        lines = ('Host: example.org\r\nX-Request-Id: a\r\nAccept: x\r\nAccept: y\r\n'
                 'Empty: \r\n')
        self.assertEqual(self.ours.lines(), lines)
        self.assertEqual(self.ours['Accept'], 'x,y')  # and is remembered
        for headers in (self.ours, self.ours.copy()):
            self.assertEqual(headers.lines(), lines)
        headers = Headers()
        self.assertEqual(headers.lines(), '')
        headers['Host'] = 'x'
        headers.fields['Etag'] = '"a"'
        self.assertEqual(headers.lines(), 'Host: x\r\nEtag: "a"\r\n')
        del headers['host']
        self.assertEqual(headers.lines(), 'Etag: "a"\r\n')
        headers.add('etag', '"b"')
        self.assertEqual(headers.lines(), 'Etag: "a"\r\nEtag: "b"\r\n')

    def test_what_is_removed_is_gone(self) -> None:
        del self.ours['Host']
        self.assertNotIn('host', self.ours)


class RequestTest(unittest.TestCase):
    def attributes(self, kind: type[HTTPServerRequest], start_line: RequestStartLine,
                   host: str | None) -> dict[str, Any]:
        """All that a request has, or the error that there is none."""
        headers = Headers({} if host is None else {'Host': host})
        try:
            other = HTTPServerRequest(connection=Connection, start_line=start_line,  # type: ignore
                                      headers=headers)
            made = Request(Connection, start_line, headers) if kind is Request else other
        except httputil.HTTPInputError as error:
            return {'error': str(error)}
        has = {name: getattr(made, name) for name in vars(other)}
        return {**has, '_start_time': None, 'age': round(time.time() - made._start_time)}

    def test_it_has_the_attributes_of_tornados_or_is_refused_as_that_is(self) -> None:
        for target in ('/', '/a/b', '/a%20b;c', '/a?', '/a?b=c&b=d&e', '/a?b&b=%41+%ff',
                       f'/?{1001 * "a&"}', '/?', '*'):
            for host in ('example.org', 'Example.ORG:8080', '[::1]:80', '127.0.0.1', '', 'a b',
                         'a,b', 'a/b', None):
                for version in ('HTTP/1.1', 'HTTP/1.0'):
                    start_line = RequestStartLine('GET', target, version)
                    with self.subTest(target=target, host=host, version=version):
                        self.assertEqual(self.attributes(Request, start_line, host),
                                         self.attributes(HTTPServerRequest, start_line, host))

    def test_two_requests_share_nothing_that_can_be_changed(self) -> None:
        for target, sent in (('/', {}), ('/?a=b', {'a': [b'b']})):
            start_line = RequestStartLine('GET', target, 'HTTP/1.1')
            one, other = (Request(Connection, start_line, Headers({'Host': 'x'}))
                          for _ in range(2))
            one.arguments.setdefault('a', []).append(b'c')
            with self.subTest(target=target):
                self.assertEqual((one.query_arguments, one.body_arguments, other.arguments),
                                 (sent, {}, sent))


if __name__ == '__main__':
    unittest.main()

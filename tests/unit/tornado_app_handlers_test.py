"""The handlers of the web application, one by one, on Tornado's own test server."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import re
import sys
import unittest
from asyncio import Future
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tornado.httpclient import HTTPResponse
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.template import DictLoader
from tornado.web import Application, Finish, RequestHandler

import data
from addrservice import LOGGER_NAME
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, StorageUnavailable, UnreadableRecord)
from addrservice.tornado.addressbook import AddressBookRequestHandler
from addrservice.tornado.admin import PageRequestHandler
from addrservice.tornado.app import (
    ADMIN_ROUTES, ROUTES, Route, RoutedApplication, RouteTable)
from addrservice.tornado.base import BaseRequestHandler
from addrservice.tornado.connection import HTTPServer
from addrservice.tornado.listening import limits_of
from addrservice.tornado.transport import FastConnection
from tests.support import AddressServiceAppTestCase


class AddressServiceTornadoAppTestCase(AddressServiceAppTestCase):
    """Knows what an error looks like."""

    def assert_error(self, response: HTTPResponse, code: int, message: str) -> dict[str, Any]:
        """Checks an error document, and returns it."""
        document: dict[str, Any] = json.loads(response.body)
        self.assertEqual((response.code, response.reason), (code, message))
        self.assertEqual((document['code'], document['message']), (code, message))
        self.assertEqual(document['method'], response.request.method)
        self.assertEqual(document['req_id'], response.headers['X-Request-ID'])
        self.assertTrue(response.request.url.endswith(document['uri']))
        return document


class AddressServiceTornadoAppUnitTests(AddressServiceTornadoAppTestCase):
    def test_default_handler(self) -> None:
        for path in ('/does-not-exist', '/', '/addresses/a/b', '/address'):
            with self.subTest(path):
                document = self.assert_error(self.ask('GET', path), 404, 'Unknown Endpoint')
                self.assertNotIn('trace', document)

    def test_any_method_on_an_unknown_path_is_an_unknown_endpoint(self) -> None:
        for method in ('POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS', 'FOO'):
            with self.subTest(method):
                self.assert_error(self.ask(method, '/nowhere'), 404, 'Unknown Endpoint')

    def test_options_names_the_methods_of_each_route(self) -> None:
        expected = {'/addresses': 'GET, HEAD, POST, OPTIONS',
                    '/addresses/x': 'GET, HEAD, PUT, DELETE, OPTIONS',
                    '/healthz': 'GET, HEAD, OPTIONS'}
        for path, allow in expected.items():
            with self.subTest(path):
                response = self.ask('OPTIONS', path)
                self.assertEqual((response.code, response.headers['Allow']), (204, allow))

    def test_a_method_that_is_not_there_is_told_which_ones_are(self) -> None:
        for method in ('PATCH', 'DELETE', 'TRACE', 'FOO'):
            with self.subTest(method):
                response = self.ask(method, '/addresses')
                self.assert_error(response, 405, 'Method Not Allowed')
                self.assertEqual(response.headers['Allow'], 'GET, HEAD, POST, OPTIONS')

    def test_every_answer_has_the_headers_that_all_should_have(self) -> None:
        for path in ('/addresses', '/addresses/x', '/nowhere'):
            with self.subTest(path):
                headers = self.ask('GET', path).headers
                self.assertEqual(headers['Cache-Control'], 'no-store')
                self.assertEqual(headers['X-Content-Type-Options'], 'nosniff')
                self.assertEqual(headers['Server'], 'addrservice')
                self.assertEqual(headers['Vary'], 'Accept-Encoding')
                self.assertEqual([], [name for name in headers if len(headers.get_list(name)) > 1])

    def test_healthz_tells_the_uptime_in_whole_milliseconds(self) -> None:
        first = json.loads(self.ask('GET', '/healthz').body)
        second = json.loads(self.ask('GET', '/healthz/').body)
        self.assertEqual(list(first), ['uptime'])
        self.assertIsInstance(first['uptime'], int)
        self.assertGreaterEqual(second['uptime'], first['uptime'])

    def test_readiness_says_whether_the_service_is_ready(self) -> None:
        response = self.ask('GET', '/readiness')
        self.assertEqual(response.code, 200)
        self.assertIs(json.loads(response.body)['ready'], True)
        self.service.drain()
        response = self.ask('GET', '/readiness')
        self.assertEqual(response.code, 503)
        self.assertIs(json.loads(response.body)['ready'], False)
        self.assertEqual(self.ask('GET', '/healthz').code, 200)

    def test_a_request_id_of_the_client_is_kept_if_it_is_sane(self) -> None:
        for given, kept in (('abc-123', True), ('x' * 65, False), ('a b', False), ('"', False)):
            with self.subTest(given):
                answered = self.ask('GET', '/healthz', **{'X-Request-ID': given}).headers
                self.assertEqual(answered['X-Request-ID'] == given, kept)

    def test_errors_of_the_store_become_a_status_and_keep_their_cause_to_the_log(self) -> None:
        for error, code, message in (
                (StorageUnavailable('Later', '/secret/path'), 503, 'Service Unavailable'),
                (UnreadableRecord('Broken', '/secret/path'), 500, 'Internal Server Error')):
            with self.subTest(code), mock.patch.object(
                    self.service.addr_db, 'read_address', side_effect=error):
                response = self.ask('GET', '/addresses/x')
                document = self.assert_error(response, code, message)
                self.assertEqual(document['detail'], error.detail)
                self.assertNotIn(b'secret', response.body)
                self.assertEqual('Retry-After' in response.headers, code == 503)

    def test_whoever_comes_second_fails_a_precondition_also_if_the_store_finds_out(self) -> None:
        document = data.address_data_suite()['namo']
        place = self.ask('POST', '/addresses', document).headers['Location']
        tag = self.ask('GET', place).headers['Etag']
        for call, error, path, condition in (
                ('create_address', AddressExists('Taken'), '/addresses/x', {'If-None-Match': '*'}),
                ('update_address', AddressChanged('Changed'), place, {'If-Match': tag})):
            with self.subTest(call), mock.patch.object(
                    self.service.addr_db, call, side_effect=error):
                response = self.ask('PUT', path, document, **condition)
                self.assert_error(response, 412, 'Precondition Failed')

    def test_only_the_book_and_its_entries_have_tags(self) -> None:
        for path, has_tag in (('/addresses', True), ('/addresses?limit=1', True),
                              ('/healthz', False), ('/readiness', False), ('/nowhere', False),
                              ('/addresses/x', False), ('/addresses?limit=0', False)):
            with self.subTest(path):
                self.assertEqual('Etag' in self.ask('GET', path).headers, has_tag)

    def test_an_uncaught_exception_is_a_500_that_tells_nothing(self) -> None:
        with mock.patch.object(self.service, 'get_address', side_effect=RuntimeError('secret')):
            with self.assertLogs('tornado.application', 'ERROR'):
                response = self.ask('GET', '/addresses/x')
        self.assert_error(response, 500, 'Internal Server Error')
        self.assertNotIn(b'secret', response.body)

    def test_more_requests_than_the_limit_are_sent_away_but_probes_are_answered(self) -> None:
        self.app.admission.in_flight = self.app.admission.max_in_flight
        response = self.ask('GET', '/addresses')
        self.assert_error(response, 503, 'Service Unavailable')
        self.assertIn(int(response.headers['Retry-After']), range(1, 10))
        self.assertEqual(self.ask('GET', '/healthz').code, 200)
        self.app.admission.in_flight = 0
        self.assertEqual(self.ask('GET', '/addresses').code, 200)

    def test_routes_accept_a_trailing_slash(self) -> None:
        for route in ROUTES:
            path = route.template.replace('{id}', 'x')
            with self.subTest(path):
                self.assertEqual(self.ask('OPTIONS', path).code, 204)
                self.assertEqual(self.ask('OPTIONS', path + '/').code, 204)


class RouteTableTests(unittest.TestCase):
    """Paths find the handlers that Tornado's own patterns find."""

    PATHS = ('/', '//', '', '*', '/addresses', '/addresses/', '/addresses//', '/addresses/a',
             '/addresses/a/', '/addresses/a//', '/addresses/a/b', '/addresses/%2F',
             '/addresses/%zz', '/addresses/a%20b+c', '/addressesx', '/Addresses', '/healthz',
             '/healthz/', '/healthz/x', '/addressbook/x', '/metrics', '/requests', '/requests/a',
             '/requests/', '/a.css', '/a/b.css', 'addresses', '/\u00e9')

    def test_they_agree_about_every_path(self) -> None:
        for routes in (ROUTES, ADMIN_ROUTES):
            table, router = RouteTable(routes), self.tornados_router(routes)
            for path in self.PATHS:
                with self.subTest(path=path):
                    route, arguments = table.find(path)
                    self.assertEqual((route and route.handler, arguments),
                                     self.found_by_tornado(router, path))

    def test_a_path_that_is_served_as_it_stands_wins_over_one_that_varies(self) -> None:
        varying = Route('/{file}', AddressBookRequestHandler)
        fixed = Route('/a', PageRequestHandler)
        self.assertIs(RouteTable([varying, fixed]).find('/a')[0], fixed)

    def tornados_router(self, routes: Sequence[Route]) -> RuleRouter:
        return RuleRouter([
            Rule(PathMatches(re.sub(r'\{\w+\}', '([^/]+)', route.template) + '/?'), route.handler)
            for route in sorted(routes, key=lambda route: route.folder is not None)])

    def found_by_tornado(self, router: RuleRouter, path: str) -> tuple[object, list[bytes]]:
        for rule in router.rules:
            match = rule.matcher.match(mock.Mock(path=path))
            if match is not None:
                return rule.target, match.get('path_args', [])
        return None, []


class DebugTests(AddressServiceTornadoAppTestCase):
    with_debug = True

    def test_with_debug_an_error_document_carries_the_trace(self) -> None:
        document = self.assert_error(self.ask('GET', '/addresses/x'), 404, 'Not Found')
        self.assertIn('AddressNotFound', document['trace'])


class LogTests(AddressServiceTornadoAppTestCase):
    """The lines themselves: with a logger that is listened to."""

    def make_logger(self) -> logging.Logger:
        return logging.getLogger(LOGGER_NAME)

    def test_a_request_leaves_one_line_with_the_fields_in_their_order(self) -> None:
        with self.assertLogs(LOGGER_NAME, 'INFO') as logs:
            self.ask('POST', '/addresses', data.address_data_suite()['namo'])
        self.assertEqual(len(logs.records), 1)
        self.assertRegex(
            logs.records[0].getMessage(),
            r'^req_id="[0-9a-f]{32}" method="POST" uri="/addresses" ip="127\.0\.0\.1" '
            r'trace_id="[0-9a-f]{32}" span_id="[0-9a-f]{16}" '
            r'message="RESPONSE" status=201 time_ms=[0-9.]+ route="/addresses"$')


class AnswerRequestHandler(BaseRequestHandler):
    """Answers as its query asks: with this status, body, tag and cookie."""

    def get(self) -> None:
        self.set_status(int(self.get_query_argument('status', '200')))
        self.etag = self.get_query_argument('etag', None)
        self.set_json_type()
        if cookie := self.get_query_argument('cookie', None):
            self.set_cookie('c', cookie)
        for part in self.get_query_arguments('part'):
            self.write(int(part) * 'x')

    head = post = get

    def _whole_body(self) -> bytes:
        self.settings['sent_whole'].append(self.request.path)
        return super()._whole_body()


class TornadosAnswerRequestHandler(AnswerRequestHandler):
    """Does so, and ends the request as Tornado does."""

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        return RequestHandler.finish(self, chunk)


class PageHandler(BaseRequestHandler):
    """Renders a template that uses what the application gives to templates."""

    def get(self) -> None:
        self.render('page.html')


class OwnHTTPServer(HTTPServer):
    """The service's server, as `AsyncHTTPTestCase` wants to end one."""

    async def close_all_connections(self) -> None:
        self.close_connections()


class FinishTest(AddressServiceAppTestCase):
    """The short way to the end of a request leads where Tornado's own does."""

    def get_http_server(self) -> Any:
        return OwnHTTPServer(
            self._app, self.app.refuse, limits_of(self.service.config['server']),
            self.app.telemetry.connection_refused, FastConnection)

    def get_app(self) -> Application:
        super().get_app()
        return RoutedApplication(
            [Route('/ours', AnswerRequestHandler), Route('/tornados', TornadosAnswerRequestHandler),
             Route('/page', PageHandler)],
            self.service, self.app.telemetry, self.app.admission,
            ui_methods={'shout': lambda handler, text: text.upper()},
            sent_whole=[], template_loader=DictLoader({'page.html': '{{ shout("hello") }}'}))

    def answer(self, path: str, method: str, query: str, headers: dict[str, str]
               ) -> tuple[int, str, list[tuple[str, str]], bytes]:
        """What is seen of an answer, without what differs each time."""
        response = self.fetch(f'{path}?{query}', method=method, headers=headers,
                              decompress_response=False, allow_nonstandard_methods=True)
        fields = [(name, value) for name, value in sorted(response.headers.get_all())
                  if name not in ('Date', 'X-Request-Id')]
        is_gzip = response.headers.get('Content-Encoding') == 'gzip'  # and holds the time
        body = gzip.decompress(response.body) if is_gzip else response.body
        return response.code, response.reason, fields, body

    def test_both_give_the_same_answers(self) -> None:
        queries = ('', 'part=0', 'part=3', 'part=1000&part=1000', 'status=201&part=5',
                   'status=204', 'status=304', 'status=304&etag="a"', 'status=404&part=9',
                   'etag="a"&part=5', 'etag="a"&part=2000', 'status=201&etag="a"',
                   'cookie=d&part=5', 'status=204&cookie=d', 'status=799', 'status=500&part=5')
        conditions: tuple[dict[str, str], ...] = (
            {}, {'Accept-Encoding': 'gzip'}, {'If-None-Match': '"a"'},
            {'If-None-Match': '"b"', 'Accept-Encoding': 'gzip'},
            {'If-None-Match': 'W/"a"', 'Accept-Encoding': 'gzip'})
        for method, query, headers in itertools.product(
                ('GET', 'HEAD', 'POST'), queries, conditions):
            with self.subTest(method=method, query=query, headers=headers):
                self._app.settings['sent_whole'].clear()
                ours, tornados = (self.answer(path, method, query, headers)
                                  for path in ('/ours', '/tornados'))
                self.assertEqual(ours, tornados)
                self.assertEqual(self._app.settings['sent_whole'],
                                 [] if 'cookie' in query else ['/ours'])

    def test_a_body_where_none_may_be_is_a_fault_of_ours(self) -> None:
        for path in ('/ours', '/tornados'):
            for status in (204, 304):
                with self.subTest(path=path, status=status), self.assertLogs(
                        'tornado.application', 'ERROR'):
                    self.assertEqual(self.ask('GET', f'{path}?status={status}&part=3').code, 500)

    def test_a_template_has_what_the_application_gives_it(self) -> None:
        self.assertEqual(self.ask('GET', '/page').body, b'HELLO')


class PreparingHandler(BaseRequestHandler):
    """Waits before it is asked; and answers then, if its query has an answer."""

    async def prepare(self) -> None:
        super().prepare()
        await asyncio.sleep(0)
        self.set_json_type()
        if answer := self.get_query_argument('answer', None):
            self.finish(json.dumps(answer))
        if self.get_query_argument('fails', None):
            raise AddressNotFound('not prepared')

    async def get(self) -> None:
        self.write(json.dumps('asked'))

    post = get


class FinishingHandler(BaseRequestHandler):
    """Ends its request as Tornado's handlers may."""

    async def get(self) -> None:
        self.set_json_type()
        raise Finish(json.dumps('finished'))


class RunTest(AddressServiceAppTestCase):
    """A handler is run as Tornado would run it."""

    def get_app(self) -> Application:
        super().get_app()
        return RoutedApplication(
            [Route('/prepare', PreparingHandler), Route('/finish', FinishingHandler)],
            self.service, self.app.telemetry, self.app.admission, xsrf_cookies=True)

    def test_it_waits_until_it_is_prepared(self) -> None:
        self.assertEqual(json.loads(self.ask('GET', '/prepare').body), 'asked')

    def test_what_was_answered_while_it_was_prepared_is_not_asked_again(self) -> None:
        self.assertEqual(json.loads(self.ask('GET', '/prepare?answer=early').body), 'early')

    def test_what_cannot_be_prepared_is_answered_as_every_error_is(self) -> None:
        response = self.ask('GET', '/prepare?fails=true')
        self.assertEqual((response.code, json.loads(response.body)['detail']),
                         (404, 'not prepared'))

    def test_it_may_end_with_an_exception(self) -> None:
        response = self.ask('GET', '/finish')
        self.assertEqual((response.code, json.loads(response.body)), (200, 'finished'))

    def test_the_settings_against_forged_requests_hold(self) -> None:
        self.assertEqual(self.ask('POST', '/prepare', {}).code, 403)


if __name__ == '__main__':
    unittest.main()

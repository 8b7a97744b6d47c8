"""The admin port shows and controls the process, for operators alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tornado.testing
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import HTTPResponse
from tornado.httpserver import HTTPServer

import data
from addrservice import MULTIPROCESS, __version__
from addrservice.errors import StorageUnavailable
from addrservice.tornado import admin
from addrservice.tornado.admin import Instance
from addrservice.tornado.app import ADMIN_ROUTES, AdminApplication
from tests.support import AddressServiceAppTestCase, Answer, ServerProcess

ENTRY = next(iter(data.address_data_suite().values()))


class AdminTestCase(AddressServiceAppTestCase):
    """Both ports, in this process; the public one's connections are only said to drain."""

    collectors: dict[str, Any] = {'ring': None}
    hosts: list[str] = []

    def make_config(self) -> dict[str, Any]:
        return {'tracing': {'collectors': self.collectors}}

    def setUp(self) -> None:
        super().setUp()
        self.is_out: list[bool] = []
        self.instance = Instance(self.service, self.app.telemetry, self.app.metrics,
                                 self.is_out.append)
        self.servers: list[HTTPServer] = []
        self.serve_admin()

    def serve_admin(self) -> None:
        """Serves the admin port, from now on on a new one."""
        listening, self.admin_port = tornado.testing.bind_unused_port()
        server = HTTPServer(AdminApplication(self.instance, self.hosts, debug=False))
        server.add_socket(listening)
        self.servers.append(server)

    def tearDown(self) -> None:
        for server in self.servers:
            server.stop()
        super().tearDown()

    def admin(self, method: str, path: str, document: object = None, **headers: str
              ) -> HTTPResponse:
        """One request to the admin port."""
        body = None if document is None else json.dumps(document)
        return self.fetch(f'http://127.0.0.1:{self.admin_port}{path}', method=method, body=body,
                          headers=headers, allow_nonstandard_methods=True)

    def read(self, path: str) -> Any:
        """A document of the admin port."""
        answer = self.admin('GET', path)
        self.assertEqual(answer.code, 200, answer.body)
        return json.loads(answer.body)

    def metric(self, name: str, **labels: str) -> float | None:
        text = self.admin('GET', '/metrics').body.decode()
        return next((sample.value for family in text_string_to_metric_families(text)
                     for sample in family.samples
                     if sample.name == name and sample.labels == labels), None)


class StateTest(AdminTestCase):
    def test_readiness_tells_its_checks_one_by_one(self) -> None:
        document = self.read('/readiness')
        self.assertTrue(document['ready'])
        self.assertEqual([(check['name'], check['ok']) for check in document['checks']],
                         [('started', True), ('in rotation', True), ('store', True)])

    def test_a_store_that_does_not_answer_is_named(self) -> None:
        fault = StorageUnavailable('The store cannot be reached', 'secret cause')
        with unittest.mock.patch.object(self.service.addr_db, 'ping', side_effect=fault):
            answer = self.admin('GET', '/readiness')
        self.assertEqual(answer.code, 503)
        check = json.loads(answer.body)['checks'][-1]
        self.assertEqual((check['name'], check['ok'], check['detail']),
                         ('store', False, 'The store cannot be reached'))

    def test_it_is_alive(self) -> None:
        self.assertGreaterEqual(self.read('/healthz')['uptime'], 0)

    def test_info_tells_what_runs_and_no_secret(self) -> None:
        self.service.config['addr-db'] = {'postgres': {'dsn': 'postgresql://u:hunter2@h/b'}}
        info = self.read('/info')
        self.assertEqual((info['version'], info['state'], info['engine']),
                         (__version__, 'serving', 'memory'))
        self.assertEqual(info['dependencies']['tornado'], tornado.version)
        self.assertEqual(info['config']['addr-db'],
                         {'postgres': {'dsn': 'postgresql://u:***@h/b'}})

    def test_an_image_may_say_which_commit_it_is(self) -> None:
        admin.commit.cache_clear()
        self.addCleanup(admin.commit.cache_clear)
        with unittest.mock.patch.dict('os.environ', ADDRSERVICE_GIT_COMMIT='abc'):
            self.assertEqual(self.read('/info')['git'], 'abc')

    def test_without_git_the_commit_is_not_known(self) -> None:
        admin.commit.cache_clear()
        self.addCleanup(admin.commit.cache_clear)
        with unittest.mock.patch.object(admin, '_git', side_effect=FileNotFoundError):
            self.assertIsNone(self.read('/info')['git'])


class RotationTest(AdminTestCase):
    def test_out_of_rotation_it_is_not_ready_and_serves(self) -> None:
        self.assertEqual(json.loads(self.admin('POST', '/drain').body), {'state': 'draining'})
        self.assertEqual(self.ask('GET', '/readiness').code, 503)
        self.assertEqual(self.ask('GET', '/addresses').code, 200)
        self.assertEqual(self.read('/info')['state'], 'draining')
        self.assertEqual(json.loads(self.admin('POST', '/undrain').body), {'state': 'serving'})
        self.assertEqual(self.ask('GET', '/readiness').code, 200)
        self.assertEqual(self.is_out, [True, False])

    def test_what_is_about_to_end_or_not_there_yet_cannot_be_rotated(self) -> None:
        self.instance.is_stopping = True
        for path in ('/drain', '/undrain'):
            answer = self.admin('POST', path)
            self.assertEqual((answer.code, json.loads(answer.body)['detail']),
                             (409, 'The process is stopping'))
        self.instance.is_stopping = False
        self.io_loop.run_sync(self.service.stop)
        self.assertEqual(self.admin('POST', '/drain').code, 409)
        self.assertEqual(self.is_out, [])


class MetricsTest(AdminTestCase):
    def test_requests_of_the_public_port_are_counted_and_no_others(self) -> None:
        self.ask('POST', '/addresses', ENTRY)
        self.ask('GET', '/nowhere/at/all')
        for _ in range(2):
            self.read('/info')
        labels = {'method': 'POST', 'route': '/addresses', 'status': '201'}
        name = 'http_server_request_duration_seconds_count'
        self.assertEqual(self.metric(name, **labels), 1)
        self.assertEqual(self.metric(name, method='GET', route='(unknown)', status='404'), 1)
        self.assertNotIn(b'/info', self.admin('GET', '/metrics').body)
        self.assertEqual(self.metric('addrservice_entries'), 1)
        self.assertEqual(self.metric('addrservice_ready'), 1)
        self.assertEqual(self.metric('http_server_active_requests'), 0)

    def test_bodies_refusals_and_engine_calls_are_counted(self) -> None:
        size = len(json.dumps(ENTRY))
        self.ask('POST', '/addresses', ENTRY)
        self.ask('POST', '/addresses', ENTRY, **{'Content-Type': 'text/plain'})
        self.app.admission.in_flight += self.app.admission.max_in_flight
        self.ask('GET', '/addresses')
        self.app.admission.in_flight -= self.app.admission.max_in_flight
        labels = {'method': 'POST', 'route': '/addresses'}
        self.assertEqual(
            self.metric('http_server_request_body_size_bytes_sum', **labels), 2 * size)
        for reason in ('unsupported_media_type', 'overloaded'):
            self.assertEqual(self.metric('addrservice_requests_refused_total', reason=reason), 1)
        with unittest.mock.patch.object(self.service.addr_db, 'read_address',
                                        side_effect=StorageUnavailable('not now')):
            self.assertEqual(self.ask('GET', '/addresses/a').code, 503)
        self.assertEqual(self.metric(
            'addrservice_requests_refused_total', reason='storage_unavailable'), 1)
        self.assertEqual(self.metric(
            'addrservice_db_operation_duration_seconds_count',
            engine='memory', operation='create_address', outcome='ok'), 1)

    def test_a_store_that_cannot_count_spoils_nothing(self) -> None:
        fault = StorageUnavailable('not now')
        with unittest.mock.patch.object(self.service, 'count_addresses', side_effect=fault):
            self.assertIsNone(self.metric('addrservice_entries'))
        self.assertEqual(self.metric('addrservice_entries'), 0, 'it is tried again')

    def test_entries_are_not_counted_for_everyone_who_asks(self) -> None:
        self.metric('addrservice_entries')
        self.ask('POST', '/addresses', ENTRY)
        self.assertEqual(self.metric('addrservice_entries'), 0)
        with unittest.mock.patch.object(admin, 'COUNT_SECONDS', 0):
            self.assertEqual(self.metric('addrservice_entries'), 1)

    def test_openmetrics_is_for_who_accepts_it_and_names_a_trace_for_each_latency(self) -> None:
        trace_id = 32 * 'a'
        self.ask('GET', '/addresses', traceparent=f'00-{trace_id}-{16 * "b"}-01')
        answer = self.admin('GET', '/metrics', Accept='application/openmetrics-text',
                            **{'Accept-Encoding': 'gzip'})
        self.assertTrue(answer.headers['Content-Type'].startswith('application/openmetrics-text'))
        self.assertEqual(answer.headers['X-Consumed-Content-Encoding'], 'gzip')
        self.assertIn(f'# {{trace_id="{trace_id}"}}', answer.body.decode())


class RequestsTest(AdminTestCase):
    def test_requests_are_found_by_kind_and_by_id(self) -> None:
        self.ask('POST', '/addresses', ENTRY, **{'X-Request-ID': 'mine'})
        lists = self.read('/requests')
        self.assertEqual(set(lists), {'last', 'slowest', 'failed'})
        self.assertEqual([request['req_id'] for request in lists['last']], ['mine'])
        self.assertEqual(list(self.read('/requests?kind=slowest')), ['slowest'])
        found, = self.read('/requests/mine')['requests']
        self.assertEqual(found['line']['status'], 201)
        self.assertEqual(found['spans'][0]['name'], 'POST /addresses')

    def test_what_is_not_there_is_404_and_what_cannot_be_400(self) -> None:
        self.assertEqual(self.admin('GET', '/requests/nobody').code, 404)
        self.assertEqual(self.admin('GET', '/requests?kind=best').code, 400)


class NoRecorderTest(AdminTestCase):
    collectors = {}

    def test_without_a_flight_recorder_it_is_said_how_to_have_one(self) -> None:
        answer = self.admin('GET', '/requests')
        self.assertEqual(answer.code, 404)
        self.assertIn('"ring"', json.loads(answer.body)['detail'])


class LoggersTest(AdminTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.logger = logging.getLogger('admin_test.child')
        self.addCleanup(self.logger.setLevel, logging.NOTSET)

    def test_levels_are_shown_changed_and_given_back(self) -> None:
        self.assertIn('admin_test.child', self.read('/loggers')['loggers'])
        self.assertNotIn('admin_test', self.read('/loggers')['loggers'], 'nobody logs to it')
        answer = self.admin('PUT', '/loggers/admin_test.child', {'level': 'DEBUG'})
        self.assertEqual(json.loads(answer.body), {
            'name': 'admin_test.child', 'level': 'DEBUG', 'effective': 'DEBUG'})
        self.assertTrue(self.logger.isEnabledFor(logging.DEBUG))
        self.admin('PUT', '/loggers/admin_test.child', {'level': None})
        self.assertEqual(self.logger.level, logging.NOTSET)

    def test_nonsense_is_refused(self) -> None:
        for path, document, status in (
                ('/loggers/admin_test.child', {'level': 'LOUD'}, 400),
                ('/loggers/admin_test.child', ['DEBUG'], 400),
                ('/loggers/admin_test.child', {}, 400),
                ('/loggers/root', {'level': None}, 400),
                ('/loggers/admin_test', {'level': 'DEBUG'}, 404),
                ('/loggers/nobody', {'level': 'DEBUG'}, 404)):
            with self.subTest(path=path, document=document):
                self.assertEqual(self.admin('PUT', path, document).code, status)
        self.assertNotIn('nobody', logging.root.manager.loggerDict)


class DiagnosisTest(AdminTestCase):
    def test_tasks_are_shown_with_what_they_await(self) -> None:
        async def waiting_for_godot() -> None:
            await asyncio.sleep(60)

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(waiting_for_godot(), name='godot')

        task = self.io_loop.run_sync(start)
        tasks = {task['name']: task for task in self.read('/tasks')['tasks']}
        self.assertIn('waiting_for_godot', ' '.join(tasks['godot']['stack']))
        task.cancel()

    def test_a_profile_shows_what_runs(self) -> None:
        async def busy_bee() -> None:
            while True:
                for _ in range(20):
                    sum(range(10_000))
                await asyncio.sleep(0.001)

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(busy_bee())

        task = self.io_loop.run_sync(start)
        for kind, media_type in (('html', 'text/html'), ('speedscope', 'application/json')):
            answer = self.admin('GET', f'/profile?seconds=0.1&format={kind}')
            self.assertTrue(answer.headers['Content-Type'].startswith(media_type))
            self.assertTrue(b'busy_bee' in answer.body)
        task.cancel()

    def test_a_profile_that_cannot_be_is_refused(self) -> None:
        for query in ('seconds=0', 'seconds=61', 'seconds=x', 'seconds=nan', 'format=pdf'):
            self.assertEqual(self.admin('GET', f'/profile?{query}').code, 400, query)

    def test_one_profile_is_made_at_a_time(self) -> None:
        async def ask_twice() -> list[int]:
            url = f'http://127.0.0.1:{self.admin_port}/profile?seconds=0.2'
            answers = await asyncio.gather(
                *(self.http_client.fetch(url, raise_error=False) for _ in range(2)))
            return sorted(answer.code for answer in answers)

        self.assertEqual(self.io_loop.run_sync(ask_twice), [200, 409])


class GuardTest(AdminTestCase):
    hosts = ['Operators.example']

    def test_other_sites_pages_are_refused(self) -> None:
        for headers, status in (
                ({'Origin': 'http://evil.example'}, 403), ({'Origin': 'null'}, 403),
                ({'Host': 'evil.example'}, 421), ({'Host': 'localhost.evil.example:1'}, 421),
                ({'Host': 'evil.example', 'Origin': 'http://evil.example'}, 421),
                ({'Host': '[::1'}, 421), ({'Origin': 'http://[::1'}, 403),
                ({'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Dest': 'image'}, 403),
                ({'Sec-Fetch-Site': 'same-site', 'Sec-Fetch-Dest': 'iframe'}, 403)):
            with self.subTest(headers=headers):
                self.assertEqual(self.admin('POST', '/drain', **headers).code, status)
                self.assertEqual(self.admin('GET', '/info', **headers).code, status)
        self.assertEqual(self.is_out, [])

    def test_operators_and_their_tools_are_served(self) -> None:
        for host in ('localhost', 'localhost:8081', '127.0.0.1:8081', '10.1.2.3:8081',
                     '[::1]:8081', 'operators.example:8081'):
            with self.subTest(host=host):
                self.assertEqual(self.admin('GET', '/info', Host=host).code, 200)
                answer = self.admin('POST', '/undrain', Host=host, Origin=f'http://{host}')
                self.assertEqual(answer.code, 200)

    def test_a_link_that_stands_elsewhere_can_be_followed_but_changes_nothing(self) -> None:
        headers = {'Sec-Fetch-Site': 'cross-site', 'Sec-Fetch-Dest': 'document'}
        self.assertEqual(self.admin('GET', '/', **headers).code, 200)
        self.assertEqual(self.admin('POST', '/drain', **headers).code, 403)

    def test_looking_is_logged_as_a_probe_and_changing_as_work(self) -> None:
        logger = logging.getLogger('admin_guard_test')
        with unittest.mock.patch.object(self.app.telemetry, 'logger', logger):
            self.serve_admin()
        with self.assertLogs(logger, logging.DEBUG) as logs:
            self.admin('GET', '/info')
            self.admin('POST', '/undrain')
        self.assertEqual([record.levelname for record in logs.records], ['DEBUG', 'INFO'])


class PageTest(AdminTestCase):
    def test_the_page_and_its_files_may_load_nothing_of_others(self) -> None:
        for path, media_type in (('/', 'text/html'), ('/page.css', 'text/css'),
                                 *((f'/{name}.js', 'text/javascript')
                                   for name in ('page', 'metrics', 'requests'))):
            answer = self.admin('GET', path)
            self.assertEqual((answer.code, answer.headers['Content-Type']),
                             (200, f'{media_type}; charset=UTF-8'))
            self.assertIn("default-src 'none'", answer.headers['Content-Security-Policy'])
        for path in ('/page.py', '/..', '/index.htm'):
            self.assertEqual(self.admin('GET', path).code, 404)


class BlockingCollector(SpanProcessor):
    """Somebody's own collector, which keeps the event loop waiting."""

    def __init__(self, settings: object) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if span.kind is SpanKind.SERVER:
            time.sleep(0.6)


class ProcessTest(unittest.TestCase):
    """A real process: what is only seen from outside."""

    def admin(self, server: ServerProcess, method: str, path: str) -> Answer:
        public, server.port = server.port, server.lines('STARTING')[-1]['admin_port']
        try:
            return server.request(method, path)
        finally:
            server.port = public

    def test_it_is_off_when_the_configuration_does_not_have_it(self) -> None:
        with ServerProcess() as server:
            self.assertNotIn('admin_port', server.lines('STARTING')[0])

    def test_what_is_for_operators_is_never_on_the_public_port(self) -> None:
        public = {'/healthz', '/readiness'}
        with ServerProcess({'admin': {'port': 0}}) as server:
            for route in ADMIN_ROUTES:
                if route.template not in public:
                    for method in ('GET', 'POST', 'PUT'):
                        self.assertEqual(server.request(method, route.template).status, 404)
            self.assertNotEqual(server.lines('STARTING')[0]['admin_port'], server.port)

    def test_out_of_rotation_every_answer_ends_its_connection(self) -> None:
        with ServerProcess({'admin': {'port': 0}}) as server:
            self.assertEqual(self.admin(server, 'POST', '/drain').status, 200)
            answer = server.request('GET', '/addresses')
            self.assertEqual((answer.status, answer.headers['Connection']), (200, 'close'))
            self.admin(server, 'POST', '/undrain')
            self.assertIsNone(server.request('GET', '/addresses').headers['Connection'])
            self.assertEqual(server.stop(), 0)

    def test_a_profile_ends_when_its_client_hangs_up(self) -> None:
        with ServerProcess({'admin': {'port': 0}}) as server:
            port = server.lines('STARTING')[-1]['admin_port']
            with socket.create_connection(('127.0.0.1', port)) as client:
                client.sendall(b'GET /profile?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n')
                server.wait_for(lambda: self.admin(
                    server, 'GET', '/profile?seconds=0.01').status == 409)
            server.wait_for(lambda: self.admin(
                server, 'GET', '/profile?seconds=0.01').status == 200)
            self.assertEqual(server.lines('Uncaught exception'), [])
            self.assertIn(499, [line['status'] for line in server.lines('RESPONSE')])

    def test_who_sends_slowly_does_not_keep_operators_out(self) -> None:
        with ServerProcess({'admin': {'port': 0}}) as server:
            port = server.lines('STARTING')[-1]['admin_port']
            for _ in range(25):
                client = self.enterContext(socket.create_connection(('127.0.0.1', port)))
                client.sendall(b'GET /he')
            server.wait_for(lambda: self._answers(server))

    def _answers(self, server: ServerProcess) -> bool:
        try:
            return self.admin(server, 'GET', '/healthz').status == 200
        except ConnectionError:
            return False

    def test_it_answers_while_the_public_port_drains_and_is_gone_after_that(self) -> None:
        config = {'admin': {'port': 0}, 'drain': {'delay': 2}}
        with ServerProcess(config) as server:
            assert server.process is not None
            server.process.terminate()
            server.wait_for(lambda: server.lines('SHUTTING DOWN'))
            self.assertEqual(json.loads(self.admin(server, 'GET', '/info').body)['state'],
                             'stopping')
            self.assertEqual(self.admin(server, 'POST', '/undrain').status, 409)
            self.assertEqual(server.process.wait(10), 0)
            with self.assertRaises(ConnectionError):
                self.admin(server, 'GET', '/healthz')

    def test_processes_that_share_a_folder_tell_the_sum_of_all(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(unittest.mock.patch.dict(os.environ, {MULTIPROCESS: folder}))
        servers = [self.enterContext(ServerProcess({'admin': {'port': 0}})) for _ in range(2)]
        for server in servers:
            server.request('GET', '/addresses')
        name = 'http_server_request_duration_seconds_count'
        count = f'{name}{{method="GET",route="/addresses",status="200"}} 2.0'
        for server in servers:
            for told in (count, 'addrservice_ready 1.0', 'addrservice_entries 0.0',
                         *(f'process_resident_memory_bytes{{pid="{each.process.pid}"}}'
                           for each in servers if each.process)):
                # A request counts after its answer, and each tells of itself once a second.
                server.wait_for(lambda: told in self.admin(
                    server, 'GET', '/metrics').body.decode())

    def test_who_blocks_the_event_loop_is_named(self) -> None:
        collector = 'tests.integration.admin_test.BlockingCollector'
        config = {'watchdog': {'threshold': 0.1}, 'tracing': {'collectors': {collector: None}}}
        with ServerProcess(config) as server:
            # More than once, for on a machine that is too busy a stall may go unseen.
            server.wait_for(lambda: server.request('GET', '/addresses')
                            and server.lines('EVENT LOOP STALLED'))
            line = server.lines('EVENT LOOP STALLED')[0]
        self.assertEqual(line['function'], f'{collector}.on_end')
        self.assertGreater(line['blocked_ms'], 300)

    def test_a_port_that_is_taken_is_named(self) -> None:
        with ServerProcess({'admin': {'port': 0}}) as server:
            port = server.lines('STARTING')[0]['admin_port']
            complaint = f'with 2: .*admin.port: cannot listen on 127.0.0.1 port {port}'
            with self.assertRaisesRegex(AssertionError, complaint):
                self.enterContext(ServerProcess({}, '--admin-port', str(port)))


if __name__ == '__main__':
    unittest.main()

"""A trace goes through the service, and its ids stand in every line of its requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import sys
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tornado.httpclient import AsyncHTTPClient

import data
from addrservice.tornado.base import BaseRequestHandler
from addrservice.utils.logutils import LogfmtFormatter
from addrservice.utils.tracing import outgoing_headers, traced
from tests.otlp import Receiver
from tests.support import AddressServiceAppTestCase, ServerProcess, parse_logfmt

TRACE_ID, SPAN_ID = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'
TRACEPARENT = f'00-{TRACE_ID}-{SPAN_ID}-01'
ENTRY = next(iter(data.address_data_suite().values()))


class _Lines(logging.Handler):
    """All that is logged, as our formatter writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(LogfmtFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(parse_logfmt(self.format(record)))


class _FaultyHandler(BaseRequestHandler):
    """Has a fault, and a library that logs about it."""

    async def get(self) -> None:
        logging.getLogger('somebody.else').error('Something is wrong')
        await asyncio.sleep(0)
        raise RuntimeError('a fault of ours')


class _CallingHandler(BaseRequestHandler):
    """Asks another service."""

    url = ''

    async def get(self) -> None:
        self.finish_json(await self._ask())

    @traced(name='ask the other one')
    async def _ask(self) -> object:
        answer = await AsyncHTTPClient().fetch(self.url, headers=outgoing_headers())
        return json.loads(answer.body)


class TracingTestCase(AddressServiceAppTestCase):
    """Adds handlers as who clones the service would, and collects what is logged."""

    collectors: dict[str, Any] = {}

    def make_config(self) -> dict[str, Any]:
        return {'tracing': {'collectors': self.collectors}}

    def setUp(self) -> None:
        self.handler = _Lines()
        root = logging.getLogger()
        root.addHandler(self.handler)
        self.addCleanup(root.removeHandler, self.handler)
        super().setUp()
        for path, handler in (('/fault', _FaultyHandler), ('/call', _CallingHandler)):
            self.app.add_handlers('.*', [(path, handler, {**self.app.shared, 'route': path})])

    def make_logger(self) -> logging.Logger:
        logger = logging.getLogger('tracing_test')
        logger.setLevel(logging.DEBUG)
        return logger


class LineTest(TracingTestCase):
    def test_the_line_of_each_request_names_trace_and_span(self) -> None:
        self.ask('GET', '/addresses', traceparent=TRACEPARENT)
        line, = self.handler.lines
        self.assertEqual(line['trace_id'], TRACE_ID)
        self.assertRegex(line['span_id'], '^[0-9a-f]{16}$')
        self.assertNotEqual(line['span_id'], SPAN_ID)

    def test_so_do_lines_of_requests_that_no_handler_serves_and_of_probes(self) -> None:
        for method, path in (('GET', '/nowhere'), ('DELETE', '/addresses'), ('GET', '/healthz'),
                             ('POST', '/addresses'), ('FOO', '/addresses')):
            self.ask(method, path, traceparent=TRACEPARENT)
            self.assertEqual(self.handler.lines.pop()['trace_id'], TRACE_ID, path)

    def test_every_error_line_of_a_request_names_the_same_trace_and_span(self) -> None:
        self.assertEqual(self.ask('GET', '/fault', traceparent=TRACEPARENT).code, 500)
        self.assertEqual([line['message'] for line in self.handler.lines],
                         ['Something is wrong', 'Uncaught exception', 'RESPONSE'])
        self.assertEqual({line['trace_id'] for line in self.handler.lines}, {TRACE_ID})
        self.assertEqual(len({line['span_id'] for line in self.handler.lines}), 1)

    def test_the_next_request_has_a_trace_of_its_own(self) -> None:
        for _ in range(2):
            self.ask('GET', '/fault')
        traces = [line['trace_id'] for line in self.handler.lines]
        self.assertEqual([traces.count(trace) for trace in set(traces)], [3, 3])


class RecordedLineTest(LineTest):
    """The same when spans are recorded."""

    collectors = {'ring': None}

    def test_the_flight_recorder_has_the_line_the_spans_and_the_error(self) -> None:
        self.ask('GET', '/fault', **{'X-Request-ID': 'mine'})
        assert self.app.telemetry.tracing.recorder is not None
        found, = self.app.telemetry.tracing.recorder.find('mine')
        self.assertIn('RuntimeError: a fault of ours', found['trace'])
        self.assertEqual(found['line']['status'], 500)
        self.assertEqual(found['spans'][0]['error'], 'RuntimeError: a fault of ours')
        self.assertEqual([summary['req_id'] for summary
                          in self.app.telemetry.tracing.recorder.summaries('failed')], ['mine'])

    def test_a_creation_shows_validation_engine_and_how_they_nest(self) -> None:
        self.ask('POST', '/addresses', ENTRY, **{'X-Request-ID': 'mine'})
        assert self.app.telemetry.tracing.recorder is not None
        root, *others = self.app.telemetry.tracing.recorder.find('mine')[0]['spans']
        self.assertEqual(root['name'], 'POST /addresses')
        names = {span['name']: span for span in others}
        service = names['AddressBookService.create_address']
        self.assertEqual(service['parent_id'], root['span_id'])
        self.assertEqual(names['read_entry']['parent_id'], root['span_id'])
        self.assertEqual(names['AddressBookDB.create_address']['parent_id'], service['span_id'])

    def test_a_document_that_is_no_entry_shows_what_was_checked(self) -> None:
        self.ask('POST', '/addresses', {'full_name': 7}, **{'X-Request-ID': 'mine'})
        assert self.app.telemetry.tracing.recorder is not None
        spans = self.app.telemetry.tracing.recorder.find('mine')[0]['spans']
        failed, = [span for span in spans if span['name'] == 'validate']
        self.assertTrue(failed['error'].startswith('InvalidAddress'), failed)

    def test_probes_are_not_recorded(self) -> None:
        self.ask('GET', '/healthz')
        assert self.app.telemetry.tracing.recorder is not None
        self.assertEqual(self.app.telemetry.tracing.recorder.summaries('last'), [])


class ChainTest(TracingTestCase):
    """One service asks another, and both tell the same back end."""

    def setUp(self) -> None:
        self.receiver = self.enterContext(Receiver())
        self.collectors = {'otlp': {'endpoint': self.receiver.url}}
        self.other = self.enterContext(ServerProcess(
            {'addr-db': {'memory': None}, 'tracing': {'collectors': self.collectors}}))
        self.enterContext(unittest.mock.patch.object(
            _CallingHandler, 'url', f'http://127.0.0.1:{self.other.port}/addresses'))
        super().setUp()

    def test_two_services_leave_one_trace(self) -> None:
        self.assertEqual(self.ask('GET', '/call', **{'X-Request-ID': 'mine'}).code, 200)
        self.other.stop()  # hands over what it has, last
        self.app.telemetry.tracing.stop()
        spans = {(span.name, span.kind): span for span in self.receiver.spans()}
        caller = spans['GET /call', Span.SpanKind.SPAN_KIND_SERVER]
        calling = spans['ask the other one', Span.SpanKind.SPAN_KIND_INTERNAL]
        called = spans['GET /addresses', Span.SpanKind.SPAN_KIND_SERVER]
        self.assertEqual(calling.parent_span_id, caller.span_id)
        self.assertEqual(called.parent_span_id, calling.span_id)
        self.assertEqual({span.trace_id for span in spans.values()}, {caller.trace_id})
        own, = self.handler.lines
        theirs, = (line for line in self.other.lines('RESPONSE') if line['uri'] == '/addresses')
        for field in ('trace_id', 'req_id'):
            self.assertEqual(own[field], theirs[field])


class BeginningTest(ChainTest):
    """The first service has nobody who collects; the second, which is asked, has."""

    def make_config(self) -> dict[str, Any]:
        return {}

    def test_two_services_leave_one_trace(self) -> None:
        self.assertEqual(self.ask('GET', '/call').code, 200)
        self.other.stop()
        called, = (span for span in self.receiver.spans() if span.name == 'GET /addresses')
        self.assertEqual(called.trace_id.hex(), self.handler.lines[0]['trace_id'])


class CutOffTest(unittest.TestCase):
    def test_a_request_that_is_cut_off_leaves_its_line_and_its_spans_before_the_end(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        server = self.enterContext(ServerProcess({
            'addr-db': {'sqlite': {'path': str(folder / 'book.db'), 'busy-timeout': 20}},
            'server': {'request-timeout': 60}, 'drain': {'delay': 0, 'timeout': 0.1},
            'tracing': {'collectors': {'file': str(folder / 'trace.json')}}}))
        with contextlib.closing(sqlite3.connect(folder / 'book.db', isolation_level=None)) as lock:
            lock.execute('BEGIN IMMEDIATE')
            with server.connect() as client:
                body = json.dumps(ENTRY)
                client.sendall(f'POST /addresses HTTP/1.1\r\nHost: x\r\nContent-Length: '
                               f'{len(body)}\r\n\r\n{body}'.encode())
                time.sleep(0.3)
                self.assertEqual(server.stop(), 1)
        self.assertEqual([line['message'] for line in server.lines()][-3:],
                         ['DRAIN TIMED OUT', 'RESPONSE', 'STORE HANGS'])
        self.assertIn('"POST /addresses"', (folder / 'trace.json').read_text())


if __name__ == '__main__':
    unittest.main()

"""Spans reach every collector that is configured, and no collector can hurt the service."""

from __future__ import annotations

import contextvars
import json
import logging
import socket
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from addrservice.config import complete_config
from addrservice.errors import ConfigError
from addrservice.utils import collectors
from addrservice.utils.collectors import FLUSH_SECONDS, LIMITS, CollectedTracing
from addrservice.utils.metrics import Metrics
from addrservice.utils.tracing import RequestTrace, traced
from tests.otlp import Receiver
from tests.support import clear_log_context, parse_logfmt, quiet_logger, recording_logger

TRACE_ID, SPAN_ID = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'
MODULE = __name__


@traced(name='work', attributes=lambda size: {'text': size * 'x'})
def work(size: int) -> None:
    pass


class Own(SpanProcessor):
    """Somebody's own collector."""

    ended: list[str] = []

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.prefix = settings.get('prefix', '')

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(self.prefix + span.name)


class OwnExporter(SpanExporter):
    """Somebody's own back end."""

    exported: list[str] = []

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if settings:
            raise ValueError('takes no settings')

    def export(self, spans: Any) -> SpanExportResult:
        self.exported.extend(span.name for span in spans)
        return SpanExportResult.SUCCESS


class CollectorsTestCase(unittest.TestCase):
    def make(self, collectors: Mapping[str, Any], logger: logging.Logger | None = None,
             ratio: float = 1) -> CollectedTracing:
        settings = complete_config({'tracing': {
            'sample-ratio': ratio, 'collectors': collectors}})['tracing']
        self.metrics = Metrics()
        return CollectedTracing(settings, 'Test', '1.2.3', logger or quiet_logger(), self.metrics)

    def request(self, tracing: CollectedTracing, status: int = 200,
                error: BaseException | None = None, **headers: str) -> RequestTrace:
        """One request with one piece of work; fields of its line as the telemetry has them."""
        request = tracing.begin('GET /x', headers, time.time_ns())
        work_for(request, 10)
        tracing.end(request, {
            'req_id': 'id', 'trace_id': request.trace_id, 'method': 'GET', 'uri': '/x?y=z',
            'ip': '127.0.0.1', 'route': '/{x}', 'status': status, 'time_ms': 1.5}, error)
        return request


def work_for(request: RequestTrace, *sizes: int) -> None:
    """Does work as a part of a request, whose task ends with it."""
    def run() -> None:
        request.enter()
        for size in sizes:
            work(size)

    contextvars.copy_context().run(run)


class LogTest(CollectorsTestCase):
    def test_each_span_is_a_line_with_its_ids_and_attributes(self) -> None:
        self.addCleanup(clear_log_context)
        with self.assertLogs('collectors_test', logging.INFO) as logs:
            request = self.request(self.make({'log': None}, logging.getLogger('collectors_test')))
        self.assertEqual({record.name for record in logs.records}, {'collectors_test.spans'})
        child, root = (parse_logfmt(record.getMessage()) for record in logs.records)
        self.assertEqual(child['parent_id'], root['span_id'])
        self.assertEqual((child['message'], child['name'], child['text']),
                         ('SPAN', 'work', 10 * 'x'))
        self.assertEqual(root['trace_id'], request.trace_id)
        self.assertEqual(root['http.route'], '/{x}')
        self.assertEqual((root['url.path'], root['url.query']), ('/x', 'y=z'))
        self.assertEqual(root['http.response.status_code'], 200)

    def test_an_attribute_cannot_pass_for_a_field_of_the_line(self) -> None:
        with self.assertLogs('collectors_test', logging.INFO) as logs:
            tracing = self.make({'log': None}, logging.getLogger('collectors_test'))
            span = tracing.begin('GET /x', {}, time.time_ns()).span
            span.set_attributes({'message': 'other', 'name': 'other', 'mine': 1})
            span.end()
        line = parse_logfmt(logs.records[0].getMessage())
        self.assertEqual((line['message'], line['name'], line['mine']), ('SPAN', 'GET /x', 1))

    def test_of_requests_that_are_not_sampled_there_is_none(self) -> None:
        logger = logging.getLogger('collectors_test')
        with self.assertNoLogs(logger, logging.DEBUG):
            self.request(self.make({'log': None, 'ring': None}, logger, ratio=0))


class RingTest(CollectorsTestCase):
    def test_the_spans_of_a_request_are_kept_whatever_is_sampled(self) -> None:
        tracing = self.make({'ring': None}, ratio=0)
        self.request(tracing)
        assert tracing.recorder is not None
        found, = tracing.recorder.find('id')
        root, child = found['spans']
        self.assertEqual((root['name'], child['name']), ('GET /x', 'work'))
        self.assertEqual(child['parent_id'], root['span_id'])

    def test_a_fault_of_ours_is_noted_in_the_span_of_the_request(self) -> None:
        tracing = self.make({'ring': None})
        self.request(tracing, 500, ValueError('why'))
        assert tracing.recorder is not None
        found, = tracing.recorder.find('id')
        self.assertEqual(found['spans'][0]['error'], 'ValueError: why')

    def test_a_fault_of_the_client_is_none_of_the_request(self) -> None:
        tracing = self.make({'ring': None})
        self.request(tracing, 404, KeyError('x'))
        assert tracing.recorder is not None
        self.assertIsNone(tracing.recorder.find('id')[0]['spans'][0]['error'])

    def test_what_one_request_can_hold_is_bounded(self) -> None:
        tracing = self.make({'ring': {'max-spans': 5}})
        request = tracing.begin('x', {}, 0)
        with self.assertLogs('opentelemetry', logging.WARNING):
            work_for(request, *20 * [5000])
        tracing.end(request, {'req_id': 'id', 'trace_id': 'x', 'method': 'GET', 'uri': '/',
                              'ip': '', 'route': None, 'status': 200, 'time_ms': 1}, None)
        assert tracing.recorder is not None
        found, = tracing.recorder.find('id')
        self.assertEqual((len(found['spans']), found['spans_dropped']), (5, 16))
        self.assertEqual(len(found['spans'][1]['attributes']['text']),
                         LIMITS.max_span_attribute_length)


class SamplingTest(CollectorsTestCase):
    def sampled(self, ratio: float, traceparent: str = '') -> int:
        Own.ended.clear()
        tracing = self.make({f'{MODULE}.Own': None}, ratio=ratio)
        for _ in range(200):
            self.request(tracing, traceparent=traceparent)
        return len(Own.ended) // 2

    def test_a_share_of_the_requests_is_sampled(self) -> None:
        self.assertEqual(self.sampled(1), 200)
        self.assertEqual(self.sampled(0), 0)
        self.assertTrue(40 < self.sampled(0.5) < 160)

    def test_the_client_decides_if_it_has(self) -> None:
        self.assertEqual(self.sampled(0, traceparent=f'00-{TRACE_ID}-{SPAN_ID}-01'), 200)
        self.assertEqual(self.sampled(1, traceparent=f'00-{TRACE_ID}-{SPAN_ID}-00'), 0)

    def test_what_nobody_will_see_is_not_recorded(self) -> None:
        request = self.request(self.make({'log': None}, ratio=0))
        self.assertFalse(request.span.is_recording())
        self.assertIsNone(request.start_span)


class MetricsTest(CollectorsTestCase):
    def test_spans_are_counted_by_name(self) -> None:
        self.request(self.make({'metrics': None}, ratio=0))
        text = self.metrics.exposition('text/plain')[0].decode()
        self.assertIn('addrservice_span_duration_seconds_count{name="work"} 1.0', text)
        self.assertIn('addrservice_span_duration_seconds_count{name="GET /x"} 1.0', text)


class FileTest(CollectorsTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_it_is_an_array_of_trace_events(self) -> None:
        path = self.folder / 'new' / 'trace.json'
        for _ in range(2):  # a second start goes on with the file
            tracing = self.make({'file': str(path)})
            request = self.request(tracing)
            tracing.stop()
        events = json.loads(path.read_text().rstrip(',\n') + ']')
        self.assertEqual(len(events), 8)
        begin, end = events[-2:]
        self.assertEqual((begin['ph'], end['ph'], begin['name']), ('b', 'e', 'GET /x'))
        self.assertEqual({begin['id'], end['id']}, {request.trace_id})
        self.assertLessEqual(begin['ts'], events[-4]['ts'])
        self.assertGreaterEqual(end['ts'], events[-3]['ts'])
        self.assertEqual(begin['args']['http.route'], '/{x}')

    def test_a_full_file_is_renamed_and_old_ones_are_deleted(self) -> None:
        path = self.folder / 'trace.json'
        tracing = self.make({'file': {'path': str(path), 'max-bytes': 2048, 'backups': 2}})
        for _ in range(20):
            self.request(tracing)
        tracing.stop()
        self.assertEqual(sorted(file.name for file in self.folder.iterdir()),
                         ['trace.json', 'trace.json.1', 'trace.json.2'])
        for file in self.folder.iterdir():
            self.assertLessEqual(file.stat().st_size, 2048)
            json.loads(file.read_text().rstrip(',\n') + ']')

    def test_a_full_disk_is_told_and_breaks_nothing(self) -> None:
        logger, records = recording_logger()
        tracing = self.make({'file': '/dev/full'}, logger)
        self.request(tracing)
        tracing.stop()
        for record in records:  # when it is written, and when it is closed
            line = parse_logfmt(record.getMessage())
            self.assertEqual((line['message'], line['collector']), ('SPANS LOST', 'file'))
            self.assertIn('No space left', line['trace'])
        self.assertEqual(len(records), 2)

    def test_what_a_kill_has_torn_off_spoils_nothing(self) -> None:
        path = self.folder / 'trace.json'
        for _ in range(2):
            tracing = self.make({'file': str(path)})
            self.request(tracing)
            tracing.stop()
            whole = path.read_text()
            path.write_text(whole + whole[2:60])  # as if one more had been begun
        tracing = self.make({'file': str(path)})
        self.request(tracing)
        tracing.stop()
        self.assertEqual(len(json.loads(path.read_text().rstrip(',\n') + ']')), 12)

    def test_a_file_that_cannot_be_is_refused(self) -> None:
        (self.folder / 'file').touch()
        for path in (self.folder, self.folder / 'file' / 'trace.json'):
            with self.assertRaisesRegex(ConfigError, '^tracing.collectors.file: .*directory'):
                self.make({'file': str(path)})

    def test_nothing_is_made_before_there_is_a_span(self) -> None:
        self.make({'file': str(self.folder / 'new' / 'trace.json')}).stop()
        self.assertEqual(list(self.folder.iterdir()), [])


class OTLPTest(CollectorsTestCase):
    def test_spans_arrive_with_all_they_have(self) -> None:
        with Receiver() as receiver:
            tracing = self.make({'otlp': {'endpoint': receiver.url, 'headers': {'x-token': 'abc'}}})
            request = self.request(tracing)
            tracing.stop()
        by_name = {span.name: span for span in receiver.spans()}
        self.assertEqual(by_name['GET /x'].trace_id.hex(), request.trace_id)
        self.assertEqual(by_name['work'].parent_span_id, by_name['GET /x'].span_id)
        self.assertEqual(receiver.headers[0]['x-token'], 'abc')
        self.assertEqual(receiver.resource(), {'service.name': 'Test', 'service.version': '1.2.3'})

    def test_a_back_end_that_is_not_there_costs_a_bounded_time_at_the_end(self) -> None:
        with Receiver() as receiver:
            url = receiver.url
        with self.assertLogs('opentelemetry', logging.WARNING):
            tracing = self.make({'otlp': {'endpoint': url, 'timeout': 0.5}})
            begin = time.monotonic()
            for _ in range(100):
                self.request(tracing)
            tracing.stop()
            self.assertLess(time.monotonic() - begin, FLUSH_SECONDS + 2)

    def test_one_that_takes_a_request_and_stays_silent_is_waited_for_so_long_and_no_longer(
            self) -> None:
        silent = self.enterContext(socket.create_server(('127.0.0.1', 0)))
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/v1/traces'
        logger, records = recording_logger()
        with self.assertLogs('opentelemetry', logging.WARNING):
            tracing = self.make({'otlp': {'endpoint': url, 'timeout': 1.5}}, logger)
            self.request(tracing)
            begin = time.monotonic()
            with unittest.mock.patch.object(collectors, 'FLUSH_SECONDS', 0.2):
                tracing.stop()
            self.assertLess(time.monotonic() - begin, 1.2)
            self.assertIn('It has not handed over all within 0.2 s', records[0].getMessage())
            while any('Otel' in thread.name for thread in threading.enumerate()):
                time.sleep(0.02)  # it has something to say when it gives up


class Faulty(SpanProcessor):
    """Somebody's own collector that is wrong in every way."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pass

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        raise KeyError('start')

    def on_end(self, span: ReadableSpan) -> None:
        raise KeyError('end')

    def shutdown(self) -> None:
        raise KeyError('shutdown')


class OwnTest(CollectorsTestCase):
    def test_one_that_fails_hurts_neither_requests_nor_other_collectors(self) -> None:
        logger, records = recording_logger()
        tracing = self.make({f'{MODULE}.Faulty': None, 'ring': None}, logger)
        for _ in range(3):
            self.request(tracing)
        tracing.stop()
        assert tracing.recorder is not None
        self.assertEqual(len(tracing.recorder.summaries('last')), 3)
        lines = [parse_logfmt(record.getMessage()) for record in records]
        self.assertEqual([(line['message'], line['collector'], line['reason']) for line in lines],
                         [('SPANS LOST', f'{MODULE}.Faulty', 'KeyError'),
                          ('SPANS LOST', f'{MODULE}.Faulty', 'KeyError')])
        self.assertIn("KeyError: 'start'", lines[0]['trace'])
        self.assertIn("KeyError: 'shutdown'", lines[1]['trace'])

    def test_an_exporter_that_fails_is_told_once_until_it_works_again(self) -> None:
        results: list[Any] = [SpanExportResult.FAILURE, KeyError('k'), SpanExportResult.SUCCESS,
                              KeyError('k')]
        logger, records = recording_logger()
        exporter = unittest.mock.Mock(SpanExporter)
        exporter.export.side_effect = results
        watched = collectors.WatchedExporter('x', exporter, collectors.Faults(logger))
        self.assertEqual([watched.export([]) for _ in results],
                         [SpanExportResult.FAILURE, SpanExportResult.FAILURE,
                          SpanExportResult.SUCCESS, SpanExportResult.FAILURE])
        self.assertEqual(len(records), 2)

    def test_where_the_sdk_is_disabled_requests_still_have_ids(self) -> None:
        with unittest.mock.patch.dict('os.environ', OTEL_SDK_DISABLED='true'):
            request = self.make({'ring': None}).begin('GET /x', {}, time.time_ns())
        self.assertNotEqual(int(request.trace_id, 16), 0)

    def test_a_client_s_tracestate_goes_on_to_who_is_called(self) -> None:
        tracing = self.make({'ring': None})
        headers = {'traceparent': f'00-{TRACE_ID}-{SPAN_ID}-01', 'tracestate': 'a=1'}
        request = tracing.begin('GET /x', headers, time.time_ns())
        self.assertEqual(request.span.get_span_context().trace_state, {'a': '1'})

    def test_a_class_of_ones_own_gets_its_settings_and_the_spans(self) -> None:
        Own.ended.clear()
        self.request(self.make({f'{MODULE}.Own': {'prefix': 'my '}}))
        self.assertEqual(Own.ended, ['my work', 'my GET /x'])

    def test_an_exporter_is_fed_in_batches(self) -> None:
        tracing = self.make({f'{MODULE}.OwnExporter': None})
        self.request(tracing)
        tracing.stop()
        self.assertEqual(OwnExporter.exported, ['work', 'GET /x'])

    def test_what_cannot_be_made_is_said_in_one_line(self) -> None:
        for name, settings, message in (
                ('tests.unit.nowhere.Own', None, 'cannot be imported: No module named'),
                (f'{MODULE}.Nobody', None, 'cannot be imported: .* no attribute'),
                (f'{MODULE}.OwnExporter', {'a': 1}, 'takes no settings'),
                ('builtins.dict', None, 'is neither a SpanProcessor nor a SpanExporter')):
            with self.subTest(name=name), self.assertRaisesRegex(
                    ConfigError, f'^tracing.collectors.{name}: .*{message}'):
                self.make({name: settings})

    def test_a_module_that_fails_when_it_is_imported_is_said_in_one_line(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / 'faulty_module.py').write_text('1 / 0')
        with unittest.mock.patch.object(sys, 'path', [str(folder)]), self.assertRaisesRegex(
                ConfigError, '^tracing.collectors.faulty_module.X: .*division by zero'):
            self.make({'faulty_module.X': None})

    def test_one_that_nobody_knows_is_refused(self) -> None:
        with self.assertRaisesRegex(
                ConfigError, "^tracing.collectors.rnig: unknown collector, did you mean 'ring'"):
            self.make({'rnig': None})


if __name__ == '__main__':
    unittest.main()

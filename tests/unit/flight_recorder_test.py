"""The flight recorder keeps the last, the slowest and the failed requests, and no more."""

from __future__ import annotations

import json
import sys
import unittest
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.trace import Tracer, set_span_in_context

from addrservice.utils.flight_recorder import FlightRecorder, Recording
from addrservice.utils.tracing import fail

SECOND = 10 ** 9
START = 1_795_402_851 * SECOND  # 2026-11-23T03:00:51Z


def make_tracer() -> Tracer:
    return TracerProvider(shutdown_on_exit=False).get_tracer('test')


def make_span(start: int, end: int | None = None, parent: Span | None = None,
              name: str = 'GET /') -> Span:
    """
    :param start: in nanoseconds after the start of all.
    """
    span = make_tracer().start_span(name, set_span_in_context(parent) if parent else None,
                                    start_time=START + start)
    if end is not None:
        span.end(START + end)
    assert isinstance(span, Span)
    return span


class FlightRecorderTest(unittest.TestCase):
    def setUp(self) -> None:
        self.recorder = FlightRecorder(last=3, slowest=2, failed=2)
        self.clock = 0

    def add(self, req_id: str, status: int = 200, time_ms: float = 1.0, route: str | None = '/',
            error: Exception | None = None, **fields: Any) -> None:
        self.clock += SECOND
        self.recorder.add(Recording(make_span(self.clock), 10), {
            'req_id': req_id, 'trace_id': 32 * 'a', 'method': 'GET', 'uri': '/x',
            'ip': '127.0.0.1', 'route': route, 'status': status, 'time_ms': time_ms, **fields},
            error)

    def ids(self, kind: str) -> list[str]:
        return [summary['req_id'] for summary in self.recorder.summaries(kind)]

    def test_the_last_ones_are_kept_the_newest_first(self) -> None:
        for number in range(5):
            self.add(str(number))
        self.assertEqual(self.ids('last'), ['4', '3', '2'])

    def test_traffic_does_not_flush_out_the_slowest_and_the_failed(self) -> None:
        self.add('slow', time_ms=900)
        self.add('failed', status=500)
        for number in range(50):
            self.add(str(number), time_ms=number / 100)
        self.assertEqual(self.ids('slowest')[0], 'slow')
        self.assertEqual(self.ids('failed'), ['failed'])

    def test_of_each_route_the_slowest_are_kept(self) -> None:
        for number in range(9):
            self.add(f'list-{number}', time_ms=1000 + number, route='/addresses')
        for time_ms in (5, 7, 6, 4):
            self.add(f'get-{time_ms}', time_ms=time_ms, route='/addresses/{id}')
        self.assertEqual(self.ids('slowest'), ['list-8', 'list-7', 'get-7', 'get-6'])

    def test_of_each_class_of_error_the_last_failed_are_kept(self) -> None:
        for number in range(1, 4):
            self.add(f'bug-{number}', status=500, error=KeyError())
        self.add('disk', status=503, error=OSError())
        for number in range(9):
            self.add(f'busy-{number}', status=503)
        self.assertEqual(self.ids('failed'), ['busy-8', 'busy-7', 'disk', 'bug-3', 'bug-2'])

    def test_what_a_client_has_done_wrong_is_no_failure(self) -> None:
        self.add('x', status=404)
        self.assertEqual(self.ids('failed'), [])

    def test_two_requests_that_are_as_slow_can_be_told_apart(self) -> None:
        self.add('a', time_ms=1)
        self.add('b', time_ms=1)
        self.add('c', time_ms=1)
        self.assertEqual(len(self.ids('slowest')), 2)

    def test_of_two_that_are_as_slow_the_newer_is_kept(self) -> None:
        for req_id in 'abc':
            self.add(req_id, time_ms=1)
        self.assertEqual(self.ids('slowest'), ['c', 'b'])

    def test_none_that_is_slow_is_kept_where_none_is_wanted(self) -> None:
        self.recorder = FlightRecorder(last=3, slowest=0, failed=2)
        self.add('x')
        self.assertEqual((self.ids('last'), self.ids('slowest')), (['x'], []))

    def test_one_that_is_kept_three_times_is_found_once(self) -> None:
        self.add('x', status=500, time_ms=99, trace='Traceback…')
        found, = self.recorder.find('x')
        self.assertEqual((found['req_id'], found['trace']), ('x', 'Traceback…'))
        self.assertNotIn('trace', found['line'])

    def test_requests_of_one_id_are_all_found_the_newest_first(self) -> None:
        self.add('x', status=404)
        self.add('x', status=200)
        self.assertEqual([found['line']['status'] for found in self.recorder.find('x')],
                         [200, 404])
        self.assertEqual(self.recorder.find('y'), [])

    def test_a_list_shows_the_same_of_each(self) -> None:
        self.add('x', time_ms=2.5)
        summary, = self.recorder.summaries('last')
        self.assertEqual(summary, {
            'req_id': 'x', 'trace_id': 32 * 'a', 'method': 'GET', 'uri': '/x', 'route': '/',
            'status': 200, 'time_ms': 2.5, 'started': '2026-11-23T03:00:52.000+00:00',
            'spans': 1})


class SpansTest(unittest.TestCase):
    def document(self, recording: Recording) -> dict[str, Any]:
        recorder = FlightRecorder(1, 1, 1)
        recorder.add(recording, {
            'req_id': 'x', 'trace_id': 'y', 'method': 'GET', 'uri': '/x?y=z', 'ip': '127.0.0.1',
            'route': None, 'status': 200, 'time_ms': 1.0, 'reason': None})
        found, = recorder.find('x')
        return dict(json.loads(json.dumps(found)))

    def test_times_are_counted_from_the_start_of_the_request(self) -> None:
        root = make_span(0, 3_000_000)
        recording = Recording(root, 10)
        recording.append(make_span(1_000_000, 2_500_000, root, 'read'))
        recording.append(make_span(2_000_000, None, root))
        first, second, third = self.document(recording)['spans']
        self.assertEqual((first['start_ms'], first['duration_ms'], first['parent_id']),
                         (0, 3.0, None))
        self.assertEqual((second['start_ms'], second['duration_ms'], second['name']),
                         (1.0, 1.5, 'read'))
        self.assertEqual(second['parent_id'], first['span_id'])
        self.assertIsNone(third['duration_ms'])
        self.assertEqual(first['attributes'], {
            'http.request.method': 'GET', 'url.path': '/x', 'url.query': 'y=z',
            'http.response.status_code': 200, 'client.address': '127.0.0.1',
            'addrservice.req_id': 'x'})

    def test_attributes_and_errors_are_shown(self) -> None:
        span = make_tracer().start_span('x', attributes={'db.query.text': 'SELECT'})
        assert isinstance(span, Span)
        fail(span, KeyError('k'))
        shown, = self.document(Recording(span, 10))['spans']
        attributes = shown['attributes']
        self.assertEqual((attributes['db.query.text'], attributes['error.type']),
                         ('SELECT', 'KeyError'))
        self.assertEqual(shown['error'], "KeyError: 'k'")

    def test_more_spans_than_are_kept_are_counted(self) -> None:
        recording = Recording(make_span(0, 1), 2)
        for _ in range(4):
            recording.append(make_span(0, 1))
        document = self.document(recording)
        self.assertEqual((len(document['spans']), document['spans_dropped']), (2, 3))

    def test_what_the_line_leaves_out_is_left_out(self) -> None:
        self.assertNotIn('reason', self.document(Recording(make_span(0), 1))['line'])


if __name__ == '__main__':
    unittest.main()

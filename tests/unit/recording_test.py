"""Spans that nobody exports are spans all the same, and hold what is shown of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from opentelemetry import trace

from addrservice.config import complete_config
from addrservice.utils.metrics import Metrics
from addrservice.utils.flight_recorder import MAX_TEXT
from addrservice.utils.recording import MAX_ATTRIBUTES, RecordedSpan, RecordedTracing
from addrservice.utils.tracing import RequestTrace, outgoing_headers, traced
from tests.support import ROOT

TRACE_ID, SPAN_ID = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'
START = 1_795_402_851_000_000_000
LINE = {'req_id': 'x', 'method': 'GET', 'uri': '/', 'ip': '127.0.0.1', 'route': '/',
        'status': 200, 'time_ms': 2.5}


def current() -> RecordedSpan:
    span = trace.get_current_span()
    assert isinstance(span, RecordedSpan)
    return span


class RecordingTest(unittest.TestCase):
    def make(self, **collectors: Any) -> RecordedTracing:
        settings = complete_config({'tracing': {'collectors': collectors}})['tracing']
        self.metrics = Metrics()
        return RecordedTracing(settings, self.metrics)

    def setUp(self) -> None:
        self.tracing = self.make(ring={'max-spans': 4})

    def request(self, work: Any, line: Any = None, error: BaseException | None = None,
                **headers: str) -> RequestTrace:
        """One request, which does some work."""
        async def handle() -> RequestTrace:
            request = self.tracing.begin('GET /', headers, START)
            request.enter()
            await work()
            line_of_it = {**LINE, 'trace_id': request.trace_id, **(line or {})}
            self.tracing.end(request, line_of_it, error)
            return request

        return asyncio.run(handle())

    def recorded(self) -> Any:
        assert self.tracing.recorder is not None
        return self.tracing.recorder.find('x')[0]

    def test_work_within_work_is_a_span_under_a_span(self) -> None:
        @traced(name='inner', attributes={'size': 3})
        async def inner() -> None:
            current().set_attribute('colour', 'red')

        @traced(name='outer')
        async def outer() -> None:
            await inner()

        self.request(outer)
        root, outer_span, inner_span = self.recorded()['spans']
        self.assertEqual((root['name'], root['parent_id'], root['duration_ms']),
                         ('GET /', None, 2.5))
        self.assertEqual(outer_span['parent_id'], root['span_id'])
        self.assertEqual(inner_span['parent_id'], outer_span['span_id'])
        self.assertEqual(inner_span['attributes'], {'size': 3, 'colour': 'red'})
        self.assertGreaterEqual(outer_span['duration_ms'], inner_span['duration_ms'])

    def test_the_trace_of_the_client_goes_on_and_out(self) -> None:
        sent: dict[str, str] = {}

        @traced(name='calling')
        async def call() -> None:
            sent.update(outgoing_headers())

        request = self.request(call, traceparent=f'00-{TRACE_ID}-{SPAN_ID}-00', tracestate='a=1')
        self.assertEqual(request.trace_id, TRACE_ID)
        root, calling = self.recorded()['spans']
        self.assertEqual(root['parent_id'], SPAN_ID)
        self.assertEqual(sent['traceparent'], f'00-{TRACE_ID}-{calling["span_id"]}-00')
        self.assertEqual(sent['tracestate'], 'a=1')

    def test_an_error_is_in_the_span_of_who_raised_it_and_in_the_request_s(self) -> None:
        error = KeyError('k')

        @traced(name='fails')
        async def fail() -> None:
            raise error

        async def work() -> None:
            with self.assertRaises(KeyError):
                await fail()

        self.request(work, {'status': 500}, error)
        root, failed = self.recorded()['spans']
        for span in (root, failed):
            self.assertEqual(span['error'], "KeyError: 'k'")
            self.assertEqual(span['attributes']['error.type'], 'KeyError')

    def test_under_a_span_that_is_none_of_ours_work_hangs_under_the_request_s(self) -> None:
        @traced(name='ours')
        async def ours() -> None:
            pass

        async def work() -> None:
            foreign = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
            with trace.use_span(foreign):
                await ours()

        self.request(work)
        root, span = self.recorded()['spans']
        self.assertEqual(span['parent_id'], root['span_id'])

    def test_what_a_span_holds_is_bounded(self) -> None:
        async def work() -> None:
            current().set_attributes({str(number): 'x' * 9999 for number in range(99)})

        self.request(work)
        attributes = self.recorded()['spans'][0]['attributes']
        own = {name: value for name, value in attributes.items() if name.isdigit()}
        self.assertEqual(len(own), MAX_ATTRIBUTES)
        self.assertEqual({len(value) for value in own.values()}, {MAX_TEXT})

    def test_more_spans_than_are_kept_are_counted(self) -> None:
        @traced(name='step')
        async def step() -> None:
            pass

        async def work() -> None:
            for _ in range(10):
                await step()

        self.request(work)
        recorded = self.recorded()
        self.assertEqual((len(recorded['spans']), recorded['spans_dropped']), (4, 7))

    def test_a_span_is_what_the_api_says(self) -> None:
        async def work() -> None:
            span = current()
            span.update_name('renamed')
            span.add_event('nobody shows it')
            span.record_exception(KeyError())
            span.set_status(trace.Status(trace.StatusCode.ERROR, 'told'))
            self.assertTrue(span.is_recording())
            self.assertFalse(span.get_span_context().is_remote)

        request = self.request(work)
        self.assertFalse(request.span.is_recording())
        request.span.end(START + 1)  # a second end does nothing
        root, = self.recorded()['spans']
        self.assertEqual((root['name'], root['error'], root['duration_ms']),
                         ('renamed', 'told', 2.5))

    def test_durations_are_counted_by_name_if_that_is_wanted(self) -> None:
        @traced(name='work')
        async def work() -> None:
            pass

        self.tracing = self.make(metrics=None)
        self.request(work)
        self.assertIsNone(self.tracing.recorder)
        text = self.metrics.exposition('')[0].decode()
        for name in ('work', 'GET /'):
            self.assertIn(f'addrservice_span_duration_seconds_count{{name="{name}"}} 1.0', text)
        self.assertIn('addrservice_span_duration_seconds_sum{name="GET /"} 0.0025', text)

    def test_the_sdk_is_imported_only_where_spans_are_exported(self) -> None:
        code = '''
import logging, sys
from addrservice.config import complete_config
from addrservice.tornado.app import make_tracing
from addrservice.utils.metrics import Metrics
for collectors in ({'ring': None, 'metrics': None}, {'ring': None, 'log': None}):
    make_tracing(complete_config({'tracing': {'collectors': collectors}}), logging.root, Metrics())
    print('opentelemetry.sdk.trace' in sys.modules)
'''
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                              text=True, check=True)
        self.assertEqual(done.stdout.split(), ['False', 'True'])


if __name__ == '__main__':
    unittest.main()

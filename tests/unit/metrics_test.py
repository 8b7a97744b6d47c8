"""What is counted comes out as Prometheus reads it, and its size is bounded."""

from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from addrservice import MULTIPROCESS, __version__
from addrservice.errors import ConfigError
from addrservice.utils.exposition import prepare_folder, sum_of_all
from addrservice.utils.metrics import MAX_SPAN_NAMES, NOT_NOW, REFUSALS, Metrics
from addrservice.utils.tallies import BATCH, Tally
from tests.support import ROOT

OPENMETRICS = 'application/openmetrics-text; version=1.0.0'
TRACE_ID = 32 * 'a'


class MetricsTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self.metrics = Metrics()

    def end(self, method: str = 'GET', route: str | None = '/addresses/{id}', status: int = 200,
            seconds: float = 0.002, request_size: int = 0, response_size: int | None = 700) -> None:
        self.metrics.request_began()
        self.metrics.request_ended(method, route, status, seconds, request_size, response_size,
                                   TRACE_ID)

    def samples(self, accept: str = '') -> list[Sample]:
        text = self.metrics.exposition(accept)[0].decode()
        parse: Any = parse_openmetrics if accept else parse_text
        return [sample for family in parse(text) for sample in family.samples]

    def value(self, name: str, /, **labels: str) -> float | None:
        found = [sample.value for sample in self.samples()
                 if sample.name == name and sample.labels == labels]
        self.assertLessEqual(len(found), 1)
        return found[0] if found else None


class CountTest(MetricsTestCase):
    def test_a_request_is_counted_by_method_route_and_status(self) -> None:
        self.end()
        self.end()
        self.end(status=404)
        name, labels = 'http_server_request_duration_seconds', {
            'method': 'GET', 'route': '/addresses/{id}', 'status': '200'}
        self.assertEqual(self.value(f'{name}_count', **labels), 2)
        self.assertEqual(self.value(f'{name}_sum', **labels), 0.004)
        self.assertEqual(self.value(f'{name}_bucket', **labels, le='0.001'), 0)
        self.assertEqual(self.value(f'{name}_bucket', **labels, le='0.0025'), 2)
        self.assertEqual(self.value(f'{name}_count', **{**labels, 'status': '404'}), 1)

    def test_bodies_are_measured_both_ways(self) -> None:
        self.end('POST', '/addresses', 201, request_size=500, response_size=0)
        self.end('POST', '/addresses', 499, request_size=500, response_size=None)
        self.end('POST', '/addresses', 400, request_size=0, response_size=30)  # it has none
        labels = {'method': 'POST', 'route': '/addresses'}
        self.assertEqual(self.value('http_server_request_body_size_bytes_count', **labels), 2)
        self.assertEqual(self.value('http_server_request_body_size_bytes_sum', **labels), 1000)
        self.assertEqual(self.value('http_server_response_body_size_bytes_count', **labels), 2)

    def test_what_is_under_way_is_a_gauge(self) -> None:
        self.metrics.request_began()
        self.end()
        self.assertEqual(self.value('http_server_active_requests'), 1)

    def test_whatever_clients_send_is_one_label(self) -> None:
        self.end()
        before = len(self.samples())
        for number in range(500):
            self.end(f'FOO{number}', None, 405)
        self.assertEqual(self.value('http_server_request_duration_seconds_count',
                                    method='_OTHER', route='(unknown)', status='405'), 500)
        added = len(self.samples()) - before
        for number in range(500):
            self.end(f'BAR{number}', None, 405)
        self.assertEqual(len(self.samples()) - before, added)

    def test_refusals_are_counted_by_reason_and_are_there_before_the_first(self) -> None:
        for reason in (*REFUSALS.values(), *NOT_NOW):
            self.assertEqual(self.value('addrservice_requests_refused_total', reason=reason), 0)
        self.end(status=413)
        self.end(status=503)  # why, only who refuses knows
        self.metrics.refused('overloaded')
        for reason in ('content_too_large', 'overloaded'):
            self.assertEqual(self.value('addrservice_requests_refused_total', reason=reason), 1)
        self.assertEqual(
            self.value('addrservice_requests_refused_total', reason='storage_unavailable'), 0)

    def test_what_is_not_known_is_not_told(self) -> None:
        for name in ('addrservice_entries', 'db_client_connection_max'):
            self.assertIsNone(self.value(name))
        self.metrics.set_entries(7)
        self.metrics.set_connections(used=3, idle=2, maximum=10)
        self.assertEqual(self.value('addrservice_entries'), 7)
        self.assertEqual(self.value('db_client_connection_count', state='used'), 3)
        self.assertEqual(self.value('db_client_connection_count', state='idle'), 2)
        self.assertEqual(self.value('db_client_connection_max'), 10)

    def test_the_rest_has_its_series_too(self) -> None:
        self.metrics.operation_ended('sqlite', 'read_address', 'ok', 0.00003)
        self.metrics.unreadable_record()
        self.metrics.loop_lagged(0.003)
        self.metrics.set_ready(True)
        self.assertEqual(self.value(
            'addrservice_db_operation_duration_seconds_bucket', engine='sqlite',
            operation='read_address', outcome='ok', le='5e-05'), 1)
        self.assertEqual(self.value('addrservice_unreadable_records_total'), 1)
        self.assertEqual(self.value('addrservice_event_loop_lag_seconds_count'), 1)
        self.assertEqual(self.value('addrservice_ready'), 1)
        self.assertEqual(self.value('addrservice_build_info', version=__version__,
                                    python='.'.join(map(str, sys.version_info[:3]))), 1)
        self.assertGreater(self.value('process_resident_memory_bytes') or 0, 1e6)
        self.assertIsNotNone(self.value('python_gc_collections_total', generation='2'))

    def test_very_many_names_of_spans_become_one(self) -> None:
        for number in range(2 * MAX_SPAN_NAMES):
            self.metrics.span_ended(f'span {number}', 0.001)
        names = {sample.labels['name'] for sample in self.samples()
                 if sample.name == 'addrservice_span_duration_seconds_count'}
        self.assertLessEqual(len(names), MAX_SPAN_NAMES + 1)
        self.assertGreater(
            self.value('addrservice_span_duration_seconds_count', name='(other)') or 0, 90)

    def test_however_many_names_there_are_no_more_is_remembered_of_them(self) -> None:
        def tallies() -> int:
            return sum(isinstance(item, Tally) for item in gc.get_objects())

        before = tallies()
        for number in range(1000):
            self.end(f'FOO{number}', None, 405)
            self.metrics.span_ended(f'span {number}', 0.001)
        self.assertLessEqual(tallies() - before, MAX_SPAN_NAMES + 2)

    def test_two_of_them_share_nothing(self) -> None:
        self.end()
        self.assertNotIn(b'/addresses/{id}', Metrics().exposition('')[0])


class FormatTest(MetricsTestCase):
    def test_who_takes_openmetrics_gets_it_with_the_trace_of_an_example(self) -> None:
        self.end()
        body, media_type = self.metrics.exposition(OPENMETRICS + ';q=0.7,text/plain;q=0.3')
        self.assertTrue(media_type.startswith('application/openmetrics-text; version=1.0.0'))
        self.assertTrue(body.endswith(b'# EOF\n'))
        exemplars = [sample.exemplar for sample in self.samples(OPENMETRICS) if sample.exemplar]
        self.assertEqual([exemplar.labels for exemplar in exemplars], [{'trace_id': TRACE_ID}])

    def test_everyone_else_gets_plain_text(self) -> None:
        for accept in ('', '*/*', 'text/html', 'text/plain;version=9', 'nonsense', ';;,='):
            body, media_type = self.metrics.exposition(accept)
            self.assertEqual(media_type, 'text/plain; version=0.0.4; charset=utf-8')
            self.assertIn(b'# TYPE http_server_active_requests gauge', body)

    def test_who_accepts_both_gets_what_it_would_rather_have(self) -> None:
        for accept, is_openmetrics in (
                ('application/openmetrics-text; version=1.0.0, text/plain;version=0.0.4', True),
                ('APPLICATION/OPENMETRICS-TEXT', True),
                ('application/openmetrics-text;q=0.9, */*;q=0.1', True),
                ('application/openmetrics-text;q=0, text/plain', False),
                ('application/openmetrics-text;q=0.1, text/plain;q=1', False),
                ('application/openmetrics-text;q=0.5, text/*', False),
                ('application/openmetrics-text;q=high', False),
                ('application/openmetrics-texts', False)):
            with self.subTest(accept=accept):
                media_type = self.metrics.exposition(accept)[1]
                self.assertEqual(media_type.startswith('application/openmetrics-text'),
                                 is_openmetrics)

    def test_what_is_not_known_any_more_is_no_number(self) -> None:
        self.metrics.set_entries(None)
        self.assertIsNone(self.value('addrservice_entries'), 'it never was known')
        self.metrics.set_entries(3)
        self.metrics.set_entries(None)
        value = self.value('addrservice_entries')
        assert value is not None
        self.assertTrue(math.isnan(value))


WORKER = '''
import sys
from addrservice.utils.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.request_began()
    metrics.request_ended('GET', '/addresses', 200, 0.002, 0, 100, None)
metrics.request_began()
metrics.set_entries(5)
metrics.refresh()
print(metrics.exposition('')[0].decode(), flush=True)
sys.stdin.read()
metrics.stop()
'''

COUNT = '''
from addrservice.utils.metrics import Metrics
metrics = Metrics()
metrics.request_began()
metrics.operation_ended('memory', 'ping', 'ok', 0.001)
metrics.span_ended('a', 0.001)
metrics.request_ended('GET', '/addresses', 200, 0.002, 0, 100, None)
'''


class ExemplarTest(MetricsTestCase):
    def named(self, *requests: tuple[float, str]) -> set[str]:
        """The traces that are named after requests that took so long."""
        for seconds, trace_id in requests:
            self.metrics.request_ended('GET', '/a', 200, seconds, 0, 1, trace_id)
        return {sample.exemplar.labels['trace_id']
                for sample in self.samples(OPENMETRICS) if sample.exemplar}

    def test_of_requests_that_are_alike_the_last_one_has_one(self) -> None:
        self.assertEqual(self.named((0.002, 'a'), (0.002, 'b'), (0.3, 'c')), {'b', 'c'})
        self.assertEqual(self.named((0.002, 'd')), {'d', 'c'})

    def test_it_has_the_time_at_which_the_request_ended_whenever_somebody_looks(self) -> None:
        with mock.patch('time.time', return_value=5.5):
            self.metrics.request_ended('GET', '/a', 200, 0.002, 0, 1, TRACE_ID)
        example, = (sample.exemplar for sample in self.samples(OPENMETRICS) if sample.exemplar)
        self.assertEqual((example.value, float(example.timestamp or 0)), (0.002, 5.5))


class WaitingTest(MetricsTestCase):
    """What a request brings is counted when somebody looks, or when much of it waits."""

    def test_where_nobody_looks_not_much_waits(self) -> None:
        with mock.patch('addrservice.utils.metrics.observe_all') as observe_all:
            for _ in range(2 * BATCH):
                self.end('POST', '/a', 201, request_size=1)
                self.metrics.operation_ended('memory', 'ping', 'ok', 0.001)
                self.metrics.span_ended('a', 0.001)
        told = [len(call.args[1]) for call in observe_all.call_args_list]
        self.assertEqual(told, 2 * [BATCH, BATCH, BATCH, BATCH, BATCH])

    def test_what_has_waited_and_what_waits_are_one_sum(self) -> None:
        for _ in range(BATCH + 7):
            self.end()
            self.metrics.span_ended('a', 0.001)
        for _ in range(2):  # to look changes nothing
            self.assertEqual(self.value('addrservice_span_duration_seconds_count', name='a'),
                             BATCH + 7)
            self.assertEqual(self.value(
                'http_server_request_duration_seconds_bucket', method='GET', le='0.0025',
                route='/addresses/{id}', status='200'), BATCH + 7)

    def test_a_name_that_two_threads_bring_at_once_loses_neither(self) -> None:
        def make(count: Any) -> Tally[float]:
            if not others:
                others.append(None)
                self.metrics.span_ended('a', 0.001)  # comes first
            return Tally(count)

        others: list[None] = []
        with mock.patch('addrservice.utils.metrics.Tally', make):
            self.metrics.span_ended('a', 0.001)
        self.assertEqual(self.value('addrservice_span_duration_seconds_count', name='a'), 2)


class WorkersTest(unittest.TestCase):
    """Several processes that share a folder tell the sum of all."""

    def setUp(self) -> None:
        self.workers: dict[int, subprocess.Popen[str]] = {}

    def start(self, folder: str, count: int) -> tuple[int, Mapping[str, list[Sample]]]:
        worker = subprocess.Popen(
            [sys.executable, '-c', WORKER, str(count)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, MULTIPROCESS: folder})
        self.workers[worker.pid] = worker
        self.addCleanup(worker.communicate)
        assert worker.stdout is not None
        lines = []
        while (line := worker.stdout.readline()).strip():
            lines.append(line)
        samples: dict[str, list[Sample]] = {}
        for family in parse_text(''.join(lines)):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
        return worker.pid, samples

    def test_the_second_tells_what_both_have_counted(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        first, _ = self.start(folder, 3)
        second, samples = self.start(folder, 4)
        count, = samples['http_server_request_duration_seconds_count']
        self.assertEqual(count.value, 7)
        self.assertEqual([sample.value for sample in samples['http_server_active_requests']], [2])
        self.assertEqual([sample.value for sample in samples['addrservice_entries']], [5])
        pids = {sample.labels['pid'] for sample in samples['process_resident_memory_bytes']}
        self.assertEqual(pids, {str(first), str(second)})

    def test_of_those_that_are_killed_what_they_counted_stays_and_what_they_were_goes(
            self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        killed, _ = self.start(folder, 3)
        os.kill(killed, signal.SIGKILL)
        self.workers[killed].wait()
        second, samples = self.start(folder, 4)
        count, = samples['http_server_request_duration_seconds_count']
        self.assertEqual(count.value, 7)
        self.assertEqual([sample.value for sample in samples['http_server_active_requests']], [1])
        pids = {sample.labels['pid'] for sample in samples['process_resident_memory_bytes']}
        self.assertEqual(pids, {str(second)})

    def test_one_that_stops_takes_what_it_was_with_it(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        pid, _ = self.start(str(folder), 1)
        self.assertTrue(list(folder.glob(f'gauge_live*_{pid}.db')))
        self.workers[pid].communicate()
        self.assertFalse(list(folder.glob(f'gauge_live*_{pid}.db')))
        self.assertTrue(list(folder.glob(f'histogram_{pid}.db')))

    def test_others_tell_what_one_has_counted_when_it_has_refreshed_or_stopped(self) -> None:
        for end in ('metrics.refresh()', 'metrics.stop()'):
            folder = self.enterContext(tempfile.TemporaryDirectory())
            subprocess.run(
                [sys.executable, '-c', f'{COUNT}\n{end}\nimport os\nos._exit(0)'], cwd=ROOT,
                check=True, env={**os.environ, MULTIPROCESS: folder})
            told = {sample.name: sample.value for metric in sum_of_all(folder).collect()
                    for sample in metric.samples}
            for name in ('http_server_request', 'addrservice_span', 'addrservice_db_operation'):
                self.assertEqual(told[f'{name}_duration_seconds_count'], 1, end)

    def test_what_one_with_the_same_number_was_is_forgotten_too(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        own = folder / f'gauge_livesum_{os.getpid()}.db'
        own.touch()
        prepare_folder(str(folder))
        self.assertFalse(own.exists())

    def test_one_that_is_killed_is_forgotten_by_those_that_run(self) -> None:
        folder = self.enterContext(tempfile.TemporaryDirectory())
        killed, _ = self.start(folder, 1)
        os.environ[MULTIPROCESS] = folder
        self.addCleanup(os.environ.pop, MULTIPROCESS)
        metrics = Metrics()
        os.kill(killed, signal.SIGKILL)
        self.workers[killed].wait()
        metrics.exposition('')
        self.assertEqual(list(Path(folder).glob(f'gauge_live*_{killed}.db')), [])

    def test_a_folder_that_cannot_be_is_refused(self) -> None:
        with tempfile.NamedTemporaryFile() as file, self.assertRaisesRegex(
                ConfigError, f'^{MULTIPROCESS}: {file.name}: cannot be used: '):
            prepare_folder(file.name)


if __name__ == '__main__':
    unittest.main()

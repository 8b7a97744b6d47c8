"""Every request ends in one line that tells all of it."""

from __future__ import annotations

import asyncio
import logging
import sys
import unittest
import unittest.mock
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.tornado.messages import Headers
from addrservice.tornado.telemetry import RequestEvent, Telemetry, request_id
from addrservice.utils.logutils import (
    MAX_VALUE_LENGTH, get_log_context, logfmt, set_log_context)
from addrservice.utils.metrics import Metrics
from addrservice.utils.tracing import Tracing
from tests.support import clear_log_context, parse_logfmt

SANE_IDS = ('x', 'a' * 64, 'e6cd3072530f46b9932946fd65a13779', 'Az09._:-')
STRANGE_IDS = ('', ' ', 'a' * 65, 'a b', 'a"b', 'a=b', 'a,b', 'é', 'a\x1f', '../x',
               '<x>', '\\n')


def make_event(status: int = 0, **fields: Any) -> RequestEvent:
    """A request that has ended so."""
    known = {'req_id': 'id', 'method': 'GET', 'uri': '/', 'ip': '127.0.0.1', 'route': None,
             'is_probe': False, 'trace': Tracing().identify({})}
    event = RequestEvent(**{name: fields.pop(name, value) for name, value in known.items()})
    for name, value in {'status': status, **fields}.items():
        setattr(event, name, value)
    return event


class RequestIdTest(unittest.TestCase):
    def test_a_sane_id_is_taken_over(self) -> None:
        for given in SANE_IDS:
            with self.subTest(given=given):
                self.assertEqual(request_id(Headers({'X-Request-Id': given})), given)

    def test_in_place_of_a_strange_id_or_none_a_new_one_is_made(self) -> None:
        made = {request_id(Headers({'X-Request-Id': given})) for given in STRANGE_IDS}
        made.add(request_id(Headers()))
        self.assertEqual(len(made), len(STRANGE_IDS) + 1)
        for req_id in made:
            self.assertRegex(req_id, r'\A[0-9a-f]{32}\Z')

    def test_two_ids_at_once_are_none(self) -> None:
        headers = Headers()
        headers.add('X-Request-ID', 'a')
        headers.add('X-Request-ID', 'b')
        self.assertRegex(request_id(headers), r'\A[0-9a-f]{32}\Z')


class LineTest(unittest.TestCase):
    def line(self, event: RequestEvent, debug: bool = False) -> tuple[str, dict[str, Any]]:
        """Level and fields of the one line that the end of a request writes."""
        with self.assertLogs('telemetry_test', logging.DEBUG) as logs:
            Telemetry(logging.getLogger('telemetry_test'), Tracing(), None, debug).report([event])
        record, = logs.records
        return record.levelname, parse_logfmt(record.getMessage())

    def test_the_level_follows_from_status_and_probe(self) -> None:
        for status, is_probe, level in (
                (200, False, 'INFO'), (304, False, 'INFO'), (399, False, 'INFO'),
                (400, False, 'WARNING'), (499, False, 'WARNING'), (500, False, 'ERROR'),
                (503, False, 'ERROR'), (200, True, 'DEBUG'), (404, True, 'WARNING'),
                (503, True, 'ERROR')):
            with self.subTest(status=status, is_probe=is_probe):
                event = make_event(status, is_probe=is_probe)
                self.assertEqual(self.line(event)[0], level)

    def test_what_is_not_known_is_left_out(self) -> None:
        self.assertEqual(list(self.line(make_event(200))[1]), [
            'req_id', 'method', 'uri', 'ip', 'trace_id', 'span_id', 'message', 'status',
            'time_ms'])

    def test_the_trace_of_a_fault_is_one_line_and_that_of_a_refusal_is_for_debug(self) -> None:
        for status, debug, is_traced in (
                (500, False, True), (500, True, True), (404, False, False), (404, True, True)):
            with self.subTest(status=status, debug=debug):
                _, fields = self.line(make_event(status, error=ValueError('a\nb')), debug)
                self.assertEqual(fields.get('trace'), 'ValueError: a\nb' if is_traced else None)

    def test_the_line_is_the_requests_own_whatever_context_it_is_written_in(self) -> None:
        self.addCleanup(clear_log_context)
        set_log_context(req_id='another', user='somebody')
        _, fields = self.line(make_event(200))
        self.assertEqual(fields['req_id'], 'id')
        self.assertNotIn('user', fields)

    def test_a_line_put_together_at_once_is_the_one_that_its_fields_make(self) -> None:
        well: dict[str, Any] = {'route': '/{id}', 'time_ms': 0.25, 'body_bytes_sent': 7}
        hostile = ('', '/x"', '/\\', '/\n', '/é', '/\u2028', '/' + MAX_VALUE_LENGTH * 'x')
        cases: list[dict[str, Any]] = [
            {}, *({'uri': uri} for uri in hostile), {'method': '"'}, {'ip': 'a b"'},
            {'req_id': 'x y\\'}, {'route': None}, {'route': '/"'}, {'route': ''},
            {'body_bytes_sent': None}, {'body_bytes_sent': 0}, {'time_ms': 1e-05},
            {'time_ms': 123456789.123}, {'status': HTTPStatus.NO_CONTENT}, {'reason': 'Gone'},
            {'detail': 'x'}, {'cause': 'x'}, {'reason': ''}, {'error': ValueError('x')}]
        for fields in cases:
            with self.subTest(fields=str(fields)[:80]):
                text, line = self.text_and_fields(make_event(**{'status': 200, **well, **fields}))
                self.assertEqual(text, logfmt(line))

    def text_and_fields(self, event: RequestEvent) -> tuple[str, Mapping[str, Any]]:
        """The one line that the end of a request writes, and what its trace is told."""
        tracing = Tracing()
        with (self.assertLogs('telemetry_test', logging.DEBUG) as logs,
              unittest.mock.patch.object(tracing, 'end') as end):
            Telemetry(logging.getLogger('telemetry_test'), tracing, None).report([event])
        record, = logs.records
        self.assertEqual((record.filename, record.funcName), ('telemetry.py', 'report'))
        return record.getMessage(), end.call_args.args[1]

    def test_a_fault_in_tracing_costs_neither_the_line_nor_the_count(self) -> None:
        metrics = Metrics()
        tracing = Tracing()
        with (self.assertLogs('telemetry_test', logging.DEBUG) as logs,
              unittest.mock.patch.object(tracing, 'end', side_effect=ValueError('a fault'))):
            metrics.request_began()
            Telemetry(logging.getLogger('telemetry_test'), tracing, metrics).report(
                [make_event(200)])
        lines = [parse_logfmt(record.getMessage()) for record in logs.records]
        self.assertEqual([line['message'] for line in lines], ['SPANS LOST', 'RESPONSE'])
        self.assertIn('ValueError: a fault', lines[0]['trace'])
        self.assertIn('http_server_active_requests 0.0', metrics.exposition('')[0].decode())


class EndsTest(unittest.IsolatedAsyncioTestCase):
    """Requests that end in one turn of the event loop are told in the next."""

    def setUp(self) -> None:
        self.telemetry = Telemetry(logging.getLogger('telemetry_test'), Tracing(), Metrics())

    async def test_all_are_told_in_their_order_and_in_the_context_of_none(self) -> None:
        self.addCleanup(clear_log_context)
        set_log_context(user='somebody')
        seen = []
        with (self.assertLogs('telemetry_test', logging.DEBUG) as logs, unittest.mock.patch.object(
                self.telemetry.tracing, 'end', lambda *_: seen.append(get_log_context()))):
            for name in 'abc':
                self.telemetry.ended(make_event(200, req_id=name))
            self.telemetry.logger.info('still the same turn')
            await asyncio.sleep(0)
            self.telemetry.ended(make_event(200, req_id='d'))
            await asyncio.sleep(0)
        lines = [record.getMessage() for record in logs.records]
        self.assertEqual([parse_logfmt(line)['req_id'] for line in lines[1:]], ['a', 'b', 'c', 'd'])
        self.assertEqual(list(map(dict, seen)), [{}] * 4)

    async def test_one_that_cannot_be_told_leaves_the_others_alone(self) -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        told = unittest.mock.patch.object(
            self.telemetry.metrics, 'request_ended', side_effect=[ValueError('a fault'), None])
        with self.assertLogs('telemetry_test', logging.DEBUG) as logs, told:
            for name in 'ab':
                self.telemetry.ended(make_event(200, req_id=name))
            await asyncio.sleep(0)
        self.assertEqual(len(logs.records), 2)
        self.assertEqual([str(fault['exception']) for fault in faults], ['a fault'])

    async def test_a_filter_that_fails_costs_no_other_line(self) -> None:
        def fail_at_b(record: logging.LogRecord) -> bool:
            if 'req_id="b"' in record.getMessage():
                raise ValueError('a fault')
            return True

        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        self.telemetry.logger.addFilter(fail_at_b)
        self.addCleanup(self.telemetry.logger.removeFilter, fail_at_b)
        with self.assertLogs('telemetry_test', logging.DEBUG) as logs:
            for name in 'abc':
                self.telemetry.ended(make_event(200, req_id=name))
            self.telemetry.ended(make_event(404, req_id='d'))
            await asyncio.sleep(0)
        self.assertEqual([parse_logfmt(record.getMessage())['req_id'] for record in logs.records],
                         ['a', 'c', 'd'])
        self.assertEqual([str(fault['exception'].exceptions[0]) for fault in faults], ['a fault'])

    async def test_what_a_request_has_failed_with_is_forgotten_when_it_has_been_told(self) -> None:
        event = make_event(500, error=ValueError('a fault'))
        with self.assertLogs('telemetry_test', logging.DEBUG) as logs:
            self.telemetry.ended(event)
            await asyncio.sleep(0)
        self.assertIn('a fault', logs.output[0])
        self.assertIsNone(event.error)


if __name__ == '__main__':
    unittest.main()

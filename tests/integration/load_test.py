"""The load generator: what it asks, how it counts, and what it says when something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import itertools
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import load
from benchmarks.driver import run as runner
from benchmarks.driver.book import EXPECTED, Entries
from benchmarks.driver.plan import OPERATIONS, Plan, schedule
from benchmarks.driver.report import document, percentile_report, report
from benchmarks.driver.result import Latencies, Result
from benchmarks.driver.run import Load, NotFilled, Unreachable, drive, run
from tests.support import DEADLINE, ROOT, ServerProcess

SCRIPT = str(ROOT / 'benchmarks' / 'load.py')
STALL = 0.25
GONE = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
LATE = 0.06
"""Seconds: longer than any answer takes that does not wait for a stall to end."""


class Stub:
    """Answers as the service would, or as a test wants: `answer` gets a method and a target."""

    def __init__(self, answer: Callable[[str, str], Awaitable[bytes]] | None = None) -> None:
        self.answer = answer or self.expected
        self.port = 0
        self.asked: list[str] = []
        self.connections = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Stub]:
        server = await asyncio.start_server(self._serve, '127.0.0.1', 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    def plan(self, **fields: Any) -> Plan:
        return Plan(**{'url': f'http://127.0.0.1:{self.port}', 'seconds': 0.1, 'entries': 4,
                       'connections': 4, **fields})

    async def expected(self, method: str, target: str) -> bytes:
        place = f'Location: /addresses/{len(self.asked)}\r\n' if method == 'POST' else ''
        status = {'POST': 201, 'GET': 200}.get(method, 204)
        length = '' if status == 204 else 'Content-Length: 0\r\n'
        return f'HTTP/1.1 {status} OK\r\n{place}{length}\r\n'.encode()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.closing(writer), contextlib.suppress(*GONE):
            while answer := await self._exchange(reader):
                writer.write(answer)

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes:
        head = (await reader.readuntil(b'\r\n\r\n')).decode()
        fields = dict(line.split(': ') for line in head.split('\r\n')[1:] if line)
        await reader.readexactly(int(fields.get('Content-Length', 0)))
        method, target, _ = head.split(' ', 2)
        self.asked.append(method)
        return await self.answer(method, target)


def due(plan: Plan) -> int:
    """How many requests become due in an open loop."""
    moments = schedule(plan, 0.0, time.monotonic)
    return len(list(itertools.takewhile(lambda moment: moment < plan.seconds, moments)))


def drive_stub(stub: Stub, **fields: Any) -> Result:
    """One run against it, in this process."""
    async def work() -> Result:
        async with stub.serving():
            return await asyncio.wait_for(drive(stub.plan(**fields)), DEADLINE)

    return run(work())


class Terminal(io.StringIO):

    def isatty(self) -> bool:
        return True


def command(*arguments: str, in_terminal: bool = False) -> tuple[int, str, str]:
    """The command, called here: its status, stdout and stderr."""
    with (contextlib.redirect_stdout(io.StringIO()) as out,
          contextlib.redirect_stderr(Terminal() if in_terminal else io.StringIO()) as err):
        try:
            status = load.main(arguments)
        except SystemExit as end:
            status = int(str(end.code))
    return status, out.getvalue(), err.getvalue()


class ServiceTest(unittest.TestCase):
    """Against the service itself."""

    server: ClassVar[ServerProcess]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(ServerProcess({'addr-db': {'memory': None}}))

    def setUp(self) -> None:
        self.server.request('POST', '/addresses', '{"full_name": "Was There"}')
        self.before = self.server.request('GET', '/addresses').json()
        self.plan = Plan(f'http://localhost:{self.server.port}', seconds=0.2, entries=20,
                         mix=dict.fromkeys(OPERATIONS, 1))

    def book(self) -> Any:
        return self.server.request('GET', '/addresses').json()

    def check_all_is_well(self, result: Result) -> None:
        self.assertEqual({}, result.errors)
        for operation in OPERATIONS:
            with self.subTest(operation):
                self.assertGreater(result.statuses[operation, EXPECTED[operation]], 0)
                self.assertGreater(result.latencies(operation).percentile(50), 0)
        self.assertEqual(result.statuses.total(), result.count)
        self.assertEqual(self.before, self.book())
        self.assertEqual(0, result.left)

    def test_a_closed_loop_reaches_all_operations_and_leaves_the_book_as_it_was(self) -> None:
        result = run(drive(self.plan))
        self.check_all_is_well(result)
        self.assertAlmostEqual(result.count, result.throughput * result.duration)

    def test_an_open_loop_sends_what_was_due_and_leaves_the_book_as_it_was(self) -> None:
        result = run(drive(dataclasses.replace(self.plan, rate=200)))
        self.check_all_is_well(result)
        self.assertEqual(due(result.plan), result.count)

    def test_few_connections_are_kept_alive(self) -> None:
        result = run(drive(dataclasses.replace(self.plan, connections=3, seconds=0.1)))
        self.assertEqual(3, result.opened)
        self.assertGreater(result.count, 3)

    def test_a_cancelled_run_removes_its_entries(self) -> None:
        async def work() -> None:
            with self.assertRaises(TimeoutError):
                await asyncio.wait_for(drive(dataclasses.replace(self.plan, seconds=60)), 0.2)

        run(work())
        self.assertEqual(self.before, self.book())

    def test_the_command_reports_for_people_and_for_machines(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, 'result.json')
            status, out, err = command(
                '--url', self.plan.url, '--seconds', '0.25', '--rate', '200',
                '--json', str(file), '--percentiles')
            told = json.loads(file.read_text())
        self.assertEqual((0, ''), (status, err))
        requests = due(Plan(seconds=0.25, rate=200))
        self.assertRegex(out, r'open loop, 200 requests/s(?s:.*)'
                              rf'\nall +{requests} +0 (?s:.*)TotalCount')
        self.assertEqual((requests, {}), (told['requests'], told['errors']))
        self.assertEqual(self.before, self.book())

    def test_progress_is_shown_in_a_terminal_while_it_runs(self) -> None:
        with mock.patch.object(load, 'PROGRESS_SECONDS', 0.05):
            status, _, err = command('--url', self.plan.url, '--seconds', '0.2', in_terminal=True)
        self.assertEqual(0, status)
        self.assertRegex(err, r'driving 00:00, [1-9]\d* requests/s, 0 errors')

    def test_ctrl_c_ends_it_with_its_report(self) -> None:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, '--url', self.plan.url, '--seconds', '60', '--rate', '50'],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            self.server.wait_for(lambda: len(self.book()) > len(self.before) + 10)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE)
        self.assertEqual((130, ''), (process.returncode, err))
        self.assertRegex(out, r'broken off(?s:.*)\nall +[1-9]\d* +0 ')
        self.assertEqual(self.before, self.book())


class OpenLoopTest(unittest.TestCase):

    def late(self, rate: float | None) -> Result:
        """A run against a service that stalls for a moment in its midst."""
        async def answer(method: str, target: str) -> bytes:
            loop = asyncio.get_running_loop()
            if len(stub.asked) == 40:
                stalls[:] = [loop.time() + STALL]
            if stalls and loop.time() < stalls[0]:
                await asyncio.sleep(stalls[0] - loop.time())
            return await stub.expected(method, target)

        stalls: list[float] = []
        stub = Stub(answer)
        result = drive_stub(stub, seconds=0.45, rate=rate)
        self.assertEqual({}, result.errors)
        return result

    def test_a_stall_shows_in_all_requests_that_were_due_in_it(self) -> None:
        result = self.late(rate=300)
        latencies = result.latencies()
        # About 75 became due in it, 57 of them more than LATE before it was over.
        self.assertGreater(len(result.latencies()) - latencies.up_to(LATE), 40)
        self.assertGreater(latencies.percentile(90), LATE)
        self.assertGreater(latencies.maximum, STALL * 0.9)
        self.assertEqual(due(result.plan), result.count)

    def test_a_closed_loop_sees_one_slow_request_per_connection(self) -> None:
        latencies = self.late(rate=None).latencies()
        self.assertLess(len(latencies) - latencies.up_to(LATE), 20)

    def test_the_lateness_of_the_generator_counts_and_is_told(self) -> None:
        result = drive_stub(Stub(), rate=100)
        self.assertIn(len(result.lateness), range(1, result.count + 1))
        self.assertIn('by its own fault', report(result))

    def test_what_there_is_no_time_to_send_counts_as_an_error(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method == 'GET':
                await asyncio.sleep(0.12)
            return await stub.expected(method, target)

        stub = Stub(answer)
        result = drive_stub(stub, seconds=0.15, rate=1000, mix={'get': 1},
                            timeout=0.15)
        self.assertGreater(result.errors['get', 'unsent'], 80)
        self.assertEqual(due(result.plan), result.count)
        self.assertGreater(result.latencies().maximum, 0.15)

    def test_requests_are_due_at_random_at_the_rate_and_each_time_the_same(self) -> None:
        one, two = (schedule(Plan(rate=50), 0.0, time.monotonic) for _ in range(2))
        moments = [next(one) for _ in range(10_000)]
        self.assertEqual(moments, [next(two) for _ in range(10_000)])
        self.assertAlmostEqual(200, moments[-1], delta=10)
        pauses = [after - before for before, after in itertools.pairwise(moments)]
        mean = statistics.fmean(pauses)
        self.assertAlmostEqual(mean, statistics.pstdev(pauses), delta=0.1 * mean)

    def test_or_they_are_due_at_the_same_distance(self) -> None:
        moments = schedule(Plan(rate=50, is_even=True), 3.0, time.monotonic)
        for number in range(100):
            self.assertAlmostEqual(next(moments), 3 + number / 50)


class FailureTest(unittest.TestCase):

    def test_a_status_that_is_not_expected_is_an_error_of_its_operation(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method == 'PUT':
                return b'HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n'
            return await stub.expected(method, target)

        stub = Stub(answer)
        result = drive_stub(stub, mix={'get': 1, 'put': 1})
        self.assertEqual({('put', 'status 500')}, set(result.errors))
        self.assertEqual(result.errors_of('put'), result.statuses['put', 500])
        self.assertIn('errors: put status 500: ', report(result))
        self.assertEqual({'put status 500'}, set(document(result)['errors']))

    def test_a_missing_entry_is_an_error(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method == 'GET':
                return b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n'
            return await stub.expected(method, target)

        stub = Stub(answer)
        result = drive_stub(stub, mix={'get': 1})
        self.assertEqual(result.count, result.errors['get', 'status 404'])

    def test_an_entry_that_was_deleted_meanwhile_may_be_missing(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method == 'GET':
                await asyncio.sleep(0.03)
                if target in gone:
                    return b'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n'
            elif method == 'DELETE':
                gone.add(target)
            return await stub.expected(method, target)

        gone: set[str] = set()
        stub = Stub(answer)
        result = drive_stub(stub, mix={'get': 1, 'delete': 1, 'post': 1}, connections=16)
        self.assertGreater(result.statuses['get', 404], 0)
        self.assertEqual({}, result.errors)

    def test_a_connection_that_says_close_is_replaced_without_an_error(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            answer = await stub.expected(method, target)
            return answer.replace(b'\r\n', b'\r\nConnection: close\r\n', 1)

        stub = Stub(answer)
        result = drive_stub(stub)
        self.assertEqual({}, result.errors)
        self.assertGreater(stub.connections, result.count)

    def test_a_post_without_an_answer_is_an_error_and_may_have_left_an_entry(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method == 'POST' and stub.asked.count(method) > 4:
                return b''
            return await stub.expected(method, target)

        stub = Stub(answer)
        result = drive_stub(stub, connections=1)
        self.assertEqual({('post', 'closed')}, set(result.errors))
        self.assertEqual(stub.asked.count('POST'), len(result.samples['post']) + 4)
        self.assertEqual(result.errors.total(), result.left)
        self.assertIn('could not be removed', report(result))

    def kind(self, answer: bytes, seconds: float = 0) -> str:
        """The error of a get that is answered so, after that time."""
        async def answered(method: str, target: str) -> bytes:
            if method != 'GET':
                return await stub.expected(method, target)
            await asyncio.sleep(seconds)
            return answer

        stub = Stub(answered)
        result = drive_stub(stub, seconds=0.05, mix={'get': 1}, timeout=0.1)
        (_, kind), = result.errors
        return kind

    def test_what_is_not_http_is_malformed(self) -> None:
        self.assertEqual('malformed', self.kind(b'SSH-2.0-OpenSSH\r\n'))

    def test_an_answer_without_its_end_is_not_waited_for(self) -> None:
        self.assertEqual('timeout', self.kind(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n'))

    def test_a_late_answer_is_not_waited_for(self) -> None:
        self.assertEqual('timeout', self.kind(b'HTTP/1.1 204 OK\r\n\r\n', seconds=1.0))

    def test_a_service_that_goes_away_is_told(self) -> None:
        async def work() -> Result:
            stub = Stub()
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(stub.serving())
                running = asyncio.create_task(drive(stub.plan(seconds=0.2)))
                await asyncio.sleep(0.1)
                stub.answer = self.nothing
            return await running

        result = run(work())
        self.assertGreater(sum(result.errors[name, 'no connection'] for name in OPERATIONS), 0)
        self.assertGreater(result.left, 0)

    async def nothing(self, method: str, target: str) -> bytes:
        return b''

    def test_a_book_that_cannot_be_filled_ends_the_run(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            return b'HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n'

        with self.assertRaisesRegex(NotFilled, 'status 500'):
            drive_stub(Stub(answer))

    def test_stop_ends_a_run_that_hangs(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method != 'POST':
                await asyncio.sleep(30)
            return await stub.expected(method, target)

        async def work() -> Result:
            async with stub.serving():
                running = Load(stub.plan(seconds=60, timeout=60, mix={'get': 1}, rate=100))
                asyncio.get_running_loop().call_later(0.2, running.stop)
                return await asyncio.wait_for(running.run(), DEADLINE)

        stub = Stub(answer)
        with mock.patch.object(runner, 'PATIENCE_SECONDS', 0.1):
            result = run(work())
        self.assertTrue(result.interrupted)
        self.assertEqual({('get', 'unfinished'), ('get', 'unsent')}, set(result.errors))
        self.assertEqual((4, 4), (result.errors['get', 'unfinished'], result.left))


class FiguresTest(unittest.TestCase):

    def test_percentiles_are_the_smallest_value_that_enough_do_not_exceed(self) -> None:
        samples = [float(number) for number in range(1, 1001)]
        random.Random(5).shuffle(samples)
        latencies = Latencies(samples)
        for percent, value in {0: 1, 50: 500, 90: 900, 99: 990, 99.9: 999, 99.99: 1000,
                               100: 1000}.items():
            with self.subTest(percent):
                self.assertEqual(value, latencies.percentile(percent))
        self.assertEqual((500.5, 1000.0), (latencies.mean, latencies.maximum))
        self.assertEqual((0, 900, 1000), tuple(map(latencies.up_to, (0, 900, 1000))))
        self.assertEqual(40959, Latencies(range(1, 41001)).percentile(99.9))

    def test_percentiles_of_one_and_of_none(self) -> None:
        self.assertEqual([7.0] * 3, [Latencies([7.0]).percentile(part) for part in (0, 50, 100)])
        none = Latencies([])
        self.assertEqual((0, 0, 0, 0), (none.percentile(99), none.mean, none.maximum, len(none)))

    def test_the_distribution_steps_as_hdrhistogram_does(self) -> None:
        steps = list(Latencies(range(1, 101)).distribution())
        self.assertEqual((1, 0.0, 1), steps[0])
        self.assertEqual([0, 10, 20, 30, 40, 50, 55, 60, 65, 70, 75, 77.5],
                         [percent for _, percent, _ in steps[:12]])
        self.assertEqual((75, 75.0, 75), steps[10])
        self.assertEqual((100, 100.0, 100), steps[-1])

    def test_the_distribution_is_listed_as_hdrhistogram_does(self) -> None:
        lines = percentile_report(Latencies([0.001, 0.002, 0.002, 0.005])).splitlines()
        self.assertEqual(['Value', 'Percentile', 'TotalCount', '1/(1-Percentile)'],
                         lines[0].split())
        self.assertEqual(['2.000', '0.500000000000', '3', '2.00'], lines[7].split())
        self.assertEqual(['5.000', '1.000000000000', '4', 'inf'], lines[-1].split())

    def test_entries_chosen_are_there_and_those_taken_are_not(self) -> None:
        entries = Entries(random.Random(3))
        for number in range(50):
            entries.add(b'%d' % number)
        for left in range(49, -1, -1):
            self.assertIn(entries.choose(), entries)
            self.assertNotIn(entries.take(), entries)
            self.assertEqual(left, len(set(entries)))


class CommandTest(unittest.TestCase):

    def refused(self, *arguments: str) -> str:
        """What is said of options that make no sense."""
        status, out, err = command(*arguments)
        self.assertEqual((2, '', 1), (status, out, err.count('\n')))
        return err

    def test_options_out_of_range_are_refused_in_one_line(self) -> None:
        for name, value in {
                'seconds': '3601', 'rate': 'nan', 'connections': '0', 'timeout': '-1',
                'entries': '-1', 'url': 'https://localhost',
                'json': '/nowhere/at/all'}.items():
            with self.subTest(name):
                self.assertIn('load.py: ', self.refused(f'--{name}={value}'))

    def test_a_mix_of_nothing_or_of_something_else_is_refused(self) -> None:
        for mix in ('get=0', 'get', 'get=x', 'get=-1,put=2', 'patch=1', ''):
            with self.subTest(mix):
                self.assertIn('m', self.refused('--mix', mix))

    def test_urls(self) -> None:
        for url, where in {'http://localhost': ('localhost', 80, 'localhost'),
                           'http://[::1]:81/': ('::1', 81, '[::1]:81')}.items():
            plan = Plan(url)
            self.assertEqual(where, (plan.host, plan.port, plan.authority))
        for url in ('localhost:8080', 'http://a b', 'http://a/path', 'http://a:0', 'http://a:65536',
                    'http://a@b', 'http://a\r\nX: y', ''):
            with self.subTest(url), self.assertRaises(ValueError):
                Plan(url)

    def test_a_service_that_is_not_there_is_told_in_one_line(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
        self.assertIn('Connect call failed', self.refused('--url', f'http://127.0.0.1:{port}'))
        with self.assertRaises(Unreachable):
            run(drive(Plan(f'http://127.0.0.1:{port}')))

    def test_errors_make_status_1(self) -> None:
        async def answer(method: str, target: str) -> bytes:
            if method == 'GET':
                return b'HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n'
            return await stub.expected(method, target)

        async def work() -> tuple[int, str, str]:
            async with stub.serving():
                return await asyncio.to_thread(self.run_script, stub.port)

        stub = Stub(answer)
        status, out, err = asyncio.run(work())
        self.assertEqual((1, ''), (status, err))
        self.assertIn('errors: get status 500: ', out)

    def run_script(self, port: int) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, SCRIPT, '--url', f'http://127.0.0.1:{port}',
                               '--seconds', '0.2'], text=True, capture_output=True)
        return done.returncode, done.stdout, done.stderr


if __name__ == '__main__':
    unittest.main()

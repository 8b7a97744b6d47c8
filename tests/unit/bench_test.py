"""The comparison with peers: its figures, its load, its checks, its options, its picture."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock
from xml.etree import ElementTree as Xml

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR, datamodel
from addrservice.config import SCHEMA_FILE, complete_config
from addrservice.database import sql_db
from addrservice.datamodel import AddressEntry
from addrservice.errors import InvalidAddress
from benchmarks import bench
from benchmarks.contest import cores, environment, job
from benchmarks.contest.chart import svg
from benchmarks.contest.figures import Figures, Row, median_of, ratio_of, summarize
from benchmarks.contest.load import Driven, Work, drive, requests_for
from benchmarks.contest.peers import BASE, JOB, KEEPS, OWN, Peer, peers_of
from benchmarks.contest.rounds import Outcome, Plan, compare, turns
from benchmarks.contest.server import HOST, Answer, Failed, Server
from benchmarks.contest.stores import ENGINES, Store
from benchmarks.contest.tables import document, markdown
from benchmarks.driver.result import Latencies
from benchmarks.peers import limits, statements

SVG = '{http://www.w3.org/2000/svg}'


def peer(name: str, *parts: str) -> Peer:
    return Peer(name, f'{name} <&> "title"', lambda port, store: ['false'], parts)


FIRST, OTHER, LEAST = (peer(name, *JOB) for name in (BASE, OWN, 'least'))
YARDSTICK = peer('yardstick')


def figures(throughput: float, generator: float = 0.1) -> Figures:
    return Figures(throughput, 1.0, 100.0, generator)


def rounds(*each: float) -> dict[str, list[Figures]]:
    return {workload: [figures(throughput) for throughput in each] for workload in job.WORKLOADS}


def row(peer: Peer, ratio: float, throughput: float = 1000.0, generator: float = 0.1) -> Row:
    return Row(peer, {name: figures(throughput, generator) for name in job.WORKLOADS},
               {name: ratio for name in job.WORKLOADS})


class FiguresTest(unittest.TestCase):
    def test_the_median_is_taken_of_each_figure_by_itself(self) -> None:
        self.assertEqual(Figures(2, 20, 3, 0.2), median_of(
            [Figures(1, 20, 3, 0.9), Figures(2, 10, 4, 0.1), Figures(9, 30, 2, 0.2)]))

    def test_the_ratio_is_the_median_of_those_within_a_round(self) -> None:
        # Of the medians it would be 1: a machine that was slow in one round was slow for both.
        each, base = rounds(10, 200, 300)['get'], rounds(5, 200, 100)['get']
        self.assertEqual(2, ratio_of(each, base))

    def test_the_fastest_server_comes_first_with_its_ratios(self) -> None:
        found = {OWN: rounds(10, 30), BASE: rounds(5, 10)}
        rows = summarize(found, [OTHER, YARDSTICK, FIRST], BASE)
        self.assertEqual([OTHER, FIRST], [each.peer for each in rows])
        self.assertEqual([2.5, 1], [each.ratio['post'] for each in rows])

    def test_without_the_base_there_are_no_ratios(self) -> None:
        rows = summarize({OWN: rounds(1), 'least': rounds(3)}, [OTHER, LEAST], BASE)
        self.assertEqual([(LEAST, {}), (OTHER, {})], [(each.peer, each.ratio) for each in rows])


class TablesTest(unittest.TestCase):
    def test_rows_have_the_ratios_and_a_bound_is_marked(self) -> None:
        lines = list(markdown([row(YARDSTICK, 20, generator=0.95), row(FIRST, 1)], 'base'))
        self.assertIn(f'| yardstick <&> "title" |{4 * " ≥ 20.00 |"}', lines)
        self.assertIn('| fastapi <&> "title" | 1.00 | 1.00 | 1.00 | 1.00 |', lines)
        self.assertIn('| fastapi <&> "title" | GET one | 1000 | 1.00 | 100 | 10% |', lines)
        self.assertRegex(lines[-1], '^≥ The load generator')

    def test_without_the_base_there_is_no_table_of_ratios(self) -> None:
        text = '\n'.join(markdown([Row(OTHER, row(OTHER, 1).median, {})], ''))
        self.assertNotIn('multiple', text)
        self.assertIn(OTHER.title, text)

    def test_the_document_has_each_round(self) -> None:
        found = {OWN: rounds(10, 30)}
        outcome = Outcome(found, {'least': 'ended'})
        told = json.loads(json.dumps(document(
            Plan([OTHER], 'memory', 2, 1, 8), summarize(found, [OTHER], BASE), outcome)))
        self.assertEqual({'least': 'ended'}, told['failures'])
        one = told['servers'][0]['workloads']['list']
        self.assertEqual([10, 30], [each['throughput'] for each in one['rounds']])
        self.assertEqual((20, None), (one['throughput'], one['ratio']))


class ChartTest(unittest.TestCase):
    rows = [row(YARDSTICK, 20), row(OTHER, 2.5), row(FIRST, 1), row(LEAST, 0.5)]

    def bars(self, rows: list[Row]) -> list[list[float]]:
        """The widths of the bars of each row."""
        root = Xml.fromstring(svg(rows, 'base <&>', OWN))
        return [[float(bar.attrib['width']) for bar in group.iter(SVG + 'rect')]
                for group in root.iter(SVG + 'g')]

    def test_each_row_has_three_bars_as_long_as_its_ratios(self) -> None:
        yardstick, own, base, least = self.bars(self.rows)
        self.assertEqual([3, 3, 3, 3], [len(bars) for bars in (yardstick, own, base, least)])
        self.assertAlmostEqual(2.5, own[0] / base[0], places=2)
        self.assertAlmostEqual(0.5, least[1] / base[1], places=2)

    def test_what_does_nothing_of_the_job_does_not_squeeze_the_others(self) -> None:
        self.assertEqual(self.bars(self.rows)[0], self.bars(self.rows)[1])
        self.assertEqual(self.bars(self.rows)[1:], self.bars(self.rows[1:]))
        self.assertIn('20.00 →', svg(self.rows, 'base', OWN))
        self.assertNotIn('→', svg(self.rows[1:], 'base', OWN))

    def test_it_says_in_words_what_it_shows(self) -> None:
        root = Xml.fromstring(svg(self.rows, 'base <&>', OWN))
        self.assertEqual(('img', 'title desc'), (root.get('role'), root.get('aria-labelledby')))
        title, desc = (root.find(f'{SVG}{name}[@id="{name}"]') for name in ('title', 'desc'))
        assert title is not None and desc is not None
        self.assertEqual('Requests per second relative to base <&>', title.text)
        self.assertIn('addrservice <&> "title": GET one 2.50, PUT one 2.50, POST one 2.50.',
                      str(desc.text))

    def test_it_is_the_same_each_time_and_knows_dark_pages(self) -> None:
        self.assertEqual(svg(self.rows, 'base', OWN), svg(self.rows, 'base', OWN))
        self.assertIn('prefers-color-scheme: dark', svg(self.rows, 'base', OWN))

    def test_only_the_service_itself_is_stressed(self) -> None:
        root = Xml.fromstring(svg(self.rows, 'base', OWN))
        self.assertEqual([None, 'own', None, None],
                         [group.get('class') for group in root.iter(SVG + 'g')])


@contextlib.contextmanager
def answering(*pieces: bytes) -> Iterator[int]:
    """A server that answers each request with these pieces, and closes after an empty one; gives
    its port."""
    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while connection.recv(65536):
                for piece in pieces:
                    if not piece:
                        return
                    connection.sendall(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=serve, args=[connection], daemon=True).start()

    with socket.create_server((HOST, 0)) as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


class LoadTest(unittest.TestCase):
    work = Work([*requests_for('GET', ['/'])], 200)

    def driven(self, *pieces: bytes) -> Driven:
        with answering(*pieces) as port:
            return drive(port, self.work, 2, 0.05)

    def test_answers_in_order_are_counted_with_their_latencies(self) -> None:
        for pieces in ([b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'],
                       [b'HTTP/1.1 200 O', b'K\r\nContent-Length: 2\r\n', b'\r\no', b'k'],
                       [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\no',
                        b'k\r\n0\r\n\r\n']):
            with self.subTest(pieces):
                driven = self.driven(*pieces)
                self.assertFalse(driven.errors)
                self.assertGreater(len(driven.latencies), 1)
                self.assertTrue(0.05 <= driven.seconds < 5)
                self.assertTrue(0 < driven.latencies.percentile(50) < driven.seconds)
                self.assertAlmostEqual(driven.throughput * driven.seconds, len(driven.latencies))
                self.assertTrue(0 < driven.busy <= 1.5)

    def test_another_status_is_an_error_and_has_no_latency(self) -> None:
        driven = self.driven(b'HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n')
        self.assertEqual(['status 503'], list(driven.errors))
        self.assertEqual(0, len(driven.latencies))

    def test_a_connection_that_ends_and_bytes_that_are_no_answer_are_errors(self) -> None:
        self.assertEqual({'closed': 2}, dict(self.driven(b'').errors))
        self.assertEqual({'malformed': 2}, dict(self.driven(b'what?\r\n\r\n').errors))

    def test_no_answer_at_all_is_an_error_when_patience_ends(self) -> None:
        with mock.patch('benchmarks.contest.load.PATIENCE_SECONDS', 0.05):
            self.assertEqual({'timeout': 2}, dict(self.driven(b'HTTP/1.1 200').errors))

    def test_a_signal_ends_it_and_is_handled_as_before_afterwards(self) -> None:
        def handle(number: int, _frame: object) -> None:
            raise KeyboardInterrupt(number)

        before = signal.signal(signal.SIGTERM, handle)
        self.addCleanup(signal.signal, signal.SIGTERM, before)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with answering(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n') as port:
            began = time.monotonic()
            with self.assertRaises(KeyboardInterrupt) as raised:
                drive(port, self.work, 8, 30)
            self.assertLess(time.monotonic() - began, 20)
        self.assertEqual((signal.SIGTERM,), raised.exception.args)
        self.assertIs(handle, signal.getsignal(signal.SIGTERM))

    def test_requests_are_what_a_client_may_send(self) -> None:
        self.assertEqual([b'GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n',
                          b'GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n'],
                         [*requests_for('GET', ['/a', '/b'])])
        posted, = requests_for('POST', ['/a'], b'{}')
        self.assertRegex(posted, rb'(?s)\nContent-Length: 2\r\n\r\n\{\}\Z')


class Book:
    """Does the job without a network; tests break one part of it each."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.log: list[str] = []

    def ask(self, method: str, target: str, body: bytes | None = None) -> Answer:
        headers: dict[str, str] = {}
        status, content = 200, b''
        path, _, query = target.partition('?limit=')
        if method == 'POST':
            status, headers = self.post(body or b'')
        elif method == 'PUT':
            status = self.put(path, body or b'')
        elif query:
            content = json.dumps(self.listed(int(query))).encode()
        elif path in self.entries:
            content = json.dumps(self.document(path)).encode()
        else:
            status = self.unknown()
        self.log += self.lines_about(method, path, status)
        return Answer(status, cast(Any, headers), content)

    def post(self, body: bytes) -> tuple[int, dict[str, str]]:
        entry = self.entry_of(body)
        if entry is None:
            return self.refused(), {}
        path = f'/addresses/{secrets.token_hex(16)}'
        self.entries[path] = entry
        return 201, {'Location': path}

    def put(self, path: str, body: bytes) -> int:
        entry = self.entry_of(body)
        if entry is None:
            return self.refused()
        if path not in self.entries:
            return self.unknown()
        self.replace(path, entry)
        return 204

    def replace(self, path: str, entry: Any) -> None:
        self.entries[path] = entry

    def entry_of(self, body: bytes) -> Any:
        """None if it is none."""
        try:
            entry = json.loads(body)
        except ValueError:
            return None
        return None if self.is_wrong(entry) else entry

    def is_wrong(self, entry: Any) -> bool:
        try:
            AddressEntry.from_api_dm(entry)
        except InvalidAddress:
            return True
        return False

    def document(self, path: str) -> Any:
        return self.entries[path]

    def listed(self, limit: int) -> dict[str, Any]:
        paths = sorted(self.entries)[:limit]
        return {path.rpartition('/')[2]: self.entries[path] for path in paths}

    def unknown(self) -> int:
        return 404

    def refused(self) -> int:
        return 422

    def lines_about(self, method: str, path: str, status: int) -> list[str]:
        return [f'method={method} path="{path}" status={status} duration=0.1 request_id=7f']

    def lines(self) -> list[str]:
        return self.log

    def count_lines(self) -> int:
        return len(self.log)


def put_anywhere(book: Book, path: str, body: bytes) -> int:
    book.replace(path, json.loads(body))
    return 204


def put_anywhere_in_secret(book: Book, path: str, body: bytes) -> int:
    status = Book.put(book, path, body)
    put_anywhere(book, path, body)
    return status


def put_and_tell_of_nothing_wrong(book: Book, path: str, body: bytes) -> int:
    status = Book.put(book, path, body)
    return 204 if status == 422 else status


def put_before_it_looks(book: Book, path: str, body: bytes) -> int:
    status = Book.put(book, path, body)
    if status == 422 and b'full_name' not in body:
        book.entries[path] = json.loads(body)
    return status


class JobTest(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(mock.patch.object(job, 'LOG_SECONDS', 0.01))

    def check(self, *parts: str, **broken: Callable[..., Any]) -> None:
        """Checks a book some of whose methods are these."""
        server = cast(Server, type('Broken', (Book,), broken)())
        job.check(peer('peer', *parts), server, job.fill(server))

    def test_who_does_the_job_passes(self) -> None:
        self.check(*JOB)

    def test_each_part_that_is_not_done_is_found(self) -> None:
        location = {'Location': '/addresses/constant'}
        faults: list[tuple[str, dict[str, Callable[..., Any]]]] = [
            ('Location', {'post': lambda book, body: (201, {})}),
            ('entry is answered 200', {'post': lambda book, body: (200, location)}),
            ('GET is answered 404', {'post': lambda book, body: (201, location)}),
            ('not what was put there', {'document': lambda book, path: {}}),
            ('unknown id', {'unknown': lambda book: 200}),
            ('list of 100 ', {'listed': lambda book, limit: {}}),
            ('list of 100 ', {'listed': lambda book, limit: dict(
                reversed(Book.listed(book, limit).items()))}),
            ('list of 3 ', {'listed': lambda book, limit: Book.listed(book, 100)}),
            ('PUT of an entry is answered 200', {'put': lambda book, path, body: 200}),
            ('has replaced it', {'replace': lambda book, path, entry: None}),
            ('PUT to an unknown id is answered 204', {'put': put_anywhere}),
            ('after PUT to an unknown id', {'put': put_anywhere_in_secret}),
            ('PUT with no JSON is answered 204', {'put': put_and_tell_of_nothing_wrong}),
            ('has replaced an entry', {'put': put_before_it_looks}),
            ('POST with no JSON is answered 500', {'refused': lambda book: 500}),
            ('POST with an unknown member is answered 201', {'is_wrong': lambda book, entry: (
                set(entry) != {'full_name', 'unknown'} and Book.is_wrong(book, entry))}),
            ('GET leaves 0 lines', {'lines_about': lambda book, *about: []}),
            ('PUT leaves 0 lines', {'lines_about': lambda book, *about: (
                [] if about[0] == 'PUT' else Book.lines_about(book, *about))}),
            ('leaves 2 lines', {'lines_about': lambda book, *about: [about[1]] * 2}),
            ('not all', {'lines_about': lambda book, method, path, status: [
                f'method={method} path="{path}" status={status} duration=0.1']})]
        for why, broken in faults:
            with self.subTest(why), self.assertRaisesRegex(Failed, why):
                self.check(*JOB, **broken)

    def test_what_it_is_not_meant_to_do_is_not_asked(self) -> None:
        self.check(KEEPS, refused=lambda book: 201, lines_about=lambda book, *about: [])

    def test_every_wrong_entry_is_refused_by_the_service_itself(self) -> None:
        for name, entry in job.WRONG.items():
            with self.subTest(name), self.assertRaises(InvalidAddress):
                AddressEntry.from_api_dm(entry)

    def test_requests_without_their_lines_are_found(self) -> None:
        server = Book()
        job.check_lines(cast(Server, server), 0)
        server.ask('GET', '/addresses/x')
        job.check_lines(cast(Server, server), 1)
        with self.assertRaisesRegex(Failed, '2 requests have left 1 lines'):
            job.check_lines(cast(Server, server), 2)


def plan(*peers: Peer, rounds: int = 1) -> Plan:
    return Plan(peers, 'memory', rounds, 0.01, 1)


class RoundsTest(unittest.TestCase):
    def test_each_turn_begins_with_another_and_has_all(self) -> None:
        order = [(number, name) for number, name, _ in turns([BASE, OWN], 0.6)]
        self.assertEqual([(0, BASE), (0, OWN), (1, OWN), (1, BASE), (2, BASE), (2, OWN)], order)

    def test_the_turns_of_each_have_as_many_seconds_as_were_asked_for(self) -> None:
        for seconds in (0.01, 0.25, 0.6, 2):
            each = [part for _, _, part in turns([OWN], seconds)]
            self.assertAlmostEqual(seconds, sum(each))
            self.assertLessEqual(max(each), 0.25)
        self.assertEqual([], [*turns([], 1)])

    def test_a_server_that_does_not_start_is_left_out_with_the_reason_and_not_tried_again(
            self) -> None:
        told: list[str] = []
        broken = peer('broken')._replace(start=lambda port, store: [
            sys.executable, '-c', 'print("no such thing"); raise SystemExit(3)'])
        missing = peer('missing')._replace(start=lambda port, store: ['/no/such/program'])
        outcome = compare(plan(broken, missing, rounds=2), cores.share_out(), told.append)
        self.assertEqual({}, outcome.found)
        self.assertEqual('ended with status 3: no such thing', outcome.failures['broken'])
        self.assertIn('No such file', outcome.failures['missing'])
        self.assertEqual(2, sum('starts' in text for text in told))

    def test_wrong_answers_while_it_is_measured_leave_it_out(self) -> None:
        for errors, latencies, why in ((Counter({'status 500': 3}), [0.1], 'status 500: 3'),
                                       (Counter[str](), [], 'answers nothing')):
            driven = Driven(Latencies(latencies), errors, 1.0, 0.1)
            with (self.subTest(why), mock.patch('benchmarks.contest.contestant.drive',
                                                return_value=driven)):
                outcome = compare(plan(*peers_of('fs')), cores.share_out(), lambda text: None)
                self.assertEqual({}, outcome.found)
                self.assertIn(why, outcome.failures[OWN])


class ServerTest(unittest.TestCase):
    def test_cpu_time_is_that_of_all_its_processes(self) -> None:
        burn = 'import time\nwhile time.process_time() < 0.3: pass\n'
        parent = (f'import subprocess, sys\nchild = subprocess.Popen([sys.executable, "-c", '
                  f'{burn + "print(flush=True); time.sleep(60)"!r}])\nchild.wait()')
        with subprocess.Popen([sys.executable, '-c', parent], stdout=subprocess.PIPE,
                              process_group=0) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                self.assertGreaterEqual(Server(process, 0, Path()).cpu_seconds(), 0.25)
            finally:
                os.killpg(process.pid, signal.SIGKILL)

    def test_one_core_is_shared_and_of_several_the_server_has_its_own(self) -> None:
        for available, shares, said in (({3}, ({3}, {3}, {3}), 'one core only'),
                                        ({0, 5}, ({0}, {5}, {5}), 'the server runs on core 0'),
                                        ({0, 1, 2, 3}, ({0}, {1}, {2, 3}), 'on core 2, 3')):
            with self.subTest(said), mock.patch('os.sched_getaffinity', return_value=available):
                self.assertEqual(shares, cores.share_out())
                self.assertIn(said, cores.share_out().describe())

    def test_what_is_started_on_a_core_stays_there(self) -> None:
        core = frozenset({max(os.sched_getaffinity(0))})
        before = os.sched_getaffinity(0)
        with cores.on(core):
            told = subprocess.check_output([sys.executable, '-c', 'import os; '
                                            'print(*os.sched_getaffinity(0))'], text=True)
        self.assertEqual(core, set(map(int, told.split())))
        self.assertEqual(before, os.sched_getaffinity(0))


class CommandTest(unittest.TestCase):
    def call(self, *options: str) -> tuple[int, str, str]:
        """The command, called here: its status, stdout and stderr."""
        with (contextlib.redirect_stdout(io.StringIO()) as out,
              contextlib.redirect_stderr(io.StringIO()) as err):
            try:
                return bench.main(options), out.getvalue(), err.getvalue()
            except SystemExit as end:
                return int(str(end.code)), out.getvalue(), err.getvalue()

    def assert_refused(self, why: str, *options: str) -> None:
        status, out, err = self.call(*options)
        self.assertEqual((2, '', 1), (status, out, err.count('\n')), err)
        self.assertIn(why, err)
        self.assertTrue(err.startswith('run.py bench: '), err)

    def test_options_that_make_no_sense_are_refused_in_one_line(self) -> None:
        for options, why in (
                (('--rounds', '0'), 'from 1 to'), (('--rounds', 'x'), 'from 1 to'),
                (('--seconds', '0'), 'above 0'), (('--seconds', 'nan'), 'above 0'),
                (('--seconds', '61'), 'at most 60'), (('--connections', '65'), 'from 1 to 64'),
                (('--engine', 'dbm'), 'invalid choice'), (('--peers', ''), "''"),
                (('--peers', 'addrservice,nobody'), "'nobody' is none of"),
                (('--peers', 'sanic', '--engine', 'sqlite'), 'addrservice,fastapi'),
                (('--json', '/no/such/folder/file'), 'cannot write'),
                (('--chart', os.devnull, '--peers', OWN), 'not among')):
            with self.subTest(options):
                self.assert_refused(why, *options)

    def test_without_what_the_peers_run_on_it_says_how_to_make_it(self) -> None:
        with mock.patch.object(environment, 'STAMP', Path('/no/such/file')):
            self.assert_refused('run `run.py bench --setup` first')

    def test_setup_makes_it_once_and_says_why_it_cannot(self) -> None:
        with (mock.patch.object(environment, 'is_ready', return_value=False),
              mock.patch.object(environment, 'make') as make):
            self.assertEqual(0, self.call('--setup')[0])
            make.assert_called_once()
            make.side_effect = environment.NotReady('pip failed: no\nnetwork')
            status, _, err = self.call('--setup')
            self.assertEqual(2, status)
            self.assertIn('run.py bench: pip failed: no network\n', err)
        with (mock.patch.object(environment, 'is_ready', return_value=True),
              mock.patch.object(environment, 'make') as make):
            self.assertEqual(0, self.call('--setup')[0])
            make.assert_not_called()

    def test_a_server_that_is_named_twice_is_measured_once(self) -> None:
        with mock.patch.object(bench, 'compare', return_value=Outcome({}, {})) as comparing:
            self.call('--peers', f'{OWN},{OWN}')
        self.assertEqual([OWN], [peer.name for peer in comparing.call_args.args[0].peers])

    def test_a_server_that_failed_is_told_and_makes_status_1(self) -> None:
        outcome = Outcome({OWN: rounds(5), BASE: rounds(1)}, {'sanic': 'is not what it was'})
        with (mock.patch.object(bench, 'compare', return_value=outcome),
              mock.patch.object(environment, 'is_ready', return_value=True)):
            status, out, err = self.call()
        self.assertEqual(1, status)
        self.assertIn('| addrservice | 5.00 |', out)
        self.assertNotIn('Sanic', out)
        self.assertTrue(err.endswith('run.py bench: sanic is left out: is not what it was\n'))

    def test_the_files_that_are_asked_for_are_written(self) -> None:
        outcome = Outcome({OWN: rounds(5), BASE: rounds(1)}, {})
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        told, chart = folder / 'figures.json', folder / 'chart.svg'
        with (mock.patch.object(bench, 'compare', return_value=outcome),
              mock.patch.object(environment, 'is_ready', return_value=True)):
            status, _, _ = self.call('--json', str(told), '--chart', str(chart))
        self.assertEqual(0, status)
        self.assertEqual([OWN, BASE], [server['name'] for server in json.loads(
            told.read_text())['servers']])
        self.assertIn('FastAPI on uvicorn', chart.read_text())

    def test_they_are_written_too_when_nobody_reads_the_tables(self) -> None:
        outcome = Outcome({OWN: rounds(5), BASE: rounds(1)}, {})
        told = Path(self.enterContext(tempfile.TemporaryDirectory())) / 'figures.json'
        with (mock.patch.object(bench, 'compare', return_value=outcome),
              mock.patch.object(environment, 'is_ready', return_value=True),
              mock.patch.object(bench, 'markdown', side_effect=BrokenPipeError),
              self.assertRaises(BrokenPipeError)):
            self.call('--json', str(told))
        self.assertIn(OWN, told.read_text())

    def test_a_chart_without_its_base_is_not_drawn(self) -> None:
        outcome = Outcome({OWN: rounds(5)}, {BASE: 'does not answer'})
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        with (mock.patch.object(bench, 'compare', return_value=outcome),
              mock.patch.object(environment, 'is_ready', return_value=True)):
            status, _, err = self.call('--chart', str(folder / 'chart.svg'))
        self.assertEqual(1, status)
        self.assertIn('nothing to draw', err)


class PeersTest(unittest.TestCase):
    def test_every_engine_of_the_service_has_its_servers(self) -> None:
        schema = json.loads(SCHEMA_FILE.read_text())
        self.assertEqual(set(schema['properties']['addr-db']['properties']), set(ENGINES))
        for engine in ENGINES:
            names = [peer.name for peer in peers_of(engine)]
            self.assertEqual(OWN, names[0])
            self.assertEqual(len(names), len(set(names)))

    def test_the_service_is_started_with_a_configuration_that_it_takes(self) -> None:
        for engine in ENGINES:
            folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
            place = None if engine == 'memory' else str(folder / 'store')
            own = [peer for peer in peers_of(engine) if not peer.needs_setup]
            for each in own:
                command = each.start(1, Store(engine, place, folder))
                config = complete_config(json.loads(
                    Path(command[command.index('--config') + 1]).read_text()))
                self.assertEqual([engine], list(config['addr-db']))
                self.assertEqual(each is own[0], 'ring' in config['tracing']['collectors'])

    def test_every_peer_has_its_program(self) -> None:
        with mock.patch.object(environment, 'node', return_value='node'):
            for engine in ENGINES:
                for other in filter(lambda peer: peer.needs_setup, peers_of(engine)):
                    command = ' '.join(other.start(1, Store(engine, None, Path())))
                    module = re.search(r' -m (benchmarks\.peers\.\w+)', command)
                    file = module[1].replace('.', '/') + '.py' if module else command.split()[1]
                    self.assertTrue((ROOT_DIR / file).is_file(), command)

    def test_peers_send_the_statements_that_the_service_sends(self) -> None:
        for name in ('READ', 'PAGE', 'INSERT', 'UPDATE'):
            self.assertEqual(getattr(sql_db, name), getattr(statements, name))
        self.assertEqual(tuple(itertools.chain(*sql_db.MIGRATIONS)), statements.TABLE)

    def test_peers_have_the_limits_of_the_service(self) -> None:
        self.assertEqual((datamodel.MAX_NUMBER, datamodel.MAX_ITEMS),
                         (limits.MAX_NUMBER, limits.MAX_ITEMS))
        self.assertEqual((datamodel.MAX_NAME, datamodel.FILLED_PATTERN),
                         (limits.NAME['maxLength'], limits.NAME['pattern']))
        self.assertEqual((datamodel.MAX_EMAIL, datamodel.EMAIL_PATTERN),
                         (limits.EMAIL['maxLength'], limits.EMAIL['pattern']))

    def test_all_that_they_need_is_exactly_pinned(self) -> None:
        for line in environment.REQUIREMENTS.read_text().splitlines():
            self.assertRegex(line, r'\A(#.*|[\w.-]+==[\w.]+|)\Z')
        packages = json.loads(environment.NODE_FILES[0].read_text())['dependencies']
        for version in packages.values():
            self.assertRegex(version, r'\A\d+\.\d+\.\d+\Z')


if __name__ == '__main__':
    unittest.main()

"""`run.py profile`: whose a sampled stack is, and the command from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg
import opentelemetry.sdk.trace
import prometheus_client.metrics
import tornado.iostream
import tornado.web

from addrservice import ROOT_DIR
from addrservice.utils.profiler import WAITING
from benchmarks import profiling
from benchmarks.driver.plan import Plan
from benchmarks.driver.result import Result
from benchmarks.layers import (
    BUILT_IN, ENGINE, HANDLERS, HTTP, IDLE, LAYERS, LOGGING, LOOP, OTHER, TRACING, VALIDATION,
    Breakdown, Frame, layer_of)
from benchmarks.sampling.measuring import Findings, Window
from tests.support import DEADLINE

OURS = ROOT_DIR / 'addrservice'
RUNNER = Frame('Runner.run', f'{Path(asyncio.__file__).parent}/runners.py')
BASE = Frame('BaseRequestHandler.finish', f'{OURS}/tornado/base.py')


def stack(*files: str) -> list[Frame]:
    """One within a handler, within the event loop; outermost first."""
    return [RUNNER, BASE, *(Frame('function', file) for file in files)]


def frame(function: str, file: str, line: int = 1, of_class: str = '') -> str:
    """As pyinstrument writes it."""
    return f'{function}\0{file}\0{line}' + (f'\1c{of_class}\1l{line}' if of_class else '')


class LayersTest(unittest.TestCase):

    def test_the_files_of_each_layer(self) -> None:
        for layer, files in {
                HTTP: (OURS / 'tornado/connection.py', OURS / 'tornado/framing.py',
                       OURS / 'tornado/exchange.py', tornado.iostream.__file__),
                HANDLERS: (OURS / 'tornado/addressbook.py', OURS / 'service.py',
                           tornado.web.__file__),
                VALIDATION: (OURS / 'datamodel.py',),
                ENGINE: (OURS / 'database/sqlite_file.py', OURS / 'database/new_db.py',
                         asyncpg.__file__),
                LOGGING: (OURS / 'utils/logutils.py', logging.__file__),
                TRACING: (OURS / 'utils/tracing.py', OURS / 'database/observed_db.py',
                          OURS / 'tornado/telemetry.py', opentelemetry.sdk.trace.__file__,
                          prometheus_client.metrics.__file__),
                LOOP: (RUNNER.file, selectors.__file__, tornado.__path__[0] + '/ioloop.py'),
                OTHER: (OURS / 'tornado/diagnosis.py', OURS / 'utils/profiler.py')}.items():
            for file in files:
                with self.subTest(file):
                    self.assertEqual(layer, layer_of(stack(str(file))))

    def test_every_module_of_the_service_that_works_for_requests_has_a_layer(self) -> None:
        for file in OURS.glob('*/*.py'):
            with self.subTest(file), mock.patch('benchmarks.layers.OTHER', ''):
                self.assertTrue(layer_of([Frame('function', str(file))]))

    def test_a_library_works_for_the_layer_that_calls_it(self) -> None:
        library = [json.__file__, json.encoder.__file__]
        self.assertEqual(HANDLERS, layer_of(stack(*library)))
        self.assertEqual(LOGGING, layer_of(stack(f'{OURS}/utils/logutils.py', *library)))
        self.assertEqual(VALIDATION, layer_of(stack(f'{OURS}/datamodel.py', re.__file__, BUILT_IN)))
        self.assertEqual(LOOP, layer_of(stack(f'{OURS}/service.py', RUNNER.file)))

    def test_what_nobody_has_called_is_other(self) -> None:
        self.assertEqual(OTHER, layer_of([Frame('main', '/somewhere/else.py')]))
        self.assertEqual(OTHER, layer_of([]))

    def test_waiting_is_idle_and_what_is_around_it_is_not(self) -> None:
        selecting = [RUNNER, Frame('EpollSelector.select', selectors.__file__)]
        waiting = Frame(*WAITING.split('\0')[:2])
        self.assertEqual(IDLE, layer_of([*selecting, Frame('epoll.poll', BUILT_IN), waiting]))
        self.assertEqual(IDLE, layer_of([RUNNER, waiting]))
        self.assertEqual(LOOP, layer_of([*selecting, Frame('epoll.poll', BUILT_IN)]))
        self.assertEqual(HANDLERS, layer_of([*selecting, BASE, Frame('poll', BUILT_IN)]))

    def test_every_sample_is_in_one_layer_and_of_one_function(self) -> None:
        loop = frame('_run_once', RUNNER.file, of_class='Loop')
        breakdown = Breakdown([
            ([loop], 0.1),
            ([loop, frame('select', selectors.__file__), frame('epoll.poll', BUILT_IN), WAITING],
             0.6),
            ([loop, frame('log', str(OURS / 'utils/logutils.py'), line=1)], 0.1),
            ([loop, frame('log', str(OURS / 'utils/logutils.py'), line=2)], 0.1),
            ([loop, frame('load', str(OURS / 'datamodel.py'), of_class='Text'),
              frame('Pattern.match', BUILT_IN)], 0.1)])
        shares = dict(breakdown.shares())
        self.assertEqual(LAYERS, tuple(shares))
        self.assertAlmostEqual(1, sum(shares.values()))
        self.assertEqual((0.5, 0.25, 0.25, 0.6), tuple(round(share, 6) for share in (
            shares[LOGGING], shares[VALIDATION], shares[LOOP], breakdown.idle)))
        largest = {function[:2]: share for function, share in breakdown.largest(3)}
        self.assertAlmostEqual(0.5, largest['log', 'addrservice/utils/logutils.py'])
        self.assertIn(('Pattern.match (C)', 'addrservice/datamodel.py'), largest)
        self.assertIn(('Loop._run_once', 'asyncio/runners.py'), largest)

    def test_nothing_sampled_is_nothing_divided(self) -> None:
        self.assertEqual({0.0}, {share for _, share in Breakdown([]).shares()})


class CommandTest(unittest.TestCase):

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.config, self.page = self.folder / 'config.yaml', self.folder / 'new' / 'profile.html'
        self.config.write_text('addr-db: {memory: null}\ntracing: {collectors: {ring: }}\n')

    def start(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, 'run.py', 'profile', '--config', str(self.config),
             '--output', str(self.page), *options],
            cwd=ROOT_DIR, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Its status, stdout and stderr, when it and its server are gone."""
        out, err = process.communicate(timeout=DEADLINE)
        self.assertEqual([], list(self.servers()))
        return process.returncode, out, err

    def servers(self) -> Iterator[int]:
        """The processes that serve with our configuration."""
        for file in Path('/proc').glob('[0-9]*/cmdline'):
            with contextlib.suppress(OSError):
                if f'\0addrservice\0--config\0{self.config}\0' in file.read_text():
                    yield int(file.parent.name)

    def driven(self, process: subprocess.Popen[str]) -> int:
        """The server, after a moment of work."""
        deadline = time.monotonic() + DEADLINE
        while not (servers := list(self.servers())):
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        time.sleep(1)
        return servers[0]

    def test_it_writes_the_flame_view_and_prints_where_the_time_goes(self) -> None:
        status, out, err = self.ended(self.start('--seconds', '0.6'))
        self.assertEqual((0, ''), (status, err))
        page = self.page.read_text()
        for name in ('AddressBookEntryRequestHandler', 'read_address', 'Content-Security-Policy'):
            self.assertIn(name, page)
        self.check_table(out)
        self.assertRegex(out, r'(?m)^with it +[1-9]\d* +[1-9]\d* +[1-9]\d* +\d+$')
        self.assertIn(f'The flame view is in {self.page}.', out)

    def check_table(self, out: str) -> None:
        rows = {name: (float(share), float(cost)) for name, share, cost in re.findall(
            r'(?m)^(\w[\w ]*\w) +([\d.]+)% +([\d.]+) +[\d.]+$', out)}
        self.assertEqual([*LAYERS, 'sum'], list(rows))
        all_shares, each = rows.pop('sum')
        self.assertEqual(100, all_shares)
        self.assertAlmostEqual(100, sum(share for share, _ in rows.values()), delta=0.5)
        self.assertAlmostEqual(each, sum(cost for _, cost in rows.values()), delta=0.5)
        for layer in set(LAYERS) - {OTHER}:
            with self.subTest(layer):
                self.assertTrue(0.2 < rows[layer][0] < 60, rows)

    def test_ctrl_c_ends_it_and_its_server(self) -> None:
        process = self.start('--seconds', '60')
        self.driven(process)
        process.send_signal(signal.SIGINT)
        self.assertEqual((130, '', 'run.py profile: interrupted\n'), self.ended(process))
        self.assertFalse(self.page.exists())

    def test_a_server_that_dies_is_told_in_one_line(self) -> None:
        process = self.start('--seconds', '60')
        os.kill(self.driven(process), signal.SIGKILL)
        status, out, err = self.ended(process)
        self.assertEqual((2, '', 1), (status, out, err.count('\n')), err)
        self.assertRegex(err, 'run.py profile: (the server ended with status -9|.* no profile)')

    def test_a_configuration_that_cannot_be_used_is_told_in_one_line(self) -> None:
        self.config.write_text('no-such-key: 1\n')
        status, out, err = self.ended(self.start())
        self.assertEqual((2, '', 1), (status, out, err.count('\n')), err)
        self.assertRegex(err, 'run.py profile: .*no-such-key')

    def call(self, *options: str) -> tuple[int, str]:
        """The command, called here: its status and stderr."""
        with (contextlib.redirect_stdout(io.StringIO()),
              contextlib.redirect_stderr(io.StringIO()) as err):
            try:
                return profiling.main(options), err.getvalue()
            except SystemExit as end:
                return int(str(end.code)), err.getvalue()

    def test_options_that_make_no_sense_are_refused_in_one_line(self) -> None:
        for name, value in (('--seconds', '0'), ('--seconds', '61'), ('--seconds', 'x'),
                            ('--output', str(self.folder)),
                            ('--output', f'{self.config}/page.html')):
            with self.subTest(value):
                status, err = self.call('--output', str(self.page), name, value)
                self.assertEqual((2, 1), (status, err.count('\n')), err)

    def test_requests_that_went_wrong_make_status_1_with_their_counts(self) -> None:
        result = Result(Plan(), left=2)
        result.note('get', 0.1, 'status 500')
        window = Window(1.0, 1, 100.0, 0.0)
        session = json.loads(SESSION)
        findings = Findings(window, window, session, result)
        with mock.patch.object(profiling, 'measure', return_value=findings):
            status, err = self.call('--output', str(self.page))
        self.assertEqual(1, status)
        self.assertIn('errors: get status 500: 1\n', err)
        self.assertIn('up to 2 entries could not be removed\n', err)


SESSION = json.dumps({
    'frame_records': [[[frame('main', '/x.py')], 0.5]], 'start_time': 0, 'duration': 0.5,
    'sample_count': 1, 'start_call_stack': [frame('main', '/x.py')], 'cpu_time': 0.5,
    'target_description': ''})


if __name__ == '__main__':
    unittest.main()

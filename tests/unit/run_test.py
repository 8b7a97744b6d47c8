"""The front door is used here as a person uses it, on a small repository in a temporary folder."""

import ast
import contextlib
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
WORDS = ('serve', 'copy', 'test', 'crash', 'profile', 'bench', 'lint', 'typecheck', 'layers',
         'coverage', 'check')
BASE_PYTHON = Path(sys.base_prefix, 'bin', 'python%d.%d' % sys.version_info[:2])
PATIENCE_SECONDS = 30

TEST_FILE = '''\
import unittest


class SampleTest(unittest.TestCase):
    def test_sample(self) -> None:
        {}
'''


def clean_environment() -> dict[str, str]:
    """Ours, without what would make the small repository's processes write our coverage data."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith(('COVERAGE_', 'ADDRSERVICE_'))}


def lacking(package: str) -> str:
    """One line, no more, that names the package and the way to get it."""
    return rf'\Arun\.py: .*lacks {package}; .*-m pip install -r .*\n\Z'


class SmallRepositoryTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name).resolve() / 'repository'
        self.write('requirements.txt', '# nothing\n')
        shutil.copy(ROOT / 'run.py', self.root)
        shutil.copy(ROOT / 'setup.cfg', self.root)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def write_test(self, statement: str, name: str = 'tests/unit/sample_test.py') -> None:
        for folder in Path(name).parents[:-1]:
            self.write(f'{folder}/__init__.py', '')
        self.write(name, TEST_FILE.format(statement))

    def write_server(self, body: str) -> None:
        self.write('addrservice/__init__.py', '')
        self.write('addrservice/tornado/__init__.py', '')
        self.write('addrservice/tornado/server.py', body)

    def write_copying(self, body: str) -> None:
        self.write('addrservice/__init__.py', '')
        self.write('addrservice/copy_command.py', body)

    def write_profiling(self, body: str) -> None:
        self.write('benchmarks/profiling.py', body)

    def write_bench(self, body: str) -> None:
        self.write('benchmarks/bench.py', body)

    def run_word(self, *words: str, python: Path = Path(sys.executable), cwd: Path | None = None
                 ) -> 'subprocess.CompletedProcess[str]':
        return subprocess.run(
            [python, self.root / 'run.py', *words], cwd=cwd or self.root, text=True,
            capture_output=True, env=clean_environment(), timeout=PATIENCE_SECONDS)

    def start_word(self, *words: str, preexec: Callable[[], None] | None = None
                   ) -> 'subprocess.Popen[str]':
        process = subprocess.Popen(
            [sys.executable, '-u', self.root / 'run.py', *words], cwd=self.root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
            preexec_fn=preexec)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def signal_when_it_speaks(self, process: 'subprocess.Popen[str]', number: int) -> str:
        """Signal it, and give its stderr once it and all that could still write have ended."""
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), 'here\n')
        process.send_signal(number)
        return process.communicate(timeout=PATIENCE_SECONDS)[1]


class HelpTest(SmallRepositoryTest):
    def test_help_names_every_word_and_exits_0(self) -> None:
        done = self.run_word('--help')
        self.assertEqual(done.returncode, 0)
        for word in WORDS:
            self.assertRegex(done.stdout, rf'(?m)^    {word}( |$)')

    def test_every_word_explains_itself(self) -> None:
        self.write_server('def main(argv): print("usage: the server", argv); return 0')
        self.write_copying('def main(argv): print("usage: the copier", argv); return 0')
        self.write_profiling('def main(argv): print("usage: the profiler", argv); return 0')
        self.write_bench('def main(argv): print("usage: the comparison", argv); return 0')
        for word in WORDS:
            with self.subTest(word=word):
                done = self.run_word(word, '--help')
                self.assertEqual(done.returncode, 0)
                self.assertIn('usage: ', done.stdout)

    def test_help_needs_no_environment(self) -> None:
        self.assertEqual(self.run_word('lint', '--help', python=BASE_PYTHON).returncode, 0)
        self.assertFalse((self.root / '.venv').exists())

    def test_no_word_shows_the_help_and_exits_2(self) -> None:
        done = self.run_word()
        self.assertEqual((done.returncode, done.stdout), (2, ''))
        self.assertIn('typecheck', done.stderr)

    def test_an_unknown_word_exits_2_and_shows_the_words(self) -> None:
        done = self.run_word('tset')
        self.assertEqual(done.returncode, 2)
        for word in WORDS:
            self.assertIn(word, done.stderr)

    def test_an_old_python_is_turned_away_in_one_line(self) -> None:
        start = ('import runpy, sys; sys.version_info = (3, 10, 4); '
                 'runpy.run_path("run.py", run_name="__main__")')
        done = subprocess.run([sys.executable, '-c', start], cwd=self.root, text=True,
                              capture_output=True, env=clean_environment())
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stderr, 'run.py needs Python 3.11 or newer; this is 3.10.\n')

    def test_an_old_python_can_parse_the_line_that_turns_it_away(self) -> None:
        ast.parse((ROOT / 'run.py').read_text(encoding='utf-8'), feature_version=(3, 7))


class ServeTest(SmallRepositoryTest):
    def test_serve_passes_everything_on_in_the_same_process_and_folder(self) -> None:
        self.write_server('import os\n\ndef main(argv):\n'
                          '    print(argv, os.getpid(), os.getcwd(), flush=True)\n    return 7\n')
        process = self.start_word('serve', '--config', 'x.yaml', '--', '-h', 'test')
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        self.assertEqual(
            output, f"['--config', 'x.yaml', '--', '-h', 'test'] {process.pid} {self.root}\n")
        self.assertEqual(process.returncode, 7)

    def test_serve_works_from_any_folder(self) -> None:
        self.write_server('import os\n\ndef main(argv):\n    print(os.getcwd())\n    return 0\n')
        done = self.run_word('serve', cwd=self.root.parent)
        self.assertEqual((done.returncode, done.stdout), (0, f'{self.root.parent}\n'))

    def test_a_signal_while_the_server_starts_ends_it_quietly_with_0(self) -> None:
        self.write_server('import time\nprint("here", flush=True)\ntime.sleep(60)\n')
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number=number):
                process = self.start_word('serve')
                self.assertEqual(self.signal_when_it_speaks(process, number), '')
                self.assertEqual(process.returncode, 0)

    def test_a_signal_held_back_over_the_start_is_heard(self) -> None:
        def send_and_hold_back() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            os.kill(os.getpid(), signal.SIGTERM)

        self.write_server('raise SystemExit("the signal was not heard")\n')
        process = self.start_word('serve', preexec=send_and_hold_back)
        self.assertEqual(process.communicate(timeout=PATIENCE_SECONDS), ('', ''))
        self.assertEqual(process.returncode, 0)

    def test_serve_names_a_package_that_is_not_installed(self) -> None:
        self.write_server('import no_such_package\n')
        done = self.run_word('serve')
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, lacking('no_such_package'))

    def test_serve_does_not_take_our_own_missing_module_for_a_package(self) -> None:
        self.write_server('import addrservice.no_such_module\n')
        done = self.run_word('serve')
        self.assertEqual(done.returncode, 1)
        self.assertIn('Traceback', done.stderr)


class CopyWordTest(SmallRepositoryTest):
    def test_copy_passes_everything_on_in_the_callers_folder(self) -> None:
        self.write_copying('import os\n\ndef main(argv):\n'
                           '    print(argv, os.getcwd())\n    return 7\n')
        done = self.run_word('copy', '--from', 'x.yaml', '--', 'test', cwd=self.root.parent)
        self.assertEqual((done.returncode, done.stderr), (7, ''))
        self.assertEqual(done.stdout, f"['--from', 'x.yaml', '--', 'test'] {self.root.parent}\n")

    def test_ctrl_c_while_it_is_imported_ends_it_with_130_and_no_traceback(self) -> None:
        self.write_copying('import time\nprint("here", flush=True)\ntime.sleep(60)\n')
        process = self.start_word('copy')
        self.assertEqual(self.signal_when_it_speaks(process, signal.SIGINT),
                         '\nrun.py: interrupted\n')
        self.assertEqual(process.returncode, 130)


class TestWordTest(SmallRepositoryTest):
    def assert_test_ends(self, status: int, *options: str) -> str:
        done = self.run_word('test', *options)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stderr

    def test_passing_tests_exit_0_and_v_names_them(self) -> None:
        self.write_test('pass')
        self.assertIn('Ran 1 test', self.assert_test_ends(0))
        self.assertIn('test_sample (tests.unit.sample_test.', self.assert_test_ends(0, '-v'))

    def test_a_failing_test_exits_1(self) -> None:
        self.write_test('self.fail()')
        self.assertIn('FAILED (failures=1)', self.assert_test_ends(1))

    def test_a_test_file_that_cannot_be_imported_exits_1(self) -> None:
        self.write_test('pass')
        self.write('tests/unit/broken_test.py', 'import no_such_package\n')
        self.assertIn('FAILED (errors=1)', self.assert_test_ends(1))

    def test_no_test_at_all_is_not_success(self) -> None:
        self.assertIn('no test was found', self.assert_test_ends(5))
        self.write_test('pass')
        self.assertIn('no test was found', self.assert_test_ends(5, '-k', 'smaple'))

    def test_suite_k_and_failfast_choose_the_tests(self) -> None:
        self.write_test('self.fail()', 'tests/unit/a_test.py')
        self.write_test('self.fail()', 'tests/unit/b_test.py')
        self.write_test('pass', 'tests/integration/c_test.py')
        self.assertIn('Ran 3 tests', self.assert_test_ends(1))
        self.assertIn('Ran 1 test', self.assert_test_ends(1, '-f', '--suite', 'unit'))
        self.assertIn('Ran 1 test', self.assert_test_ends(0, '--suite', 'integration'))
        self.assertIn('Ran 2 tests', self.assert_test_ends(1, '-k', 'b_test', '-k', 'tests.*c_*'))

    def test_files_that_run_at_a_time_are_told_as_one(self) -> None:
        self.assertIn('no test was found', self.assert_test_ends(5, '-j', '2'))
        self.write_test('pass', 'tests/unit/a_test.py')
        self.write_test('self.skipTest("x")', 'tests/unit/b_test.py')
        told = self.assert_test_ends(0, '-j', '2')
        self.assertRegex(told, r'Ran 2 tests in [\d.]+s\n\nOK \(skipped=1\)\n$')
        self.write_test('self.fail()', 'tests/unit/c_test.py')
        self.write_test('import os; os._exit(3)', 'tests/integration/d_test.py')
        told = self.assert_test_ends(1, '-j', '2')
        self.assertRegex(
            told, r'Ran 4 tests in [\d.]+s\n\nFAILED \((?=.*failures=1)(?=.*errors=1).*\)\n$')
        self.assertIn('Ran 1 test in', self.assert_test_ends(0, '-j', '2', '-k', 'a_test'))

    def test_ctrl_c_ends_all_files_that_run_at_a_time(self) -> None:
        for name in 'ab':
            self.write_test('import os, time; open(f"{os.getpid()}.pid", "w").close(); '
                            'time.sleep(60)', f'tests/unit/{name}_test.py')
        process = self.start_word('test', '-j', '2')
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(pids := [int(file.stem) for file in self.root.glob('*.pid')]) < 2:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=PATIENCE_SECONDS)[1]
        self.assertEqual(process.returncode, 130)
        self.assertNotIn('Traceback', told)
        for pid in pids:
            with self.assertRaises(ProcessLookupError):
                os.kill(pid, 0)

    def test_the_tests_run_in_the_root_from_any_folder(self) -> None:
        self.write_test(f'import os; self.assertEqual(os.getcwd(), {str(self.root)!r})')
        self.assertEqual(self.run_word('test', cwd=Path('/')).returncode, 0)

    def test_ctrl_c_ends_a_test_and_what_it_started_with_130_and_no_traceback(self) -> None:
        self.write_test(
            'import subprocess, time; subprocess.Popen(["sleep", "60"], start_new_session=True); '
            'print("here", flush=True); time.sleep(60)')
        process = self.start_word('test')
        told = self.signal_when_it_speaks(process, signal.SIGINT)
        self.assertEqual(process.returncode, 130)
        self.assertIn('interrupted', told)
        self.assertNotIn('Traceback', told)

    def test_ctrl_c_while_a_test_file_is_imported_ends_the_run_too(self) -> None:
        self.write_test('pass')
        self.write('tests/unit/slow_test.py',
                   'import time\nprint("here", flush=True)\ntime.sleep(60)\n')
        process = self.start_word('test')
        self.assertNotIn('Traceback', self.signal_when_it_speaks(process, signal.SIGINT))
        self.assertEqual(process.returncode, 130)

    def test_sigterm_ends_the_tests_with_143(self) -> None:
        self.write_test('import time; print("here", flush=True); time.sleep(60)')
        process = self.start_word('test')
        self.assertNotIn('Traceback', self.signal_when_it_speaks(process, signal.SIGTERM))
        self.assertEqual(process.returncode, 143)


class CrashWordTest(SmallRepositoryTest):
    def setUp(self) -> None:
        super().setUp()
        self.write_test('import os; print("kills:", os.environ["ADDRSERVICE_KILLS"], flush=True); '
                        'self.assertNotEqual("13", os.environ["ADDRSERVICE_KILLS"])',
                        'tests/integration/crash_test.py')
        self.write_test('self.fail()', 'tests/integration/other_test.py')

    def test_crash_runs_that_one_module_with_200_kills_or_as_many_as_asked_for(self) -> None:
        for options, kills in (((), '200'), (('--kills', '7'), '7')):
            with self.subTest(kills=kills):
                done = self.run_word('crash', *options, cwd=self.root.parent)
                self.assertEqual((done.returncode, done.stdout), (0, f'kills: {kills}\n'))
                self.assertIn('Ran 1 test', done.stderr)

    def test_crash_exits_with_the_status_of_the_tests(self) -> None:
        self.assertEqual(self.run_word('crash', '--kills', '13').returncode, 1)

    def test_crash_takes_no_number_below_one(self) -> None:
        for number in ('0', '-1', 'x', ''):
            with self.subTest(number=number):
                self.assertEqual(self.run_word('crash', '--kills', number).returncode, 2)


class ProfileWordTest(SmallRepositoryTest):
    def test_profile_passes_everything_on_in_the_callers_folder(self) -> None:
        self.write_profiling('import os\n\ndef main(argv):\n'
                             '    print(argv, os.getcwd())\n    return 7\n')
        done = self.run_word('profile', '--seconds', '3', '--', 'test', cwd=self.root.parent)
        self.assertEqual((done.returncode, done.stderr), (7, ''))
        self.assertEqual(done.stdout, f"['--seconds', '3', '--', 'test'] {self.root.parent}\n")


class BenchWordTest(SmallRepositoryTest):
    def test_bench_passes_everything_on_in_the_callers_folder(self) -> None:
        self.write_bench('import os\n\ndef main(argv):\n'
                         '    print(argv, os.getcwd())\n    return 7\n')
        done = self.run_word('bench', '--rounds', '3', '--', 'test', cwd=self.root.parent)
        self.assertEqual((done.returncode, done.stderr), (7, ''))
        self.assertEqual(done.stdout, f"['--rounds', '3', '--', 'test'] {self.root.parent}\n")


class ToolsTest(SmallRepositoryTest):
    def test_lint_tells_a_flawed_file_from_a_clean_one(self) -> None:
        clean = self.write('clean.py', 'x = 1\n')
        flawed = self.write('flawed.py', 'import os\n')
        self.assertEqual(self.run_word('lint', str(clean)).returncode, 0)
        done = self.run_word('lint', str(flawed))
        self.assertEqual(done.returncode, 1)
        self.assertIn('flawed.py:1:1: F401', done.stdout)

    def test_lint_looks_by_default_at_our_own_code(self) -> None:
        self.write('data/flawed.py', 'import os\n')
        self.write('elsewhere/flawed.py', 'import os\n')
        done = self.run_word('lint', cwd=Path('/'))
        self.assertEqual((done.returncode, done.stdout.count('F401')), (1, 1), done.stderr)

    def test_paths_are_those_of_the_callers_folder(self) -> None:
        outside = self.root.parent
        (outside / 'flawed.py').write_text('import os\n')
        done = self.run_word('lint', 'flawed.py', cwd=outside)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f'{outside}/flawed.py:1:1: F401', done.stdout)

    def test_typecheck_tells_a_flawed_file_from_a_clean_one(self) -> None:
        clean = self.write('clean.py', 'x: int = 1\n')
        flawed = self.write('flawed.py', 'x: int = "1"\n')
        self.assertEqual(self.run_word('typecheck', str(clean)).returncode, 0)
        done = self.run_word('typecheck', str(flawed))
        self.assertEqual(done.returncode, 1)
        self.assertIn('flawed.py:1: error: ', done.stdout)

    def test_layers_tells_who_imports_whom(self) -> None:
        self.write('setup.cfg', '[importlinter]\nroot_package = house\n[importlinter:contract:a]\n'
                   'name = Down only\ntype = layers\nlayers =\n    house.up\n    house.down\n')
        for name in ('__init__', 'up', 'down'):
            self.write(f'house/{name}.py', '')
        self.assertEqual(self.run_word('layers').returncode, 0)
        self.write('house/down.py', 'import house.up\n')
        done = self.run_word('layers')
        self.assertEqual(done.returncode, 1)
        self.assertIn('house.down -> house.up', done.stdout)

    def test_a_tool_comes_from_this_python_and_not_from_path(self) -> None:
        impostor = self.write('bin/flake8', '#!/bin/sh\nexit 0\n')
        impostor.chmod(0o755)
        self.write('data/flawed.py', 'import os\n')
        with mock.patch.dict(os.environ, PATH=f'{impostor.parent}:{os.environ["PATH"]}'):
            self.assertEqual(self.run_word('lint').returncode, 1)

    def test_a_tool_killed_by_a_signal_did_not_succeed(self) -> None:
        self.write('flake8.py', 'import os\nos.kill(os.getpid(), 9)\n')
        self.assertEqual(self.run_word('lint').returncode, 137)

    def test_ctrl_c_ends_a_tool_and_its_workers_with_130_and_no_traceback(self) -> None:
        self.write('flake8.py', 'import subprocess, time\nsubprocess.Popen(["sleep", "60"])\n'
                   'print("here", flush=True)\ntime.sleep(60)\n')
        process = self.start_word('lint')
        self.assertNotIn('Traceback', self.signal_when_it_speaks(process, signal.SIGINT))
        self.assertEqual(process.returncode, 130)

    def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(self) -> None:
        self.write('requirements.txt', 'no-need; sys_platform == "x"\nno-such-package==1\n')
        done = self.run_word('lint')
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, lacking('no-such-package'))


class CoverageTest(SmallRepositoryTest):
    def setUp(self) -> None:
        super().setUp()
        self.write_server('import sys\n\n\ndef main(argv: list[str]) -> int:\n'
                          '    if not argv:\n        sys.exit(4)\n    return 0\n')

    def test_coverage_measures_started_processes_too_and_writes_a_report(self) -> None:
        self.write_test('import subprocess, sys; '
                        'start = [sys.executable, "run.py", "serve"]; '
                        'subprocess.call(start); subprocess.call([*start, "x"])')
        done = self.run_word('coverage', '-v')
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn('test_sample (tests.unit.sample_test.', done.stderr)
        self.assertRegex(done.stdout, r'(?m)^TOTAL.* 100%')
        self.assertTrue((self.root / 'htmlcov/index.html').is_file())

    def test_what_a_killed_process_left_of_its_data_is_removed_without_a_word(self) -> None:
        self.write_test('from addrservice.tornado import server; server.main(["x"])\n'
                        'open(".coverage.half", "wb").write(b"SQLite format 3\\0" + bytes(4080))\n'
                        'open(".coverage.empty", "wb").close()')
        done = self.run_word('coverage', '--fail-under', '1')
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn('CoverageWarning', done.stdout + done.stderr)
        self.assertEqual(list(self.root.glob('.coverage.*')), [])

    def test_too_little_coverage_fails_unless_less_is_asked_for(self) -> None:
        self.write_test('from addrservice.tornado import server; server.main(["x"])')
        self.assertEqual(self.run_word('coverage').returncode, 2)
        self.assertEqual(self.run_word('coverage', '--fail-under', '50').returncode, 0)
        self.assertEqual(self.run_word('coverage', '--suite', 'unit').returncode, 0)

    def test_a_failing_test_fails_coverage_and_is_reported_all_the_same(self) -> None:
        self.write_test('from addrservice.tornado import server; server.main([])')
        done = self.run_word('coverage', '--fail-under', '1')
        self.assertEqual(done.returncode, 1)
        self.assertIn('TOTAL', done.stdout)

    def test_check_runs_every_part_and_exits_with_the_worst_status(self) -> None:
        self.write('setup.cfg',  # nothing here for layers: status 1
                   '[mypy]\nstrict = True\nexplicit_package_bases = True\n')
        self.write_copying('def main(argv: list[str]) -> int:\n    return 0\n')
        self.write_profiling('def main(argv: list[str]) -> int:\n    return 0\n')
        self.write_bench('def main(argv: list[str]) -> int:\n    return 0\n')
        self.write('data/flawed.py', 'import os\n')
        self.write_test('from addrservice.tornado import server; server.main(["x"])')
        done = self.run_word('check')
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stdout.splitlines()[-4:], [
            'lint: FAILED with status 1', 'typecheck: ok', 'layers: FAILED with status 1',
            'coverage: FAILED with status 2'])


class FakeSteps:
    """Stands in for venv and pip: it makes the files one looks for, and counts."""

    def __init__(self, root: Path) -> None:
        self.done: list[str] = []
        self.while_installing: Callable[[], object] = bool
        self._venv = root / '.venv'

    def __call__(self, command: list[str], doing: str, lock: int) -> None:
        self.done.append(doing.split()[0])
        if doing.startswith('Installing'):
            self.while_installing()
        else:
            shutil.rmtree(self._venv, ignore_errors=True)
            self._venv.joinpath('bin').mkdir(parents=True)
            self._venv.joinpath('bin/python').touch()
            self._venv.joinpath('pyvenv.cfg').touch()


def load(path: Path) -> Any:
    """Import a script; as Any, for we replace some of its functions."""
    spec = importlib.util.spec_from_file_location('run_under_test', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EnvironmentTest(SmallRepositoryTest):
    """What run.py does about `.venv`, with venv and pip played by a fake."""

    def setUp(self) -> None:
        super().setUp()
        self.run_py = load(self.root / 'run.py')
        self.steps = FakeSteps(self.root)
        self.run_quietly = self.run_py.run_quietly
        self.run_py.run_quietly = self.steps
        self.told = io.StringIO()
        self.enterContext(contextlib.redirect_stderr(self.told))

    def assert_made(self, times: int) -> None:
        self.run_py.prepare_environment()
        self.assertEqual(self.steps.done, ['Making', 'Installing'] * times)
        self.run_py.prepare_environment()
        self.assertEqual(self.steps.done, ['Making', 'Installing'] * times)

    def test_it_is_made_once(self) -> None:
        self.assert_made(1)

    def test_it_is_made_again_when_the_requirements_change(self) -> None:
        self.assert_made(1)
        self.write('requirements.txt', '# something else\n')
        self.assert_made(2)

    def test_it_is_made_again_for_another_python(self) -> None:
        self.assert_made(1)
        with mock.patch('platform.python_version', return_value='3.99.0'):
            self.assert_made(2)

    def test_it_is_made_again_when_a_part_that_makes_it_one_is_gone(self) -> None:
        self.assert_made(1)
        for times, name in enumerate(('bin/python', 'pyvenv.cfg', 'requirements.stamp'), 2):
            with self.subTest(name=name):
                (self.root / '.venv' / name).unlink()
                self.assert_made(times)

    def test_an_interrupted_installation_is_done_again(self) -> None:
        self.steps.while_installing = mock.Mock(side_effect=KeyboardInterrupt)
        with self.assertRaises(KeyboardInterrupt):
            self.run_py.prepare_environment()
        self.assertFalse(self.run_py.environment_is_ready())
        self.steps.while_installing = bool
        self.assert_made(2)

    def test_an_interrupted_renewal_leaves_no_stamp_even_for_the_old_requirements(self) -> None:
        self.assert_made(1)
        self.write('requirements.txt', '# something else\n')
        self.run_py.run_quietly = mock.Mock(side_effect=KeyboardInterrupt)
        with self.assertRaises(KeyboardInterrupt):
            self.run_py.prepare_environment()
        self.write('requirements.txt', '# nothing\n')
        self.assertFalse(self.run_py.environment_is_ready())

    def test_requirements_edited_while_they_are_installed_are_installed_again(self) -> None:
        self.steps.while_installing = lambda: self.write('requirements.txt', '# edited\n')
        self.run_py.prepare_environment()
        self.assert_made(2)

    def test_a_second_run_waits_for_the_first_and_uses_what_it_made(self) -> None:
        first_installs, second_waits = threading.Event(), threading.Event()

        def install() -> None:
            first_installs.set()
            self.assertTrue(second_waits.wait(PATIENCE_SECONDS))

        def say(text: str) -> None:
            self.assertIn('Waiting for another run.py', text)
            second_waits.set()

        self.run_py.say = say
        self.steps.while_installing = install
        first = threading.Thread(target=self.run_py.prepare_environment)
        first.start()
        self.addCleanup(first.join)
        self.assertTrue(first_installs.wait(PATIENCE_SECONDS))
        self.run_py.prepare_environment()
        self.assertEqual(self.steps.done, ['Making', 'Installing'])
        self.assertTrue(self.run_py.environment_is_ready())

    def test_a_python_without_venv_is_told_what_to_install(self) -> None:
        for name in ('venv', 'ensurepip'):
            found = {'venv': True, 'ensurepip': True, name: None}
            with self.subTest(name=name), self.assertRaises(SystemExit) as refused:
                with mock.patch('importlib.util.find_spec', found.get):
                    self.run_py.prepare_environment()
            self.assertEqual(refused.exception.code, 2)
            self.assertRegex(self.told.getvalue(), rf'has no {name}; install .*python3\.\d+-venv')
        self.assertEqual(self.steps.done, [])

    def test_a_folder_that_cannot_be_written_is_told_in_one_line(self) -> None:
        self.run_py.LOCK.mkdir()
        with self.assertRaises(SystemExit) as refused:
            self.run_py.prepare_environment()
        self.assertEqual(refused.exception.code, 2)
        self.assertRegex(self.told.getvalue(), r'\Arun.py: cannot make .*\.venv.*\n\Z')

    def run_step(self, program: str) -> None:
        with tempfile.TemporaryFile() as lock:
            self.run_quietly([sys.executable, '-c', program, str(lock.fileno())], 'Doing it …',
                             lock.fileno())

    def test_a_step_that_works_is_told_in_one_line(self) -> None:
        self.run_step('print("chatter")')
        self.assertEqual(self.told.getvalue(), 'Doing it …\n')

    def test_a_step_that_fails_shows_why_and_ends_us_with_its_status(self) -> None:
        with self.assertRaises(SystemExit) as failed:
            self.run_step('import sys; print("on stdout"); sys.exit("on stderr")')
        self.assertEqual(failed.exception.code, 1)
        self.assertRegex(self.told.getvalue(), r'(?s)on std.*on std.*run.py: Doing it failed')

    def test_a_step_that_is_killed_ends_us_with_a_status_that_says_so(self) -> None:
        with self.assertRaises(SystemExit) as failed:
            self.run_step('import os; os.kill(os.getpid(), 9)')
        self.assertEqual(failed.exception.code, 137)

    def test_a_step_counts_the_seconds_in_a_terminal(self) -> None:
        self.told.isatty = lambda: True  # type: ignore[method-assign]  # a terminal
        self.run_step('import time; time.sleep(1.1)')
        self.assertEqual(self.told.getvalue(), 'Doing it …\rDoing it … 1 s\n')

    def test_a_step_that_outlives_us_keeps_the_lock(self) -> None:
        self.run_step('import os, sys; os.fstat(int(sys.argv[1]))')
        self.assertEqual(self.told.getvalue(), 'Doing it …\n')

    def test_a_step_cut_short_may_tidy_up(self) -> None:
        tidies = ('import time\ntry:\n    print("here", flush=True)\n    time.sleep(60)\n'
                  'except KeyboardInterrupt:\n    print("tidied")\n')
        output = self.root / 'output'
        with output.open('wb') as written, self.assertRaises(KeyboardInterrupt):
            with self.run_py.running([sys.executable, '-c', tidies], written):
                while not output.read_text():
                    time.sleep(0.01)
                raise KeyboardInterrupt
        self.assertEqual(output.read_text(), 'here\ntidied\n')

    def test_a_child_and_a_worker_that_do_not_heed_sigterm_are_killed(self) -> None:
        self.run_py.GRACE_SECONDS = 0.1
        deaf = ('import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
                'worker = subprocess.Popen(["sleep", "60"]); print("here", flush=True); '
                'worker.wait()')
        with subprocess.Popen([sys.executable, '-c', deaf], process_group=0,
                              stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            self.run_py.end(child, signal.SIGTERM)
            child.communicate(timeout=PATIENCE_SECONDS)  # the worker holds our pipe while it lives
        self.assertEqual(child.returncode, -signal.SIGKILL)


class RealEnvironmentTest(SmallRepositoryTest):
    """The real thing, once; there is nothing to install, and so nothing to download."""

    def test_outside_an_environment_one_is_made_and_entered_in_the_same_process(self) -> None:
        self.write_server('import os\nimport sys\n\n\ndef main(argv):\n'
                          '    same = os.getpid() == int(argv[0]) and sys.flags.quiet == 1\n'
                          '    print(sys.prefix, same, *argv[1:])\n'
                          '    return 6\n')
        command = f'exec {BASE_PYTHON} -q {self.root}/run.py serve $$ --config x'
        first, again = (self.run_shell(command) for _ in range(2))
        self.assertRegex(first.stderr, r'\AMaking \.venv …\nInstalling 0 packages .*\n\Z')
        self.assertEqual(again.stderr, '')
        for done in (first, again):
            self.assertEqual(done.stdout, f'{self.root}/.venv True --config x\n')
            self.assertEqual(done.returncode, 6)

    def run_shell(self, command: str) -> 'subprocess.CompletedProcess[str]':
        return subprocess.run(['sh', '-c', command], text=True, capture_output=True,
                              env=clean_environment(), timeout=2 * PATIENCE_SECONDS)


class WordsAreDocumentedTest(unittest.TestCase):
    def test_the_words_tested_here_are_all_there_are(self) -> None:
        shown = load(ROOT / 'run.py').make_parser().format_help()
        self.assertEqual(tuple(re.findall(r'(?m)^    (\w+)(?: |$)', shown)), WORDS)


if __name__ == '__main__':
    unittest.main()

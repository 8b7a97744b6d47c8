#!/usr/bin/env python3
"""The front door: one command that serves, tests and checks the address book."""

import os
import signal
import sys

if sys.version_info < (3, 11):
    # All of this file must parse on the Pythons it turns away, or they would show a SyntaxError.
    sys.stderr.write('run.py needs Python 3.11 or newer; this is %d.%d.\n' % sys.version_info[:2])
    sys.exit(2)

if __name__ == '__main__':
    # From the first moment a signal ends us without a traceback, and a server that is only
    # starting with status 0. `os._exit`, because an exception raised from a handler is lost when
    # it strikes inside a weak reference's callback, as imports have them, and then nothing ends.
    for _number in (signal.SIGINT, signal.SIGTERM):
        _serves = sys.argv[1:2] == ['serve']
        signal.signal(_number, (lambda *_: os._exit(0)) if _serves else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import platform
import re
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    import unittest
    Words = argparse._SubParsersAction[argparse.ArgumentParser]

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / 'requirements.txt'
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'requirements.stamp'
LOCK = ROOT / '.venv.lock'

CHECKED = ('addrservice', 'tests', 'run.py', 'data', 'benchmarks')
SUITES = {'all': 'tests', 'unit': 'tests/unit', 'integration': 'tests/integration'}
PARTS_OF_CHECK = ('lint', 'typecheck', 'layers', 'coverage')
COVERED_PERCENT = 99
USAGE_ERROR = 2
NO_TESTS_RAN = 5  # as unittest's own command exits since Python 3.12
GRACE_SECONDS = 5


def say(text: str, end: str = '\n') -> None:
    """Tell a person what goes on: on stderr, so that stdout stays the word's own."""
    print(text, end=end, file=sys.stderr, flush=True)


def refuse(text: str) -> NoReturn:
    say(f'run.py: {text}')
    sys.exit(USAGE_ERROR)


# --- children and signals ---

def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def end_on_signals() -> None:
    """Let SIGINT and SIGTERM unwind the stack, so that children and temporary files go with us.

    SIGINT, too: a shell script's background job starts with it ignored, and Python keeps that.
    """
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def interrupted_status(interruption: KeyboardInterrupt) -> int:
    """The status a shell gives for the signal; from now on a second Ctrl-C ends us at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    say('\nrun.py: interrupted')
    number = interruption.args[0] if interruption.args else signal.SIGINT
    return 128 + int(number)


def end(child: subprocess.Popen[bytes], politely: signal.Signals) -> None:
    """End a child that still runs, with the whole process group it leads."""
    if child.poll() is not None:
        return
    os.killpg(child.pid, politely)
    try:
        child.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def end_children() -> None:
    """End whatever the tests started, for a test cut short never reaches its own clean-ups.

    Where there is no /proc nothing is done: Ctrl-C in a terminal reaches the children anyway.
    """
    for children in Path('/proc/self/task').glob('*/children'):
        for pid in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


@contextlib.contextmanager
def running(command: list[str], output: IO[bytes] | None = None,
            environment: Mapping[str, str] | None = None, keep_open: tuple[int, ...] = ()
            ) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command from the repository's root, and end it if we are ended.

    It leads a process group of its own: Ctrl-C would otherwise reach it, too, and many tools
    answer with a traceback, or leave their workers behind. Where nobody sees the output, SIGINT
    is the better word: pip then takes its temporary files along.
    """
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, process_group=0,
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=keep_open)
    try:
        yield child
    finally:
        end(child, signal.SIGINT if output else signal.SIGTERM)


def status_of(returncode: int) -> int:
    """An exit status as a shell tells it: a child killed by a signal did not end well."""
    return 128 - returncode if returncode < 0 else returncode


def run_python(*arguments: str, **extra: str) -> int:
    """Run this interpreter, never a tool by its name: PATH may hold somebody else's."""
    environment = {**os.environ, **extra}
    with running([sys.executable, *arguments], environment=environment) as child:
        return status_of(child.wait())


# --- the environment ---

def inside_environment() -> bool:
    return sys.prefix != sys.base_prefix


def required_packages() -> list[str]:
    """The names in requirements.txt; a line with a condition need not be about this machine."""
    lines = REQUIREMENTS.read_text(encoding='utf-8').splitlines()
    names = [re.match(r'[A-Za-z0-9][\w.-]*', line) for line in lines if ';' not in line]
    return [name.group() for name in names if name]


def need_requirements() -> None:
    """Refuse an environment that lacks a package, in one line rather than by a traceback."""
    from importlib import metadata  # takes longer to import than all the rest, and `serve` waits

    for name in required_packages():
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            refuse_lacking(name)


def refuse_lacking(name: str | None) -> NoReturn:
    refuse(f'this virtual environment lacks {name}; '
           f'fill it with: {sys.executable} -m pip install -r {REQUIREMENTS}')


def fingerprint() -> str:
    """What the environment was made from: when this changes, it is made again."""
    requirements = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    return f'Python {platform.python_version()}\nrequirements.txt {requirements}\n'


def environment_is_ready() -> bool:
    """Whether `.venv` is whole and right; its parts are looked at since one can lose them."""
    parts = (STAMP, VENV_PYTHON, VENV / 'pyvenv.cfg')
    return all(part.is_file() for part in parts) and STAMP.read_text() == fingerprint()


@contextlib.contextmanager
def only_one() -> Iterator[int]:
    """Keep a second run.py out of `.venv` while one fills it; give the lock's descriptor.

    The lock lies beside `.venv`, which is emptied under it. It is dropped by the system, when the
    last process that has it open ends, however that happens.
    """
    with LOCK.open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'Waiting for another run.py to finish {VENV.name} …')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def wait_showing_time(child: subprocess.Popen[bytes], doing: str) -> int:
    """Wait, and in a terminal count the seconds, so that nobody thinks it hangs."""
    counts = sys.stderr.isatty()
    began = time.monotonic()
    say(doing, end='' if counts else '\n')
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(timeout=1)
            say('\n' if counts else '', end='')
            return status
        if counts:
            say(f'\r{doing} {time.monotonic() - began:.0f} s', end='')


def run_quietly(command: list[str], doing: str, lock: int) -> None:
    """Run a step whose output matters only if it fails; then show it, and exit as the step did.

    The step keeps the lock open: if we are killed and it works on, nobody else starts meanwhile.
    """
    with tempfile.TemporaryFile() as output:
        with running(command, output, keep_open=(lock,)) as child:
            status = status_of(wait_showing_time(child, doing))
        if status:
            output.seek(0)
            say(output.read().decode(errors='replace'))
            say(f'run.py: {doing.split(" (")[0].rstrip(" …")} failed with status {status}.')
            sys.exit(status)


def need_venv_module() -> None:
    """Some distributions split these from Python, and `venv` half works without the second."""
    for name in ('venv', 'ensurepip'):
        if importlib.util.find_spec(name) is None:
            version = f'{sys.version_info.major}.{sys.version_info.minor}'
            refuse(f'{sys.executable} has no {name}; install it '
                   f'(on Debian and Ubuntu: apt install python{version}-venv)')


def make_environment(lock: int) -> None:
    """Make `.venv` anew from requirements.txt.

    The stamp goes first and comes last, at one stroke, so whatever interrupts us leaves none. It
    tells the requirements as they were at the start: an edit while pip works means once more.
    """
    need_venv_module()
    made_from = fingerprint()
    STAMP.unlink(missing_ok=True)
    run_quietly([sys.executable, '-m', 'venv', '--clear', str(VENV)], f'Making {VENV.name} …', lock)
    run_quietly(
        [str(VENV_PYTHON), '-m', 'pip', 'install', '--no-input', '--progress-bar', 'off',
         '--disable-pip-version-check', '-r', str(REQUIREMENTS)],
        f'Installing {len(required_packages())} packages (a minute or two, once) …', lock)
    unfinished = STAMP.with_suffix('.new')
    unfinished.write_text(made_from)
    unfinished.replace(STAMP)


def prepare_environment() -> None:
    """See that `.venv` is ready, looking again under the lock: another may have just made it."""
    try:
        if environment_is_ready():
            return
        with only_one() as lock:
            if not environment_is_ready():
                make_environment(lock)
    except OSError as error:
        refuse(f'cannot make {VENV}: {error}')


def enter_environment() -> NoReturn:
    """Become the same command in `.venv`, with the same process id and interpreter options.

    A signal that arrives between the two is held back: the new one starts by asking for it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    os.execv(VENV_PYTHON, [str(VENV_PYTHON), *sys.orig_argv[1:]])


# --- the words ---

def serve(args: argparse.Namespace) -> int:
    """Be the server, in this process and in the caller's folder: signals and paths stay true."""
    import_from_root()
    try:
        from addrservice.tornado.server import main as run_server
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] == 'addrservice':
            raise
        refuse_lacking(error.name)
    return run_server(args.options)


def copy(args: argparse.Namespace) -> int:
    """Move house, in this process and in the caller's folder: paths stay true."""
    import_from_root()
    from addrservice.copy_command import main as run_copy
    return run_copy(args.options)


def profile(args: argparse.Namespace) -> int:
    """Profile the service under load, in the caller's folder: paths stay true."""
    import_from_root()
    from benchmarks.profiling import main as run_profile
    return run_profile(args.options)


def bench(args: argparse.Namespace) -> int:
    """Measure the service beside its peers, in the caller's folder: paths stay true."""
    import_from_root()
    from benchmarks.bench import main as run_bench
    return run_bench(args.options)


def import_from_root() -> None:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def test(args: argparse.Namespace) -> int:
    """Run the tests in this process, so that `coverage run` around it measures them."""
    import unittest  # here, for `serve` has no use for it

    os.chdir(ROOT)
    if args.jobs > 1:
        return test_together(args)
    import_from_root()
    runner = unittest.TextTestRunner(
        verbosity=2 if args.verbose else 1, failfast=args.failfast,
        warnings=None if sys.warnoptions else 'default')  # as unittest's own command does
    try:
        return verdict(runner.run(find_tests(unittest.TestLoader(), args)))
    except KeyboardInterrupt:
        end_children()
        raise


def find_tests(loader: 'unittest.TestLoader', args: argparse.Namespace) -> 'unittest.TestSuite':
    """Find the tests; pass on a Ctrl-C that the loader took for a broken module."""
    start = ROOT / (args.module.parent if args.module else SUITES[args.suite])
    if not start.is_dir():
        return loader.loadTestsFromNames([])
    loader.testNamePatterns = [p if '*' in p else f'*{p}*' for p in args.patterns] or None
    pattern = args.module.name if args.module else '*_test.py'
    suite = loader.discover(str(start), pattern=pattern, top_level_dir=str(ROOT))
    if any('\nKeyboardInterrupt' in str(error) for error in loader.errors):
        raise KeyboardInterrupt
    return suite


def verdict(result: 'unittest.TestResult') -> int:
    """Say it when no test ran: a pattern with a typing error must not look like success."""
    if result.wasSuccessful() and result.testsRun == 0:
        say('run.py: no test was found')
        return NO_TESTS_RAN
    return 0 if result.wasSuccessful() else 1


class Part(NamedTuple):
    """A test file that runs in a process of its own, and what it says."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]


def test_together(args: argparse.Namespace) -> int:
    """Run each test file in a process of its own, several at a time."""
    began = time.monotonic()
    waiting = sorted((ROOT / SUITES[args.suite]).rglob('*_test.py'))
    verdicts: list[str] = []
    with contextlib.ExitStack() as left:
        parts: list[Part] = []
        while parts or waiting:
            while waiting and len(parts) < args.jobs:
                parts.append(start_part(args, waiting.pop(0), left))
            time.sleep(0.05)
            for part in [part for part in parts if part.process.poll() is not None]:
                parts.remove(part)
                verdicts.append(show_part(part))
                if args.failfast and part.process.returncode not in (0, NO_TESTS_RAN):
                    waiting.clear()
    return tell_verdict(verdicts, time.monotonic() - began)


def start_part(args: argparse.Namespace, file: Path, left: contextlib.ExitStack) -> Part:
    """Start a test file; what is left when we are ended goes with us."""
    chosen = [f'-k={pattern}' for pattern in args.patterns]
    output = left.enter_context(tempfile.TemporaryFile())
    command = [sys.executable, str(ROOT / 'run.py'), 'test', f'--module={file.relative_to(ROOT)}',
               *chosen, *['-v'] * args.verbose, *['-f'] * args.failfast]
    return Part(left.enter_context(running(command, output)), output)


def show_part(part: Part) -> str:
    """Print what a test file has said, whole, and return it."""
    part.output.seek(0)
    text = part.output.read().decode(errors='replace')
    if part.process.returncode != NO_TESTS_RAN:
        say(text, end='')
    if part.process.returncode not in (0, 1, NO_TESTS_RAN):  # it was killed, or could not begin
        return f'{text}\nRan 1 test in 0s\n\nFAILED (errors=1)\n'
    return text


def tell_verdict(verdicts: list[str], seconds: float) -> int:
    """Say of all test files what unittest says of one."""
    ran = sum(int(count) for text in verdicts
              for count in re.findall(r'^Ran (\d+) tests? in ', text, re.MULTILINE)[-1:])
    counts: dict[str, int] = {}
    for text in verdicts:
        last = re.findall(r'^(?:OK|FAILED) \((.+)\)$', text, re.MULTILINE)[-1:]
        for kind, count in re.findall(r'([a-z ]+)=(\d+)', ''.join(last)):
            counts[kind.strip()] = counts.get(kind.strip(), 0) + int(count)
    if not ran:
        say('run.py: no test was found')
        return NO_TESTS_RAN
    has_failed = any(kind in counts for kind in ('failures', 'errors', 'unexpected successes'))
    told = ', '.join(f'{kind}={count}' for kind, count in counts.items())
    say(f'{"-" * 70}\nRan {ran} test{"s" * (ran > 1)} in {seconds:.3f}s\n\n'
        f'{"FAILED" if has_failed else "OK"}{f" ({told})" if told else ""}')
    return int(has_failed)


def crash(args: argparse.Namespace) -> int:
    """Kill servers, far more often than the tests do, and tell how far it is."""
    return run_python('-m', 'unittest', '-v', 'tests.integration.crash_test',
                      ADDRSERVICE_KILLS=str(args.kills))


def lint(args: argparse.Namespace) -> int:
    return run_python('-m', 'flake8', *checked_paths(args))


def typecheck(args: argparse.Namespace) -> int:
    return run_python('-m', 'mypy', *checked_paths(args))


def checked_paths(args: argparse.Namespace) -> list[str]:
    """The paths given, or our own that hold Python: mypy calls a folder without any an error."""
    given: list[Path] = args.paths or [path for path in map(ROOT.joinpath, CHECKED)
                                       if path.suffix or any(path.rglob('*.py'))]
    return [str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path) for path in given]


def layers(_args: argparse.Namespace) -> int:
    """Check who imports whom; import-linter has no `-m`, and its script lies where pip chose."""
    start = 'from importlinter.cli import lint_imports_command as main; main()'
    return run_python('-c', start, '--no-logo')


def coverage(args: argparse.Namespace) -> int:
    """Measure the tests with the processes they start, and report even when a test fails."""
    verbose = ['-v'] if args.verbose else []
    tests = ['run', str(ROOT / 'run.py'), 'test', '--suite', args.suite,
             '--jobs', str(args.jobs), *verbose]
    report = ['report', f'--fail-under={least_percent(args)}']
    # Not `_exit`: saving takes a lock, and code that a signal's handler ends may be holding it.
    patch = {'ADDRSERVICE_COVERAGE_PATCH': 'subprocess,fork'}
    statuses = [run_python('-m', 'coverage', *step, **patch) for step in (['erase'], tests)]
    drop_unfinished_data()
    return max(statuses + [run_python('-m', 'coverage', *step)
                           for step in (['combine', '--quiet'], report, ['html'])])


def drop_unfinished_data() -> None:
    """Remove what a process was writing when a test killed it: nothing can be read from that."""
    for file in ROOT.glob('.coverage.*'):
        try:
            with contextlib.closing(sqlite3.connect(file)) as data:
                data.execute('SELECT * FROM coverage_schema').fetchall()
        except sqlite3.DatabaseError:
            file.unlink()


def least_percent(args: argparse.Namespace) -> float:
    """What must be covered; one suite alone is not meant to cover everything."""
    if args.fail_under is not None:
        return float(args.fail_under)
    return COVERED_PERCENT if args.suite == 'all' else 0


def check(_args: argparse.Namespace) -> int:
    """Run every part, whatever the others say, so that one run shows all there is to mend."""
    statuses = {word: announce(word) for word in PARTS_OF_CHECK}
    print()
    for word, status in statuses.items():
        print(f'{word}: {f"FAILED with status {status}" if status else "ok"}', flush=True)
    return max(statuses.values())


def announce(word: str) -> int:
    print(f'--- {word} ---', flush=True)
    args = parse([word])
    return int(args.do(args))


# --- the command line ---

def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='run.py', allow_abbrev=False,
        description='Serve, test and check the address book.',
        epilog='Outside a virtual environment, run.py makes .venv beside itself from '
               'requirements.txt, once, and works in there.')
    words = parser.add_subparsers(title='words', metavar='WORD')
    add_serving_words(words)
    add_checking_words(words)
    return parser


def add_serving_words(words: 'Words') -> None:
    words.add_parser('serve', add_help=False,
                     help='run the service; `serve --help` shows its own options')
    words.add_parser('copy', add_help=False,
                     help='copy all entries to another store; `copy --help` shows its options')
    word = add_word(words, 'test', 'run the tests with unittest')
    add_test_options(word)
    word.add_argument('-k', dest='patterns', action='append', default=[], metavar='PATTERN',
                      help='only tests whose name contains this; may be given again')
    word.add_argument('-f', '--failfast', action='store_true', help='stop at the first failure')
    word.add_argument('--module', type=Path, help=argparse.SUPPRESS)  # of several: one's part
    word.set_defaults(do=test)
    word = add_word(words, 'crash', 'kill servers under load, and look for all they acknowledged')
    word.add_argument('--kills', type=at_least_one, default=200, metavar='N',
                      help='how many servers, over all engines (default: %(default)s)')
    word.set_defaults(do=crash)
    words.add_parser('profile', add_help=False,
                     help="tell where a request's time goes; `profile --help` shows its options")
    words.add_parser('bench', add_help=False,
                     help='compare the service with its peers; `bench --help` shows its options')


def add_checking_words(words: 'Words') -> None:
    add_paths(add_word(words, 'lint', 'check the style with flake8')).set_defaults(do=lint)
    add_paths(add_word(words, 'typecheck', 'check the types with mypy')).set_defaults(do=typecheck)
    add_word(words, 'layers', 'check with import-linter who imports whom').set_defaults(do=layers)
    word = add_word(words, 'coverage', 'run the tests, print what they cover, write htmlcov')
    add_test_options(word)
    word.add_argument('--fail-under', type=float, metavar='PERCENT',
                      help=f'the least that must be covered (default: {COVERED_PERCENT} '
                           'for all tests, 0 for one suite)')
    word.set_defaults(do=coverage)
    add_word(words, 'check', f'{", ".join(PARTS_OF_CHECK)}: to the end, even when one fails'
             ).set_defaults(do=check)


def add_word(words: 'Words', name: str, purpose: str) -> argparse.ArgumentParser:
    return words.add_parser(name, help=purpose, description=f'Will {purpose}.', allow_abbrev=False)


def add_test_options(word: argparse.ArgumentParser) -> None:
    word.add_argument('-v', '--verbose', action='store_true', help='name every test')
    word.add_argument('--suite', choices=SUITES, default='all', help='default: all')
    word.add_argument('-j', '--jobs', type=at_least_one, default=1, metavar='N',
                      help='how many test files run at a time (default: %(default)s)')


def at_least_one(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError('must be a number from 1 on')
    return int(text)


def add_paths(word: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Paths are the caller's; made absolute here, because the tools run from the root."""
    word.add_argument('paths', nargs='*', metavar='PATH', type=lambda path: Path(path).resolve(),
                      help=f'default: those of {", ".join(CHECKED)} that hold Python')
    return word


def parse(argv: list[str]) -> argparse.Namespace:
    """Find the function for a word. What follows some of them is for their own parsers alone."""
    for do in (serve, copy, profile, bench):
        if argv[:1] == [do.__name__]:
            return argparse.Namespace(do=do, options=argv[1:])
    parser = make_parser()
    args = parser.parse_args(argv)
    if 'do' not in args:
        parser.print_help(sys.stderr)
        sys.exit(USAGE_ERROR)
    return args


def do_word(args: argparse.Namespace) -> int:
    if not inside_environment():
        end_on_signals()
        prepare_environment()
        enter_environment()
    if args.do is not serve:
        end_on_signals()
        need_requirements()
    return int(args.do(args))


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        return do_word(args)
    except KeyboardInterrupt as interruption:
        status = interrupted_status(interruption)
        return 0 if args.do is serve else status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

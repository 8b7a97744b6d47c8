"""Where a request's microseconds go, by layer: serves, drives a mix of requests, and profiles.

The loop is closed: each connection sends its next request when it has an answer. So there is
always work, whatever the machine and however much the profiler slows the service down, and much of
it to count; an open loop would have to know what the service can take, or measure a queue. How
long answers take is not looked at here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from addrservice import ROOT_DIR
from addrservice.utils.profiler import render
from benchmarks.driver.options import Parser, seconds_up_to
from benchmarks.driver.plan import Plan
from benchmarks.driver.report import counts
from benchmarks.driver.result import Result
from benchmarks.driver.run import Load, NotFilled, Unreachable, run
from benchmarks.layers import Breakdown

DEFAULT_CONFIG = ROOT_DIR / 'configs' / 'addressbook-sqlite.yaml'
DEFAULT_OUTPUT = 'local/profile.html'
MOST_SECONDS = 60
CONNECTIONS = 8
FUNCTIONS = 10

START_SECONDS = 20.0
STOP_SECONDS = 5.0
LOOK_SECONDS = 0.05
WARM_UP_PART = 0.1
"""Of the seconds asked for."""

STARTED = re.compile(r'message="STARTING".* port=(\d+) admin_port=(\d+)')


class ServerFailed(Exception):
    """There is no server to measure; the text is one line."""


class Cpu(NamedTuple):
    """Seconds of CPU time that a process has used."""

    loop: float
    """Its first thread, which runs the event loop."""
    all: float


class Window(NamedTuple):
    """What happened in some seconds."""

    seconds: float
    requests: int
    loop: float
    """Microseconds of CPU time per request, on the event loop."""
    threads: float
    """The same, in all other threads."""


class Findings(NamedTuple):
    """All that there is to tell."""

    plain: Window
    profiled: Window
    session: dict[str, Any]
    """As pyinstrument writes it."""
    result: Result


# --- the server ---

class Server:
    """The service in a process of its own, on free ports of this machine."""

    def __init__(self, config: str | None, folder: Path) -> None:
        """
        :param config: a file; without it the default one, with its entries in the folder.
        :param folder: where to keep what it writes.
        """
        own_book = {} if config else {'ADDRSERVICE_SQLITE': str(folder / 'addressbook.db')}
        paths = filter(None, (str(ROOT_DIR), os.environ.get('PYTHONPATH')))
        self._output = folder / 'output'
        with self._output.open('wb') as output:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'addrservice', '--config', config or str(DEFAULT_CONFIG),
                 '--host', '127.0.0.1', '--port', '0', '--admin-port', '0', '--debug'],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
                env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths), **own_book})

    async def ports(self) -> tuple[int, int]:
        """The public one and the admin port, as soon as it serves.

        :raises ServerFailed: it does not.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while True:
                    started = STARTED.search(self._output.read_text(errors='replace'))
                    if started:
                        return int(started[1]), int(started[2])
                    self._require_life()
                    await asyncio.sleep(LOOK_SECONDS)
        raise ServerFailed(f'no line STARTING, on stdout or stderr, within {START_SECONDS:g} s; '
                           f'the last one: {self._last_line()}')

    async def sleep(self, seconds: float) -> None:
        """
        :raises ServerFailed: it has ended meanwhile.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while (left := ends - loop.time()) > 0:
            self._require_life()
            await asyncio.sleep(min(left, LOOK_SECONDS))

    def cpu(self) -> Cpu:
        """
        :raises ServerFailed: it has ended, or there is no /proc.
        """
        pid = self._process.pid
        try:
            return Cpu(_cpu_seconds(f'/proc/{pid}/task/{pid}/stat'),
                       _cpu_seconds(f'/proc/{pid}/stat'))
        except OSError as error:
            raise ServerFailed(f'its CPU time cannot be read: {error}') from error

    def end(self) -> None:
        """Ends it, at once if it does not listen."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)

    def _require_life(self) -> None:
        status = self._process.poll()
        if status is not None:  # with 2 it has said in one line why it cannot start
            raise ServerFailed(self._last_line() if status == 2 else
                               f'the server ended with status {status}')

    def _last_line(self) -> str:
        return ([''] + self._output.read_text(errors='replace').splitlines())[-1]


def _cpu_seconds(file: str) -> float:
    """See proc(5): after the name in parentheses, fields 14 and 15 are what we want."""
    fields = Path(file).read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _ask_profile(port: int, seconds: float) -> dict[str, Any]:
    """What the admin port has sampled, in the end.

    :raises ServerFailed: it has not.
    """
    connection = http.client.HTTPConnection('127.0.0.1', port)
    with contextlib.closing(connection):
        try:
            connection.request('GET', f'/profile?seconds={seconds:g}&format=session')
            response = connection.getresponse()
            session: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerFailed(f'the admin port gives no profile: {error!r}') from error
    if response.status != 200:
        raise ServerFailed(f'the admin port gives no profile: {session.get("detail", session)}')
    return session


# --- measuring ---

async def measure(config: str | None, seconds: float) -> Findings:
    """Serves, drives requests, and looks at it: first without the profiler, then with it.

    :raises ServerFailed: there is no server, or not to the end.
    :raises Unreachable, NotFilled: it takes no requests.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(config, Path(folder))
        try:
            port, admin_port = await server.ports()
            async with _driven(port) as load:
                return await _look(server, admin_port, load, seconds)
        finally:
            server.end()


@contextlib.asynccontextmanager
async def _driven(port: int) -> AsyncIterator[Load]:
    """Requests all the time, once the book is filled; in the end it is cleared."""
    load = Load(Plan(f'http://127.0.0.1:{port}', seconds=3600, connections=CONNECTIONS))
    running = asyncio.create_task(load.run())
    try:
        while load.doing == 'filling' and not running.done():
            await asyncio.sleep(LOOK_SECONDS)
        if running.done():
            running.result()
        yield load
    finally:
        load.stop()
        await running


async def _look(server: Server, admin_port: int, load: Load, seconds: float) -> Findings:
    _tell(f'{seconds:g} s without the profiler, then {seconds:g} s with it …')
    await asyncio.to_thread(_ask_profile, admin_port, 0.001)  # loads the profiler
    await server.sleep(seconds * WARM_UP_PART)
    plain = await _window(server, load, seconds)
    profiled, session = await asyncio.gather(
        _window(server, load, seconds),
        asyncio.to_thread(_ask_profile, admin_port, seconds))
    return Findings(plain, profiled, session, load.result)


async def _window(server: Server, load: Load, seconds: float) -> Window:
    before, count = server.cpu(), load.result.count
    await server.sleep(seconds)
    after, requests = server.cpu(), load.result.count - count
    if not requests:
        raise ServerFailed(f'it has answered nothing within {seconds:g} s')
    each = 1e6 / requests
    loop = after.loop - before.loop
    threads = max(0.0, after.all - before.all - loop)  # they are counted in ticks
    return Window(seconds, requests, loop * each, threads * each)


# --- telling ---

def report(findings: Findings) -> Iterator[str]:
    """The lines of the summary."""
    plain, profiled, session, _ = findings
    breakdown = Breakdown(session['frame_records'])
    yield f'{"":20} {"requests":>9} {"a second":>12} {"µs of CPU":>9}  {"in threads":>10}'
    yield _window_row('without the profiler', plain)
    yield _window_row('with it', profiled)
    yield ''
    part = f'µs of {plain.loop:.0f}'
    yield f'{"layer":20} {"share":>9} {part:>12} {f"of {profiled.loop:.0f}":>9}'
    for layer, share in (*breakdown.shares(), ('sum', 1.0)):
        yield (f'{layer:20} {share:9.1%} {share * plain.loop:12.1f} '
               f'{share * profiled.loop:9.1f}')
    yield ''
    yield f'{"layer":20} {"own time":>9} {part:>12}  function'
    for function, share in breakdown.largest(FUNCTIONS):
        yield (f'{function.layer:20} {share:9.1%} {share * plain.loop:12.1f}  '
               f'{function.name}, {function.place}')
    yield ''
    yield (f'Sampled was the event loop, which waited for {breakdown.idle:.1%} of the time; the '
           'rest is 100 %. With the profiler')
    yield ('calls of Python functions are dearer than without it, so what is said of '
           f'{plain.loop:.0f} µs is an estimate.')


def _window_row(name: str, window: Window) -> str:
    return (f'{name:20} {window.requests:9} {window.requests / window.seconds:12.0f} '
            f'{window.loop:9.0f}  {window.threads:10.0f}')


# --- the command ---

def main(argv: Sequence[str] | None = None) -> int:
    """Writes the flame view, and prints the summary.

    :return: the exit status: 0 after a profile; 1 if requests went wrong; 2 if there is none; as
        a shell tells it after a signal.
    """
    args = _parse_args(argv)
    try:
        findings = run(_until_signal(args.config, args.seconds))
    except (ServerFailed, Unreachable, NotFilled) as error:
        _say(str(error))
        return 2
    if isinstance(findings, int):
        _say('interrupted')
        return findings
    _write_page(findings, args.output)
    print(*report(findings), f'The flame view is in {args.output}.', sep='\n')
    return _say_errors(findings.result)


async def _until_signal(config: str | None, seconds: float) -> Findings | int:
    """What was found; or, if a signal comes, the status that a shell gives for that. A second
    signal does not wait for entries to be removed."""
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        measuring.cancel()

    measuring = asyncio.create_task(measure(config, seconds))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await measuring
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]


def _write_page(findings: Findings, file: Path) -> None:
    from pyinstrument.session import Session  # takes a moment, and --help has no use for it

    page, _ = render(Session.from_json(findings.session), 'html')
    file.write_text(page, encoding='utf-8')


def _say_errors(result: Result) -> int:
    """
    :return: the exit status.
    """
    if result.errors:
        _say(f'errors: {counts(result.errors)}')
    if result.left:
        _say(f'up to {result.left} entries could not be removed')
    return int(bool(result.errors or result.left))


def _say(text: str) -> None:
    print(f'run.py profile: {" ".join(text.split())}', file=sys.stderr, flush=True)


def _tell(text: str) -> None:
    """What is only for those who wait."""
    if sys.stderr.isatty():
        _say(text)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog='run.py profile', allow_abbrev=False,
        description='Starts the service, drives a mix of requests at it, and tells where a '
                    "request's microseconds go, by layer; first without the profiler, for what a "
                    'request costs, then with it, for how that is shared out.')
    parser.add_argument('--seconds', type=seconds_up_to(MOST_SECONDS), default=10.0, metavar='N',
                        help=f'for each of the two, at most {MOST_SECONDS} (default: %(default)g)')
    parser.add_argument('--config', metavar='FILE',
                        help='of the service (default: addressbook-sqlite.yaml, with the entries '
                             'in a temporary file). With this the book is the one that FILE '
                             'names: entries are made in it, and removed in the end')
    parser.add_argument('--output', type=_writable, default=DEFAULT_OUTPUT, metavar='HTML',
                        help='where to write the flame view (default: %(default)s)')
    return parser.parse_args(argv)


def _writable(path: str) -> Path:
    """Looks before the run: what cannot be written shall be known then."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'cannot make its folder: {error}') from error
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f'cannot write {path}')
    return file


if __name__ == '__main__':
    sys.exit(main())

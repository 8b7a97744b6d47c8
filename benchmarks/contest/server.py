"""A server process: starts, tells what CPU time it has used, ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from addrservice import ROOT_DIR
from benchmarks.contest import environment
from benchmarks.contest.cores import Core, on

HOST = '127.0.0.1'
START_SECONDS = 20.0
STOP_SECONDS = 3.0
LOOK_SECONDS = 0.02


class Failed(Exception):
    """A server does not do what it is there for; the text is one line."""


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Server:
    """One process, or a few, that serve on a port of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.port = port
        self.log = log
        """The file that stdout and stderr go to."""
        self._process = process

    def wait_until_it_answers(self) -> None:
        """As somebody who can do the job: 503 is no answer.

        :raises Failed: it has ended, or takes too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask('GET', '/addresses/nobody').status < 500:
                    return
            if self._process.poll() is not None:
                raise Failed(f'ended with status {self._process.returncode}: {self._last_line()}')
            time.sleep(LOOK_SECONDS)
        raise Failed(f'does not answer within {START_SECONDS:g} s: {self._last_line()}')

    def ask(self, method: str, target: str, body: bytes | None = None) -> Answer:
        """One request, on a connection of its own."""
        headers = {} if body is None else {'Content-Type': 'application/json'}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return sum(map(_cpu_seconds, _family(self._process.pid)))

    def lines(self) -> list[str]:
        """The log so far."""
        return self.log.read_text(errors='replace').splitlines()

    def count_lines(self) -> int:
        """How many lines the log has so far."""
        return self.log.read_bytes().count(b'\n')

    def _last_line(self) -> str:
        return next(reversed(self.lines()), 'it said nothing')


@contextlib.contextmanager
def serving(command: list[str], port: int, log: Path, core: Core) -> Iterator[Server]:
    """Runs a server meanwhile; its output goes to a file.

    :raises Failed: it cannot be started.
    """
    with log.open('wb') as output, on(core):
        process = subprocess.Popen(
            command, cwd=ROOT_DIR, env=dict(environment.variables()), process_group=0,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        server = Server(process, port, log)
        server.wait_until_it_answers()
        yield server
    finally:
        _end(process)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: Any = probe.getsockname()[1]
        return int(port)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            return


def _family(pid: int) -> Iterator[int]:
    """A process and all that come from it and still run."""
    yield pid
    for file in Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for child in file.read_text().split():
                yield from _family(int(child))


def _cpu_seconds(pid: int) -> float:
    """See proc(5): after the name in parentheses, fields 14 to 17, its own and those of children
    that have ended. 0 where there is no such file."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')

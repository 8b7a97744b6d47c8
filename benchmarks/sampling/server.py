"""The service that is profiled: starts, tells its CPU time and what was sampled of it, ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from addrservice import ROOT_DIR

DEFAULT_CONFIG = ROOT_DIR / 'configs' / 'addressbook-sqlite.yaml'

START_SECONDS = 20.0
STOP_SECONDS = 5.0
LOOK_SECONDS = 0.05

STARTED = re.compile(r'message="STARTING".* port=(\d+) admin_port=(\d+)')


class ServerFailed(Exception):
    """There is no server to measure; the text is one line."""


class Cpu(NamedTuple):
    """Seconds of CPU time that a process has used."""

    loop: float
    """Its first thread, which runs the event loop."""
    all: float


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


def ask_profile(port: int, seconds: float) -> dict[str, Any]:
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

"""The service in a process of its own, configured as its operators do, on a core of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from addrservice import ROOT_DIR
from benchmarks.contest import environment
from benchmarks.contest.cores import Core, on
from benchmarks.contest.server import HOST, Failed, Server, free_port

DEFAULT_CONFIG = ROOT_DIR / 'configs' / 'addressbook-sqlite.yaml'
TRANSPORTS = ('fast', 'tornado')
"""As the configuration of the service names them."""

ENGINES = ('sqlite', 'memory', 'fs')
"""Those that need no server of their own."""

START_SECONDS = 20.0
STOP_SECONDS = 5.0
LOOK_SECONDS = 0.002
"""Between two looks at a server that is starting: what is told of its start is as exact as that."""

STARTED = b'message="STARTING"'
"""In the line that each process of the service writes when it serves."""


class Service(NamedTuple):
    """A service that is ready."""

    pid: int
    server: Server
    """To ask it one request."""

    seconds: float
    """From the start of its process to the first 200 of /readiness."""

    @property
    def url(self) -> str:
        return f'http://{HOST}:{self.server.port}'

    def workers(self) -> list[int]:
        """The processes that serve: those that it has started, or else itself."""
        tasks = Path(f'/proc/{self.pid}/task').glob('*/children')
        return [int(child) for file in tasks for child in file.read_text().split()] or [self.pid]


def settings(engine: str, folder: Path, **server: object) -> dict[str, Any]:
    """The configuration that is the default, but with the entries in that folder and the admin
    pages on any free port.

    :param server: what its section `server` shall say, with `_` for `-`.
    """
    config = yaml.safe_load(DEFAULT_CONFIG.read_text('utf-8'))
    return {**config, 'admin': {'port': 0}, 'drain': {'delay': 0},
            'addr-db': {engine: book_in(folder, engine)},
            'server': {name.replace('_', '-'): value for name, value in server.items()}}


def book_in(folder: Path, engine: str) -> str | None:
    """Where the entries are, if they are anywhere."""
    return None if engine == 'memory' else str(folder / 'book')


@contextlib.contextmanager
def started(config: Mapping[str, Any], folder: Path, core: Core, *options: str
            ) -> Iterator[Service]:
    """Runs the service meanwhile; its log is in the folder.

    :param options: of the interpreter.
    :raises Failed: it does not start.
    """
    file, log, port = folder / 'config.yaml', folder / 'log', free_port()
    file.write_text(json.dumps(config))  # which is YAML, too
    command = [sys.executable, *options, '-m', 'addrservice',
               '--config', str(file), '--host', HOST, '--port', str(port)]
    with log.open('wb') as output, on(core):
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT_DIR, env=dict(environment.variables()), process_group=0,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        server = Server(process, port, log)
        _wait(process, server, lambda: server.ask('GET', '/readiness').status == 200)
        seconds = time.perf_counter() - began
        processes = config['server'].get('processes', 1)
        _wait(process, server, lambda: log.read_bytes().count(STARTED) >= processes)
        yield Service(process.pid, server, seconds)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], server: Server, is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if is_there():
                return
        if process.poll() is not None:
            raise Failed(f'the service ended with {process.returncode}: {_last_line(server)}')
        time.sleep(LOOK_SECONDS)
    raise Failed(f'the service is not ready within {START_SECONDS:g} s: {_last_line(server)}')


def _last_line(server: Server) -> str:
    return next(reversed(server.lines()), 'it said nothing')


def _end(process: subprocess.Popen[bytes]) -> None:
    # Asked first; what is left of it, workers among it, goes with its group.
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

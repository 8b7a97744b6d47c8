"""What several tests need: a logfmt reader, servers in this process and in one of their own."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import tornado.testing
import tornado.web
import yaml
from tornado.httpclient import HTTPResponse

from addrservice.tornado.app import make_addrservice_app
from addrservice.utils import logutils

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 20.0
"""Seconds after which a test gives up waiting for what should take moments."""

Case = TypeVar('Case', bound=unittest.TestCase)

_PAIR = re.compile(r'([A-Za-z_][A-Za-z0-9_.-]*)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)')


def parse_logfmt(line: str) -> dict[str, Any]:
    """Reads a logfmt line back.

    :raises ValueError: the line is not logfmt from its start to its end.
    """
    fields: dict[str, Any] = {}
    position = 0
    while position < len(line):
        match = _PAIR.match(line, position)
        if match is None or match[1] in fields:
            raise ValueError(f'not logfmt at {position}: {line!r}')
        fields[match[1]] = json.loads(match[2])
        position = match.end()
    return fields


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body, which must be JSON."""
        return json.loads(self.body)


transport = 'fast'
"""What servers that tests start are on, as the configuration calls it."""


def use_transport(name: str) -> None:
    """Servers that are started from now on are on that transport."""
    global transport
    transport = name


def on_each_transport(case: type[Case]) -> type[Case]:
    """Has the tests of a class run on Tornado's own streams, too: nobody may be able to tell
    one transport from the other."""
    class OnTornado(case):  # type: ignore[misc, valid-type]  # any class of tests

        @classmethod
        def setUpClass(cls) -> None:
            cls.addClassCleanup(use_transport, transport)
            use_transport('tornado')
            super().setUpClass()

    OnTornado.__name__ = OnTornado.__qualname__ = f'{case.__name__}OnTornado'
    OnTornado.__module__ = case.__module__
    setattr(sys.modules[case.__module__], OnTornado.__name__, OnTornado)
    return case


class ServerProcess:
    """The service in a process of its own, as an operator starts it.

    Made with a configuration, it logs to a file of logfmt lines and to
    nowhere else. Use it as a context manager: it ends what it started.
    """

    def __init__(self, config: dict[str, Any] | None = None, *arguments: str,
                 command: tuple[str, ...] = (sys.executable, '-m', 'addrservice')) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.log_file = self.folder / 'service.log'
        self.config_file = self.folder / 'config.yaml'
        config = {'logging': self._logging(), 'drain': {'delay': 0}, **(config or {})}
        config['server'] = {'transport': transport, **config.get('server', {})}
        self.config_file.write_text(yaml.safe_dump(config))
        self.command = [*command, '--config', str(self.config_file), '--port', '0', *arguments]
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> ServerProcess:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self._end(self.process)
        self._folder.cleanup()

    def _end(self, process: subprocess.Popen[str]) -> None:
        # Asked twice it ends at once; killed it could not save what it measured.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=1.5)
                return

    def start(self) -> None:
        """Starts the process and waits until it is ready. A new start after an end
        uses the same folder, and appends to the log."""
        starts = len(self.lines('STARTING'))
        self.process = subprocess.Popen(self.command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.wait_for(lambda: len(self.lines('STARTING')) > starts)
        self.port = self.lines('STARTING')[-1]['port']
        self.wait_for(lambda: self.request('GET', '/readiness').status == 200)

    def wait_for(self, condition: Any) -> None:
        """Returns when the condition holds, fails when the process ends or time is up."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert self.process is not None
            if self.process.poll() is not None:
                out, err = self.process.communicate()
                raise AssertionError(f'the server ended with {self.process.returncode}: {out}{err}')
            if time.monotonic() > deadline:
                raise AssertionError('the server took too long')
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end.

        :return: the exit status.
        """
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=DEADLINE)
        return self.process.returncode

    def request(self, method: str, target: str, body: bytes | str | None = None,
                headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(self.http_connection()) as connection:
            connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.headers, response.read())

    def http_connection(self) -> http.client.HTTPConnection:
        """A connection for HTTP, not made yet."""
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=DEADLINE)

    def connect(self) -> socket.socket:
        """A plain connection, for what no HTTP client would send."""
        return socket.create_connection(('127.0.0.1', self.port), timeout=DEADLINE)

    def send(self, data: bytes) -> bytes:
        """Sends bytes and returns all that comes until the server closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_to_end(connection)

    def lines(self, message: str = '') -> list[dict[str, Any]]:
        """The log so far, line by line; only those with this message if given."""
        if not self.log_file.exists():
            return []
        # Of the last one, half may be there.
        whole, _, _ = self.log_file.read_text().rpartition('\n')
        lines = [parse_logfmt(line) for line in whole.splitlines()]
        return [line for line in lines if not message or line.get('message') == message]

    def _logging(self) -> dict[str, Any]:
        return {
            'version': 1,
            'formatters': {'logfmt': {
                'class': 'addrservice.utils.logutils.LogfmtFormatter',
                'format': 'level="%(levelname)s" logger="%(name)s" %(message)s'}},
            'handlers': {'file': {'class': 'logging.FileHandler', 'formatter': 'logfmt',
                                  'filename': str(self.log_file)}},
            'root': {'level': 'DEBUG', 'handlers': ['file']},
            'loggers': {'asyncio': {'level': 'WARNING'}},
        }


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or resets, the connection."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            data += chunk
    return bytes(data)


def split_answers(data: bytes) -> list[Answer]:
    """The HTTP responses that stand in these bytes one after the other."""
    replay = _Replay(data)
    answers = []
    while replay.tell() < len(data):
        response = http.client.HTTPResponse(cast(socket.socket, replay))
        response.begin()
        answers.append(Answer(response.status, response.reason, response.headers, response.read()))
    return answers


class _Replay(io.BytesIO):
    """Bytes that `http.client` takes for a socket, and leaves open for the next response."""

    def makefile(self, mode: str) -> _Replay:
        return self

    def close(self) -> None:
        pass


def clear_log_context() -> None:
    """Forgets what a test has added; a request's context ends with its task."""
    logutils._LOG_CONTEXT.set(MappingProxyType({}))


def quiet_logger() -> logging.Logger:
    """A logger that nobody hears, also not when it warns."""
    logger = logging.Logger('quiet')
    logger.addHandler(logging.NullHandler())
    return logger


def recording_logger() -> tuple[logging.Logger, list[logging.LogRecord]]:
    """A logger that nobody hears, and the list of all that it was told."""
    handler = _ListHandler()
    logger = logging.Logger('recording')
    logger.addHandler(handler)
    return logger, handler.records


class _ListHandler(logging.Handler):

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class AddressServiceAppTestCase(tornado.testing.AsyncHTTPTestCase):
    """Serves the web application on Tornado's own test server, with an empty book."""

    with_debug = False

    def make_config(self) -> dict[str, Any]:
        """The configuration; by default the book is in memory."""
        return {'service': {'name': 'Address Book Test'}}

    def make_logger(self) -> logging.Logger:
        """Where the service logs; by default nobody hears it."""
        return quiet_logger()

    def get_app(self) -> tornado.web.Application:
        self.service, self.app = make_addrservice_app(
            self.make_config(), self.with_debug, self.make_logger())
        return self.app

    def setUp(self) -> None:
        super().setUp()
        self.io_loop.run_sync(self.service.start)

    def tearDown(self) -> None:
        self.io_loop.run_sync(self.service.stop)
        super().tearDown()

    def ask(self, method: str, path: str, document: object = None, **headers: str) -> HTTPResponse:
        """One request; a document becomes its JSON body."""
        body = None if document is None else json.dumps(document)
        return self.fetch(path, method=method, body=body, headers=headers,
                          allow_nonstandard_methods=True)

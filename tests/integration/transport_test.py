"""Both transports, and Tornado's own server, on the same bytes: who can tell one from the other?"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import logging
import os
import re
import socket
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple, cast
from weakref import WeakSet

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tornado.httpserver
import tornado.web
import uvloop
from tornado import httputil
from tornado.netutil import bind_sockets

from addrservice.tornado.connection import Connect, HTTPServer
from addrservice.tornado.exchange import Exchange
from addrservice.tornado.reader import READ_SIZE, Limits
from addrservice.tornado.serving import TRANSPORTS
from tests import support
from tests.grammar import Grammar
from tests.support import DEADLINE, Case, on_each_transport

CASES = int(os.environ.get('ADDRSERVICE_TRANSPORT_CASES', '250'))
"""How many pipelines every server is sent, on each event loop."""

SEED = os.environ.get('ADDRSERVICE_TRANSPORT_SEED', 'addresses')
AT_ONCE = 25

MAX_HEADER, MAX_BODY = 2000, 3000
QUIET_TURNS, TURN = 25, 0.002
"""After so many turns in which nothing happens, nothing will; seconds of each."""

LIMITS = Limits(max_connections=1000, max_body_size=MAX_BODY, max_header_size=MAX_HEADER,
                idle_timeout=60, header_timeout=60, body_timeout=60, write_timeout=60)
ROOMY = replace(LIMITS, max_body_size=10 * READ_SIZE)

END = b'GET /echo?end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
PIECE = b'a piece. ' * 400
BIG_PIECE = bytes(READ_SIZE)
BIG_PIECES = 64

Pairs = tuple[tuple[str, str], ...]


# --- The application ---


class Seen(NamedTuple):
    """What a handler got to know of a request."""

    method: str | None
    uri: str | None
    version: str
    headers: Pairs
    body: bytes
    status: int
    """What it answered."""


class EchoApplication(tornado.web.Application):
    """Remembers what it is asked, by the port that the client asks from."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Seen]] = {}
        self.working = Counter[int]()
        """How many handlers are at work, by port."""

        self.events: list[str] = []
        self.gate = asyncio.Event()
        self.exchanges = WeakSet[Any]()
        """What handlers have answered on, and is still there."""

        super().__init__([
            (f'/{name}', handler) for name, handler in HANDLERS.items()],
            default_handler_class=EchoHandler, log_function=self.remember,
            default_handler_args={'status': 404})

    def refuse(self, request: httputil.HTTPServerRequest, error: tornado.web.HTTPError
               ) -> httputil.HTTPMessageDelegate:
        return self.get_handler_delegate(request, RefusalHandler, {'status': error.status_code})

    @staticmethod
    def remember(handler: tornado.web.RequestHandler) -> None:
        """What is not refused has been understood."""
        if isinstance(handler, EchoHandler):
            request = handler.request
            handler.application.seen.setdefault(handler.peer, []).append(Seen(
                request.method, request.uri, request.version, tuple(request.headers.get_all()),
                handler.body(), handler.get_status()))


class Handler(tornado.web.RequestHandler):
    """Answers the same whenever, and wherever, it is asked the same."""

    application: EchoApplication

    def initialize(self, status: int = 200) -> None:
        self.status = status
        connection: Any = self.request.connection
        self.application.exchanges.add(connection)
        self.peer = 0 if connection.stream.closed() else port_of(connection.stream.socket)

    def set_default_headers(self) -> None:
        for name in ('Date', 'Server'):
            self.clear_header(name)
        self.set_header('X-Method', self.request.method or '-')

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While something is awaited that is not the client."""
        self.application.working[self.peer] += 1
        try:
            yield
        finally:
            self.application.working[self.peer] -= 1

    def note(self, event: str) -> None:
        self.application.events.append(event)


def port_of(connection: socket.socket) -> int:
    """The port at the other end."""
    with contextlib.suppress(OSError):  # it has just been closed
        return int(connection.getpeername()[1])
    return 0


class RefusalHandler(Handler):
    """Answers what cannot be served."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header('X-Refused', 'yes')

    def prepare(self) -> None:
        raise tornado.web.HTTPError(self.status)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        super().send_error(self.status)  # also in place of the 405 of an unknown method


class EchoHandler(Handler):
    """Answers with what it understands."""

    SUPPORTED_METHODS = ('GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS')

    def body(self) -> bytes:
        return self.request.body

    async def get(self, *args: str) -> None:
        self.set_status(self.status)
        self.finish({
            'line': [self.request.method, self.request.uri, self.request.version],
            'headers': list(self.request.headers.get_all()), 'ip': self.request.remote_ip,
            'query': {name: [value.decode('latin-1') for value in values]
                      for name, values in self.request.query_arguments.items()},
            'body': self.body().decode('latin-1')})

    head = post = put = delete = options = get


@tornado.web.stream_request_body
class StreamHandler(EchoHandler):
    """Takes its time with the body."""

    def initialize(self, status: int = 200) -> None:
        super().initialize(status)
        self.received = bytearray()

    async def prepare(self) -> None:
        self.note('prepare')
        with self.at_work():
            await asyncio.sleep(0.003)
        self.note('prepared')

    async def data_received(self, chunk: bytes) -> None:
        self.note('data')
        with self.at_work():
            await asyncio.sleep(0.001)
        self.received += chunk
        self.note('taken')

    def on_connection_close(self) -> None:
        self.note('closed')
        super().on_connection_close()

    def body(self) -> bytes:
        return bytes(self.received)

    async def get(self, *args: str) -> None:
        self.note('method')
        if self.request.query == 'gate':
            await self.application.gate.wait()
        await super().get()

    head = post = put = delete = options = get


class PiecesHandler(EchoHandler):

    async def get(self, *args: str) -> None:
        self.set_header('Content-Type', 'text/plain')
        for number in range(4):
            self.write(PIECE[number:] + self.body())
            await self.flush()

    head = post = put = delete = options = get


class SlowHandler(EchoHandler):
    """Waits a little, or at the gate."""

    def initialize(self, status: int = 200) -> None:
        super().initialize(status)
        self.note(f'made {self.request.query}')

    def on_finish(self) -> None:
        self.note(f'finished {self.request.query}')

    async def get(self, *args: str) -> None:
        self.note(f'began {self.request.query}')
        with self.at_work():
            await asyncio.sleep(0.004)
            if 'gate' in self.request.query_arguments:
                await self.application.gate.wait()
        self.note(f'ended {self.request.query}')
        await super().get()

    head = post = put = delete = options = get

    def on_connection_close(self) -> None:
        self.note('closed')


class NoContentHandler(EchoHandler):

    async def get(self, *args: str) -> None:
        self.set_status(204)

    head = post = put = delete = options = get


class NotModifiedHandler(EchoHandler):

    async def get(self, *args: str) -> None:
        self.set_header('Etag', '"x"')
        self.set_status(304)

    head = post = put = delete = options = get


class EndlessHandler(EchoHandler):
    """Sends far more than any buffer takes."""

    async def get(self, *args: str) -> None:
        for _ in range(BIG_PIECES):
            self.write(BIG_PIECE)
            await self.flush()
            self.note('flushed')

    def on_connection_close(self) -> None:
        self.note('closed')


class LengthHandler(EchoHandler):
    """Says that its answer is longer, or shorter, than it is."""

    async def get(self, *args: str) -> None:
        self.set_header('Content-Length', self.request.query)
        self.write(b'he')
        await self.flush()
        self.finish(b'llo')


class InterimHandler(EchoHandler):
    """Ends with a status that none ends with."""

    async def get(self, *args: str) -> None:
        self.set_status(103)
        self.finish()


class SizeHandler(EchoHandler):
    """Tells how large the body was when it was sent."""

    async def put(self, *args: str) -> None:
        self.finish(str(cast(Exchange, self.request.connection).body_bytes_received))


class BrokenHandler(EchoHandler):
    """Cannot even be made."""

    def initialize(self, status: int = 200) -> None:
        raise RuntimeError('There is no handler')


@tornado.web.stream_request_body
class ChokingHandler(EchoHandler):
    """Cannot take a body, at once or in a moment."""

    def data_received(self, chunk: bytes) -> Any:
        if self.request.query == 'later':
            return self.choke()
        raise RuntimeError('I cannot take it')

    async def choke(self) -> None:
        await asyncio.sleep(0)
        raise RuntimeError('I cannot take it')


HANDLERS: dict[str, type[Handler]] = {
    'echo': EchoHandler, 'stream': StreamHandler, 'pieces': PiecesHandler, 'slow': SlowHandler,
    'no-content': NoContentHandler, 'not-modified': NotModifiedHandler, 'endless': EndlessHandler,
    'length': LengthHandler, 'interim': InterimHandler, 'size': SizeHandler,
    'broken': BrokenHandler, 'choking': ChokingHandler}


# --- Servers and clients ---


class Served:
    """A server, its application and its port."""

    def __init__(self, connect: Connect | None, limits: Limits = LIMITS) -> None:
        """
        :param connect: the transport; None: all is Tornado's own.
        """
        self.app = EchoApplication()
        self.server: HTTPServer | tornado.httpserver.HTTPServer
        if connect:
            self.server = HTTPServer(self.app, self.app.refuse, limits, print, connect)
        else:
            self.server = tornado.httpserver.HTTPServer(
                self.app, max_header_size=limits.max_header_size, decompress_request=True,
                max_body_size=limits.max_body_size, idle_connection_timeout=60, body_timeout=60)
        sockets = bind_sockets(0, '127.0.0.1')
        self.server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.listening = sockets[0]

    async def stop(self) -> None:
        self.server.stop()
        if isinstance(self.server, HTTPServer):
            self.server.close_connections()
        else:
            await self.server.close_all_connections()

    async def talk(self, pieces: Sequence[bytes], random: Random) -> Outcome:
        """Sends the pieces with pauses between, until all has been answered that will be."""
        client = Client(self.port)
        await client.connect()
        self.app.seen.pop(client.port, None)  # ports are used again
        for piece in pieces:
            with contextlib.suppress(ConnectionError):
                await client.send(piece)
            await asyncio.sleep(random.choice((0, 0, 0.001)))
        await self._until_quiet(client)
        outcome = Outcome(bytes(client.received), client.reading.done(),
                          tuple(self.app.seen.get(client.port, ())))
        await client.hang_up()
        return outcome

    async def _until_quiet(self, client: Client) -> None:
        turns = 0
        while turns < QUIET_TURNS and not client.reading.done():
            before = len(client.received)
            await asyncio.sleep(TURN)
            is_quiet = len(client.received) == before and not self.app.working[client.port]
            turns = turns + 1 if is_quiet else 0


class Client:
    """Sends bytes, and reads whatever comes meanwhile."""

    def __init__(self, port: int, buffer_size: int = 0) -> None:
        """
        :param port: the server's.
        :param buffer_size: bytes that the system keeps of what is sent, and of what comes.
        """
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            if buffer_size:
                self.socket.setsockopt(socket.SOL_SOCKET, option, buffer_size)
        self.server_port = port
        self.received = bytearray()
        self.was_reset = False
        self.reading: asyncio.Future[None] = asyncio.Future()
        self.loop = asyncio.get_running_loop()

    async def connect(self, reads: bool = True) -> None:
        await self.loop.sock_connect(self.socket, ('127.0.0.1', self.server_port))
        self.port: int = self.socket.getsockname()[1]
        if reads:
            self.read()

    def read(self) -> None:
        """From now on, what comes is read."""
        self.reading = asyncio.create_task(self._read())

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def hang_up(self) -> None:
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        self.socket.close()

    async def _read(self) -> None:
        try:
            while data := await self.loop.sock_recv(self.socket, READ_SIZE):
                self.received += data
        except ConnectionError:
            self.was_reset = True


class Answer(NamedTuple):
    """What a server sends for one request."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_delimited: bool
    """Whether its end is known from itself, not from the connection's."""


@dataclass(frozen=True)
class Outcome:
    """What came of some bytes."""

    data: bytes
    """All that came back."""

    is_closed: bool
    seen: tuple[Seen, ...]

    def answers(self) -> list[Answer]:
        """What came back, without interim responses."""
        rest, answers = self.data, []
        while rest:
            answer, rest = first_answer(rest)
            if answer.status != 100:
                answers.append(answer)
        return answers


@contextlib.contextmanager
def silent_tornado() -> Iterator[None]:
    """While nobody hears what Tornado has to say."""
    handler, logger = logging.NullHandler(), logging.getLogger('tornado')
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def first_answer(data: bytes) -> tuple[Answer, bytes]:
    """An answer, and what stands behind it."""
    head, _, rest = data.partition(b'\r\n\r\n')
    status_line, *lines = head.decode('latin-1').split('\r\n')
    headers = dict(line.split(': ', 1) for line in lines)
    status = int(status_line.split(' ')[1])
    if headers.get('X-Method') == 'HEAD' or status in (100, 204, 304):
        return Answer(status, headers, b'', True), rest
    if 'Transfer-Encoding' in headers:
        body, rest = dechunk(rest)
        return Answer(status, headers, body, True), rest
    if 'Content-Length' in headers:
        length = int(headers['Content-Length'])
        return Answer(status, headers, rest[:length], True), rest[length:]
    return Answer(status, headers, rest, False), b''


def dechunk(data: bytes) -> tuple[bytes, bytes]:
    """A chunked body, and what stands behind it."""
    body = bytearray()
    while True:
        line, _, data = data.partition(b'\r\n')
        size = int(line, 16)
        body += data[:size]
        data = data[size + 2:]
        if size == 0:
            return bytes(body), data


def cut(data: bytes, random: Random) -> list[bytes]:
    """The data in pieces of random sizes, and now and then in bytes."""
    if len(data) < 400 and random.random() < 0.1:
        return [data[place:place + 1] for place in range(len(data))]
    count = random.choice((0, 0, 1, 2, 3, 8))
    places = sorted(random.randrange(len(data) + 1) for _ in range(count))
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)])]
    return [piece for piece in pieces if piece]


# --- What is compared ---

HEAD = b'POST /echo HTTP/1.1\r\nHost: x\r\n'
STREAM = b'POST /stream HTTP/1.1\r\nHost: x\r\n'
CHUNKED = HEAD + b'Transfer-Encoding: chunked\r\n\r\n'
GET = b'GET /echo HTTP/1.1\r\nHost: x\r\n'
SMUGGLED = b'GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n'

KNOWN: dict[str, bytes] = {
    'CL.TE': HEAD + b'Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG' + SMUGGLED,
    'TE.CL': HEAD + b'Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n24\r\n' + SMUGGLED
    + b'\r\n0\r\n\r\n',
    'TE.TE': HEAD + b'Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n',
    'TE.0': HEAD + b'Transfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n' + SMUGGLED,
    'CL.0': b'GET /no-content HTTP/1.1\r\nHost: x\r\nContent-Length: 36\r\n\r\n' + SMUGGLED,
    'two lengths that differ': HEAD + b'Content-Length: 0\r\nContent-Length: 36\r\n\r\n' + SMUGGLED,
    'two lengths alike': HEAD + b'Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello',
    'a length of many zeros': HEAD + b'Content-Length: 0000000000000000000005\r\n\r\nhello',
    'a length beyond 64 bits': HEAD + b'Content-Length: 18446744073709551621\r\n\r\nhello',
    'space before the colon': HEAD + b'Content-Length : 36\r\n\r\n' + SMUGGLED,
    'folded coding': HEAD + b'Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n',
    'LF only': SMUGGLED.replace(b'\r\n', b'\n'),
    'LF in a field': GET + b'X: a\nContent-Length: 36\r\n\r\n' + SMUGGLED,
    'LF LF within': b'GET /echo HTTP/1.1\r\nHost: x\n\n' + SMUGGLED,
    'CR in a field': GET + b'X: a\rContent-Length: 36\r\n\r\n' + SMUGGLED,
    'chunk size with spaces': CHUNKED + b'5 \r\nhello\r\n0\r\n\r\n',
    'chunk size in hexadecimal notation': CHUNKED + b'0x5\r\nhello\r\n0\r\n\r\n',
    'chunk size beyond 64 bits': CHUNKED + b'10000000000000005\r\nhello\r\n0\r\n\r\n',
    'chunk size of many zeros': CHUNKED + b'0' * 30 + b'5\r\nhello\r\n0\r\n\r\n',
    'chunk extension': CHUNKED + b'5;a="b"\r\nhello\r\n0;last\r\n\r\n',
    'LF in a chunk extension': CHUNKED + b'5;a\nb\r\nhello\r\n0\r\n\r\n',
    'LF behind a chunk size': CHUNKED + b'5\nhello\r\n0\r\n\r\n',
    'chunk too long': CHUNKED + b'5\r\nhello!\r\n0\r\n\r\n',
    'trailers': CHUNKED + b'5\r\nhello\r\n0\r\nX: y\r\n\r\n' + SMUGGLED,
    'a long chunk extension': CHUNKED + b'5;' + b'a' * 4200 + b'\r\nhello\r\n0\r\n\r\n',
    'a long trailer': CHUNKED + b'5\r\nhello\r\n0\r\nX: ' + b'a' * 4200 + b'\r\n\r\n',
    'chunked in HTTP/1.0': CHUNKED.replace(b'1.1', b'1.0') + b'0\r\n\r\n',
    'absolute form with another host': b'GET http://y/echo HTTP/1.1\r\nHost: x\r\n\r\n',
    'two Hosts': GET + b'Host: y\r\n\r\n',
    'empty lines between': SMUGGLED + b'\r\n' + SMUGGLED + b'\r\n\r\n' + SMUGGLED,
    'a body that nobody announced': GET + b'\r\nhello',
    'an upgrade with a body': HEAD + b'Connection: upgrade\r\nUpgrade: websocket\r\n'
    b'Content-Length: 5\r\n\r\nhello' + SMUGGLED,
    'close with more behind': GET + b'Connection: close\r\n\r\n' + SMUGGLED,
    'close among options': GET + b'Connection: x, close\r\n\r\n' + SMUGGLED,
    'Proxy-Connection': GET + b'Proxy-Connection: close\r\n\r\n' + SMUGGLED,
    'a body in pieces': STREAM + b'Content-Length: 2000\r\n\r\n' + b'x' * 2000 + SMUGGLED,
    'a chunked body in pieces': STREAM + b'Transfer-Encoding: chunked\r\n\r\n3e8\r\n' + b'x' * 1000
    + b'\r\n1\r\ny\r\n0\r\n\r\n' + SMUGGLED,
    '100-continue': STREAM + b'Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello' + SMUGGLED,
    'a form in a bad shape': HEAD + b'Content-Type: multipart/form-data\r\n'
    b'Content-Length: 5\r\n\r\nhello',
    'gzip': HEAD + b'Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b' % (
        len(gzip.compress(b'hello', mtime=0)), gzip.compress(b'hello', mtime=0)) + SMUGGLED,
    'HTTP/1.0': b'GET /echo HTTP/1.0\r\n\r\n' + SMUGGLED,
    'HTTP/1.0 kept alive': b'GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n' + SMUGGLED,
    'pieces for HTTP/1.0': b'GET /pieces HTTP/1.0\r\nConnection: keep-alive\r\n\r\n' + SMUGGLED,
    'everything': b''.join(b'%b /%b HTTP/1.1\r\nHost: x\r\n\r\n' % (method, path)
                           for method in (b'GET', b'HEAD', b'POST', b'FOO')
                           for path in (b'echo', b'stream', b'pieces', b'slow', b'no-content',
                                        b'not-modified', b'none')),
}
"""What has been used to smuggle requests, and what servers like to read in their own ways."""


class SameMeaningTest(unittest.TestCase):
    """The same bytes, cut differently, sent to three servers on one event loop."""

    new_loop: ClassVar[Callable[[], asyncio.AbstractEventLoop]] = asyncio.new_event_loop

    def test_known_bytes_mean_the_same(self) -> None:
        cases = {name: data + END for name, data in KNOWN.items()}
        self.compare([(name, data) for name, data in cases.items() for _ in range(2)])

    def test_any_requests_mean_the_same(self) -> None:
        self.compare([(f'{SEED}/{number}', self.pipeline(f'{SEED}/{number}'))
                      for number in range(CASES)])

    @staticmethod
    def pipeline(seed: str) -> bytes:
        random = Random(seed)
        oddity = random.choice((0.003, 0.02, 0.06))
        return Grammar(random, oddity).pipeline(4) + random.choice((b'', END, END, END, END))

    def compare(self, cases: Sequence[tuple[str, bytes]]) -> None:
        self.enterContext(silent_tornado())  # it has a line for everything that it refuses
        with asyncio.Runner(loop_factory=type(self).new_loop) as runner:
            runner.run(self._compare_all(cases))

    async def _compare_all(self, cases: Sequence[tuple[str, bytes]]) -> None:
        servers = [Served(connect) for connect in (*TRANSPORTS.values(), None)]
        try:
            for start in range(0, len(cases), AT_ONCE):
                await asyncio.gather(*[self._compare(servers, seed, data)
                                       for seed, data in cases[start:start + AT_ONCE]])
        finally:
            for served in servers:
                await served.stop()

    async def _compare(self, servers: Sequence[Served], seed: str, data: bytes) -> None:
        random = Random(seed)
        cuts = [cut(data, random) for _ in servers]
        first, second, tornados = await asyncio.gather(*[
            served.talk(pieces, Random(seed)) for served, pieces in zip(servers, cuts)])
        try:
            self.assertEqual(first, second)
            self.assert_means_the_same(first, tornados)
        except Exception as error:
            raise AssertionError(
                f'{error}\nseed {seed!r}, cut {cuts} to\nours: {first}\nTornado: {tornados}'
            ) from error

    def assert_means_the_same(self, ours: Outcome, tornados: Outcome) -> None:
        """As far as both read, they read the same; who reads no further has refused, or closed."""
        answers = ours.answers()
        refusals = [answer for answer in answers if 'X-Refused' in answer.headers]
        self.assertEqual(len(answers) - len(refusals), len(ours.seen))
        for seen, tornado_seen, answer in zip(ours.seen, tornados.seen, answers):
            self.assertEqual(comparable(seen), comparable(tornado_seen))
            self.assertEqual(answer.status, seen.status)
        if len(ours.seen) < len(tornados.seen):
            # An unknown method is refused by a handler that streams before its body is there.
            if not ours.is_closed:
                self.assertEqual(tornados.seen[len(ours.seen)].status, 405)
            else:
                self.assertEqual(answers[-1].headers['Connection'], 'close')
        elif len(ours.seen) > len(tornados.seen):
            self.assertTrue(tornados.is_closed)
        if refusals:
            self.assertTrue(ours.is_closed)
            self.assertEqual(refusals, answers[-1:])
        self.assert_answers_the_same(ours, tornados)

    def assert_answers_the_same(self, ours: Outcome, tornados: Outcome) -> None:
        for seen, tornado_seen, answer, tornados_answer in zip(
                ours.seen, tornados.seen, ours.answers(), tornados.answers()):
            if not tornados_answer.is_delimited:
                break
            if seen == tornado_seen:  # else the echo differs
                self.assertEqual((answer.status, answer.body),
                                 (tornados_answer.status, tornados_answer.body))


class SameMeaningOnUvloopTest(SameMeaningTest):
    """The same on the event loop that the fast transport is for."""

    new_loop = uvloop.new_event_loop


def comparable(seen: Seen) -> Seen:
    """The same without what Tornado leaves for handlers to do: it takes the absolute form of a
    target as a path, and does not know that x-gzip is gzip (RFC 9110 section 8.4.1.3)."""
    headers = dict(seen.headers)
    lines = [(name, value) for name, value in seen.headers
             if name != 'X-Consumed-Content-Encoding']
    if headers.get('Content-Encoding', '').lower() == 'x-gzip':
        lines.remove(('Content-Encoding', headers['Content-Encoding']))
        seen = seen._replace(body=seen.body and gzip.decompress(seen.body))
    absolute = re.fullmatch('https?://([^/?]+)(.*)', seen.uri or '', re.IGNORECASE)
    if absolute:
        rest = absolute[2] if absolute[2].startswith('/') else f'/{absolute[2]}'
        lines = [line for line in lines if line[0] != 'Host'] + [('Host', absolute[1])]
        seen = seen._replace(uri=rest)
    # Whether the body of a method that there is none of is looked at depends on the handler.
    body = b'' if seen.status == 405 else seen.body
    return seen._replace(headers=tuple(sorted(lines)), status=0, body=body)


# --- One after the other ---


def on_uvloop(case: type[Case]) -> type[Case]:
    """Has the tests of a class run on uvloop, too, on the transport that is for it."""
    class OnUvloop(case):  # type: ignore[misc, valid-type]  # any class of tests

        @classmethod
        def setUpClass(cls) -> None:
            cls.addClassCleanup(asyncio.set_event_loop_policy, None)
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
            super().setUpClass()

    OnUvloop.__name__ = OnUvloop.__qualname__ = f'{case.__name__}OnUvloop'
    OnUvloop.__module__ = case.__module__
    setattr(sys.modules[case.__module__], OnUvloop.__name__, OnUvloop)
    return case


class EchoTestCase(unittest.IsolatedAsyncioTestCase):
    """A server on one transport."""

    async def asyncSetUp(self) -> None:
        self.enterContext(silent_tornado())  # it has a line for every handler that is cut off
        asyncio.get_running_loop().slow_callback_duration = DEADLINE  # tests may be slow
        self.served = Served(TRANSPORTS[support.transport], ROOMY)
        self.app, self.server = self.served.app, cast(HTTPServer, self.served.server)
        self.clients: list[Client] = []

    async def asyncTearDown(self) -> None:
        self.app.gate.set()
        for client in self.clients:
            await client.hang_up()
        # Nothing is left over, whatever the test did.
        await self.until(lambda: not self.server.connections)
        await self.served.stop()

    async def connect(self, data: bytes = b'', buffer_size: int = 0, reads: bool = True) -> Client:
        """A client that has sent something."""
        client = Client(self.served.port, buffer_size)
        self.clients.append(client)
        await client.connect(reads)
        await client.send(data)
        return client

    async def ask(self, *pieces: bytes) -> list[Answer]:
        """What comes for pieces that are sent with pauses between, until the server closes."""
        client = await self.connect()
        for piece in pieces:
            await client.send(piece)
            await asyncio.sleep(0.02)
        return await self.all_of(client)

    async def all_of(self, client: Client) -> list[Answer]:
        """All answers, when the server has closed."""
        await asyncio.wait_for(client.reading, DEADLINE)
        return Outcome(bytes(client.received), True, ()).answers()

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_still(self, measure: Callable[[], int]) -> int:
        """Returns what is measured when it does not change any more."""
        value, turns = measure(), 0
        while turns < 30:
            await asyncio.sleep(0.01)
            value, turns = measure(), turns + 1 if measure() == value else 0
        return value

    def events(self, name: str) -> int:
        return self.app.events.count(name)


@on_each_transport
@on_uvloop
class RequestTest(EchoTestCase):
    """What reaches a handler, and when."""

    async def test_a_body_is_given_to_a_handler_that_is_prepared_before_its_method_runs(
            self) -> None:
        body = b'x' * 100_000
        for framing, rest in (
                (b'Content-Length: 100000\r\n\r\n', body),
                (b'Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n', body),
                (b'Transfer-Encoding: chunked\r\n\r\n', b'186a0\r\n' + body + b'\r\n0\r\n\r\n')):
            for pieces in ([STREAM + framing + rest + END], [STREAM + framing, rest, END]):
                with self.subTest(framing, pieces=len(pieces)):
                    self.app.events.clear()
                    answers = await self.ask(*pieces)
                    self.assertEqual(json.loads(answers[0].body)['body'], body.decode())
                    events = [event for event, following in zip(
                        self.app.events, [*self.app.events[1:], '']) if event != following]
                    while events[3:5] == ['taken', 'data']:  # it may come in parts
                        del events[3:5]
                    self.assertEqual(events, ['prepare', 'prepared', 'data', 'taken', 'method'])

    async def test_a_request_without_a_body_gives_none(self) -> None:
        await self.ask(STREAM + b'\r\n' + END)
        self.assertEqual(self.app.events, ['prepare', 'prepared', 'method'])

    async def test_a_body_that_comes_behind_its_header_is_read(self) -> None:
        for target in (b'echo', b'stream'):
            start = b'PUT /%b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n' % target
            for pieces in ((start, b'hello', END), (start + b'he', b'llo' + END),
                           (start[:-1], b'\nhello' + END), (start + b'hello' + END[:9], END[9:])):
                with self.subTest(pieces):
                    first, second = await self.ask(*pieces)
                    self.assertEqual(json.loads(first.body)['body'], 'hello')
                    self.assertEqual(json.loads(second.body)['line'][1], '/echo?end')

    async def test_a_body_is_invited(self) -> None:
        client = await self.connect(HEAD + b'Expect: 100-continue\r\nContent-Length: 5\r\n\r\n')
        await self.until(lambda: client.received)
        await asyncio.sleep(0.03)
        self.assertEqual(client.received, b'HTTP/1.1 100 Continue\r\n\r\n')
        await client.send(b'hello' + END)
        first, _ = await self.all_of(client)
        self.assertEqual(json.loads(first.body)['body'], 'hello')

    async def test_a_connection_goes_on_behind_a_body_that_fills_its_buffer(self) -> None:
        for size in (READ_SIZE - 200, READ_SIZE, READ_SIZE + 1, 2 * READ_SIZE, 9 * READ_SIZE):
            for fields in (b'', b'Expect: 100-continue\r\n'):
                with self.subTest(size, fields=fields):
                    first, second = await self.ask(
                        HEAD + fields + b'Content-Length: %d\r\n\r\n' % size + b'x' * size, END)
                    self.assertEqual(len(json.loads(first.body)['body']), size)
                    self.assertEqual(second.status, 200)

    async def test_a_request_to_speak_another_protocol_is_served_as_any_other(self) -> None:
        for fields in (b'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n'
                       b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n',
                       b'Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n',
                       b'Upgrade: x\r\n', b'Connection: upgrade\r\n'):
            for body in (b'', b'hello'):
                with self.subTest(fields, body=body):
                    first, second = await self.ask(
                        HEAD + fields + b'Content-Length: %d\r\n\r\n' % len(body) + body + END)
                    self.assertEqual((first.status, second.status), (200, 200))
                    self.assertEqual(json.loads(first.body)['body'], body.decode())

    async def test_http_1_0_is_kept_alive_if_it_asks_for_that(self) -> None:
        start = b'POST /%b HTTP/1.0\r\n%bContent-Length: 5\r\n\r\nhello'
        kept = b'Connection: Keep-Alive\r\n'
        for target, field, said, count in (
                (b'echo', b'', 'close', 1), (b'echo', kept, 'keep-alive', 2),
                (b'stream', kept.lower(), 'keep-alive', 2),
                (b'pieces', kept, 'close', 1), (b'pieces', b'', 'close', 1)):
            with self.subTest(target, field=field):
                answers = await self.ask(start % (target, field) + END)
                self.assertEqual(len(answers), count)
                self.assertEqual(answers[0].headers['Connection'], said)
                self.assertNotIn('Transfer-Encoding', answers[0].headers)

    async def test_nothing_of_a_request_is_kept_when_it_has_been_answered(self) -> None:
        for target in (b'echo', b'slow', b'stream', b'pieces', b'none'):
            for fields in (b'Content-Length: 5', b'Expect: 100-continue\r\nContent-Length: 5'):
                with self.subTest(target, fields=fields):
                    client = await self.connect(
                        b'PUT /%b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\nhello' % (target, fields))
                    await self.until(lambda: b'HTTP/1.1 200' in client.received
                                     or b'HTTP/1.1 404' in client.received)
                    await asyncio.sleep(0.02)
                    gc.collect()
                    self.assertEqual(list(self.app.exchanges), [])
                    await client.hang_up()

    async def test_it_is_known_how_large_a_body_was_when_it_was_sent(self) -> None:
        zipped = gzip.compress(b'hello' * 100)
        start = b'PUT /size HTTP/1.1\r\nHost: x\r\n'
        for size, data in ((0, b'\r\n'), (5, b'Content-Length: 5\r\n\r\nhello'),
                           (5, b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n'),
                           (len(zipped), b'Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n'
                            % len(zipped) + zipped)):
            with self.subTest(data):
                first, _ = await self.ask(start + data + END)
                self.assertEqual(first.body, b'%d' % size)

    async def test_nothing_is_held_back_to_be_sent_with_more(self) -> None:
        await self.connect()
        await self.until(lambda: self.server.connections)
        connection, = self.server.connections
        self.assertTrue(connection.stream.socket.getsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY))


@on_each_transport
@on_uvloop
class PipelineTest(EchoTestCase):
    """Requests that do not wait for the answers to those before them."""

    async def test_the_second_is_not_begun_before_the_first_has_ended(self) -> None:
        for first in (b'GET /slow?1 HTTP/1.1\r\nHost: x\r\n\r\n',
                      b'PUT /slow?1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}',
                      b'PUT /slow?1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n'
                      b'2\r\n{}\r\n0\r\n\r\n'):
            with self.subTest(first):
                self.app.events.clear()
                await self.ask(first + first.replace(b'?1', b'?2') + first.replace(b'?1', b'?3')
                               + END)
                self.assertEqual(self.app.events, [
                    f'{event} {number}' for number in (1, 2, 3)
                    for event in ('made', 'began', 'ended', 'finished')])

    async def test_of_what_waits_only_a_little_is_fetched(self) -> None:
        one = (b'PUT /no-content HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n'
               + b'x' * 40_000)
        client = await self.connect(b'GET /slow?gate HTTP/1.1\r\nHost: x\r\n\r\n', 65_536)
        await self.until(lambda: self.events('began gate'))
        sending = asyncio.create_task(client.send(one * 150 + END))
        connection, = self.server.connections
        waiting = await self.until_still(lambda: len(connection.input.buffer))
        self.assertLessEqual(waiting, 6 * READ_SIZE)
        self.assertFalse(sending.done())
        self.app.gate.set()
        await sending
        answers = await self.all_of(client)
        self.assertEqual([answer.status for answer in answers], [200] + [204] * 150 + [200])

    async def test_who_hangs_up_while_much_waits_is_let_go(self) -> None:
        client = await self.connect(b'GET /slow?gate HTTP/1.1\r\nHost: x\r\n\r\n')
        await self.until(lambda: self.events('began gate'))
        await client.send(SMUGGLED * 5000)
        await client.hang_up()
        self.app.gate.set()
        await self.until(lambda: not self.server.connections)

    async def test_an_answer_that_closes_arrives_whatever_was_sent_behind_its_request(self) -> None:
        for target in (b'echo', b'slow', b'pieces'):
            for size in (1, 1000, 1_000_000):
                with self.subTest(target, size=size):
                    client = await self.connect()
                    await client.send(
                        b'GET /%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n' % target
                        + b'x' * size)
                    answer, = await self.all_of(client)
                    self.assertEqual(answer.status, 200)
                    self.assertFalse(client.was_reset)
                    await client.hang_up()

    async def test_a_refusal_arrives_whatever_was_sent_behind_it(self) -> None:
        for size in (1, 1000, 1_000_000):
            with self.subTest(size):
                client = await self.connect(b'GET / HTTP/3.0\r\n\r\n' + b'x' * size)
                answer, = await self.all_of(client)
                self.assertEqual(answer.status, 400)
                self.assertFalse(client.was_reset)
                await client.hang_up()


@on_each_transport
@on_uvloop
class StreamingTest(EchoTestCase):
    """Answers that are sent while they are made."""

    async def test_a_handler_waits_for_a_client_that_does_not_read(self) -> None:
        self.served.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        client = await self.connect(
            b'GET /endless HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', 65_536, reads=False)
        pieces = await self.until_still(lambda: self.events('flushed'))
        self.assertLess(pieces, BIG_PIECES / 4)
        client.read()
        answer, = await self.all_of(client)
        self.assertEqual(answer.body, BIG_PIECE * BIG_PIECES)

    async def test_a_connection_goes_on_behind_an_answer_that_was_waited_for(self) -> None:
        self.served.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        client = await self.connect(
            b'GET /endless HTTP/1.1\r\nHost: x\r\n\r\n' + SMUGGLED, 65_536, reads=False)
        await self.until_still(lambda: self.events('flushed'))
        client.read()
        await client.send(END)
        self.assertEqual([answer.status for answer in await self.all_of(client)], [200, 404, 200])

    async def test_no_answer_is_longer_or_shorter_than_it_says(self) -> None:
        for length, body in ((3, b'he'), (4, b'he'), (6, b'hello'), (99, b'hello')):
            for version in (b'1.1', b'1.0'):
                with self.subTest(length, version=version):
                    client = await self.connect(
                        b'GET /length?%d HTTP/%b\r\nHost: x\r\nConnection: keep-alive\r\n\r\n'
                        % (length, version) + SMUGGLED)
                    answer, = await self.all_of(client)
                    self.assertEqual(answer.body, body)
        first, second, _ = await self.ask(
            b'GET /length?5 HTTP/1.1\r\nHost: x\r\n\r\n' + SMUGGLED + END)
        self.assertEqual((first.body, second.status), (b'hello', 404))

    async def test_no_body_is_sent_with_an_interim_status(self) -> None:
        client = await self.connect(b'GET /interim HTTP/1.1\r\nHost: x\r\n\r\n' + END)
        await asyncio.wait_for(client.reading, DEADLINE)
        head, _, rest = bytes(client.received).partition(b'\r\n\r\n')
        self.assertRegex(head, rb'^HTTP/1.1 103 ')
        self.assertNotIn(b'Transfer-Encoding', head)
        self.assertEqual(first_answer(rest)[0].status, 200)

    async def test_a_client_that_reads_slowly_gets_all(self) -> None:
        client = await self.connect(
            b'GET /endless HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', 65_536, reads=False)
        for _ in range(20):
            client.received += await client.loop.sock_recv(client.socket, 20_000)
            await asyncio.sleep(0.005)
        client.read()
        answer, = await self.all_of(client)
        self.assertEqual(len(answer.body), READ_SIZE * BIG_PIECES)


@on_each_transport
@on_uvloop
class GoneTest(EchoTestCase):
    """A client that goes, and a handler that fails."""

    async def test_a_handler_is_told_once_that_its_client_has_gone(self) -> None:
        for data in (b'GET /slow?gate HTTP/1.1\r\nHost: x\r\n\r\n',
                     b'GET /slow?gate HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n',
                     b'PUT /slow?gate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}'):
            for hang_up in ('close', 'half-close'):
                with self.subTest(data, hang_up=hang_up):
                    self.app.events.clear()
                    self.app.gate.clear()
                    client = await self.connect(data)
                    await self.until(lambda: self.events('began gate'))
                    self.assertEqual(self.events('closed'), 0)
                    client.socket.shutdown(socket.SHUT_WR)
                    if hang_up == 'close':
                        await client.hang_up()
                    await self.until(lambda: not self.server.connections)
                    self.app.gate.set()
                    await self.until(lambda: self.events('ended gate'))
                    await asyncio.sleep(0.02)
                    self.assertEqual(self.events('closed'), 1)

    async def test_a_handler_whose_answer_has_been_sent_is_not_told_that_its_client_goes(
            self) -> None:
        client = await self.connect(b'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n')
        await self.until(lambda: client.received)
        await client.hang_up()
        await self.until(lambda: not self.server.connections)
        self.assertEqual(self.events('closed'), 0)

    async def test_a_client_may_go_while_a_handler_prepares(self) -> None:
        for query in (b'', b'?gate'):
            for fields in (b'', b'Expect: 100-continue\r\n'):
                with (self.subTest(query, fields=fields),
                      self.assertNoLogs('asyncio', logging.ERROR)):
                    self.app.gate.clear()
                    self.app.events.clear()
                    client = await self.connect(
                        STREAM.replace(b'stream', b'stream' + query) + fields
                        + b'Content-Length: 5\r\n\r\nhello')
                    await self.until(lambda: self.events('prepare'))
                    await client.hang_up()
                    await self.until(lambda: self.events('prepared'))
                    if query:  # then it goes on for long enough to be told
                        await self.until(lambda: self.events('closed'))
                    self.app.gate.set()
                    await self.until(lambda: not self.server.connections)
                    await asyncio.sleep(0.02)
                    self.assertLessEqual(self.events('closed'), 1)

    async def test_a_handler_is_told_that_its_client_has_gone_while_it_waits_for_it(self) -> None:
        client = await self.connect(
            b'GET /endless HTTP/1.1\r\nHost: x\r\n\r\n', 65_536, reads=False)
        await self.until_still(lambda: self.events('flushed'))
        await client.hang_up()
        await self.until(lambda: self.events('closed'))
        await self.until(lambda: not self.server.connections)
        self.assertEqual(self.events('closed'), 1)

    async def test_a_connection_may_be_closed_as_soon_as_it_is_made(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            connection = TRANSPORTS[support.transport](self.server, ours, '192.0.2.1')
            self.server.connections[connection] = None
            connection.close()
            async with asyncio.timeout(DEADLINE):
                self.assertEqual(
                    await asyncio.get_running_loop().sock_recv(theirs, 1), b'')

    async def test_who_says_that_no_more_comes_after_its_answer_is_let_go(self) -> None:
        client = await self.connect(SMUGGLED)
        await self.until(lambda: client.received)
        client.socket.shutdown(socket.SHUT_WR)
        answer, = await self.all_of(client)
        self.assertEqual(answer.status, 404)

    async def test_a_handler_that_cannot_be_made_closes_its_connection_and_no_other(self) -> None:
        broken = b'GET /broken HTTP/1.1\r\nHost: x\r\n%b\r\n'
        for before, fields in ((b'', b''), (SMUGGLED, b''),
                               (b'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n', b''),
                               (b'', b'Upgrade: x\r\n'), (SMUGGLED, b'Upgrade: x\r\n')):
            with self.subTest(before, fields=fields):
                with self.assertLogs('asyncio', logging.ERROR) as logged:
                    answers = await self.ask(before + broken % fields + END)
                    await self.until(lambda: not self.server.connections)
                self.assertEqual(len(answers), bool(before))
                self.assertIn('There is no handler', str(logged.records[0].exc_info))
                self.assertEqual((await self.ask(END))[0].status, 200)

    async def test_a_handler_that_chokes_on_a_body_closes_its_connection_and_no_other(
            self) -> None:
        for query in (b'now', b'later'):
            start = b'PUT /choking?%b HTTP/1.1\r\nHost: x\r\n' % query
            for data in (start + b'Content-Length: 2\r\n\r\n{}',
                         start + b'Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n'):
                for before in (b'', SMUGGLED):
                    with self.subTest(data, before=before):
                        with self.assertLogs('asyncio', logging.ERROR) as logged:
                            answers = await self.ask(before + data + END)
                            await self.until(lambda: not self.server.connections)
                        self.assertEqual(len(answers), bool(before))
                        self.assertIn('I cannot take it', str(logged.records[0].exc_info))
                        self.assertEqual((await self.ask(END))[0].status, 200)


if __name__ == '__main__':
    unittest.main()

"""Connections: slow, silent, greedy or gone clients, many at once, and answers of any size."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gzip
import http.client
import io
import json
import logging
import math
import re
import socket
import struct
import sys
import tempfile
import termios
import time
import unittest
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tornado.netutil import bind_sockets

from addrservice.database import addressbook_db
from addrservice.database.memory_db import InMemoryAddressBookDB
from addrservice.database.records import Key, Record, Stored, new_version
from addrservice.datamodel import AddressEntry
from addrservice.errors import StorageError, StorageUnavailable
from addrservice.tornado import framing
from addrservice.tornado.addressbook import BUFFER_SIZE
from addrservice.tornado.app import make_addrservice_app
from addrservice.tornado.connection import MAX_UNSENT, HTTPServer
from addrservice.tornado.listening import limits_of
from addrservice.tornado.serving import TRANSPORTS
from addrservice.utils import logutils
from tests import support
from tests.support import (
    DEADLINE, Answer, ServerProcess, on_each_transport, parse_logfmt, read_to_end,
    recording_logger, split_answers)

Document = dict[str, Any]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SECRET = '/srv/secret: the dog ate it'
"""What no client may read."""

CLOSE = 'Connection: close'
MB = 1024 * 1024


def taken(sending: socket.socket) -> int:
    """Bytes that the system has taken and that have not arrived."""
    count = array.array('i', [0])
    fcntl.ioctl(sending, termios.TIOCOUTQ, count)
    return count[0]


class GatedDB(InMemoryAddressBookDB):
    """The memory engine, but reads and writes of one entry wait at a gate, and fail if told to."""

    page_size = 50

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.error: BaseException | None = None
        self.pages_before_error = 0
        self.turns: list[int] = []
        """How often others had their turn, before each page."""

        self.count_turns: Callable[[], int] = int
        self.contexts: list[tuple[object, object]] = []
        """Request ids in the log's context before the gate and behind it."""

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        await self._pass()
        return await super().create_address(entry, nickname, version)

    async def read_address(self, nickname: str) -> Stored:
        await self._pass()
        return await super().read_address(nickname)

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        left = self.pages_before_error
        async for page in super().read_pages(after, size):
            if self.error and left == 0:
                raise self.error
            left -= 1
            self.turns.append(self.count_turns())
            yield page

    async def _pass(self) -> None:
        before = logutils.get_log_context().get('req_id')
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        self.contexts.append((before, logutils.get_log_context().get('req_id')))
        if self.error:
            raise self.error


class ServerTestCase(unittest.IsolatedAsyncioTestCase):
    """A server in this process, whose engine does what a test wants."""

    settings: ClassVar[Document] = {}
    shows_traces = False

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = DEADLINE  # tests may be slow
        self.logger, self.records = recording_logger()
        self.service, self.app = make_addrservice_app(
            {'server': self.settings}, self.shows_traces, self.logger)
        self.db = self.service.addr_db = GatedDB(self.logger)
        await self.service.start()
        self.server = HTTPServer(
            self.app, self.app.refuse, limits_of(self.service.config['server']),
            self.app.telemetry.connection_refused, TRANSPORTS[support.transport])
        sockets = bind_sockets(0, '127.0.0.1')
        self.server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.writers: list[asyncio.StreamWriter] = []

    async def asyncTearDown(self) -> None:
        self.db.gate.set()
        for writer in self.writers:
            writer.close()
        # Nothing is left over, whatever the test did.
        await self.until(lambda: not self.server.connections)
        await asyncio.wait_for(self.app.admission.until_idle(), DEADLINE)
        self.server.stop()
        await self.service.stop()

    # --- The client ---

    async def connect(self) -> Streams:
        reader, writer = await asyncio.open_connection('127.0.0.1', self.port, limit=16 * MB)
        self.writers.append(writer)
        return reader, writer

    async def send(self, data: bytes) -> Streams:
        """Sends bytes on a new connection."""
        reader, writer = await self.connect()
        writer.write(data)
        return reader, writer

    async def exchange(self, data: bytes) -> bytes:
        """Sends bytes and returns all that comes until the server closes."""
        reader, writer = await self.send(data)
        return await read_all(reader, writer)

    async def ask(self, data: bytes) -> Answer:
        """The only answer to a request that closes its connection."""
        answer, = split_answers(await self.exchange(data))
        return answer

    # --- The log ---

    def lines(self, message: str = 'RESPONSE') -> list[Document]:
        """The lines with this message so far, with their level."""
        lines = [{'level': record.levelname, **parse_logfmt(record.getMessage())}
                 for record in self.records]
        return [line for line in lines if line['message'] == message]

    async def only_line(self) -> Document:
        """The one line that was logged, or will be in a moment."""
        await self.until(self.lines)
        await asyncio.sleep(0)
        line, = self.lines()
        return line

    async def until(self, condition: Callable[[], object]) -> None:
        """Returns when the condition holds."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_gone(self) -> None:
        """Returns when the server has no connection left."""
        await self.until(lambda: not self.server.connections)

    # --- The store ---

    def fill(self, count: int) -> Document:
        """Adds entries of some 500 bytes, and returns the listing that they make."""
        for number in range(count):
            self.put(number, 500)
        return {nickname: json.loads(record.text)
                for nickname, record in self.db.records.items()}

    def put(self, number: int, size: int) -> None:
        self.put_text(f'{number:032x}', json.dumps({'full_name': 'x' * size}))

    def put_text(self, nickname: str, text: str) -> None:
        self.db.records[nickname] = Record(nickname, new_version(), text, nickname)

    def assert_error(self, answer: Answer, status: int) -> Document:
        """It is an error document, and tells nothing that it should not."""
        document: Document = answer.json()
        self.assertEqual((answer.status, document['code']), (status, status))
        self.assertEqual(document['req_id'], answer.headers['X-Request-ID'])
        self.assertNotIn('trace', document)
        self.assertNotIn(SECRET.encode(), answer.body)
        self.assertNotIn(b'Traceback', answer.body)
        return document


@on_each_transport
class TimeoutTest(ServerTestCase):
    """Who is slow is cut off; who is not, is not."""

    settings = {'header-timeout': 0.4, 'body-timeout': 0.5, 'idle-timeout': 0.6}

    async def test_a_header_that_comes_byte_by_byte_gets_a_408(self) -> None:
        await self.assert_times_out(b'', b'GET /healthz HTTP/1.1\r\nX: ' + b'a' * 1000, '-', 0.4)

    async def test_a_request_line_without_its_header_gets_a_408(self) -> None:
        await self.assert_times_out(b'GET /addresses HTTP/1.1\r\nHost: x\r\n', b'', '-', 0.4)

    async def test_a_body_that_stops_gets_a_408(self) -> None:
        await self.assert_times_out(
            request('POST', '/addresses', 'Content-Length: 5') + b'{}', b'', '/addresses', 0.5)

    async def test_a_body_that_comes_byte_by_byte_gets_a_408(self) -> None:
        await self.assert_times_out(
            request('POST', '/addresses', 'Content-Length: 5000'), b' ' * 4999, '/addresses', 0.5)

    async def test_a_chunked_body_that_stops_gets_a_408(self) -> None:
        bodies = (b'', b'5', b'5\r\n', b'5\r\nhello', b'5\r\nhello\r\n', b'0\r\n',
                  b'0\r\nX: y\r\n', b'2\r\n{}\r\n0\r\n\r')
        start = request('POST', '/addresses', 'Transfer-Encoding: chunked')
        for answer in await asyncio.gather(*[self.ask(start + body) for body in bodies]):
            self.assert_error(answer, 408)
        self.assertEqual([line['status'] for line in self.lines()], [408] * len(bodies))

    async def test_a_chunked_body_that_never_ends_gets_a_408(self) -> None:
        await self.assert_times_out(
            request('POST', '/addresses', 'Transfer-Encoding: chunked'), b'1\r\n \r\n' * 500,
            '/addresses', 0.5, step=6)

    async def test_who_goes_on_sending_behind_the_408_can_read_it(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.create_connection(('127.0.0.1', self.port)) as connection:
            connection.setblocking(False)
            for _ in range(45):
                await loop.sock_sendall(connection, b'a')  # fails if the answer is thrown away
                await asyncio.sleep(0.02)
            answer, = split_answers(await loop.sock_recv(connection, 65_536))
        self.assert_error(answer, 408)

    async def test_who_is_invited_to_send_a_body_and_does_not_gets_a_408(self) -> None:
        data = await self.exchange(request(
            'POST', '/addresses', 'Content-Length: 5', 'Expect: 100-continue'))
        self.assertEqual(re.findall(rb'HTTP/1.1 (\d+)', data), [b'100', b'408'])
        self.assertEqual((await self.only_line())['status'], 408)

    async def test_a_connection_that_says_nothing_is_closed_without_a_word(self) -> None:
        start = time.monotonic()
        self.assertEqual(await self.exchange(b''), b'')
        self.assertGreaterEqual(time.monotonic() - start, 0.55)
        self.assertEqual(self.lines(), [])

    async def test_an_idle_connection_is_closed_without_a_word(self) -> None:
        data = await self.exchange(request('GET', '/addresses'))
        self.assertEqual([answer.status for answer in split_answers(data)], [200])
        self.assertEqual(len(self.lines()), 1)

    async def test_each_request_has_the_whole_time(self) -> None:
        reader, writer = await self.connect()
        for _ in range(4):
            for part in (b'POST /addresses HTTP/1.1\r\nHost: x\r\n', b'Content-Length: 2\r\n\r\n',
                         b'{}'):
                await asyncio.sleep(0.1)
                writer.write(part)
            self.assertEqual((await read_answer(reader)).status, 400)

    async def test_time_outs_do_not_bound_the_work_on_a_request(self) -> None:
        self.db.gate.clear()
        waiting = asyncio.create_task(self.ask(request('GET', '/addresses/a', CLOSE)))
        await asyncio.sleep(0.8)
        self.db.gate.set()
        self.assertEqual((await waiting).status, 404)

    async def assert_times_out(self, start: bytes, slow: bytes, uri: str, seconds: float,
                               step: int = 1) -> None:
        """Sends the start at once, the rest in steps, and is cut off; others are served."""
        began = time.monotonic()
        reader, writer = await self.send(start)
        answering = asyncio.create_task(read_all(reader, writer))
        for position in range(0, len(slow), step):
            if answering.done():
                break
            writer.write(slow[position:position + step])
            await asyncio.sleep(0.02)
        self.assertEqual((await self.ask(request('GET', '/healthz', CLOSE))).status, 200)
        answer, = split_answers(await answering)
        self.assertGreaterEqual(time.monotonic() - began, seconds * 0.9)
        self.assertLess(time.monotonic() - began, seconds + 5)
        self.assert_error(answer, 408)
        self.assertEqual(answer.headers['Connection'], 'close')
        line, = [line for line in self.lines() if line['status'] == 408]
        self.assertEqual((line['uri'], line['level'], line['req_id']),
                         (uri, 'WARNING', answer.headers['X-Request-ID']))
        self.assertEqual(len(self.lines()), 2)


@on_each_transport
class HangUpTest(ServerTestCase):
    """A client that goes before it has its answer leaves one line, and nothing else."""

    settings = {'request-timeout': 60}

    async def test_in_the_middle_of_a_request(self) -> None:
        for data, method, uri in (
                (b'G', '-', '-'), (b'GET /addresses HTTP/1.1\r\nHost: x\r\n', '-', '-'),
                (request('POST', '/addresses', 'Content-Length: 9') + b'{}', 'POST', '/addresses'),
                (request('POST', '/addresses', 'Transfer-Encoding: chunked') + b'5\r\nhe',
                 'POST', '/addresses')):
            for hang_up in (close, half_close, reset):
                with self.subTest(data, hang_up=hang_up.__name__):
                    self.records.clear()
                    _, writer = await self.send(data)
                    await self.until(lambda: self.server.connections)
                    await writer.drain()
                    hang_up(writer)
                    await self.assert_one_499(method, uri)

    async def test_while_the_answer_is_made(self) -> None:
        for hang_up in (close, reset):
            with self.subTest(hang_up=hang_up.__name__):
                self.records.clear()
                self.db.gate.clear()
                _, writer = await self.send(request('GET', '/addresses/a'))
                await self.until(lambda: self.db.waiting)
                hang_up(writer)
                await self.until_gone()
                self.db.gate.set()
                await self.assert_one_499('GET', '/addresses/a')

    async def test_as_soon_as_it_has_asked(self) -> None:
        for hang_up in (close, half_close):
            with self.subTest(hang_up=hang_up.__name__):
                self.records.clear()
                self.db.gate.clear()
                _, writer = await self.connect()
                await self.until(lambda: self.server.connections)
                writer.write(request('GET', '/addresses/a'))
                hang_up(writer)
                await self.until(lambda: self.db.waiting)
                await self.until_gone()  # while the store is still at it
                self.db.gate.set()
                await self.assert_one_499('GET', '/addresses/a')

    async def test_at_the_very_moment_of_the_answer(self) -> None:
        self.db.gate.clear()
        await self.send(request('GET', '/addresses/a'))
        await self.until(lambda: self.db.waiting)
        connection, = self.server.connections
        self.db.gate.set()
        connection.stream.close()  # as when the client's end is read, just before its answer
        await self.assert_one_499('GET', '/addresses/a')

    async def test_while_an_entry_is_made_which_is_there_whole(self) -> None:
        self.db.gate.clear()
        body = b'{"full_name": "Asha Example"}'
        _, writer = await self.send(
            request('POST', '/addresses', f'Content-Length: {len(body)}') + body)
        await self.until(lambda: self.db.waiting)
        close(writer)
        await self.until_gone()
        self.db.gate.set()
        await self.assert_one_499('POST', '/addresses')
        self.assertEqual([entry.document async for entry in self.service.get_all_addresses()],
                         [json.loads(body)])

    async def test_in_the_middle_of_a_listing(self) -> None:
        self.fill(20_000)
        for version in ('HTTP/1.1', 'HTTP/1.0'):
            for hang_up in (close, reset):
                with self.subTest(version, hang_up=hang_up.__name__):
                    self.records.clear()
                    reader, writer = await self.send(
                        request('GET', '/addresses', version=version))
                    await reader.readexactly(1000)
                    hang_up(writer)
                    await self.assert_one_499('GET', '/addresses')

    async def test_between_two_requests(self) -> None:
        for hang_up in (close, half_close, reset):
            with self.subTest(hang_up=hang_up.__name__):
                self.records.clear()
                reader, writer = await self.send(request('GET', '/addresses'))
                await read_answer(reader)
                hang_up(writer)
                await self.until_gone()
                self.assertEqual((await self.only_line())['status'], 200)

    async def test_before_any_request(self) -> None:
        for hang_up in (close, half_close, reset):
            with self.subTest(hang_up=hang_up.__name__):
                _, writer = await self.connect()
                await self.until(lambda: self.server.connections)
                hang_up(writer)
                await self.until_gone()
                self.assertEqual(self.records, [])

    async def test_with_more_requests_in_the_pipeline(self) -> None:
        for hang_up in (close, reset):
            with self.subTest(hang_up=hang_up.__name__):
                self.records.clear()
                self.db.gate.clear()
                _, writer = await self.send(request('GET', '/addresses/a') * 3)
                await self.until(lambda: self.db.waiting)
                hang_up(writer)
                await asyncio.sleep(0.02)
                self.db.gate.set()
                await self.until_gone()
                await self.app.admission.until_idle()
                # How many were begun is a matter of time; each of them has its line.
                statuses = [line['status'] for line in self.lines()]
                self.assertIn(len(statuses), (1, 2, 3))
                self.assertLessEqual(set(statuses), {404, 499})

    async def assert_one_499(self, method: str, uri: str) -> None:
        await self.until_gone()
        line = await self.only_line()
        self.assertEqual(
            {key: line[key] for key in ('level', 'status', 'reason', 'method', 'uri')},
            {'level': 'WARNING', 'status': 499, 'reason': 'Client Closed Request',
             'method': method, 'uri': uri})
        self.assertNotIn('trace', line)
        self.assertEqual([record for record in self.records if record.levelno >= logging.ERROR], [])


@on_each_transport
class KeepAliveTest(ServerTestCase):
    """Several requests on one connection."""

    async def test_http_1_1_goes_on(self) -> None:
        reader, writer = await self.connect()
        for status, target in ((200, '/addresses'), (404, '/x'), (200, '/healthz')):
            writer.write(request('GET', target))
            answer = await read_answer(reader)
            self.assertEqual((answer.status, answer.headers['Connection']), (status, None))

    async def test_http_1_0_goes_on_if_asked_to(self) -> None:
        reader, writer = await self.connect()
        for fields, said in ((['Connection: keep-alive'], 'keep-alive'), ([], 'close')):
            writer.write(request('GET', '/addresses', *fields, version='HTTP/1.0'))
            answer = await read_answer(reader)
            self.assertEqual((answer.headers['Connection'], answer.body), (said, b'{}'))
        self.assertEqual(await reader.read(), b'')

    async def test_connection_close_is_obeyed_and_said(self) -> None:
        for option in ('close', 'Close', 'x, close'):
            answer = await self.ask(request('GET', '/x', f'Connection: {option}')
                                    + request('GET', '/smuggled'))
            self.assertEqual((answer.status, answer.headers['Connection']), (404, 'close'))
        self.assertEqual({line['uri'] for line in self.lines()}, {'/x'})

    async def test_pipelined_requests_are_answered_in_order_however_long_one_takes(self) -> None:
        self.db.gate.clear()
        reader, _ = await self.send(
            request('GET', '/addresses/a', 'X-Request-ID: 1')
            + request('GET', '/healthz', 'X-Request-ID: 2')
            + request('GET', '/x', 'X-Request-ID: 3', CLOSE))
        await self.until(lambda: self.db.waiting)
        self.assertEqual(self.lines(), [])
        self.db.gate.set()
        answers = split_answers(await reader.read())
        self.assertEqual([(answer.status, answer.headers['X-Request-ID']) for answer in answers],
                         [(404, '1'), (200, '2'), (404, '3')])
        self.assertEqual([line['req_id'] for line in self.lines()], ['1', '2', '3'])

    async def test_more_than_a_buffer_in_the_pipeline_waits_its_turn(self) -> None:
        self.db.gate.clear()
        body = b'{"full_name": "Asha"}'.ljust(60_000)
        one = request('POST', '/addresses', f'Content-Length: {len(body)}') + body
        reader, _ = await self.send(one * 12 + request('GET', '/healthz', CLOSE))
        await self.until(lambda: self.db.waiting)
        await asyncio.sleep(0.1)  # for what has been sent to arrive
        self.db.gate.set()
        answers = split_answers(await reader.read())
        self.assertEqual([answer.status for answer in answers], [201] * 12 + [200])

    async def test_others_have_their_turn_however_small_the_chunks_are(self) -> None:
        turns = [0]
        others = asyncio.create_task(take_turns(turns))
        turns_by_chunk: list[int] = []

        def parse_and_count(line: bytes) -> int:
            turns_by_chunk.append(turns[0])
            return framing.parse_chunk_size(line)

        with mock.patch('addrservice.tornado.reader.framing', wraps=framing) as watched:
            watched.parse_chunk_size = parse_and_count
            answer = await self.ask(
                request('POST', '/addresses', 'Transfer-Encoding: chunked', CLOSE)
                + b'1\r\n \r\n' * 5_000 + b'0\r\n\r\n')
        others.cancel()
        self.assertEqual((answer.status, len(turns_by_chunk)), (400, 5_001))
        self.assertLess(max(Counter(turns_by_chunk).values()), 1000)

    async def test_no_request_sees_another_ones_log_context(self) -> None:
        self.db.gate.clear()
        streams = [await self.send(request('GET', '/addresses/a', f'X-Request-ID: {name}-1')
                                   + request('GET', '/addresses/a', f'X-Request-ID: {name}-2',
                                             CLOSE)) for name in 'abc']
        await self.until(lambda: self.db.waiting == 3)
        self.db.gate.set()
        for reader, _ in streams:
            self.assertEqual(len(split_answers(await reader.read())), 2)
        ids = [f'{name}-{number}' for name in 'abc' for number in (1, 2)]
        self.assertEqual(sorted(self.db.contexts), [(req_id, req_id) for req_id in ids])
        self.assertEqual(sorted(line['req_id'] for line in self.lines()), ids)

    async def test_a_line_of_the_engine_carries_the_id_of_its_request(self) -> None:
        self.put_text('a', 'not JSON')
        await self.ask(request('GET', '/addresses', 'X-Request-ID: one', CLOSE))
        line, = self.lines('UNREADABLE RECORD')
        self.assertEqual(('one', 'ERROR', 'memory:a'),
                         (line['req_id'], line['level'], line['record']))

    async def test_nothing_of_a_request_stays_in_the_context_of_the_server(self) -> None:
        await self.ask(request('GET', '/addresses', CLOSE))
        self.assertEqual(dict(logutils.get_log_context()), {})


@on_each_transport
class ListingTest(ServerTestCase):
    """An answer of any size."""

    async def test_a_small_listing_is_sent_whole(self) -> None:
        documents = self.fill(3)
        answer = await self.ask(request('GET', '/addresses', CLOSE))
        self.assertEqual(answer.headers['Content-Length'], str(len(answer.body)))
        self.assertRegex(answer.headers['Etag'], '^"[^"]+"$')
        self.assertNotIn('Transfer-Encoding', answer.headers)
        self.assertEqual(list(answer.json().items()), list(documents.items()))

    async def test_a_large_listing_is_streamed_in_order(self) -> None:
        documents = self.fill(1000)
        answer = await self.ask(request('GET', '/addresses', CLOSE))
        self.assert_streamed(answer)
        self.assertEqual(list(answer.json().items()), list(documents.items()))
        line = await self.only_line()
        self.assertEqual((line['status'], line['bytes']), (200, len(answer.body)))

    async def test_what_fits_one_buffer_is_sent_whole_and_one_more_is_not(self) -> None:
        count, around = 200, len('{"":{"full_name":""},') + 32 - 1
        sizes = [BUFFER_SIZE // count - around] * count
        sizes[-1] += BUFFER_SIZE % count - 1
        for number, size in enumerate(sizes):
            self.put(number, size)
        whole = await self.ask(request('GET', '/addresses', CLOSE))
        self.assertEqual(len(whole.body), BUFFER_SIZE)
        self.assertIn('Etag', whole.headers)
        self.put(number, size + 1)
        streamed = await self.ask(request('GET', '/addresses', CLOSE))
        self.assertEqual(len(streamed.body), BUFFER_SIZE + 1)
        self.assert_streamed(streamed)

    async def test_a_connection_goes_on_behind_a_streamed_listing(self) -> None:
        documents = self.fill(300)
        answers = split_answers(await self.exchange(
            request('GET', '/addresses') * 2 + request('GET', '/healthz', CLOSE)))
        self.assertEqual([answer.status for answer in answers], [200, 200, 200])
        self.assertEqual([answer.json() for answer in answers[:2]], [documents] * 2)

    async def test_to_http_1_0_a_large_listing_ends_with_the_connection(self) -> None:
        documents = self.fill(300)
        for fields in ([], ['Connection: keep-alive']):
            answer = await self.ask(request('GET', '/addresses', *fields, version='HTTP/1.0'))
            self.assertEqual(answer.headers['Connection'], 'close')
            self.assertNotIn('Transfer-Encoding', answer.headers)
            self.assertNotIn('Content-Length', answer.headers)
            self.assertEqual(answer.json(), documents)

    async def test_head_of_a_large_listing_has_no_body(self) -> None:
        self.fill(300)
        for version in ('HTTP/1.1', 'HTTP/1.0'):
            with self.subTest(version):
                data = await self.exchange(
                    request('HEAD', '/addresses', 'Connection: keep-alive', version=version)
                    + request('GET', '/healthz', CLOSE, version=version))
                head, rest = data.split(b'\r\n\r\n', 1)
                self.assertRegex(head, rb'^HTTP/1.1 200 OK\r\n')
                self.assertNotRegex(head, b'(?i)content-length|etag')
                self.assertIn('uptime', split_answers(rest)[0].json())

    async def test_others_have_their_turn_however_fast_a_listing_is_read(self) -> None:
        self.fill(5000)
        turns = [0]
        others = asyncio.create_task(take_turns(turns))
        self.db.count_turns = lambda: turns[0]
        with ThreadPoolExecutor(1) as pool, mock.patch.object(addressbook_db, 'TURN_SECONDS', 0):
            await asyncio.get_running_loop().run_in_executor(pool, self.read_fast)
        others.cancel()
        # Two pages at most come in one go: each look at the clock finds that it is time.
        pages = math.ceil(5000 / addressbook_db.WALK_SIZE)
        self.assertEqual(len(self.db.turns), pages)
        self.assertGreaterEqual(len(set(self.db.turns)), pages / 2)

    def read_fast(self) -> None:
        with socket.create_connection(('127.0.0.1', self.port), timeout=DEADLINE) as connection:
            connection.sendall(request('GET', '/addresses', CLOSE))
            read_to_end(connection)

    async def test_a_client_that_has_all_but_one_entry_gets_a_new_tag(self) -> None:
        self.fill(3)
        before, same = [await self.ask(request('GET', '/addresses', CLOSE)) for _ in range(2)]
        self.put(0, 5)
        after = await self.ask(request(
            'GET', '/addresses', CLOSE, f'If-None-Match: {before.headers["Etag"]}'))
        self.assertEqual(before.headers['Etag'], same.headers['Etag'])
        self.assertNotEqual(before.headers['Etag'], after.headers['Etag'])
        self.assertEqual(after.status, 200)

    async def test_answers_are_compressed_for_who_can_read_that(self) -> None:
        for count, version in ((10, 'HTTP/1.1'), (300, 'HTTP/1.1'), (300, 'HTTP/1.0')):
            with self.subTest(count, version=version):
                await self.service.start()  # empties the store
                documents = self.fill(count)
                answer = await self.ask(request(
                    'GET', '/addresses', CLOSE, 'Accept-Encoding: br, gzip', version=version))
                self.assertEqual(answer.headers['Content-Encoding'], 'gzip')
                self.assertEqual(answer.headers['Vary'], 'Accept-Encoding')
                self.assertLess(len(answer.body), 500 * count / 10)
                self.assertEqual(json.loads(gzip.decompress(answer.body)), documents)

    async def test_answers_are_not_compressed_for_others(self) -> None:
        documents = self.fill(10)
        for fields in ([], ['Accept-Encoding: br'], ['Accept-Encoding: identity']):
            answer = await self.ask(request('GET', '/addresses', CLOSE, *fields))
            self.assertNotIn('Content-Encoding', answer.headers)
            self.assertEqual(answer.headers['Vary'], 'Accept-Encoding')
            self.assertEqual(answer.json(), documents)

    async def test_head_and_304_have_no_body_when_compressed(self) -> None:
        self.fill(10)
        accept = 'Accept-Encoding: gzip'
        tag = (await self.ask(request('GET', '/addresses', accept, CLOSE))).headers['Etag']
        for method, field in (('HEAD', 'X: y'), ('GET', f'If-None-Match: {tag}')):
            data = await self.exchange(request(method, '/addresses', accept, field, CLOSE))
            self.assertEqual(data.partition(b'\r\n\r\n')[2], b'', method)

    async def test_a_compressed_body_is_read(self) -> None:
        body = gzip.compress(b'{"full_name": "Asha Example"}')
        answer = await self.ask(request(
            'POST', '/addresses', 'Content-Encoding: gzip', 'Accept-Encoding: gzip', CLOSE,
            f'Content-Length: {len(body)}') + body)
        self.assertEqual(answer.status, 201)
        answer = await self.ask(request('GET', answer.headers['Location'], CLOSE))
        self.assertEqual(answer.json(), {'full_name': 'Asha Example'})

    def assert_streamed(self, answer: Answer) -> None:
        self.assertEqual(answer.headers['Transfer-Encoding'], 'chunked')
        self.assertNotIn('Content-Length', answer.headers)
        self.assertNotIn('Etag', answer.headers)
        self.assertEqual(answer.headers['Content-Type'], 'application/json; charset=UTF-8')


@on_each_transport
class FailureTest(ServerTestCase):
    """An answer that cannot be given does not look like one."""

    ERRORS = ((StorageError('It failed', SECRET), 500, 'Internal Server Error'),
              (StorageUnavailable('Not now', SECRET), 503, 'Service Unavailable'))

    async def test_a_store_that_fails_is_reported_in_the_answer_and_in_one_line(self) -> None:
        self.fill(3)
        for error, status, reason in self.ERRORS:
            for target in ('/addresses', '/addresses/a'):
                with self.subTest(reason, target=target):
                    self.records.clear()
                    self.db.error = error
                    answer = await self.ask(request('GET', target, CLOSE))
                    self.assertEqual(self.assert_error(answer, status)['detail'], error.detail)
                    self.assert_advises_to_retry(answer, status == 503)
                    self.assert_is_traced(await self.only_line(), status, reason)

    async def test_a_store_that_fails_in_the_middle_of_a_listing_cuts_the_answer(self) -> None:
        self.fill(1000)
        self.db.pages_before_error = 16
        for error, status, _ in self.ERRORS:
            for fields in ([], ['Accept-Encoding: gzip']):
                with self.subTest(status=status, fields=fields):
                    self.records.clear()
                    self.db.error = error
                    data = await self.exchange(request('GET', '/addresses', *fields)
                                               + request('GET', '/smuggled'))
                    self.assertRegex(data, rb'^HTTP/1.1 200 OK\r\n')
                    self.assertFalse(data.endswith(b'0\r\n\r\n'))
                    with self.assertRaises(http.client.IncompleteRead):
                        split_answers(data)
                    self.assert_is_traced(await self.only_line(), status)

    async def test_to_http_1_0_a_cut_listing_is_at_least_no_json(self) -> None:
        self.fill(1000)
        self.db.pages_before_error = 16
        self.db.error = StorageError('It failed', SECRET)
        answer = await self.ask(request('GET', '/addresses', version='HTTP/1.0'))
        self.assertGreater(len(answer.body), BUFFER_SIZE)
        self.assertNotIn(b'It failed', answer.body)
        with self.assertRaises(ValueError):
            answer.json()
        self.assert_is_traced(await self.only_line(), 500)

    async def test_a_mistake_in_a_handler_is_reported_without_a_trace(self) -> None:
        self.db.error = RuntimeError(SECRET)
        with self.assertLogs('tornado.application', logging.ERROR) as logged:
            answer = await self.ask(request('GET', '/addresses/a', CLOSE))
        document = self.assert_error(answer, 500)
        self.assertEqual(set(document), {'method', 'uri', 'code', 'message', 'req_id'})
        self.assertEqual(len(logged.records), 1)
        fields = parse_logfmt(logged.records[0].getMessage())
        self.assertEqual((fields['req_id'], fields['error']), (document['req_id'], 'RuntimeError'))
        self.assertIn(SECRET, fields['trace'])
        self.assert_is_traced(await self.only_line(), 500, 'Internal Server Error')

    async def test_a_mistake_in_the_middle_of_a_listing_cuts_the_answer(self) -> None:
        self.fill(1000)
        self.db.pages_before_error = 16
        self.db.error = RuntimeError(SECRET)
        with self.assertLogs('tornado.application', logging.ERROR) as logged:
            data = await self.exchange(request('GET', '/addresses'))
        self.assertEqual(len(logged.records), 1)
        self.assertNotIn(SECRET.encode(), data)
        with self.assertRaises(http.client.IncompleteRead):
            split_answers(data)
        self.assert_is_traced(await self.only_line(), 500)

    async def test_a_mistake_closes_no_connection(self) -> None:
        self.db.error = RuntimeError(SECRET)
        with self.assertLogs('tornado.application', logging.ERROR):
            answers = split_answers(await self.exchange(
                request('GET', '/addresses/a') + request('GET', '/healthz', CLOSE)))
        self.assertEqual([answer.status for answer in answers], [500, 200])

    async def test_a_cancelled_request_is_answered_and_has_one_line(self) -> None:
        self.db.error = asyncio.CancelledError()
        with mock.patch.object(logging.getLogger('tornado.application'), 'disabled', True):
            answer = await self.ask(request('GET', '/addresses/a', CLOSE))
        self.assert_error(answer, 503)
        self.assert_advises_to_retry(answer, True)
        self.assertEqual((await self.only_line())['status'], 503)

    def assert_advises_to_retry(self, answer: Answer, retry: bool) -> None:
        if retry:
            self.assertIn(int(answer.headers['Retry-After']), range(1, 10))
        else:
            self.assertNotIn('Retry-After', answer.headers)

    def assert_is_traced(self, line: Document, status: int, reason: str | None = None) -> None:
        self.assertEqual((line['level'], line['status']), ('ERROR', status))
        if reason:
            self.assertEqual(line['reason'], reason)
        self.assertRegex(line['trace'], '^Traceback ')
        self.assertIn(SECRET, line.get('cause', '') + line['trace'])
        record, = [record for record in self.records if 'RESPONSE' in record.getMessage()]
        self.assertEqual(len(record.getMessage().splitlines()), 1)


@on_each_transport
class DebugTest(ServerTestCase):
    """With --debug traces are shown."""

    shows_traces = True

    async def test_an_error_has_a_trace_in_its_answer_and_its_line(self) -> None:
        for data in (request('GET', '/x', CLOSE), request('FOO', '/addresses', CLOSE),
                     request('POST', '/addresses', CLOSE), b'GET / HTTP/3.0\r\n\r\n'):
            with self.subTest(data):
                self.records.clear()
                answer = await self.ask(data)
                line = await self.only_line()
                self.assertRegex(answer.json()['trace'], '^Traceback ')
                self.assertEqual(line['trace'], answer.json()['trace'])


@on_each_transport
class SlowStoreTest(ServerTestCase):
    """A store that does not answer in time."""

    settings = {'request-timeout': 0.2}

    async def test_gets_its_client_a_503(self) -> None:
        self.db.gate.clear()
        answer = await self.ask(request('GET', '/addresses/a', CLOSE))
        self.assert_error(answer, 503)
        self.assertIn(int(answer.headers['Retry-After']), range(1, 10))
        line = await self.only_line()
        self.assertEqual((line['status'], line['level']), (503, 'ERROR'))
        self.assertGreaterEqual(line['time_ms'], 190)


@on_each_transport
class OverloadTest(ServerTestCase):
    """More requests than may be under way."""

    settings = {'max-in-flight': 3}

    async def test_some_are_refused_quickly_and_probes_are_answered(self) -> None:
        self.db.gate.clear()
        served = [await self.send(request('GET', '/addresses/a', CLOSE)) for _ in range(3)]
        await self.until(lambda: self.db.waiting == 3)
        for target in ('/addresses', '/addresses/a', '/addresses/a'):
            answer = await self.ask(request('GET', target, CLOSE))
            self.assert_error(answer, 503)
            self.assertIn(int(answer.headers['Retry-After']), range(1, 10))
        for probe in ('/healthz', '/readiness'):
            self.assertEqual((await self.ask(request('GET', probe, CLOSE))).status, 200)
        self.assertEqual(self.db.waiting, 3)
        self.db.gate.set()
        for reader, _ in served:
            self.assertEqual(split_answers(await reader.read())[0].status, 404)
        self.assertEqual((await self.ask(request('GET', '/addresses', CLOSE))).status, 200)
        self.assertEqual([line['status'] for line in self.lines()],
                         [503] * 3 + [200] * 2 + [404] * 3 + [200])
        self.assertTrue(all(line['time_ms'] < 1000 for line in self.lines()[:5]))

    async def test_a_refused_request_leaves_its_connection_open(self) -> None:
        self.db.gate.clear()
        for _ in range(3):
            await self.send(request('GET', '/addresses/a'))
        await self.until(lambda: self.db.waiting == 3)
        reader, writer = await self.send(
            request('POST', '/addresses', 'Content-Length: 2') + b'{}')
        self.assertEqual((await read_answer(reader)).status, 503)
        self.db.gate.set()
        await self.until(lambda: not self.db.waiting)
        writer.write(request('GET', '/addresses/a'))
        self.assertEqual((await read_answer(reader)).status, 404)

    async def test_who_hung_up_is_not_counted_any_more(self) -> None:
        self.db.gate.clear()
        for number in range(1, 4):
            _, writer = await self.send(request('GET', '/addresses/a'))
            await self.until(lambda: self.db.waiting == number)
            close(writer)
        await self.until_gone()
        self.db.gate.set()
        await self.until(lambda: len(self.lines()) == 3)
        self.assertEqual((await self.ask(request('GET', '/addresses/a', CLOSE))).status, 404)

    async def test_a_client_that_reads_slowly_takes_no_place(self) -> None:
        self.fill(50_000)
        admission = self.app.admission
        with contextlib.ExitStack() as clients:
            for number in range(1, 4):
                client = clients.enter_context(
                    socket.create_connection(('127.0.0.1', self.port)))
                client.sendall(request('GET', '/addresses'))
                await self.until(lambda: len(self.server.connections) == number)
            await self.until(lambda: admission.in_flight == 0)
            self.assertEqual((await self.ask(request('GET', '/addresses/x', CLOSE))).status, 404)
        await self.until(lambda: [line['status'] for line in self.lines()] == [404] + [499] * 3)
        self.assertEqual(admission.in_flight, 0)

    @unittest.skipUnless(hasattr(socket, 'TCP_NOTSENT_LOWAT'), 'the system cannot be told')
    async def test_the_system_takes_little_for_a_client_that_reads_nothing(self) -> None:
        self.fill(50_000)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024)
            await asyncio.to_thread(client.connect, ('127.0.0.1', self.port))
            client.sendall(request('GET', '/addresses'))
            await self.until(lambda: bool(self.server.connections))
            connection, = self.server.connections
            await self.until(lambda: taken(connection.stream.socket) > 0)
            await self.until(lambda: self.app.admission.in_flight == 0)  # it waits for the client
            self.assertLess(taken(connection.stream.socket), 4 * MAX_UNSENT)

    async def test_a_client_that_sends_slowly_takes_no_place(self) -> None:
        for _ in range(5):
            await self.send(b'GET /addresses/a HTT')
        await self.until(lambda: len(self.server.connections) == 5)
        self.assertEqual((await self.ask(request('GET', '/addresses/a', CLOSE))).status, 404)


@on_each_transport
class ConnectionLimitTest(ServerTestCase):
    """More connections than may be open."""

    settings = {'max-connections': 2}

    async def test_one_more_takes_the_place_of_the_one_that_is_idle_the_longest(self) -> None:
        first, second = [await self.send(request('GET', '/healthz')) for _ in range(2)]
        for reader, _ in (first, second):
            await read_answer(reader)
        self.assertEqual((await self.ask(request('GET', '/healthz', CLOSE))).status, 200)
        self.assertEqual(await first[0].read(), b'')
        second[1].write(request('GET', '/healthz', CLOSE))
        self.assertEqual((await read_answer(second[0])).status, 200)
        self.assertEqual(self.lines('CONNECTION REFUSED'), [])

    async def test_silent_clients_keep_nobody_out(self) -> None:
        for _ in range(10):
            await self.connect()
        self.assertEqual((await self.ask(request('GET', '/healthz', CLOSE))).status, 200)
        self.assertLessEqual(len(self.server.connections), 2)

    async def test_one_more_is_closed_at_once_where_none_is_idle(self) -> None:
        self.db.gate.clear()
        streams = [await self.send(request('GET', '/addresses/a')) for _ in range(2)]
        await self.until(lambda: self.db.waiting == 2)
        for _ in range(5):
            self.assertEqual(await self.exchange(b''), b'')
        lines = self.lines('CONNECTION REFUSED')
        self.assertIn(len(lines), (1, 2))
        self.assertEqual((lines[0]['level'], lines[0]['ip']), ('WARNING', '127.0.0.1'))
        self.assertIn('addrservice_requests_refused_total{reason="too_many_connections"} 5.0',
                      self.app.metrics.exposition('')[0].decode())
        self.db.gate.set()
        for reader, _ in streams:
            self.assertEqual((await read_answer(reader)).status, 404)
        self.assertEqual((await self.ask(request('GET', '/healthz', CLOSE))).status, 200)


@on_each_transport
class SizeTest(ServerTestCase):
    """What metrics tell of bodies."""

    async def test_a_compressed_body_counts_as_it_was_sent(self) -> None:
        body = gzip.compress(json.dumps({'full_name': 200 * 'a'}).encode())
        answer = await self.ask(request('POST', '/addresses', 'Content-Encoding: gzip', CLOSE,
                                        f'Content-Length: {len(body)}') + body)
        self.assertEqual(answer.status, 201)
        self.assertIn('http_server_request_body_size_bytes_sum'
                      f'{{method="POST",route="/addresses"}} {len(body)}.0',
                      self.app.metrics.exposition('')[0].decode())


@on_each_transport
class ProxyTest(ServerTestCase):
    """Behind a proxy that is trusted."""

    settings = {'trusted-proxies': ['127.0.0.0/8', '10.0.0.1']}

    async def test_its_word_on_the_client_is_taken(self) -> None:
        for forwarded, ip in (('198.51.100.7', '198.51.100.7'),
                              ('203.0.113.9, 198.51.100.7, 10.0.0.1', '198.51.100.7'),
                              ('198.51.100.7, 10.0.0.2', '10.0.0.2'),
                              ('unknown', '127.0.0.1'), ('" status=200', '127.0.0.1')):
            for target in ('/addresses', '/x'):
                with self.subTest(forwarded, target=target):
                    self.records.clear()
                    await self.ask(request(
                        'GET', target, f'X-Forwarded-For: {forwarded}', CLOSE,
                        'X-Real-Ip: 192.0.2.66'))
                    self.assertEqual((await self.only_line())['ip'], ip)


@on_each_transport
class UntrustedProxyTest(ServerTestCase):
    """Behind one that is not."""

    settings = {'trusted-proxies': ['10.0.0.0/8']}

    async def test_its_word_is_not_taken(self) -> None:
        await self.ask(request('GET', '/x', 'X-Forwarded-For: 198.51.100.7', CLOSE))
        self.assertEqual((await self.only_line())['ip'], '127.0.0.1')


@on_each_transport
class GreedyClientTest(unittest.TestCase):
    """Clients that take or give too much, and a process whose memory can be measured."""

    COUNT = 2000
    SIZE = 6000
    """Bytes of each entry, at least."""

    server: ClassVar[ServerProcess]

    @classmethod
    def setUpClass(cls) -> None:
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        texts = ('building_name', 'street_number', 'street_name', 'locality', 'city', 'province',
                 'pincode', 'country')
        text = json.dumps({'full_name': 'Asha Example', 'addresses': [
            {'kind': 'home', **{name: '\u0905' * 256 for name in texts}}]}, ensure_ascii=False)
        for number in range(cls.COUNT):
            Path(folder, f'{number:032x}.json').write_text(text, 'utf-8')
        cls.server = cls.enterClassContext(ServerProcess({
            'addr-db': {'fs': folder}, 'server': {'write-timeout': 1}}))

    def setUp(self) -> None:
        self.seen = len(self.server.lines())

    def test_a_reader_that_stops_reading_is_cut_off(self) -> None:
        self.listing_size()  # the server has its buffers now
        before, start = self.memory(), time.monotonic()
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(self.lazy_connection()) for _ in range(3)]
            for reader in readers:
                reader.sendall(request('GET', '/addresses'))
            self.server.wait_for(self.others_are_served_until(lambda: len(self.gone()) == 3))
            self.assertLess(self.memory() - before, 8 * MB)
            for reader in readers:
                data = read_to_end(reader)
                self.assertLess(len(data), self.COUNT * self.SIZE)
                self.assertFalse(data.endswith(b'0\r\n\r\n'))
        self.assertGreaterEqual(time.monotonic() - start, 1)
        self.assertEqual({line['status'] for line in self.gone()}, {499})

    def test_a_large_listing_takes_little_memory(self) -> None:
        self.listing_size()
        before = self.memory()
        self.assertGreater(self.listing_size(), self.COUNT * self.SIZE)
        self.assertLess(self.memory() - before, 8 * MB)

    def test_a_slow_reader_that_goes_on_reading_gets_all(self) -> None:
        with self.lazy_connection() as connection:
            connection.sendall(request('GET', '/addresses?slow', CLOSE))
            data = bytearray()
            deadline = time.monotonic() + 1.5  # longer than the time-out of one piece
            while time.monotonic() < deadline:
                data += connection.recv(20_000)
                time.sleep(0.02)
            data += read_to_end(connection)
        answer, = split_answers(bytes(data))
        self.assertEqual(len(answer.json()), self.COUNT)

    def test_who_sends_far_too_much_reads_the_refusal(self) -> None:
        for size in (200_000, 5 * MB):
            for start in (request('POST', '/addresses', f'Content-Length: {size}'),
                          request('POST', '/addresses', 'Transfer-Encoding: chunked')
                          + b'%x\r\n' % size):
                with self.subTest(size, start=start[:80]), self.lazy_connection() as connection:
                    connection.sendall(start + b' ' * size)
                    answer, = split_answers(read_to_end(connection))
                    self.assertEqual((answer.status, answer.json()['code']), (413, 413))
                    self.assertEqual(answer.headers['Connection'], 'close')

    def test_who_sends_a_far_too_large_header_reads_the_refusal(self) -> None:
        with self.lazy_connection() as connection:
            connection.sendall(request('GET', '/', 'X: ' + 'a' * MB))
            answer, = split_answers(read_to_end(connection))
            self.assertEqual(answer.status, 431)

    def test_who_goes_on_sending_for_ever_is_cut_off(self) -> None:
        before, start = self.memory(), time.monotonic()
        with self.lazy_connection() as connection:
            connection.sendall(request('POST', '/addresses', 'Content-Length: 99999999999'))
            with self.assertRaises(OSError):
                while time.monotonic() - start < DEADLINE:
                    connection.sendall(bytes(100_000))
        self.assertLess(self.memory() - before, 8 * MB)

    def lazy_connection(self) -> socket.socket:
        """A connection for which the client's system keeps little."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072)
        connection.settimeout(DEADLINE)
        connection.connect(('127.0.0.1', self.server.port))
        return connection

    def others_are_served_until(self, condition: Callable[[], bool]) -> Callable[[], bool]:
        def check() -> bool:
            start = time.monotonic()
            self.assertEqual(self.server.request('GET', f'/addresses/{0:032x}').status, 200)
            self.assertLess(time.monotonic() - start, 1)
            return condition()
        return check

    def gone(self) -> list[Document]:
        return [line for line in self.server.lines('RESPONSE')[self.seen:]
                if line['uri'] == '/addresses' and line['status'] == 499]

    def listing_size(self) -> int:
        return len(self.server.request('GET', '/addresses?whole').body)

    def memory(self) -> int:
        """Bytes in use by the server."""
        assert self.server.process is not None
        status = Path(f'/proc/{self.server.process.pid}/status').read_text()
        return 1024 * int(re.findall(r'VmRSS:\s+(\d+) kB', status)[0])


# --- Clients ---


def request(method: str, target: str, *fields: str, version: str = 'HTTP/1.1') -> bytes:
    return '\r\n'.join([f'{method} {target} {version}', 'Host: x', *fields, '', '']).encode()


async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """All that comes until the server closes; then this side closes, too."""
    try:
        async with asyncio.timeout(DEADLINE):
            return await reader.read()
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer that has a Content-Length."""
    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b'\r\n\r\n')
        status_line, _, fields = head.partition(b'\r\n')
        _, status, reason = status_line.decode().split(' ', 2)
        headers = http.client.parse_headers(io.BytesIO(fields))
        body = await reader.readexactly(int(headers['Content-Length']))
        return Answer(int(status), reason, headers, body)


async def take_turns(turns: list[int]) -> None:
    """Counts how often the event loop comes round."""
    while True:
        turns[0] += 1
        await asyncio.sleep(0)


def close(writer: asyncio.StreamWriter) -> None:
    """Hangs up as clients do."""
    writer.close()


def half_close(writer: asyncio.StreamWriter) -> None:
    """Says that no more will be sent."""
    writer.write_eof()


def reset(writer: asyncio.StreamWriter) -> None:
    """Hangs up as one who crashed."""
    writer.get_extra_info('socket').setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    writer.transport.abort()


if __name__ == '__main__':
    unittest.main()

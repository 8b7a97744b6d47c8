"""A closed loop of requests, made as cheaply as Python can: each connection sends its next request
when it has the answer to the one before.

`benchmarks.driver` knows open loops, mixes and what each answer means; that costs it more than some
servers need for a request. Here requests are bytes made beforehand, and of an answer the status is
all that is looked at. What the server has left of a latency is queueing behind the other
connections, so it says more of the throughput than of what one client would see.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import signal
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from time import perf_counter, process_time
from typing import NamedTuple, cast

import httptools
import uvloop

from benchmarks.contest.server import HOST
from benchmarks.driver.client import CLOSED, MALFORMED, TIMEOUT
from benchmarks.driver.result import Latencies

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 10.0
"""For the last answers."""


class Work(NamedTuple):
    """What is asked, over and over."""

    requests: Sequence[bytes]
    """Taken in turn."""

    status: int
    """Of an answer that is in order."""


class Driven(NamedTuple):
    """What came of it."""

    latencies: Latencies
    """Of the answers that were in order."""

    errors: Counter[str]
    """By kind: `status …`, and as `benchmarks.driver` names them."""

    seconds: float
    """From the first request to the last answer."""

    busy: float
    """The share of a core that this process used: near 1 it has measured itself."""

    @property
    def throughput(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds


def drive(port: int, work: Work, connections: int, seconds: float) -> Driven:
    """Drives requests at a server of this machine, on so many connections, for so long.

    :raises OSError: it takes no connections.
    :raises KeyboardInterrupt: a signal has come for which there is a handler; with its number.
    """
    drive = _Drive(work, seconds)
    with _handlers_kept(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        driven = runner.run(drive.run(port, connections))
    if drive.interruption:
        raise KeyboardInterrupt(drive.interruption)
    return driven


class _Drive:
    """One call of `drive`, and what its connections share."""

    def __init__(self, work: Work, seconds: float) -> None:
        self.next_request = itertools.cycle(work.requests).__next__
        self.status = work.status
        self.samples = array('d')
        self.errors: Counter[str] = Counter()
        self.ends = 0.0
        self.interruption: signal.Signals | None = None
        self._seconds = seconds
        self._busy: set[Connection] = set()
        self._ended = asyncio.Event()

    async def run(self, port: int, count: int) -> Driven:
        loop = asyncio.get_running_loop()
        # What a handler raises within a callback of a connection would end that alone.
        for number in filter(_is_handled, SIGNALS):
            loop.add_signal_handler(number, self._interrupt, number)
        connections = [(await loop.create_connection(lambda: Connection(self), HOST, port))[1]
                       for _ in range(count)]
        self._busy.update(connections)
        with _without_collections():
            cpu, began = process_time(), perf_counter()
            self.ends = began + self._seconds
            for connection in connections:
                connection.send()
            await self._all_answers()
            duration = perf_counter() - began
            busy = (process_time() - cpu) / duration
        for connection in connections:
            connection.close()
        return Driven(Latencies(self.samples), self.errors, duration, busy)

    def end(self, connection: Connection, error: str = '') -> None:
        """Takes note that a connection will send nothing more; the second time is ignored."""
        if connection in self._busy:
            self._busy.remove(connection)
            if error:
                self.errors[error] += 1
            if not self._busy:
                self._ended.set()

    def _interrupt(self, number: signal.Signals) -> None:
        self.interruption = number
        self._ended.set()

    async def _all_answers(self) -> None:
        try:
            async with asyncio.timeout(self._seconds + PATIENCE_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            self.errors[TIMEOUT] += len(self._busy)
            self._busy.clear()


class Connection(asyncio.Protocol):
    """An HTTP/1.1 connection, kept alive, with one request under way."""

    def __init__(self, drive: _Drive) -> None:
        self._drive = drive
        self._parser = httptools.HttpResponseParser(self)
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Sends the next request."""
        self._began = perf_counter()
        self._transport.write(self._drive.next_request())

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._drive.end(self, MALFORMED)
            self.close()

    def on_message_complete(self) -> None:
        now, drive = perf_counter(), self._drive
        status = self._parser.get_status_code()
        if status == drive.status:
            drive.samples.append(now - self._began)
        else:
            drive.errors[f'status {status}'] += 1
        if now < drive.ends:
            self._began = now
            self._transport.write(drive.next_request())
        else:
            drive.end(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._drive.end(self, CLOSED)

    def close(self) -> None:
        self._transport.abort()


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Meanwhile nobody looks for garbage: a pause would be taken for the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_handled(number: signal.Signals) -> bool:
    return callable(signal.getsignal(number))


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Afterwards signals are handled as they were before."""
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def requests_for(method: str, targets: Sequence[str], body: bytes = b'') -> Iterator[bytes]:
    """The bytes of requests, with as few header fields as a client may send."""
    fields = ['Host: localhost']
    if body:
        fields += ['Content-Type: application/json', f'Content-Length: {len(body)}']
    for target in targets:
        head = '\r\n'.join([f'{method} {target} HTTP/1.1', *fields, '', ''])
        yield head.encode() + body

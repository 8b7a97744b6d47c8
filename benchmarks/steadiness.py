"""How evenly the service answers: at half of what it can do, and beside a long list that is read
slowly.

First its capacity is found, in a closed loop; then requests come in an open loop at half of that,
and p99 is set against the median. Then it gets a large book, and is asked for single entries at
half of its capacity for those, while a client reads all of the book, at so many MB a second, and
while it pauses: in turn, a second each, for machines are of another speed after some. A figure is
the median of the rounds; a ratio is that of the ratios within a round. Where there are two cores
the service has one and all else the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import math
import socket
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from addrservice.database.records import encode_record, new_version
from addrservice.database.sql_db import INSERT
from addrservice.datamodel import AddressEntry
from benchmarks.contest.cores import Cores, on, share_out
from benchmarks.contest.load import requests_for
from benchmarks.contest.server import HOST, Failed
from benchmarks.driver.client import Client, Failure
from benchmarks.driver.options import Parser
from benchmarks.driver.plan import GET, MIX, MOST, OPERATIONS, Plan
from benchmarks.driver.report import counts
from benchmarks.driver.result import Latencies, Result
from benchmarks.driver.run import WRITERS, NotFilled, Unreachable, drive, run
from benchmarks.driver.service import (
    ENGINES, TRANSPORTS, Service, book_in, settings, started)
from benchmarks.growth import name, opened
from benchmarks.validation import TYPICAL

T = TypeVar('T')

MOST_RATIO = 3.0
"""Of p99 to the median at half of the capacity."""

MOST_EFFECT = 4 / 3
"""Of p99 beside a list to p99 without one."""

MIXES: Mapping[str, Mapping[str, float]] = {'all': MIX, 'get': {GET: 1}}
MOST_ROUNDS, MOST_ENTRIES, MOST_READ_RATE = 100, 10_000_000, 1000
PIECE = 32 * 1024
"""Bytes that a slow client reads at a time."""

LEAD_SECONDS = 2.0
"""From the start of a list to the first request: what the system takes in for a client that does
not read comes at full speed, some megabytes."""

TURN_SECONDS = 1.0
"""With the list, and then without it, about."""

PAUSE_SECONDS = 0.3
"""From where the client begins or ends to read to the first request."""

LIST_ALL = b'GET /addresses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'
MARK = 'Asha Example'
CAPACITY_SHARE = 0.5
CREATED = 201


class Beside(NamedTuple):
    """One round: the latencies of the same requests without and beside a list."""

    without: Latencies
    beside: Latencies
    megabytes: float
    """Of the list, that were read meanwhile."""

    @property
    def effect(self) -> float:
        return self.beside.percentile(99) / self.without.percentile(99)


class Figures(NamedTuple):
    """Of some requests, in milliseconds: the median of the rounds, and of the ratios in them."""

    p50: float
    p99: float
    ratio: float

    @classmethod
    def of(cls, rounds: Sequence[Latencies]) -> Figures:
        found = [(1000 * each.percentile(50), 1000 * each.percentile(99)) for each in rounds]
        median, p99 = map(statistics.median, zip(*found, strict=True))
        return cls(median, p99, statistics.median(high / middle for middle, high in found))


# --- at half of the capacity ---

def capacity(found: Service, args: argparse.Namespace, mix: Mapping[str, float]) -> float:
    """So many requests a second are answered when each waits for the one before.

    :raises Failed: one goes wrong.
    """
    driven(Plan(found.url, args.seconds / 2, mix=mix))  # for what comes with the first requests
    result = driven(Plan(found.url, args.seconds, mix=mix))
    _tell(f'capacity: {result.throughput:.0f} requests/s ({_names(mix)}); '
          f'the generator took {result.busy:.0%} of its core')
    return result.throughput


def driven(plan: Plan) -> Result:
    """What comes of a plan.

    :raises Failed: a request goes wrong.
    """
    return undisturbed(checked(plan))


async def checked(plan: Plan) -> Result:
    """
    :raises Failed: a request goes wrong.
    """
    try:
        result = await drive(plan)
    except (Unreachable, NotFilled) as error:
        raise Failed(str(error)) from error
    if result.errors:
        raise Failed(f'errors: {counts(result.errors)}')
    return result


def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """As `run`; but nobody here looks for garbage: a pause of ours would be taken for the
    service's."""
    gc.collect()
    gc.disable()
    try:
        return run(work)
    finally:
        gc.enable()


def at_half(found: Service, args: argparse.Namespace) -> Iterator[str]:
    """How p99 is to the median, operation by operation: the lines of a table.

    :raises Failed: a request goes wrong.
    """
    mix = MIXES[args.mix]
    rate = args.rate or CAPACITY_SHARE * capacity(found, args, mix)
    plan = Plan(found.url, args.seconds, rate, args.even, mix=mix)
    rounds = [driven(plan) for _ in tqdm(range(args.rounds), 'rounds', leave=False, disable=None)]
    yield f'{f"open loop, {rate:.0f} requests/s":28}{"p50 ms":>10}{"p99 ms":>10}{"p99/p50":>10}'
    for operation in (*filter(mix.get, OPERATIONS), None):
        figures = Figures.of([each.latencies(operation) for each in rounds])
        yield _row(operation or 'all', figures) + f'  of {MOST_RATIO:g}' * (not operation)


def _row(title: str, figures: Figures) -> str:
    return f'{title:28}{figures.p50:10.2f}{figures.p99:10.2f}{figures.ratio:10.2f}'


# --- beside a list ---

def beside_list(found: Service, args: argparse.Namespace) -> Iterator[str]:
    """What a list does to others: the lines of a table.

    :raises Failed: a request goes wrong.
    """
    mix = MIXES['get']
    rate = args.rate or CAPACITY_SHARE * capacity(found, args, mix)
    plan = Plan(found.url, args.seconds, rate, args.even, mix=mix)
    rounds = [undisturbed(_in_turn(plan, SlowReader(plan.port, args.read_rate)))
              for _ in tqdm(range(args.rounds), 'rounds', leave=False, disable=None)]
    yield f'{f"GET, open loop, {rate:.0f}/s":28}{"p50 ms":>10}{"p99 ms":>10}{"p99/p50":>10}'
    yield _row('without a list', Figures.of([each.without for each in rounds]))
    yield _row(f'beside, of {args.entries} entries', Figures.of([each.beside for each in rounds]))
    effect = statistics.median(each.effect for each in rounds)
    read = statistics.median(each.megabytes for each in rounds) / args.seconds
    yield (f'p99 beside the list is {effect:.2f} times that without it, of {MOST_EFFECT:.2f}; '
           f'read were {read:.2f} MB/s')


async def _in_turn(plan: Plan, reader: SlowReader) -> Beside:
    turns = math.ceil(plan.seconds / TURN_SECONDS)
    turn = dataclasses.replace(plan, seconds=plan.seconds / turns)
    times: dict[bool, list[float]] = {False: [], True: []}
    read = 0
    async with reader:
        for is_read in (False, True) * turns:
            await reader.turn(is_read)
            before = reader.count
            times[is_read] += (await checked(turn)).latencies().values
            read += reader.count - before
    return Beside(Latencies(times[False]), Latencies(times[True]), read / 1e6)


class SlowReader:
    """A client that asks for all of the book, takes its time to read it, and pauses."""

    def __init__(self, port: int, megabytes: float) -> None:
        """
        :param megabytes: so many it reads in a second.
        """
        self._address = HOST, port
        self._pause = PIECE / megabytes / 1e6
        self._may_read = asyncio.Event()
        self.count = 0
        """Bytes that it has read."""

    async def __aenter__(self) -> None:
        self._may_read.set()
        self._reading = asyncio.create_task(self._read())
        await asyncio.sleep(LEAD_SECONDS)

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def turn(self, is_read: bool) -> None:
        """Has it read from now on, or pause.

        :raises Failed: it is at the end.
        """
        if is_read:
            self._may_read.set()
        else:
            self._may_read.clear()
        await asyncio.sleep(PAUSE_SECONDS)
        if self._reading.done():
            raise Failed('the list has come to its end: it needs more entries, or a slower reader')

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, self._address)
            await loop.sock_sendall(client, LIST_ALL)
            while await self._may_read.wait() and (data := await loop.sock_recv(client, PIECE)):
                self.count += len(data)
                await asyncio.sleep(self._pause * len(data) / PIECE)


# --- the book ---

def fill(file: str, count: int) -> None:
    """Makes a book in a file of SQLite, by statements of the engine: no service takes so many in
    so short a time."""
    asyncio.run(_make(file))
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute('PRAGMA journal_mode = OFF')  # if it fails, the file is of no use
        connection.execute('PRAGMA synchronous = OFF')
        with connection:
            connection.executemany(INSERT.replace('$', '?'), (
                (name(number), new_version(), text) for number, text in enumerate(_texts(count))))


async def _make(file: str) -> None:
    async with opened({'sqlite': file}):
        pass


def _texts(count: int) -> Iterator[str]:
    """What the store has of so many entries, no two the same."""
    text = encode_record(AddressEntry.from_api_dm({**TYPICAL, 'full_name': MARK}))
    for number in tqdm(range(count), 'filling', leave=False, disable=None):
        yield text.replace(MARK, f'{MARK} {number}')


async def post(port: int, count: int) -> None:
    """Makes so many entries as any client does, for engines that have no quicker way.

    :raises Failed: one cannot be made.
    """
    async def write(client: Client) -> None:
        for text in texts:
            request, = requests_for('POST', ['/addresses'], text.encode())
            answer = await client.ask(request)
            if answer.status != CREATED:
                raise Failed(f'an entry is answered {answer.status}')

    texts = _texts(count)
    try:
        await asyncio.gather(*(write(Client((HOST, port), 10.0)) for _ in range(WRITERS)))
    except Failure as error:
        raise Failed(f'an entry is not answered: {error}') from error


@contextlib.contextmanager
def service(args: argparse.Namespace, cores: Cores, entries: int) -> Iterator[Service]:
    """A new service, with a book of so many entries.

    :raises Failed: it does not start.
    """
    with tempfile.TemporaryDirectory(dir='.') as folder:
        config = settings(args.engine, Path(folder), transport=args.transport)
        is_file = args.engine == 'sqlite'
        if is_file:
            fill(str(book_in(Path(folder), args.engine)), entries)
        with started(config, Path(folder), cores.server) as found:
            if not is_file:
                asyncio.run(post(found.server.port, entries))
            yield found


# --- the command ---

def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints tables.

    :return: the exit status: 0 all was answered, 1 something was not, 2 it could not begin.
    """
    args = _parse_args(argv)
    cores = share_out()
    _tell(cores.describe())
    try:
        with on(cores.load):
            _measure(args, cores)
    except Failed as error:
        _tell(str(error))
        return 1
    return 0


def _measure(args: argparse.Namespace, cores: Cores) -> None:
    for entries, lines in ((0, at_half), (args.entries, beside_list)):
        if lines is at_half or entries:
            with service(args, cores, entries) as found:
                print(*lines(found, args), '', sep='\n', flush=True)


def _tell(text: str) -> None:
    print(f'steadiness.py: {" ".join(text.split())}', file=sys.stderr, flush=True)


def _names(mix: Mapping[str, float]) -> str:
    return ', '.join(mix)


# --- the command line ---

def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog='steadiness.py', allow_abbrev=False,
        description='Starts the service, and measures how evenly it answers at half of its '
                    'capacity, and beside a list of a large book that is read slowly.')
    parser.add_argument('--engine', choices=ENGINES, default='sqlite',
                        help='others take long to fill (default: %(default)s)')
    parser.add_argument('--transport', choices=TRANSPORTS, default='fast')
    parser.add_argument('--mix', choices=MIXES, default='all',
                        help='what is asked at half of the capacity (default: %(default)s)')
    parser.add_argument('--rate', type=float, metavar='N',
                        help='requests a second, instead of half of the capacity')
    parser.add_argument('--even', action='store_true',
                        help='requests come at the same distance, not at random: so p99 has no '
                             'queue in it that even a server of always the same speed would have')
    parser.add_argument('--read-rate', type=float, default=1.0, metavar='MB',
                        help='a second, of the client that reads the list (default: %(default)g)')
    parser.add_argument('--entries', type=int, default=1_000_000, metavar='N',
                        help='in the list; 0: leave that out (default: %(default)s)')
    parser.add_argument('--seconds', type=float, default=5.0, metavar='N',
                        help='of one round (default: %(default)g)')
    parser.add_argument('--rounds', type=int, default=5, metavar='N',
                        help='default: %(default)s')
    args = parser.parse_args(argv)
    _require(parser, args)
    return args


def _require(parser: Parser, args: argparse.Namespace) -> None:
    for option, most in (('rounds', MOST_ROUNDS), ('seconds', MOST['seconds']),
                         ('rate', MOST['rate']), ('read_rate', MOST_READ_RATE)):
        value = getattr(args, option)
        if value is not None and not 0 < value <= most:
            parser.error(f'--{option.replace("_", "-")} must be above 0 and at most {most}')
    if not 0 <= args.entries <= MOST_ENTRIES:
        parser.error(f'--entries must be 0 to {MOST_ENTRIES}')


if __name__ == '__main__':
    sys.exit(main())

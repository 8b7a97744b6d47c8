"""What a call costs as the book grows, on each engine. Run it by hand; it takes most of an hour.

A store is filled to each size in turn, and then opened by a process of its own, which measures the
service on it, one call after the other. Prints rows of a Markdown table: medians and 99th
percentiles in milliseconds, a page being 100 entries; the resident memory of the process in MB; and
the seconds it took to open the store. A PostgreSQL is started for it, unless --dsn names one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from addrservice.datamodel import AddressEntry
from addrservice.service import AddressBookService
from benchmarks.validation import TYPICAL

ENGINES = ('memory', 'fs', 'sqlite', 'postgres')
SIZES = (1_000, 10_000, 100_000, 1_000_000)
MOST = {'fs': 100_000}
WRITERS = 256
PAGE = 100
CALLS = {'get': 2000, 'put': 500, 'first page': 100, 'last page': 100}
COLUMNS = (*CALLS, 'memory', 'start')

Call = Callable[[], Awaitable[object]]


def name(number: int) -> str:
    """The id of an entry: spread evenly, so that any process knows what is where."""
    return hashlib.md5(str(number).encode()).hexdigest()


async def fill(service: AddressBookService, start: int, end: int) -> None:
    """Creates the entries with these numbers, many at a time."""
    entry = AddressEntry.from_api_dm(TYPICAL)
    numbers = iter(tqdm(range(start, end), unit='entry', desc='filling', file=sys.stderr))

    async def write() -> None:
        for number in numbers:
            await service.addr_db.create_address(entry, name(number))

    await asyncio.gather(*(write() for _ in range(WRITERS)))


def calls(service: AddressBookService, size: int) -> dict[str, Call]:
    """What is measured, on a book of that size."""
    near_the_end = f'{int((1 - PAGE / size) * 16 ** 8):08x}'

    async def page(after: str | None) -> None:
        async for _ in service.get_all_addresses(after, PAGE):
            pass

    return {
        'get': lambda: service.get_address(name(random.randrange(size))),
        'put': lambda: service.update_address(name(random.randrange(size)), TYPICAL),
        'first page': lambda: page(None),
        'last page': lambda: page(near_the_end)}


async def milliseconds(call: Call, times: int) -> list[float]:
    """How long each of so many calls took; one before them does not count."""
    await call()
    clock = [time.perf_counter()]
    for _ in range(times):
        await call()
        clock.append(time.perf_counter())
    return [1000 * (after - before) for before, after in itertools.pairwise(clock)]


async def measured(service: AddressBookService, size: int) -> dict[str, str]:
    """The row for a book of that size."""
    figures = {}
    for title, call in calls(service, size).items():
        taken = await milliseconds(call, CALLS[title])
        p99 = statistics.quantiles(taken, n=100)[98]
        figures[title] = f'{statistics.median(taken):.2f} / {p99:.2f}'
    return {**figures, 'memory': f'{resident_megabytes():.0f}'}


def resident_megabytes() -> float:
    """The memory of this process."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


@contextlib.asynccontextmanager
async def opened(section: dict[str, Any]) -> AsyncIterator[AddressBookService]:
    """A service that is started, on that engine."""
    config = {'addr-db': section, 'server': {'request-timeout': 600}}
    service = AddressBookService(config, logging.getLogger('growth'))
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def measure(section: dict[str, Any], size: int) -> None:
    """Measures a store that is there; to be called in a new process. Prints the row as JSON."""
    before = time.perf_counter()
    async with opened(section) as service:
        start = time.perf_counter() - before
        print(json.dumps({**await measured(service, size), 'start': f'{start:.2f}'}))


async def grow(section: dict[str, Any], sizes: list[int]) -> None:
    """Fills and measures a store, size by size."""
    for start, size in itertools.pairwise([0, *sizes]):
        async with opened(section) as service:
            await fill(service, start, size)
        told = subprocess.run(
            [sys.executable, __file__, '--measure', json.dumps(section), '--sizes', str(size)],
            stdout=subprocess.PIPE, check=True, text=True).stdout
        print_row(section, size, json.loads(told))


async def grow_in_memory(section: dict[str, Any], sizes: list[int]) -> None:
    """The same for an engine that ends with its process."""
    async with opened(section) as service:
        for start, size in itertools.pairwise([0, *sizes]):
            await fill(service, start, size)
            print_row(section, size, {**await measured(service, size), 'start': '0.00'})


def print_row(section: dict[str, Any], size: int, figures: dict[str, str]) -> None:
    cells = (*section, f'{size:,}'.replace(',', ' '), *(figures[column] for column in COLUMNS))
    print(f'| {" | ".join(cells)} |', flush=True)


@contextlib.contextmanager
def section_of(engine: str, dsn: str | None) -> Iterator[dict[str, Any]]:
    """The configuration of an engine on an empty store, which goes afterwards."""
    with contextlib.ExitStack() as stack:
        if engine == 'postgres' and dsn is None:
            from tests.postgres import PostgresServer
            dsn = stack.enter_context(PostgresServer()).dsn()
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir='.'))
        # So many writers have to wait for a connection while the book is filled.
        postgres = {'dsn': dsn, 'acquire-timeout': 60}
        yield {engine: {'memory': None, 'fs': f'{folder}/book', 'sqlite': f'{folder}/book.db',
                        'postgres': postgres}[engine]}


def main() -> None:
    parser = argparse.ArgumentParser(description='Measures the service as its book grows.')
    parser.add_argument('--engines', nargs='+', choices=ENGINES, default=ENGINES)
    parser.add_argument('--sizes', nargs='+', type=int, default=SIZES, metavar='N')
    parser.add_argument('--dsn', help='of an empty PostgreSQL database')
    parser.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return asyncio.run(measure(args.measure, *args.sizes))
    print(f'| engine | entries | {" | ".join(COLUMNS)} |\n|{"---|" * (len(COLUMNS) + 2)}')
    for engine in args.engines:
        sizes = [size for size in sorted(args.sizes) if size <= MOST.get(engine, size)]
        with section_of(engine, args.dsn) as section:
            asyncio.run((grow_in_memory if engine == 'memory' else grow)(section, sizes))


if __name__ == '__main__':
    main()

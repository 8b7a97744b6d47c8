"""What the service takes before it does anything: the time to be ready, memory, idle connections.

It is started as an operator does, with its entries in a file of SQLite, several times on each
transport: what is told is the median. Then it holds connections that are kept alive and idle, each
of which has made one request, and answers others meanwhile. Where there are two cores the service
has one and all else the other.

Memory is that of the process: what the system keeps for a connection comes on top, on any server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from benchmarks.contest.cores import Cores, on, share_out
from benchmarks.contest.server import HOST, START_SECONDS, Failed
from benchmarks.driver.options import Parser
from benchmarks.driver.plan import MOST
from benchmarks.driver.service import TRANSPORTS, Service, settings, started
from benchmarks.validation import TYPICAL

READY_WITHIN = 0.5
WORKERS = 2
MODULES = 10
MOST_STARTS, MOST_CONNECTIONS = 100, 25_000
"""Of one address to another there are about 28 000 connections, as Linux gives ports to clients."""

SPARE_DESCRIPTORS = 100
"""Of a process, beside those of its connections."""

SETTLE_SECONDS = 0.5
"""After a start, for what is done when nobody waits for it."""

IDLE_SECONDS = 600
"""So long a connection may be idle: none shall end while the others are made."""

RATE = 500
LOAD = Path(__file__).resolve().parent / 'load.py'

IMPORTED = re.compile(r'import time: +(\d+) \| +\d+ \| ( *)([\w.]+)')
"""A line of `python -X importtime`: the microseconds that a module took without those that it
imports, how deep it is in them, and its name."""


class Memory(NamedTuple):
    """Of a process, in MB."""

    resident: float
    proportional: float
    """Of what several processes share, each has its part."""


class Latency(NamedTuple):
    """Of an answer, in milliseconds."""

    p50: float
    p99: float


class Held(NamedTuple):
    """What came of holding connections."""

    kept: int
    """So many are alive in the end."""

    each: float
    """KB of memory for one."""

    before: Latency
    """Of others, without them."""

    beside: Latency


class Footprint(NamedTuple):
    """All that there is to tell of a transport."""

    ready: Sequence[float]
    """Seconds, of each start."""

    idle: Memory
    workers: Sequence[Memory]
    held: Held


# --- time ---

def starts(transport: str, cores: Cores, count: int) -> tuple[list[float], Memory]:
    """How many seconds each of so many starts took, and the memory after the last one.

    :raises Failed: it does not start.
    """
    seconds = []
    for _ in range(count):
        with service(transport, cores) as found:
            seconds.append(found.seconds)
            time.sleep(SETTLE_SECONDS)
            memory = memory_of(found.pid)
    return seconds, memory


@contextlib.contextmanager
def service(transport: str, cores: Cores, **server: object) -> Iterator[Service]:
    """A new service with an empty book.

    :raises Failed: it does not start.
    """
    with tempfile.TemporaryDirectory() as name, on(cores.load):
        config = settings('sqlite', Path(name), transport=transport, **server)
        with started(config, Path(name), cores.server) as found:
            yield found


def imports(cores: Cores, count: int) -> Counter[str]:
    """Microseconds that imports take from the start to being ready, by package: the median of so
    many starts.

    :raises Failed: it does not start.
    """
    found = [by_package(_import_lines(cores)) for _ in range(count)]
    return Counter({package: round(statistics.median(each[package] for each in found))
                    for package in found[0]})


def _import_lines(cores: Cores) -> list[str]:
    with tempfile.TemporaryDirectory() as name, on(cores.load):
        folder = Path(name)
        with started(settings('sqlite', folder), folder, cores.server, '-X', 'importtime') as found:
            return found.server.lines()


def by_package(lines: Iterable[str]) -> Counter[str]:
    """What of the lines of `-X importtime` is the doing of which package: ours for its own modules,
    and each of those that ours ask for with all that it brings along."""
    sums: Counter[str] = Counter()
    owners: list[str] = []
    # A module has its line after those that it imports: backwards, they come after it.
    for match in filter(None, map(IMPORTED.match, reversed([*lines]))):
        depth, package = len(match[2]) // 2, match[3].partition('.')[0]
        del owners[depth:]
        owner = owners[-1] if owners else 'addrservice'
        owners.append(package if owner == 'addrservice' else owner)
        sums[owners[-1]] += int(match[1])
    return sums


# --- memory ---

def memory_of(pid: int) -> Memory:
    """See proc(5)."""
    status, rollup = (Path(f'/proc/{pid}/{name}').read_text()
                      for name in ('status', 'smaps_rollup'))
    return Memory(_megabytes('VmRSS', status), _megabytes('Pss', rollup))


def _megabytes(name: str, text: str) -> float:
    match = re.search(rf'(?m)^{name}:\s+(\d+) kB$', text)
    return int(match[1]) * 1024 / 1e6 if match else 0.0


def workers(transport: str, cores: Cores) -> list[Memory]:
    """The memory of each of several processes that serve together.

    :raises Failed: they do not start.
    """
    with service(transport, cores, processes=WORKERS) as found:
        time.sleep(SETTLE_SECONDS)
        return [memory_of(pid) for pid in found.workers()]


# --- idle connections ---

class Connections:
    """Connections that are kept alive, for one request at a time on each."""

    def __init__(self, port: int, path: str) -> None:
        """
        :param path: of what is asked for on each.
        """
        self._port = port
        self._path = path
        self._all: list[http.client.HTTPConnection] = []

    def open(self, count: int) -> None:
        """Makes so many, with one request on each.

        :raises Failed: one is not answered.
        """
        for number in tqdm(range(count), 'connecting', leave=False, disable=None):
            connection = http.client.HTTPConnection(HOST, self._port, timeout=START_SECONDS)
            self._all.append(connection)
            connection.connect()
            connection.auto_open = 0  # what is closed is lost, and not made again in silence
            if not self._is_answered(connection):
                raise Failed(f'connection {number + 1} gets no answer')

    def count_alive(self) -> int:
        """How many get an answer now."""
        return sum(map(self._is_answered, self._all))

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def _is_answered(self, connection: http.client.HTTPConnection) -> bool:
        try:
            connection.request('GET', self._path)
            response = connection.getresponse()
            return bool(response.read()) and response.status == 200
        except (OSError, http.client.HTTPException):
            return False


def hold(transport: str, cores: Cores, count: int, seconds: float) -> Held:
    """Has a service hold so many connections.

    :param seconds: for which others ask, before and meanwhile.
    :raises Failed: it cannot.
    """
    limits = {'max_connections': count + SPARE_DESCRIPTORS, 'idle_timeout': IDLE_SECONDS}
    with service(transport, cores, **limits) as found:
        created = found.server.ask('POST', '/addresses', json.dumps(TYPICAL).encode())
        connections = Connections(found.server.port, created.headers['Location'])
        before = latency(found, seconds)  # first, for what comes with the first requests
        resident = memory_of(found.pid).resident
        with contextlib.closing(connections):
            connections.open(count)
            each = 1000 * (memory_of(found.pid).resident - resident) / count
            beside = latency(found, seconds)
            return Held(connections.count_alive(), each, before, beside)


def latency(found: Service, seconds: float) -> Latency:
    """Of requests for an entry, in an open loop that leaves the service idle for the most part.

    :raises Failed: not all are answered.
    """
    # By a process of its own: its event loop takes no descriptor above 1023.
    with tempfile.NamedTemporaryFile() as told:
        done = subprocess.run(
            [sys.executable, str(LOAD), '--url', found.url, '--seconds', f'{seconds:g}',
             '--rate', str(RATE), '--mix', 'get=1', '--json', told.name],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise Failed(f'others do not get all answers: {done.stderr}')
        figures = json.load(told)['latency_ms']['get']
    return Latency(figures['p50'], figures['p99'])


# --- the command ---

def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints tables.

    :return: the exit status: 0 all holds, 1 something does not or the service failed, 2 it could
        not begin.
    """
    args = _parse_args(argv)
    cores = share_out()
    _say(cores.describe())
    try:
        found = {transport: _measured(transport, cores, args) for transport in args.transports}
        packages = imports(cores, args.starts)
    except Failed as error:
        _say(str(error))
        return 1
    print(*table(found, args.connections), '', *imports_table(packages), sep='\n')
    complaints = [*_complaints(found, args)]
    for complaint in complaints:
        _say(complaint)
    return int(bool(complaints))


def _measured(transport: str, cores: Cores, args: argparse.Namespace) -> Footprint:
    ready, idle = starts(transport, cores, args.starts)
    return Footprint(ready, idle, workers(transport, cores),
                     hold(transport, cores, args.connections, args.seconds))


def table(found: Mapping[str, Footprint], connections: int) -> Iterator[str]:
    """For people: a line for each figure, a column for each transport."""
    yield f'{"":52}' + ''.join(f'{transport:>12}' for transport in found)
    columns = [[*_rows(each, connections)] for each in found.values()]
    for cells in zip(*columns, strict=True):
        yield f'{cells[0][0]:52}' + ''.join(f'{figure:>12}' for _, figure in cells)


def _rows(found: Footprint, connections: int) -> Iterator[tuple[str, str]]:
    yield f'ready after, s: median of {len(found.ready)}', f'{statistics.median(found.ready):.3f}'
    yield 'ready after, s: fastest', f'{min(found.ready):.3f}'
    yield 'one process, MB: resident', f'{found.idle.resident:.1f}'
    yield 'one process, MB: proportional', f'{found.idle.proportional:.1f}'
    each = Memory(*map(statistics.mean, zip(*found.workers, strict=True)))
    yield f'each of {len(found.workers)} workers, MB: resident', f'{each.resident:.1f}'
    yield f'each of {len(found.workers)} workers, MB: proportional', f'{each.proportional:.1f}'
    held = found.held
    yield f'idle connections alive in the end, of {connections}', f'{held.kept}'
    yield 'memory for one of them, KB', f'{held.each:.2f}'
    for name, latencies in (('without', held.before), ('beside', held.beside)):
        yield f'GET {name} them, ms: p50', f'{latencies.p50:.2f}'
        yield f'GET {name} them, ms: p99', f'{latencies.p99:.2f}'


def imports_table(packages: Counter[str]) -> Iterator[str]:
    """For people: the packages whose import takes longest, each with what it alone brings along."""
    total = packages.total()
    yield f'{"imports, with -X importtime":52}{"ms":>12}{"share":>12}'
    for package, microseconds in [*packages.most_common(MODULES), ('all', total)]:
        yield f'{package:52}{microseconds / 1000:12.1f}{microseconds / total:12.0%}'


def _complaints(found: Mapping[str, Footprint], args: argparse.Namespace) -> Iterator[str]:
    """What does not hold, one line for each."""
    for transport, each in found.items():
        ready, lost = statistics.median(each.ready), args.connections - each.held.kept
        if ready > args.ready_within:
            yield f'{transport}: ready after {ready:.3f} s, not within {args.ready_within:g} s'
        if lost:
            yield f'{transport}: {lost} of {args.connections} connections were lost'


def _say(text: str) -> None:
    print(f'footprint.py: {" ".join(text.split())}', file=sys.stderr, flush=True)


# --- the command line ---

def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog='footprint.py', allow_abbrev=False,
        description='Starts the service, and measures how long that takes, what memory it needs, '
                    'and what memory an idle connection needs.')
    parser.add_argument('--transports', nargs='+', choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument('--starts', type=int, default=7, metavar='N',
                        help='of each transport (default: %(default)s)')
    parser.add_argument('--connections', type=int, default=10_000, metavar='N',
                        help='idle ones, to be held (default: %(default)s)')
    parser.add_argument('--seconds', type=float, default=3.0, metavar='N',
                        help='for which others ask, without and beside them (default: %(default)g)')
    parser.add_argument('--ready-within', type=float, default=READY_WITHIN, metavar='N',
                        help='seconds; else the exit status is 1 (default: %(default)g)')
    args = parser.parse_args(argv)
    _require(parser, 'starts', args.starts, MOST_STARTS)
    _require(parser, 'connections', args.connections, MOST_CONNECTIONS)
    _require(parser, 'seconds', args.seconds, MOST['seconds'])
    _allow_descriptors(parser, args.connections + 2 * SPARE_DESCRIPTORS)
    return args


def _require(parser: Parser, name: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        parser.error(f'--{name} must be above 0 and at most {most}')


def _allow_descriptors(parser: Parser, wanted: int) -> None:
    """Raises the limit of this process, which is the service's, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if 0 <= soft < wanted:  # -1: there is none
            most = hard if hard < 0 else max(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    except (OSError, ValueError):
        parser.error(f'--connections: needs {wanted} open files, and the limit is {hard}')


if __name__ == '__main__':
    sys.exit(main())

"""What it costs to see what the service does: the same requests with ever more that watches them.

Each variant is a server process of its own, with one entry in memory and a closed loop of requests
for it: the shortest request there is, so what watches it shows most. They are measured in turn,
round after round, for machines are noisy; what is told is the median. Where there are two cores the
server has one and all else the other. Prints rows of a Markdown table: requests per second, their
ratio to those of the bare service, and the CPU time of the server process for each request, which
depends less on what else the machine does. For otlp there is a receiver, which answers at once.

A second table has what `@traced` costs where no collector is configured: calls of the service, in
this process, decorated and not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import http.server
import inspect
import logging
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from addrservice import service as service_module
from addrservice.config import complete_config
from addrservice.database.observed_db import ObservedAddressBookDB
from addrservice.service import AddressBookService
from addrservice.tornado.admission import Admission
from addrservice.tornado.app import AddressBookApplication, make_tracing
from addrservice.tornado.connection import HTTPServer
from addrservice.tornado.listening import bind, limits_of
from addrservice.tornado.server import configure_logging
from addrservice.tornado.serving import LOOPS, TRANSPORTS
from addrservice.tornado.telemetry import Telemetry
from addrservice.utils.metrics import Metrics
from benchmarks.driver.plan import Plan
from benchmarks.driver.run import drive, run
from benchmarks.validation import TYPICAL

CONNECTIONS = 8
WARM_UP_SECONDS = 0.5
CALLS = 2000
CALL_ROUNDS = 31
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []


class Variant(NamedTuple):
    """What watches the requests of a server."""

    has_line: bool = True
    has_metrics: bool = True
    tracing: Mapping[str, Any] = {}
    """The section of the configuration."""


def variants(otlp: str) -> Mapping[str, Variant]:
    """What is compared, by name.

    :param otlp: the URL that spans are sent to.
    """
    ring = {'ring': None}
    exported = {**ring, 'otlp': {'endpoint': otlp}}
    return {
        'nothing': Variant(has_line=False, has_metrics=False),
        'canonical line': Variant(has_metrics=False),
        'plus metrics': Variant(),
        'plus ring': Variant(tracing={'collectors': ring}),
        'plus otlp at 1 %': Variant(tracing={'sample-ratio': 0.01, 'collectors': exported}),
        'plus otlp at 100 %': Variant(tracing={'collectors': exported})}


# --- a server ---

async def serve(variant: Variant) -> None:
    """Serves until stdin ends; the port goes to stdout, lines to nobody."""
    config = complete_config({'server': {'port': 0}, 'tracing': variant.tracing})
    configure_logging(config)
    logger = logging.getLogger(config['service']['logger'])
    logger.setLevel(logging.INFO if variant.has_line else logging.CRITICAL)
    metrics = Metrics()
    watching = metrics if variant.has_metrics else None
    service = AddressBookService(config, logger, watching)
    telemetry = Telemetry(logger, make_tracing(config, logger, metrics), watching)
    app = AddressBookApplication(service, telemetry, Admission(CONNECTIONS), metrics)
    server = HTTPServer(app, app.refuse, limits_of(config['server']),
                        telemetry.connection_refused, TRANSPORTS[config['server']['transport']])
    sockets = bind('server', config['server'])
    server.add_sockets(sockets)
    await service.start()
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


class Server:
    """A server process of a variant."""

    def __init__(self, name: str, otlp: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, '--serve', name, '--otlp', otlp], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        pin(self._process.pid, 0)
        assert self._process.stdout is not None
        self.url = f'http://127.0.0.1:{self._process.stdout.readline().strip()}'

    def cpu_seconds(self) -> float:
        """CPU time that the process has used, in user and kernel."""
        fields = Path(f'/proc/{self._process.pid}/stat').read_text().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def stop(self) -> None:
        """Ends the process."""
        self._process.communicate()


def pin(pid: int, core: int) -> None:
    """Gives a process one of the first two cores, where there are two or more."""
    if len(CORES) > 1:
        os.sched_setaffinity(pid, {CORES[core]})


# --- a back end ---

class _Receiver(http.server.BaseHTTPRequestHandler):
    """Takes spans, and forgets them."""

    protocol_version = 'HTTP/1.1'

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(200)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def receiving() -> Iterator[str]:
    """A back end for OTLP; gives its URL."""
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{receiver.server_port}/v1/traces'
        receiver.shutdown()


# --- measuring ---

class Figures(NamedTuple):
    """One measurement of one variant."""

    throughput: float
    """Requests per second."""

    cpu: float
    """Microseconds of the server's CPU time per request."""


def measure(server: Server, seconds: float) -> Figures:
    """Drives requests at a server, after a moment to warm up."""
    plan = Plan(url=server.url, seconds=WARM_UP_SECONDS, connections=CONNECTIONS,
                mix={'get': 1}, entries=1)
    run(drive(plan))
    before = server.cpu_seconds()
    result = run(drive(dataclasses.replace(plan, seconds=seconds)))
    if result.errors:
        raise SystemExit(f'requests went wrong: {dict(result.errors)}')
    return Figures(result.throughput, 1e6 * (server.cpu_seconds() - before) / result.count)


def compare(rounds: int, seconds: float) -> Mapping[str, list[Figures]]:
    """Measures every variant once in each round, each time in another order."""
    with receiving() as otlp, contextlib.ExitStack() as stack:
        servers = {name: Server(name, otlp) for name in variants(otlp)}
        for server in servers.values():
            stack.callback(server.stop)
        found: dict[str, list[Figures]] = {name: [] for name in servers}
        turns = [name for _ in range(rounds) for name in random.sample(list(servers), len(servers))]
        for name in tqdm(turns, file=sys.stderr, unit='run'):
            found[name].append(measure(servers[name], seconds))
    return found


def table(found: Mapping[str, list[Figures]]) -> Iterator[str]:
    """Medians, and the ratio of each round to what the bare service did in it."""
    yield '| what watches | requests/s | ratio | CPU µs/request |'
    yield '|---|---|---|---|'
    bare = found['nothing']
    for name, figures in found.items():
        ratio = statistics.median(
            each.throughput / base.throughput for each, base in zip(figures, bare, strict=True))
        throughput, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
        yield f'| {name} | {throughput:.0f} | {ratio:.2f} | {cpu:.0f} |'


# --- the decorator ---

@contextlib.contextmanager
def undecorated() -> Iterator[None]:
    """Meanwhile nothing in the way of a request has `@traced`."""
    places = [(owner, name, member)
              for owner in (AddressBookService, ObservedAddressBookDB, service_module)
              for name, member in vars(owner).items()
              if inspect.isfunction(member) and hasattr(member, '__wrapped__')
              and member.__globals__['__name__'] == 'addrservice.utils.tracing']
    assert len(places) > 10, places
    for owner, name, member in places:
        setattr(owner, name, inspect.unwrap(member))
    try:
        yield
    finally:
        for owner, name, member in places:
            setattr(owner, name, member)


async def time_calls(call: Callable[[], Awaitable[object]]) -> float:
    """Microseconds for one call."""
    began = time.process_time()
    for _ in range(CALLS):
        await call()
    return (time.process_time() - began) / CALLS * 1e6


async def compare_decorated() -> Mapping[str, list[tuple[float, float]]]:
    """Microseconds decorated and not, round after round, for calls of the service."""
    service = AddressBookService({}, logging.Logger('quiet'), Metrics())
    await service.start()
    key = await service.create_address(TYPICAL)
    calls: Mapping[str, Callable[[], Awaitable[object]]] = {
        'get_address': lambda: service.get_address(key.nickname),
        'update_address': lambda: service.update_address(key.nickname, TYPICAL)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in tqdm(range(CALL_ROUNDS), file=sys.stderr, unit='round'):
        for name, call in calls.items():
            decorated = await time_calls(call)
            with undecorated():
                found[name].append((decorated, await time_calls(call)))
    return found


def decorator_table(found: Mapping[str, list[tuple[float, float]]]) -> Iterator[str]:
    """Medians, and between what bounds half of the ratios lie."""
    yield '| call | undecorated µs | decorated µs | ratio | half of the rounds |'
    yield '|---|---|---|---|---|'
    for name, pairs in found.items():
        with_it, without = (statistics.median(column) for column in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles([each / bare for each, bare in pairs], n=4)
        yield (f'| {name} | {without:.1f} | {with_it:.1f} | {middle:.3f} '
               f'| {low:.3f} to {high:.3f} |')


# --- the command ---

def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=25, metavar='N', help='default: %(default)s')
    parser.add_argument('--seconds', type=float, default=1.0, metavar='N',
                        help='for each variant in a round (default: %(default)s)')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    parser.add_argument('--otlp', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        with asyncio.Runner(loop_factory=LOOPS['fast']) as runner:
            return runner.run(serve(variants(args.otlp)[args.serve]))
    pin(0, 1)
    print(*table(compare(args.rounds, args.seconds)), '', sep='\n', flush=True)
    print(*decorator_table(asyncio.run(compare_decorated())), sep='\n')


if __name__ == '__main__':
    main()

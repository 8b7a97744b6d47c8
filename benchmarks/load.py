"""Drives requests at a running service, and tells how long the answers took.

The requests are a mix of get, list (a page), put, post and delete, on connections that are kept
alive, about entries that the run makes for itself and removes in the end.

With a rate the loop is open: requests are due on a schedule that does not care how the service is
doing, one that finds all connections busy waits for its turn, and its latency counts from when it
was due. So a stall shows in every request that it has held up. Without a rate the loop is closed:
each connection sends its next request when it has an answer. That measures throughput; of a stall
it sees one slow request per connection.

Latencies are kept, each one, eight bytes for a request: percentiles are exact, whatever the range.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from benchmarks.driver.options import Parser
from benchmarks.driver.plan import MOST, Plan
from benchmarks.driver.report import document, percentile_report, report
from benchmarks.driver.result import Result
from benchmarks.driver.run import Load, NotFilled, Unreachable, run

PROGRESS_SECONDS = 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Drives, and reports on stdout.

    :return: the exit status: 0 all was answered as expected, 1 something was not, 2 it could not
        begin, 130 after Ctrl-C.
    """
    args = _parse_args(argv)
    try:
        result, status = run(_until_signal(args.plan))
    except (Unreachable, NotFilled) as error:
        print(f'load.py: {" ".join(str(error).split())}', file=sys.stderr)
        return 2 if isinstance(error, Unreachable) else 1
    print(report(result))
    if args.percentiles:
        print('', percentile_report(result.latencies()), sep='\n')
    if args.json:
        with args.json as file:
            json.dump(document(result), file, indent=2)
    return status or int(bool(result.errors or result.left))


async def _until_signal(plan: Plan) -> tuple[Result, int]:
    """The result, and the status that a shell gives for a signal, or 0. The first one breaks the
    run off, the second ends the process at once."""
    received: list[signal.Signals] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: signal.Signals) -> None:
        received.append(number)
        load.stop()
        for other in numbers:
            loop.remove_signal_handler(other)
            signal.signal(other, signal.SIG_DFL)

    load, loop = Load(plan), asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stop, number)
    showing = asyncio.create_task(_show(load))
    try:
        return await load.run(), 128 + received[0] if received else 0
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _show(load: Load) -> None:
    """What goes on, on stderr if that is a terminal, until it is cancelled."""
    with tqdm(file=sys.stderr, disable=None, leave=False, dynamic_ncols=True,
              bar_format='{desc} {elapsed}{postfix}') as bar:
        while True:
            before = load.result.count
            await asyncio.sleep(PROGRESS_SECONDS)
            rate = (load.result.count - before) / PROGRESS_SECONDS
            bar.desc = load.doing
            bar.set_postfix_str(f'{rate:.0f} requests/s, {load.result.errors.total()} errors')


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `plan` is made of those that have the name of a field."""
    parser = Parser(
        prog='load.py', allow_abbrev=False,
        description='Drives requests at a running address book, on entries of its own, and tells '
                    'how long the answers took.')
    _add_plan_options(parser)
    parser.add_argument('--percentiles', action='store_true',
                        help='list the distribution of all latencies, too')
    parser.add_argument('--json', type=_writable, metavar='FILE',
                        help='write all figures there, too')
    args = parser.parse_args(argv)
    try:
        args.plan = Plan(**{field.name: getattr(args, field.name)
                            for field in dataclasses.fields(Plan)})
    except ValueError as error:
        parser.error(str(error))
    return args


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    parser.add_argument('--url', default=plan.url, help='default: %(default)s')
    parser.add_argument('--seconds', type=float, default=plan.seconds,
                        help=f'how long to drive, at most {MOST["seconds"]} (default: %(default)g)')
    parser.add_argument('--rate', type=float, metavar='N',
                        help='requests per second, at random, whatever the answers; without it '
                             'each connection waits for its answer and goes on at once')
    parser.add_argument('--even', action='store_true', dest='is_even',
                        help='of a rate: at the same distance, not at random')
    parser.add_argument('--connections', type=int, default=plan.connections, metavar='N',
                        help='kept alive, one request at a time on each (default: %(default)s)')
    mix = ','.join(f'{name}={weight:g}' for name, weight in plan.mix.items())
    parser.add_argument('--mix', type=_mix, default=plan.mix, metavar='NAME=WEIGHT,…',
                        help=f'default: {mix}')
    parser.add_argument('--entries', type=int, default=plan.entries, metavar='N',
                        help='made beforehand, to work on (default: %(default)s)')
    parser.add_argument('--timeout', type=float, default=plan.timeout, metavar='SECONDS',
                        help='for one request (default: %(default)g)')


def _mix(text: str) -> dict[str, float]:
    try:
        pairs = (part.split('=') for part in text.split(','))
        return {name.strip(): float(weight) for name, weight in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError('must be like get=60,list=5') from error


def _writable(path: str) -> IO[str]:
    """Opens the file before the run: what cannot be written shall be known then."""
    try:
        return open(path, 'w', encoding='utf-8')
    except OSError as error:
        raise argparse.ArgumentTypeError(f'cannot write it: {error}') from error


if __name__ == '__main__':
    sys.exit(main())

"""Where a request's microseconds go, by layer: serves, drives a mix of requests, and profiles.

The loop is closed: each connection sends its next request when it has an answer. So there is
always work, whatever the machine and however much the profiler slows the service down, and much of
it to count; an open loop would have to know what the service can take, or measure a queue. How
long answers take is not looked at here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from addrservice.utils.profiler import render
from benchmarks.driver.options import Parser, seconds_up_to
from benchmarks.driver.report import counts
from benchmarks.driver.result import Result
from benchmarks.driver.run import NotFilled, Unreachable, run
from benchmarks.sampling.measuring import Findings, measure
from benchmarks.sampling.server import ServerFailed
from benchmarks.sampling.summary import report

DEFAULT_OUTPUT = 'local/profile.html'
MOST_SECONDS = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the flame view, and prints the summary.

    :return: the exit status: 0 after a profile; 1 if requests went wrong; 2 if there is none; as
        a shell tells it after a signal.
    """
    args = _parse_args(argv)
    try:
        findings = run(_until_signal(args.config, args.seconds))
    except (ServerFailed, Unreachable, NotFilled) as error:
        _say(str(error))
        return 2
    if isinstance(findings, int):
        _say('interrupted')
        return findings
    _write_page(findings, args.output)
    print(*report(findings), f'The flame view is in {args.output}.', sep='\n')
    return _say_errors(findings.result)


async def _until_signal(config: str | None, seconds: float) -> Findings | int:
    """What was found; or, if a signal comes, the status that a shell gives for that. A second
    signal does not wait for entries to be removed."""
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        measuring.cancel()

    measuring = asyncio.create_task(measure(config, seconds, _tell))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await measuring
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]


def _write_page(findings: Findings, file: Path) -> None:
    from pyinstrument.session import Session  # takes a moment, and --help has no use for it

    page, _ = render(Session.from_json(findings.session), 'html')
    file.write_text(page, encoding='utf-8')


def _say_errors(result: Result) -> int:
    """
    :return: the exit status.
    """
    if result.errors:
        _say(f'errors: {counts(result.errors)}')
    if result.left:
        _say(f'up to {result.left} entries could not be removed')
    return int(bool(result.errors or result.left))


def _say(text: str) -> None:
    print(f'run.py profile: {" ".join(text.split())}', file=sys.stderr, flush=True)


def _tell(text: str) -> None:
    """What is only for those who wait."""
    if sys.stderr.isatty():
        _say(text)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog='run.py profile', allow_abbrev=False,
        description='Starts the service, drives a mix of requests at it, and tells where a '
                    "request's microseconds go, by layer; first without the profiler, for what a "
                    'request costs, then with it, for how that is shared out.')
    parser.add_argument('--seconds', type=seconds_up_to(MOST_SECONDS), default=10.0, metavar='N',
                        help=f'for each of the two, at most {MOST_SECONDS} (default: %(default)g)')
    parser.add_argument('--config', metavar='FILE',
                        help='of the service (default: addressbook-sqlite.yaml, with the entries '
                             'in a temporary file). With this the book is the one that FILE '
                             'names: entries are made in it, and removed in the end')
    parser.add_argument('--output', type=_writable, default=DEFAULT_OUTPUT, metavar='HTML',
                        help='where to write the flame view (default: %(default)s)')
    return parser.parse_args(argv)


def _writable(path: str) -> Path:
    """Looks before the run: what cannot be written shall be known then."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'cannot make its folder: {error}') from error
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f'cannot write {path}')
    return file


if __name__ == '__main__':
    sys.exit(main())

"""`run.py copy`: moves house from the store of one configuration file to that of another.

Both stores are opened as the service opens its own. So a source, too, is
brought to the format of this release, as by every start, and write access to it
is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from addrservice.config import load_config, mask_secrets
from addrservice.copying import (
    Comparison, CopyResult, Findings, Progress, blaming, compare, copy_addresses)
from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.db_engines import create_addressbook_db
from addrservice.errors import ConfigError, StorageError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Copies, and compares if that is asked for.

    :return: the exit status: 0 all is there, 1 something differs, is damaged
        or has failed, 2 it could not begin, 130 after Ctrl-C.
    """
    args = _parse_args(argv)
    try:
        source, target = _sections(args)
        with _restored_signals():
            return asyncio.run(_until_signal(_move(args, source, target)))
    except ConfigError as error:
        _say(str(error))
        return 2
    except StorageError as error:
        _say(f'{error}: {error.cause}{_notes(error)}; run it again, and it goes on')
        return 1


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='run.py copy', allow_abbrev=False,
        description='Copies all entries, with their ids and versions, from one store to another. '
                    'What was interrupted goes on when it is run again. Opening the store to copy '
                    'from upgrades it, as every start of a service does, and needs write access.')
    parser.add_argument('--from', dest='source', required=True, metavar='CONFIG',
                        help='YAML file of a service that uses the store to copy from')
    parser.add_argument('--to', dest='target', required=True, metavar='CONFIG',
                        help='the same for the store to copy to; it is made if it does not exist')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace entries that differ; else they stay, and are told')
    parser.add_argument('--verify', action='store_true',
                        help='afterwards compare the two stores, entry by entry')
    return parser.parse_args(argv)


def _sections(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two files say about their stores.

    :raises ConfigError: with these a copy makes no sense.
    """
    source, target = _section(args.source), _section(args.target)
    with _naming(args.source):
        _require_there(source)
    with _naming(args.target):
        _require_another(source, target)
    return source, target


def _section(file: str) -> dict[str, Any]:
    with _naming(file):
        section: dict[str, Any] = load_config(file)['addr-db']
        if 'memory' in section:
            raise ConfigError('addr-db.memory: ends with its process, and there is nothing to '
                              'copy from or to')
        return section


def _require_there(source: dict[str, Any]) -> None:
    """To start an engine would make what is missing, and an empty book look like a copied one."""
    match source:
        case {'fs': path} if not os.path.isdir(path):
            raise ConfigError(f'addr-db.fs: {path!a}: there is no such folder to copy from')
        case {'sqlite': {'path': path}} if not os.path.isfile(path):
            raise ConfigError(f'addr-db.sqlite: {path!a}: there is no such file to copy from')


def _require_another(source: dict[str, Any], target: dict[str, Any]) -> None:
    ours, theirs = _location(source), _location(target)
    with contextlib.suppress(OSError, ValueError):  # one is not there, or is no path
        if ours == theirs or os.path.samefile(ours, theirs):
            raise ConfigError(f'addr-db.{next(iter(target))}: is the store to copy from, too')


def _location(section: dict[str, Any]) -> str:
    """Where a store is: a path, a DSN with its secrets, or all that is said of another engine."""
    match section:
        case {'fs': place} | {'sqlite': {'path': place}} | {'postgres': {'dsn': place}}:
            return str(place)
    return json.dumps(section, sort_keys=True)


async def _move(args: argparse.Namespace, source_section: dict[str, Any],
                target_section: dict[str, Any]) -> int:
    async with (_opened(args.source, source_section) as source,
                _opened(args.target, target_section) as target):
        with _progress('copying', await source.count_addresses()) as progress:
            result = await copy_addresses(source, target, args.overwrite, progress)
        status = _report_copy(result)
        if args.verify:
            with _progress('verifying', await source.count_addresses()) as progress:
                comparison = await compare(source, target, progress)
            status = max(status, _report_comparison(comparison))
        return status


@contextlib.asynccontextmanager
async def _opened(file: str, section: dict[str, Any]
                  ) -> AsyncGenerator[AbstractAddressBookDB, None]:
    with _naming(file):
        engine = create_addressbook_db(section, logging.getLogger('addrservice'))
    try:
        with _naming(file), blaming(file):
            await engine.start()
        yield engine
    finally:
        await engine.stop()


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    """Has an error tell which of the two files it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f'{file}: {error}') from error


@contextlib.contextmanager
def _progress(doing: str, total: int) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal. What breaks off is told how far it has come."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        bar.update()

    with tqdm(total=total, desc=doing, unit=' entries', file=sys.stderr, dynamic_ncols=True,
              disable=not sys.stderr.isatty()) as bar:
        try:
            yield advance
        except BaseException as error:
            error.add_note(f'{doing}, after {done} of {total} entries')
            raise


async def _until_signal(work: Awaitable[int]) -> int:
    """The status of the work; or, if a signal comes, the one that a shell gives for that.

    A second signal ends the process at once: a copy survives it.
    """
    received: list[signal.Signals] = []
    task = asyncio.ensure_future(work)

    def stop(number: signal.Signals) -> None:
        received.append(number)
        for other in STOP_SIGNALS:
            loop.remove_signal_handler(other)
            signal.signal(other, signal.SIG_DFL)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError as error:
        if not received:
            raise
        _say(f'interrupted{_notes(error)}; run it again, and it goes on')
        return 128 + received[0]


@contextlib.contextmanager
def _restored_signals() -> Iterator[None]:
    """Gives signals back to whom they belonged."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_copy(result: CopyResult) -> int:
    """
    :return: the exit status.
    """
    _say(f'{result.copied} copied, {result.already_there} already there, '
         f'{result.overwritten} overwritten, {result.different.count} different, '
         f'{result.unreadable.count} unreadable')
    _report_findings('different, and left as it is without --overwrite', result.different)
    _report_findings('unreadable, and not copied', result.unreadable)
    return int(bool(result.different.count or result.unreadable.count))


def _report_comparison(result: Comparison) -> int:
    """
    :return: the exit status.
    """
    kinds = {'different': result.different, 'only at the source': result.only_at_source,
             'only at the target': result.only_at_target, 'unreadable': result.unreadable}
    counts = ', '.join(f'{findings.count} {kind}' for kind, findings in kinds.items())
    _say(f'verified: {result.equal} equal, {counts}')
    for kind, findings in kinds.items():
        _report_findings(kind, findings)
    return int(any(findings.count for findings in kinds.values()))


def _report_findings(kind: str, findings: Findings) -> None:
    for text in findings.first:
        _say(f'{kind}: {text}')
    if findings.count > len(findings.first):
        _say(f'{kind}: and {findings.count - len(findings.first)} more')


def _notes(error: BaseException) -> str:
    notes = getattr(error, '__notes__', [])
    return f' ({"; ".join(notes)})' if notes else ''


def _say(text: str) -> None:
    """One line, and no secret, whatever others have put into it."""
    print(f'run.py copy: {mask_secrets(" ".join(text.split()))}', file=sys.stderr, flush=True)

"""Moving house: copies a book from one store to another, and compares the two.

Both stores are walked in the order of names, side by side, as one merges two
sorted lists. So a page of each is all that is in memory, what is equal costs
nothing but its reading, and there is no state to keep: a copy that was cut
short, at whatever moment, is taken up by beginning anew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from addrservice.config import load_config, mask_secrets
from addrservice.database.addressbook_db import (
    AbstractAddressBookDB, Record, Stored, decode_record, is_nickname)
from addrservice.database.db_engines import create_addressbook_db
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, ConfigError, StorageError, UnreadableRecord)

IN_FLIGHT = 64
"""Writes under way at once: they share the wait for a disk or a network."""

MAX_NAMED = 100
"""Findings of one kind that are told one by one; the others are counted."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Progress = Callable[[], object]
"""Called once for each entry of the source, when it has been dealt with."""


@dataclass
class Findings:
    """Things to be told to a person: all are counted, the first are kept."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """
        :param text: an entry's name, and what is the matter with it; nothing
            of what the entry says.
        """
        self.count += 1
        if len(self.first) < MAX_NAMED:
            self.first.append(text)


@dataclass
class CopyResult:
    """What became of the entries of the source: each is counted once."""

    copied: int = 0
    already_there: int = 0
    overwritten: int = 0
    different: Findings = field(default_factory=Findings)
    """The target has another version or document, and keeps it."""

    unreadable: Findings = field(default_factory=Findings)
    """Damaged at the source, and not copied."""


@dataclass
class Comparison:
    """How the entries of two stores compare: each name is counted once."""

    equal: int = 0
    different: Findings = field(default_factory=Findings)
    only_at_source: Findings = field(default_factory=Findings)
    only_at_target: Findings = field(default_factory=Findings)
    unreadable: Findings = field(default_factory=Findings)
    """Damaged at the source, whatever the target has."""


async def copy_addresses(source: AbstractAddressBookDB, target: AbstractAddressBookDB,
                         overwrite: bool, progress: Progress) -> CopyResult:
    """Copies every entry, with its name and version, that the target has not.

    What only the target has stays. Both stores may be in use meanwhile: an
    entry that is written during the copy is copied as it was at some moment,
    or not at all; another copy sees to that.

    :param overwrite: whether an entry that differs is replaced; else it stays.
    :raises StorageError: a store failed; a note says which. What was copied
        until then is there, and another copy goes on.
    """
    copier = _Copier(target, overwrite, progress)
    try:
        await copier.copy_from(source)
    except ExceptionGroup as group:
        raise group.exceptions[0]  # what else was under way has failed for the same reason
    return copier.result


async def compare(source: AbstractAddressBookDB, target: AbstractAddressBookDB,
                  progress: Progress) -> Comparison:
    """Compares names, versions and documents.

    :raises StorageError: a store failed; a note says which.
    """
    result = Comparison()
    async with contextlib.aclosing(_side_by_side(source, target)) as pairs:
        async for ours, theirs in pairs:
            _compare(ours, theirs, result)
            if ours:
                progress()
    return result


def _compare(ours: Record | None, theirs: Record | None, result: Comparison) -> None:
    match ours, theirs:
        case None, Record(nickname=nickname):
            result.only_at_target.add(nickname)
        case Record(nickname=nickname), None:
            result.only_at_source.add(nickname)
        case Record() as ours, Record() as theirs:
            _compare_documents(ours, theirs, result)


def _compare_documents(ours: Record, theirs: Record, result: Comparison) -> None:
    try:
        difference = _difference(ours, _decoded(ours), theirs)
    except UnreadableRecord as error:
        result.unreadable.add(_damage(error))
        return
    if difference:
        result.different.add(f'{ours.nickname}: {difference}')
    else:
        result.equal += 1


class _Copier:
    """One copy under way."""

    def __init__(self, target: AbstractAddressBookDB, overwrite: bool, progress: Progress) -> None:
        self.target = target
        self.overwrite = overwrite
        self.progress = progress
        self.result = CopyResult()
        self._slots = asyncio.Semaphore(IN_FLIGHT)

    async def copy_from(self, source: AbstractAddressBookDB) -> None:
        """
        :raises ExceptionGroup: of what a store raised.
        """
        # The listing of the target is always ahead of what is being written:
        # it never meets an entry that has just been copied.
        async with (asyncio.TaskGroup() as tasks,
                    contextlib.aclosing(_side_by_side(source, self.target)) as pairs):
            async for ours, theirs in pairs:
                if ours:
                    await self._copy(ours, theirs, tasks)

    async def _copy(self, ours: Record, theirs: Record | None, tasks: asyncio.TaskGroup) -> None:
        write = self._write_for(ours, theirs)
        if write is None:
            self.progress()
        else:
            await self._slots.acquire()
            tasks.create_task(self._do(write, ours.nickname))

    def _write_for(self, ours: Record, theirs: Record | None
                   ) -> Callable[[], Awaitable[None]] | None:
        """What there is to do at the target; if nothing, that is counted."""
        try:
            wanted = _decoded(ours)
        except UnreadableRecord as error:
            self.result.unreadable.add(_damage(error))
            return None
        if theirs is None:
            return functools.partial(self._create, wanted)
        difference = _difference(ours, wanted, theirs)
        if difference and self.overwrite:
            return functools.partial(self._replace, wanted, theirs.version)
        if difference:
            self.result.different.add(f'{ours.nickname}: {difference}')
        else:
            self.result.already_there += 1
        return None

    async def _do(self, write: Callable[[], Awaitable[None]], nickname: str) -> None:
        try:
            with _blaming('target'):
                await write()
        except (AddressExists, AddressNotFound, AddressChanged):
            self.result.different.add(f'{nickname}: somebody else has just changed it there')
        finally:
            self._slots.release()
        self.progress()

    async def _create(self, wanted: Stored) -> None:
        await self.target.create_address(wanted.entry, wanted.nickname, wanted.version)
        self.result.copied += 1

    async def _replace(self, wanted: Stored, seen: str) -> None:
        # A damaged record may have no version at all.
        await self.target.update_address(
            wanted.nickname, wanted.entry, if_version=seen or None, version=wanted.version)
        self.result.overwritten += 1


async def _side_by_side(source: AbstractAddressBookDB, target: AbstractAddressBookDB
                        ) -> AsyncGenerator[tuple[Record | None, Record | None], None]:
    """For each name that either has, in order: what the source and what the target has."""
    async with (contextlib.aclosing(_records(source, 'source')) as ours,
                contextlib.aclosing(_records(target, 'target')) as theirs):
        left, right = await anext(ours, None), await anext(theirs, None)
        while left or right:
            first = min(record.nickname for record in (left, right) if record)
            pair = (left if left and left.nickname == first else None,
                    right if right and right.nickname == first else None)
            yield pair
            left = await anext(ours, None) if pair[0] else left
            right = await anext(theirs, None) if pair[1] else right


async def _records(engine: AbstractAddressBookDB, side: str) -> AsyncGenerator[Record, None]:
    with _blaming(side):
        async with contextlib.aclosing(engine.read_pages('', engine.page_size)) as pages:
            async for page in pages:
                for record in page:
                    yield record
                await asyncio.sleep(0)  # for signals, also where nothing waits


@contextlib.contextmanager
def _blaming(where: str) -> Iterator[None]:
    """Has an error tell which of the two stores it is about."""
    try:
        yield
    except StorageError as error:
        error.add_note(where)
        raise


def _decoded(record: Record) -> Stored:
    """The entry in a record, as any store takes it.

    :raises UnreadableRecord: the record is damaged, or has a name that cannot be one.
    """
    if not is_nickname(record.nickname):
        raise UnreadableRecord('The name cannot be one', record.place)
    return decode_record(record)


def _difference(ours: Record, wanted: Stored, theirs: Record) -> str:
    """In what a record at the target is not the one that is wanted; nothing of what it says.

    :return: ``''`` if it is.
    """
    if theirs.text == ours.text:
        differing = []
    else:
        try:
            differing = _differing_members(wanted.entry, decode_record(theirs).entry)
        except UnreadableRecord as error:
            return f'damaged at the target: {_damage(error)}'
    if theirs.version != wanted.version:
        differing.insert(0, 'version')
    return f'{", ".join(differing)} differ{"s" * (len(differing) == 1)}' if differing else ''


def _differing_members(ours: AddressEntry, theirs: AddressEntry) -> list[str]:
    left, right = _members(ours), _members(theirs)
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def _members(entry: AddressEntry) -> dict[str, str]:
    """The members of a document as text, for to Python 1 and 1.0 are equal."""
    return {name: json.dumps(value) for name, value in entry.to_api_dm().items()}


def _damage(error: UnreadableRecord) -> str:
    return f'{error.cause}: {error.__cause__ or error.detail}'


# --- the command ---

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
                    'What was interrupted goes on when it is run again.')
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
        with _naming(file), _blaming(file):
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

"""Moving house: copies a book from one store to another, and compares the two.

Both stores are walked in the order of names, side by side, as one merges two
sorted lists. So a page of each is all that is in memory, what is equal costs
nothing but its reading, and there is no state to keep: a copy that was cut
short, at whatever moment, is taken up by beginning anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.records import Record, Stored, decode_record, is_nickname
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, StorageError, UnreadableRecord)

IN_FLIGHT = 16
"""Writes under way at once: they share the wait for a disk or a network. More would only queue: to
check and convert an entry takes longer than its share of that."""

MAX_NAMED = 100
"""Findings of one kind that are told one by one; the others are counted."""

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
            with blaming('target'):
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
    with blaming(side):
        async with contextlib.aclosing(engine.read_pages('', engine.page_size)) as pages:
            async for page in pages:
                for record in page:
                    yield record
                await asyncio.sleep(0)  # for signals, also where nothing waits


@contextlib.contextmanager
def blaming(where: str) -> Iterator[None]:
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

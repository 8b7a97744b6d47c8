"""The port between the service and its storage.

`AbstractAddressBookDB` is the contract: what stands in its docstrings holds
for every engine, and `tests/unit/addressbook_db_test.py` replays it on each of
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from addrservice.database.records import (
    Columns, Key, Record, Stored, columns_of, decode_page, decode_record)
from addrservice.datamodel import AddressEntry
from addrservice.errors import AddressChanged, AddressNotFound, UnreadableRecord
from addrservice.utils import logutils

WALK_SIZE = 16
"""Records in a page, at most, where all are listed: others have their turn after each, and their
latency counts more than how soon a long list is at its end."""

TURN_SECONDS = 0.0003
"""How long a listing goes on before others have their turn."""


def no_such_entry() -> AddressNotFound:
    """The error for a nickname that no entry has."""
    return AddressNotFound('No entry has this id')


def require_version(version: str, if_version: str | None) -> None:
    """Compares the version of an entry with the one that a change is for.

    :raises AddressChanged: it is another one.
    """
    if if_version not in (None, version):
        raise AddressChanged('The entry has changed: it has another version now')


class Connections(NamedTuple):
    """The connections of an engine to its database."""

    used: int
    idle: int
    maximum: int
    """So many there may be."""


class AbstractAddressBookDB(ABC):
    """A store of address book entries, each under a unique nickname.

    - An entry that was handed in or out is the caller's own: changing it
      changes nothing in the store, and the store never changes it.
    - A call that returns has happened, and survives what the engine promises
      to survive. A call that raises has changed nothing, except where the
      error says that the outcome is unknown.
    - Calls may overlap; each takes effect at one moment between its start and
      its end.
    - A nickname that cannot be one (`is_nickname`) belongs to no entry.
    - Every write gives its entry a new version. A change that is made
      ``if_version`` is compared and made at that one moment: of two that
      build on one version, one is refused.
    - Any call may raise `StorageUnavailable` or `StorageError`, and before
      `start` or after `stop` raises `StorageUnavailable`.
    """

    page_size: int = 128
    """Records that a listing holds in memory at once: enough for a page of a hundred, and one
    more that tells whether there are more. Typical ones are a tenth of a megabyte."""

    def __init__(self, logger: logging.Logger) -> None:
        """
        :param logger: where damaged records are reported.
        """
        self.logger = logger

    @abstractmethod
    async def start(self) -> None:
        """Opens the store, and makes it if it does not exist.

        :raises ConfigError: the store cannot be used with this configuration.
        :raises StorageUnavailable: it cannot be reached now.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Closes the store. Stopping twice, or before `start`, is fine."""

    @abstractmethod
    async def ping(self) -> None:
        """Returns when the store could serve a request now.

        :raises StorageError: it could not.
        """

    @abstractmethod
    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        """Stores a new entry.

        :param nickname: its name; a new random one if left out.
        :param version: its version, of a copy; a new one if left out.
        :return: its name and version.
        :raises AddressExists: the name is taken; that entry stays as it is.
        :raises ValueError: the nickname or the version cannot be one.
        """

    @abstractmethod
    async def read_address(self, nickname: str) -> Stored:
        """The entry with that name.

        :raises AddressNotFound: there is none.
        :raises UnreadableRecord: there is one, but damaged.
        """

    @abstractmethod
    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        """Replaces the entry with that name, also a damaged one.

        :param if_version: only if this is its version.
        :param version: the version it gets, of a copy; a new one if left out.
        :return: the version it got.
        :raises AddressNotFound: there is none; none is made.
        :raises AddressChanged: it has another version, and keeps it.
        :raises UnreadableRecord: its version cannot be read to be compared.
        :raises ValueError: the new version cannot be one.
        """

    @abstractmethod
    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        """Removes the entry with that name, also a damaged one.

        :param if_version: only if this is its version.
        :raises AddressNotFound: there is none.
        :raises AddressChanged: it has another version, and stays.
        :raises UnreadableRecord: its version cannot be read to be compared.
        """

    @abstractmethod
    async def count_addresses(self) -> int:
        """How many entries there are, damaged ones among them."""

    async def read_all_addresses(self, after: str | None = None, limit: int | None = None
                                 ) -> AsyncGenerator[Stored, None]:
        """One entry after the other, in the order of the code points of their
        names.

        An entry that is there from start to end of the listing appears
        exactly once; one that is written or deleted meanwhile appears as it
        was at some moment, or not at all. Memory in use does not grow with
        the number of entries, and no transaction is held open. A damaged
        record is left out, and logged at ERROR.

        :param after: start behind this name, whether or not it is there.
        :param limit: at most so many entries.
        """
        async with contextlib.aclosing(self.read_address_pages(after, limit)) as pages:
            async for page in pages:
                for stored in page:
                    yield stored

    async def read_address_pages(self, after: str | None = None, limit: int | None = None
                                 ) -> AsyncGenerator[Columns[Stored], None]:
        """As `read_all_addresses`, but several entries at a time: what is done once for
        each page is not done for each entry."""
        if limit == 0:
            await self.ping()  # closed is closed, also for those who want nothing
            return
        if limit is None:
            size = min(self.page_size, WALK_SIZE)
        else:
            size = _share(limit, self.page_size)
        async with contextlib.aclosing(self.read_pages(after or '', size)) as pages:
            found, turn = 0, _Turn()
            async for page in pages:
                left = len(page) if limit is None else limit - found
                stored = await self._decoded(page, left, turn)
                found += len(stored)
                if stored:
                    yield stored
                if found == limit:
                    return

    @abstractmethod
    def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        """The records of `read_all_addresses`, page by page to the end. A `Columns` of
        them, which is kept by column, is decoded faster than any other sequence.

        :param after: as there; ``''`` comes before every name.
        :param size: records in one page.
        """

    async def _decoded(self, records: Sequence[Record], most: int, turn: _Turn) -> Columns[Stored]:
        if turn.is_over():
            await turn.give_way()  # also where nothing waits
        page = decode_page(records)
        if page is None:
            return await self._readable(records, most, turn)
        return page if len(page) <= most else page[:most]

    async def _readable(self, records: Sequence[Record], most: int, turn: _Turn) -> Columns[Stored]:
        readable: list[Stored] = []
        for record in records:
            if len(readable) == most:
                break
            if turn.is_over():
                await turn.give_way()
            try:
                readable.append(decode_record(record))
            except UnreadableRecord as error:
                self.on_unreadable(error)
        return columns_of(readable)

    def on_unreadable(self, error: UnreadableRecord) -> None:
        """A listing has met a damaged record, and goes on without it."""
        logutils.log(self.logger, logging.ERROR, message='UNREADABLE RECORD',
                     record=error.cause, reason=str(error.__cause__))

    def connections(self) -> Connections | None:
        """How many connections to a database the engine has; None if it has none to count."""
        return None


class _Turn:
    """What a listing takes of the event loop before others have their turn."""

    def __init__(self) -> None:
        self._end = time.perf_counter() + TURN_SECONDS

    def is_over(self) -> bool:
        """Whether it has taken enough."""
        return time.perf_counter() >= self._end

    async def give_way(self) -> None:
        """Lets others have their turn; then another one begins."""
        await asyncio.sleep(0)
        self._end = time.perf_counter() + TURN_SECONDS


def _share(count: int, most: int) -> int:
    """The size of as few pages as can be, of at most that size, that take no more than is
    wanted: 101 entries are not one page of 100 and another."""
    pages = math.ceil(count / most)
    return math.ceil(count / pages)

"""The port between the service and its storage, and the text of one record.

`AbstractAddressBookDB` is the contract: what stands in its docstrings holds
for every engine, and `tests/unit/addressbook_db_test.py` replays it on each of
them. Every engine stores the text that `encode_record` makes, so that engines differ only
in where it lies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import NamedTuple

from addrservice.datamodel import AddressEntry
from addrservice.errors import AddressNotFound, UnreadableRecord
from addrservice.utils import logutils

PAGE_SIZE = 10
"""Records that a listing holds in memory at once, and decodes in one go: even
of the largest, a few megabytes; in about a millisecond."""

_NICKNAME = re.compile(r'[A-Za-z0-9-]{1,64}')


def is_nickname(text: str) -> bool:
    """Whether a text can be an entry's name: 1 to 64 ASCII letters, digits
    and hyphens. It is safe as a file name and in a URL as it stands."""
    return _NICKNAME.fullmatch(text) is not None


def new_nickname() -> str:
    """A name that no entry has: 32 hexadecimal digits, random (RFC 9562 section 5.4)."""
    return uuid.uuid4().hex


def no_such_entry() -> AddressNotFound:
    """The error for a nickname that no entry has."""
    return AddressNotFound('No entry has this id')


def encode_record(entry: AddressEntry) -> str:
    """An entry as the text that engines store: one line of JSON."""
    return json.dumps(entry.to_api_dm(), ensure_ascii=False, separators=(',', ':'))


def decode_record(record: Record) -> AddressEntry:
    """The entry in a stored record.

    :raises UnreadableRecord: the text is not what `encode_record` makes.
    """
    try:
        return AddressEntry.from_api_dm(json.loads(record.text))
    except (ValueError, RecursionError) as error:
        raise UnreadableRecord('The stored entry cannot be read', record.place) from error


class Record(NamedTuple):
    """One entry as it lies in a store."""

    nickname: str
    text: str
    """What `encode_record` made; anything else is damage."""

    place: str
    """Where it lies, for the log if it is damaged; nothing secret, such as a DSN."""


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
    - Any call may raise `StorageUnavailable` or `StorageError`, and before
      `start` or after `stop` raises `StorageUnavailable`.
    """

    def __init__(self, logger: logging.Logger) -> None:
        """
        :param logger: where damaged records are reported.
        """
        self.logger = logger

    @abstractmethod
    async def start(self) -> None:
        """Opens the store, and makes it if it does not exist.

        :raises ConfigError: the store cannot be used with this configuration.
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
    async def create_address(self, entry: AddressEntry, nickname: str | None = None) -> str:
        """Stores a new entry.

        :param nickname: its name; a new random one if left out.
        :return: its name.
        :raises AddressExists: the name is taken; that entry stays as it is.
        :raises ValueError: the nickname cannot be one.
        """

    @abstractmethod
    async def read_address(self, nickname: str) -> AddressEntry:
        """The entry with that name.

        :raises AddressNotFound: there is none.
        :raises UnreadableRecord: there is one, but damaged.
        """

    @abstractmethod
    async def update_address(self, nickname: str, entry: AddressEntry) -> None:
        """Replaces the entry with that name, also a damaged one.

        :raises AddressNotFound: there is none; none is made.
        """

    @abstractmethod
    async def delete_address(self, nickname: str) -> None:
        """Removes the entry with that name, also a damaged one.

        :raises AddressNotFound: there is none.
        """

    async def read_all_addresses(self, after: str | None = None, limit: int | None = None
                                 ) -> AsyncGenerator[tuple[str, AddressEntry], None]:
        """Name and entry, one after the other, in the order of the names'
        code points.

        An entry that is there from start to end of the listing appears
        exactly once; one that is written or deleted meanwhile appears as it
        was at some moment, or not at all. Memory in use does not grow with
        the number of entries. A damaged record is left out, and logged at
        ERROR.

        :param after: start behind this name, whether or not it is there.
        :param limit: at most so many entries.
        """
        size = min(limit or PAGE_SIZE, PAGE_SIZE)
        async with contextlib.aclosing(self.read_pages(after or '', size)) as pages:
            found = 0
            async for page in pages:
                if limit == 0:
                    return
                await asyncio.sleep(0)  # others have their turn, also where nothing waits
                for nickname, entry in self._decoded(page):
                    yield nickname, entry
                    found += 1
                    if found == limit:
                        return

    @abstractmethod
    def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        """The records of `read_all_addresses`, page by page to the end.

        :param after: as there; ``''`` comes before every name.
        :param size: records in one page.
        """

    def _decoded(self, page: Sequence[Record]) -> Iterator[tuple[str, AddressEntry]]:
        for record in page:
            try:
                yield record.nickname, decode_record(record)
            except UnreadableRecord as error:
                logutils.log(self.logger, logging.ERROR, message='UNREADABLE RECORD',
                             record=error.cause, reason=str(error.__cause__))


def checked_nickname(nickname: str | None) -> str:
    """The nickname for a new entry.

    :raises ValueError: it cannot be one.
    """
    if nickname is None:
        return new_nickname()
    if not is_nickname(nickname):
        raise ValueError('a nickname is 1 to 64 letters, digits and hyphens')
    return nickname

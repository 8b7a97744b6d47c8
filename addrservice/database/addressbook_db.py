"""The port between the service and its storage, and the text of one record.

`AbstractAddressBookDB` is the contract: what stands in its docstrings holds
for every engine, and `tests/unit/addressbook_db_test.py` replays it on each of
them. Every engine stores the text that `encode_record` makes, and a version
beside it, so that engines differ only in where they lie.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, NamedTuple

from addrservice.datamodel import AddressEntry, checked_json
from addrservice.errors import AddressChanged, AddressNotFound, UnreadableRecord
from addrservice.utils import logutils

DECODED_AT_ONCE = 10
"""Records that a listing decodes between two looks at the clock."""

TURN_SECONDS = 0.0003
"""How long a listing goes on before others have their turn."""

_NICKNAME = re.compile(r'[A-Za-z0-9-]{1,64}')
_VERSION = re.compile(r'[0-9a-f]{16}')


def is_nickname(text: str) -> bool:
    """Whether a text can be an entry's name: 1 to 64 ASCII letters, digits
    and hyphens. It is safe as a file name and in a URL as it stands."""
    return _NICKNAME.fullmatch(text) is not None


def new_nickname() -> str:
    """A name that no entry has: 32 hexadecimal digits, a UUID of version 4 (RFC 9562 section
    5.4), for which Python's own would make an object."""
    digits = secrets.token_hex(16)
    return f'{digits[:12]}4{digits[13:16]}{"89ab"[int(digits[16], 16) % 4]}{digits[17:]}'


def is_version(text: str) -> bool:
    """Whether a text can be a version: 16 hexadecimal digits."""
    return _VERSION.fullmatch(text) is not None


def new_version() -> str:
    """A version that no state of an entry has had, nor one that was deleted
    and made again: random, so that no two writers need to agree on it."""
    return secrets.token_hex(8)


def no_such_entry() -> AddressNotFound:
    """The error for a nickname that no entry has."""
    return AddressNotFound('No entry has this id')


def require_version(version: str, if_version: str | None) -> None:
    """Compares the version of an entry with the one that a change is for.

    :raises AddressChanged: it is another one.
    """
    if if_version not in (None, version):
        raise AddressChanged('The entry has changed: it has another version now')


def encode_record(entry: AddressEntry) -> str:
    """An entry as the text that engines store: one line of JSON."""
    return entry.to_json()


def decode_record(record: Record) -> Stored:
    """The entry in a stored record.

    :raises UnreadableRecord: the text is not what `encode_record` makes, or the
        version not what `new_version` does.
    """
    try:
        nickname, version, text, _ = record
        if not _VERSION.fullmatch(version):
            raise ValueError('its version is not 16 hexadecimal digits')
        return Stored(nickname, version, checked_json(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableRecord('The stored entry cannot be read', record.place) from error


def decode_records(records: Sequence[Record]) -> Sequence[Stored] | None:
    """The entries in stored records; None, if not all can be read. As `decode_record` for each,
    in a third of the time: what is done for each is done by calls that need no Python in between.
    """
    nicknames, versions, texts, _ = zip(*records)
    try:
        if all(map(_VERSION.fullmatch, versions)):
            members = zip(nicknames, versions, map(checked_json, texts))
            return list(map(tuple.__new__, itertools.repeat(Stored), members))
    except (TypeError, ValueError, RecursionError):
        pass
    return None  # who decodes them one by one learns which cannot be read, and why


class Record(NamedTuple):
    """One entry as it lies in a store."""

    nickname: str
    version: str
    text: str
    """What `encode_record` made; anything else is damage."""

    place: str
    """Where it lies, for the log if it is damaged; nothing secret, such as a DSN."""


class Key(NamedTuple):
    """Which entry, in which state."""

    nickname: str
    version: str


class Stored(NamedTuple):
    """An entry, as it is in a store."""

    nickname: str
    version: str
    json: str
    """Its document as text, known to be good: as it goes to whoever has asked for it."""

    @property
    def entry(self) -> AddressEntry:
        """The entry, each time a new one."""
        return AddressEntry.from_json(self.json)

    @property
    def document(self) -> dict[str, Any]:
        """The document, each time a new one."""
        document: dict[str, Any] = json.loads(self.json)
        return document


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
                                 ) -> AsyncGenerator[Sequence[Stored], None]:
        """As `read_all_addresses`, but several entries at a time: what is done once for
        each page is not done for each entry."""
        if limit == 0:
            await self.ping()  # closed is closed, also for those who want nothing
            return
        size = self.page_size if limit is None else _share(limit, self.page_size)
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
        """The records of `read_all_addresses`, page by page to the end.

        :param after: as there; ``''`` comes before every name.
        :param size: records in one page.
        """

    async def _decoded(self, page: Sequence[Record], most: int, turn: _Turn) -> Sequence[Stored]:
        decoded: list[Stored] = []
        place = 0
        while place < len(page) and len(decoded) < most:
            if turn.is_over():
                await turn.give_way()  # also where nothing waits
            records = page[place:place + min(DECODED_AT_ONCE, most - len(decoded))]
            place += len(records)
            decoded += decode_records(records) or self._readable(records)
        return decoded

    def _readable(self, records: Sequence[Record]) -> Iterator[Stored]:
        for record in records:
            try:
                yield decode_record(record)
            except UnreadableRecord as error:
                self.on_unreadable(error)

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


def checked_nickname(nickname: str | None) -> str:
    """The nickname for a new entry.

    :raises ValueError: it cannot be one.
    """
    if nickname is None:
        return new_nickname()
    if not is_nickname(nickname):
        raise ValueError('a nickname is 1 to 64 letters, digits and hyphens')
    return nickname


def checked_version(version: str | None) -> str:
    """The version for a write.

    :raises ValueError: it cannot be one.
    """
    if version is None:
        return new_version()
    if not is_version(version):
        raise ValueError('a version is 16 hexadecimal digits')
    return version

"""Entries in this process: for trying out, and for tests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncGenerator, Sequence

from sortedcontainers import SortedDict

from addrservice.database.addressbook_db import (
    AbstractAddressBookDB, no_such_entry, require_version)
from addrservice.database.records import (
    Columns, Key, Record, Stored, checked_nickname, checked_version, decode_record, encode_record)
from addrservice.datamodel import AddressEntry
from addrservice.errors import AddressExists, StorageUnavailable


class InMemoryAddressBookDB(AbstractAddressBookDB):
    """Survives nothing: entries end with the engine.

    It stores text, as every engine does, and so cannot share an object with
    its caller. Its container keeps names sorted: a write costs O(log n), and
    no listing ever sorts the book.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self._records: SortedDict[str, Record] | None = None

    @property
    def records(self) -> SortedDict[str, Record]:
        """Nickname -> stored record.

        :raises StorageUnavailable: the engine is not started.
        """
        if self._records is None:
            raise StorageUnavailable('The address book is not open')
        return self._records

    async def start(self) -> None:
        self._records = SortedDict()

    async def stop(self) -> None:
        self._records = None

    async def ping(self) -> None:
        self.records  # raises unless started

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        key = Key(checked_nickname(nickname), checked_version(version))
        if key.nickname in self.records:
            raise AddressExists('This id is taken')
        self._put(key, entry)
        return key

    async def read_address(self, nickname: str) -> Stored:
        return decode_record(self._record(nickname))

    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        key = Key(nickname, checked_version(version))
        require_version(self._record(nickname).version, if_version)
        self._put(key, entry)
        return key.version

    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        require_version(self._record(nickname).version, if_version)
        del self.records[nickname]

    async def count_addresses(self) -> int:
        return len(self.records)

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        # A page is copied before anyone else can run; the next one starts
        # behind its last name, whatever was written in between.
        while names := self._names(after, size):
            _, versions, texts, _ = zip(*map(self.records.__getitem__, names))
            yield Columns(_record, names, versions, texts)
            after = names[-1]

    def _names(self, after: str, size: int) -> list[str]:
        return list(itertools.islice(self.records.irange(after, inclusive=(False, True)), size))

    def _put(self, key: Key, entry: AddressEntry) -> None:
        self.records[key.nickname] = _record(*key, encode_record(entry))

    def _record(self, nickname: str) -> Record:
        record = self.records.get(nickname)
        if record is None:
            raise no_such_entry()
        return record


def _record(nickname: str, version: str, text: str) -> Record:
    return Record(nickname, version, text, place=f'memory:{nickname}')

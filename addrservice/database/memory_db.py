"""Entries in this process: for trying out, and for tests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncGenerator, Sequence

from sortedcontainers import SortedDict

from addrservice.database.addressbook_db import (
    AbstractAddressBookDB, Record, checked_nickname, decode_record, encode_record, no_such_entry)
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
        self._texts: SortedDict[str, str] | None = None

    @property
    def texts(self) -> SortedDict[str, str]:
        """Nickname -> stored text.

        :raises StorageUnavailable: the engine is not started.
        """
        if self._texts is None:
            raise StorageUnavailable('The address book is not open')
        return self._texts

    async def start(self) -> None:
        self._texts = SortedDict()

    async def stop(self) -> None:
        self._texts = None

    async def ping(self) -> None:
        self.texts  # raises unless started

    async def create_address(self, entry: AddressEntry, nickname: str | None = None) -> str:
        nickname = checked_nickname(nickname)
        if nickname in self.texts:
            raise AddressExists('This id is taken')
        self.texts[nickname] = encode_record(entry)
        return nickname

    async def read_address(self, nickname: str) -> AddressEntry:
        self._require(nickname)
        return decode_record(self._record(nickname))

    async def update_address(self, nickname: str, entry: AddressEntry) -> None:
        self._require(nickname)
        self.texts[nickname] = encode_record(entry)

    async def delete_address(self, nickname: str) -> None:
        self._require(nickname)
        del self.texts[nickname]

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        # A page is copied before anyone else can run; the next one starts
        # behind its last name, whatever was written in between.
        while page := self._page(after, size):
            yield page
            after = page[-1].nickname

    def _page(self, after: str, size: int) -> list[Record]:
        names = self.texts.irange(after, inclusive=(False, True))
        return [self._record(name) for name in itertools.islice(names, size)]

    def _record(self, nickname: str) -> Record:
        return Record(nickname, self.texts[nickname], nickname)

    def _require(self, nickname: str) -> None:
        if nickname not in self.texts:
            raise no_such_entry()

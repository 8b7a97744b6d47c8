"""What the address book does, for whoever calls: no framework, no driver."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from addrservice.config import complete_config
from addrservice.database.addressbook_db import Key, Stored, is_nickname
from addrservice.database.db_engines import create_addressbook_db
from addrservice.database.observed_db import ObservedAddressBookDB
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressNotFound, StorageError, StorageUnavailable, UnreadableRecord)
from addrservice.utils import logutils
from addrservice.utils.metrics import Metrics
from addrservice.utils.tracing import traced

Document = dict[str, Any]
"""An address book entry as JSON has it; see schema/address-book-v1.0.json."""


class VersionedDocument(NamedTuple):
    """The document of an entry, and which version of it."""

    nickname: str
    version: str
    document: Document


class Check(NamedTuple):
    """One condition of being ready, and how it was found."""

    name: str
    ok: bool
    time_ms: float = 0.0
    detail: str | None = None
    """What is wrong, without an operator's secrets."""


class AddressBookService:
    """Checks documents on their way in, and hands entries to the storage engine.

    Any call that needs the store may raise `StorageUnavailable`, also when the
    store does not answer in time, or `StorageError`.
    """

    def __init__(self, config: Mapping[str, Any], logger: logging.Logger,
                 metrics: Metrics | None = None) -> None:
        """
        :param config: as in a YAML file of configs/; what is left out has its
            default.
        :param logger: for what happens outside any request.
        :param metrics: what the store does is counted there.
        :raises ConfigError: the configuration cannot be used.
        """
        self.config = complete_config(config)
        self.logger = logger
        self.engine = next(iter(self.config['addr-db']))
        self.addr_db = create_addressbook_db(self.config['addr-db'], logger)
        if metrics:
            self.addr_db = ObservedAddressBookDB(self.addr_db, self.engine, metrics)
        self.timeout: float = self.config['server']['request-timeout']
        self._made_at = time.monotonic()
        self.is_started = False
        self.is_draining = False
        self._ping: asyncio.Task[str | None] | None = None
        self._pinged_at = 0.0

    async def start(self) -> None:
        """Opens the store.

        :raises ConfigError: it cannot be used with this configuration.
        :raises StorageUnavailable: it cannot be reached now.
        """
        await self.addr_db.start()
        self.is_started = True

    def drain(self) -> None:
        """From now on the service is not ready, and still does what it is asked."""
        self.is_draining = True

    def undrain(self) -> None:
        """From now on the service is ready again, if its store is."""
        self.is_draining = False

    async def stop(self) -> None:
        """Closes the store; a second time does nothing."""
        self.is_started = False
        await self.addr_db.stop()

    def uptime_ms(self) -> int:
        """Milliseconds since the service was made."""
        return int(1000 * (time.monotonic() - self._made_at))

    async def is_ready(self) -> bool:
        """Whether requests should be sent here now: started, not draining,
        and the store answers its ping in time. Callers share one ping, and
        its outcome for as long as ``readiness.cache`` says."""
        return self._is_wanted() and await self._ping_in_time() is None and self._is_wanted()

    async def checks(self) -> Sequence[Check]:
        """What `is_ready` looks at, one by one."""
        checks = [Check('started', self.is_started), Check('in rotation', not self.is_draining)]
        if self.is_started:
            began = time.monotonic()
            fault = await self._ping_in_time()
            checks.append(Check('store', fault is None, 1000 * (time.monotonic() - began), fault))
        return checks

    def _is_wanted(self) -> bool:
        return self.is_started and not self.is_draining

    async def _ping_in_time(self) -> str | None:
        now = time.monotonic()
        if self._ping is None or (self._ping.done()
                                  and now - self._pinged_at >= self.config['readiness']['cache']):
            # In no request's context: its outcome is for all who ask.
            self._ping = asyncio.create_task(self._ping_store(), context=contextvars.Context())
            self._pinged_at = now
        return await asyncio.shield(self._ping)

    async def _ping_store(self) -> str | None:
        """What keeps the store from answering, if anything does."""
        try:
            async with asyncio.timeout(self.config['readiness']['timeout']):
                await self.addr_db.ping()
        except (StorageError, TimeoutError) as error:
            logutils.log(self.logger, logging.WARNING, message='NOT READY', reason=repr(error),
                         cause=getattr(error, 'cause', None))
            return str(error) or 'It did not answer in time'
        return None

    @traced
    async def create_address(self, document: object, nickname: str | None = None) -> Key:
        """Adds an entry.

        :param nickname: its id; left out, it gets one of 32 hexadecimal digits.
        :return: its id and version.
        :raises InvalidAddress: the document is not an entry; this is checked first.
        :raises AddressExists: the id is taken.
        :raises AddressNotFound: no entry can have that id.
        """
        entry = validate(document)
        if nickname is not None and not is_nickname(nickname):
            raise AddressNotFound('An id is 1 to 64 letters, digits and hyphens')
        async with self._deadline():
            return await self.addr_db.create_address(entry, nickname)

    @traced
    async def get_address(self, nickname: str) -> VersionedDocument:
        """The document that was put last under that id.

        :raises AddressNotFound: there is none.
        """
        async with self._deadline():
            return _document(await self.addr_db.read_address(nickname))

    @traced
    async def has_address(self, nickname: str) -> bool:
        """Whether there is an entry with that id, and it can be read."""
        try:
            async with self._deadline():
                await self.addr_db.read_address(nickname)
        except (AddressNotFound, UnreadableRecord):
            return False
        return True

    @traced
    async def update_address(self, nickname: str, document: object,
                             if_version: str | None = None) -> str:
        """Replaces an entry.

        :param if_version: only if this is its version.
        :return: the version it has now.
        :raises InvalidAddress: the document is not an entry; this is checked first.
        :raises AddressNotFound: there is none to replace.
        :raises AddressChanged: it has another version.
        """
        entry = validate(document)
        async with self._deadline():
            return await self.addr_db.update_address(nickname, entry, if_version)

    @traced
    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        """Removes an entry.

        :param if_version: only if this is its version.
        :raises AddressNotFound: there is none.
        :raises AddressChanged: it has another version.
        """
        async with self._deadline():
            await self.addr_db.delete_address(nickname, if_version)

    @traced
    async def count_addresses(self) -> int:
        """How many entries there are."""
        async with self._deadline():
            return await self.addr_db.count_addresses()

    @traced
    async def get_all_addresses(self, after: str | None = None, limit: int | None = None
                                ) -> AsyncGenerator[VersionedDocument, None]:
        """Every entry, in id order, in bounded memory.

        :param after: start behind this id.
        :param limit: at most so many entries.
        """
        entries = self.addr_db.read_all_addresses(after, limit)
        async with contextlib.aclosing(entries):
            while (stored := await self._next(entries)) is not None:
                yield _document(stored)

    async def _next(self, entries: AsyncIterator[Stored]) -> Stored | None:
        async with self._deadline():
            return await anext(entries, None)

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TimeoutError as error:
            # The engine may still finish what it has begun.
            raise StorageUnavailable('The address book did not answer in time; whether a change '
                                     'was made is not known') from error


@traced
def validate(document: object) -> AddressEntry:
    """The entry that a document describes.

    :raises InvalidAddress: it describes none.
    """
    return AddressEntry.from_api_dm(document)


def _document(stored: Stored) -> VersionedDocument:
    return VersionedDocument(stored.nickname, stored.version, stored.entry.to_api_dm())

"""What the address book does, for whoever calls: no framework, no driver."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from addrservice.config import complete_config
from addrservice.database.records import Columns, Key, Stored, is_nickname
from addrservice.database.db_engines import create_addressbook_db
from addrservice.database.observed_db import ObservedAddressBookDB
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressNotFound, StorageError, StorageUnavailable, UnreadableRecord)
from addrservice.utils import logutils
from addrservice.utils.metrics import Metrics
from addrservice.utils.tracing import traced

T = TypeVar('T')


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
        entry = entry_of(document)
        if nickname is not None and not is_nickname(nickname):
            raise AddressNotFound('An id is 1 to 64 letters, digits and hyphens')
        return await self._in_time(self.addr_db.create_address(entry, nickname))

    @traced
    async def get_address(self, nickname: str) -> Stored:
        """What was put last under that id.

        :raises AddressNotFound: there is nothing.
        """
        return await self._in_time(self.addr_db.read_address(nickname))

    @traced
    async def has_address(self, nickname: str) -> bool:
        """Whether there is an entry with that id, and it can be read."""
        try:
            await self._in_time(self.addr_db.read_address(nickname))
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
        entry = entry_of(document)
        return await self._in_time(self.addr_db.update_address(nickname, entry, if_version))

    @traced
    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        """Removes an entry.

        :param if_version: only if this is its version.
        :raises AddressNotFound: there is none.
        :raises AddressChanged: it has another version.
        """
        await self._in_time(self.addr_db.delete_address(nickname, if_version))

    @traced
    async def count_addresses(self) -> int:
        """How many entries there are."""
        return await self._in_time(self.addr_db.count_addresses())

    async def get_all_addresses(self, after: str | None = None, limit: int | None = None
                                ) -> AsyncGenerator[Stored, None]:
        """Every entry, in id order, in bounded memory.

        :param after: start behind this id.
        :param limit: at most so many entries.
        """
        async with contextlib.aclosing(self.get_address_pages(after, limit)) as pages:
            async for page in pages:
                for entry in page:
                    yield entry

    @traced
    async def get_address_pages(self, after: str | None = None, limit: int | None = None
                                ) -> AsyncGenerator[Columns[Stored], None]:
        """As `get_all_addresses`, but several entries at a time."""
        pages = self.addr_db.read_address_pages(after, limit)
        async with contextlib.aclosing(pages):
            while (page := await self._in_time(anext(pages, None))) is not None:
                yield page

    async def _in_time(self, call: Awaitable[T]) -> T:
        """What a call of the store returns, if it does so in time."""
        steps = call.__await__()
        try:
            waits_for = next(steps)
        except StopIteration as end:
            result: T = end.value  # it did not have to wait, as most reads do not
            return result
        try:
            async with asyncio.timeout(self.timeout):
                return await _Rest(waits_for, steps)
        except TimeoutError as error:
            # The engine may still finish what it has begun.
            raise StorageUnavailable('The address book did not answer in time; whether a change '
                                     'was made is not known') from error


class _Rest(Awaitable[T]):
    """A call that has begun, from where it first waits."""

    def __init__(self, waits_for: Any, steps: Generator[Any, Any, T]) -> None:
        """
        :param waits_for: what the call has yielded to the event loop.
        :param steps: what it does from then on.
        """
        self._waits_for = waits_for
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, T]:
        try:
            yield self._waits_for
        except BaseException as error:  # a time-out, or who asks has gone
            return (yield from _thrown(self._steps, error))
        return (yield from self._steps)


def _thrown(steps: Generator[Any, Any, T], error: BaseException) -> Generator[Any, Any, T]:
    """Goes on with an error at the point that has been reached."""
    try:
        waits_for = steps.throw(error)
    except StopIteration as end:
        result: T = end.value
        return result
    return (yield from _Rest(waits_for, steps).__await__())


def entry_of(document: object) -> AddressEntry:
    """The entry that a document describes; an entry is one itself.

    :raises InvalidAddress: it describes none.
    """
    return document if isinstance(document, AddressEntry) else validate(document)


@traced
def validate(document: object) -> AddressEntry:
    """The entry that a document describes.

    :raises InvalidAddress: it describes none.
    """
    return AddressEntry.from_api_dm(document)

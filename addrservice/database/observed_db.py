"""Any engine, observed: each call of the port is a span, and is counted with its duration."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import TypeVar

from addrservice.database.addressbook_db import AbstractAddressBookDB, Connections
from addrservice.database.records import Key, Record, Stored
from addrservice.datamodel import AddressEntry
from addrservice.errors import AddrServiceError, UnreadableRecord
from addrservice.utils.metrics import Metrics
from addrservice.utils.tracing import traced

T = TypeVar('T')

_CAPITAL = re.compile(r'(?<=[a-z])(?=[A-Z])')


def _engine_of(db: ObservedAddressBookDB, *_args: object, **_kwargs: object) -> Mapping[str, str]:
    return db.attributes


class ObservedAddressBookDB(AbstractAddressBookDB):
    """Keeps the contract as the engine behind it does, and tells what it did.

    A listing is told page by page: what a consumer does between two pages is
    not the engine's time.
    """

    def __init__(self, engine: AbstractAddressBookDB, engine_name: str, metrics: Metrics) -> None:
        """
        :param engine: what does the work.
        :param engine_name: the configuration's word for it.
        :param metrics: where calls are counted.
        """
        super().__init__(engine.logger)
        self.engine = engine
        self.engine_name = engine_name
        self.attributes: Mapping[str, str] = {'addrservice.engine': engine_name}
        """Of the spans of its calls."""
        self.metrics = metrics
        self.page_size = engine.page_size

    async def start(self) -> None:
        await self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop()

    async def ping(self) -> None:
        await self._observe('ping', self.engine.ping())

    def connections(self) -> Connections | None:
        return self.engine.connections()

    @traced(name='AddressBookDB.create_address', attributes=_engine_of)
    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        call = self.engine.create_address(entry, nickname, version)
        return await self._observe('create_address', call)

    @traced(name='AddressBookDB.read_address', attributes=_engine_of)
    async def read_address(self, nickname: str) -> Stored:
        return await self._observe('read_address', self.engine.read_address(nickname))

    @traced(name='AddressBookDB.update_address', attributes=_engine_of)
    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        call = self.engine.update_address(nickname, entry, if_version, version)
        return await self._observe('update_address', call)

    @traced(name='AddressBookDB.delete_address', attributes=_engine_of)
    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        call = self.engine.delete_address(nickname, if_version)
        await self._observe('delete_address', call)

    @traced(name='AddressBookDB.count_addresses', attributes=_engine_of)
    async def count_addresses(self) -> int:
        return await self._observe('count_addresses', self.engine.count_addresses())

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        async with contextlib.aclosing(self.engine.read_pages(after, size)) as pages:
            while (page := await self._read_page(pages)) is not None:
                yield page

    def on_unreadable(self, error: UnreadableRecord) -> None:
        self.metrics.unreadable_record()
        super().on_unreadable(error)

    @traced(name='AddressBookDB.read_page', attributes=_engine_of)
    async def _read_page(self, pages: AsyncGenerator[Sequence[Record], None]
                         ) -> Sequence[Record] | None:
        return await self._observe('read_page', anext(pages, None))

    async def _observe(self, operation: str, call: Awaitable[T]) -> T:
        began, outcome = time.perf_counter(), 'ok'
        try:
            return await call
        except BaseException as error:
            outcome = _outcome(error)
            if isinstance(error, UnreadableRecord):
                self.metrics.unreadable_record()
            raise
        finally:
            self.metrics.operation_ended(
                self.engine_name, operation, outcome, time.perf_counter() - began)


def _outcome(error: BaseException) -> str:
    """What a failure is called: ``address_not_found`` and so on, one for each of our errors."""
    if isinstance(error, asyncio.CancelledError):
        return 'cancelled'
    if not isinstance(error, AddrServiceError):
        return 'error'
    return _CAPITAL.sub('_', type(error).__name__).lower()

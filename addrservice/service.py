"""What the address book does, for whoever calls: no framework, no driver."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from addrservice.config import complete_config
from addrservice.database.db_engines import create_addressbook_db
from addrservice.datamodel import AddressEntry
from addrservice.errors import StorageError, StorageUnavailable
from addrservice.utils import logutils

Document = dict[str, Any]
"""An address book entry as JSON has it; see schema/address-book-v1.0.json."""


class AddressBookService:
    """Checks documents on their way in, and hands entries to the storage engine.

    Any call that needs the store may raise `StorageUnavailable`, also when the
    store does not answer in time, or `StorageError`.
    """

    def __init__(self, config: Mapping[str, Any], logger: logging.Logger) -> None:
        """
        :param config: as in a YAML file of configs/; what is left out has its
            default.
        :param logger: for what happens outside any request.
        :raises ConfigError: the configuration cannot be used.
        """
        self.config = complete_config(config)
        self.logger = logger
        self.addr_db = create_addressbook_db(self.config['addr-db'], logger)
        self.timeout: float = self.config['server']['request-timeout']
        self._made_at = time.monotonic()
        self._wanted = False
        self._ping: asyncio.Task[bool] | None = None
        self._pinged_at = 0.0

    async def start(self) -> None:
        """Opens the store.

        :raises ConfigError: it cannot be used with this configuration.
        """
        await self.addr_db.start()
        self._wanted = True

    def drain(self) -> None:
        """From now on the service is not ready, and still does what it is asked."""
        self._wanted = False

    async def stop(self) -> None:
        """Closes the store; a second time does nothing."""
        self.drain()
        await self.addr_db.stop()

    def uptime_ms(self) -> int:
        """Milliseconds since the service was made."""
        return int(1000 * (time.monotonic() - self._made_at))

    async def is_ready(self) -> bool:
        """Whether requests should be sent here now: started, not draining,
        and the store answers its ping in time. Callers share one ping, and
        its outcome for as long as ``readiness.cache`` says."""
        if not self._wanted:
            return False
        now = time.monotonic()
        if self._ping is None or (self._ping.done()
                                  and now - self._pinged_at >= self.config['readiness']['cache']):
            # In no request's context: its outcome is for all who ask.
            self._ping = asyncio.create_task(self._store_answers(), context=contextvars.Context())
            self._pinged_at = now
        return await asyncio.shield(self._ping) and self._wanted

    async def _store_answers(self) -> bool:
        try:
            async with asyncio.timeout(self.config['readiness']['timeout']):
                await self.addr_db.ping()
        except (StorageError, TimeoutError) as error:
            logutils.log(self.logger, logging.WARNING, message='NOT READY', reason=repr(error),
                         cause=getattr(error, 'cause', None))
            return False
        return True

    async def create_address(self, document: object) -> str:
        """Adds an entry.

        :return: its id, 32 hexadecimal digits.
        :raises InvalidAddress: the document is not an entry.
        """
        entry = AddressEntry.from_api_dm(document)
        async with self._deadline():
            return await self.addr_db.create_address(entry)

    async def get_address(self, nickname: str) -> Document:
        """The document that was put last under that id.

        :raises AddressNotFound: there is none.
        """
        async with self._deadline():
            entry = await self.addr_db.read_address(nickname)
        return entry.to_api_dm()

    async def update_address(self, nickname: str, document: object) -> None:
        """Replaces an entry.

        :raises InvalidAddress: the document is not an entry; this is checked first.
        :raises AddressNotFound: there is none to replace.
        """
        entry = AddressEntry.from_api_dm(document)
        async with self._deadline():
            await self.addr_db.update_address(nickname, entry)

    async def delete_address(self, nickname: str) -> None:
        """Removes an entry.

        :raises AddressNotFound: there is none.
        """
        async with self._deadline():
            await self.addr_db.delete_address(nickname)

    async def get_all_addresses(self, after: str | None = None, limit: int | None = None
                                ) -> AsyncGenerator[tuple[str, Document], None]:
        """Id and document of every entry, in id order, in bounded memory.

        :param after: start behind this id.
        :param limit: at most so many entries.
        """
        entries = self.addr_db.read_all_addresses(after, limit)
        async with contextlib.aclosing(entries):
            while (found := await self._next(entries)) is not None:
                nickname, entry = found
                yield nickname, entry.to_api_dm()

    async def _next(self, entries: AsyncIterator[tuple[str, AddressEntry]]
                    ) -> tuple[str, AddressEntry] | None:
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

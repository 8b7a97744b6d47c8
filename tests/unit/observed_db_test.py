"""An observed engine keeps the contract of the port, and what it did is counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import unittest
import unittest.mock
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prometheus_client import CollectorRegistry

from addrservice.database.addressbook_db import AbstractAddressBookDB, Connections
from addrservice.database.records import Record, Stored
from addrservice.database.memory_db import InMemoryAddressBookDB
from addrservice.database.observed_db import ObservedAddressBookDB
from addrservice.errors import AddressNotFound, StorageUnavailable, UnreadableRecord
from addrservice.utils.metrics import Metrics
from tests.support import quiet_logger
from tests.unit.addressbook_db_test import EngineContract, MemoryStore, entry_of


class ObservedStore(MemoryStore):
    """The memory engine, observed."""

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        return ObservedAddressBookDB(super().make_engine(logger), 'memory', Metrics())


class ObservedEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = ObservedStore


class _Odd(InMemoryAddressBookDB):
    """An engine that can do what the one in memory never does."""

    page_size = 2

    def connections(self) -> Connections:
        return Connections(used=1, idle=2, maximum=3)

    async def ping(self) -> None:
        raise StorageUnavailable('not now')

    async def count_addresses(self) -> int:
        await asyncio.sleep(60)
        return 0

    async def read_address(self, nickname: str) -> Stored:
        if nickname == 'bug':
            raise RuntimeError('a fault of ours')
        return await super().read_address(nickname)


class CountTests(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.registry = CollectorRegistry()
        self.inner = _Odd(quiet_logger())
        self.engine = ObservedAddressBookDB(self.inner, 'odd', Metrics(self.registry))
        await self.engine.start()
        self.addAsyncCleanup(self.engine.stop)

    def count(self, operation: str, outcome: str) -> float:
        return self.registry.get_sample_value(
            'addrservice_db_operation_duration_seconds_count',
            {'engine': 'odd', 'operation': operation, 'outcome': outcome}) or 0

    async def test_each_call_is_counted_with_its_outcome(self) -> None:
        key = await self.engine.create_address(entry_of('x'))
        await self.engine.read_address(key.nickname)
        await self.engine.update_address(key.nickname, entry_of('y'))
        await self.engine.delete_address(key.nickname)
        for operation in ('create_address', 'read_address', 'update_address', 'delete_address'):
            self.assertEqual(self.count(operation, 'ok'), 1, operation)

    async def test_a_failure_is_counted_under_its_name_and_goes_on(self) -> None:
        for error, call, operation, outcome in (
                (AddressNotFound, self.engine.read_address('x'), 'read_address',
                 'address_not_found'),
                (StorageUnavailable, self.engine.ping(), 'ping', 'storage_unavailable'),
                (RuntimeError, self.engine.read_address('bug'), 'read_address', 'error'),
                (TimeoutError, asyncio.wait_for(self.engine.count_addresses(), 0.01),
                 'count_addresses', 'cancelled')):
            with self.subTest(outcome=outcome):
                with self.assertRaises(error):
                    await call
                self.assertEqual(self.count(operation, outcome), 1)

    async def test_a_listing_is_counted_by_the_page_without_its_consumers_time(self) -> None:
        for number in range(5):
            await self.engine.create_address(entry_of('x'), f'{number}')
        async with contextlib.aclosing(self.engine.read_all_addresses()) as entries:
            async for _ in entries:
                await asyncio.sleep(0.01)
        self.assertEqual(self.count('read_page', 'ok'), 4, 'in pages of two, and an empty one')
        seconds = self.registry.get_sample_value(
            'addrservice_db_operation_duration_seconds_sum',
            {'engine': 'odd', 'operation': 'read_page', 'outcome': 'ok'}) or 0
        self.assertLess(seconds, 0.02)

    async def test_a_listing_that_is_left_early_leaves_the_engines_too(self) -> None:
        closed = []

        async def pages(after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
            try:
                while True:
                    yield [self.inner.records['x']]
            finally:
                closed.append(size)

        await self.engine.create_address(entry_of('x'), 'x')
        with unittest.mock.patch.object(self.inner, 'read_pages', pages):
            async with contextlib.aclosing(self.engine.read_all_addresses()) as entries:
                await anext(entries)
        self.assertEqual(closed, [2])

    async def test_damaged_records_are_counted_wherever_they_are_met(self) -> None:
        self.inner.records['x'] = Record('x', 'no version', '{', 'x')
        with self.assertRaises(UnreadableRecord):
            await self.engine.read_address('x')
        self.assertEqual([entry async for entry in self.engine.read_all_addresses()], [])
        self.assertEqual(
            self.registry.get_sample_value('addrservice_unreadable_records_total'), 2)

    async def test_connections_are_those_of_the_engine(self) -> None:
        self.assertEqual(self.engine.connections(), (1, 2, 3))
        self.assertIsNone(InMemoryAddressBookDB(quiet_logger()).connections())


if __name__ == '__main__':
    unittest.main()

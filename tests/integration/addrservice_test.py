"""The service does what it promises, on every engine, also when the engine does not answer."""

from __future__ import annotations

import asyncio
import copy
import logging
import sys
import tempfile
import time
import unittest
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.records import Key, Record, Stored, new_version
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, ConfigError, InvalidAddress, StorageError,
    StorageUnavailable)
from addrservice.service import AddressBookService
from data import address_data_suite
from tests.support import DEADLINE, parse_logfmt, quiet_logger, recording_logger

Document = dict[str, Any]

VERSION = '0123456789abcdef'

IMPOSSIBLE_IDS = ['..', 'a/b', 'a%00b', 'a\0b', '', 'x' * 300, 'é', '.tmp-x', 'a\n', 'a.json']

BAD_DOCUMENTS: list[tuple[object, str]] = [
    (None, ''), (5, ''), ('text', ''), ([], ''), ({}, '/full_name'),
    ({'full_name': ''}, '/full_name'),
    ({'full_name': 'x', 'emails': [{'kind': 'home', 'email': 'no e-mail'}]}, '/emails/0/email'),
    ({'full_name': 'x', 'nickname': 'y'}, '/nickname'),
]


async def everything(service: AddressBookService, after: str | None = None,
                     limit: int | None = None) -> dict[str, Document]:
    return {entry.nickname: entry.document
            async for entry in service.get_all_addresses(after, limit)}


State = tuple[str, str, Document]
"""Nickname, version and document of an entry."""


def state_of(entry: Stored) -> State:
    return entry.nickname, entry.version, entry.document


async def get_state(service: AddressBookService, nickname: str) -> State:
    return state_of(await service.get_address(nickname))


async def all_states(service: AddressBookService) -> list[State]:
    return [state_of(entry) async for entry in service.get_all_addresses()]


class StubDB(AbstractAddressBookDB):
    """An engine whose calls answer when they are let go on, or not at all."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger)
        self.answers = asyncio.Event()
        self.error: Exception | None = None
        self.calls: list[str] = []

    async def answer(self, call: str) -> None:
        self.calls.append(call)
        await self.answers.wait()
        if self.error:
            raise self.error

    async def start(self) -> None:
        await self.answer('start')

    async def stop(self) -> None:
        self.calls.append('stop')

    async def ping(self) -> None:
        await self.answer('ping')

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        await self.answer('create')
        return Key('a', VERSION)

    async def read_address(self, nickname: str) -> Stored:
        await self.answer('read')
        return Stored('a', VERSION, AddressEntry(full_name='x').to_json())

    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        await self.answer('update')
        return VERSION

    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        await self.answer('delete')

    async def count_addresses(self) -> int:
        await self.answer('count')
        return 1

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        await self.answer('list')
        yield [Record('a', VERSION, '{"full_name":"x"}', 'a')]
        await self.answer('list on')


class ServiceTestCase(unittest.IsolatedAsyncioTestCase):
    """A service on an engine that the test holds in its hand."""

    def setUp(self) -> None:
        self.logger, self.logged = recording_logger()

    async def make(self, **config: object) -> AddressBookService:
        """A service that is started, on a stub that answers until told not to."""
        service = AddressBookService(config, self.logger)
        service.addr_db = self.stub = StubDB(self.logger)
        self.stub.answers.set()
        await service.start()
        self.stub.calls.clear()
        self.addAsyncCleanup(service.stop)
        return service

    async def wait_for(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.001)


# The loader shall find the suite under the name of an engine only, mypy what its methods are.
if TYPE_CHECKING:
    SuiteBase = unittest.IsolatedAsyncioTestCase
else:
    SuiteBase = object


class ServiceOnEngine(SuiteBase):
    """What the service does on an engine; each engine's class says how to configure it."""

    def config(self) -> dict[str, Any]:
        """The section ``addr-db``; each engine's class has its own."""
        raise NotImplementedError

    def setUp(self) -> None:
        self.logger, self.logged = recording_logger()
        self.service = AddressBookService({'addr-db': self.config()}, self.logger)

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        await self.service.start()
        self.addAsyncCleanup(self.service.stop)

    async def create_suite(self) -> dict[str, Document]:
        """Creates the samples.

        :return: id -> document.
        """
        return {(await self.service.create_address(document)).nickname: document
                for document in address_data_suite().values()}

    async def test_a_new_address_book_is_empty(self) -> None:
        self.assertEqual({}, await everything(self.service))

    async def test_created_documents_come_back_as_they_were_put(self) -> None:
        created = await self.create_suite()
        self.assertEqual(len(address_data_suite()), len(created))
        for nickname, document in created.items():
            self.assertRegex(nickname, r'\A[0-9a-f]{32}\Z')
            self.assertEqual(document, (await self.service.get_address(nickname)).document)

    async def test_a_document_that_is_put_under_an_id_is_found_there(self) -> None:
        for nickname, document in address_data_suite().items():
            key = await self.service.create_address(document, nickname)
            self.assertEqual(nickname, key.nickname)
            self.assertEqual((*key, document), await get_state(self.service, nickname))
        self.assertEqual(address_data_suite(), await everything(self.service))

    async def test_an_id_that_is_taken_is_not_given_again(self) -> None:
        key = await self.service.create_address({'full_name': 'first'}, 'a')
        with self.assertRaises(AddressExists):
            await self.service.create_address({'full_name': 'second'}, 'a')
        self.assertEqual([(*key, {'full_name': 'first'})], await all_states(self.service))

    async def test_under_an_id_that_none_can_have_nothing_is_created(self) -> None:
        for nickname in IMPOSSIBLE_IDS:
            with self.subTest(nickname=nickname):
                with self.assertRaises(AddressNotFound):
                    await self.service.create_address({'full_name': 'x'}, nickname)
                with self.assertRaises(InvalidAddress):  # checked first
                    await self.service.create_address({}, nickname)
        self.assertEqual({}, await everything(self.service))

    async def test_reading_and_listing_have_the_version_that_a_write_answered(self) -> None:
        keys = [await self.service.create_address({'full_name': f'{i}'}, f'n{i}')
                for i in range(3)]
        states = [(*key, {'full_name': f'{i}'}) for i, key in enumerate(keys)]
        self.assertEqual(states, await all_states(self.service))
        version = await self.service.update_address('n0', {'full_name': 'new'})
        self.assertNotIn(version, [key.version for key in keys])
        states[0] = ('n0', version, {'full_name': 'new'})
        self.assertEqual(states, await all_states(self.service))
        self.assertEqual(states, [await get_state(self.service, f'n{i}') for i in range(3)])

    async def test_a_change_of_the_version_that_an_entry_has_is_made(self) -> None:
        version = (await self.service.create_address({'full_name': '0'}, 'a')).version
        for i in range(1, 4):
            version = await self.service.update_address('a', {'full_name': f'{i}'}, version)
            self.assertEqual(('a', version, {'full_name': f'{i}'}),
                             await get_state(self.service, 'a'))
        await self.service.delete_address('a', version)
        await self.assert_not_found('a')

    async def test_a_change_of_another_version_is_refused_and_changes_nothing(self) -> None:
        over = (await self.service.create_address({'full_name': 'x'}, 'a')).version
        await self.service.update_address('a', {'full_name': 'y'})
        before = await all_states(self.service)
        for version in (over, new_version(), '', '*', 'é', '\0'):
            with self.subTest(version=version):
                with self.assertRaises(AddressChanged):
                    await self.service.update_address('a', {'full_name': 'z'}, version)
                with self.assertRaises(AddressChanged):
                    await self.service.delete_address('a', version)
                self.assertEqual(before, await all_states(self.service))

    async def test_a_change_of_some_version_of_a_missing_entry_does_not_find_it(self) -> None:
        for nickname in ('a', *IMPOSSIBLE_IDS):
            with self.subTest(nickname=nickname):
                with self.assertRaises(AddressNotFound):
                    await self.service.update_address(nickname, {'full_name': 'x'}, VERSION)
                with self.assertRaises(AddressNotFound):
                    await self.service.delete_address(nickname, VERSION)
        self.assertEqual({}, await everything(self.service))

    async def test_of_changes_that_build_on_one_version_one_is_made(self) -> None:
        version = (await self.service.create_address({'full_name': 'x'}, 'a')).version
        results = await asyncio.gather(*[
            self.service.update_address('a', {'full_name': f'{i}'}, version) for i in range(10)],
            return_exceptions=True)
        (winner,) = [i for i, result in enumerate(results) if isinstance(result, str)]
        self.assertEqual(9, sum(isinstance(result, AddressChanged) for result in results))
        self.assertEqual(('a', results[winner], {'full_name': f'{winner}'}),
                         await get_state(self.service, 'a'))

    async def test_entries_are_counted(self) -> None:
        self.assertEqual(0, await self.service.count_addresses())
        created = await self.create_suite()
        self.assertEqual(len(created), await self.service.count_addresses())
        await self.service.delete_address(next(iter(created)))
        self.assertEqual(len(created) - 1, await self.service.count_addresses())

    async def test_a_listing_has_every_document_in_id_order_behind_an_id_and_up_to_a_limit(
            self) -> None:
        created = {nickname: document for _ in range(3)
                   for nickname, document in (await self.create_suite()).items()}
        names = sorted(created)
        listed = await everything(self.service)
        self.assertEqual(created, listed)
        self.assertEqual(names, list(listed))
        for start, limit in [(0, 2), (2, 2), (len(names) - 1, 1), (1, None), (0, 0)]:
            with self.subTest(start=start, limit=limit):
                after = names[start - 1] if start else None
                expected = names[start:][:limit]
                self.assertEqual(expected, list(await everything(self.service, after, limit)))

    async def test_an_update_replaces_one_document_and_leaves_the_others(self) -> None:
        created = await self.create_suite()
        first = next(iter(created))
        created[first] = {'full_name': 'Somebody Else'}
        await self.service.update_address(first, created[first])
        self.assertEqual(created, await everything(self.service))

    async def test_a_deleted_entry_is_gone_and_the_others_are_not(self) -> None:
        created = await self.create_suite()
        first = next(iter(created))
        del created[first]
        await self.service.delete_address(first)
        await self.assert_not_found(first)
        self.assertEqual(created, await everything(self.service))

    async def assert_not_found(self, nickname: str) -> None:
        for call in (self.service.get_address(nickname), self.service.delete_address(nickname),
                     self.service.update_address(nickname, {'full_name': 'x'})):
            with self.assertRaises(AddressNotFound):
                await call

    async def test_an_id_that_no_entry_has_or_can_have_is_not_found(self) -> None:
        created = await self.create_suite()
        for nickname in ('0' * 32, *IMPOSSIBLE_IDS):
            with self.subTest(nickname=nickname):
                await self.assert_not_found(nickname)
        self.assertEqual(created, await everything(self.service))

    async def test_a_bad_document_is_refused_with_a_pointer_and_changes_nothing(self) -> None:
        created = await self.create_suite()
        first = next(iter(created))
        for document, pointer in BAD_DOCUMENTS:
            for call in (self.service.create_address(document),
                         self.service.create_address(document, 'a'),
                         self.service.create_address(document, first),
                         self.service.update_address(first, document, VERSION),
                         self.service.update_address(first, document),
                         # Checked before it is asked whether there is such an entry.
                         self.service.update_address('no-such-entry', document)):
                with self.subTest(document=document), self.assertRaises(InvalidAddress) as raised:
                    await call
                self.assertEqual([pointer], [fault.pointer for fault in raised.exception.faults])
        self.assertEqual(created, await everything(self.service))

    async def test_documents_are_shared_neither_on_the_way_in_nor_on_the_way_out(self) -> None:
        document = address_data_suite()['namo']
        nickname = (await self.service.create_address(document)).nickname
        original = copy.deepcopy(document)
        document['emails'][0]['email'] = 'changed@example.org'
        (await self.service.get_address(nickname)).document['emails'].clear()
        (await everything(self.service))[nickname].clear()
        self.assertEqual(original, (await self.service.get_address(nickname)).document)

    async def test_it_is_ready_from_start_to_stop(self) -> None:
        self.assertTrue(await self.service.is_ready())
        await self.service.stop()
        self.assertFalse(await self.service.is_ready())

    async def test_nothing_works_after_stop_and_stopping_twice_is_fine(self) -> None:
        await self.service.stop()
        await self.service.stop()
        for call in (self.service.create_address({'full_name': 'x'}),
                     self.service.get_address('a'), self.service.delete_address('a'),
                     self.service.update_address('a', {'full_name': 'x'}),
                     self.service.update_address('a', {'full_name': 'x'}, VERSION),
                     self.service.count_addresses(), everything(self.service)):
            with self.assertRaises(StorageUnavailable):
                await call

    async def test_nothing_is_logged_when_nothing_is_wrong(self) -> None:
        for nickname in await self.create_suite():
            await self.service.delete_address(nickname)
        await self.service.is_ready()
        await self.service.stop()
        self.assertEqual([], self.logged)


class MemoryServiceTests(ServiceOnEngine, unittest.IsolatedAsyncioTestCase):

    def config(self) -> dict[str, Any]:
        return {'memory': None}


class FileServiceTests(ServiceOnEngine, unittest.IsolatedAsyncioTestCase):

    def config(self) -> dict[str, Any]:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return {'fs': f'{folder.name}/entries'}


class ConfigurationTests(unittest.IsolatedAsyncioTestCase):

    async def test_entries_in_files_are_there_for_the_next_service(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (AddressBookService({'addr-db': {'fs': folder}}, quiet_logger())
                             for _ in range(2))
            await first.start()
            for nickname, document in address_data_suite().items():
                await first.create_address(document, nickname)
            states = await all_states(first)
            await first.stop()
            await second.start()
            self.assertEqual(address_data_suite(), await everything(second))
            self.assertEqual(states, await all_states(second))
            await second.stop()

    def test_an_empty_configuration_has_the_defaults(self) -> None:
        service = AddressBookService({}, quiet_logger())
        self.assertEqual(5, service.timeout)
        self.assertEqual({'memory': None}, service.config['addr-db'])

    def test_a_bad_configuration_is_refused(self) -> None:
        for config in ({'addr-db': {'nosuch': None}}, {'server': {'request-timeout': 0}},
                       {'addr-db': {'memory': None, 'fs': 'x'}}, {'nosuch': 1}):
            with self.subTest(config=config), self.assertRaises(ConfigError):
                AddressBookService(config, quiet_logger())

    async def test_a_store_that_does_not_open_is_not_ready_and_says_why(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            service = AddressBookService({'addr-db': {'fs': f'{file.name}/x'}}, quiet_logger())
            with self.assertRaises(ConfigError):
                await service.start()
            self.assertFalse(await service.is_ready())
            await service.stop()

    async def test_uptime_counts_milliseconds_from_the_making_on(self) -> None:
        before = time.monotonic()
        service = AddressBookService({}, quiet_logger())
        made = time.monotonic()
        await asyncio.sleep(0.03)
        least = 1000 * (time.monotonic() - made)
        uptime = service.uptime_ms()
        most = 1000 * (time.monotonic() - before)
        self.assertIs(int, type(uptime))
        self.assertTrue(int(least) <= uptime <= most, (least, uptime, most))


class DeadlineTests(ServiceTestCase):

    def calls(self, service: AddressBookService) -> dict[str, Callable[[], Awaitable[object]]]:
        document = {'full_name': 'x'}
        return {
            'create': lambda: service.create_address(document),
            'read': lambda: service.get_address('a'),
            'update': lambda: service.update_address('a', document),
            'delete': lambda: service.delete_address('a'),
            'count': service.count_addresses,
            'list': lambda: everything(service),
        }

    async def test_a_call_that_the_engine_never_answers_ends_with_an_unknown_outcome(self) -> None:
        service = await self.make(server={'request-timeout': 0.01})
        self.stub.answers.clear()
        for name, call in self.calls(service).items():
            with self.subTest(call=name):
                with self.assertRaises(StorageUnavailable) as raised:
                    async with asyncio.timeout(DEADLINE / 10):
                        await call()
                self.assertIn('not known', str(raised.exception))
                self.assertEqual(name, self.stub.calls[-1])

    async def test_a_listing_that_stops_in_the_middle_ends_too(self) -> None:
        service = await self.make(server={'request-timeout': 0.01})
        with self.assertRaises(StorageUnavailable):
            async with asyncio.timeout(DEADLINE / 10):
                async for state in service.get_all_addresses():
                    self.assertEqual(('a', VERSION, {'full_name': 'x'}), state_of(state))
                    self.stub.answers.clear()

    async def test_a_slow_reader_of_a_listing_does_not_use_up_the_time_of_the_engine(self) -> None:
        service = await self.make(server={'request-timeout': 0.05})
        async for _ in service.get_all_addresses():
            await asyncio.sleep(0.1)
        self.assertEqual(['list', 'list on'], self.stub.calls)

    async def test_a_call_that_is_answered_in_time_is_not_disturbed(self) -> None:
        service = await self.make(server={'request-timeout': 60})
        for name, call in self.calls(service).items():
            with self.subTest(call=name):
                self.stub.answers.clear()
                task = asyncio.ensure_future(call())
                await self.wait_for(lambda: name in self.stub.calls)
                self.stub.answers.set()
                await task

    async def test_an_error_of_the_engine_arrives_as_it_is(self) -> None:
        service = await self.make()
        self.stub.error = StorageError('broken')
        for name, call in self.calls(service).items():
            with self.subTest(call=name), self.assertRaises(StorageError) as raised:
                await call()
            self.assertIs(self.stub.error, raised.exception)

    async def test_a_cancelled_call_is_cancelled_and_not_timed_out(self) -> None:
        service = await self.make()
        self.stub.answers.clear()
        for name, call in self.calls(service).items():
            with self.subTest(call=name):
                task = asyncio.ensure_future(call())
                await self.wait_for(lambda: name in self.stub.calls)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task


class ReadinessTests(ServiceTestCase):

    async def test_it_is_not_ready_before_start_nor_while_starting(self) -> None:
        service = AddressBookService({}, self.logger)
        service.addr_db = stub = StubDB(self.logger)
        self.assertFalse(await service.is_ready())
        start = asyncio.create_task(service.start())
        await self.wait_for(lambda: stub.calls == ['start'])
        self.assertFalse(await service.is_ready())
        stub.answers.set()
        await start
        self.assertTrue(await service.is_ready())
        self.assertEqual(['start', 'ping'], stub.calls)

    async def test_it_is_not_ready_while_draining_and_still_serves(self) -> None:
        service = await self.make()
        self.assertTrue(await service.is_ready())
        service.drain()
        self.assertFalse(await service.is_ready())
        self.assertEqual(('a', VERSION), await service.create_address({'full_name': 'x'}))
        self.assertEqual(('a', VERSION, {'full_name': 'x'}), await get_state(service, 'a'))

    async def test_a_drain_that_begins_while_it_asks_counts(self) -> None:
        service = await self.make()
        self.stub.answers.clear()
        asking = asyncio.create_task(service.is_ready())
        await self.wait_for(lambda: self.stub.calls == ['ping'])
        service.drain()
        self.stub.answers.set()
        self.assertFalse(await asking)

    async def test_it_is_not_ready_while_the_store_fails_and_one_line_says_why(self) -> None:
        service = await self.make(readiness={'cache': 0})
        self.stub.error = StorageUnavailable('It cannot be used now', 'disk 7')
        self.assertFalse(await service.is_ready())
        self.assertEqual([logging.WARNING], [record.levelno for record in self.logged])
        line = parse_logfmt(self.logged[0].getMessage())
        self.assertEqual(('NOT READY', 'disk 7'), (line['message'], line['cause']))
        self.assertIn('StorageUnavailable', line['reason'])
        self.stub.error = None
        self.assertTrue(await service.is_ready())

    async def test_it_is_not_ready_when_the_store_does_not_answer_in_time(self) -> None:
        service = await self.make(readiness={'timeout': 0.01, 'cache': 0})
        self.stub.answers.clear()
        async with asyncio.timeout(DEADLINE):
            self.assertFalse(await service.is_ready())
        self.assertEqual(1, len(self.logged))
        self.stub.answers.set()
        self.assertTrue(await service.is_ready())

    async def test_many_callers_share_one_ping_and_its_outcome(self) -> None:
        for error in (None, StorageUnavailable('It cannot be used now')):
            with self.subTest(error=error):
                service = await self.make(readiness={'cache': 60})
                self.logged.clear()
                self.stub.error = error
                self.stub.answers.clear()
                asking = [asyncio.create_task(service.is_ready()) for _ in range(20)]
                await self.wait_for(lambda: self.stub.calls)
                self.stub.answers.set()
                self.assertEqual([error is None] * 20, await asyncio.gather(*asking))
                self.assertEqual(error is None, await service.is_ready())
                self.assertEqual(['ping'], self.stub.calls)
                self.assertEqual(int(error is not None), len(self.logged))

    async def test_an_outcome_is_forgotten_when_its_time_is_over(self) -> None:
        service = await self.make(readiness={'cache': 0.02})
        self.assertTrue(await service.is_ready())
        self.stub.error = StorageError('broken')
        async with asyncio.timeout(DEADLINE):
            while await service.is_ready():
                await asyncio.sleep(0.005)
        self.assertEqual(['ping', 'ping'], self.stub.calls)

    async def test_a_ping_that_takes_longer_than_its_outcome_is_kept_is_not_repeated(self) -> None:
        service = await self.make(readiness={'cache': 0})
        self.stub.answers.clear()
        first = asyncio.create_task(service.is_ready())
        await self.wait_for(lambda: self.stub.calls)
        second = asyncio.create_task(service.is_ready())
        for _ in range(5):
            await asyncio.sleep(0)
        self.stub.answers.set()
        self.assertEqual([True, True], [await first, await second])
        self.assertEqual(['ping'], self.stub.calls)

    async def test_a_caller_that_gives_up_does_not_take_the_answer_from_the_others(self) -> None:
        service = await self.make()
        self.stub.answers.clear()
        first, second = (asyncio.create_task(service.is_ready()) for _ in range(2))
        await self.wait_for(lambda: self.stub.calls)
        first.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await first
        self.stub.answers.set()
        self.assertTrue(await second)


if __name__ == '__main__':
    unittest.main()

"""Every storage engine keeps the contract of the port: one suite, replayed on each of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import unittest
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR
from addrservice.database.addressbook_db import (
    PAGE_SIZE, AbstractAddressBookDB, Record, encode_record, is_nickname)
from addrservice.database.db_engines import create_addressbook_db
from addrservice.database.file_db import FileAddressBookDB
from addrservice.database.memory_db import InMemoryAddressBookDB
from addrservice.datamodel import MAX_ITEMS, MAX_NAME, MAX_TEXT, AddressEntry
from addrservice.errors import (
    AddressExists, AddressNotFound, ConfigError, StorageUnavailable, UnreadableRecord)
from data import address_data_suite
from tests.support import parse_logfmt, quiet_logger, recording_logger

UNUSABLE_NICKNAMES = [
    '', '.', '..', '../a', '/a', 'a/b', 'a\\b', 'a%00b', 'a\0b', '\0', '.tmp-x', 'x.json',
    'x.', 'a b', 'a_b', 'a\n', '\na', 'é', '\u0663', 'a\u0301', 'x' * 65, 'x' * 300, '%2e%2e', '*',
    '\ud800',
]

USABLE_NICKNAMES = ['a', '-', '--', '0', 'Z', 'x' * 64, 'null', 'a-b', 'CON',
                    '0123456789abcdef' * 2]

UNORDERED = ['b', 'a-b', 'a', 'B', 'ab', 'A', '9', '10', '-', 'a0', 'aB', '0', 'Z', 'z',
             'a--', 'aa']

GOOD = b'{"full_name":"Good"}'
_PLACE = (b'{"full_name":"x","addresses":'
          b'[{"kind":"home","street_name":"s","country":"c","pincode":%s}]}')

DAMAGED_RECORDS = {
    'empty': b'',
    'blank': b' \n',
    'zeros, as a crash may leave them': b'\0' * 100,
    'not JSON': b'it is not json',
    'cut off': GOOD[:-2],
    'text after the value': GOOD + b' x',
    'two values': GOOD + GOOD,
    'an array': b'[]',
    'null': b'null',
    'a number': b'5',
    'a text': b'"Good"',
    'an object without the name': b'{}',
    'a name of another type': b'{"full_name":5}',
    'a name that is null': b'{"full_name":null}',
    'a blank name': b'{"full_name":" "}',
    'an unknown member': b'{"full_name":"x","nickname":"y"}',
    'an object for a list': b'{"full_name":"x","emails":{}}',
    'a list for a kind': b'{"full_name":"x","emails":[{"kind":[],"email":"a@example.org"}]}',
    '100 000 open brackets': b'[' * 100_000,
    '100 000 open objects': b'{"full_name":' * 100_000,
    'NaN': _PLACE % b'NaN',
    'a number beyond floats': _PLACE % b'1e400',
    'a number of 5 000 digits': _PLACE % (b'9' * 5000),
    'an escaped lone surrogate': b'{"full_name":"\\ud800"}',
    'an encoded lone surrogate': b'{"full_name":"\xed\xa0\x80"}',
    'an escaped U+0000': b'{"full_name":"x\\u0000"}',
    'a byte that is no UTF-8 in a text': b'{"full_name":"x\xff"}',
    'a byte that is no UTF-8 in a member name': b'{"full_name":"x","\xff":1}',
    'a byte that is no UTF-8 outside': b'\xff' + GOOD,
    'UTF-16': GOOD.decode().encode('utf-16'),
    'a byte order mark': b'\xef\xbb\xbf' + GOOD,
}

EXACT_DOCUMENTS: dict[str, dict[str, Any]] = {
    'the least': {'full_name': 'x'},
    'empty lists': {'full_name': 'x', 'addresses': [], 'emails': [], 'fax_numbers': []},
    'scripts': {'full_name': 'आशा \U0001f600 e\u0301 \u05d0\u202e'},
    'what JSON escapes': {'full_name': '"\\/</script>\u2028\u2029%s{}\ufeff\u00ad'},
    'numbers': {'full_name': 'x', 'addresses': [
        {'kind': 'home', 'street_name': 's', 'country': 'c', 'pincode': pincode,
         'unit_number': number}
        for pincode, number in [(0, 1.0), (1, 1e-7), ('007', 0.1), (999999999999999, 2.5)]]},
    'digits': {'full_name': 'x', 'phone_numbers': [
        {'kind': 'work', 'country_code': 1, 'area_code': '011', 'local_number': '000'}]},
}


def entry_of(full_name: str) -> AddressEntry:
    return AddressEntry(full_name=full_name)


def biggest_document() -> dict[str, Any]:
    """As long as an entry can be, in characters that take four bytes each."""
    text = '\U0001f600' * MAX_TEXT
    place = {'kind': 'home', 'building_name': text, 'unit_number': 1.5, 'street_number': text,
             'street_name': text, 'locality': text, 'city': text, 'province': text,
             'pincode': text, 'country': text}
    phone = {'kind': 'home', 'country_code': '9' * 15, 'area_code': '9' * 15,
             'local_number': '9' * 15}
    return {'full_name': '\U0001f600' * MAX_NAME, 'addresses': [place] * MAX_ITEMS,
            'phone_numbers': [phone] * MAX_ITEMS, 'fax_numbers': [phone] * MAX_ITEMS,
            'emails': [{'kind': 'home', 'email': f'{"a" * 64}@example.org'}] * MAX_ITEMS}


async def listing(engine: AbstractAddressBookDB, after: str | None = None, limit: int | None = None
                  ) -> list[tuple[str, str]]:
    """Nicknames and full names, as `read_all_addresses` has them."""
    return [(nickname, entry.full_name)
            async for nickname, entry in engine.read_all_addresses(after, limit)]


async def listed_names(engine: AbstractAddressBookDB, after: str | None = None,
                       limit: int | None = None) -> list[str]:
    return [nickname for nickname, _ in await listing(engine, after, limit)]


def all_calls(engine: AbstractAddressBookDB, nickname: str = 'a'
              ) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every call that needs an open store."""
    return {
        'ping': engine.ping,
        'create with a name': lambda: engine.create_address(entry_of('x'), nickname),
        'create': lambda: engine.create_address(entry_of('x')),
        'read': lambda: engine.read_address(nickname),
        'update': lambda: engine.update_address(nickname, entry_of('x')),
        'delete': lambda: engine.delete_address(nickname),
        'list': lambda: listing(engine),
        'list nothing': lambda: listing(engine, limit=0),
        'list the rest': lambda: listing(engine, after=nickname, limit=1),
    }


async def outcomes(calls: Iterable[Awaitable[object]]) -> list[object]:
    """What calls that run at the same time return, or the class of what they raise."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [type(result) if isinstance(result, BaseException) else result for result in results]


class Store(ABC):
    """The store of one kind of engine: makes engines on it, and is a back door into it."""

    survives_restart: ClassVar[bool]
    """Whether entries are still there for the next engine on the same store."""

    @abstractmethod
    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        """An engine on this store, not started."""

    @abstractmethod
    async def put(self, nickname: str, record: bytes) -> None:
        """Puts a record there, whether good or damaged, past the engine that was made last. A
        store that holds text holds bytes that are no UTF-8 as Python's ``surrogateescape`` does."""

    @abstractmethod
    async def text(self, nickname: str) -> str:
        """The text of a record as it lies there."""

    @abstractmethod
    async def nicknames(self) -> list[str]:
        """The names of all records that lie there, sorted; also those that none may have."""

    def close(self) -> None:
        """Leaves nothing behind."""


class MemoryStore(Store):
    survives_restart = False

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        self.engine = InMemoryAddressBookDB(logger)
        return self.engine

    async def put(self, nickname: str, record: bytes) -> None:
        self.engine.texts[nickname] = record.decode('utf-8', 'surrogateescape')

    async def text(self, nickname: str) -> str:
        return self.engine.texts[nickname]

    async def nicknames(self) -> list[str]:
        return list(self.engine.texts)


class FileStore(Store):
    survives_restart = True

    def __init__(self) -> None:
        self._parent = tempfile.TemporaryDirectory()
        self.folder = Path(self._parent.name) / 'entries'

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        return FileAddressBookDB(str(self.folder), logger)

    async def put(self, nickname: str, record: bytes) -> None:
        (self.folder / f'{nickname}.json').write_bytes(record)

    async def text(self, nickname: str) -> str:
        return (self.folder / f'{nickname}.json').read_text('utf-8').removesuffix('\n')

    async def nicknames(self) -> list[str]:
        # Also what should not be there; the marks of those who use the folder may be.
        files = set(Path(self._parent.name).rglob('*')) - {self.folder, *self.folder.glob('.[!t]*')}
        return sorted(os.path.relpath(file, self.folder).removesuffix('.json') for file in files)

    def close(self) -> None:
        self._parent.cleanup()


# The loader shall find the suite under the name of an engine only, mypy what its methods are.
if TYPE_CHECKING:
    SuiteBase = unittest.IsolatedAsyncioTestCase
else:
    SuiteBase = object


class EngineContract(SuiteBase):
    """What stands in the docstrings of `AbstractAddressBookDB`. An engine's class says which
    store it is for, and nothing else: it neither replaces a test nor leaves one out."""

    store_class: ClassVar[type[Store]]

    def setUp(self) -> None:
        self.store = self.store_class()
        self.addCleanup(self.store.close)
        self.logger, self.logged = recording_logger()
        self.engine = self.store.make_engine(self.logger)

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        await self.engine.start()
        self.addAsyncCleanup(self.engine.stop)

    async def put_many(self, nicknames: Iterable[str]) -> None:
        for nickname in nicknames:
            await self.store.put(nickname, b'{"full_name":"%s"}' % nickname.encode())

    async def stored(self) -> dict[str, str]:
        """All records as they lie there."""
        return {name: await self.store.text(name) for name in await self.store.nicknames()}

    async def assert_absent(self, nickname: str) -> None:
        """No call finds an entry with that name, and none makes one."""
        for call in (self.engine.read_address(nickname), self.engine.delete_address(nickname),
                     self.engine.update_address(nickname, entry_of('new'))):
            with self.assertRaises(AddressNotFound):
                await call
        self.assertNotIn(nickname, await listed_names(self.engine))
        self.assertNotIn(nickname, await self.store.nicknames())

    # --- one entry ---

    async def test_a_new_store_is_empty(self) -> None:
        self.assertEqual([], await listing(self.engine))
        self.assertEqual([], await self.store.nicknames())

    async def test_a_created_entry_is_read_back_as_it_was(self) -> None:
        entry = entry_of('Asha Example')
        self.assertEqual('asha', await self.engine.create_address(entry, 'asha'))
        self.assertEqual(entry, await self.engine.read_address('asha'))
        self.assertEqual([('asha', 'Asha Example')], await listing(self.engine))

    async def test_create_makes_up_a_name_of_32_hexadecimal_digits_each_time_another(self) -> None:
        names = [await self.engine.create_address(entry_of(str(i))) for i in range(20)]
        self.assertEqual(20, len(set(names)))
        for i, name in enumerate(names):
            self.assertRegex(name, r'\A[0-9a-f]{32}\Z')
            self.assertEqual(str(i), (await self.engine.read_address(name)).full_name)

    async def test_create_refuses_a_taken_nickname_and_keeps_the_first(self) -> None:
        await self.engine.create_address(entry_of('first'), 'a')
        with self.assertRaises(AddressExists):
            await self.engine.create_address(entry_of('second'), 'a')
        self.assertEqual([('a', 'first')], await listing(self.engine))

    async def test_create_refuses_the_nickname_of_a_damaged_record_and_leaves_it(self) -> None:
        await self.store.put('a', b'damaged')
        with self.assertRaises(AddressExists):
            await self.engine.create_address(entry_of('second'), 'a')
        self.assertEqual('damaged', await self.store.text('a'))

    async def test_update_replaces_the_whole_entry(self) -> None:
        suite = {name: AddressEntry.from_api_dm(document)
                 for name, document in address_data_suite().items()}
        await self.engine.create_address(suite['namo'], 'a')
        await self.engine.update_address('a', suite['raga'])
        self.assertEqual(suite['raga'], await self.engine.read_address('a'))
        await self.engine.update_address('a', entry_of('x'))
        self.assertEqual('{"full_name":"x"}', await self.store.text('a'))

    async def test_update_leaves_the_others_alone(self) -> None:
        await self.put_many(['a', 'aa', 'a-'])
        await self.engine.update_address('a', entry_of('new'))
        self.assertEqual([('a', 'new'), ('a-', 'a-'), ('aa', 'aa')], await listing(self.engine))

    async def test_update_of_a_missing_entry_makes_none(self) -> None:
        await self.put_many(['b'])
        await self.assert_absent('a')
        self.assertEqual([('b', 'b')], await listing(self.engine))

    async def test_delete_removes_that_entry_alone(self) -> None:
        await self.put_many(['a', 'aa', 'a-'])
        await self.engine.delete_address('a')
        await self.assert_absent('a')
        self.assertEqual(['a-', 'aa'], await self.store.nicknames())

    async def test_a_deleted_nickname_can_be_used_again(self) -> None:
        await self.engine.create_address(entry_of('first'), 'a')
        await self.engine.delete_address('a')
        await self.engine.create_address(entry_of('second'), 'a')
        self.assertEqual([('a', 'second')], await listing(self.engine))

    async def test_every_usable_nickname_works_and_case_counts(self) -> None:
        names = [*USABLE_NICKNAMES, 'A', 'z', 'NULL']
        for name in names:
            self.assertTrue(is_nickname(name))
            await self.engine.create_address(entry_of(name), name)
        for name in names:
            self.assertEqual(name, (await self.engine.read_address(name)).full_name)
        self.assertEqual(sorted(names), await self.store.nicknames())
        for name in names:
            await self.engine.delete_address(name)
        self.assertEqual([], await self.store.nicknames())

    async def test_an_unusable_nickname_belongs_to_no_entry_and_touches_nothing(self) -> None:
        await self.put_many(['a', 'x', 'b'])
        before = await self.stored()
        for name in UNUSABLE_NICKNAMES:
            with self.subTest(nickname=name):
                self.assertFalse(is_nickname(name))
                await self.assert_absent(name)
                with self.assertRaises(ValueError):
                    await self.engine.create_address(entry_of('x'), name)
                self.assertEqual(before, await self.stored())

    # --- what is kept ---

    async def test_documents_come_back_exactly(self) -> None:
        documents = {**address_data_suite(), **EXACT_DOCUMENTS, 'the biggest': biggest_document()}
        for title, document in documents.items():
            with self.subTest(document=title):
                nickname = await self.engine.create_address(AddressEntry.from_api_dm(document))
                came_back = (await self.engine.read_address(nickname)).to_api_dm()
                # As text, for to Python 1 and 1.0 are the same.
                self.assertEqual(json.dumps(document, sort_keys=True),
                                 json.dumps(came_back, sort_keys=True))

    async def test_every_engine_stores_the_same_one_line_of_text(self) -> None:
        for document in address_data_suite().values():
            entry = AddressEntry.from_api_dm(document)
            text = await self.store.text(await self.engine.create_address(entry))
            self.assertEqual(encode_record(entry), text)
            self.assertNotIn('\n', text)
            self.assertEqual(document, json.loads(text))

    async def test_an_entry_that_was_handed_in_stays_the_callers_own(self) -> None:
        entry = entry_of('as created')
        await self.engine.create_address(entry, 'a')
        entry.full_name = 'changed'
        self.assertEqual([('a', 'as created')], await listing(self.engine))
        entry.full_name = 'as updated'
        await self.engine.update_address('a', entry)
        entry.full_name = 'changed'
        self.assertEqual('as updated', (await self.engine.read_address('a')).full_name)

    async def test_an_entry_that_was_handed_out_is_the_callers_own(self) -> None:
        suite = address_data_suite()['namo']
        await self.engine.create_address(AddressEntry.from_api_dm(suite), 'a')
        for entry in [await self.engine.read_address('a'),
                      *[entry async for _, entry in self.engine.read_all_addresses()]]:
            entry.full_name = 'changed'
            for email in entry.emails or ():
                email.email = 'changed@example.org'
        self.assertEqual(suite, (await self.engine.read_address('a')).to_api_dm())

    async def test_a_change_while_a_call_is_under_way_does_not_reach_the_store(self) -> None:
        entry = entry_of('before')
        call = asyncio.create_task(self.engine.create_address(entry, 'a'))
        await asyncio.sleep(0)  # the call has begun
        entry.full_name = 'after'
        await call
        self.assertEqual([('a', 'before')], await listing(self.engine))

    # --- listing ---

    async def test_a_listing_is_in_the_order_of_code_points(self) -> None:
        for name in UNORDERED:
            await self.engine.create_address(entry_of(name), name)
        self.assertEqual([(name, name) for name in sorted(UNORDERED)], await listing(self.engine))

    async def test_a_listing_starts_behind_any_name_and_ends_at_any_limit(self) -> None:
        await self.put_many(UNORDERED)
        for after in [*UNORDERED, *UNUSABLE_NICKNAMES, 'a-', 'a-c', 'C', 'zz', '5', None]:
            rest = sorted(name for name in UNORDERED if name > (after or ''))
            for limit in (None, 0, 2, len(rest) + 1):
                with self.subTest(after=after, limit=limit):
                    self.assertEqual(rest[:limit], await listed_names(self.engine, after, limit))

    async def test_a_listing_of_many_pages_has_every_entry_once_and_in_order(self) -> None:
        names = sorted(f'n{i}' for i in range(3 * PAGE_SIZE))
        await self.put_many(names)
        self.assertEqual(names, await listed_names(self.engine))
        for limit in (PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE, 3 * PAGE_SIZE):
            with self.subTest(limit=limit):
                self.assertEqual(names[:limit], await listed_names(self.engine, None, limit))
                self.assertEqual(names[limit:], await listed_names(self.engine, names[limit - 1]))

    async def test_pages_are_no_larger_than_asked_for_and_go_on_to_the_end(self) -> None:
        names = sorted(f'n{i}' for i in range(25))
        await self.put_many(names)
        for size in (1, 7, 25, 26):
            with self.subTest(size=size):
                pages = [page async for page in self.engine.read_pages('', size)]
                self.assertLessEqual(max(map(len, pages)), size)
                self.assertEqual(names, [record.nickname for page in pages for record in page])

    async def test_a_listing_can_be_left_in_the_middle_and_started_anew(self) -> None:
        await self.put_many(f'n{i:03}' for i in range(2 * PAGE_SIZE))
        first = self.engine.read_all_addresses()
        second = self.engine.read_all_addresses()
        for i in range(PAGE_SIZE + 1):
            self.assertEqual(f'n{i:03}', (await anext(first))[0])
        self.assertEqual('n000', (await anext(second))[0])
        self.assertEqual(2 * PAGE_SIZE, len(await listing(self.engine)))

    async def test_a_listing_survives_that_all_around_it_is_deleted(self) -> None:
        names = [f'n{i:03}' for i in range(3 * PAGE_SIZE)]
        await self.put_many(names)
        seen = []
        async for name, _ in self.engine.read_all_addresses():
            seen.append(name)
            if len(seen) in (1, PAGE_SIZE):
                # The one just read, its neighbours, and the start of the next pages.
                place = len(seen) - 1
                for gone in {*names[max(place - 1, 0):place + 2], names[2 * PAGE_SIZE - place]}:
                    await self.engine.delete_address(gone)
        self.assertEqual(sorted(set(seen)), seen)
        self.assertLessEqual(set(await self.store.nicknames()), set(seen))

    async def test_a_listing_has_what_stays_exactly_once_while_others_write(self) -> None:
        staying = [f's{i:03}' for i in range(0, 300, 2)]
        await self.put_many([*staying, *(f'd{i:03}' for i in range(50))])

        async def write() -> None:
            for i in range(50):
                await self.engine.create_address(entry_of('new'), f's{6 * i + 1:03}')
                await self.engine.update_address(staying[3 * i], entry_of('updated'))
                await self.engine.delete_address(f'd{i:03}')
                await asyncio.sleep(0)

        writer = asyncio.create_task(write())
        while not writer.done():
            names = []
            async for name, entry in self.engine.read_all_addresses():
                self.assertIn(entry.full_name, (name, 'new', 'updated'))
                names.append(name)
                await asyncio.sleep(0)
            self.assertEqual(sorted(set(names)), names)
            self.assertEqual(staying, [name for name in names if name in staying])
        await writer
        self.assertEqual(len(staying) + 50, len(await listing(self.engine)))

    async def test_a_listing_that_is_left_has_let_go_of_the_store(self) -> None:
        await self.put_many(f'n{i:03}' for i in range(2 * PAGE_SIZE))
        closed, read_pages = [], self.engine.read_pages

        async def watched(after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
            try:
                async with contextlib.aclosing(read_pages(after, size)) as pages:
                    async for page in pages:
                        yield page
            finally:
                closed.append(after)

        with mock.patch.object(self.engine, 'read_pages', watched):
            entries = self.engine.read_all_addresses()
            await anext(entries)
            self.assertEqual([], closed)
            await entries.aclose()
        self.assertEqual([''], closed)

    async def test_a_limit_is_not_read_beyond(self) -> None:
        await self.put_many(f'n{i:03}' for i in range(3 * PAGE_SIZE))
        for limit, pages in ((0, 1), (1, 1), (PAGE_SIZE, 1), (PAGE_SIZE + 1, 2)):
            with self.subTest(limit=limit), mock.patch.object(
                    self.engine, '_decoded', wraps=self.engine._decoded) as decoded:
                self.assertEqual(limit, len([e async for e in
                                             self.engine.read_all_addresses(limit=limit)]))
                self.assertLessEqual(decoded.call_count, pages)

    # --- damage ---

    async def test_reading_a_damaged_record_says_so_and_names_it_for_the_log_only(self) -> None:
        for damage, record in DAMAGED_RECORDS.items():
            with self.subTest(damage=damage):
                await self.store.put('damaged-one', record)
                with self.assertRaises(UnreadableRecord) as raised:
                    await self.engine.read_address('damaged-one')
                self.assertIn('damaged-one', raised.exception.cause)
                self.assertNotIn('damaged-one', str(raised.exception))
                self.assertIsNotNone(raised.exception.__cause__)

    async def test_a_listing_goes_on_without_a_damaged_record_and_logs_one_error(self) -> None:
        await self.put_many(['a', 'z'])
        for damage, record in DAMAGED_RECORDS.items():
            with self.subTest(damage=damage):
                self.logged.clear()
                await self.store.put('damaged-one', record)
                self.assertEqual(['a', 'z'], await listed_names(self.engine))
                self.assertEqual([logging.ERROR], [record.levelno for record in self.logged])
                line = self.logged[0].getMessage()
                self.assertIn('damaged-one', ' '.join(map(str, parse_logfmt(line).values())))
                self.assertTrue(line.isprintable() and len(line) < 2000, line)

    async def test_a_limit_counts_entries_and_not_damaged_records(self) -> None:
        await self.put_many(['b', 'd', 'f'])
        for name in 'ace':
            await self.store.put(name, b'')
        for limit in range(4):
            with self.subTest(limit=limit):
                self.assertEqual(['b', 'd', 'f'][:limit],
                                 await listed_names(self.engine, None, limit))

    async def test_a_page_of_nothing_but_damage_does_not_end_a_listing(self) -> None:
        for i in range(PAGE_SIZE + 50):
            await self.store.put(f'd{i}', b'')
        await self.put_many(['a', 'z'])
        self.assertEqual(['a', 'z'], await listed_names(self.engine))
        self.assertEqual(['z'], await listed_names(self.engine, 'a', 1))

    async def test_update_mends_a_damaged_record(self) -> None:
        for damage, record in DAMAGED_RECORDS.items():
            with self.subTest(damage=damage):
                await self.store.put('a', record)
                await self.engine.update_address('a', entry_of('mended'))
                self.assertEqual([('a', 'mended')], await listing(self.engine))

    async def test_delete_removes_a_damaged_record(self) -> None:
        for damage, record in DAMAGED_RECORDS.items():
            with self.subTest(damage=damage):
                await self.store.put('a', record)
                await self.engine.delete_address('a')
                self.assertEqual([], await self.store.nicknames())

    # --- calls that overlap ---

    async def test_of_many_creates_of_one_nickname_one_wins_and_stays_whole(self) -> None:
        for turn in range(5):
            name = f'n{turn}'
            results = await outcomes(
                self.engine.create_address(entry_of(f'{name} {i}'), name) for i in range(12))
            self.assertEqual(11, results.count(AddressExists))
            winner = f'{name} {results.index(name)}'
            self.assertEqual(winner, (await self.engine.read_address(name)).full_name)

    async def test_of_many_deletes_of_one_nickname_one_wins(self) -> None:
        await self.put_many(['a'])
        results = await outcomes(self.engine.delete_address('a') for _ in range(12))
        self.assertEqual((1, 11), (results.count(None), results.count(AddressNotFound)))

    async def test_an_update_that_races_a_delete_never_brings_the_entry_back(self) -> None:
        for turn in range(10):
            await self.put_many(['a'])
            calls = [self.engine.update_address('a', entry_of(f'{i}')) for i in range(4)]
            calls.insert(turn % 5, self.engine.delete_address('a'))
            results = await outcomes(calls)
            self.assertIsNone(results[turn % 5])
            self.assertLessEqual(set(results), {None, AddressNotFound})
            await self.assert_absent('a')

    async def test_a_read_that_races_updates_sees_one_of_them_whole(self) -> None:
        document = biggest_document()
        versions = [AddressEntry.from_api_dm({**document, 'full_name': f'{i}' * MAX_NAME})
                    for i in range(4)]
        await self.engine.create_address(versions[0], 'a')
        results = await asyncio.gather(*[
            call for version in versions
            for call in (self.engine.update_address('a', version),
                         self.engine.read_address('a'), self.engine.read_address('a'))])
        for result in results:
            self.assertIn(result, [None, *versions])
        self.assertIn(await self.engine.read_address('a'), versions)

    # --- open and closed ---

    async def test_ping_returns_while_the_store_is_open(self) -> None:
        await self.engine.ping()

    async def test_nothing_works_before_start(self) -> None:
        engine = self.store.make_engine(self.logger)
        await self.assert_closed(engine)

    async def test_nothing_works_after_stop(self) -> None:
        await self.put_many(['a'])
        await self.engine.stop()
        await self.assert_closed(self.engine)

    async def assert_closed(self, engine: AbstractAddressBookDB) -> None:
        for name, call in all_calls(engine).items():
            with self.subTest(call=name), self.assertRaises(StorageUnavailable):
                await call()

    async def test_a_listing_that_stop_interrupts_does_not_look_complete(self) -> None:
        await self.put_many(f'n{i:03}' for i in range(2 * PAGE_SIZE))
        with self.assertRaises(StorageUnavailable):
            async for _ in self.engine.read_all_addresses():
                await self.engine.stop()

    async def test_stopping_twice_or_before_start_is_fine(self) -> None:
        await self.engine.stop()
        await self.engine.stop()
        await self.store.make_engine(self.logger).stop()

    async def test_calls_that_race_stop_happen_or_say_that_the_store_is_closed(self) -> None:
        creates = [self.engine.create_address(entry_of('x'), f'n{i}') for i in range(20)]
        results = await outcomes([*creates[:10], self.engine.stop(), *creates[10:]])
        self.assertIsNone(results.pop(10))
        created = {name for name in results if isinstance(name, str)}
        self.assertLessEqual(set(results), created | {StorageUnavailable})
        await self.engine.start()
        self.assertEqual(created if self.store.survives_restart else set(),
                         set(await self.store.nicknames()))

    async def test_a_restart_keeps_what_the_engine_promises_and_nothing_else(self) -> None:
        for name, document in address_data_suite().items():
            await self.engine.create_address(AddressEntry.from_api_dm(document), name)
        await self.engine.create_address(entry_of('x'), 'deleted')
        await self.engine.delete_address('deleted')
        kept = address_data_suite() if self.store.survives_restart else {}
        for engine in (self.engine, self.store.make_engine(self.logger)):
            await self.engine.stop()
            await engine.start()
            self.addAsyncCleanup(engine.stop)
            self.assertEqual(kept, {name: entry.to_api_dm()
                                    async for name, entry in engine.read_all_addresses()})
            await engine.ping()

    async def test_nothing_is_logged_when_nothing_is_wrong(self) -> None:
        await self.engine.create_address(entry_of('x'), 'a')
        await self.engine.update_address('a', entry_of('y'))
        await listing(self.engine)
        with self.assertRaises(AddressNotFound):
            await self.engine.read_address('b')
        await self.engine.delete_address('a')
        await self.engine.stop()
        self.assertEqual([], self.logged)


class MemoryEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = MemoryStore


class FileEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = FileStore


class ErrorTests(unittest.TestCase):

    def test_a_missing_entry_is_a_key_error_that_a_person_can_read(self) -> None:
        error = AddressNotFound('No entry has this id')
        self.assertIsInstance(error, KeyError)
        self.assertEqual('No entry has this id', str(error))


class ChoiceOfEngineTests(unittest.TestCase):

    def test_the_configuration_picks_the_engine(self) -> None:
        sections: list[tuple[dict[str, Any], type[AbstractAddressBookDB]]] = [
            ({'memory': None}, InMemoryAddressBookDB),
            ({'fs': 'no/such/folder'}, FileAddressBookDB)]
        for section, engine in sections:
            with self.subTest(section=section):
                self.assertIs(engine, type(create_addressbook_db(section, quiet_logger())))
        self.assertFalse(Path('no').exists(), 'an engine is made, but not started')

    def test_an_engine_logs_where_it_is_told(self) -> None:
        logger = quiet_logger()
        for section in ({'memory': None}, {'fs': 'x'}):
            self.assertIs(logger, create_addressbook_db(section, logger).logger)

    def test_an_unknown_engine_is_refused_in_one_line_that_names_it(self) -> None:
        sections: list[dict[str, Any]] = [
            {'sqlite': 'x'}, {'Memory': None}, {'memory': 'x'}, {'fs': None}, {'fs': 5},
            {'memory': None, 'fs': 'x'}, {}]
        for section in sections:
            with self.subTest(section=section):
                with self.assertRaises(ConfigError) as raised:
                    create_addressbook_db(section, quiet_logger())
                self.assertTrue(str(raised.exception).isprintable())
                for word in ('addr-db', *section):
                    self.assertIn(word, str(raised.exception))

    def test_choosing_one_engine_imports_no_other(self) -> None:
        program = ('import logging, sys\n'
                   'from addrservice.database.db_engines import create_addressbook_db\n'
                   'create_addressbook_db({"memory": None}, logging.getLogger())\n'
                   'print([name for name in sys.modules if name.endswith("y_db")])\n'
                   'print([name for name in sys.modules if name.endswith("e_db")])\n')
        result = subprocess.run([sys.executable, '-c', program], cwd=ROOT_DIR, check=True,
                                capture_output=True, text=True)
        self.assertEqual("['addrservice.database.memory_db']\n[]\n", result.stdout)


if __name__ == '__main__':
    unittest.main()

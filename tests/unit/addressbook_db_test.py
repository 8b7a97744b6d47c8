"""Every storage engine keeps the contract of the port: one suite, replayed on each of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import unittest
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR
from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.records import (
    Key, Record, Stored, encode_record, is_nickname, is_version, new_version)
from addrservice.database.db_engines import create_addressbook_db
from addrservice.database.file_db import FileAddressBookDB
from addrservice.database.memory_db import InMemoryAddressBookDB
from addrservice.datamodel import MAX_ITEMS, MAX_NAME, MAX_TEXT, AddressEntry
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, ConfigError, StorageUnavailable,
    UnreadableRecord)
from data import address_data_suite
from tests.support import DEADLINE, parse_logfmt, quiet_logger, recording_logger

UNUSABLE_NICKNAMES = [
    '', '.', '..', '../a', '/a', 'a/b', 'a\\b', 'a%00b', 'a\0b', '\0', '.tmp-x', 'x.json',
    'x.', 'a b', 'a_b', 'a\n', '\na', 'é', '\u0663', 'a\u0301', 'x' * 65, 'x' * 300, '%2e%2e', '*',
    '\ud800',
]

USABLE_NICKNAMES = ['a', '-', '--', '0', 'Z', 'x' * 64, 'null', 'a-b', 'CON',
                    '0123456789abcdef' * 2]

UNORDERED = ['b', 'a-b', 'a', 'B', 'ab', 'A', '9', '10', '-', 'a0', 'aB', '0', 'Z', 'z',
             'a--', 'aa']

VERSION = '0123456789abcdef'

IMPOSSIBLE_VERSIONS = [
    '', 'x', 'ABCDEF0123456789', f'{VERSION}0', VERSION[:-1], f'{VERSION}\n', f'\n{VERSION}',
    f'{VERSION[:-1]}\n', f'"{VERSION}"', f' {VERSION[:-1]}', '\u0660' * 16, 'x' * 16, '*',
    '\0' * 16, '\ud800',
]

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
    return [(stored.nickname, stored.entry.full_name)
            async for stored in engine.read_all_addresses(after, limit)]


async def listed_names(engine: AbstractAddressBookDB, after: str | None = None,
                       limit: int | None = None) -> list[str]:
    return [nickname for nickname, _ in await listing(engine, after, limit)]


async def listed_versions(engine: AbstractAddressBookDB) -> dict[str, str]:
    """Nickname -> version, as `read_all_addresses` has them."""
    return {stored.nickname: stored.version async for stored in engine.read_all_addresses()}


async def count_up(engine: AbstractAddressBookDB, nickname: str) -> str:
    """Adds one to the number in an entry's name, however many others do the same.

    :return: the version that this gave it.
    """
    while True:
        stored = await engine.read_address(nickname)
        entry = entry_of(f'{int(stored.entry.full_name) + 1}')
        await asyncio.sleep(0)  # others read the same
        with contextlib.suppress(AddressChanged):
            return await engine.update_address(nickname, entry, stored.version)


def all_calls(engine: AbstractAddressBookDB, nickname: str = 'a'
              ) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every call that needs an open store."""
    return {
        'ping': engine.ping,
        'create with a name': lambda: engine.create_address(entry_of('x'), nickname),
        'create': lambda: engine.create_address(entry_of('x')),
        'create a copy': lambda: engine.create_address(entry_of('x'), nickname, VERSION),
        'read': lambda: engine.read_address(nickname),
        'update': lambda: engine.update_address(nickname, entry_of('x')),
        'update a version': lambda: engine.update_address(nickname, entry_of('x'), VERSION),
        'delete': lambda: engine.delete_address(nickname),
        'delete a version': lambda: engine.delete_address(nickname, VERSION),
        'count': engine.count_addresses,
        'list': lambda: listing(engine),
        'list nothing': lambda: listing(engine, limit=0),
        'list the rest': lambda: listing(engine, after=nickname, limit=1),
    }


async def outcomes(calls: Iterable[Awaitable[object]]) -> list[object]:
    """What calls that run at the same time return, or the class of what they raise."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [type(result) if isinstance(result, BaseException) else result for result in results]


class Store(ABC):
    """The store of one kind of engine: makes engines on it, and is a back door into it.

    One is made for each test. The back door is used between `AbstractAddressBookDB.start` and
    `stop` of an engine, one call at a time. If engines can share the store, a subclass of
    `SharedStoreContract` says so.
    """

    survives_restart: ClassVar[bool]
    """Whether entries are still there for the next engine on the same store."""

    async def open(self) -> None:
        """Makes the store, with nothing in it."""

    @abstractmethod
    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        """An engine on this store, not started."""

    @abstractmethod
    async def put(self, nickname: str, record: bytes) -> None:
        """Puts a record there, with a version that no other has, past the engine that was made
        last; also in the place of another one. A store that cannot hold a damaged record, such as
        text that is no UTF-8, puts another damaged one there."""

    async def put_all(self, records: Mapping[str, bytes]) -> None:
        """Puts many records there; where a call takes long, best all at once."""
        for nickname, record in records.items():
            await self.put(nickname, record)

    @abstractmethod
    async def text(self, nickname: str) -> str:
        """The text of a record as it lies there, without its version."""

    @abstractmethod
    async def nicknames(self) -> list[str]:
        """The names of all records that lie there, sorted; also those that none may have."""

    async def close(self) -> None:
        """Leaves nothing behind."""


class MemoryStore(Store):
    survives_restart = False

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        self.engine = InMemoryAddressBookDB(logger)
        return self.engine

    async def put(self, nickname: str, record: bytes) -> None:
        self.engine.records[nickname] = Record(
            nickname, new_version(), record.decode('utf-8', 'surrogateescape'), nickname)

    async def text(self, nickname: str) -> str:
        return self.engine.records[nickname].text

    async def nicknames(self) -> list[str]:
        return list(self.engine.records)


class FileStore(Store):
    survives_restart = True

    async def open(self) -> None:
        self._parent = tempfile.TemporaryDirectory()
        self.folder = Path(self._parent.name) / 'entries'

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        return FileAddressBookDB(str(self.folder), logger)

    async def put(self, nickname: str, record: bytes) -> None:
        line = f'\n{new_version()}\n'.encode()
        (self.folder / f'{nickname}.json').write_bytes(record + line)

    async def text(self, nickname: str) -> str:
        content = (self.folder / f'{nickname}.json').read_text('utf-8')
        return re.sub(r'\n[0-9a-f]{16}\n\Z', '', content)

    async def nicknames(self) -> list[str]:
        # Also what should not be there; the marks of those who use the folder may be.
        files = set(Path(self._parent.name).rglob('*')) - {self.folder, *self.folder.glob('.[!t]*')}
        return sorted(os.path.relpath(file, self.folder).removesuffix('.json') for file in files)

    async def close(self) -> None:
        self._parent.cleanup()


# The loader shall find the suites under the name of an engine only, mypy what their methods are.
if TYPE_CHECKING:
    SuiteBase = unittest.IsolatedAsyncioTestCase
else:
    SuiteBase = object


class StoreTestCase(SuiteBase):
    """A store of the kind that is under test, and an engine on it."""

    store_class: ClassVar[type[Store]]

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        self.logger, self.logged = recording_logger()
        self.store = self.store_class()
        await self.store.open()
        self.addAsyncCleanup(self.store.close)
        self.engine = await self.start_engine()

    async def start_engine(self) -> AbstractAddressBookDB:
        engine = self.store.make_engine(self.logger)
        self.addAsyncCleanup(engine.stop)
        await engine.start()
        return engine

    async def put_many(self, nicknames: Iterable[str]) -> None:
        """Puts entries there that are called like their nicknames."""
        await self.store.put_all({nickname: b'{"full_name":"%s"}' % nickname.encode()
                                  for nickname in nicknames})

    async def assert_stored(self, nickname: str, version: str, full_name: str) -> None:
        """Reading and listing agree that this is there."""
        expected = Stored(nickname, version, entry_of(full_name).to_json())
        self.assertEqual(expected, await self.engine.read_address(nickname))
        listed = [stored async for stored in self.engine.read_all_addresses()]
        self.assertIn(expected, listed)


class EngineContract(StoreTestCase):
    """What stands in the docstrings of `AbstractAddressBookDB`. An engine's class says which
    store it is for, and nothing else: it neither replaces a test nor leaves one out."""

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
        key = await self.engine.create_address(entry, 'asha')
        self.assertEqual('asha', key.nickname)
        self.assertEqual(Stored(*key, entry.to_json()), await self.engine.read_address('asha'))
        self.assertEqual([('asha', 'Asha Example')], await listing(self.engine))

    async def test_create_makes_up_a_name_of_32_hexadecimal_digits_each_time_another(self) -> None:
        names = [(await self.engine.create_address(entry_of(str(i)))).nickname for i in range(20)]
        self.assertEqual(20, len(set(names)))
        for i, name in enumerate(names):
            self.assertRegex(name, r'\A[0-9a-f]{32}\Z')
            self.assertEqual(str(i), (await self.engine.read_address(name)).entry.full_name)

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
        self.assertEqual(suite['raga'], (await self.engine.read_address('a')).entry)
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
            self.assertEqual(name, (await self.engine.read_address(name)).entry.full_name)
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
                entry = AddressEntry.from_api_dm(document)
                nickname = (await self.engine.create_address(entry)).nickname
                came_back = (await self.engine.read_address(nickname)).entry.to_api_dm()
                # As text, for to Python 1 and 1.0 are the same.
                self.assertEqual(json.dumps(document, sort_keys=True),
                                 json.dumps(came_back, sort_keys=True))

    async def test_every_engine_stores_the_same_one_line_of_text(self) -> None:
        for document in address_data_suite().values():
            entry = AddressEntry.from_api_dm(document)
            text = await self.store.text((await self.engine.create_address(entry)).nickname)
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
        self.assertEqual('as updated', (await self.engine.read_address('a')).entry.full_name)

    async def test_an_entry_that_was_handed_out_is_the_callers_own(self) -> None:
        suite = address_data_suite()['namo']
        await self.engine.create_address(AddressEntry.from_api_dm(suite), 'a')
        for stored in [await self.engine.read_address('a'),
                       *[stored async for stored in self.engine.read_all_addresses()]]:
            stored.entry.full_name = 'changed'
            for email in stored.entry.emails or ():
                email.email = 'changed@example.org'
        self.assertEqual(suite, (await self.engine.read_address('a')).entry.to_api_dm())

    async def test_a_change_while_a_call_is_under_way_does_not_reach_the_store(self) -> None:
        entry = entry_of('before')
        call = asyncio.create_task(self.engine.create_address(entry, 'a'))
        await asyncio.sleep(0)  # the call has begun
        entry.full_name = 'after'
        await call
        self.assertEqual([('a', 'before')], await listing(self.engine))

    # --- versions ---

    async def test_each_write_gives_a_version_that_the_name_never_had(self) -> None:
        versions = []
        for _ in range(10):
            versions.append((await self.engine.create_address(entry_of('x'), 'a')).version)
            versions += [await self.engine.update_address('a', entry_of('x')) for _ in range(3)]
            await self.engine.delete_address('a')
        self.assertEqual(40, len(set(versions)))
        for version in versions:
            self.assertRegex(version, r'\A[0-9a-f]{16}\Z')

    async def test_reading_and_listing_have_the_version_that_the_write_answered(self) -> None:
        key = await self.engine.create_address(entry_of('created'), 'a')
        await self.assert_stored(*key, 'created')
        version = await self.engine.update_address('a', entry_of('updated'))
        await self.assert_stored('a', version, 'updated')
        version = await self.engine.update_address('a', entry_of('once more'), version)
        await self.assert_stored('a', version, 'once more')
        await self.engine.delete_address('a')
        key = await self.engine.create_address(entry_of('again'), 'a')
        await self.assert_stored(*key, 'again')
        key = await self.engine.create_address(entry_of('another'))
        await self.assert_stored(*key, 'another')

    async def test_a_version_stays_as_long_as_nobody_writes_that_entry(self) -> None:
        await self.put_many(['a', 'b'])
        versions = await listed_versions(self.engine)
        await self.engine.create_address(entry_of('x'), 'c')
        await self.engine.update_address('b', entry_of('x'))
        with self.assertRaises(AddressExists):
            await self.engine.create_address(entry_of('x'), 'a')
        for _ in range(2):
            await self.assert_stored('a', versions['a'], 'a')

    async def test_a_change_of_the_right_version_happens(self) -> None:
        await self.put_many(['a'])
        version = (await self.engine.read_address('a')).version
        for i in range(3):
            before = version
            version = await self.engine.update_address('a', entry_of(f'{i}'), before)
            self.assertNotEqual(before, version)
            await self.assert_stored('a', version, f'{i}')
        await self.engine.delete_address('a', version)
        await self.assert_absent('a')

    async def assert_refused(self, version: str) -> None:
        """Changes of that version of the entry ``a`` are refused, and it stays as it is."""
        before = await self.engine.read_address('a')
        for call in (self.engine.update_address('a', entry_of('refused'), version),
                     self.engine.update_address('a', entry_of('refused'), version, new_version()),
                     self.engine.delete_address('a', version)):
            with self.assertRaises(AddressChanged):
                await call
        await self.assert_stored('a', before.version, before.entry.full_name)

    async def test_a_change_of_a_version_that_is_over_is_refused_and_changes_nothing(self) -> None:
        version = (await self.engine.create_address(entry_of('first'), 'a')).version
        await self.engine.update_address('a', entry_of('second'))
        await self.assert_refused(version)
        version = await self.engine.update_address('a', entry_of('third'))
        await self.engine.update_address('a', entry_of('fourth'), version)
        await self.assert_refused(version)

    async def test_a_change_of_an_entry_that_was_deleted_and_made_again_is_refused(self) -> None:
        version = (await self.engine.create_address(entry_of('x'), 'a')).version
        await self.engine.delete_address('a')
        await self.engine.create_address(entry_of('x'), 'a')
        await self.assert_refused(version)

    async def test_a_change_of_a_version_that_none_has_or_can_have_is_refused(self) -> None:
        await self.put_many(['a', 'b'])
        other = (await self.engine.read_address('b')).version
        for version in [other, new_version(), *IMPOSSIBLE_VERSIONS, 'x' * 10_000]:
            with self.subTest(version=version):
                await self.assert_refused(version)

    async def test_a_change_of_any_version_of_a_missing_entry_does_not_find_it(self) -> None:
        await self.put_many(['b'])
        version = (await self.engine.read_address('b')).version
        for name in ('a', *UNUSABLE_NICKNAMES):
            for condition in (version, new_version(), *IMPOSSIBLE_VERSIONS):
                with self.subTest(nickname=name, version=condition):
                    with self.assertRaises(AddressNotFound):
                        await self.engine.update_address(name, entry_of('x'), condition)
                    with self.assertRaises(AddressNotFound):
                        await self.engine.delete_address(name, condition)
        self.assertEqual({'b': version}, await listed_versions(self.engine))

    async def test_a_version_that_the_caller_gives_is_kept(self) -> None:
        versions = [VERSION, '0' * 16, 'f' * 16]
        for name, version in zip('abc', versions):
            key = await self.engine.create_address(entry_of('x'), name, version)
            self.assertEqual(Key(name, version), key)
            await self.assert_stored(name, version, 'x')
        for version in [*versions, versions[-1]]:
            self.assertEqual(version, await self.engine.update_address(
                'a', entry_of(version), version=version))
            await self.assert_stored('a', version, version)
        await self.engine.update_address('a', entry_of('y'), versions[-1], versions[0])
        await self.assert_stored('a', versions[0], 'y')

    async def test_a_version_that_cannot_be_one_is_refused_and_changes_nothing(self) -> None:
        await self.put_many(['a'])
        before = await self.engine.read_address('a')
        for version in IMPOSSIBLE_VERSIONS:
            with self.subTest(version=version):
                self.assertFalse(is_version(version))
                for call in (self.engine.create_address(entry_of('x'), 'b', version),
                             self.engine.create_address(entry_of('x'), None, version),
                             self.engine.update_address('a', entry_of('x'), None, version),
                             self.engine.update_address(
                                 'a', entry_of('x'), before.version, version)):
                    with self.assertRaises(ValueError):
                        await call
                self.assertEqual([before], [s async for s in self.engine.read_all_addresses()])

    # --- counting ---

    async def test_the_count_goes_with_creates_and_deletes_alone(self) -> None:
        self.assertEqual(0, await self.engine.count_addresses())
        for i, name in enumerate('abc', 1):
            await self.engine.create_address(entry_of('x'), name)
            self.assertEqual(i, await self.engine.count_addresses())
        await self.engine.update_address('a', entry_of('y'))
        await self.assert_absent('d')
        with self.assertRaises(AddressExists):
            await self.engine.create_address(entry_of('x'), 'a')
        with self.assertRaises(AddressChanged):
            await self.engine.delete_address('a', new_version())
        self.assertEqual(3, await self.engine.count_addresses())
        await self.engine.delete_address('b')
        self.assertEqual(2, await self.engine.count_addresses())

    async def test_the_count_is_of_all_pages(self) -> None:
        names = await self.put_pages(3)
        self.assertEqual(len(names), await self.engine.count_addresses())

    async def test_damaged_records_count(self) -> None:
        await self.put_many(['b'])
        await self.store.put_all({'a': b'', 'c': b'damaged'})
        self.assertEqual(3, await self.engine.count_addresses())
        await self.engine.update_address('a', entry_of('mended'))
        await self.engine.delete_address('c')
        self.assertEqual(2, await self.engine.count_addresses())

    async def test_the_count_is_right_at_some_moment_while_others_write(self) -> None:
        await self.put_many(f's{i}' for i in range(20))
        writes = [write for i in range(10) for write in (
            self.engine.create_address(entry_of('x'), f'c{i}'),
            self.engine.update_address(f's{i}', entry_of('x')))]
        counts = [self.engine.count_addresses() for _ in range(10)]
        results = await asyncio.gather(*counts, *writes)
        for count in results[:10]:
            self.assertIn(count, range(20, 31))
        self.assertEqual(30, await self.engine.count_addresses())

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
        size = self.engine.page_size
        names = sorted(f'n{i}' for i in range(3 * size))
        await self.put_many(names)
        self.assertEqual(names, await listed_names(self.engine))
        for limit in (size - 1, size, size + 1, 2 * size, 3 * size):
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
        names = await self.put_pages(2)
        first = self.engine.read_all_addresses()
        second = self.engine.read_all_addresses()
        for name in names[:self.engine.page_size + 1]:
            self.assertEqual(name, (await anext(first)).nickname)
        self.assertEqual(names[0], (await anext(second)).nickname)
        self.assertEqual(names, await listed_names(self.engine))

    async def put_pages(self, pages: int) -> list[str]:
        """Puts as many entries there as fill so many pages of a listing.

        :return: their names, sorted.
        """
        names = [f'n{i:06}' for i in range(pages * self.engine.page_size)]
        await self.put_many(names)
        return names

    async def test_a_listing_survives_that_all_around_it_is_deleted(self) -> None:
        names, size = await self.put_pages(3), self.engine.page_size
        seen = []
        async for stored in self.engine.read_all_addresses():
            seen.append(stored.nickname)
            if len(seen) in (1, size):
                # The one just read, its neighbours, and the start of the next pages.
                place = len(seen) - 1
                for gone in {*names[max(place - 1, 0):place + 2], names[2 * size - place]}:
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
            async for stored in self.engine.read_all_addresses():
                name = stored.nickname
                self.assertIn(stored.entry.full_name, (name, 'new', 'updated'))
                names.append(name)
                await asyncio.sleep(0)
            self.assertEqual(sorted(set(names)), names)
            self.assertEqual(staying, [name for name in names if name in staying])
        await writer
        self.assertEqual(len(staying) + 50, len(await listing(self.engine)))

    async def test_a_walk_from_page_to_page_has_what_stays_exactly_once_while_others_write(
            self) -> None:
        staying = [f's{i:03}' for i in range(0, 100, 2)]
        await self.put_many([*staying, *(f'd{i:03}' for i in range(25))])

        async def write() -> None:
            for i in range(25):
                await self.engine.create_address(entry_of('new'), f's{4 * i + 1:03}')
                await self.engine.update_address(staying[2 * i], entry_of('updated'))
                await self.engine.delete_address(f'd{i:03}')
                await asyncio.sleep(0)

        writer = asyncio.create_task(write())
        while not writer.done():
            names = await self.walk(limit=7)
            self.assertEqual(sorted(set(names)), names)
            self.assertEqual(staying, [name for name in names if name in staying])
        await writer
        self.assertEqual(await listed_names(self.engine), await self.walk(limit=1))

    async def walk(self, limit: int) -> list[str]:
        """The names in the pages that a client gets who asks for one after the other."""
        names: list[str] = []
        while page := await listed_names(self.engine, names[-1] if names else None, limit):
            names += page
            await asyncio.sleep(0)  # as between two requests
        return names

    async def test_a_listing_that_is_left_has_let_go_of_the_store(self) -> None:
        await self.put_pages(2)
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
        await self.put_pages(3)
        size = self.engine.page_size
        for limit, pages in ((0, 1), (1, 1), (size, 1), (size + 1, 2)):
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
        await self.store.put_all({f'd{i}': b'' for i in range(self.engine.page_size + 50)})
        await self.put_many(['a', 'z'])
        self.assertEqual(['a', 'z'], await listed_names(self.engine))
        self.assertEqual(['z'], await listed_names(self.engine, 'a', 1))

    async def test_update_mends_a_damaged_record(self) -> None:
        for damage, record in DAMAGED_RECORDS.items():
            with self.subTest(damage=damage):
                await self.store.put('a', record)
                await self.engine.update_address('a', entry_of('mended'))
                self.assertEqual([('a', 'mended')], await listing(self.engine))

    async def test_a_change_of_a_version_that_a_damaged_record_has_not_is_refused(self) -> None:
        for damage, record in DAMAGED_RECORDS.items():
            with self.subTest(damage=damage):
                await self.store.put('a', record)
                for version in (new_version(), ''):
                    for call in (self.engine.update_address('a', entry_of('refused'), version),
                                 self.engine.delete_address('a', version)):
                        with self.assertRaises((AddressChanged, UnreadableRecord)):
                            await call
                with self.assertRaises(UnreadableRecord):
                    await self.engine.read_address('a')
        await self.store.put('a', b'damaged')
        with self.assertRaises((AddressChanged, UnreadableRecord)):
            await self.engine.update_address('a', entry_of('refused'), new_version())
        self.assertEqual('damaged', await self.store.text('a'))

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
            (winner,) = [(i, key) for i, key in enumerate(results) if isinstance(key, Key)]
            self.assertEqual(Stored(*winner[1], entry_of(f'{name} {winner[0]}').to_json()),
                             await self.engine.read_address(name))

    async def test_of_many_deletes_of_one_nickname_one_wins(self) -> None:
        await self.put_many(['a'])
        results = await outcomes(self.engine.delete_address('a') for _ in range(12))
        self.assertEqual((1, 11), (results.count(None), results.count(AddressNotFound)))

    async def test_an_update_that_races_a_delete_never_brings_the_entry_back(self) -> None:
        for turn in range(10):
            await self.put_many(['a'])
            calls: list[Awaitable[object]] = [
                self.engine.update_address('a', entry_of(f'{i}')) for i in range(4)]
            calls.insert(turn % 5, self.engine.delete_address('a'))
            results = await outcomes(calls)
            self.assertIsNone(results.pop(turn % 5))
            for result in results:
                self.assertTrue(result is AddressNotFound or isinstance(result, str), result)
            await self.assert_absent('a')

    async def test_a_read_that_races_updates_sees_one_of_them_whole(self) -> None:
        document = biggest_document()
        entries = [AddressEntry.from_api_dm({**document, 'full_name': f'{i}' * MAX_NAME})
                   for i in range(4)]
        key = await self.engine.create_address(entries[0], 'a')
        updates = asyncio.gather(*[self.engine.update_address('a', entry) for entry in entries])
        reads = await asyncio.gather(*[self.engine.read_address('a') for _ in range(8)])
        states = [Stored('a', version, entry.to_json()) for version, entry in zip(
            [key.version, *await updates], [entries[0], *entries])]
        for stored in [*reads, await self.engine.read_address('a')]:
            self.assertIn(stored, states)

    async def test_of_many_updates_of_one_version_one_wins_and_is_read(self) -> None:
        version = (await self.engine.create_address(entry_of('0'), 'a')).version
        for turn in range(5):
            results = await outcomes(
                self.engine.update_address('a', entry_of(f'{turn} {i}'), version)
                for i in range(12))
            self.assertEqual(11, results.count(AddressChanged))
            ((winner, version),) = [(i, v) for i, v in enumerate(results) if isinstance(v, str)]
            await self.assert_stored('a', version, f'{turn} {winner}')

    async def test_of_many_deletes_of_one_version_one_wins(self) -> None:
        version = (await self.engine.create_address(entry_of('x'), 'a')).version
        results = await outcomes(self.engine.delete_address('a', version) for _ in range(12))
        self.assertEqual((1, 11), (results.count(None), results.count(AddressNotFound)))

    async def test_of_an_update_and_a_delete_of_one_version_one_wins(self) -> None:
        for turn in range(10):
            version = (await self.engine.create_address(entry_of('x'), 'a')).version
            calls: list[Awaitable[object]] = [
                self.engine.update_address('a', entry_of('y'), version),
                self.engine.delete_address('a', version)]
            results = await outcomes(calls if turn % 2 else reversed(calls))
            update, delete = results if turn % 2 else reversed(results)
            if delete is None:
                self.assertIs(AddressNotFound, update)
                await self.assert_absent('a')
            else:
                self.assertIs(AddressChanged, delete)
                assert isinstance(update, str)
                await self.assert_stored('a', update, 'y')
                await self.engine.delete_address('a')

    async def test_an_update_of_one_version_and_updates_of_any_leave_the_last_one_whole(
            self) -> None:
        for turn in range(5):
            name = f'n{turn}'
            version = (await self.engine.create_address(entry_of('x'), name)).version
            results = await outcomes(
                self.engine.update_address(name, entry_of(f'{i}'), version if i == turn else None)
                for i in range(5))
            stored = await self.engine.read_address(name)
            self.assertEqual(stored.version, results[int(stored.entry.full_name)])
            self.assertNotIn(AddressChanged, results[:turn] + results[turn + 1:])

    async def test_of_many_who_count_up_one_number_none_is_lost(self) -> None:
        await self.engine.create_address(entry_of('0'), 'a')
        async with asyncio.timeout(DEADLINE):
            versions = await asyncio.gather(*[count_up(self.engine, 'a') for _ in range(50)])
        self.assertEqual(50, len(set(versions)))
        stored = await self.engine.read_address('a')
        self.assertEqual('50', stored.entry.full_name)
        self.assertIn(stored.version, versions)

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
        await self.put_pages(2)
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
        created = {key for key in results if isinstance(key, Key)}
        self.assertLessEqual(set(results), created | {StorageUnavailable})
        await self.engine.start()
        self.assertEqual(created if self.store.survives_restart else set(),
                         set((await listed_versions(self.engine)).items()))

    async def test_a_restart_keeps_what_the_engine_promises_and_nothing_else(self) -> None:
        for name, document in address_data_suite().items():
            await self.engine.create_address(AddressEntry.from_api_dm(document), name)
        await self.engine.update_address('namo', entry_of('updated'))
        await self.engine.create_address(entry_of('x'), 'deleted')
        await self.engine.delete_address('deleted')
        kept = [stored async for stored in self.engine.read_all_addresses()
                if self.store.survives_restart]
        for engine in (self.engine, self.store.make_engine(self.logger)):
            await self.engine.stop()
            await engine.start()
            self.addAsyncCleanup(engine.stop)
            self.assertEqual(kept, [stored async for stored in engine.read_all_addresses()])
            self.assertEqual(len(kept), await engine.count_addresses())
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


class SharedStoreContract(StoreTestCase):
    """What holds between two engines on one store at the same time, as in two processes: the
    contract does not know which of them a call comes through."""

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        self.engines = [self.engine, await self.start_engine()]

    async def test_what_one_writes_the_other_has_at_once(self) -> None:
        for one, other in (self.engines, reversed(self.engines)):
            key = await one.create_address(entry_of('x'), 'a')
            self.assertEqual(Stored(*key, entry_of('x').to_json()), await other.read_address('a'))
            version = await other.update_address('a', entry_of('y'))
            self.assertEqual(Stored('a', version, entry_of('y').to_json()),
                             await one.read_address('a'))
            self.assertEqual({'a': version}, await listed_versions(one))
            self.assertEqual([1, 1], [await db.count_addresses() for db in self.engines])
            await one.delete_address('a')
            self.assertEqual([[], []], [await listing(db) for db in self.engines])
            with self.assertRaises(AddressNotFound):
                await other.read_address('a')

    async def test_a_nickname_that_one_gave_is_taken_for_the_other(self) -> None:
        await self.engines[0].create_address(entry_of('x'), 'a')
        with self.assertRaises(AddressExists):
            await self.engines[1].create_address(entry_of('y'), 'a')
        self.assertEqual([('a', 'x')], await listing(self.engines[1]))

    async def test_a_version_that_one_gave_counts_for_the_other(self) -> None:
        one, other = self.engines
        first = (await one.create_address(entry_of('x'), 'a')).version
        second = await other.update_address('a', entry_of('y'), first)
        for engine in self.engines:
            with self.assertRaises(AddressChanged):
                await engine.update_address('a', entry_of('z'), first)
            with self.assertRaises(AddressChanged):
                await engine.delete_address('a', first)
        await self.assert_stored('a', second, 'y')
        await one.delete_address('a', second)
        self.assertEqual([], await self.store.nicknames())

    async def test_of_creates_of_one_nickname_through_both_one_wins(self) -> None:
        for turn in range(5):
            name = f'n{turn}'
            results = await outcomes(
                self.engines[i % 2].create_address(entry_of(f'{i}'), name) for i in range(12))
            self.assertEqual(11, results.count(AddressExists))
            ((winner, key),) = [(i, key) for i, key in enumerate(results) if isinstance(key, Key)]
            await self.assert_stored(*key, f'{winner}')

    async def test_of_updates_of_one_version_through_both_one_wins(self) -> None:
        version = (await self.engine.create_address(entry_of('x'), 'a')).version
        for turn in range(5):
            results = await outcomes(
                self.engines[i % 2].update_address('a', entry_of(f'{turn} {i}'), version)
                for i in range(12))
            self.assertEqual(11, results.count(AddressChanged))
            ((winner, version),) = [(i, v) for i, v in enumerate(results) if isinstance(v, str)]
            await self.assert_stored('a', version, f'{turn} {winner}')

    async def test_of_deletes_through_both_one_wins_and_no_update_brings_the_entry_back(
            self) -> None:
        for turn in range(5):
            await self.put_many(['a'])
            results = await outcomes([
                *(engine.update_address('a', entry_of('x')) for engine in self.engines),
                *(engine.delete_address('a') for engine in self.engines * 2),
                *(engine.update_address('a', entry_of('y')) for engine in self.engines)])
            deletes = results[2:6]
            self.assertEqual((1, 3), (deletes.count(None), deletes.count(AddressNotFound)))
            self.assertEqual([], await self.store.nicknames())

    async def test_of_many_who_count_up_one_number_through_both_none_is_lost(self) -> None:
        await self.engine.create_address(entry_of('0'), 'a')
        async with asyncio.timeout(DEADLINE):
            versions = await asyncio.gather(
                *[count_up(engine, 'a') for engine in self.engines for _ in range(10)])
        self.assertEqual(20, len(set(versions)))
        self.assertEqual([('a', '20')], await listing(self.engines[1]))

    async def test_a_listing_through_one_has_what_stays_while_the_other_writes(self) -> None:
        staying = [f's{i:03}' for i in range(0, 60, 2)]
        await self.put_many([*staying, *(f'd{i:03}' for i in range(30))])

        async def write() -> None:
            for i in range(30):
                await self.engines[0].create_address(entry_of('new'), f's{2 * i + 1:03}')
                await self.engines[0].update_address(staying[i], entry_of('updated'))
                await self.engines[0].delete_address(f'd{i:03}')

        writer = asyncio.create_task(write())
        while not writer.done():
            names = await listed_names(self.engines[1])
            self.assertEqual(sorted(set(names)), names)
            self.assertEqual(staying, [name for name in names if name in staying])
        await writer
        self.assertEqual(60, await self.engines[1].count_addresses())

    async def test_one_that_stops_leaves_the_other_at_work(self) -> None:
        key = await self.engines[1].create_address(entry_of('x'), 'a')
        await self.engines[1].stop()
        await self.engine.ping()
        await self.assert_stored(*key, 'x')
        await self.engine.update_address('a', entry_of('y'), key.version)

    async def test_both_can_start_at_once_on_a_store_that_is_not_there(self) -> None:
        store = self.store_class()
        await store.open()
        self.addAsyncCleanup(store.close)
        engines = [store.make_engine(self.logger) for _ in range(2)]
        for engine in engines:
            self.addAsyncCleanup(engine.stop)
        await asyncio.gather(*[engine.start() for engine in engines])
        await engines[0].create_address(entry_of('x'), 'a')
        self.assertEqual([('a', 'x')], await listing(engines[1]))
        self.assertEqual([], self.logged)


class MemoryEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = MemoryStore


class FileEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = FileStore


class SharedFileTests(SharedStoreContract, unittest.IsolatedAsyncioTestCase):
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
            {'nosuch': 'x'}, {'Memory': None}, {'memory': 'x'}, {'fs': None}, {'fs': 5}]
        for section in sections:
            with self.subTest(section=section):
                with self.assertRaises(ConfigError) as raised:
                    create_addressbook_db(section, quiet_logger())
                self.assertTrue(str(raised.exception).isprintable())
                for word in ('addr-db', *section):
                    self.assertIn(word, str(raised.exception))

    def test_two_engines_or_none_are_refused(self) -> None:
        sections: list[dict[str, Any]] = [{'memory': None, 'fs': 'x'}, {}]
        for section in sections:
            with self.subTest(section=section):
                with self.assertRaisesRegex(ConfigError, 'addr-db'):
                    create_addressbook_db(section, quiet_logger())

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

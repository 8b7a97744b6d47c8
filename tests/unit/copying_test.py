"""A copied book is equal, entry by entry, and nothing is overwritten that nobody said to."""

from __future__ import annotations

import asyncio
import json
import sys
import unittest
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import given, settings, strategies as st

from addrservice import copying
from addrservice.copying import IN_FLIGHT, MAX_NAMED, Comparison, CopyResult
from addrservice.database.records import Key, Record, encode_record, new_version
from addrservice.database.memory_db import InMemoryAddressBookDB
from addrservice.datamodel import AddressEntry
from addrservice.errors import StorageUnavailable
from data import address_data_suite
from tests.support import DEADLINE, quiet_logger

E = TypeVar('E', bound=InMemoryAddressBookDB)

V1, V2 = '1' * 16, '2' * 16

EXACT_DOCUMENTS: list[dict[str, Any]] = [
    {'full_name': 'आशा \U0001f600 e\u0301 \u05d0\u202e"\\/</script>\u2028%s'},
    {'full_name': 'x', 'addresses': [], 'emails': [], 'fax_numbers': []},
    {'full_name': 'x', 'addresses': [
        {'kind': 'home', 'street_name': 's', 'country': 'c', 'pincode': '007',
         'unit_number': 1.0}]},
    *address_data_suite().values(),
]

Book = dict[str, tuple[str, str]]
"""Nickname -> version and text."""


def nothing() -> None:
    """Progress that nobody looks at."""


def text_of(full_name: str) -> str:
    return json.dumps({'full_name': full_name}, separators=(',', ':'), ensure_ascii=False)


def home(unit_number: float) -> str:
    """An entry whose text is that of an engine, save for the number."""
    document = {'full_name': 'x', 'addresses': [
        {'kind': 'home', 'unit_number': unit_number, 'street_name': 's', 'country': 'c',
         'pincode': 1}]}
    return encode_record(AddressEntry.from_api_dm(document))


def put(engine: InMemoryAddressBookDB, nickname: str, text: str, version: str = V1) -> None:
    """Puts a record there past the engine, whether good or damaged."""
    engine.records[nickname] = Record(nickname, version, text, f'memory:{nickname}')


def book(engine: InMemoryAddressBookDB) -> Book:
    """All records as they lie there."""
    return {nickname: (record.version, record.text)
            for nickname, record in engine.records.items()}


class SlowDB(InMemoryAddressBookDB):
    """Makes as many writes at a time as may be under way, and never fewer."""

    in_flight = most_in_flight = 0

    async def start(self) -> None:
        await super().start()
        self.together = asyncio.Barrier(IN_FLIGHT)

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.together.wait()
        self.in_flight -= 1
        return await super().create_address(entry, nickname, version)


class FailingDB(InMemoryAddressBookDB):
    """Fails after so many writes, or pages."""

    writes_left = pages_left = 1000

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        if self.writes_left == 0:
            raise StorageUnavailable('It is full', 'disk 7')
        self.writes_left -= 1
        return await super().create_address(entry, nickname, version)

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        async for page in super().read_pages(after, size):
            if self.pages_left == 0:
                raise StorageUnavailable('It is gone', 'disk 8')
            self.pages_left -= 1
            yield page


class SharedDB(InMemoryAddressBookDB):
    """Has somebody else who writes, each time just before a write of ours."""

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        put(self, str(nickname), text_of('theirs'), V2)
        return await super().create_address(entry, nickname, version)

    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        put(self, nickname, text_of('theirs'), new_version())
        return await super().update_address(nickname, entry, if_version, version)


class TwoBooksTestCase(unittest.IsolatedAsyncioTestCase):
    """Two books in memory, one to copy from and one to copy to."""

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        self.source: InMemoryAddressBookDB = await self.start(InMemoryAddressBookDB)
        self.target: InMemoryAddressBookDB = await self.start(InMemoryAddressBookDB)

    async def start(self, kind: type[E]) -> E:
        engine = kind(quiet_logger())
        await engine.start()
        self.addAsyncCleanup(engine.stop)
        return engine

    async def copy(self, overwrite: bool = False) -> CopyResult:
        return await copying.copy_addresses(self.source, self.target, overwrite, nothing)

    async def compare(self) -> Comparison:
        return await copying.compare(self.source, self.target, nothing)

    def put_many(self, count: int) -> None:
        for number in range(count):
            put(self.source, f'n{number:05}', text_of(str(number)), f'{number:016x}')


class CopyTests(TwoBooksTestCase):

    async def test_every_entry_is_copied_with_its_id_and_its_version(self) -> None:
        for number, document in enumerate(EXACT_DOCUMENTS):
            await self.source.create_address(
                AddressEntry.from_api_dm(document), f'n-{number}', f'{number:016x}')
        result = await self.copy()
        self.assertEqual(CopyResult(copied=len(EXACT_DOCUMENTS)), result)
        self.assertEqual(book(self.source), book(self.target))

    async def test_an_empty_book_can_be_copied_too(self) -> None:
        self.assertEqual(CopyResult(), await self.copy())

    async def test_a_second_copy_finds_everything_there_and_writes_nothing(self) -> None:
        self.put_many(30)
        await self.copy()
        with mock.patch.object(self.target, 'create_address', side_effect=AssertionError):
            self.assertEqual(CopyResult(already_there=30), await self.copy(overwrite=True))

    async def test_what_is_missing_in_between_is_filled_in(self) -> None:
        self.put_many(50)
        for nickname in list(self.source.records)[::3]:
            put(self.target, nickname, self.source.records[nickname].text,
                self.source.records[nickname].version)
        result = await self.copy()
        self.assertEqual((33, 17), (result.copied, result.already_there))
        self.assertEqual(book(self.source), book(self.target))

    async def test_names_are_walked_in_the_order_of_code_points(self) -> None:
        for nickname in ('b', 'a-b', 'a', 'B', 'ab', 'A', '9', '10', '-', 'a0', 'aB', 'z', 'a--'):
            put(self.source, nickname, text_of(nickname))
        for nickname in ('a', 'C', '10', 'zz', 'a-', 'aB'):
            put(self.target, nickname, text_of(nickname))
        self.assertEqual(CopyResult(copied=10, already_there=3), await self.copy())
        self.assertEqual(13, (await self.compare()).equal)

    async def test_what_only_the_target_has_stays(self) -> None:
        put(self.source, 'b', text_of('b'))
        for nickname in ('a', 'c'):
            put(self.target, nickname, text_of(nickname), V2)
        await self.copy(overwrite=True)
        self.assertEqual({'a': (V2, text_of('a')), 'b': (V1, text_of('b')),
                          'c': (V2, text_of('c'))}, book(self.target))

    async def test_progress_is_told_of_each_entry_of_the_source_once(self) -> None:
        self.put_many(20)
        put(self.source, 'damaged', '{')
        put(self.target, 'n00003', text_of('3'), f'{3:016x}')
        put(self.target, 'n00004', text_of('else'))
        put(self.target, 'only-here', text_of('x'))
        progress = mock.Mock()
        await copying.copy_addresses(self.source, self.target, False, progress)
        self.assertEqual(21, progress.call_count)
        await copying.compare(self.source, self.target, progress)
        self.assertEqual(42, progress.call_count)

    async def test_many_writes_are_under_way_at_once_but_no_more_than_so_many(self) -> None:
        self.put_many(3 * IN_FLIGHT)
        self.target = slow = await self.start(SlowDB)
        async with asyncio.timeout(DEADLINE):
            await self.copy()
        self.assertEqual(IN_FLIGHT, slow.most_in_flight)
        self.assertEqual(book(self.source), book(slow))

    async def test_no_more_than_a_page_is_asked_for(self) -> None:
        self.put_many(100)
        with mock.patch.object(self.source, 'read_pages', wraps=self.source.read_pages) as asked:
            await self.copy()
        asked.assert_called_once_with('', self.source.page_size)


class DifferenceTests(TwoBooksTestCase):
    """Entries that both have, and not in the same state."""

    async def differing(self, text: str, version: str = V1) -> str:
        """What is told of an entry if this is at the target."""
        put(self.source, 'a', text_of('ours'))
        put(self.target, 'a', text, version)
        result = await self.copy()
        self.assertEqual({'a': (version, text)}, book(self.target))
        self.assertEqual((1, 0), (result.different.count, result.copied))
        self.assertEqual(result.different, (await self.compare()).different)
        return result.different.first[0]

    async def test_it_is_left_alone_and_told_when_the_version_differs(self) -> None:
        self.assertEqual('a: version differs', await self.differing(text_of('ours'), V2))

    async def test_it_is_left_alone_and_told_when_the_document_differs(self) -> None:
        self.assertEqual('a: full_name differs', await self.differing(text_of('theirs')))

    async def test_all_that_differs_is_named_and_nothing_that_it_says(self) -> None:
        theirs = '{"full_name":"theirs","emails":[]}'
        self.assertEqual('a: version, emails, full_name differ', await self.differing(theirs, V2))

    async def test_a_damaged_record_at_the_target_is_a_difference(self) -> None:
        told = await self.differing('{"full_name"')
        self.assertRegex(told, '^a: damaged at the target: memory:a: ')

    async def test_the_text_1_and_the_text_1_0_are_not_the_same(self) -> None:
        put(self.source, 'a', home(1))
        put(self.target, 'a', home(1.0))
        self.assertEqual(['a: addresses differs'], (await self.copy()).different.first)

    async def test_the_same_document_in_other_words_is_equal(self) -> None:
        put(self.source, 'a', '{ "emails" : [],\n"full_name": "\\u0078" }')
        put(self.target, 'a', '{"full_name":"x","emails":[]}')
        self.assertEqual(CopyResult(already_there=1), await self.copy())
        self.assertEqual(Comparison(equal=1), await self.compare())

    async def test_overwriting_gives_it_the_document_and_the_version_of_the_source(self) -> None:
        states = {'v': (text_of('v'), V2), 'd': (text_of('else'), V1), 'b': (text_of('else'), V2),
                  'damaged': ('', V2), 'without-version': ('', '')}
        for nickname, state in states.items():
            put(self.source, nickname, text_of(nickname))
            put(self.target, nickname, *state)
        self.assertEqual(CopyResult(overwritten=5), await self.copy(overwrite=True))
        self.assertEqual(book(self.source), book(self.target))

    async def test_what_others_make_meanwhile_is_not_overwritten(self) -> None:
        self.put_many(3)
        self.target = shared = await self.start(SharedDB)
        result = await self.copy(overwrite=True)
        self.assertEqual((0, 3), (result.copied, result.different.count))
        self.assertIn('somebody else', result.different.first[0])
        self.assertEqual({(V2, text_of('theirs'))}, set(book(shared).values()))

    async def test_what_others_change_meanwhile_is_not_overwritten(self) -> None:
        self.target = shared = await self.start(SharedDB)
        put(self.source, 'a', text_of('ours'))
        put(shared, 'a', text_of('before'), V2)
        result = await self.copy(overwrite=True)
        self.assertEqual((0, 1), (result.overwritten, result.different.count))
        self.assertEqual(text_of('theirs'), shared.records['a'].text)

    async def test_of_very_many_findings_the_first_are_kept_and_all_are_counted(self) -> None:
        self.put_many(MAX_NAMED + 5)
        for nickname in self.source.records:
            put(self.target, nickname, text_of('else'))
        different = (await self.copy()).different
        self.assertEqual((MAX_NAMED + 5, MAX_NAMED), (different.count, len(different.first)))


class OddSourceTests(TwoBooksTestCase):
    """Records that no engine writes, or not any more."""

    async def test_damaged_records_are_counted_and_named_and_the_others_copied(self) -> None:
        for nickname, text in zip('bdfh', ('', '{', '[]', '{"full_name":"\\ud800"}'), strict=True):
            put(self.source, nickname, text)
        for nickname in 'aceg':
            put(self.source, nickname, text_of(nickname))
        result = await self.copy(overwrite=True)
        self.assertEqual((4, 4), (result.copied, result.unreadable.count))
        self.assertEqual([f'memory:{name}' for name in 'bdfh'],
                         [text.split(': ')[0] for text in result.unreadable.first])
        self.assertEqual(list('aceg'), list(self.target.records))

    async def test_a_damaged_record_does_not_replace_a_good_one(self) -> None:
        put(self.source, 'a', '{')
        put(self.target, 'a', text_of('good'))
        self.assertEqual(1, (await self.copy(overwrite=True)).unreadable.count)
        self.assertEqual({'a': (V1, text_of('good'))}, book(self.target))
        self.assertEqual(1, (await self.compare()).unreadable.count)

    async def test_the_same_damage_on_both_sides_is_damage(self) -> None:
        put(self.source, 'a', '{')
        put(self.target, 'a', '{')
        self.assertEqual(1, (await self.copy()).unreadable.count)
        self.assertEqual((0, 1), ((comparison := await self.compare()).equal,
                                  comparison.unreadable.count))

    async def test_a_name_that_cannot_be_one_is_damage(self) -> None:
        put(self.source, 'a_b', text_of('x'))
        result = await self.copy()
        self.assertEqual(['memory:a_b: The name cannot be one'], result.unreadable.first)

    async def test_a_version_that_cannot_be_one_is_damage(self) -> None:
        put(self.source, 'a', text_of('x'), 'v1')
        self.assertEqual(1, (await self.copy()).unreadable.count)


class FailureTests(TwoBooksTestCase):

    async def test_a_target_that_fails_is_named_and_another_copy_goes_on(self) -> None:
        self.put_many(300)
        self.target = failing = await self.start(FailingDB)
        failing.writes_left = 100
        with self.assertRaises(StorageUnavailable) as raised:
            await self.copy()
        self.assertEqual(['target'], raised.exception.__notes__)
        self.assertEqual(100, len(failing.records))
        failing.writes_left = 1000
        self.assertEqual(CopyResult(copied=200, already_there=100), await self.copy())
        self.assertEqual(book(self.source), book(failing))

    async def test_a_source_that_fails_is_named_and_what_was_under_way_may_end(self) -> None:
        self.source = failing = await self.start(FailingDB)
        self.put_many(3 * failing.page_size)
        failing.pages_left = 2
        with self.assertRaises(StorageUnavailable) as raised:
            await self.copy()
        self.assertEqual(['source'], raised.exception.__notes__)
        failing.pages_left = 1000
        await self.copy()
        self.assertEqual(book(self.source), book(self.target))

    async def test_comparing_tells_which_store_failed(self) -> None:
        self.put_many(300)
        self.target = failing = await self.start(FailingDB)
        await self.copy()
        failing.pages_left = 2
        with self.assertRaises(StorageUnavailable) as raised:
            await self.compare()
        self.assertEqual(['target'], raised.exception.__notes__)

    async def test_an_error_of_ours_is_not_taken_for_one_of_a_store(self) -> None:
        self.put_many(3)
        with mock.patch.object(self.target, 'create_address', side_effect=ZeroDivisionError):
            with self.assertRaises(ZeroDivisionError):
                await self.copy()


class ComparisonTests(TwoBooksTestCase):

    async def test_each_kind_of_difference_is_told_apart(self) -> None:
        for nickname in ('same', 'other', 'ours', 'damaged'):
            put(self.source, nickname, text_of(nickname))
        put(self.source, 'damaged', '{')
        for nickname in ('same', 'theirs', 'damaged'):
            put(self.target, nickname, text_of(nickname))
        put(self.target, 'other', text_of('x'), V2)
        comparison = await self.compare()
        self.assertEqual(1, comparison.equal)
        self.assertEqual(['other: version, full_name differ'], comparison.different.first)
        self.assertEqual(['ours'], comparison.only_at_source.first)
        self.assertEqual(['theirs'], comparison.only_at_target.first)
        self.assertEqual(1, comparison.unreadable.count)

    async def test_it_changes_nothing(self) -> None:
        self.put_many(5)
        put(self.target, 'n00001', text_of('x'))
        before = book(self.source), book(self.target)
        await self.compare()
        self.assertEqual(before, (book(self.source), book(self.target)))


NICKNAMES = st.text(st.sampled_from('aAb0-'), min_size=1, max_size=3)
RECORDS = st.tuples(st.sampled_from([V1, V2]), st.sampled_from(['x', 'y', 'é']).map(text_of))
BOOKS = st.dictionaries(NICKNAMES, RECORDS, max_size=40)


class PropertyTests(unittest.TestCase):

    @settings(deadline=None)
    @given(ours=BOOKS, theirs=BOOKS, overwrite=st.booleans())
    def test_whatever_both_have_a_copy_adds_what_is_missing_and_overwrites_only_if_told(
            self, ours: Book, theirs: Book, overwrite: bool) -> None:
        result, comparison, copied = asyncio.run(self.copy(ours, theirs, overwrite))
        self.assertEqual({**theirs, **ours} if overwrite else {**ours, **theirs}, copied)
        differ = sum(theirs[name] != ours[name] for name in ours.keys() & theirs.keys())
        self.assertEqual(
            (len(ours.keys() - theirs.keys()), differ if overwrite else 0,
             0 if overwrite else differ),
            (result.copied, result.overwritten, result.different.count))
        self.assertEqual((result.different.count, 0, len(theirs.keys() - ours.keys())),
                         (comparison.different.count, comparison.only_at_source.count,
                          comparison.only_at_target.count))

    async def copy(self, ours: Book, theirs: Book, overwrite: bool
                   ) -> tuple[CopyResult, Comparison, Book]:
        source, target = await self.engine_with(ours), await self.engine_with(theirs)
        result = await copying.copy_addresses(source, target, overwrite, nothing)
        return result, await copying.compare(source, target, nothing), book(target)

    async def engine_with(self, records: Book) -> InMemoryAddressBookDB:
        engine = InMemoryAddressBookDB(quiet_logger())
        await engine.start()
        for nickname, (version, text) in records.items():
            put(engine, nickname, text, version)
        return engine


if __name__ == '__main__':
    unittest.main()

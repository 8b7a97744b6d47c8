"""The SQL engine above its connector: only the calls to the connector are mocked."""

from __future__ import annotations

import itertools
import json
import re
import sys
import unittest
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import example, given
from hypothesis import strategies as st

from addrservice.database import sql_db
from addrservice.database.addressbook_db import WALK_SIZE
from addrservice.database.records import Key, Stored, encode_record, is_version
from addrservice.database.sql_db import (
    COUNT, DELETE, DELETE_IF, INSERT, MIGRATIONS, PAGE, READ, READ_SCHEMA, UPDATE, UPDATE_IF, Row,
    SQLAddressBookDB, SQLConnector)
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, AddrServiceError, ConfigError, OutcomeUnknown,
    StorageError, StorageUnavailable, UnreadableRecord)
from tests.support import recording_logger

ENTRY = AddressEntry(full_name='Āsha')
TEXT = '{"full_name":"Āsha"}'
OLD, NEW, OTHER = 'a' * 16, 'b' * 16, 'c' * 16
SIZE, MOST = WALK_SIZE, SQLAddressBookDB.page_size

STATEMENTS = {READ: 1, PAGE: 2, COUNT: 0, INSERT: 3, UPDATE: 3, UPDATE_IF: 4, DELETE: 1,
              DELETE_IF: 2, READ_SCHEMA: 0}
"""How many arguments each of them takes."""

UNUSABLE = ['', '.', 'a b', 'a_b', 'é', 'a\n', 'a\0', '\ud800', 'x' * 65, "a' OR '1'='1", '$1', '%']

LATER_MIGRATIONS = (*MIGRATIONS, ('CREATE {name} a', 'CREATE {name} b'), ('CREATE c',))

NICKNAMES = st.from_regex(r'[A-Za-z0-9-]{1,64}', fullmatch=True)
TEXTS = st.text(st.characters())  # with surrogates and U+0000

Call = Callable[[], Awaitable[object]]


def page_of(names: Sequence[str]) -> list[Row]:
    return [(name, OLD, f'{{"full_name":"{name}"}}') for name in names]


class SQLEngineTestCase(unittest.IsolatedAsyncioTestCase):
    """The engine, and a connector that does nothing but note what it is asked."""

    def setUp(self) -> None:
        self.connector: Any = mock.create_autospec(SQLConnector, instance=True)
        self.logger, self.logged = recording_logger()
        self.db = SQLAddressBookDB(self.connector, self.logger)

    def answer(self, changed: int = 1, row: Row | None = None,
               pages: Sequence[Sequence[Row]] = ()) -> None:
        """What the database has to say from now on."""
        self.connector.reset_mock()
        self.connector.write.return_value = changed
        self.connector.fetch_row.return_value = row
        self.connector.fetch.side_effect = [*pages, []]

    def calls(self, nickname: str = 'a') -> dict[str, Call]:
        """Every call that asks for the entry with that name."""
        return {
            'read': lambda: self.db.read_address(nickname),
            'update': lambda: self.db.update_address(nickname, ENTRY),
            'update a version': lambda: self.db.update_address(nickname, ENTRY, OLD, NEW),
            'delete': lambda: self.db.delete_address(nickname),
            'delete a version': lambda: self.db.delete_address(nickname, OLD),
        }

    async def names(self, after: str | None = None, limit: int | None = None) -> list[str]:
        return [stored.nickname async for stored in self.db.read_all_addresses(after, limit)]

    async def assert_raises(self, error: type[AddrServiceError], call: Call) -> None:
        """Just that error, and no subclass of it."""
        with self.assertRaises(error) as raised:
            await call()
        self.assertIs(error, type(raised.exception))

    def assert_asked(self, *calls: Any) -> None:
        """The connector was asked this, and nothing else."""
        self.assertEqual(list(calls), self.connector.mock_calls)


class EntryTests(SQLEngineTestCase):

    async def test_create_is_one_statement_with_the_name_a_new_version_and_the_text(self) -> None:
        self.answer(changed=1)
        key = await self.db.create_address(ENTRY, 'a')
        self.assertEqual('a', key.nickname)
        self.assertTrue(is_version(key.version))
        self.assert_asked(mock.call.write(INSERT, 'a', key.version, TEXT))

    async def test_create_makes_up_a_name_and_takes_the_version_of_a_copy(self) -> None:
        self.answer(changed=1)
        key = await self.db.create_address(ENTRY, version=NEW)
        self.assertRegex(key.nickname, r'\A[0-9a-f]{32}\Z')
        self.assertEqual(NEW, key.version)
        self.assert_asked(mock.call.write(INSERT, *key, TEXT))

    async def test_a_create_that_makes_no_row_finds_the_name_taken(self) -> None:
        self.answer(changed=0)
        await self.assert_raises(AddressExists, lambda: self.db.create_address(ENTRY, 'a'))
        self.connector.write.assert_awaited_once()
        self.connector.fetch_row.assert_not_called()

    async def test_read_is_one_statement_and_has_the_version_beside_the_entry(self) -> None:
        self.answer(row=(OLD, TEXT))
        self.assertEqual(Stored('a', OLD, ENTRY.to_json()), await self.db.read_address('a'))
        self.assert_asked(mock.call.fetch_row(READ, 'a'))

    async def test_read_without_a_row_finds_no_entry(self) -> None:
        self.answer(row=None)
        await self.assert_raises(AddressNotFound, self.calls()['read'])

    async def test_a_row_that_is_no_entry_is_unreadable_and_its_place_is_named(self) -> None:
        for text in ('', 'x', 'null', '5', '{}', TEXT[:-1], '{"full_name":"\udcff"}', None, 5,
                     b'\xff\0', b''):
            self.answer(row=(OLD, text))
            with self.subTest(text=text), self.assertRaises(UnreadableRecord) as raised:
                await self.db.read_address('a')
            self.assertEqual('addresses.nickname=a', raised.exception.cause)

    async def test_an_update_of_any_version_is_one_statement(self) -> None:
        self.answer(changed=1)
        version = await self.db.update_address('a', ENTRY)
        self.assertTrue(is_version(version))
        self.assert_asked(mock.call.write(UPDATE, 'a', version, TEXT))

    async def test_an_update_of_one_version_is_one_statement_that_compares_it(self) -> None:
        self.answer(changed=1)
        self.assertEqual(NEW, await self.db.update_address('a', ENTRY, OLD, NEW))
        self.assert_asked(mock.call.write(UPDATE_IF, 'a', NEW, TEXT, OLD))

    async def test_each_update_makes_up_another_version(self) -> None:
        self.answer(changed=1)
        versions = {await self.db.update_address('a', ENTRY, OLD) for _ in range(20)}
        self.assertEqual(20, len(versions))
        self.assertEqual(versions, {call.args[2] for call in self.connector.write.mock_calls})

    async def test_a_delete_is_one_statement_also_of_one_version(self) -> None:
        self.answer(changed=1)
        await self.db.delete_address('a')
        self.assert_asked(mock.call.write(DELETE, 'a'))
        self.answer(changed=1)
        await self.db.delete_address('a', OLD)
        self.assert_asked(mock.call.write(DELETE_IF, 'a', OLD))

    async def test_a_change_that_finds_no_row_finds_no_entry_and_asks_no_more(self) -> None:
        for name in ('update', 'delete'):
            self.answer(changed=0, row=(OLD, TEXT))
            await self.assert_raises(AddressNotFound, self.calls()[name])
            self.connector.write.assert_awaited_once()
            self.connector.fetch_row.assert_not_called()

    async def test_a_change_of_a_version_that_finds_no_row_and_no_entry_says_so(self) -> None:
        for name in ('update a version', 'delete a version'):
            self.answer(changed=0, row=None)
            await self.assert_raises(AddressNotFound, self.calls()[name])
            self.connector.fetch_row.assert_awaited_once_with(READ, 'a')

    async def test_a_change_of_a_version_that_finds_another_one_says_so(self) -> None:
        for name in ('update a version', 'delete a version'):
            self.answer(changed=0, row=(OTHER, TEXT))
            await self.assert_raises(AddressChanged, self.calls()[name])
            self.connector.write.assert_awaited_once()

    async def test_a_damaged_entry_with_another_version_has_changed_and_is_not_read(self) -> None:
        self.answer(changed=0, row=(OTHER, 'damaged'))
        await self.assert_raises(AddressChanged, self.calls()['update a version'])

    async def test_an_entry_that_came_back_to_its_version_meanwhile_is_to_be_tried_again(
            self) -> None:
        for name in ('update a version', 'delete a version'):
            self.answer(changed=0, row=(OLD, TEXT))
            await self.assert_raises(StorageUnavailable, self.calls()[name])

    async def test_an_unusable_nickname_never_reaches_the_connector(self) -> None:
        for nickname in UNUSABLE:
            for name, call in self.calls(nickname).items():
                with self.subTest(nickname=nickname, call=name):
                    await self.assert_raises(AddressNotFound, call)
            with self.subTest(nickname=nickname), self.assertRaises(ValueError):
                await self.db.create_address(ENTRY, nickname)
        self.assert_asked()

    async def test_an_unusable_version_never_reaches_the_connector(self) -> None:
        for version in ('', 'x', OLD.upper(), f'{OLD}\n', f'{OLD}0'):
            with self.subTest(version=version):
                with self.assertRaises(ValueError):
                    await self.db.create_address(ENTRY, 'a', version)
                with self.assertRaises(ValueError):
                    await self.db.update_address('a', ENTRY, OLD, version)
        self.assert_asked()

    async def test_an_impossible_version_to_compare_with_is_that_of_no_entry(self) -> None:
        for version in ('', '*', f'"{OLD}"', '\ud800', 'a\0'):
            changes: list[Call] = [lambda: self.db.update_address('a', ENTRY, version),
                                   lambda: self.db.delete_address('a', version)]
            for row, error in (((OLD, TEXT), AddressChanged), (None, AddressNotFound)):
                self.answer(changed=0, row=row)
                with self.subTest(version=version, row=row):
                    for call in changes:
                        await self.assert_raises(error, call)
                    self.connector.write.assert_not_called()

    async def test_the_entry_goes_as_the_text_that_all_engines_store(self) -> None:
        entry = AddressEntry.from_api_dm({'full_name': '"\\ \u2028 \U0001f600 %s $1', 'emails': []})
        self.answer(changed=1)
        await self.db.create_address(entry, 'a')
        self.assertEqual(encode_record(entry), self.connector.write.call_args.args[-1])
        self.answer(row=(OLD, encode_record(entry)))
        self.assertEqual(entry, (await self.db.read_address('a')).entry)

    async def test_count_is_one_statement_and_an_int(self) -> None:
        self.answer(pages=[[(3,)]])
        self.assertEqual(3, await self.db.count_addresses())
        self.assert_asked(mock.call.fetch(COUNT))


class SettlingTests(SQLEngineTestCase):
    """No answer came to a write. The connector keeps one entry, and does to each
    statement in turn what the script says; then all goes well."""

    def setUp(self) -> None:
        super().setUp()
        self.entry: tuple[str, str] | None = None
        self.script: list[str] = []
        self.changes = 0
        self.connector.write.side_effect = self.write
        self.connector.fetch_row.side_effect = self.fetch_row

    async def write(self, statement: str, _nickname: str, *arguments: str) -> int:
        step = self.script.pop(0) if self.script else 'answered'
        if step == 'unavailable':
            raise StorageUnavailable('not now')
        if step == 'failed':
            raise StorageError('failed')
        changed = 0 if step == 'not made' else self.make(statement, *arguments)
        if step in ('made', 'not made', 'overtaken', 'removed'):
            if step in ('overtaken', 'removed'):
                self.entry = (OTHER, TEXT) if step == 'overtaken' else None
            raise OutcomeUnknown(step)
        return changed

    def make(self, statement: str, *arguments: str) -> int:
        version = self.entry[0] if self.entry else None
        applies = {INSERT: version is None, UPDATE: version is not None,
                   UPDATE_IF: version in arguments[2:], DELETE: version is not None,
                   DELETE_IF: version in arguments}[statement]
        if not applies:
            return 0
        new = None if statement in (DELETE, DELETE_IF) else (arguments[0], arguments[1])
        self.changes += new != self.entry
        self.entry = new
        return 1

    async def fetch_row(self, statement: str, _nickname: str) -> Row | None:
        self.assertEqual(READ, statement)
        step = self.script.pop(0) if self.script else 'answered'
        if step == 'unavailable':
            raise StorageUnavailable('not now')
        if step == 'failed':
            raise StorageError('failed')
        return self.entry

    def begin(self, entry: tuple[str, str] | None, *script: str) -> None:
        self.entry, self.script, self.changes = entry, list(script), 0

    def made(self) -> dict[str, tuple[tuple[str, str] | None, Call]]:
        """What is written with a version, and the entry to begin with."""
        return {
            'create': (None, lambda: self.db.create_address(ENTRY, 'a', NEW)),
            'update': ((OLD, 'x'), lambda: self.db.update_address('a', ENTRY, None, NEW)),
            'update a version': ((OLD, 'x'), lambda: self.db.update_address('a', ENTRY, OLD, NEW))}

    async def test_what_was_made_is_found_to_be_made(self) -> None:
        for name, (entry, call) in self.made().items():
            with self.subTest(name):
                self.begin(entry, 'made')
                self.assertIn(await call(), (NEW, Key('a', NEW)))
                self.assertEqual((NEW, TEXT), self.entry)
                self.assertEqual(1, self.changes)

    async def test_what_was_not_made_and_cannot_be_repeated_is_unknown(self) -> None:
        for name in ('create', 'update'):
            entry, call = self.made()[name]
            with self.subTest(name):
                self.begin(entry, 'not made')
                await self.assert_raises(OutcomeUnknown, call)
                self.assertEqual(entry, self.entry)

    async def test_a_create_that_finds_the_name_of_another_is_unknown(self) -> None:
        self.begin((OTHER, TEXT), 'not made')
        await self.assert_raises(OutcomeUnknown, self.made()['create'][1])
        self.assertEqual((OTHER, TEXT), self.entry)

    async def test_an_update_of_a_version_that_was_not_made_is_made(self) -> None:
        self.begin((OLD, 'x'), 'not made')
        self.assertEqual(NEW, await self.made()['update a version'][1]())
        self.assertEqual((NEW, TEXT), self.entry)
        self.assertEqual(1, self.changes)

    async def test_what_others_have_written_over_or_removed_is_unknown(self) -> None:
        for name, (entry, call) in self.made().items():
            for step, left in {'overtaken': (OTHER, TEXT), 'removed': None}.items():
                with self.subTest(name, step=step):
                    self.begin(entry, step)
                    await self.assert_raises(OutcomeUnknown, call)
                    self.assertEqual(left, self.entry)

    async def test_it_stays_unknown_when_what_settles_it_fails(self) -> None:
        for name, (entry, call) in self.made().items():
            for step in ('unavailable', 'failed'):
                for first in ('made', 'not made'):
                    with self.subTest(name, step=step, first=first):
                        self.begin(entry, first, *[step] * 5)
                        await self.assert_raises(OutcomeUnknown, call)
                        self.assertEqual(entry if first == 'not made' else (NEW, TEXT), self.entry)

    async def test_whatever_becomes_of_the_statements_no_answer_is_wrong(self) -> None:
        steps = ('answered', 'made', 'not made', 'overtaken', 'removed', 'unavailable', 'failed')
        for name, (entry, call) in self.made().items():
            for script in itertools.product(('made', 'not made', 'overtaken'), *[steps] * 3):
                self.begin(entry, *script)
                self.connector.reset_mock()
                try:
                    await call()
                except AddrServiceError as error:
                    self.assertIs(OutcomeUnknown, type(error), (name, script))
                else:
                    self.assertEqual(1, self.changes, (name, script))
                self.assertLessEqual(self.changes, 1, (name, script))
                self.assertLessEqual(len(self.connector.mock_calls), 5, (name, script))

    async def test_what_is_certain_is_not_settled(self) -> None:
        for name, (entry, call) in self.made().items():
            for step, error in {'unavailable': StorageUnavailable, 'failed': StorageError}.items():
                with self.subTest(name, step=step):
                    self.begin(entry, step)
                    self.connector.reset_mock()
                    await self.assert_raises(error, call)
                    self.assertEqual(1, len(self.connector.mock_calls))

    async def test_a_delete_leaves_nothing_to_be_found_and_is_never_repeated(self) -> None:
        for name in ('delete', 'delete a version'):
            for step in ('made', 'not made'):
                with self.subTest(name, step=step):
                    self.begin((OLD, TEXT), step)
                    self.connector.reset_mock()
                    await self.assert_raises(OutcomeUnknown, self.calls()[name])
                    self.assertEqual(1, len(self.connector.mock_calls))


class ListingTests(SQLEngineTestCase):

    async def test_pages_are_asked_behind_the_last_name_until_one_is_empty(self) -> None:
        names = [f'n{i:03}' for i in range(2 * SIZE + 3)]
        self.answer(pages=[page_of(names[start:start + SIZE]) for start in (0, SIZE, 2 * SIZE)])
        self.assertEqual(names, await self.names())
        self.assert_asked(*[mock.call.fetch(PAGE, bound, SIZE)
                            for bound in ('', *names[SIZE - 1:2 * SIZE:SIZE], names[-1])])

    async def test_an_empty_store_is_asked_once(self) -> None:
        self.answer()
        self.assertEqual([], await self.names())
        self.assert_asked(mock.call.fetch(PAGE, '', SIZE))

    async def test_a_small_limit_is_the_size_of_the_page_and_nothing_more_is_asked(self) -> None:
        for limit in (1, 2, MOST - 1, MOST):
            names = [f'n{i:03}' for i in range(limit)]
            self.answer(pages=[page_of(names)])
            self.assertEqual(names, await self.names('m', limit))
            self.assert_asked(mock.call.fetch(PAGE, 'm', limit))

    async def test_a_larger_limit_is_shared_out_evenly_and_stops_the_listing(self) -> None:
        names = [f'n{i:03}' for i in range(3 * MOST)]
        for limit, share in ((MOST + 1, MOST // 2 + 1), (2 * MOST, MOST),
                             (2 * MOST + 1, (2 * MOST + 3) // 3)):
            with self.subTest(limit=limit):
                bounds = range(0, limit, share)
                self.answer(pages=[page_of(names[start:start + share]) for start in bounds])
                self.assertEqual(names[:limit], await self.names(limit=limit))
                self.assert_asked(*[mock.call.fetch(PAGE, names[start - 1] if start else '', share)
                                    for start in bounds])

    async def test_a_limit_of_nothing_shows_that_the_store_answers(self) -> None:
        self.assertEqual([], await self.names(limit=0))
        self.assert_asked(mock.call.ping())

    async def test_a_damaged_row_is_left_out_and_logged_and_counts_as_a_place_to_go_on_from(
            self) -> None:
        self.answer(pages=[[*page_of(['a']), ('b', OLD, 'damaged')], page_of(['c'])])
        self.assertEqual(['a', 'c'], await self.names())
        self.assertEqual(['', 'b', 'c'], [call.args[1] for call in self.connector.mock_calls])
        self.assertEqual(['ERROR'], [record.levelname for record in self.logged])
        self.assertIn('addresses.nickname=b', self.logged[0].getMessage())

    async def test_a_name_that_no_entry_can_have_is_left_out_and_is_a_place_to_go_on_from(
            self) -> None:
        self.answer(pages=[page_of(['a', 'a b']), page_of(['é']), page_of(['c'])])
        self.assertEqual(['a', 'c'], await self.names())
        self.assertEqual(['', 'a b', 'é', 'c'],
                         [call.args[1] for call in self.connector.mock_calls])

    async def test_a_listing_that_is_given_up_asks_no_more(self) -> None:
        self.answer(pages=[page_of(['a', 'b']), page_of(['c'])])
        listing = self.db.read_all_addresses()
        self.assertEqual(Stored('a', OLD, AddressEntry(full_name='a').to_json()),
                         await anext(listing))
        await listing.aclose()
        self.connector.fetch.assert_awaited_once()

    async def test_an_error_in_the_middle_does_not_look_like_the_end(self) -> None:
        self.connector.fetch.side_effect = [page_of(['a']), StorageUnavailable('x')]
        found = []
        with self.assertRaises(StorageUnavailable):
            async for stored in self.db.read_all_addresses():
                found.append(stored.nickname)
        self.assertEqual(['a'], found)

    async def test_what_no_database_takes_is_not_in_the_bound(self) -> None:
        for after, bound in {'': '', 'a': 'a', 'a\0': 'a', '\0': '', 'a\0b': 'a', 'é': '\x7f',
                             'aé': 'a\x7f', 'a\x7f': 'a\x7f', '\ud800': '\x7f', 'a\udfffb': 'a\x7f',
                             'a\U0001f600': 'a\x7f', 'a\n': 'a\n', "a'": "a'"}.items():
            self.answer()
            await self.names(after)
            with self.subTest(after=after):
                self.assert_asked(mock.call.fetch(PAGE, bound, SIZE))


class BoundTests(unittest.TestCase):

    @given(NICKNAMES, TEXTS)
    @example('a', 'a\0')
    @example('a-', 'a\0')
    @example('a', 'a\x7f')
    def test_it_comes_after_the_same_nicknames(self, nickname: str, after: str) -> None:
        self.assertEqual(nickname > after, nickname > sql_db._bound(after))

    @given(NICKNAMES, TEXTS)
    def test_it_does_so_for_what_begins_like_a_nickname(self, nickname: str, rest: str) -> None:
        for after in (nickname + rest, nickname[:-1] + rest):
            self.assertEqual(nickname > after, nickname > sql_db._bound(after))

    @given(TEXTS)
    def test_it_is_a_text_that_every_database_takes(self, after: str) -> None:
        self.assertRegex(sql_db._bound(after), r'\A[\x01-\x7f]*\Z')

    @given(NICKNAMES)
    def test_a_nickname_is_its_own_bound(self, nickname: str) -> None:
        self.assertEqual(nickname, sql_db._bound(nickname))


class PassingOnTests(SQLEngineTestCase):

    async def test_errors_of_the_connector_pass_through_unchanged(self) -> None:
        calls: dict[str, Call] = {
            **self.calls(), 'create': lambda: self.db.create_address(ENTRY), 'list': self.names,
            'count': self.db.count_addresses, 'ping': self.db.ping, 'start': self.db.start}
        for error in (StorageUnavailable('x', 'y'), StorageError('x', 'y'), RuntimeError('x')):
            for method in ('write', 'fetch_row', 'fetch', 'ping', 'open'):
                getattr(self.connector, method).side_effect = error
            for name, call in calls.items():
                with self.subTest(call=name, error=error), self.assertRaises(type(error)) as raised:
                    await call()
                self.assertIs(error, raised.exception)

    async def test_an_error_while_a_change_is_explained_passes_through(self) -> None:
        error = StorageUnavailable('x')
        self.answer(changed=0)
        self.connector.fetch_row.side_effect = error
        with self.assertRaises(StorageUnavailable) as raised:
            await self.calls()['update a version']()
        self.assertIs(error, raised.exception)

    async def test_start_stop_and_ping_are_those_of_the_connector(self) -> None:
        await self.db.start()
        await self.db.ping()
        await self.db.stop()
        await self.db.stop()
        self.assert_asked(mock.call.open(self.db._plan), mock.call.ping(), mock.call.close(),
                          mock.call.close())


class UpgradeTests(SQLEngineTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.connector.name_type = 'sometext'

    def statements(self, version: int) -> list[str]:
        """What is run on a store of this version, after the schema has been read."""
        steps = self.db._upgrade()
        ran = [next(steps)]
        with self.assertRaises(StopIteration):
            while True:
                ran.append(steps.send([(version,)] if ran[-1] == READ_SCHEMA else ()))
        self.assertEqual(1, ran.count(READ_SCHEMA))
        return ran[ran.index(READ_SCHEMA) + 1:]

    def preparation(self) -> list[str]:
        """What is run before the version is known."""
        steps = self.db._upgrade()
        ran = [next(steps)]
        while ran[-1] != READ_SCHEMA:
            ran.append(steps.send(()))
        return ran

    def test_before_the_version_is_read_its_row_is_made_if_missing_and_locked(self) -> None:
        table, row, lock, _ = self.preparation()
        self.assertIn('CREATE TABLE IF NOT EXISTS addresses_schema', table)
        self.assertRegex(row, r'VALUES \(1, 0\) ON CONFLICT \(id\) DO NOTHING$')
        self.assertEqual('UPDATE addresses_schema SET version = version', lock)

    def test_from_every_version_just_what_is_missing_is_run_in_order(self) -> None:
        with mock.patch.object(sql_db, 'MIGRATIONS', LATER_MIGRATIONS):
            for version in range(len(LATER_MIGRATIONS)):
                missing = [statement.format(name='sometext')
                           for statements in LATER_MIGRATIONS[version:] for statement in statements]
                with self.subTest(version=version):
                    *ran, last = self.statements(version)
                    self.assertEqual(missing, ran)
                    self.assertEqual('UPDATE addresses_schema SET version = 4', last)

    def test_from_nothing_the_whole_schema_is_made(self) -> None:
        self.assertEqual(sum(map(len, MIGRATIONS)) + 1, len(self.statements(0)))

    def test_from_the_newest_version_nothing_is_changed(self) -> None:
        for statement in self.statements(len(MIGRATIONS)):
            self.assertEqual(f'UPDATE addresses_schema SET version = {len(MIGRATIONS)}', statement)

    def test_a_store_of_a_newer_program_is_refused_before_anything_is_changed(self) -> None:
        for version in (len(MIGRATIONS) + 1, 99):
            steps = self.db._upgrade()
            while next(steps) != READ_SCHEMA:
                pass
            with self.assertRaises(ConfigError) as raised:
                steps.send([(version,)])
            self.assertRegex(str(raised.exception), rf'\b{version}\b.*\b{len(MIGRATIONS)}\b')
            self.assertTrue(str(raised.exception).startswith('addr-db'))
            self.assertTrue(str(raised.exception).isprintable())

    def test_an_upgrade_can_begin_anew_at_any_time(self) -> None:
        self.statements(0)
        self.assertEqual(self.statements(0), self.statements(0))
        abandoned = self.db._upgrade()
        next(abandoned)
        self.assertEqual(4, len(self.preparation()))


class StatementTests(unittest.TestCase):

    def test_every_statement_has_as_many_arguments_as_are_sent(self) -> None:
        for statement, number in STATEMENTS.items():
            with self.subTest(statement=statement):
                found = sorted(set(re.findall(r'\$(\d+)', statement)), key=int)
                self.assertEqual([str(i + 1) for i in range(number)], found)

    def test_no_statement_speaks_the_language_of_one_driver(self) -> None:
        for statement in (*STATEMENTS, *(text for texts in MIGRATIONS for text in texts)):
            with self.subTest(statement=statement):
                self.assertNotRegex(statement, r'[?%:"`;]|--|/\*|::')
                self.assertTrue(statement.isascii())

    def test_every_statement_of_a_migration_takes_the_type_of_a_name_and_nothing_else(self) -> None:
        for texts in LATER_MIGRATIONS:
            for text in texts:
                self.assertNotRegex(text.format(name='text'), r'[{}]')

    def test_what_has_been_released_is_as_it_was(self) -> None:
        self.assertEqual(
            'CREATE TABLE addresses (nickname text PRIMARY KEY NOT NULL, document text NOT NULL)',
            MIGRATIONS[0][0].format(name='text'))
        self.assertEqual(
            "ALTER TABLE addresses ADD COLUMN version text NOT NULL DEFAULT '0000000000000000'",
            MIGRATIONS[1][0].format(name='text'))

    def test_the_version_of_an_entry_that_had_none_is_a_version(self) -> None:
        [default] = re.findall("DEFAULT '(.*)'", MIGRATIONS[1][0])
        self.assertTrue(is_version(default))

    def test_a_key_goes_into_the_table_as_it_is(self) -> None:
        self.assertEqual(('nickname', 'version'), Key._fields)
        self.assertIn('(nickname, version, document)', INSERT)
        self.assertEqual({'full_name': 'Āsha'}, json.loads(TEXT))


if __name__ == '__main__':
    unittest.main()

"""The connector to SQLite keeps what only SQLite promises: one file, its log, locks and threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import json
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.database import sql_db, sqlite_db, sqlite_file
from addrservice.database.sql_db import MIGRATIONS, SQLAddressBookDB
from addrservice.database.sqlite_db import SQLiteConnector
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressExists, AddressNotFound, ConfigError, OutcomeUnknown, StorageError, StorageUnavailable,
    UnreadableRecord)
from tests.support import DEADLINE, quiet_logger, recording_logger

BUSY_TIMEOUT = 0.2
KILLS = 8
STARTERS = 10
UNVERSIONED = '0' * 16

V1 = ('CREATE TABLE addresses_schema (id integer PRIMARY KEY, version integer NOT NULL)',
      'CREATE TABLE addresses (nickname text PRIMARY KEY NOT NULL, document text NOT NULL)',
      'INSERT INTO addresses_schema (id, version) VALUES (1, 1)')
"""What version 1 of a store looked like; it stays as it was."""

ODD_NAMES = ['a b', 'a?mode=memory', 'a#b', 'a%20b', '%', "a'b", 'a"b', 'é\U0001f600', ':memory:',
             'file:a', 'a&b=c', 'a\nb', 'a\\b', '-', os.fsdecode(b'a\xffb')]

HOLD_RECOVERY = '''
import fcntl, os, sys
index = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(index, fcntl.LOCK_EX, 3, 120)  # to write, to checkpoint, to recover
os.pwrite(index, bytes(96), 0)  # both copies of the header: to be recovered from the log
print('holding', flush=True)
sys.stdin.read()
'''

Call = Callable[[], Awaitable[object]]


def entry_of(full_name: str) -> AddressEntry:
    return AddressEntry(full_name=full_name)


def big_entry() -> AddressEntry:
    """About 20 kB of it."""
    place = {'kind': 'home', 'street_name': 's' * 200, 'country': 'c' * 200, 'pincode': 1}
    return AddressEntry.from_api_dm({'full_name': 'big', 'addresses': [place] * 50})


async def full_names(db: SQLAddressBookDB) -> dict[str, str]:
    return {stored.nickname: stored.entry.full_name async for stored in db.read_all_addresses()}


async def bounded(call: Awaitable[object]) -> object:
    """Fails where it would hang."""
    async with asyncio.timeout(DEADLINE):
        return await call


def sqlite_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith('sqlite-')]


def open_descriptors() -> int:
    gc.collect()  # what has been dropped is not what the connector closes, but others' garbage
    return len(os.listdir('/dev/fd'))


class Faulty(sqlite3.Connection):
    """A connection that fails where it is told to, in every thread."""

    fault: Callable[[str], int | None] = staticmethod(lambda statement: None)
    """From a statement to the code of the error that it has."""

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        code = Faulty.fault(statement)
        if code is None:
            return super().execute(statement, *arguments)
        error = sqlite3.OperationalError('injected')
        error.sqlite_errorcode, error.sqlite_errorname = code, 'SQLITE_INJECTED'
        raise error


def wait_for(condition: Callable[[], bool]) -> None:
    """In a thread: returns when the event loop has made it true."""
    deadline = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


@contextlib.contextmanager
def failing(start: str, code: int, times: int = 10 ** 9) -> Iterator[list[str]]:
    """Lets statements that start so fail so many times; those that did."""
    failed: list[str] = []

    def fault(statement: str) -> int | None:
        if not statement.startswith(start) or len(failed) == times:
            return None
        failed.append(statement)
        return code

    with mock.patch.object(Faulty, 'fault', staticmethod(fault)):
        yield failed


class Held:
    """Holds calls of a method in their thread until they are let go."""

    def __init__(self, name: str, owner: Any = SQLiteConnector, of: object = None, skip: int = 0
                 ) -> None:
        """
        :param of: the object whose calls are held; all if left out.
        :param skip: so many calls go on first.
        """
        self._reached, self._release = threading.Event(), threading.Event()
        real, left = getattr(owner, name), [None] * skip

        def call(this: object, *args: Any) -> Any:
            if of in (None, this) and not (left and left.pop() is None):
                self._reached.set()
                if not self._release.wait(DEADLINE):
                    raise AssertionError('held for too long')
            return real(this, *args)

        self._patch = mock.patch.object(owner, name, call)

    def __enter__(self) -> Held:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._patch.stop()

    def let_go(self) -> None:
        self._release.set()

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, DEADLINE)


class SQLiteTestCase(unittest.IsolatedAsyncioTestCase):
    """A folder, an engine on a file in it, and a view of that file as others have it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / 'book.db'
        self.logger, self.logged = recording_logger()
        patch = mock.patch.object(sqlite3, 'connect', self.connect_faulty)
        self.connect = sqlite3.connect
        patch.start()
        self.addCleanup(patch.stop)

    def connect_faulty(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        return self.connect(*args, **kwargs, factory=Faulty)

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        self.db = await self.start_engine()

    def make_engine(self, path: Path | str | None = None, timeout: float = BUSY_TIMEOUT
                    ) -> SQLAddressBookDB:
        engine = SQLAddressBookDB(SQLiteConnector(str(path or self.path), timeout), self.logger)
        self.addAsyncCleanup(engine.stop)
        return engine

    async def start_engine(self, path: Path | str | None = None, timeout: float = BUSY_TIMEOUT
                           ) -> SQLAddressBookDB:
        engine = self.make_engine(path, timeout)
        await engine.start()
        return engine

    @staticmethod
    def connector(db: SQLAddressBookDB) -> SQLiteConnector:
        assert isinstance(db.connector, SQLiteConnector)
        return db.connector

    @property
    def file(self) -> sqlite_file.SQLiteFile:
        """What the engine has open."""
        file = self.connector(self.db)._file
        assert file is not None
        return file

    @contextlib.contextmanager
    def other(self, path: Path | None = None) -> Iterator[sqlite3.Connection]:
        """The file as another program has it."""
        connection = self.connect(path or self.path, isolation_level=None, timeout=5,
                                  check_same_thread=False)
        with contextlib.closing(connection):
            yield connection

    def execute(self, *statements: str, path: Path | None = None) -> list[tuple[Any, ...]]:
        """What another program gets from the last of these statements."""
        rows: list[tuple[Any, ...]] = []
        with self.other(path) as connection:
            for statement in statements:
                rows = connection.execute(statement).fetchall()
        return rows

    async def put(self, *nicknames: str) -> None:
        await asyncio.gather(*[self.db.create_address(entry_of(name), name) for name in nicknames])

    def writes(self, nickname: str = 'a') -> dict[str, Call]:
        """Every call that needs to write; creating uses another name."""
        return {
            'ping': self.db.ping,
            'create': lambda: self.db.create_address(entry_of('new'), f'{nickname}-new'),
            'update': lambda: self.db.update_address(nickname, entry_of('new')),
            'update a version': lambda: self.db.update_address(
                nickname, entry_of('new'), UNVERSIONED),
            'delete': lambda: self.db.delete_address(nickname),
        }

    def reads(self, nickname: str = 'a') -> dict[str, Call]:
        return {'read': lambda: self.db.read_address(nickname),
                'list': lambda: full_names(self.db),
                'count': self.db.count_addresses}

    def calls(self) -> dict[str, Call]:
        return {**self.writes(), **self.reads()}

    async def assert_raises(self, error: type[Exception], call: Call) -> Any:
        """Just that error, and nothing in it that is not for the client."""
        with self.assertRaises(error) as raised:
            await bounded(call())
        self.assertIs(error, type(raised.exception))
        self.assertNotIn(str(self.folder), str(raised.exception))
        return raised.exception

    async def assert_works(self, expected: dict[str, str]) -> None:
        """These are the entries, and every call works; afterwards all is as before."""
        await bounded(self.db.ping())
        self.assertEqual(expected, await full_names(self.db))
        key = await self.db.create_address(entry_of('x'), 'works')
        version = await self.db.update_address('works', entry_of('y'), key.version)
        self.assertEqual('y', (await self.db.read_address('works')).entry.full_name)
        await self.db.delete_address('works', version)
        self.assertEqual(len(expected), await self.db.count_addresses())

    async def refused(self, path: Path | str | None = None) -> str:
        """What `start` says of that file: one line that names the key and the path."""
        engine = self.make_engine(path)
        error = None
        try:
            await bounded(engine.start())
        except ConfigError as caught:
            error = caught
        assert error is not None, 'it started'
        self.assertTrue(str(error).isprintable(), str(error))
        await self.assert_raises(StorageUnavailable, engine.ping)
        return str(error)

    async def refused_as_unusable(self, path: Path | str | None = None) -> str:
        line = await self.refused(path)
        self.assertIn('addr-db.sqlite', line)
        self.assertIn(ascii(str(path or self.path)), line)
        return line


class FileTests(SQLiteTestCase):

    async def test_the_pragmas_are_in_effect_on_each_connection(self) -> None:
        self.assertEqual(3, len({self.file.writing, self.file.scan, self.file.point}))
        for connection, is_reading in [(self.file.writing, 0), (self.file.scan, 1),
                                       (self.file.point, 1)]:
            connection.execute('SELECT * FROM addresses').fetchall()
            for pragma, value in {'journal_mode': 'wal', 'synchronous': 2,
                                  'query_only': is_reading}.items():
                with self.subTest(connection=connection, pragma=pragma):
                    self.assertEqual([(value,)], connection.execute(f'PRAGMA {pragma}').fetchall())

    async def test_they_still_are_when_the_file_was_opened_anew(self) -> None:
        before = self.file
        with failing('SELECT version, document', sqlite3.SQLITE_IOERR, times=1):
            await self.assert_raises(StorageError, self.reads()['read'])
        await self.assert_works({})
        self.assertIsNot(before, self.file)
        await self.test_the_pragmas_are_in_effect_on_each_connection()

    async def test_only_waiting_for_a_row_takes_no_time(self) -> None:
        timeouts = [connection.execute('PRAGMA busy_timeout').fetchone()[0]
                    for connection in (self.file.writing, self.file.scan, self.file.point)]
        self.assertEqual([1000 * BUSY_TIMEOUT, 1000 * BUSY_TIMEOUT, 0], timeouts)

    async def test_readers_cannot_write(self) -> None:
        for connection in (self.file.scan, self.file.point):
            with self.assertRaises(sqlite3.OperationalError):
                connection.execute('DELETE FROM addresses')

    async def test_files_and_new_folders_are_for_their_owner_only_whatever_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        for mask in (0o077, 0o022, 0):
            os.umask(mask)
            folder = self.folder / f'{mask}' / 'below'
            self.db = await self.start_engine(folder / 'x.db')
            await self.put('a')
            with self.subTest(umask=oct(mask)):
                self.assertEqual({'x.db', 'x.db-wal', 'x.db-shm'}, set(os.listdir(folder)))
                self.assertEqual({0o600}, {stat.S_IMODE(file.stat().st_mode)
                                           for file in folder.iterdir()})
                self.assertEqual(0o700, stat.S_IMODE(folder.stat().st_mode))

    async def test_no_folder_on_the_way_lets_others_replace_it(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        await self.start_engine(self.folder / 'x' / 'y' / 'z' / 'book.db')
        for folder in ('x', 'x/y', 'x/y/z'):
            mode = stat.S_IMODE((self.folder / folder).stat().st_mode)
            self.assertEqual(0, mode & 0o022, f'{folder} has the mode {mode:o}')

    async def test_a_file_and_a_folder_that_are_there_keep_their_modes(self) -> None:
        await self.db.stop()
        self.path.chmod(0o640)
        self.folder.chmod(0o750)
        await self.db.start()
        await self.put('a')
        self.assertEqual(0o640, stat.S_IMODE(self.path.stat().st_mode))
        self.assertEqual(0o750, stat.S_IMODE(self.folder.stat().st_mode))

    async def test_a_path_is_taken_as_it_is(self) -> None:
        for name in ODD_NAMES:
            path = self.folder / 'odd' / name / name
            with self.subTest(path=path):
                self.db = await self.start_engine(path)
                await self.put('a')
                await self.db.stop()
                self.assertEqual([name], os.listdir(path.parent))
                self.assertEqual(b'SQLite format 3\0', path.read_bytes()[:16])
        self.assertEqual(sorted(ODD_NAMES), sorted(os.listdir(self.folder / 'odd')))

    async def test_a_path_may_begin_with_two_slashes_as_others_do(self) -> None:
        self.db = await self.start_engine(f'/{self.folder}/slashes.db')
        await self.put('a')
        self.assertTrue((self.folder / 'slashes.db').exists())

    async def test_a_relative_path_is_below_the_folder_in_which_the_process_was(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        engines = [self.make_engine(name) for name in (':memory:', 'x/../y.db', 'file:z.db')]
        os.chdir('/')
        for engine in engines:
            await engine.start()
            await engine.stop()
        self.assertLess({':memory:', 'y.db', 'file:z.db'}, set(os.listdir(self.folder)))

    async def test_a_link_leads_to_the_file(self) -> None:
        link = self.folder / 'link.db'
        link.symlink_to('book.db')
        await self.put('a')
        self.assertEqual({'a': 'a'}, await full_names(await self.start_engine(link)))

    async def test_start_refuses_a_path_that_can_be_no_file_in_one_line(self) -> None:
        (self.folder / 'folder').mkdir()
        (self.folder / 'loop').symlink_to('loop')
        (self.folder / 'dangling').symlink_to('nowhere/x')
        for name in ('folder', 'loop', 'loop/x', 'dangling', 'book.db/x', 'book.db/x/y', 'x' * 300,
                     'a\0b', '\ud800', '/proc/self/x', '/dev/null'):
            with self.subTest(path=name):
                await self.refused_as_unusable(self.folder / name)

    async def test_nothing_but_the_file_is_left_after_stop(self) -> None:
        await self.put('a')
        await self.db.stop()
        self.assertEqual(['book.db'], os.listdir(self.folder))
        self.assertEqual([('a',)], self.execute('SELECT nickname FROM addresses'))


class ThreadTests(SQLiteTestCase):

    async def test_each_connection_is_used_in_one_thread(self) -> None:
        users: dict[str, set[str]] = {}
        for name in ('point', 'scan', 'writing'):
            users[name] = set()
            getattr(self.file, name).set_trace_callback(
                lambda _, seen=users[name]: seen.add(threading.current_thread().name))
        await self.assert_works({})
        main, reader, writer = users['point'], users['scan'], users['writing']
        self.assertEqual({threading.current_thread().name}, main)
        self.assertEqual(['sqlite-reader_0'], list(reader))
        self.assertEqual(['sqlite-writer_0'], list(writer))

    async def test_a_write_runs_in_nobodys_context_and_a_read_in_its_callers(self) -> None:
        caller: contextvars.ContextVar[str] = contextvars.ContextVar('caller', default='nobody')
        seen = dict[str, str]()
        for name, start in (('scan', 'SELECT count'), ('writing', 'INSERT')):
            getattr(self.file, name).set_trace_callback(
                lambda text, start=start: text.startswith(start) and seen.update(
                    {start: caller.get()}))
        caller.set('me')
        await self.put('a')
        await self.db.count_addresses()
        self.assertEqual({'SELECT count': 'me', 'INSERT': 'nobody'}, seen)


class GroupTests(SQLiteTestCase):

    @contextlib.contextmanager
    def statements(self) -> Iterator[list[str]]:
        """What the thread that writes tells SQLite meanwhile."""
        told: list[str] = []
        self.file.writing.set_trace_callback(told.append)
        yield told
        self.file.writing.set_trace_callback(None)

    async def test_writers_that_arrive_together_share_a_commit(self) -> None:
        names = [f'n{i:03}' for i in range(200)]
        with self.statements() as told:
            await self.put(*names)
        self.assertLess(told.count('COMMIT'), 10)
        self.assertEqual(told.count('COMMIT'), told.count('BEGIN IMMEDIATE'))
        self.assertEqual(names, list(await full_names(self.db)))

    async def test_one_writer_after_the_other_has_a_commit_each(self) -> None:
        with self.statements() as told:
            for name in ('a', 'b', 'c'):
                await self.put(name)
        self.assertEqual(3, told.count('COMMIT'))

    async def test_a_group_has_a_bound(self) -> None:
        with mock.patch.object(sqlite_db, 'MAX_GROUP', 7), self.statements() as told:
            await self.put(*(f'n{i:02}' for i in range(50)))
        self.assertGreaterEqual(told.count('COMMIT'), 8)
        self.assertEqual(50, await self.db.count_addresses())

    async def test_within_a_group_each_sees_what_came_before_it(self) -> None:
        with Held('commit', sqlite_file.SQLiteFile) as held:
            first = asyncio.create_task(self.put('first'))
            await held.reached()
            calls: list[Awaitable[object]] = [
                self.db.create_address(entry_of('1'), 'a'),
                self.db.create_address(entry_of('2'), 'a'),
                self.db.update_address('a', entry_of('3')),
                self.db.update_address('b', entry_of('4')),
                self.db.delete_address('a'), self.db.delete_address('a'),
                self.db.create_address(entry_of('5'), 'a')]
            group = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0)
            held.let_go()
            results = [type(result) for result in await group]
        await first
        self.assertEqual([AddressExists, AddressNotFound, AddressNotFound],
                         [results[1], results[3], results[5]])
        await self.assert_works({'a': '5', 'first': 'first'})

    async def test_one_that_gave_up_before_its_turn_writes_nothing(self) -> None:
        with Held('commit', sqlite_file.SQLiteFile) as held:
            first = asyncio.create_task(self.put('first'))
            await held.reached()
            tasks = [asyncio.create_task(self.put(name)) for name in ('a', 'b', 'c')]
            await asyncio.sleep(0.01)
            tasks[1].cancel()
            await asyncio.wait([tasks[1]])
        await asyncio.gather(first, tasks[0], tasks[2])
        self.assertTrue(tasks[1].cancelled())
        await self.assert_works({'a': 'a', 'c': 'c', 'first': 'first'})

    async def test_one_that_gives_up_while_its_commit_is_under_way_disturbs_nobody(self) -> None:
        with Held('commit', sqlite_file.SQLiteFile) as held:
            first = asyncio.create_task(self.put('first'))
            await held.reached()
            other = asyncio.create_task(self.put('other'))
            await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.wait([first])
        await other
        found = await full_names(self.db)
        self.assertIn(found, ({'other': 'other'}, {'first': 'first', 'other': 'other'}))
        await self.assert_works(found)

    async def test_when_all_give_up_the_next_one_is_served(self) -> None:
        with Held('commit', sqlite_file.SQLiteFile) as held:
            tasks = [asyncio.create_task(self.put(name)) for name in ('a', 'b', 'c')]
            await held.reached()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await bounded(self.put('d'))
        self.assertIn('d', await full_names(self.db))
        self.assertEqual([('ok',)], self.execute('PRAGMA integrity_check'))

    async def test_writers_that_come_and_go_at_random_have_what_they_were_told(self) -> None:
        chance, told = random.Random(1), set[str]()

        async def write(name: str) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.expovariate(300)):
                    await self.put(name)
                    told.add(name)

        await bounded(asyncio.gather(*[write(f'n{i:03}') for i in range(300)]))
        found = await full_names(self.db)
        self.assertLessEqual(told, set(found))
        await self.assert_works(found)

    async def failures_of_a_group(self) -> list[Exception]:
        """What five who write together are told when it fails."""
        names = ('a', 'b', 'c', 'd', 'e')
        tasks = [asyncio.create_task(self.put(name)) for name in names]
        await bounded(asyncio.wait(tasks))
        errors = [task.exception() for task in tasks]
        self.assertEqual(5, len({id(error) for error in errors}), 'one of its own for each')
        return [error for error in errors if isinstance(error, Exception)]

    async def test_an_error_reaches_each_of_a_group_with_an_exception_of_its_own(self) -> None:
        for statement, code, error in [
                ('COMMIT', sqlite3.SQLITE_IOERR, StorageError),
                ('COMMIT', sqlite3.SQLITE_FULL, StorageUnavailable),
                ('INSERT', sqlite3.SQLITE_CORRUPT, StorageError),
                ('BEGIN', sqlite3.SQLITE_BUSY, StorageUnavailable)]:
            with self.subTest(statement=statement, code=code), failing(statement, code):
                failures = await self.failures_of_a_group()
                self.assertEqual([error] * 5, list(map(type, failures)))
                for failure in failures:
                    self.assertIsInstance(failure.__cause__, sqlite3.Error)
                    self.assertIn('injected', getattr(failure, 'cause', ''))
            await self.assert_works({})

    async def test_an_error_that_nobody_foresaw_lets_nobody_wait_for_ever(self) -> None:
        with mock.patch.object(sqlite_file.SQLiteFile, 'commit', side_effect=MemoryError('x')):
            self.assertEqual(5, len(await self.failures_of_a_group()))
        await self.assert_works({})


class LockTests(SQLiteTestCase):

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        await self.put('a')

    async def longest_gap(self, call: Awaitable[object]) -> float:
        """How long the event loop stood still at most while that went on."""
        task, longest, last = asyncio.ensure_future(call), 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await task
        return longest

    @contextlib.contextmanager
    def locked(self, kind: str = 'IMMEDIATE') -> Iterator[None]:
        """Another program is writing, and takes its time."""
        with self.other() as connection:
            connection.execute(f'BEGIN {kind}')
            connection.execute("UPDATE addresses SET document = 'not committed'")
            yield

    async def test_reading_goes_on_while_another_writes(self) -> None:
        for kind in ('IMMEDIATE', 'EXCLUSIVE'):
            with self.subTest(kind=kind), self.locked(kind):
                begin = time.monotonic()
                self.assertEqual('a', (await self.db.read_address('a')).entry.full_name)
                self.assertEqual({'a': 'a'}, await full_names(self.db))
                self.assertEqual(1, await self.db.count_addresses())
                self.assertLess(time.monotonic() - begin, BUSY_TIMEOUT)

    async def assert_wait_and_block_nobody(self, calls: Mapping[str, Call]) -> None:
        """Each waits for as long as is configured and then gives up; the event loop goes on."""
        for name, call in calls.items():
            begin = time.monotonic()
            with self.subTest(call=name):
                gap = await self.longest_gap(self.assert_raises(StorageUnavailable, call))
                self.assertGreaterEqual(time.monotonic() - begin, BUSY_TIMEOUT * 0.9)
                self.assertLess(gap, BUSY_TIMEOUT / 2)

    async def test_writing_waits_as_long_as_configured_and_blocks_nobody(self) -> None:
        with self.locked():
            await self.assert_wait_and_block_nobody(self.writes())
        await self.assert_works({'a': 'a'})

    async def test_a_write_goes_on_when_the_other_one_is_done(self) -> None:
        self.db = await self.start_engine(timeout=DEADLINE)
        with self.locked():
            task = asyncio.create_task(self.put('b'))
            await asyncio.wait([task], timeout=0.05)
            self.assertFalse(task.done())
        await bounded(task)
        await self.assert_works({'a': 'a', 'b': 'b'})

    async def test_a_lock_is_no_reason_to_open_the_file_anew(self) -> None:
        before = self.file
        with self.locked():
            await self.assert_raises(StorageUnavailable, self.writes()['update'])
        await self.assert_works({'a': 'a'})
        self.assertIs(before, self.file)

    @contextlib.contextmanager
    def locked_for_readers(self) -> Iterator[None]:
        """Another process is about to recover the log: nobody can read."""
        process = subprocess.Popen([sys.executable, '-c', HOLD_RECOVERY, f'{self.path}-shm'],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self.assertEqual('holding\n', process.stdout.readline())
        try:
            yield
        finally:
            process.communicate()

    async def test_reading_one_row_never_waits_on_the_event_loop(self) -> None:
        for connection in (self.file.point, self.file.scan):
            self.assertEqual(1, connection.execute('SELECT count(*) FROM addresses').fetchone()[0])
        with self.locked_for_readers():
            await self.assert_wait_and_block_nobody(self.reads())
        await self.assert_works({'a': 'a'})

    async def test_start_waits_for_a_lock_and_then_says_that_it_is_locked(self) -> None:
        with self.locked():
            await self.assert_raises(StorageUnavailable, self.make_engine().start)
        await self.assert_works({'a': 'a'})

    async def test_start_waits_for_a_lock_on_a_file_that_has_no_log_yet(self) -> None:
        path = self.folder / 'plain.db'
        with self.other(path) as connection:
            connection.execute('CREATE TABLE t (x)')
            connection.execute('BEGIN IMMEDIATE')
            start = asyncio.create_task(self.start_engine(path, timeout=DEADLINE))
            await asyncio.wait([start], timeout=0.1)
            self.assertFalse(start.done())
            connection.execute('ROLLBACK')
            await bounded(start)

    async def test_start_waits_for_a_lock_with_each_of_its_connections(self) -> None:
        for number in range(3):
            with self.subTest(connection=number):
                await self.start_while_locked_from(number, self.folder / f'{number}.db')

    async def start_while_locked_from(self, number: int, path: Path) -> None:
        """Another program locks the file for a moment, just before that connection is made."""
        real, made = sqlite_file._connect, list[sqlite3.Connection]()

        def connect(*args: Any) -> sqlite3.Connection:
            if len(made) == number:
                connection.execute('BEGIN EXCLUSIVE')
                threading.Timer(0.05, connection.execute, ['ROLLBACK']).start()
            made.append(real(*args))
            return made[-1]

        with self.other(path) as connection:
            connection.execute('CREATE TABLE t (x)')
            with mock.patch.object(sqlite_file, '_connect', connect):
                await self.start_engine(path, timeout=DEADLINE)

    async def test_start_can_wait_as_long_as_the_configuration_allows(self) -> None:
        path, sleep = self.folder / 'plain.db', time.sleep
        with self.other(path) as connection:
            connection.execute('CREATE TABLE t (x)')
            connection.execute('BEGIN IMMEDIATE')
            with mock.patch.object(time, 'sleep', lambda _: sleep(1e-5)):
                await self.assert_raises(StorageUnavailable,
                                         self.make_engine(path, timeout=0.8).start)


class OtherFileTests(SQLiteTestCase):

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        await self.put('a')
        self.away = self.folder / 'away.db'

    async def assert_unavailable(self) -> None:
        for name, call in self.calls().items():
            with self.subTest(call=name):
                await self.assert_raises(StorageUnavailable, call)

    async def make_backup(self, *nicknames: str) -> Path:
        """Another book, closed in order."""
        path = self.folder / f'backup-{nicknames[0]}.db'
        served, self.db = self.db, await self.start_engine(path)
        await self.put(*nicknames)
        await self.db.stop()
        self.db = served
        return path

    async def test_a_file_that_was_removed_is_unavailable_until_it_is_back(self) -> None:
        self.path.rename(self.away)
        await self.assert_unavailable()
        self.assertFalse(self.path.exists(), 'made anew, and empty')
        self.away.rename(self.path)
        await self.assert_works({'a': 'a'})

    async def test_a_folder_that_was_removed_is_unavailable_until_it_is_back(self) -> None:
        self.path = self.folder / 'below' / 'book.db'
        self.db = await self.start_engine()
        await self.put('a')
        self.path.parent.rename(self.away)
        await self.assert_unavailable()
        self.away.rename(self.path.parent)
        await self.assert_works({'a': 'a'})

    async def test_a_file_that_was_put_back_before_anybody_came_has_all(self) -> None:
        self.path.rename(self.away)
        self.away.rename(self.path)
        await self.assert_works({'a': 'a'})

    async def test_a_book_that_was_put_in_its_place_is_served_just_as_it_is(self) -> None:
        backup = await self.make_backup(*(f'n{i:03}' for i in range(300)))
        await self.put(*(f'm{i:02}' for i in range(50)))
        self.path.rename(self.away)
        backup.rename(self.path)
        await self.assert_works({f'n{i:03}': f'n{i:03}' for i in range(300)})
        self.assertEqual([('ok',)], self.execute('PRAGMA integrity_check'))

    async def test_a_book_that_replaces_one_that_was_removed_is_served_just_as_it_is(self) -> None:
        backup = await self.make_backup(*(f'n{i:03}' for i in range(300)))
        self.path.unlink()
        await self.assert_unavailable()
        backup.rename(self.path)
        await self.assert_works({f'n{i:03}': f'n{i:03}' for i in range(300)})

    async def test_the_book_that_was_replaced_has_all_that_was_acknowledged(self) -> None:
        backup = await self.make_backup('x')
        await self.put(*(f'm{i:02}' for i in range(50)))
        self.path.rename(self.away)
        backup.rename(self.path)
        await self.db.ping()
        self.assertEqual([(51,)], self.execute('SELECT count(*) FROM addresses', path=self.away))

    async def test_a_book_that_comes_with_a_log_of_its_own_keeps_it(self) -> None:
        backup = await self.make_backup('x')
        with self.other(backup) as connection:
            connection.execute("UPDATE addresses SET document = '{\"full_name\":\"in the log\"}'")
            for suffix in ('-wal', ''):
                subprocess.run(['cp', f'{backup}{suffix}', f'{self.path}.new{suffix}'], check=True)
        for suffix in ('-wal', ''):
            os.replace(f'{self.path}.new{suffix}', f'{self.path}{suffix}')
        await self.assert_works({'x': 'in the log'})

    async def test_an_empty_file_in_its_place_is_an_empty_book(self) -> None:
        self.path.rename(self.away)
        self.path.touch()
        await self.assert_works({})

    async def test_what_is_no_book_in_its_place_is_an_error_until_the_book_is_back(self) -> None:
        self.path.rename(self.away)
        self.path.write_bytes(b'not a database' * 1000)
        for name, call in self.calls().items():
            with self.subTest(call=name), self.assertRaises(StorageError):
                await bounded(call())
        self.away.rename(self.path)
        await self.assert_works({'a': 'a'})

    async def test_a_book_of_a_newer_program_in_its_place_is_an_error_of_the_store(self) -> None:
        backup = await self.make_backup('x')
        self.execute('UPDATE addresses_schema SET version = 99', path=backup)
        self.path.rename(self.away)
        backup.rename(self.path)
        for name, call in self.calls().items():
            with self.subTest(call=name), self.assertRaises(StorageError):
                await bounded(call())
        self.away.rename(self.path)
        await self.assert_works({'a': 'a'})

    async def test_a_write_that_went_to_a_removed_file_is_not_acknowledged(self) -> None:
        for name, call in list(self.writes().items())[1:]:
            with self.subTest(call=name), Held('commit', sqlite_file.SQLiteFile) as held:
                task = asyncio.create_task(self.assert_raises(OutcomeUnknown, call))
                await held.reached()
                self.path.rename(self.away)
                held.let_go()
                error = await task
                self.away.rename(self.path)
                self.assertIn('not known', str(error))  # the file may come back, as here

    async def test_a_write_to_a_file_that_is_back_in_a_moment_is_a_success(self) -> None:
        for name in ('create', 'update'):
            with self.subTest(call=name), Held('commit', sqlite_file.SQLiteFile) as held:
                task = asyncio.create_task(bounded(self.writes()[name]()))
                await held.reached()
                self.path.rename(self.away)
                with mock.patch.object(sqlite_file.SQLiteFile, 'is_there', self.put_back):
                    held.let_go()
                    await task
        await self.assert_works({'a': 'new', 'a-new': 'new'})

    def put_back(self) -> bool:
        """Says for once that the file is not there."""
        if was_away := self.away.exists():
            self.away.rename(self.path)
        return not was_away

    async def test_one_that_stops_while_the_file_is_away_for_a_moment_leaves_it_to_the_others(
            self) -> None:
        other, names = await self.start_engine(), [f'n{i:03}' for i in range(300)]
        with Held('commit', sqlite_file.SQLiteFile, self.connector(other)._file) as held:
            late = asyncio.create_task(other.create_address(entry_of('late'), 'late'))
            await held.reached()
            self.path.rename(self.away)
            with mock.patch.object(os, 'unlink', self.unlink_after(held.let_go, late.done)):
                await self.db.stop()
            if self.away.exists():
                self.away.rename(self.path)
            self.db = await self.start_engine()
            await self.put(*names)
        await asyncio.wait([late])
        written = {'a', *names} | (set() if late.exception() else {'late'})
        self.assertEqual(set(), written - set(await full_names(self.db)))
        written.add((await other.create_address(entry_of('last'), 'last')).nickname)
        for self.db in (self.db, other):
            self.assertEqual(set(), written - set(await full_names(self.db)))
        self.assertEqual([('ok',)], self.execute('PRAGMA integrity_check'))

    def unlink_after(self, let_go: Callable[[], None], is_done: Callable[[], bool]
                     ) -> Callable[[str], None]:
        """Removes a file, just before which the one that was away is back, and written to."""
        real = os.unlink

        def unlink(path: str) -> None:
            if self.away.exists():
                self.away.rename(self.path)
                let_go()
                wait_for(is_done)
            real(path)

        return unlink

    async def test_many_who_find_another_file_have_it_opened_once(self) -> None:
        backup = await self.make_backup('x')
        self.path.rename(self.away)
        backup.rename(self.path)
        with mock.patch.object(sqlite_db, 'SQLiteFile', wraps=sqlite_file.SQLiteFile) as opened:
            await asyncio.gather(*[self.db.read_address('x') for _ in range(50)],
                                 *[self.db.count_addresses() for _ in range(50)])
        opened.assert_called_once()

    @contextlib.contextmanager
    def closed_before_another_is_opened(self) -> Iterator[None]:
        """Each file is, that is open now or later; as both would use one log."""
        still_open: list[sqlite3.Connection] = []
        files = [self.file]

        class Watching(sqlite_file.SQLiteFile):
            def __init__(self, *args: Any) -> None:
                for connection in (one for file in files for one in (file.scan, file.writing)):
                    with contextlib.suppress(sqlite3.ProgrammingError):
                        connection.execute('SELECT 1')
                        still_open.append(connection)
                super().__init__(*args)
                files.append(self)

        with mock.patch.object(sqlite_db, 'SQLiteFile', Watching):
            yield
        self.assertEqual([], still_open)

    async def test_a_file_is_closed_before_another_is_opened_also_while_a_write_waits(self) -> None:
        backup, real = await self.make_backup('x'), sqlite_file.SQLiteFile
        with self.closed_before_another_is_opened():
            with Held('probe', real) as held:
                ping = asyncio.create_task(self.db.ping())
                await held.reached()
                write = asyncio.create_task(self.put('b'))
                await asyncio.sleep(0.01)  # now it waits for the thread
                self.path.rename(self.away)
                backup.rename(self.path)
                read = asyncio.create_task(self.db.read_address('x'))
                await asyncio.sleep(0.01)
            await bounded(asyncio.wait([ping, write, read]))
            self.assertIn(type(write.exception()), (OutcomeUnknown, type(None)))
            self.assertEqual('x', (await read).entry.full_name)
        await self.assert_works({'x': 'x'} if write.exception() else {'b': 'b', 'x': 'x'})

    async def two_that_open(self, backup: Path) -> list[asyncio.Task[Any]]:
        """Both have told the thread that writes to open that file, before it could begin."""
        with Held('probe', type(self.file)) as held:
            ping = asyncio.create_task(self.db.ping())
            await held.reached()
            backup.rename(self.path)
            reads = [asyncio.create_task(self.db.read_address('y')) for _ in range(2)]
            await asyncio.sleep(0.01)
        return [ping, *reads]

    async def test_a_file_is_closed_before_another_is_opened_also_while_many_open_it(self) -> None:
        backups = [await self.make_backup(name) for name in ('x', 'y')]
        with self.closed_before_another_is_opened():
            with Held('_open_file', skip=1) as held:
                reads = await self.two_that_open(backups[0])
                await held.reached()
                backups[1].rename(self.path)
                reads.append(asyncio.create_task(self.db.read_address('y')))
                await asyncio.sleep(0.01)
            await bounded(asyncio.wait(reads))
        self.assertEqual('y', (await reads[-1]).entry.full_name)
        await self.assert_works({'y': 'y'})

    async def test_a_file_is_closed_before_another_is_opened_also_while_closing_takes_time(
            self) -> None:
        backups, real = [await self.make_backup(name) for name in ('x', 'y')], Faulty.close

        def close(connection: Faulty) -> None:
            if threading.current_thread() is threading.main_thread():
                held.let_go()
                time.sleep(0.05)
            real(connection)

        with self.closed_before_another_is_opened():
            with Held('_open_file', skip=1) as held:
                reads = await self.two_that_open(backups[0])
                await held.reached()
                backups[1].rename(self.path)
                with mock.patch.object(Faulty, 'close', close):
                    reads.append(asyncio.create_task(self.db.read_address('y')))
                    await asyncio.wait(reads)
        await self.assert_works({'y': 'y'})


class CloseTests(SQLiteTestCase):

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60
        await asyncio.to_thread(int)  # the loop's own threads have come
        self.before = open_descriptors()
        self.db = await self.start_engine()

    def assert_nothing_open(self) -> None:
        self.assertEqual([], sqlite_threads())
        self.assertEqual(self.before, open_descriptors())

    async def test_stop_leaves_no_descriptor_and_no_thread(self) -> None:
        await self.assert_works({})
        self.assertGreater(open_descriptors(), self.before)
        await self.db.stop()
        self.assert_nothing_open()

    async def test_started_and_stopped_ten_times_it_leaves_nothing(self) -> None:
        for turn in range(10):
            await self.put(f'n{turn}')
            await self.db.stop()
            self.assert_nothing_open()
            await self.db.start()
        await self.db.stop()
        await self.db.stop()
        self.assert_nothing_open()

    async def test_what_failed_and_was_opened_anew_leaves_nothing(self) -> None:
        for start, code in [('SELECT version, document', sqlite3.SQLITE_IOERR),
                            ('SELECT nickname', sqlite3.SQLITE_CORRUPT),
                            ('COMMIT', sqlite3.SQLITE_IOERR), ('BEGIN', sqlite3.SQLITE_IOERR)]:
            for _ in range(3):
                with failing(start, code):
                    await asyncio.gather(*[call() for call in self.calls().values()],
                                         return_exceptions=True)
        await self.db.ping()
        await self.db.stop()
        self.assert_nothing_open()

    async def test_a_start_that_failed_half_way_leaves_nothing(self) -> None:
        await self.db.stop()
        self.path.unlink()
        for start in ('PRAGMA synchronous', 'PRAGMA journal_mode', 'PRAGMA query_only', 'BEGIN',
                      'CREATE', 'SELECT version', 'UPDATE', 'COMMIT'):
            with self.subTest(statement=start):
                with failing(start, sqlite3.SQLITE_IOERR) as failed:
                    await self.refused_as_unusable()
                self.assertTrue(failed)
                self.assert_nothing_open()
                self.path.unlink()
        await self.db.start()
        await self.assert_works({})

    async def test_a_start_that_was_given_up_leaves_nothing(self) -> None:
        await self.db.stop()
        for name, owner in (('make_file', sqlite_db), ('_open_file', SQLiteConnector)):
            with self.subTest(during=name), Held(name, owner) as held:
                start = asyncio.create_task(self.db.start())
                await held.reached()
                start.cancel()
                await asyncio.sleep(0.01)
                held.let_go()
                await asyncio.wait([start])
                self.assertTrue(start.cancelled())
                self.assert_nothing_open()
                await self.assert_raises(StorageUnavailable, self.db.count_addresses)
        await self.db.start()
        await self.assert_works({})

    async def test_stop_while_the_file_is_opened_anew_leaves_nothing(self) -> None:
        for name in ('read', 'count', 'create', 'ping'):
            with failing('SELECT version, document', sqlite3.SQLITE_IOERR):
                await self.assert_raises(StorageError, self.reads()['read'])
            with self.subTest(call=name):
                with Held('_open_file') as held:
                    call = asyncio.create_task(bounded(self.calls()[name]()))
                    await held.reached()
                    stop = asyncio.create_task(self.db.stop())
                    await asyncio.sleep(0.01)
                    held.let_go()
                    await bounded(stop)
                    await asyncio.wait([call])
                self.assertIn(type(call.exception()),
                              (type(None), StorageUnavailable, AddressNotFound))
                self.assert_nothing_open()
                await self.assert_raises(StorageUnavailable, self.db.count_addresses)
            await self.db.start()

    async def test_one_whose_file_was_let_go_meanwhile_may_try_again(self) -> None:
        with failing('SELECT version, document', sqlite3.SQLITE_IOERR, times=2):
            await self.assert_raises(StorageError, self.reads()['read'])
            with Held('_open_file') as held:
                reads = [asyncio.create_task(self.db.read_address('a')) for _ in range(3)]
                await held.reached()
            await asyncio.wait(reads)
        first, *others = [type(read.exception()) for read in reads]
        self.assertIs(StorageError, first)  # it has found the disk to fail
        self.assertLessEqual(set(others), {AddressNotFound, StorageUnavailable})

    async def test_stop_waits_for_a_write_that_is_under_way(self) -> None:
        with Held('commit', sqlite_file.SQLiteFile) as held:
            write = asyncio.create_task(self.put('a'))
            await held.reached()
            late = asyncio.create_task(self.put('late'))
            await asyncio.sleep(0.01)
            stop = asyncio.create_task(self.db.stop())
            await asyncio.sleep(0.01)
            self.assertFalse(stop.done())
            held.let_go()
            await bounded(stop)
        await write
        with self.assertRaises(StorageUnavailable):
            await late
        self.assert_nothing_open()
        self.assertEqual([('a',)], self.execute('SELECT nickname FROM addresses'))

    async def test_a_read_that_is_under_way_while_it_stops_has_an_answer(self) -> None:
        await self.put(*(f'n{i:02}' for i in range(20)))
        with Held('read', sqlite_file.SQLiteFile) as held:
            count = asyncio.create_task(self.db.count_addresses())
            await held.reached()
            stop = asyncio.create_task(self.db.stop())
            await asyncio.sleep(0.01)
        self.assertEqual(20, await bounded(count))
        await bounded(stop)
        self.assert_nothing_open()

    async def test_no_loop_is_told_of_an_exception_that_nobody_fetched(self) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with failing('COMMIT', sqlite3.SQLITE_IOERR):
            tasks = [asyncio.create_task(self.put(name)) for name in ('a', 'b', 'c')]
            await asyncio.sleep(0)
            tasks[1].cancel()
            await asyncio.wait(tasks)
            await self.assert_raises(StorageError, self.db.ping)
        await self.db.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        del tasks, results
        gc.collect()
        await asyncio.sleep(0)
        self.assertEqual([], told)


class UncleanEndTests(SQLiteTestCase):

    def copy_as_it_lies(self) -> Path:
        """What a process that is killed now would leave."""
        left = self.folder / 'left' / 'book.db'
        left.parent.mkdir()
        for suffix in ('', '-wal'):
            # By another process: who closes a file gives up the locks of its own process on it.
            subprocess.run(['cp', f'{self.path}{suffix}', f'{left}{suffix}'], check=True)
        return left

    async def started(self, path: Path) -> tuple[SQLAddressBookDB, int]:
        """An engine, and how often it has looked for damage."""
        with mock.patch.object(sqlite_file.SQLiteFile, '_check', autospec=True,
                               side_effect=sqlite_file.SQLiteFile._check) as check:
            return await self.start_engine(path), check.call_count

    async def test_after_an_unclean_end_all_is_there_and_the_file_is_checked(self) -> None:
        await self.put('a', 'b')
        self.db, checks = await self.started(self.copy_as_it_lies())
        self.assertEqual(1, checks)
        await self.assert_works({'a': 'a', 'b': 'b'})

    async def test_after_a_clean_end_the_file_is_checked_too(self) -> None:
        await self.put('a')
        await self.db.stop()
        self.db, checks = await self.started(self.path)
        self.assertEqual(1, checks)
        await self.assert_works({'a': 'a'})

    async def test_a_log_that_is_cut_off_loses_no_more_than_its_end(self) -> None:
        await self.put('a')
        size = os.path.getsize(f'{self.path}-wal')
        await self.put('b')
        left = self.copy_as_it_lies()
        os.truncate(f'{left}-wal', size + 100)
        self.db, _ = await self.started(left)
        await self.assert_works({'a': 'a'})

    async def test_damage_that_an_unclean_end_left_is_refused(self) -> None:
        await self.put(*(f'n{i:03}' for i in range(200)))
        await self.db.stop()
        await self.db.start()
        await self.put('a')
        left = self.copy_as_it_lies()
        with open(left, 'r+b') as file:
            file.seek(4096 * 3)
            file.write(b'\xff' * 4096 * 4)
        await self.refused_as_unusable(left)

    async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(self) -> None:
        await self.put('a')
        await self.db.stop()
        good = self.path.read_bytes()
        for name, content in {'text': b'not a database' * 1000, 'zeros': bytes(8192),
                              'short': good[:100], 'cut': good[:5000],
                              'header': b'\xff' * 16 + good[16:]}.items():
            path = self.folder / f'{name}.db'
            path.write_bytes(content)
            with self.subTest(damage=name):
                await self.refused_as_unusable(path)
                self.assertEqual(content, path.read_bytes())

    async def damage(self) -> None:
        """Destroys the page that leads to all entries, in a file that was closed in order."""
        await self.put(*(f'n{i:03}' for i in range(200)))
        await self.db.stop()
        [(page,)] = self.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'addresses'")
        with open(self.path, 'r+b') as file:
            file.seek(4096 * (page - 1))
            file.write(b'\xff' * 4096)

    async def test_damage_in_a_file_that_was_closed_in_order_is_refused(self) -> None:
        await self.damage()
        await self.refused_as_unusable()

    async def test_damage_that_comes_while_the_file_is_open_is_an_error_of_the_store(self) -> None:
        await self.damage()
        with mock.patch.object(sqlite_file.SQLiteFile, '_check'):
            await self.db.start()
        for name in ('read', 'list'):
            with self.subTest(call=name):
                error = await self.assert_raises(StorageError, self.reads('n000')[name])
                self.assertRegex(error.cause, 'SQLITE_CORRUPT|Tree|database')


class KillTests(unittest.TestCase):
    """Forks, and so starts no loop and no thread before."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / 'book.db'

    @contextlib.asynccontextmanager
    async def engine(self, timeout: float = DEADLINE) -> AsyncGenerator[SQLAddressBookDB, None]:
        db = SQLAddressBookDB(SQLiteConnector(str(self.path), timeout), quiet_logger())
        await db.start()
        try:
            yield db
        finally:
            await db.stop()

    def fork(self, work: Callable[[], Any]) -> int:
        child = os.fork()
        if child:
            return child
        try:
            asyncio.run(work())
            os._exit(0)
        finally:
            os._exit(1)

    async def write_and_tell(self, turn: int, pipe: int) -> None:
        async with self.engine() as db:
            async def write(worker: int) -> None:
                for i in range(10 ** 6):
                    name = f'{turn}-{worker}-{i}'
                    await db.create_address(entry_of(name), name)
                    os.write(pipe, f'{name}\n'.encode())
            await asyncio.gather(*map(write, range(8)))

    async def found(self) -> dict[str, str]:
        async with self.engine() as db:
            return await full_names(db)

    def test_after_each_of_many_kills_all_that_was_acknowledged_is_there(self) -> None:
        chance, acknowledged = random.Random(1), set[str]()
        for turn in range(KILLS):
            reader, writer = os.pipe()
            child = self.fork(lambda: self.write_and_tell(turn, writer))
            os.close(writer)
            with open(reader) as told:
                acknowledged.add(told.readline().strip())
                time.sleep(chance.uniform(0, 0.05))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                acknowledged.update(line.strip() for line in told)
            found = asyncio.run(self.found())
            self.assertEqual(found, {name: name for name in found})
            self.assertEqual(set(), acknowledged - set(found))
        self.assertGreater(len(acknowledged), KILLS)

    def test_processes_that_start_at_once_on_a_new_path_all_work(self) -> None:
        async def work(number: int) -> None:
            async with self.engine() as db:
                for i in range(5):
                    await db.create_address(entry_of(f'{number}'), f'{number}-{i}')

        self.path = self.path.parent / 'new' / 'book.db'
        children = [self.fork(functools.partial(work, number)) for number in range(STARTERS)]
        self.assertEqual([0] * STARTERS, [os.waitpid(child, 0)[1] for child in children])
        self.assertEqual(5 * STARTERS, len(asyncio.run(self.found())))

    def test_engines_that_start_at_once_in_threads_all_work(self) -> None:
        failures: list[BaseException] = []

        async def work(number: int) -> None:
            async with self.engine() as db:
                await db.create_address(entry_of('x'), f'n{number}')

        def run(number: int) -> None:
            try:
                asyncio.run(work(number))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=[number]) for number in range(STARTERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)
        self.assertEqual(STARTERS, len(asyncio.run(self.found())))

    def test_an_engine_serves_one_loop_after_the_other(self) -> None:
        db = SQLAddressBookDB(SQLiteConnector(str(self.path), BUSY_TIMEOUT), quiet_logger())

        async def serve(name: str) -> int:
            await db.start()
            await db.create_address(entry_of('x'), name)
            count = await db.count_addresses()
            await db.stop()
            return count

        self.assertEqual([1, 2], [asyncio.run(serve(name)) for name in ('a', 'b')])


class UpgradeTests(SQLiteTestCase):

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60
        self.db = self.make_engine()

    def make_v1(self, names: list[str]) -> None:
        with self.other() as connection:
            for statement in V1:
                connection.execute(statement)
            connection.executemany('INSERT INTO addresses VALUES (?, ?)', [
                (name, json.dumps({'full_name': name})) for name in names])

    def version(self) -> int:
        [(version,)] = self.execute('SELECT version FROM addresses_schema')
        return int(version)

    async def test_a_new_store_has_the_newest_version(self) -> None:
        await self.db.start()
        self.assertEqual(len(MIGRATIONS), self.version())

    async def test_from_version_1_nothing_is_lost(self) -> None:
        names = [f'n{i:03}' for i in range(120)]
        self.make_v1(names)
        await self.db.start()
        self.assertEqual(len(MIGRATIONS), self.version())
        stored = [stored async for stored in self.db.read_all_addresses()]
        self.assertEqual([(name, UNVERSIONED, entry_of(name).to_json()) for name in names], stored)
        version = await self.db.update_address('n000', entry_of('new'), UNVERSIONED)
        self.assertEqual(version, (await self.db.read_address('n000')).version)
        await self.db.delete_address('n001', UNVERSIONED)

    async def test_from_every_version_nothing_is_lost(self) -> None:
        for version in range(1, len(MIGRATIONS) + 1):
            self.db = self.make_engine(self.folder / f'{version}.db')
            with mock.patch.object(sql_db, 'MIGRATIONS', MIGRATIONS[:version]):
                await self.db.start()
                await self.db.stop()
            self.execute("INSERT INTO addresses (nickname, document) VALUES ('a',"
                         " '{\"full_name\":\"a\"}')", path=self.folder / f'{version}.db')
            await self.db.start()
            with self.subTest(version=version):
                await self.assert_works({'a': 'a'})

    async def test_a_newer_store_is_refused_and_left_as_it_is(self) -> None:
        await self.db.start()
        await self.put('a')
        await self.db.stop()
        self.execute('UPDATE addresses_schema SET version = 99')
        line = await self.refused()
        self.assertIn('99', line)
        self.assertIn('addr-db', line)
        self.assertEqual(99, self.version())

    async def test_a_version_that_is_none_is_refused_in_one_line(self) -> None:
        for version in ("'x'", '1.5', "X'00'"):
            path = self.folder / f'{version[:2]}.db'
            self.execute(*V1, f'UPDATE addresses_schema SET version = {version}', path=path)
            with self.subTest(version=version):
                self.assertIn('addr-db', await self.refused(path))

    async def test_tables_of_another_program_are_refused_in_one_line(self) -> None:
        for number, tables in enumerate([
                ('CREATE TABLE addresses (x)',), ('CREATE TABLE addresses_schema (x)',),
                ('CREATE VIEW addresses AS SELECT 1',),
                (V1[0], 'CREATE TABLE addresses (x)', V1[2].replace('1)', '0)')),
                ('CREATE VIEW addresses_schema AS SELECT 1 AS id, 1 AS version',)]):
            path = self.folder / f'{number}.db'
            self.execute(*tables, path=path)
            with self.subTest(tables=tables):
                await self.refused_as_unusable(path)

    async def test_an_upgrade_is_all_or_nothing(self) -> None:
        self.make_v1(['a'])
        before = self.execute('SELECT sql FROM sqlite_schema ORDER BY name')
        broken = (*MIGRATIONS, ('CREATE TABLE extra (x {name})', 'CREATE TABLE extra (y {name})'))
        with mock.patch.object(sql_db, 'MIGRATIONS', broken):
            await self.refused_as_unusable()
        self.assertEqual(1, self.version())
        self.assertEqual(before, self.execute('SELECT sql FROM sqlite_schema ORDER BY name'))
        await self.db.start()
        await self.assert_works({'a': 'a'})

    async def test_an_upgrade_whose_commit_fails_has_not_happened(self) -> None:
        self.make_v1(['a'])
        with failing('COMMIT', sqlite3.SQLITE_FULL):
            await self.refused_as_unusable()
        self.assertEqual(1, self.version())
        await self.db.start()
        await self.assert_works({'a': 'a'})

    async def test_two_that_upgrade_at_once_do_it_once(self) -> None:
        self.make_v1(['a'])
        engines = [self.make_engine(timeout=DEADLINE) for _ in range(4)]
        await asyncio.gather(*[engine.start() for engine in engines])
        for self.db in engines:
            await self.assert_works({'a': 'a'})


class OtherProgramTests(SQLiteTestCase):

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        await self.put('before', 'past')

    def insert(self, nickname: str, document: str) -> None:
        """Both are expressions of SQL."""
        self.execute(f'INSERT INTO addresses (nickname, document) VALUES ({nickname}, {document})')

    async def test_what_another_program_writes_is_read_at_once(self) -> None:
        self.insert("'new'", "'{\"full_name\": \"new\"}'")
        self.assertEqual(('new', UNVERSIONED, entry_of('new').to_json()),
                         await self.db.read_address('new'))
        self.execute("DELETE FROM addresses WHERE nickname = 'past'")
        await self.assert_works({'before': 'before', 'new': 'new'})

    async def test_what_is_no_document_is_unreadable_and_the_listing_goes_on(self) -> None:
        for document in ("X'ff00'", "X''", "''", '5', '1.5', "'null'", 'zeroblob(100)',
                         "CAST(X'227b00ff' AS TEXT)", "char(0)", "'x' || char(0)",
                         "CAST(X'7B2266756C6C5F6E616D65223A22EDA08022007D' AS TEXT)"):
            self.insert("'odd'", document)
            self.logged.clear()
            with self.subTest(document=document):
                await self.assert_raises(UnreadableRecord, self.reads('odd')['read'])
                self.assertEqual({'before': 'before', 'past': 'past'}, await full_names(self.db))
                self.assertEqual(['ERROR'], [record.levelname for record in self.logged])
            await self.db.delete_address('odd')
        await self.assert_works({'before': 'before', 'past': 'past'})

    async def test_a_version_that_is_none_is_unreadable_and_can_be_replaced(self) -> None:
        for version in ("''", '5', "X'00'", "'x'", "CAST(X'ff' AS TEXT)"):
            self.insert("'odd'", "'{\"full_name\":\"x\"}'")
            self.execute(f"UPDATE addresses SET version = {version} WHERE nickname = 'odd'")
            with self.subTest(version=version):
                await self.assert_raises(UnreadableRecord, self.reads('odd')['read'])
                await self.db.update_address('odd', entry_of('x'))
                await self.db.delete_address('odd')

    async def test_a_name_that_no_entry_can_have_belongs_to_none(self) -> None:
        for name in ("''", "'a b'", "'a/b'", "'é'", "'a' || char(0)", "X'61'", "X'ff'", '5.5'):
            self.insert(name, "'{\"full_name\":\"x\"}'")
        with mock.patch.object(SQLAddressBookDB, 'page_size', 1):
            self.assertEqual({'before': 'before', 'past': 'past'}, await full_names(self.db))

    async def test_an_index_or_a_table_of_another_program_disturbs_nobody(self) -> None:
        self.execute('CREATE INDEX documents ON addresses (document)', 'CREATE TABLE own (x)')
        await self.assert_works({'before': 'before', 'past': 'past'})

    async def test_a_table_that_is_gone_is_made_anew_when_somebody_asks(self) -> None:
        self.execute('DROP TABLE addresses', 'DROP TABLE addresses_schema')
        with self.assertRaises(StorageError):
            await self.db.read_address('before')
        await self.assert_works({})


class FaultTests(SQLiteTestCase):

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        await self.put('a')

    async def assert_fails(self, error: type[StorageError], call: Call, words: str) -> None:
        failure = await self.assert_raises(error, call)
        self.assertIn(words, failure.cause)
        self.assertIn(str(self.path), failure.cause)
        self.assertIsInstance(failure.__cause__, sqlite3.Error)

    async def test_a_full_database_is_unavailable_until_there_is_room(self) -> None:
        [(pages,)] = self.file.writing.execute('PRAGMA page_count')
        self.file.writing.execute(f'PRAGMA max_page_count = {pages}')
        before = self.file
        big: list[Call] = [lambda: self.db.create_address(big_entry(), 'big'),
                           lambda: self.db.update_address('a', big_entry())]
        for call in big:
            await self.assert_fails(StorageUnavailable, call, 'SQLITE_FULL')
            await self.assert_works({'a': 'a'})
        self.assertIs(before, self.file, 'a full disk is no reason to open the file anew')
        self.file.writing.execute('PRAGMA max_page_count = 1000000')
        for call in big:
            await call()

    async def test_a_full_disk_does_not_keep_anybody_from_reading(self) -> None:
        with failing('COMMIT', sqlite3.SQLITE_FULL):
            for name, call in self.writes().items():
                with self.subTest(call=name):
                    await self.assert_fails(StorageUnavailable, call, 'injected')
            for call in self.reads().values():
                await call()
            self.assertEqual({'a': 'a'}, await full_names(self.db))
        await self.assert_works({'a': 'a'})

    @contextlib.contextmanager
    def no_file_larger_than(self, size: int) -> Iterator[None]:
        """The system refuses to write beyond, which SQLite takes for a failure of the disk."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    async def test_a_log_that_the_system_cuts_short_is_an_error_and_then_all_works(self) -> None:
        size = os.path.getsize(f'{self.path}-wal')
        for call in (lambda: self.db.create_address(big_entry(), 'big'),
                     lambda: self.db.update_address('a', big_entry())):
            with self.no_file_larger_than(size + 5000):
                await self.assert_fails(StorageError, call, 'SQLITE_IOERR')
            await self.assert_works({'a': 'a'})
        self.assertEqual([('ok',)], self.execute('PRAGMA integrity_check'))

    async def test_every_statement_that_fails_has_the_documented_error_and_then_all_works(
            self) -> None:
        kinds = {StorageUnavailable: ('BUSY', 'LOCKED', 'FULL', 'CANTOPEN', 'READONLY', 'NOMEM'),
                 StorageError: ('IOERR', 'CORRUPT', 'NOTADB', 'PERM', 'ERROR', 'INTERNAL')}
        reading = {'SELECT version, document': 'read', 'SELECT nickname': 'list',
                   'SELECT count': 'count'}
        writing = {(statement, call) for call, own in [('create', 'INSERT'), ('update', 'UPDATE'),
                                                       ('delete', 'DELETE')]
                   for statement in (own, 'BEGIN', 'COMMIT')}
        for error, names in kinds.items():
            for code in (getattr(sqlite3, f'SQLITE_{name}') for name in names):
                for statement, call in {*reading.items(), *writing}:
                    with self.subTest(statement=statement, code=code):
                        with failing(statement, code, times=2):
                            await self.assert_fails(error, self.calls()[call], 'injected')
                await self.assert_works({'a': 'a'})

    async def test_a_failure_that_may_pass_does_not_claim_that_a_change_was_made(self) -> None:
        with failing('COMMIT', sqlite3.SQLITE_FULL):
            error = await self.assert_raises(StorageUnavailable, self.writes()['create'])
        self.assertNotIn('not known', str(error))
        with failing('COMMIT', sqlite3.SQLITE_IOERR_FSYNC):
            error = await self.assert_raises(StorageError, self.writes()['create'])
        self.assertIn('not known', str(error))

    async def test_after_a_failure_of_the_disk_the_file_is_opened_anew_before_it_is_used(
            self) -> None:
        for statement, call in [('SELECT version, document', 'read'), ('SELECT count', 'count'),
                                ('COMMIT', 'update')]:
            before = self.file
            with self.subTest(statement=statement):
                with failing(statement, sqlite3.SQLITE_IOERR, times=1):
                    await self.assert_raises(StorageError, self.calls()[call])
                await self.db.count_addresses()
                self.assertIsNot(before, self.file)
        await self.assert_works({'a': 'a'})

    async def test_a_rollback_that_fails_too_leaves_the_next_one_a_file_that_works(self) -> None:
        with failing('COMMIT', sqlite3.SQLITE_IOERR, times=1):
            with failing_also('ROLLBACK', sqlite3.SQLITE_IOERR):
                await self.assert_raises(StorageError, self.writes()['update'])
        await self.assert_works({'a': 'a'})

    async def test_others_at_work_while_the_file_fails_have_an_answer_each(self) -> None:
        for code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT):
            for statement in ('SELECT version, document', 'SELECT count', 'BEGIN', 'COMMIT'):
                with failing(statement, code, times=3):
                    tasks = [asyncio.ensure_future(call()) for _ in range(10)
                             for name, call in self.calls().items() if name != 'delete']
                    await bounded(asyncio.wait(tasks))
                with self.subTest(statement=statement, code=code):
                    for task in tasks:
                        self.assertNotIsInstance(task.exception(), (
                            sqlite3.Error, AttributeError, AssertionError, RuntimeError))
        await self.db.ping()

    async def test_ping_fails_while_the_folder_does_not_let_us_write(self) -> None:
        # As root: only the answer of a read-only file system can be had.
        with mock.patch.object(os, 'access', lambda path, mode: not mode & os.W_OK):
            await self.assert_raises(StorageUnavailable, self.db.ping)
        await self.db.ping()

    async def test_ping_writes_nothing(self) -> None:
        size = os.path.getsize(f'{self.path}-wal')
        for _ in range(3):
            await self.db.ping()
        self.assertEqual(size, os.path.getsize(f'{self.path}-wal'))


@contextlib.contextmanager
def failing_also(start: str, code: int) -> Iterator[None]:
    """In addition to what fails already."""
    first = Faulty.fault
    with failing(start, code):
        second = Faulty.fault

        def fault(statement: str) -> int | None:
            return second(statement) if statement.startswith(start) else first(statement)

        with mock.patch.object(Faulty, 'fault', staticmethod(fault)):
            yield


if __name__ == '__main__':
    unittest.main()

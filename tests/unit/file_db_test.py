"""The file engine keeps what only files promise: names, modes, sharing, durability, faults."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.database import file_db
from addrservice.database.records import Key, Stored, encode_record, is_version, new_version
from addrservice.database.file_db import MAX_RECORD_SIZE, FileAddressBookDB
from addrservice.datamodel import (
    MAX_DIGITS, MAX_ITEMS, MAX_NAME, MAX_NUMBER, MAX_TEXT, Address, AddressEntry, AddressType,
    Email, Phone)
from addrservice.errors import (
    AddressChanged, AddressExists, AddressNotFound, ConfigError, StorageError,
    StorageUnavailable, UnreadableRecord)
from data import address_data_suite
from tests.support import quiet_logger, recording_logger

PATIENCE = 10.0
"""Seconds after which what should take moments counts as hanging."""

KILLS = 30

SHARED_NICKNAMES = [f'n{i:02}' for i in range(60)]

PASSING = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM]
DENIED = [errno.EROFS, errno.EACCES, errno.EPERM]
LASTING = [errno.EIO, *DENIED]

FOREIGN_FILES = ['README', 'x', 'x.json.json', 'a b.json', 'é.json', '.json', '.hidden.json',
                 'b.JSON', 'b.json.bak', 'a_b.json', 'x' * 65 + '.json', 'b.jsonx', 'bjson']

VERSION = '0123456789abcdef'

UNVERSIONED = [
    b'{"full_name":"Asha"}\n', b'{"full_name":"Asha"}', b'{"full_name": "Asha"}\r\n',
    b'{\n  "full_name": "Asha"\n}\n', b'\n\n{"full_name":\n\n"Asha"\n}\n\n',
    b'{\r\n\t"full_name": "Asha"\r\n}\r\n',
]

Call = Callable[[], Awaitable[object]]


def entry_of(full_name: str, items: int = 0) -> AddressEntry:
    """An entry; 50 items make about 20 kB of it."""
    place = {'kind': 'home', 'street_name': 's' * 200, 'country': 'c' * 200, 'pincode': 1}
    return AddressEntry.from_api_dm({'full_name': full_name, 'addresses': [place] * items})


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def fails(number: int) -> Callable[..., Any]:
    """A system call that does nothing but fail."""
    def call(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), *map(str, args[:1]))
    return call


@contextlib.contextmanager
def broken(name: str, replacement: Callable[..., Any],
           condition: Callable[..., bool] = lambda *_: True) -> Iterator[None]:
    """Replaces a function of `os` for the calls whose arguments meet a condition."""
    real = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (replacement if condition(*args) else real)(*args, **kwargs)

    with mock.patch.object(os, name, call):
        yield


def is_temporary(path: object, *_: object) -> bool:
    return '.tmp-' in str(path)


class FileEngineTestCase(unittest.IsolatedAsyncioTestCase):
    """A folder, an engine on it, and a view of the folder."""

    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.parent = Path(parent.name)
        self.folder = self.parent / 'entries'
        self.logger, self.logged = recording_logger()

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        self.db = await self.start_engine()

    async def start_engine(self) -> FileAddressBookDB:
        engine = FileAddressBookDB(str(self.folder), self.logger)
        self.addAsyncCleanup(engine.stop)
        await engine.start()
        return engine

    def path(self, nickname: str) -> Path:
        return self.folder / f'{nickname}.json'

    def names(self) -> list[str]:
        """All that lies in the folder, but for the marks of those who use it."""
        return sorted(name for name in os.listdir(self.folder)
                      if is_temporary(name) or not name.startswith('.'))

    def lines(self, nickname: str) -> list[str]:
        """A file's lines, each of them ended."""
        *lines, rest = self.path(nickname).read_bytes().decode().split('\n')
        self.assertEqual('', rest)
        return lines

    async def version(self, nickname: str = 'a') -> str:
        return (await self.db.read_address(nickname)).version

    async def full_names(self, db: FileAddressBookDB | None = None) -> dict[str, str]:
        return {stored.nickname: stored.entry.full_name
                async for stored in (db or self.db).read_all_addresses()}

    def calls(self, nickname: str = 'a') -> dict[str, Call]:
        """Every call that touches the folder; creating uses another name."""
        return {
            'ping': self.db.ping,
            'create': lambda: self.db.create_address(entry_of('new'), f'{nickname}-new'),
            'read': lambda: self.db.read_address(nickname),
            'list': self.full_names,
            'count': self.db.count_addresses,
            'update': lambda: self.db.update_address(nickname, entry_of('new')),
            'delete': lambda: self.db.delete_address(nickname),
        }

    def worker(self, task: Callable[..., object], *arguments: str) -> subprocess.Popen[str]:
        """Starts one of `TASKS` in a process of its own, which ends with the test."""
        process = subprocess.Popen(
            [sys.executable, __file__, 'work', task.__name__, str(self.folder), *arguments],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    @staticmethod
    async def line_of(process: subprocess.Popen[str]) -> str:
        """The next line that a worker says; nothing if it has ended."""
        assert process.stdout is not None
        return (await asyncio.to_thread(process.stdout.readline)).rstrip('\n')

    @staticmethod
    def tell(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f'{line}\n')
        process.stdin.flush()


class LayoutTests(FileEngineTestCase):

    async def test_an_entry_is_a_line_of_json_and_its_version_in_a_file_named_after_it(
            self) -> None:
        for name, document in address_data_suite().items():
            entry = AddressEntry.from_api_dm(document)
            key = await self.db.create_address(entry, name)
            self.assertEqual([encode_record(entry), key.version], self.lines(name))
            self.assertEqual(document, json.loads(self.lines(name)[0]))
            version = await self.db.update_address(name, entry)
            self.assertEqual([encode_record(entry), version], self.lines(name))
        self.assertEqual([f'{name}.json' for name in address_data_suite()], self.names())

    async def test_folder_and_files_are_for_their_owner_only_whatever_the_umask(self) -> None:
        await self.db.stop()
        shutil.rmtree(self.folder)
        self.addCleanup(os.umask, os.umask(0))
        self.db = await self.start_engine()
        await self.db.create_address(entry_of('x'), 'created')
        await self.db.create_address(entry_of('x'), 'updated')
        await self.db.update_address('updated', entry_of('y'))
        self.assertEqual(0o700, stat.S_IMODE(self.folder.stat().st_mode))
        for file in self.folder.iterdir():
            self.assertEqual(0o600, stat.S_IMODE(file.stat().st_mode), file)

    async def test_a_folder_that_is_there_keeps_its_mode(self) -> None:
        self.folder.chmod(0o750)
        await self.db.stop()
        await self.start_engine()
        self.assertEqual(0o750, stat.S_IMODE(self.folder.stat().st_mode))

    async def test_missing_parents_are_made_and_for_their_owner_only(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        self.folder = self.parent / 'x' / 'y' / 'z'
        await self.start_engine()
        for folder in (self.folder, *self.folder.parents[:2]):
            self.assertEqual(0o700, stat.S_IMODE(folder.stat().st_mode), folder)

    async def test_to_read_an_entry_is_no_matter_of_waiting_however_many_writes_wait(self) -> None:
        await self.db.create_address(entry_of('x'), 'a')
        folder = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        writes = [asyncio.create_task(self.db.update_address('a', entry_of(f'{i}')))
                  for i in range(3 * file_db.THREADS)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(file_db.LOCK_TIMEOUT / 2):
            self.assertEqual('x', (await self.db.read_address('a')).entry.full_name)
        self.assertFalse(any(write.done() for write in writes))
        fcntl.flock(folder, fcntl.LOCK_UN)
        await asyncio.gather(*writes)

    async def test_foreign_files_are_ignored_and_left_alone(self) -> None:
        for name in FOREIGN_FILES:
            (self.folder / name).write_text('{"full_name":"foreign"}')
        (self.folder / os.fsdecode(b'\xff.json')).write_text('{"full_name":"foreign"}')
        (self.folder / 'folder').mkdir()
        before = self.names()
        self.assertEqual(0, await self.db.count_addresses())
        await self.db.create_address(entry_of('x'), 'x')
        self.assertEqual({'x': 'x'}, await self.full_names())
        self.assertEqual(1, await self.db.count_addresses())
        await self.db.delete_address('x')
        await self.db.stop()
        await self.db.start()
        self.assertEqual({}, await self.full_names())
        self.assertEqual(before, self.names())
        self.assertEqual([], self.logged)

    async def test_no_nickname_leads_out_of_the_folder(self) -> None:
        outside = self.parent / 'outside.json'
        outside.write_text('{"full_name":"outside"}')
        for name in ('../outside', str(outside).removesuffix('.json'), './../outside'):
            with self.subTest(nickname=name):
                for call in (self.db.read_address(name), self.db.delete_address(name),
                             self.db.update_address(name, entry_of('x'))):
                    with self.assertRaises(AddressNotFound):
                        await call
                with self.assertRaises(ValueError):
                    await self.db.create_address(entry_of('x'), name)
        self.assertEqual('{"full_name":"outside"}', outside.read_text())

    async def test_a_listing_of_several_batches_of_names_has_every_entry_once(self) -> None:
        names = [f'n{i:02}' for i in range(50)]
        for batch in (1, 7, 25, 50):
            for name in names:
                self.path(name).write_text('{"full_name":"x"}')
            with self.subTest(batch=batch), mock.patch.object(file_db, 'NAMES_AT_ONCE', batch):
                with mock.patch.object(os, 'scandir', wraps=os.scandir) as scandir:
                    self.assertEqual(names, list(await self.full_names()))
                self.assertGreaterEqual(scandir.call_count, 50 / batch)
                seen = []
                async for stored in self.db.read_all_addresses():
                    seen.append(stored.nickname)
                    if stored.nickname[-1] in '369':  # among them the ends of batches
                        await self.db.delete_address(stored.nickname)
                self.assertEqual(names, seen)

    async def test_a_listing_reads_no_more_than_a_limit_needs(self) -> None:
        for i in range(50):
            self.path(f'n{i:02}').write_text('damaged' if i >= 5 else '{"full_name":"x"}')
        names = [stored.nickname async for stored in self.db.read_all_addresses(limit=5)]
        self.assertEqual([f'n{i:02}' for i in range(5)], names)
        self.assertEqual([], self.logged)


class VersionTests(FileEngineTestCase):
    """Which version a file has that this engine did not write."""

    async def read(self, content: bytes, nickname: str = 'a') -> Stored:
        """The entry in a file with that content."""
        self.path(nickname).write_bytes(content)
        return await self.db.read_address(nickname)

    async def assert_damaged(self, content: bytes) -> None:
        """It cannot be read, no version of it changed, and it can still be mended."""
        with self.subTest(content=content):
            with self.assertRaises(UnreadableRecord):
                await self.read(content)
            for version in (VERSION, new_version(), ''):
                with self.assertRaises(AddressChanged):
                    await self.db.update_address('a', entry_of('x'), version)
            self.assertEqual(content, self.path('a').read_bytes())
            await self.mend()

    async def mend(self) -> None:
        version = await self.db.update_address('a', entry_of('mended'))
        self.assertEqual([encode_record(entry_of('mended')), version], self.lines('a'))

    async def test_a_file_without_a_version_has_one_that_stays_until_it_changes(self) -> None:
        for content in UNVERSIONED:
            with self.subTest(content=content):
                stored = await self.read(content)
                self.assertEqual('Asha', stored.entry.full_name)
                self.assertTrue(is_version(stored.version))
                self.assertEqual(stored, await self.db.read_address('a'))
                self.assertEqual([stored], [s async for s in self.db.read_all_addresses()])
                other = await self.start_engine()
                self.assertEqual(stored, await other.read_address('a'))
                self.assertEqual(content, self.path('a').read_bytes())

    async def test_a_file_without_a_version_has_another_after_any_edit(self) -> None:
        versions = [(await self.read(content)).version for content in UNVERSIONED]
        versions.append((await self.read(b'{"full_name":"Usha"}\n')).version)
        self.assertEqual(len(UNVERSIONED) + 1, len(set(versions)))

    async def test_a_file_without_a_version_is_changed_if_its_version_is_the_expected(
            self) -> None:
        for content in UNVERSIONED:
            with self.subTest(content=content):
                version = (await self.read(content)).version
                updated = await self.db.update_address('a', entry_of('x'), version)
                self.assertNotEqual(version, updated)
                self.assertEqual([encode_record(entry_of('x')), updated], self.lines('a'))
                with self.assertRaises(AddressChanged):
                    await self.db.delete_address('a', version)
                version = (await self.read(content)).version
                await self.db.delete_address('a', version)
                self.assertEqual([], self.names())

    async def test_an_edit_by_hand_is_not_overwritten_by_who_has_not_seen_it(self) -> None:
        version = (await self.read(b'{"full_name":"Asha"}')).version
        edited = await self.read(b'{"full_name":"Usha"}')
        for call in (self.db.update_address('a', entry_of('x'), version),
                     self.db.delete_address('a', version)):
            with self.assertRaises(AddressChanged):
                await call
        self.assertEqual(edited, await self.db.read_address('a'))

    async def test_a_version_that_somebody_took_out_by_hand_is_over(self) -> None:
        version = (await self.db.create_address(entry_of('x'), 'a')).version
        stored = await self.read(self.lines('a')[0].encode())
        self.assertEqual('x', stored.entry.full_name)
        self.assertNotEqual(version, stored.version)
        with self.assertRaises(AddressChanged):
            await self.db.update_address('a', entry_of('y'), version)

    async def test_a_version_in_the_last_line_is_the_version_however_the_entry_is_laid_out(
            self) -> None:
        for text in UNVERSIONED:
            for end in (b'', b'\n'):
                with self.subTest(text=text, end=end):
                    content = b'%s\n%s%s' % (text, VERSION.encode(), end)
                    stored = await self.read(content)
                    self.assertEqual((VERSION, 'Asha'), (stored.version, stored.entry.full_name))
                    await self.db.update_address('a', entry_of('x'), VERSION)

    async def test_a_last_line_that_is_neither_entry_nor_version_makes_a_record_damaged(
            self) -> None:
        for line in [b'x', b'0', VERSION[:-1].encode(), f'{VERSION}0'.encode(),
                     VERSION.upper().encode(), f' {VERSION}'.encode(), f'"{VERSION}"'.encode(),
                     b'\xff' * 16, '\u0660'.encode() * 16, b'\0' * 16, b'{}']:
            for end in (b'', b'\n'):
                await self.assert_damaged(b'{"full_name":"Asha"}\n%s%s' % (line, end))

    async def test_two_versions_make_a_record_damaged(self) -> None:
        self.path('a').write_text(f'{{"full_name":"Asha"}}\n{new_version()}\n{VERSION}\n')
        with self.assertRaises(UnreadableRecord):
            await self.db.read_address('a')
        await self.db.update_address('a', entry_of('x'), VERSION)
        self.assertEqual({'a': 'x'}, await self.full_names())

    async def test_a_version_without_an_entry_is_a_damaged_record_that_has_that_version(
            self) -> None:
        for content in (VERSION, f'{VERSION}\n', f'\n{VERSION}\n', f'damaged\n{VERSION}\n'):
            with self.subTest(content=content):
                with self.assertRaises(UnreadableRecord):
                    await self.read(content.encode())
                for version in (new_version(), ''):
                    with self.assertRaises(AddressChanged):
                        await self.db.update_address('a', entry_of('x'), version)
                self.assertEqual(content, self.path('a').read_text())
                await self.db.update_address('a', entry_of('x'), VERSION)
                self.assertEqual({'a': 'x'}, await self.full_names())

    async def test_a_file_of_two_lines_that_end_as_on_windows_has_the_version_in_it(self) -> None:
        stored = await self.read(b'{"full_name":"Asha"}\r\n%s\r\n' % VERSION.encode())
        self.assertEqual((VERSION, 'Asha'), (stored.version, stored.entry.full_name))

    async def test_a_damaged_file_without_a_version_can_be_mended_and_deleted(self) -> None:
        for content in (b'', b'\n', b'\0' * 100, b'damaged', b'[]', b'\xff', b'{"full_name":"x"',
                        b'{"full_name":"x\xff"}', b'\xef\xbb\xbf{"full_name":"x"}'):
            await self.assert_damaged(content)
            self.path('a').write_bytes(content)
            await self.db.delete_address('a')
            self.assertEqual([], self.names())


class DurabilityTests(FileEngineTestCase):

    async def steps_of(self, call: Call) -> list[tuple[str, object]]:
        """Which files went to the disk at which size, and when a name changed."""
        steps: list[tuple[str, object]] = []
        real = {name: getattr(os, name) for name in ('fsync', 'link', 'replace', 'unlink')}

        def fsync(descriptor: int) -> None:
            size = None if is_folder(descriptor) else os.fstat(descriptor).st_size
            steps.append(('fsync', size))
            real['fsync'](descriptor)

        def renaming(name: str) -> Callable[..., None]:
            def call(*args: Any, **kwargs: Any) -> None:
                if not (name == 'unlink' and is_temporary(args[0])):
                    steps.append((name, Path(args[-1]).name))
                real[name](*args, **kwargs)
            return call

        with mock.patch.multiple(os, fsync=fsync, link=renaming('link'),
                                 replace=renaming('replace'), unlink=renaming('unlink')):
            await call()
        return steps

    async def test_file_and_folder_are_on_the_disk_before_a_write_is_acknowledged(self) -> None:
        folder = ('fsync', None)
        for items in (0, 50):  # less and more than what is written at once
            entry = entry_of('Asha', items)
            file = ('fsync', len(f'{encode_record(entry)}\n{new_version()}\n'))
            self.assertEqual([file, ('link', 'a.json'), folder],
                             await self.steps_of(lambda: self.db.create_address(entry, 'a')))
            self.assertEqual([file, ('replace', 'a.json'), folder],
                             await self.steps_of(lambda: self.db.update_address('a', entry)))
            version = await self.version()
            self.assertEqual(
                [file, ('replace', 'a.json'), folder],
                await self.steps_of(lambda: self.db.update_address('a', entry, version)))
            self.assertEqual([('unlink', 'a.json'), folder],
                             await self.steps_of(lambda: self.db.delete_address('a')))

    async def test_a_change_that_is_refused_changes_no_name(self) -> None:
        await self.db.create_address(entry_of('x'), 'a')
        before = self.path('a').stat().st_ino

        async def change() -> None:
            with self.assertRaises(AddressChanged):
                await self.db.update_address('a', entry_of('y'), new_version())
            with self.assertRaises(AddressChanged):
                await self.db.delete_address('a', new_version())

        steps = await self.steps_of(change)
        self.assertLessEqual({name for name, _ in steps}, {'fsync'})
        self.assertEqual(before, self.path('a').stat().st_ino)
        self.assertEqual(['a.json'], self.names())

    async def test_after_each_of_many_kills_all_that_was_acknowledged_is_there(self) -> None:
        await self.db.stop()
        chance = random.Random(1)
        zygote = self.worker(be_killed)
        known: dict[str, str] = {}
        acknowledged = 0
        for turn in range(KILLS):
            self.tell(zygote, f'{turn} {chance.uniform(0, 0.1)}')
            changes = json.loads(await self.line_of(zygote))
            acknowledged += sum(1 for change in changes if change[2] == 'done')
            known = await self.check_after_kill(known, changes)
        self.assertGreater(acknowledged, 0)

    async def check_after_kill(self, before: dict[str, str], changes: list[list[str]]
                               ) -> dict[str, str]:
        """Compares what is there with what may be there.

        :param before: nickname -> full name before the process started.
        :param changes: nickname, full name it gets (none: it is deleted), and 'begun' or 'done'.
        :return: what is there.
        """
        allowed: dict[str, set[str | None]] = {name: {text} for name, text in before.items()}
        for nickname, full_name, state in changes:
            # Until a call returns, both its outcomes are fine.
            before_it = allowed.get(nickname, {None}) if state == 'begun' else set()
            allowed[nickname] = {full_name or None} | before_it
        await self.db.start()
        found = await self.full_names()
        await self.db.stop()
        for nickname in {*allowed, *found}:
            self.assertIn(found.get(nickname), allowed.get(nickname, {None}), nickname)
        self.assertEqual([], self.logged)  # every file is whole
        for nickname in found:
            self.assertTrue(is_version(self.lines(nickname)[1]))
        self.assertEqual([f'{nickname}.json' for nickname in sorted(found)], self.names())
        return found

    async def test_a_cancelled_create_happens_whole_or_not_at_all(self) -> None:
        with Held('fsync') as held:
            call = asyncio.create_task(self.db.create_address(entry_of('x'), 'a'))
            await held.reached()
            call.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await call
        await self.db.stop()
        self.assertIn(self.names(), ([], ['a.json']))
        await self.db.start()
        self.assertIn(await self.full_names(), ({}, {'a': 'x'}))
        self.assertEqual([], self.logged)


class Held:
    """Holds every call of a function of `os`, in whatever thread, until the block ends."""

    def __init__(self, name: str, condition: Callable[..., bool] = lambda *_: True) -> None:
        self._reached = threading.Event()
        self._release = threading.Event()
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if condition(*args):
                self._reached.set()
                if not self._release.wait(PATIENCE):
                    raise AssertionError(f'nobody could release os.{name}')
            return real(*args, **kwargs)

        self._patch = mock.patch.object(os, name, call)

    def __enter__(self) -> Held:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._patch.stop()

    def release(self) -> None:
        """Lets these calls go on, and those that come."""
        self._release.set()

    async def reached(self) -> None:
        """Returns when a call is being held. On a blocked event loop it never does."""
        if not await asyncio.to_thread(self._reached.wait, PATIENCE):
            raise AssertionError('nothing called it')


class EventLoopTests(FileEngineTestCase):

    async def test_no_call_keeps_the_event_loop_from_going_on(self) -> None:
        self.path('a').write_text('{"full_name":"x"}')
        for name, function in [('ping', 'access'), ('create', 'open'), ('read', 'open'),
                               ('list', 'scandir'), ('list', 'open'), ('count', 'scandir'),
                               ('update', 'open'), ('delete', 'open')]:
            with self.subTest(call=name, function=function), Held(function) as held:
                task = asyncio.ensure_future(self.calls()[name]())
                await held.reached()
                self.assertFalse(task.done())
                held.release()
                await task

    async def test_starting_and_stopping_do_not_block_it_either(self) -> None:
        other = FileAddressBookDB(str(self.folder), self.logger)
        self.addAsyncCleanup(other.stop)
        with Held('link') as held:
            start = asyncio.create_task(other.start())
            await held.reached()
            self.assertFalse(start.done())
        await start
        with Held('fsync') as held:
            create = asyncio.create_task(other.create_address(entry_of('x'), 'a'))
            await held.reached()
            stop = asyncio.create_task(other.stop())
            for _ in range(10):
                await asyncio.sleep(0.001)
            self.assertFalse(stop.done(), 'stop waits for what is under way')
        await asyncio.gather(create, stop)
        self.assertEqual({'a': 'x'}, await self.full_names())


class SharingTests(FileEngineTestCase):

    async def test_of_creates_through_several_engines_one_wins(self) -> None:
        engines = [self.db, await self.start_engine(), await self.start_engine()]
        for turn in range(5):
            results = await asyncio.gather(*[
                engine.create_address(entry_of(f'{i}'), f'n{turn}')
                for i, engine in enumerate(engines * 3)], return_exceptions=True)
            losers = [isinstance(result, AddressExists) for result in results]
            self.assertEqual(8, sum(losers))
            self.assertEqual(f'{losers.index(False)}',
                             (await self.db.read_address(f'n{turn}')).entry.full_name)

    async def test_of_creates_by_several_processes_one_wins_each_nickname(self) -> None:
        workers = {name: self.worker(create_shared, name) for name in ('one', 'two', 'three')}
        for worker in workers.values():
            self.assertEqual('ready', await self.line_of(worker))
        for worker in workers.values():
            self.tell(worker, 'go')
        winners: dict[str, str] = {}
        for name, worker in workers.items():
            for nickname in json.loads(await self.line_of(worker)):
                self.assertNotIn(nickname, winners, 'created twice')
                winners[nickname] = name
        self.assertEqual(sorted(SHARED_NICKNAMES), sorted(winners))
        self.assertEqual(winners, await self.full_names())

    async def test_of_many_processes_that_count_up_one_number_none_loses_any(self) -> None:
        await self.db.create_address(entry_of('0'), 'a')
        workers = [self.worker(count_up, 'a', '20') for _ in range(3)]
        for worker in workers:
            self.assertEqual('ready', await self.line_of(worker))
        for worker in workers:
            self.tell(worker, 'go')
        versions = [version for worker in workers
                    for version in json.loads(await self.line_of(worker))]
        self.assertEqual(60, len(set(versions)))
        self.assertEqual({'a': '60'}, await self.full_names())
        self.assertIn(await self.version(), versions)

    async def test_a_version_is_compared_and_replaced_at_one_moment(self) -> None:
        other = await self.start_engine()
        seconds: list[Callable[[str], Awaitable[object]]] = [
            lambda version: other.update_address('a', entry_of('second'), version),
            lambda version: other.delete_address('a', version)]
        for second in seconds:
            version = (await self.db.create_address(entry_of('x'), 'a')).version
            with Held('replace') as held:
                first = asyncio.create_task(self.db.update_address('a', entry_of('y'), version))
                await held.reached()
                refused = asyncio.ensure_future(second(version))
                await asyncio.wait([refused], timeout=0.1)
            with self.assertRaises(AddressChanged):
                await refused
            self.assertEqual(Stored('a', await first, entry_of('y').to_json()),
                             await self.db.read_address('a'))
            await self.db.delete_address('a')

    async def test_an_update_of_a_version_that_a_delete_takes_away_does_not_find_it(self) -> None:
        other = await self.start_engine()
        version = (await self.db.create_address(entry_of('x'), 'a')).version
        with Held('unlink', lambda path: not is_temporary(path)) as held:
            delete = asyncio.create_task(self.db.delete_address('a', version))
            await held.reached()
            update = asyncio.create_task(other.update_address('a', entry_of('y'), version))
            await asyncio.wait([update], timeout=0.1)
        await delete
        with self.assertRaises(AddressNotFound):
            await update
        self.assertEqual([], self.names())

    async def test_what_one_engine_writes_the_others_see_at_once(self) -> None:
        other = await self.start_engine()
        await other.create_address(entry_of('x'), 'a')
        self.assertEqual('x', (await self.db.read_address('a')).entry.full_name)
        await self.db.update_address('a', entry_of('y'))
        self.assertEqual({'a': 'y'}, await self.full_names(other))
        await other.delete_address('a')
        self.assertEqual({}, await self.full_names())

    async def test_an_update_in_the_middle_of_which_another_engine_deletes_brings_nothing_back(
            self) -> None:
        other = await self.start_engine()
        await self.db.create_address(entry_of('x'), 'a')
        with Held('replace') as held:
            update = asyncio.create_task(self.db.update_address('a', entry_of('y')))
            await held.reached()
            delete = asyncio.create_task(other.delete_address('a'))
            await asyncio.wait([delete], timeout=0.2)
        await asyncio.gather(update, delete)
        self.assertEqual([], self.names())

    async def test_a_delete_by_one_process_and_updates_by_another_leave_nothing(self) -> None:
        for nickname in SHARED_NICKNAMES:
            self.path(nickname).write_text('{"full_name":"x"}')
        worker = self.worker(update_until_told)
        self.assertEqual('ready', await self.line_of(worker))
        await asyncio.gather(*map(self.db.delete_address, SHARED_NICKNAMES))
        self.tell(worker, 'stop')
        self.assertGreater(json.loads(await self.line_of(worker)), 0)
        self.assertEqual([], self.names())

    async def test_a_listing_misses_nothing_while_others_replace_entries(self) -> None:
        # Where the file system keeps its names in order of age, as tmpfs does, a file that is
        # replaced moves to the front, behind the back of whoever reads the folder.
        self.folder = self.folder_in_memory()
        self.db, other = await self.start_engine(), await self.start_engine()
        loop, names = asyncio.get_running_loop(), [f'n{i:04}' for i in range(2000)]
        for name in names:
            self.path(name).write_text('{"full_name":"x"}')

        async def update_some() -> None:
            for name in names[::50]:
                await other.update_address(name, entry_of('y'))

        @contextlib.contextmanager
        def scandir(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
            with real(path) as files:
                yield itertools.chain([next(files)], scan_the_rest(files))

        def scan_the_rest(files: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
            updates.append(asyncio.run_coroutine_threadsafe(update_some(), loop))
            with contextlib.suppress(TimeoutError):  # they may have to wait for us
                updates[0].result(0.5)
            yield from files

        real, updates = os.scandir, list[Future[None]]()
        with broken('scandir', scandir, lambda *_: not updates):
            found = list(await self.full_names())
        await asyncio.wrap_future(updates[0])
        self.assertEqual([], sorted(set(names) - set(found)), 'missed')
        self.assertEqual(names, found)

    def folder_in_memory(self) -> Path:
        """A folder on tmpfs, or anywhere if there is none."""
        memory = '/dev/shm'
        base = memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None
        folder = tempfile.mkdtemp(dir=base)
        self.addCleanup(shutil.rmtree, folder)
        return Path(folder)

    async def test_a_lock_that_another_process_keeps_for_too_long_makes_writes_unavailable(
            self) -> None:
        for name in ('a', 'b'):
            await self.db.create_address(entry_of('x'), name)
        worker = self.worker(stop_within_update, 'b')
        self.assertEqual('holding', await self.line_of(worker))
        with mock.patch.object(file_db, 'LOCK_TIMEOUT', 0.05):
            for call in (self.calls()['update'], self.calls()['delete']):
                with self.assertRaises(StorageUnavailable):
                    await asyncio.wait_for(asyncio.ensure_future(call()), PATIENCE)
        self.assertEqual('x', (await self.db.read_address('a')).entry.full_name)
        await self.db.create_address(entry_of('x'), 'c')
        self.end(worker)
        await self.db.update_address('a', entry_of('y'))
        self.assertEqual({'a': 'y', 'b': 'x', 'c': 'x'}, await self.full_names())

    async def test_listings_without_end_do_not_keep_a_write_waiting(self) -> None:
        await self.db.create_address(entry_of('x'), 'a')
        other = await self.start_engine()

        async def list_on() -> None:
            while True:
                await self.full_names(other)

        def scan_slowly(*args: Any) -> Any:
            time.sleep(0.02)
            return real(*args)

        real = os.scandir
        with broken('scandir', scan_slowly), mock.patch.object(file_db, 'LOCK_TIMEOUT', 1.0):
            listings = [asyncio.create_task(list_on()) for _ in range(4)]
            try:
                for i in range(5):
                    await self.db.update_address('a', entry_of(f'{i}'))
            finally:
                for listing in listings:
                    listing.cancel()
                results = await asyncio.gather(*listings, return_exceptions=True)
        self.assertEqual([asyncio.CancelledError] * 4, list(map(type, results)))

    async def test_a_write_waits_for_a_lock_that_is_kept_for_a_moment(self) -> None:
        await self.db.create_address(entry_of('x'), 'a')
        other = await self.start_engine()
        with Held('replace') as held:
            first = asyncio.create_task(self.db.update_address('a', entry_of('first')))
            await held.reached()
            second = asyncio.create_task(other.delete_address('a'))
            await asyncio.wait([second], timeout=0.1)
            self.assertFalse(second.done())
        await asyncio.gather(first, second)


class LeftoverTests(FileEngineTestCase):

    def leave(self, name: str, age: float = 0) -> Path:
        """A file as a killed process leaves it, so many seconds ago."""
        path = self.folder / name
        path.write_text('{"full_name":"left over"}')
        os.utime(path, (time.time() - age,) * 2)
        return path

    async def test_leftovers_are_never_shown(self) -> None:
        for name in ('.tmp-x', '.tmp-x.json', '.tmp-0123.json'):
            self.leave(name)
            with self.assertRaises(AddressNotFound):
                await self.db.read_address(name.removesuffix('.json'))
        self.assertEqual({}, await self.full_names())

    async def test_start_removes_leftovers_of_any_age_when_nobody_else_uses_the_folder(
            self) -> None:
        await self.db.create_address(entry_of('x'), 'a')
        await self.db.stop()
        for age in (-5000, 0, 10, 100_000):
            self.leave(f'.tmp-{age}', age)
        await self.db.start()
        self.assertEqual(['a.json'], self.names())

    async def test_a_second_engine_leaves_the_files_of_a_living_one_unless_they_are_old(
            self) -> None:
        self.leave('.tmp-young', file_db.LEFTOVER_AGE - 60)
        self.leave('.tmp-old', file_db.LEFTOVER_AGE + 60)
        second = await self.start_engine()
        self.assertEqual(['.tmp-young'], self.names())
        await self.db.stop()
        await self.start_engine()
        self.assertEqual(['.tmp-young'], self.names(), 'the second one lives')
        for engine in (second, self.db):
            await engine.stop()

    async def test_the_files_of_a_living_process_stay_and_those_of_a_dead_one_go(self) -> None:
        await self.db.create_address(entry_of('x'), 'b')
        await self.db.stop()
        worker = self.worker(stop_within_update, 'b')
        self.assertEqual('holding', await self.line_of(worker))
        await self.db.start()
        self.assertEqual(2, len(self.names()))
        await self.db.stop()
        self.end(worker)
        await self.db.start()
        self.assertEqual(['b.json'], self.names())
        self.assertEqual({'b': 'x'}, await self.full_names())

    async def test_a_write_that_goes_on_while_another_engine_starts_is_not_disturbed(self) -> None:
        with Held('link', lambda _, target: str(target).endswith('a.json')) as held:
            create = asyncio.create_task(self.db.create_address(entry_of('x'), 'a'))
            await held.reached()
            other = await self.start_engine()
        await create
        self.assertEqual({'a': 'x'}, await self.full_names(other))


class FaultTests(FileEngineTestCase):

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        for name in ('a', 'b'):
            await self.db.create_address(entry_of(name), name)

    async def assert_fails(self, call: Call, error: type[StorageError]) -> StorageError:
        """It raises just that, says nothing to the client that is not for him, and leaves
        all as it was."""
        with self.assertRaises(StorageError) as raised:
            await call()
        self.assertIs(error, type(raised.exception))
        self.assertNotIn('/', str(raised.exception))
        self.assertIsInstance(raised.exception.__cause__, OSError)
        self.assertEqual(['a.json', 'b.json'], self.names())
        for name in ('a', 'b'):
            self.assertEqual({'full_name': name, 'addresses': []},
                             json.loads(self.lines(name)[0]))
        return raised.exception

    async def assert_works(self) -> None:
        """All that had failed works now; afterwards all is as before."""
        await self.db.ping()
        await self.db.create_address(entry_of('x'), 'a-new')
        await self.db.update_address('a', entry_of('y'))
        self.assertEqual({'a': 'y', 'a-new': 'x', 'b': 'b'}, await self.full_names())
        await self.db.delete_address('a-new')
        await self.db.update_address('a', entry_of('a'))

    async def test_a_failing_system_call_changes_nothing_and_has_the_documented_error(
            self) -> None:
        for call, function in [
                ('create', 'open'), ('create', 'fsync'), ('create', 'link'),
                ('update', 'open'), ('update', 'fsync'), ('update', 'replace'),
                ('delete', 'open'), ('delete', 'unlink'), ('list', 'scandir'),
                ('count', 'open'), ('count', 'scandir')]:
            for number in PASSING + LASTING:
                error = StorageUnavailable if number in PASSING + DENIED else StorageError
                with self.subTest(call=call, function=function, error=os.strerror(number)):
                    with broken(function, fails(number)):
                        # Of the fsyncs the file's comes first; the folder's is next.
                        failure = await self.assert_fails(self.calls()[call], error)
                    self.assertIn(os.strerror(number), failure.cause)
        await self.assert_works()

    async def test_a_change_of_a_version_that_cannot_be_compared_is_not_made(self) -> None:
        version = await self.version()
        for call in (lambda: self.db.update_address('a', entry_of('new'), version),
                     lambda: self.db.delete_address('a', version)):
            for number in PASSING + LASTING:
                error = StorageUnavailable if number in PASSING else UnreadableRecord
                with self.subTest(error=os.strerror(number)):
                    with broken('open', fails(number), lambda path, *_: 'a.json' in str(path)):
                        await self.assert_fails(call, error)
        self.assertEqual(version, await self.version())

    async def test_a_create_whose_folder_cannot_be_synced_leaves_no_file(self) -> None:
        for number in PASSING + LASTING:
            error = StorageUnavailable if number in PASSING + DENIED else StorageError
            with self.subTest(error=os.strerror(number)):
                with broken('fsync', fails(number), is_folder):
                    await self.assert_fails(self.calls()['create'], error)
        await self.assert_works()

    async def test_a_change_whose_folder_cannot_be_synced_says_that_it_was_made(self) -> None:
        with broken('fsync', fails(errno.EIO), is_folder):
            for call in ('update', 'delete'):
                with self.subTest(call=call), self.assertRaises(StorageError) as raised:
                    await self.calls()[call]()
                self.assertIn('was made', str(raised.exception))
                self.assertIn(os.strerror(errno.EIO), raised.exception.cause)
                self.assertEqual({'update': 'new'}.get(call), (await self.full_names()).get('a'))
        self.assertEqual(['b.json'], self.names())
        await self.db.create_address(entry_of('a'), 'a')
        await self.assert_works()

    async def test_a_failed_create_takes_nothing_away_that_another_was_promised(self) -> None:
        # Between the link and the failure the entry can be seen, and replaced.
        other, loop = await self.start_engine(), asyncio.get_running_loop()
        update: list[bool] = []

        def update_and_fail(descriptor: int) -> None:
            update.append(False)
            with contextlib.suppress(StorageError, AddressNotFound):
                asyncio.run_coroutine_threadsafe(
                    other.update_address('c', entry_of('promised')), loop).result(PATIENCE)
                update.append(True)
            fails(errno.EIO)()

        with broken('fsync', update_and_fail, lambda fd: is_folder(fd) and not update):
            with self.assertRaises(StorageError):
                await self.db.create_address(entry_of('x'), 'c')
        self.assertEqual('promised' if any(update) else None,
                         (await self.full_names()).get('c'))

    async def test_a_create_whose_temporary_file_cannot_be_removed_tells_the_truth(self) -> None:
        with broken('unlink', fails(errno.EROFS), is_temporary):
            try:
                created = bool(await self.db.create_address(entry_of('x'), 'c'))
            except StorageError:
                created = False
        self.assertEqual(created, self.path('c').exists())

    async def test_a_disk_that_is_full_while_the_text_is_written_is_unavailable(self) -> None:
        real = os.open

        def open_full(*args: Any, **kwargs: Any) -> int:
            descriptor, full = real(*args, **kwargs), real('/dev/full', os.O_WRONLY)
            os.dup2(full, descriptor, inheritable=False)
            os.close(full)
            return descriptor

        for call in ('create', 'update'):
            with self.subTest(call=call), broken('open', open_full, is_temporary):
                await self.assert_fails(self.calls()[call], StorageUnavailable)
        await self.assert_works()

    async def test_a_file_that_the_system_cuts_short_is_an_error(self) -> None:
        worker = self.worker(write_too_much)
        outcomes = json.loads(await self.line_of(worker))
        self.assertEqual(['StorageError', 'StorageError'], outcomes)
        self.assertEqual({'a': 'small', 'b': 'b', 'small': 'small'}, await self.full_names())
        self.assertEqual(['a.json', 'b.json', 'small.json'], self.names())

    async def test_an_error_of_the_disk_while_reading_is_about_that_record(self) -> None:
        for number in LASTING:
            with self.subTest(error=os.strerror(number)):
                with broken('open', fails(number), lambda path, *_: 'a.json' in str(path)):
                    await self.assert_fails(self.calls()['read'], UnreadableRecord)
                    self.assertEqual({'b': 'b'}, await self.full_names())
        await self.assert_works()

    async def test_a_passing_failure_to_read_is_not_taken_for_damage(self) -> None:
        for call in ('read', 'list'):
            for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                with self.subTest(call=call, error=os.strerror(number)):
                    with broken('open', fails(number)):
                        await self.assert_fails(self.calls()[call], StorageUnavailable)
        self.assertEqual([], self.logged)
        await self.assert_works()

    async def test_no_failure_leaves_a_file_open(self) -> None:
        before = len(os.listdir('/dev/fd'))
        for function in ('fsync', 'link', 'replace', 'unlink', 'scandir'):
            with broken(function, fails(errno.EIO)):
                await asyncio.gather(*[call() for call in self.calls('b').values()],
                                     return_exceptions=True)
        self.assertEqual(before, len(os.listdir('/dev/fd')))


class FolderTests(FileEngineTestCase):

    async def assert_unavailable(self) -> None:
        for name, call in self.calls().items():
            with self.subTest(call=name), self.assertRaises(StorageUnavailable):
                await asyncio.wait_for(asyncio.ensure_future(call()), PATIENCE)

    async def test_without_its_folder_the_store_is_unavailable_until_it_is_back(self) -> None:
        await self.db.create_address(entry_of('x'), 'a')
        self.folder.rename(self.parent / 'away')
        await self.assert_unavailable()
        (self.parent / 'away').rename(self.folder)
        await self.db.ping()
        await self.db.update_address('a', entry_of('y'))
        self.assertEqual({'a': 'y'}, await self.full_names())

    async def test_a_folder_that_is_made_anew_serves(self) -> None:
        shutil.rmtree(self.folder)
        await self.assert_unavailable()
        self.folder.mkdir()
        await self.db.ping()
        await self.db.create_address(entry_of('x'), 'a')
        self.assertEqual({'a': 'x'}, await self.full_names())

    async def test_a_file_in_the_place_of_the_folder_is_no_damage_to_a_record(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.write_text('')
        for name, call in self.calls().items():
            with self.subTest(call=name):
                with self.assertRaises(StorageError) as raised:
                    await call()
                self.assertNotIsInstance(raised.exception, UnreadableRecord)

    async def test_a_folder_that_vanishes_during_a_listing_does_not_look_empty(self) -> None:
        for name in ('a', 'b', 'c'):
            await self.db.create_address(entry_of(name), name)
        with mock.patch.object(file_db, 'NAMES_AT_ONCE', 1):
            with self.assertRaises(StorageUnavailable):
                async for _ in self.db.read_all_addresses():
                    shutil.rmtree(self.folder, ignore_errors=True)

    async def test_ping_fails_while_the_folder_does_not_let_us_write(self) -> None:
        # As root: only the answer of a read-only file system can be had.
        with mock.patch.object(os, 'access', lambda path, mode: not mode & os.W_OK):
            with self.assertRaises(StorageUnavailable):
                await self.db.ping()
        await self.db.ping()

    async def refused(self, path: str) -> str:
        """What `start` says of that path: one line that names the key."""
        engine = FileAddressBookDB(path, self.logger)
        self.addAsyncCleanup(engine.stop)
        with self.assertRaises(ConfigError) as raised:
            await engine.start()
        line = str(raised.exception)
        self.assertTrue(line.isprintable(), line)
        self.assertIn('addr-db.fs', line)
        with self.assertRaises(StorageUnavailable):
            await engine.ping()
        return line

    async def test_start_refuses_a_path_that_cannot_be_a_folder_in_one_line(self) -> None:
        file = self.parent / 'file'
        file.write_text('kept')
        (self.parent / 'loop').symlink_to('loop')
        for path in (str(file), str(file / 'below'), str(file / 'far' / 'below'),
                     str(self.parent / ('x' * 300)), str(self.parent / 'loop' / 'x'),
                     '/proc/self/entries'):
            with self.subTest(path=path):
                self.assertIn(path, await self.refused(path))
        self.assertEqual('kept', file.read_text())

    async def test_start_refuses_a_path_that_no_path_can_be_in_one_line(self) -> None:
        for path in (f'{self.parent}/a\0b', f'{self.parent}/\ud800', f'{self.parent}/file\nx/\0'):
            with self.subTest(path=path):
                await self.refused(path)

    async def test_start_refuses_a_folder_that_does_not_take_what_a_write_needs(self) -> None:
        for function, number in [('mkdir', errno.EACCES), ('open', errno.EROFS),
                                 ('open', errno.EACCES), ('fsync', errno.EIO),
                                 ('link', errno.EPERM), ('link', errno.ENOSPC)]:
            path = str(self.parent / f'{function}-{number}')
            with self.subTest(function=function, error=os.strerror(number)):
                with broken(function, fails(number)):
                    self.assertIn(os.strerror(number), await self.refused(path))
                if os.path.isdir(path):
                    self.assertEqual([], [name for name in os.listdir(path)
                                          if is_temporary(name) or not name.startswith('.')])

    async def test_an_engine_that_could_not_start_can_start_later(self) -> None:
        await self.db.stop()
        with broken('link', fails(errno.EROFS)), self.assertRaises(ConfigError):
            await self.db.start()
        await self.db.start()
        await self.db.create_address(entry_of('x'), 'a')
        self.assertEqual({'a': 'x'}, await self.full_names())

    async def test_an_engine_that_could_not_start_leaves_nothing_open(self) -> None:
        await self.db.stop()
        before = len(os.listdir('/dev/fd'))
        with broken('link', fails(errno.EROFS)), self.assertRaises(ConfigError):
            await self.db.start()
        self.assertEqual(before, len(os.listdir('/dev/fd')))

    async def test_an_engine_that_could_not_start_keeps_nobody_out(self) -> None:
        await self.db.stop()
        (self.folder / '.tmp-x').write_text('')
        with broken('unlink', fails(errno.EACCES)), self.assertRaises(ConfigError):
            await self.db.start()
        start = asyncio.create_task(self.start_engine())
        done, _ = await asyncio.wait([start], timeout=2)
        await self.db.stop()  # lets the other one go on, should it wait
        await start
        self.assertTrue(done, 'it waited for one that does not run')


# --- things in an entry's place that are no entry's file ---


def put_fifo(path: Path, cleanup: contextlib.ExitStack) -> None:
    os.mkfifo(path)
    cleanup.callback(release_reader, path)


def release_reader(path: Path) -> None:
    """Lets go on who waits, though nobody should, for somebody to write into a pipe."""
    if path.is_fifo():
        os.close(os.open(path, os.O_RDWR))


def put_fifo_with_a_silent_writer(path: Path, cleanup: contextlib.ExitStack) -> None:
    os.mkfifo(path)
    cleanup.callback(os.close, os.open(path, os.O_RDWR))


def put_fifo_with_an_entry_in_it(path: Path, cleanup: contextlib.ExitStack) -> None:
    os.mkfifo(path)
    cleanup.callback(os.close, writer := os.open(path, os.O_RDWR))
    os.write(writer, b'{"full_name":"from a pipe"}')


def put_socket(path: Path, cleanup: contextlib.ExitStack) -> None:
    listener = cleanup.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))


def put_dangling_link(path: Path, cleanup: contextlib.ExitStack) -> None:
    path.symlink_to('nowhere.json')


def put_loop_of_links(path: Path, cleanup: contextlib.ExitStack) -> None:
    path.symlink_to(path.name)


def put_unreadable_file(path: Path, cleanup: contextlib.ExitStack) -> None:
    path.write_text('{"full_name":"not for us"}')
    path.chmod(0)
    # To root a mode is no obstacle.
    cleanup.enter_context(broken('open', fails(errno.EACCES), lambda name, *_: name == path))


def put_folder(path: Path, cleanup: contextlib.ExitStack) -> None:
    path.mkdir()
    cleanup.callback(path.rmdir)


REPLACEABLE = (put_fifo, put_fifo_with_a_silent_writer, put_fifo_with_an_entry_in_it, put_socket,
               put_dangling_link, put_loop_of_links, put_unreadable_file)


def largest_entry() -> AddressEntry:
    """An entry with all that the data model allows, in characters of four bytes."""
    wide = '\U00010400' * MAX_TEXT
    address = Address(kind=AddressType.HOME, building_name=wide, unit_number=MAX_NUMBER,
                      street_number=wide, street_name=wide, locality=wide, city=wide,
                      province=wide, pincode=wide, country=wide)
    digits = '9' * MAX_DIGITS
    phone = Phone(kind=AddressType.HOME, country_code=digits, area_code=digits,
                  local_number=digits)
    email = Email(kind=AddressType.HOME, email='\U00010400' * 64 + '@' + '.'.join(
        ['\U00010400' * 62] * 3))
    return AddressEntry(full_name='\U00010400' * MAX_NAME, addresses=[address] * MAX_ITEMS,
                        phone_numbers=[phone] * MAX_ITEMS, fax_numbers=[phone] * MAX_ITEMS,
                        emails=[email] * MAX_ITEMS)


class SizeTests(FileEngineTestCase):
    async def test_the_largest_entry_can_be_read_back(self) -> None:
        entry = largest_entry()
        await self.db.create_address(entry, 'largest')
        self.assertEqual(entry, (await self.db.read_address('largest')).entry)
        self.assertLess(self.path('largest').stat().st_size, MAX_RECORD_SIZE / 2)

    async def test_a_file_that_is_larger_than_any_entry_is_not_even_parsed(self) -> None:
        self.path('huge').write_text('{"full_name": "x"}' + ' ' * MAX_RECORD_SIZE)
        with self.assertRaises(UnreadableRecord) as raised:
            await self.db.read_address('huge')
        self.assertIn('huge.json: Larger than any entry', raised.exception.cause)


class OddThingTests(FileEngineTestCase):

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        for name in ('before', 'past'):
            await self.db.create_address(entry_of(name), name)
        self.odd = self.path('odd')

    @contextlib.contextmanager
    def odd_thing(self, put: Callable[[Path, contextlib.ExitStack], None]) -> Iterator[None]:
        """Puts it there, and clears the place afterwards."""
        with self.subTest(put.__name__), contextlib.ExitStack() as cleanup:
            if put is not put_folder:
                cleanup.callback(self.odd.unlink, missing_ok=True)
            put(self.odd, cleanup)
            self.logged.clear()
            yield

    async def test_reading_an_odd_thing_says_that_it_is_damaged_and_never_hangs(self) -> None:
        for put in (*REPLACEABLE, put_folder):
            with self.odd_thing(put), self.assertRaises(UnreadableRecord) as raised:
                await asyncio.wait_for(self.db.read_address('odd'), PATIENCE)
            self.assertIn('odd.json', raised.exception.cause)

    async def test_a_listing_goes_on_without_an_odd_thing_and_logs_one_error(self) -> None:
        for put in (*REPLACEABLE, put_folder):
            with self.odd_thing(put):
                found = await asyncio.wait_for(self.full_names(), PATIENCE)
                self.assertEqual({'before': 'before', 'past': 'past'}, found)
                self.assertEqual(['ERROR'], [record.levelname for record in self.logged])
                self.assertIn('odd.json', self.logged[0].getMessage())

    async def test_create_does_not_replace_an_odd_thing(self) -> None:
        for put in (*REPLACEABLE, put_folder):
            with self.odd_thing(put):
                before = self.odd.lstat()
                with self.assertRaises(AddressExists):
                    await self.db.create_address(entry_of('x'), 'odd')
                self.assertEqual(before.st_ino, self.odd.lstat().st_ino)

    async def test_update_puts_an_entry_in_the_place_of_an_odd_thing(self) -> None:
        for put in REPLACEABLE:
            with self.odd_thing(put):
                await asyncio.wait_for(self.db.update_address('odd', entry_of('x')), PATIENCE)
                self.assertTrue(stat.S_ISREG(self.odd.lstat().st_mode))
                self.assertEqual('{"full_name":"x","addresses":[]}', self.lines('odd')[0])
        self.assertFalse((self.folder / 'nowhere.json').exists())

    async def test_delete_removes_an_odd_thing(self) -> None:
        for put in REPLACEABLE:
            with self.odd_thing(put):
                await asyncio.wait_for(self.db.delete_address('odd'), PATIENCE)
                self.assertEqual(['before.json', 'past.json'], self.names())

    async def test_a_change_of_some_version_of_an_odd_thing_is_refused(self) -> None:
        for put in (*REPLACEABLE, put_folder):
            with self.odd_thing(put):
                before = self.odd.lstat().st_ino
                for version in (new_version(), ''):
                    for call in (self.db.update_address('odd', entry_of('x'), version),
                                 self.db.delete_address('odd', version)):
                        with self.assertRaises((AddressChanged, UnreadableRecord)):
                            await asyncio.wait_for(call, PATIENCE)
                self.assertEqual(before, self.odd.lstat().st_ino)

    async def test_an_odd_thing_counts_as_an_entry(self) -> None:
        for put in (*REPLACEABLE, put_folder):
            with self.odd_thing(put):
                self.assertEqual(3, await self.db.count_addresses())

    async def test_looking_at_an_odd_thing_again_and_again_leaves_no_file_open(self) -> None:
        for put in (*REPLACEABLE, put_folder):
            with self.odd_thing(put):
                before = len(os.listdir('/dev/fd'))
                for _ in range(5):
                    await self.full_names()
                self.assertEqual(before, len(os.listdir('/dev/fd')))

    async def test_a_folder_in_an_entrys_place_stays_and_is_reported(self) -> None:
        with self.odd_thing(put_folder):
            for call in (self.db.update_address('odd', entry_of('x')),
                         self.db.delete_address('odd')):
                with self.assertRaises(StorageError):
                    await call
            self.assertEqual(['before.json', 'odd.json', 'past.json'], self.names())


# --- what other processes do: run as `file_db_test.py work TASK FOLDER ARGUMENT...` ---

def say(document: object) -> None:
    print(document if isinstance(document, str) else json.dumps(document), flush=True)


async def started(folder: str) -> FileAddressBookDB:
    engine = FileAddressBookDB(folder, quiet_logger())
    await engine.start()
    return engine


async def create_shared(folder: str, name: str) -> None:
    """Creates what others create at the same time, and says what it could."""
    engine = await started(folder)
    say('ready')
    sys.stdin.readline()
    results = await asyncio.gather(
        *[engine.create_address(entry_of(name), nickname) for nickname in SHARED_NICKNAMES],
        return_exceptions=True)
    say([result.nickname for result in results if isinstance(result, Key)])


async def count_up(folder: str, nickname: str, times: str) -> None:
    """Adds one, so many times at once, to a number that others add to, too."""
    engine = await started(folder)

    async def add_one() -> str:
        while True:
            stored = await engine.read_address(nickname)
            with contextlib.suppress(AddressChanged):
                return await engine.update_address(
                    nickname, entry_of(f'{int(stored.entry.full_name) + 1}'), stored.version)

    say('ready')
    sys.stdin.readline()
    say(await asyncio.gather(*[add_one() for _ in range(int(times))]))


async def update_until_told(folder: str) -> None:
    """Updates what others delete at the same time."""
    engine = await started(folder)
    told = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    updates = 0
    while not told.done():
        for nickname in SHARED_NICKNAMES:
            with contextlib.suppress(AddressNotFound):
                await engine.update_address(nickname, entry_of('updated'))
                updates += 1
                if updates == 1:
                    say('ready')
        await asyncio.sleep(0.001)
    say(updates)


async def stop_within_update(folder: str, nickname: str) -> None:
    """Stands still where an update has all it needs, and just the name is still the old one's."""
    engine = await started(folder)

    def replace(*_: object) -> None:
        say('holding')
        sys.stdin.read()

    with mock.patch.object(os, 'replace', replace):
        await engine.update_address(nickname, entry_of('y'))


async def write_too_much(folder: str) -> None:
    """Writes under a limit on the size of files."""
    engine = await started(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    results = await asyncio.gather(
        engine.create_address(entry_of('big', items=50), 'big'),
        engine.update_address('a', entry_of('big', items=50)), return_exceptions=True)
    await engine.create_address(entry_of('small'), 'small')
    await engine.update_address('a', entry_of('small'))
    say([type(result).__name__ for result in results])


def be_killed(folder: str) -> None:
    """For each line ``TURN SECONDS`` starts a process that writes, kills it after that time, and
    says what it had begun and done. Forked processes need no time to start."""
    for line in sys.stdin:
        turn, seconds = line.split()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            write_until_killed(folder, turn, writer)
        os.close(writer)
        with open(reader) as changes:
            first = changes.readline()
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            say([json.loads(change) for change in (first, *changes)])


def write_until_killed(folder: str, turn: str, pipe: int) -> None:
    def report(*change: str) -> None:
        os.write(pipe, f'{json.dumps(change)}\n'.encode())

    async def change(nickname: str, full_name: str, call: Awaitable[object]) -> None:
        report(nickname, full_name, 'begun')
        await call
        report(nickname, full_name, 'done')

    async def write(task: int, engine: FileAddressBookDB) -> None:
        for i in itertools.count():
            nickname = f't{turn}-{task}-{i}'
            first, second = (entry_of(f'{nickname} {version}', items=50 * (i % 2))
                             for version in ('first', 'second'))
            await change(nickname, first.full_name, engine.create_address(first, nickname))
            await change(nickname, second.full_name, engine.update_address(nickname, second))
            if i % 4:
                await change(nickname, '', engine.delete_address(nickname))

    async def write_all() -> None:
        engine = await started(folder)
        await asyncio.gather(*(write(task, engine) for task in range(4)))

    try:
        asyncio.run(write_all())
    finally:
        os._exit(1)


TASKS: dict[str, Callable[..., object]] = {
    task.__name__: task for task in (
        create_shared, count_up, update_until_told, stop_within_update, write_too_much, be_killed)}


def work(task: str, *arguments: str) -> None:
    result = TASKS[task](*arguments)
    if asyncio.iscoroutine(result):
        asyncio.run(result)


if __name__ == '__main__':
    if sys.argv[1:2] == ['work']:
        work(*sys.argv[2:])
    else:
        unittest.main()

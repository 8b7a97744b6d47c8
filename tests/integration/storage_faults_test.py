"""Servers whose store fails under them: what they answer and log, and that it passes.

Whatever happens to a folder or a file, a request is answered as documented, no more is told
than the API says, the event loop goes on, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import http.client
import json
import os
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.db_engines import create_addressbook_db
from addrservice.datamodel import AddressEntry
from tests.support import DEADLINE, ROOT, Answer, ServerProcess, quiet_logger

SMALL = {'full_name': 'small'}
BIG = {'full_name': 'big', 'addresses': [
    {'kind': 'home', 'street_name': 's' * 250, 'locality': 'l' * 250, 'city': 'c' * 250,
     'pincode': 1, 'country': 'x' * 250}] * 50}
"""Nearly as large as a body may be."""

FILE_SIZE = 32 * 1024
"""Bytes; less than a big entry has, and more than what these tests log."""

QUICK = 0.3
"""Seconds that a probe may take, on a busy machine."""

BUSY_TIMEOUT = 0.5
ENTRIES_OF_A_BIG_BOOK = 20_000
PROBES = 200
SERVERS = 10

UNSHARE = 'unshare'
SERVE = (sys.executable, '-m', 'addrservice')
AS_OTHERS = ('import ctypes, os, sys\n'
             'for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH\n'
             '    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP\n'
             '    assert ctypes.CDLL(None).prctl(23, capability, 0, 0, 0) == 0  # PR_CAPBSET_READ\n'
             'os.execv(sys.argv[1], sys.argv[1:])')
BOUND_BY_MODES = SERVE if os.geteuid() else (sys.executable, '-c', AS_OTHERS, *SERVE)
"""Serves as somebody for whom the modes of files count, which root otherwise is not."""

LOCKER = ('import sqlite3, sys\n'
          'connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n'
          'connection.execute(sys.argv[2])\n'
          'print("locked", flush=True)\n'
          'sys.stdin.read()\n')

SECRETS = ('book.db', 'entries', '.tmp-', 'sql', 'errno', 'select ', 'insert ', 'traceback',
           'permission', 'disk', 'lock')
"""Parts of paths, of statements and of what libraries say; none is for clients."""


class Store(NamedTuple):
    """An engine and the place that it is given."""

    engine: str
    path: Path
    busy_timeout: float = 2

    def config(self) -> dict[str, Any]:
        """Of a server that looks at its store whenever it is asked whether it is ready."""
        value = {'fs': str(self.path),
                 'sqlite': {'path': str(self.path), 'busy-timeout': self.busy_timeout}}
        return {'addr-db': {self.engine: value[self.engine]}, 'readiness': {'cache': 0}}


class Book:
    """What a client knows of a book: all that was acknowledged."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.entries: dict[str, object] = {}

    def put(self, nickname: str, document: object) -> Answer:
        """Makes an entry, or replaces one."""
        headers = {} if nickname in self.entries else {'If-None-Match': '*'}
        answer = self.server.request('PUT', f'/addresses/{nickname}', json.dumps(document), headers)
        if answer.status in (201, 204):
            self.entries[nickname] = document
        return answer

    def delete(self, nickname: str) -> Answer:
        answer = self.server.request('DELETE', f'/addresses/{nickname}')
        if answer.status == 204:
            del self.entries[nickname]
        return answer

    def get(self, nickname: str = '') -> Answer:
        """An entry, or all of them."""
        return self.server.request('GET', f'/addresses/{nickname}'.rstrip('/'))


class FaultTestCase(unittest.TestCase):
    """Two stores in a folder, and what must hold of a server on one of them."""

    def setUp(self) -> None:
        parent = tempfile.TemporaryDirectory()
        self.addCleanup(parent.cleanup)
        self.folder = Path(parent.name)
        self.fs = Store('fs', self.folder / 'entries')
        self.sqlite = Store('sqlite', self.folder / 'home' / 'book.db', BUSY_TIMEOUT)

    @contextlib.contextmanager
    def book(self, store: Store, command: tuple[str, ...] = SERVE,
             entries: Mapping[str, object] = MappingProxyType({})) -> Iterator[Book]:
        """A book with a small and a big entry, which at the end has what is known of it.

        :param entries: what is in the store already.
        """
        with ServerProcess(store.config(), command=command) as server:
            book = Book(server)
            book.entries.update(entries)
            self.assertEqual(201, book.put('small', SMALL).status)
            self.assertEqual(201, book.put('big', BIG).status)
            yield book
            self.assert_serves(book)
            self.assertEqual(0, server.stop())
            if command[0] != UNSHARE:
                self.assertEqual(book.entries, asyncio.run(all_entries(store)))

    def assert_serves(self, book: Book) -> None:
        """All is there that was acknowledged, and more can be written."""
        answer = book.get()
        self.assertEqual(200, answer.status, answer.body)
        self.assertEqual(book.entries.keys(), answer.json().keys())
        self.assertEqual(book.entries, answer.json())
        self.assertEqual(200, book.server.request('GET', '/readiness').status)
        self.assertIn(book.put('after', SMALL).status, (201, 204))
        self.assertEqual(204, book.delete('after').status)

    def assert_reads(self, book: Book) -> None:
        for nickname, document in book.entries.items():
            self.assertEqual(document, book.get(nickname).json())
        self.assertEqual(book.entries, book.get().json())

    def assert_failed(self, book: Book, answer: Answer, status: int, cause: str) -> None:
        """The answer is the documented error and no more; the log says why."""
        self.assertEqual(status, answer.status, answer.body)
        error = answer.json()
        self.assertEqual({'method', 'uri', 'code', 'message', 'req_id', 'detail'}, error.keys())
        self.assertEqual(status, error['code'])
        self.assertEqual(status == 503, 'Retry-After' in answer.headers)
        told = f'{answer.reason} {error["message"]} {error["detail"]}'.lower()
        for secret in (str(self.folder), *SECRETS):
            self.assertNotIn(secret, told)
        line = self.line_of(book, error['req_id'])
        self.assertEqual(status, line['status'])
        self.assertIn(cause, line['cause'])

    def line_of(self, book: Book, req_id: str) -> dict[str, Any]:
        """The line of a request; it may come a moment after the answer."""
        lines: list[dict[str, Any]] = []

        def is_there() -> bool:
            with contextlib.suppress(ValueError):  # the last line is being written
                lines[:] = [line for line in book.server.lines('RESPONSE')
                            if line['req_id'] == req_id]
            return bool(lines)

        book.server.wait_for(is_there)
        [line] = lines
        return line

    def assert_alive(self, book: Book, is_ready: bool) -> None:
        self.assertLess(min(time_of(book.server, '/healthz') for _ in range(3)), QUICK)
        answer = book.server.request('GET', '/readiness')
        self.assertEqual(200 if is_ready else 503, answer.status)
        self.assertEqual(is_ready, answer.json()['ready'])

    def assert_tidy(self, store: Store, *others: str) -> None:
        """Nothing is left of what failed; to be called when no server runs."""
        if store.engine == 'sqlite':
            self.assertEqual(sorted([store.path.name, *others]), names(store.path.parent))
        else:
            self.assertEqual(['.gate', '.in-use'], [
                name for name in names(store.path) if not name.endswith('.json')])


async def all_entries(store: Store) -> dict[str, object]:
    """What the engine itself reads, without a server."""
    async with engine_of(store) as engine:
        return {stored.nickname: stored.entry.to_api_dm()
                async for stored in engine.read_all_addresses()}


async def fill(store: Store, entries: Mapping[str, object]) -> None:
    """Puts entries in by the engine itself, which is quicker than by HTTP."""
    async with engine_of(store) as engine:
        todo = [engine.create_address(AddressEntry.from_api_dm(document), nickname)
                for nickname, document in entries.items()]
        for start in range(0, len(todo), 1000):
            await asyncio.gather(*todo[start:start + 1000])


@contextlib.asynccontextmanager
async def engine_of(store: Store) -> AsyncIterator[AbstractAddressBookDB]:
    engine = create_addressbook_db(store.config()['addr-db'], quiet_logger())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def names(folder: Path) -> list[str]:
    """All that lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


class FullDiskTests(FaultTestCase):

    def limit(self, book: Book, size: int) -> None:
        """Bounds how far the server may write into any file."""
        assert book.server.process is not None
        _, hard = resource.prlimit(book.server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(book.server.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def test_files_that_may_not_grow_fail_a_write_and_no_read(self) -> None:
        for store, cause in ((self.fs, 'File too large'), (self.sqlite, 'SQLITE_IOERR_WRITE')):
            with self.subTest(engine=store.engine):
                with self.book(store) as book:
                    self.limit(book, FILE_SIZE)
                    for nickname in ('big', 'new'):
                        self.assert_failed(book, book.put(nickname, BIG | SMALL), 500, cause)
                    self.assert_reads(book)
                    self.assert_alive(book, is_ready=True)
                    self.limit(book, resource.RLIM_INFINITY)
                self.assert_tidy(store)

    def test_a_kill_while_files_may_not_grow_leaves_nothing_behind(self) -> None:
        for store in (self.fs, self.sqlite):
            with self.subTest(engine=store.engine):
                with self.book(store) as book:
                    self.limit(book, FILE_SIZE)
                    self.assertEqual(500, book.put('big', BIG | SMALL).status)
                    book.server.stop(signal.SIGKILL)
                    book.server.start()
                    self.assert_reads(book)
                self.assert_tidy(store)

    def test_a_full_disk_fails_a_write_and_no_read(self) -> None:
        # Where a file system cannot be mounted, not even in a name space of one's own, the
        # bound above must do: its way through the engines differs only in the error's number.
        for store, cause in ((self.fs, 'No space left'), (self.sqlite, 'SQLITE_FULL')):
            if may_mount():
                with self.subTest(engine=store.engine):
                    self.check_full_disk(store, cause)

    def check_full_disk(self, store: Store, cause: str) -> None:
        with self.book(store, command=on_small_disk(self.folder)) as book:
            assert book.server.process is not None
            ballast = Path(f'/proc/{book.server.process.pid}/root/{self.folder}/ballast')
            with contextlib.suppress(OSError), ballast.open('wb', 0) as file:
                while file.write(bytes(4096)):
                    pass
            for nickname in ('big', 'new'):
                self.assert_failed(book, book.put(nickname, BIG | SMALL), 503, cause)
            self.assert_reads(book)
            self.assert_alive(book, is_ready=True)
            ballast.unlink()
            self.assert_serves(book)


def on_small_disk(folder: Path) -> tuple[str, ...]:
    """Serves with an empty disk of one megabyte in that folder, which only it sees."""
    return (UNSHARE, '--map-root-user', '--mount', 'sh', '-c',
            'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(folder), *SERVE)


@functools.cache
def may_mount() -> bool:
    folder = tempfile.gettempdir()
    try:
        return not subprocess.run([*on_small_disk(Path(folder)), '--version'],
                                  cwd=ROOT, capture_output=True).returncode
    except FileNotFoundError:
        return False


class PermissionTests(FaultTestCase):

    def test_a_folder_that_becomes_read_only_fails_writes_and_no_read(self) -> None:
        with self.book(self.fs, command=BOUND_BY_MODES) as book, mode(0o500, self.fs.path):
            for answer in (book.put('small', BIG), book.put('new', SMALL), book.delete('small')):
                self.assert_failed(book, answer, 503, 'Permission denied')
            self.assert_reads(book)
            self.assert_alive(book, is_ready=False)
        self.assert_tidy(self.fs)

    def test_a_database_that_becomes_read_only_is_not_ready_and_loses_nothing(self) -> None:
        with self.book(self.sqlite, command=BOUND_BY_MODES) as book:
            home = self.sqlite.path.parent
            with mode(0o400, *home.iterdir()), mode(0o500, home):
                # It is open: what is acknowledged must be there, whatever the answer.
                self.assertIn(book.put('small', BIG).status, (204, 500, 503))
                self.assert_reads(book)
                self.assert_alive(book, is_ready=False)
        self.assert_tidy(self.sqlite)

    def test_a_folder_that_may_not_be_entered_fails_everything_until_it_may(self) -> None:
        for store in (self.fs, self.sqlite):
            folder = store.path if store.engine == 'fs' else store.path.parent
            with self.subTest(engine=store.engine):
                with self.book(store, command=BOUND_BY_MODES) as book, mode(0, folder):
                    for answer in (book.get('small'), book.get(), book.put('new', SMALL)):
                        self.assert_failed(book, answer, 503, str(folder))
                    self.assertEqual(book.delete('small').status, 503)
                    self.assert_alive(book, is_ready=False)
                self.assert_tidy(store)


@contextlib.contextmanager
def mode(number: int, *paths: Path) -> Iterator[None]:
    """These paths have that mode meanwhile."""
    before = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(number)
    try:
        yield
    finally:
        for path, number in before.items():
            path.chmod(number)


class RemovalTests(FaultTestCase):

    def assert_gone(self, book: Book, cause: str) -> None:
        for answer in (book.get('small'), book.get(), book.put('small', BIG),
                       book.put('new', SMALL), book.delete('small')):
            self.assert_failed(book, answer, 503, cause)
        self.assert_alive(book, is_ready=False)

    def test_a_store_that_is_renamed_away_comes_back_by_the_name_with_all_it_had(self) -> None:
        for store in (self.fs, self.sqlite):
            with self.subTest(engine=store.engine), self.book(store) as book:
                away = store.path.with_name('away')
                store.path.rename(away)
                self.assert_gone(book, str(store.path))
                self.assertFalse(store.path.exists())
                away.rename(store.path)
            self.assert_tidy(store)

    def test_a_store_that_is_renamed_away_may_come_back_after_a_new_start(self) -> None:
        with self.book(self.sqlite) as book:
            away = self.sqlite.path.with_name('away')
            self.sqlite.path.rename(away)
            self.assertEqual(503, book.get().status)
            self.assertEqual(0, book.server.stop())
            away.rename(self.sqlite.path)
            book.server.start()
        self.assert_tidy(self.sqlite)

    def test_a_backup_in_place_of_a_removed_database_is_what_the_next_server_has(self) -> None:
        with self.backed_up() as (book, backup):
            self.sqlite.path.unlink()
            self.assert_gone(book, str(self.sqlite.path))
            self.assertEqual(0, book.server.stop())
            shutil.copy(backup, self.sqlite.path)
            book.server.start()

    def test_a_backup_in_place_of_a_removed_database_is_served_at_once(self) -> None:
        with self.backed_up() as (book, backup):
            self.sqlite.path.unlink()
            self.assert_gone(book, str(self.sqlite.path))
            shutil.copy(backup, partial := self.sqlite.path.with_name('partial'))
            partial.rename(self.sqlite.path)

    def test_a_backup_that_replaces_a_database_at_one_stroke_is_served_at_once(self) -> None:
        with self.backed_up() as (book, backup):
            backup.rename(self.sqlite.path)

    def test_two_servers_whose_database_is_replaced_both_have_the_new_one(self) -> None:
        with self.backed_up() as (book, backup), ServerProcess(self.sqlite.config()) as other:
            self.assertEqual(book.entries, Book(other).get().json())
            backup.rename(self.sqlite.path)
            self.assert_share(book, Book(other))

    def test_two_servers_of_which_one_missed_that_the_database_was_away_share_it(self) -> None:
        with self.book(self.sqlite) as book, ServerProcess(self.sqlite.config()) as other:
            away = self.sqlite.path.with_name('away')
            self.sqlite.path.rename(away)
            self.assertEqual(503, book.get().status)
            away.rename(self.sqlite.path)
            self.assert_share(book, Book(other))
        self.assert_tidy(self.sqlite)

    def assert_share(self, book: Book, other: Book) -> None:
        """What one makes the other has, in turn, and one after the other may stop."""
        makers = [book, other] * 3
        for i, (maker, reader) in enumerate(zip(makers, makers[1:])):
            self.assertEqual(201, maker.put(f'shared-{i}', BIG).status)
            self.assertEqual(BIG, reader.get(f'shared-{i}').json())
        self.assertEqual(0, other.server.stop())
        for i in range(len(makers) - 1):
            self.assertEqual(204, book.server.request('DELETE', f'/addresses/shared-{i}').status)
            book.entries.pop(f'shared-{i}', None)

    @contextlib.contextmanager
    def backed_up(self) -> Iterator[tuple[Book, Path]]:
        """A book that has changed a lot since it was copied; then the copy is the book."""
        backup = self.folder / 'backup.db'
        kept, lost = ({f'{word}-{i}': BIG for i in range(60)} for word in ('kept', 'lost'))
        asyncio.run(fill(self.sqlite, kept))
        copy_database(self.sqlite.path, backup)
        asyncio.run(fill(self.sqlite, lost))
        with self.book(self.sqlite, entries=kept | lost) as book:
            for i in range(20):  # in the log beside the database, and not yet in it
                self.assertEqual(201, book.put(f'lost-late-{i}', BIG).status)
            yield book, backup
            book.entries = {**kept}
        self.assert_tidy(self.sqlite)


def copy_database(source: Path, target: Path) -> None:
    """Makes a copy as one makes it of a database in use."""
    with (contextlib.closing(sqlite3.connect(source)) as reading,
          contextlib.closing(sqlite3.connect(target)) as writing):
        reading.backup(writing)


class LockTests(FaultTestCase):

    @contextlib.contextmanager
    def locked(self, statement: str) -> Iterator[Callable[[], None]]:
        """Another process holds a lock; gives what makes it let go."""
        process = subprocess.Popen(
            [sys.executable, '-c', LOCKER, str(self.sqlite.path), statement], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            self.assertEqual('locked\n', process.stdout.readline())
            yield lambda: self.assertIsNotNone(process.communicate())
        finally:
            process.kill()
            process.communicate()

    def test_under_anothers_lock_reads_go_on_and_writes_are_refused_in_time(self) -> None:
        with self.book(self.sqlite) as book:
            for statement in ('BEGIN IMMEDIATE', 'BEGIN EXCLUSIVE'):
                with self.subTest(statement=statement), self.locked(statement) as let_go:
                    self.assert_alive_while(book, lambda: self.assert_writes_refused(book))
                    self.assert_reads(book)
                    self.assert_alive(book, is_ready=False)
                    let_go()
                    self.assert_serves(book)

    def assert_writes_refused(self, book: Book) -> None:
        """Ten at once, each after its time-out and hardly later."""
        began = time.monotonic()
        with ThreadPoolExecutor(10) as threads:
            answers = [threads.submit(book.delete, 'small'),
                       *(threads.submit(book.put, f'new-{i}', SMALL) for i in range(9))]
        self.assertGreater(time.monotonic() - began, BUSY_TIMEOUT)
        self.assertLess(time.monotonic() - began, BUSY_TIMEOUT + 2)
        for answer in answers:
            self.assert_failed(book, answer.result(), 503, 'locked')

    def assert_alive_while(self, book: Book, work: Callable[[], None]) -> None:
        """Probes and reads are answered at once, as long as the work takes."""
        with ThreadPoolExecutor(1) as thread:
            task = thread.submit(work)
            times = [time_of(book.server, path) for path in until(task.done)]
            task.result()
        self.assertGreater(len(times), 3)
        # Of a loop that waits with the work, most of these few would be as long as that.
        self.assertLess(statistics.quantiles(times, n=10)[-1], QUICK)

    def test_a_change_waits_for_a_lock_that_is_short(self) -> None:
        with self.book(self.sqlite) as book, self.locked('BEGIN IMMEDIATE') as let_go:
            timer = threading.Timer(BUSY_TIMEOUT / 3, let_go)
            timer.start()
            self.assertEqual(204, book.put('small', BIG).status)
            timer.join()

    def test_a_server_that_starts_under_a_lock_waits_for_its_end(self) -> None:
        with self.book(self.sqlite) as book:
            book.server.stop()
            with self.locked('BEGIN EXCLUSIVE') as let_go, ThreadPoolExecutor(1) as thread:
                starting = thread.submit(book.server.start)
                while not book.server.lines('STORE NOT REACHABLE'):
                    self.assertFalse(starting.done())
                    time.sleep(0.02)
                let_go()
                starting.result(DEADLINE)

    def test_under_a_lock_on_the_folder_entries_read_and_changes_are_refused(self) -> None:
        with self.book(self.fs) as book:
            folder = os.open(self.fs.path, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                self.assertEqual(201, book.put('new', SMALL).status)
                self.assert_alive_while(book, lambda: self.assert_changes_refused(book))
            finally:
                os.close(folder)
            self.assert_serves(book)
        self.assert_tidy(self.fs)

    def assert_changes_refused(self, book: Book) -> None:
        with ThreadPoolExecutor(3) as threads:
            answers = [threads.submit(book.put, 'small', BIG), threads.submit(book.delete, 'big'),
                       threads.submit(book.get)]
        for answer in answers:
            self.assert_failed(book, answer.result(), 503, 'temporarily unavailable')


def until(is_done: Callable[[], bool]) -> Iterator[str]:
    """Paths to ask for, a moment apart, until something is done."""
    while not is_done():
        yield from ('/healthz', '/addresses/big')
        time.sleep(0.01)


def time_of(server: ServerProcess, path: str) -> float:
    """Seconds that a request takes, which must succeed."""
    began = time.monotonic()
    answer = server.request('GET', path)
    assert answer.status == 200, answer
    return time.monotonic() - began


class DamageTests(FaultTestCase):

    def make_database(self, is_killed: bool) -> None:
        """A book of a hundred pages and more; left by a kill it has a log beside it."""
        shutil.rmtree(self.sqlite.path.parent, ignore_errors=True)
        asyncio.run(fill(self.sqlite, {f'more-{i}': BIG for i in range(20)}))
        if is_killed:
            with ServerProcess(self.sqlite.config()) as server:
                Book(server).put('last', SMALL)
                server.stop(signal.SIGKILL)

    def damage(self, start: int, size: int) -> None:
        with self.sqlite.path.open('r+b') as file:
            file.seek(start)
            file.write(bytes([0x5a]) * size)

    def test_a_database_with_a_damaged_header_is_refused(self) -> None:
        for is_killed in (False, True):
            with self.subTest(is_killed=is_killed):
                self.make_database(is_killed)
                self.damage(0, 100)
                self.assert_refused(self.sqlite, 'not a database')

    def test_a_killed_servers_database_with_damage_in_the_middle_is_refused(self) -> None:
        self.make_database(is_killed=True)
        self.damage(self.sqlite.path.stat().st_size // 2, 40_000)
        self.assert_refused(self.sqlite, 'database')

    def test_a_database_with_damage_in_the_middle_is_refused(self) -> None:
        self.make_database(is_killed=False)
        self.damage(self.sqlite.path.stat().st_size // 2, 40_000)
        self.assert_refused(self.sqlite, 'database')

    def assert_refused(self, store: Store, reason: str) -> None:
        [(status, out, err)] = start_all({self.folder / 'config.yaml': store})
        self.assertEqual((2, ''), (status, out), err)
        self.assertRegex(err, rf"\Aaddrservice: {self.folder}/config\.yaml: "
                              rf"addr-db\.{store.engine}: '{store.path}': .*{reason}.*\n\Z")

    def test_a_database_damaged_under_a_server_never_gives_a_wrong_entry(self) -> None:
        self.make_database(is_killed=False)
        with ServerProcess(self.sqlite.config()) as server:
            self.damage(self.sqlite.path.stat().st_size // 2, 200_000)
            book = Book(server)
            failures = [answer for i in range(20)
                        if (answer := book.get(f'more-{i}')).status != 200
                        or answer.json() != BIG]
            self.assertTrue(failures)
            for answer in failures:
                self.assert_failed(book, answer, 500, '')
            self.assertEqual(200, server.request('GET', '/healthz').status)

    def test_a_damaged_file_fails_its_own_entry_until_it_is_written_anew(self) -> None:
        with self.book(self.fs) as book:
            (self.fs.path / 'small.json').write_bytes(b'\0' * 100)
            self.assert_failed(book, book.get('small'), 500, 'small.json')
            self.assertEqual({'big': BIG}, book.get().json())
            self.assertEqual(1, len(book.server.lines('UNREADABLE RECORD')))
            self.assert_alive(book, is_ready=True)
            self.assertEqual(204, book.put('small', SMALL).status)
        self.assert_tidy(self.fs)

    def test_a_store_of_a_newer_program_is_refused(self) -> None:
        self.make_database(is_killed=False)
        with contextlib.closing(sqlite3.connect(self.sqlite.path)) as connection, connection:
            connection.execute('UPDATE addresses_schema SET version = 99')
        [(status, out, err)] = start_all({self.folder / 'config.yaml': self.sqlite})
        self.assertEqual((2, ''), (status, out), err)
        self.assertRegex(err, rf'\Aaddrservice: {self.folder}/config\.yaml: addr-db\b.*'
                              r'version 99.*newer program.*\n\Z')

    def test_a_store_that_cannot_be_made_or_written_is_refused(self) -> None:
        for store, err in zip(stores := self.impossible_stores(), self.errors_of(stores),
                              strict=True):
            with self.subTest(path=store.path, engine=store.engine):
                self.assertRegex(
                    err, rf"\Aaddrservice: \S+\.yaml: addr-db\.{store.engine}: '{store.path}': "
                         r'cannot be used as the (file|folder) for entries: .+\n\Z')

    def impossible_stores(self) -> list[Store]:
        """Each with something in its way. What is read-only is so until the test ends."""
        file, closed, old = (self.folder / name for name in ('file', 'closed', 'old.db'))
        file.write_text('Not a database, and nothing to lose')
        closed.mkdir()
        sqlite3.connect(old).close()
        old.touch()
        for path, number in ((closed, 0o500), (old, 0o400)):
            self.enterContext(mode(number, path))
        (self.folder / 'circle').symlink_to('circle')
        paths = [file / 'below', closed / 'new', closed / 'new' / 'below', self.folder / 'circle',
                 self.folder / ('x' * 300), file]
        return [*(Store(engine, path) for path in paths for engine in ('fs', 'sqlite')),
                Store('fs', closed), Store('sqlite', closed), Store('sqlite', old)]

    def errors_of(self, stores: list[Store]) -> list[str]:
        """What servers on these stores say, all of which must end with 2."""
        before = names(self.folder)
        ends = start_all({self.folder / f'{i}.yaml': store for i, store in enumerate(stores)})
        self.assertEqual({(2, '')}, {(status, out) for status, out, _ in ends}, ends)
        self.assertEqual(before, [name for name in names(self.folder) if '.yaml' not in name])
        return [err for _, _, err in ends]

    def test_missing_folders_are_made_for_the_owner_alone(self) -> None:
        for store in (Store('fs', self.folder / 'a' / 'b' / 'entries'),
                      Store('sqlite', self.folder / 'c' / 'd' / 'book.db')):
            folder = store.path if store.engine == 'fs' else store.path.parent
            with self.book(store):
                self.assertEqual(0o700, folder.stat().st_mode & 0o777)
                self.assertEqual(0, store.path.stat().st_mode & 0o077)


def start_all(stores: dict[Path, Store]) -> list[tuple[int, str, str]]:
    """Starts a server on each store, with a configuration in that file; gives their ends."""
    for path, store in stores.items():
        path.write_text(yaml.safe_dump(store.config()))
    processes = [subprocess.Popen([*BOUND_BY_MODES, '--config', str(path), '--port', '0'],
                                  cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for path in stores]
    return [end_of(process) for process in processes]


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status and output of a process; of one that goes on, after it was killed."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return process.returncode, out, err


class BigBookTests(FaultTestCase):

    def test_a_big_book_that_is_listed_counted_and_changed_does_not_hold_up_probes(self) -> None:
        many = {'full_name': 'One of many', 'emails': [
            {'kind': 'work', 'email': 'one@many.example.org'}] * 3}
        asyncio.run(fill(self.sqlite, {f'n{i:05}': many for i in range(ENTRIES_OF_A_BIG_BOOK)}))
        with ServerProcess(self.sqlite.config()) as server, ThreadPoolExecutor(4) as threads:
            done = threading.Event()
            tasks = [threads.submit(ask_until, done, server.port, *request) for request in (
                ('GET', '/addresses'), ('GET', '/addresses?count=true&limit=100'),
                ('POST', '/addresses', json.dumps(BIG)), ('PUT', '/addresses/n00007',
                                                          json.dumps(SMALL)))]
            try:
                times = [time_of(server, '/healthz') for _ in range(PROBES)]
            finally:
                done.set()
            for task in tasks:
                self.assertEqual({2}, {status // 100 for status in task.result()})
        self.assertLess(statistics.median(times), QUICK / 3)


def ask_until(done: threading.Event, port: int, method: str, path: str,
              body: str | None = None) -> list[int]:
    """Asks the same, as soon as it is answered, on one connection; gives the statuses."""
    statuses: list[int] = []
    with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port, timeout=DEADLINE)) as c:
        while not (done.is_set() and statuses):
            c.request(method, path, body)
            response = c.getresponse()
            response.read()
            statuses.append(response.status)
    return statuses


class CommonStartTests(FaultTestCase):

    def test_ten_servers_that_start_at_once_on_one_new_store_all_serve_it(self) -> None:
        for store in (self.fs, self.sqlite._replace(busy_timeout=2)):
            with (self.subTest(engine=store.engine), contextlib.ExitStack() as stack,
                  ThreadPoolExecutor(SERVERS) as threads):
                servers = [ServerProcess(store.config()) for _ in range(SERVERS)]
                for server in servers:
                    stack.callback(server.__exit__)
                for started in [threads.submit(server.start) for server in servers]:
                    started.result()
                self.assert_all_serve(servers)
                ends = [threads.submit(server.stop) for server in servers]
                self.assertEqual({0}, {end.result() for end in ends})
            self.assert_tidy(store)

    def assert_all_serve(self, servers: list[ServerProcess]) -> None:
        """What each of them makes, each of them has."""
        for i, server in enumerate(servers):
            self.assertEqual(201, Book(server).put(f'from-{i}', SMALL).status)
        everything = {f'from-{i}': SMALL for i in range(len(servers))}
        for server in servers:
            self.assertEqual(everything, Book(server).get().json())
            self.assertEqual([], [line for line in server.lines() if line['level'] == 'ERROR'])


if __name__ == '__main__':
    unittest.main()

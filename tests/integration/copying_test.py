"""Moving house with `run.py copy`, from any engine to any other, and through kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from addrservice.copying import copy_addresses
from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.records import Stored
from addrservice.database.db_engines import create_addressbook_db
from addrservice.datamodel import AddressEntry
from data import address_data_suite
from tests.engines import LASTING, Section, new_store
from tests.support import DEADLINE, ROOT, quiet_logger

T = TypeVar('T')
MANY = {'fs': 600, 'sqlite': 2400, 'postgres': 600}
"""Entries that an engine takes longer to write than a test takes to notice the first of them."""


class Store:
    """A book in a store of its own, and the file that names it."""

    def __init__(self, section: Section, config: Path) -> None:
        self.section = section
        self.config = config
        self.config.write_text(yaml.safe_dump({'addr-db': self.section}))

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[AbstractAddressBookDB]:
        engine = create_addressbook_db(self.section, quiet_logger())
        try:
            await engine.start()
            yield engine
        finally:
            await engine.stop()

    def use(self, work: Callable[[AbstractAddressBookDB], Coroutine[Any, Any, T]]) -> T:
        """Opens the store for as long as some work takes."""
        async def opened() -> T:
            async with self.opened() as engine:
                return await work(engine)
        return asyncio.run(opened())

    def fill(self, count: int) -> None:
        """Puts so many entries there, of four kinds in turn."""
        kinds = [AddressEntry.from_api_dm(document) for document in address_data_suite().values()]

        async def create(engine: AbstractAddressBookDB) -> None:
            await asyncio.gather(*(engine.create_address(entry, f'n{number}') for number, entry
                                   in zip(range(count), itertools.cycle(kinds), strict=False)))
        self.use(create)

    def update(self, nickname: str, full_name: str) -> None:
        self.use(lambda engine: engine.update_address(nickname, AddressEntry(full_name=full_name)))

    def entries(self) -> list[Stored]:
        """All that is there."""
        async def read(engine: AbstractAddressBookDB) -> list[Stored]:
            return [stored async for stored in engine.read_all_addresses()]
        return self.use(read)

    def count(self) -> int:
        return self.use(lambda engine: engine.count_addresses())


class MovingTestCase(unittest.TestCase):

    maxDiff = 2000

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def store(self, name: str, engine: str = 'fs', count: int | None = None) -> Store:
        """A store with so many entries, or else one that does not exist yet."""
        folder = self.folder / name
        folder.mkdir()
        store = Store(self.enterContext(new_store(engine, folder)), folder / f'{engine}.yaml')
        if count is not None:
            store.fill(count)
        return store

    def start(self, source: Store, target: Store, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / 'run.py'), 'copy', '--from', str(source.config),
             '--to', str(target.config), *options],
            cwd=self.folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def end(self, process: subprocess.Popen[str], status: int) -> list[str]:
        """Waits for the end.

        :return: the lines that were told; stdout has none.
        """
        out, err = process.communicate(timeout=DEADLINE)
        self.assertEqual((status, ''), (process.returncode, out), err)
        return err.splitlines()

    def copy(self, status: int, source: Store, target: Store, *options: str) -> list[str]:
        return self.end(self.start(source, target, *options), status)

    def wait_for_entries(self, target: Store, count: int, process: subprocess.Popen[str]) -> None:
        """Returns when the target has so many, and the copy still runs."""
        async def wait(engine: AbstractAddressBookDB) -> None:
            while await engine.count_addresses() < count:
                self.assertIsNone(process.poll(), 'it ended before so many were there')
                await asyncio.sleep(0.002)
        target.use(wait)

    def assert_equal_books(self, source: Store, target: Store) -> None:
        self.assertEqual(source.entries(), target.entries())


class EveryEngineTests(MovingTestCase):

    def test_a_book_moves_from_any_engine_to_any_other_with_ids_and_versions(self) -> None:
        sources = {engine: self.store(f'from-{engine}', engine, 20) for engine in LASTING}
        for engine, source in sources.items():
            targets = {other: self.store(f'{engine}-to-{other}', other) for other in LASTING}
            moves = [self.start(source, target, '--verify') for target in targets.values()]
            for (other, target), move in zip(targets.items(), moves, strict=True):
                with self.subTest(source=engine, target=other):
                    self.assertEqual(
                        ['run.py copy: 20 copied, 0 already there, 0 overwritten, 0 different, '
                         '0 unreadable', 'run.py copy: verified: 20 equal, 0 different, 0 only at '
                         'the source, 0 only at the target, 0 unreadable'], self.end(move, 0))
                    self.assert_equal_books(source, target)

    def test_what_differs_stays_until_it_is_said_to_overwrite(self) -> None:
        for engine in LASTING:
            with self.subTest(engine=engine):
                source = self.store(f'from-{engine}', engine, 10)
                target = self.store(f'to-{engine}', engine)
                asyncio.run(self.copy_here(source, target))
                target.update('n3', 'Theirs')
                before = target.entries()
                told = self.copy(1, source, target, '--verify')
                self.assertRegex('\n'.join(told), r'9 already there(?s:.*) n3: version,.*full_name')
                self.assertEqual(before, target.entries())
                self.copy(0, source, target, '--overwrite', '--verify')
                self.assert_equal_books(source, target)

    async def copy_here(self, source: Store, target: Store) -> None:
        """Copies in this process, which takes less time."""
        async with source.opened() as ours, target.opened() as theirs:
            await copy_addresses(ours, theirs, overwrite=False, progress=lambda: None)

    def test_killed_at_any_moment_it_goes_on_and_the_books_come_out_equal(self) -> None:
        for engine, other in (('fs', 'postgres'), ('sqlite', 'sqlite'), ('postgres', 'fs')):
            with self.subTest(source=engine, target=other):
                source = self.store(f'killed-{engine}', engine, MANY[other])
                target = self.store(f'target-{other}', other, 0)
                for count in (1, MANY[other] // 2):
                    self.kill_when_there_are(count, source, target)
                self.assertLess(target.count(), MANY[other])
                told = self.copy(0, source, target, '--verify')
                self.assertRegex(told[0], r'^run.py copy: [1-9]\d* copied, [1-9]\d* already there')
                self.assert_equal_books(source, target)

    def kill_when_there_are(self, count: int, source: Store, target: Store) -> None:
        process = self.start(source, target)
        self.wait_for_entries(target, count, process)
        self.end_by(process, signal.SIGKILL)

    def end_by(self, process: subprocess.Popen[str], number: signal.Signals) -> None:
        process.send_signal(number)
        self.assertEqual([], self.end(process, -number))


class InterruptedTests(MovingTestCase):

    COUNT = MANY['fs']

    def setUp(self) -> None:
        super().setUp()
        self.source = self.store('from', 'sqlite', self.COUNT)

    def test_a_signal_ends_it_in_one_line_and_it_goes_on(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number):
                target = self.store(f'to-{number}', count=0)
                process = self.start(self.source, target)
                self.wait_for_entries(target, self.COUNT // 4, process)
                process.send_signal(number)
                [line] = self.end(process, 128 + number)
                self.assertRegex(line, r'^run.py copy: interrupted \(copying, after \d+ of '
                                       rf'{self.COUNT} entries\); run it again, and it goes on$')
                self.copy(0, self.source, target)
                self.assert_equal_books(self.source, target)

    def test_a_second_ctrl_c_ends_it_at_once(self) -> None:
        target = self.store('to', count=0)
        process = self.start(self.source, target)
        self.wait_for_entries(target, self.COUNT // 4, process)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.001)
        self.assertIn(process.returncode, (130, -signal.SIGINT))
        self.assertNotIn('Traceback', process.communicate()[1])
        self.copy(0, self.source, target, '--verify')

    def test_a_store_that_is_gone_in_the_middle_is_told_in_one_line_and_it_goes_on(self) -> None:
        target = self.store('to', count=0)
        process = self.start(self.source, target)
        self.wait_for_entries(target, self.COUNT // 4, process)
        os.rename(target.section['fs'], self.folder / 'elsewhere')
        [line] = self.end(process, 1)
        self.assertRegex(line, r'(cannot be used now|was made, but may not last): .*No such file.*'
                               rf'\(target; copying, after \d+ of {self.COUNT} entries\); '
                               'run it again, and it goes on$')
        os.rename(self.folder / 'elsewhere', target.section['fs'])
        self.copy(0, self.source, target, '--verify')


class RefusalTests(MovingTestCase):

    def assert_refused(self, pattern: str, source: Store, target: Store) -> None:
        [line] = self.copy(2, source, target)
        self.assertRegex(line, f'^run.py copy: {pattern}')

    def test_a_source_that_is_not_there_is_refused_and_neither_side_is_made(self) -> None:
        for engine in ('fs', 'sqlite'):
            with self.subTest(engine=engine):
                source = self.store(f'from-{engine}', engine)
                target = self.store(f'to-{engine}')
                self.assert_refused(f'.*/{engine}.yaml: addr-db.{engine}: .*there is no such',
                                    source, target)
                for store in (source, target):
                    self.assertEqual([store.config], list(store.config.parent.iterdir()))

    def test_one_store_on_both_sides_is_refused(self) -> None:
        store = self.store('a', count=1)
        self.assert_refused('.*/fs.yaml: addr-db.fs: is the store to copy from', store, store)

    def test_a_store_that_is_none_is_refused(self) -> None:
        target = self.store('b', 'sqlite')
        Path(target.section['sqlite']).write_text('no database, but a text of some length' * 100)
        self.assert_refused('.*/sqlite.yaml: addr-db.sqlite: ', self.store('a', count=1), target)

    def test_a_path_may_be_relative_to_the_folder_where_it_is_run(self) -> None:
        source, target = self.store('a', count=3), self.store('b')
        source.config.write_text('addr-db: {fs: a/store}')
        target.config.write_text('addr-db: {fs: b/store}')
        self.copy(0, source, target)
        self.assert_equal_books(source, target)

    def test_damage_is_named_and_everything_else_is_copied(self) -> None:
        source, target = self.store('a', count=10), self.store('b')
        damaged = Path(source.section['fs'], 'n7.json')
        damaged.write_bytes(damaged.read_bytes()[:50])
        told = self.copy(1, source, target, '--verify')
        self.assertRegex(told[0], '9 copied.* 1 unreadable$')
        self.assertRegex('\n'.join(told[1:]), f'(?m)^.*not copied: {damaged}: .*$')
        self.assertEqual(9, target.count())

    def test_no_secret_is_told_when_a_database_cannot_be_had(self) -> None:
        target = self.store('b')
        target.config.write_text(
            'addr-db: {postgres: "postgresql://me:hidden@127.0.0.1:1/book?password=hidden2"}')
        process = self.start(self.store('a', count=1), target)
        told = process.communicate(timeout=DEADLINE)[1]
        self.assertIn(process.returncode, (1, 2))
        self.assertRegex(told, r'\Arun.py copy: .*/fs.yaml.*\n\Z|\Arun.py copy: .*\(.*fs.yaml\).*')
        self.assertNotIn('hidden', told)


if __name__ == '__main__':
    unittest.main()

"""`run.py copy` says what it did, refuses what makes no sense, and ends as signals ask it to."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from addrservice import copy_command
from addrservice.copying import MAX_NAMED
from addrservice.database.memory_db import InMemoryAddressBookDB
from addrservice.errors import StorageUnavailable
from tests.support import quiet_logger

V1 = '1' * 16


def text_of(full_name: str) -> str:
    return json.dumps({'full_name': full_name}, separators=(',', ':'), ensure_ascii=False)


class Terminal(io.StringIO):

    def isatty(self) -> bool:
        return True


class CommandTests(unittest.TestCase):
    """The command in this process, mostly where it has nothing to copy."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.told = io.StringIO()

    def config(self, name: str, section: dict[str, Any]) -> str:
        path = self.folder / f'{name}.yaml'
        path.write_text(yaml.safe_dump({'addr-db': section}))
        return str(path)

    def files(self, name: str, exists: bool = True) -> str:
        """The configuration of a folder for entries."""
        if exists:
            (self.folder / name).mkdir(exist_ok=True)
        return self.config(name, {'fs': str(self.folder / name)})

    def write(self, name: str, nickname: str, text: str) -> None:
        (self.folder / name / f'{nickname}.json').write_text(f'{text}\n{V1}\n')

    def copy(self, source: str, target: str, *options: str) -> int:
        with contextlib.redirect_stderr(self.told):
            return copy_command.main(['--from', source, '--to', target, *options])

    def lines(self) -> list[str]:
        """What was told, without the name of who told it."""
        lines = self.told.getvalue().splitlines()
        self.assertEqual([], [line for line in lines if not line.startswith('run.py copy: ')])
        return [line.removeprefix('run.py copy: ') for line in lines]

    def assert_refused(self, pattern: str, source: str, target: str) -> None:
        self.told = io.StringIO()
        self.assertEqual(2, self.copy(source, target))
        [line] = self.lines()
        self.assertRegex(line, pattern)

    def test_all_is_copied_and_verified_in_two_lines(self) -> None:
        source, target = self.files('a'), self.files('b', exists=False)
        self.write('a', 'x', text_of('x'))
        self.assertEqual(0, self.copy(source, target, '--verify'))
        self.assertEqual(
            ['1 copied, 0 already there, 0 overwritten, 0 different, 0 unreadable',
             'verified: 1 equal, 0 different, 0 only at the source, 0 only at the target, '
             '0 unreadable'], self.lines())
        self.assertEqual(f'{text_of("x")}\n{V1}\n', (self.folder / 'b/x.json').read_text())

    def test_what_differs_is_named_and_the_status_is_1_unless_it_is_overwritten(self) -> None:
        source, target = self.files('a'), self.files('b')
        self.write('a', 'x', text_of('ours'))
        self.write('b', 'x', text_of('theirs'))
        self.assertEqual(1, self.copy(source, target))
        self.assertEqual('different, and left as it is without --overwrite: x: full_name differs',
                         self.lines()[-1])
        self.assertEqual(0, self.copy(source, target, '--overwrite', '--verify'))

    def test_of_very_many_differences_the_rest_is_counted(self) -> None:
        source, target = self.files('a'), self.files('b')
        for number in range(MAX_NAMED + 5):
            self.write('a', f'n{number}', text_of('ours'))
            self.write('b', f'n{number}', text_of('theirs'))
        self.assertEqual(1, self.copy(source, target))
        self.assertEqual(1 + MAX_NAMED + 1, len(self.lines()))
        self.assertRegex(self.lines()[-1], 'and 5 more$')

    def test_damage_at_the_source_is_named_and_the_status_is_1(self) -> None:
        source, target = self.files('a'), self.files('b')
        self.write('a', 'x', '{')
        self.assertEqual(1, self.copy(source, target))
        self.assertRegex(self.lines()[-1], '^unreadable, and not copied: .*/a/x.json: Expecting')

    def test_what_only_the_target_has_is_told_by_verifying_alone(self) -> None:
        source, target = self.files('a'), self.files('b')
        self.write('b', 'theirs', text_of('x'))
        self.assertEqual(0, self.copy(source, target))
        self.assertEqual(1, self.copy(source, target, '--verify'))
        self.assertEqual('only at the target: theirs', self.lines()[-1])

    def test_in_a_terminal_a_bar_moves_and_the_lines_stand_below_it(self) -> None:
        self.told = Terminal()
        source, target = self.files('a'), self.files('b')
        for number in range(5):
            self.write('a', f'n{number}', text_of('x'))
        self.assertEqual(0, self.copy(source, target, '--verify'))
        self.assertRegex(self.told.getvalue(), r'\rcopying: 100%.* 5/5 .*\nrun.py copy: 5 copied')
        self.assertRegex(self.told.getvalue(), r'\rverifying: 100%.*\nrun.py copy: verified')

    def test_memory_is_refused_on_either_side(self) -> None:
        memory, files = self.config('memory', {'memory': None}), self.files('a')
        for source, target in ((memory, files), (files, memory)):
            self.assert_refused('memory.yaml: addr-db.memory: ', source, target)

    def test_a_source_that_is_not_there_is_refused_and_not_made(self) -> None:
        target = self.files('b', exists=False)
        for engine, missing in (('fs', 'folder'), ('sqlite', 'file')):
            path = self.folder / 'missing'
            source = self.config('a', {engine: str(path)})
            self.assert_refused(f'a.yaml: addr-db.{engine}: .*/missing.*no such {missing}',
                                source, target)
            self.assertFalse(path.exists())
        self.assertFalse((self.folder / 'b').exists())

    def test_one_store_under_two_names_is_refused(self) -> None:
        (self.folder / 'a').mkdir()
        (self.folder / 'link').symlink_to(self.folder / 'a')
        (self.folder / 'book.db').touch()
        (self.folder / 'same.db').hardlink_to(self.folder / 'book.db')
        for engine, ours, theirs in (
                ('fs', 'a', 'a'), ('fs', 'a', 'b/../a/.'), ('fs', 'a', 'link'),
                ('sqlite', 'book.db', 'book.db'), ('sqlite', 'book.db', 'same.db')):
            (self.folder / 'b').mkdir(exist_ok=True)
            self.assert_refused(
                f'target.yaml: addr-db.{engine}: is the store to copy from',
                self.config('source', {engine: str(self.folder / ours)}),
                self.config('target', {engine: str(self.folder / theirs)}))

    def test_a_path_that_cannot_be_one_is_refused(self) -> None:
        good, bad = self.files('a'), self.config('bad', {'fs': 'x\0y'})
        self.assert_refused('bad.yaml: addr-db.fs: ', bad, good)
        self.assert_refused('bad.yaml: addr-db.fs: ', good, bad)

    def test_an_engine_that_is_new_needs_nothing_here(self) -> None:
        books = {'one': InMemoryAddressBookDB(quiet_logger()),
                 'two': InMemoryAddressBookDB(quiet_logger())}
        for name in books:
            self.config(name, {'new': name})
        with (mock.patch.object(copy_command, 'load_config',
                                lambda file: yaml.safe_load(Path(file).read_text())),
              mock.patch.object(copy_command, 'create_addressbook_db',
                                lambda section, _: books[section['new']])):
            one, two = (str(self.folder / f'{name}.yaml') for name in books)
            self.assertEqual(0, self.copy(one, two))
            self.assert_refused('one.yaml: addr-db.new: is the store', one, one)

    def test_one_database_is_refused_without_a_word_about_its_address(self) -> None:
        dsn = 'postgresql://me:hidden@host/book'
        ours = self.config('ours', {'postgres': {'dsn': dsn, 'pool-max': 3}})
        self.assert_refused(r'theirs.yaml: addr-db.postgres: is the store', ours,
                            self.config('theirs', {'postgres': dsn}))
        self.assertNotIn('hidden', self.told.getvalue())

    def test_a_configuration_that_cannot_be_used_is_named_with_file_and_key(self) -> None:
        good = self.files('a')
        bad = self.config('bad', {'fz': 'x'})
        self.assert_refused('bad.yaml: addr-db.fz: unknown engine', bad, good)
        self.assert_refused('bad.yaml: addr-db.fz: unknown engine', good, bad)
        self.assert_refused('none.yaml: cannot be read', str(self.folder / 'none.yaml'), good)

    def test_a_target_that_cannot_be_made_is_refused_and_the_source_is_closed(self) -> None:
        (self.folder / 'file').touch()
        target = self.config('b', {'fs': str(self.folder / 'file')})
        self.assert_refused('b.yaml: addr-db.fs: .*cannot be used', self.files('a'), target)

    def test_a_store_that_cannot_be_reached_is_named_by_its_file(self) -> None:
        with mock.patch('addrservice.database.file_db.FileAddressBookDB.start',
                        side_effect=StorageUnavailable(
                            'Not now', 'postgresql://me:hidden@host\nis down')):
            self.assertEqual(1, self.copy(self.files('a'), self.files('b')))
        self.assertEqual([f'Not now: postgresql://me:***@host is down ({self.folder}/a.yaml); '
                          'run it again, and it goes on'], self.lines())

    def test_a_store_that_fails_on_the_way_is_told_in_one_line(self) -> None:
        source, target = self.files('a'), self.files('b')
        self.write('a', 'x', text_of('x'))
        with mock.patch('addrservice.database.file_db.FileAddressBookDB._create',
                        side_effect=OSError(28, 'No space left on device')):
            self.assertEqual(1, self.copy(source, target))
        [line] = self.lines()
        self.assertRegex(line, r'No space left on device \(target; copying, after 0 of 1 '
                               r'entries\); run it again')

    def test_usage_errors_exit_with_2(self) -> None:
        for options in ([], ['--from', 'x'], ['--from', 'x', '--to', 'y', '--verfy']):
            with contextlib.redirect_stderr(io.StringIO()):
                with self.assertRaises(SystemExit) as refused:
                    copy_command.main(options)
            self.assertEqual(2, refused.exception.code)

    def test_signals_are_given_back_to_whom_they_belonged(self) -> None:
        with self.handling(signal.SIGTERM) as handler:
            self.copy(self.files('a'), self.files('b'))
            self.assertIs(handler, signal.getsignal(signal.SIGTERM))

    def test_a_signal_stops_it_with_the_status_of_a_shell_in_one_line(self) -> None:
        source, target = self.files('a'), self.files('b')
        self.write('a', 'x', text_of('x'))
        for number in (signal.SIGINT, signal.SIGTERM):
            self.told = io.StringIO()
            with mock.patch.object(copy_command, 'copy_addresses', self.signal_and_wait(number)):
                self.assertEqual(128 + number, self.copy(source, target))
            self.assertEqual(['interrupted (copying, after 0 of 1 entries); run it again, '
                              'and it goes on'], self.lines())

    def signal_and_wait(self, number: int) -> Any:
        async def copy_addresses(*_: object) -> None:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        return copy_addresses

    @contextlib.contextmanager
    def handling(self, number: signal.Signals) -> Iterator[object]:
        def handler(*_: object) -> None:
            pass
        before = signal.signal(number, handler)
        try:
            yield handler
        finally:
            signal.signal(number, before)


if __name__ == '__main__':
    unittest.main()

"""The README's section "Adding an engine" holds: its pieces, put into a copy of the code, work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR
from tests.support import ServerProcess

COPIED = ('addrservice', 'configs', 'data', 'schema', 'tests')

ENGINE = 'addrservice/database/dbm_db.py'
CHOICE = 'addrservice/database/db_engines.py'
SCHEMA = 'schema/config-v1.0.json'
LAYERS = 'setup.cfg'
SUITE = 'tests/unit/dbm_db_test.py'

LINT_IMPORTS = 'from importlinter.cli import lint_imports_command as main; main()'
ENTRY = {'full_name': 'Asha Example', 'emails': [{'kind': 'home', 'email': 'asha@example.org'}]}


def wrong(what: str) -> AssertionError:
    """The error that sends whoever reads it to the right place."""
    return AssertionError(f'README.md, section "Adding an engine": {what}')


def pieces() -> dict[str, str]:
    """The code blocks of the section: each by the file's name that stands in bold above it."""
    section = re.search(r'^## Adding an engine$(.*?)^## ', (ROOT_DIR / 'README.md').read_text(),
                        re.MULTILINE | re.DOTALL)
    if section is None:
        raise wrong('it is not there')
    found = re.findall(r'^\*\*(\S+)\*\*(?:(?!^\*\*|^```).)*^```\w+\n(.*?)^```$', section[1],
                       re.MULTILINE | re.DOTALL)
    if [name for name, _ in found] != [ENGINE, CHOICE, SCHEMA, LAYERS, SUITE]:
        raise wrong(f'it has code for {", ".join(name for name, _ in found) or "no file"}')
    return dict(found)


def copy_code(folder: Path) -> None:
    """What the engine, its tests and the server need, without what earlier runs have left."""
    for name in COPIED:
        shutil.copytree(ROOT_DIR / name, folder / name,
                        ignore=shutil.ignore_patterns('__pycache__', '.*'))
    shutil.copy(ROOT_DIR / LAYERS, folder)


def add_engine(folder: Path, piece: dict[str, str]) -> None:
    """Does with the pieces what the section says."""
    for name in (ENGINE, SUITE):
        (folder / name).write_text(piece[name])
    add_case(folder / CHOICE, piece[CHOICE])
    add_word(folder / SCHEMA, piece[SCHEMA])
    add_module(folder / LAYERS, piece[LAYERS])


def add_case(file: Path, case: str) -> None:
    before, first, after = file.read_text().partition('        case ')
    if not first:
        raise wrong(f'{CHOICE} has no `match` to put a `case` into')
    file.write_text(f'{before}{case}{first}{after}')


def add_word(file: Path, member: str) -> None:
    schema = json.loads(file.read_text())
    try:
        schema['properties']['addr-db']['properties'] |= json.loads(f'{{{member}}}')
    except ValueError as error:
        raise wrong(f'the piece for {SCHEMA} is not a member of a JSON object: {error}') from error
    file.write_text(json.dumps(schema))


def add_module(file: Path, line: str) -> None:
    replaced = line.replace(' | dbm_db', '')
    if file.read_text().count(f'\n{replaced}') != 1:
        raise wrong(f'{LAYERS} has no line {replaced.strip()!r} that could be replaced')
    file.write_text(file.read_text().replace(f'\n{replaced}', f'\n{line}'))


def unmeasured_environment() -> dict[str, str]:
    """This process's own, but what runs in it takes no part in measuring the coverage of the
    original: its files are others, and soon gone."""
    return {name: value for name, value in os.environ.items() if 'COVERAGE' not in name}


class AddingEngineTests(unittest.TestCase):
    folder: Path

    @classmethod
    def setUpClass(cls) -> None:
        piece = pieces()
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.enterClassContext(mock.patch.dict(os.environ, unmeasured_environment(), clear=True))
        cls.folder = Path(folder).resolve()
        copy_code(cls.folder)
        add_engine(cls.folder, piece)

    def run_there(self, *arguments: str) -> str:
        """Runs Python in the copy.

        :return: what it has printed.
        """
        done = subprocess.run([sys.executable, *arguments], cwd=self.folder, text=True, timeout=120,
                              stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            raise wrong(f'with its pieces in place `python {" ".join(arguments)}` fails:\n'
                        f'{done.stdout}{done.stderr}')
        return done.stdout + done.stderr

    def test_what_runs_is_the_copy_with_the_engine_and_not_the_original(self) -> None:
        printed = self.run_there('-c', 'import addrservice, tests.support, '
                                 'addrservice.database.dbm_db as added, tests.unit.dbm_db_test\n'
                                 'print(addrservice.ROOT_DIR, tests.support.ROOT, added.__file__)')
        self.assertEqual(f'{self.folder} {self.folder} {self.folder / ENGINE}\n', printed)
        self.assertFalse((ROOT_DIR / ENGINE).exists(), 'the original has an engine of that name')

    def test_the_engine_keeps_the_contract(self) -> None:
        printed = self.run_there('-m', 'unittest', 'tests.unit.dbm_db_test')
        (count,) = re.findall(r'^Ran (\d+) tests', printed, re.MULTILINE)
        self.assertGreater(int(count), 50)
        self.assertNotIn('skipped', printed)

    def test_imports_go_one_way(self) -> None:
        self.run_there('-c', LINT_IMPORTS, '--no-logo')

    def test_the_types_are_right(self) -> None:
        self.run_there('-m', 'mypy', '--strict', '--follow-imports=silent', ENGINE, CHOICE, SUITE)

    def test_the_style_is_that_of_the_code(self) -> None:
        self.run_there('-m', 'flake8', ENGINE, CHOICE, SUITE)

    def test_a_server_keeps_its_entries_there_over_a_restart(self) -> None:
        try:
            self.serve_stop_and_serve()
        except AssertionError as error:
            raise wrong(f'with its pieces in place the server fails: {error}') from error
        self.assertTrue(list(self.folder.glob('book.*')), 'the entries lie somewhere else')

    def serve_stop_and_serve(self) -> None:
        program = (sys.executable, str(self.folder / 'addrservice' / 'tornado' / 'server.py'))
        config = {'addr-db': {'dbm': str(self.folder / 'book')}}
        with ServerProcess(config, command=program) as server:
            created = server.request('POST', '/addresses', json.dumps(ENTRY))
            self.assertEqual(201, created.status, created.body)
            place = created.headers['Location']
            self.assertEqual(ENTRY, server.request('GET', place).json())
            self.assertEqual(0, server.stop())
            server.start()
            self.assertEqual(ENTRY, server.request('GET', place).json())
            listing = server.request('GET', '/addresses').json()
            self.assertEqual({place.rpartition('/')[2]: ENTRY}, listing)
            self.assertEqual(0, server.stop())


if __name__ == '__main__':
    unittest.main()

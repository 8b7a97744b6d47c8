"""The tests' own PostgreSQL does what tests of failures count on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import unittest
from pathlib import Path

from tests.postgres import PostgresServer, wait_for
from tests.support import ROOT

USER = '''
from tests.postgres import PostgresServer
server = PostgresServer(durable=False)
server.start()
server.freeze()
print(server.name, flush=True)
input()
'''


def commands_with(name: str) -> list[str]:
    """The processes of a server, by the name that all of them show."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(path.read_text())
    return [command for command in found if name in command]


class PostgresServerTest(unittest.TestCase):

    def test_failover(self) -> None:
        with PostgresServer() as primary:
            primary.execute('CREATE TABLE entry (name TEXT)')
            with primary.standby() as standby:
                primary.execute('INSERT INTO entry VALUES ($1)', 'kept')
                primary.kill()
                self.assertEqual(commands_with(f'{primary.name}:'), [])
                standby.promote()
                standby.execute("INSERT INTO entry VALUES ('new')")
                self.assertEqual(standby.fetch('TABLE entry'), [('kept',), ('new',)])
            primary.start()
            self.assertEqual(primary.fetch('TABLE entry'), [('kept',)])
        self.assertEqual(commands_with(primary.name) + commands_with(standby.name), [])

    def test_nothing_survives_killed_tests(self) -> None:
        with subprocess.Popen([sys.executable, '-c', USER], cwd=ROOT, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
            assert tests.stdout is not None
            name = tests.stdout.readline().strip()
            self.assertGreater(len(commands_with(f'{name}:')), 1)
            tests.kill()
        wait_for(lambda: not commands_with(name))

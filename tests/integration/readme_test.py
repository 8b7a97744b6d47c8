"""The README tells the truth: its commands print what it shows, its tables name what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unittest
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prometheus_client.parser import text_string_to_metric_families

from addrservice import ROOT_DIR
from addrservice.config import SCHEMA_FILE
from addrservice.tornado.app import ADMIN_ROUTES, ROUTES, Route
from addrservice.utils.metrics import Metrics
from tests.support import ServerProcess

README = (ROOT_DIR / 'README.md').read_text()
VARYING = re.compile(r'^(Date|X-Request-Id|Etag): .*|"uptime": \d+|"req_id": "[0-9a-f]{32}"'
                     r'|^Content-Length: .*', re.MULTILINE)
NAMED = re.compile(r'^Location: /addresses/(.+)$|^Etag: "(.+)"$', re.MULTILINE)


class Step(NamedTuple):
    """A command, and what the README says that it prints."""

    command: str
    output: str


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or a higher one."""
    level = len(re.findall(f'^(#+) {re.escape(title)}$', README, re.MULTILINE)[0])
    text = README.split(f'{"#" * level} {title}\n', 1)[1]
    return re.split(f'^#{{1,{level}}} ', text, maxsplit=1, flags=re.MULTILINE)[0]


def steps(text: str) -> Iterator[Step]:
    """The commands in all console blocks of a text."""
    for block in re.findall(r'^```console\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        for part in re.split(r'^\$ ', block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition('\n')
            yield Step(command, output)


def first_cells(title: str) -> list[str]:
    """The code in the first cells of the tables in a section."""
    rows = re.findall(r'^\| (`.*?`) \|', section(title), re.MULTILINE)
    return [code for row in rows for code in re.findall('`([^`]+)`', row)]


def named_paths(title: str) -> set[str]:
    """The paths of the requests in the tables of a section."""
    return set(re.findall(r'(?:GET|POST|PUT|DELETE) (/\S*)', ' '.join(first_cells(title))))


def templates(routes: Iterable[Route]) -> set[str]:
    return {route.template for route in routes}


def run(command: str, port: int) -> str:
    """Runs a command of the README against the server on that port."""
    command = command.replace('localhost:8080', f'127.0.0.1:{port}')
    done = subprocess.run(command, shell=True, cwd=ROOT_DIR, capture_output=True, text=True,
                          timeout=20)
    return done.stdout.replace('\r\n', '\n').rstrip('\n')


def names_in(output: str) -> list[str]:
    """The ids and versions that an output tells; later commands have them."""
    return [nickname or version for nickname, version in NAMED.findall(output)]


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A text with each of these names in place of the other."""
    return re.sub('|'.join(map(re.escape, names)) or '$^', lambda match: names[match[0]], text)


def comparable(output: str) -> str:
    """An output without what differs each time."""
    return VARYING.sub('~', output).rstrip('\n')


def settings(schema: dict[str, Any], prefix: str = '') -> Iterator[str]:
    """The dotted names of all settings."""
    for key, value in schema['properties'].items():
        is_section = 'properties' in value and key != 'logging'
        yield from settings(value, f'{prefix}{key}.') if is_section else [f'{prefix}{key}']


class ReadmeTests(unittest.TestCase):
    maxDiff = None

    def test_the_walk_with_curl_prints_what_the_readme_shows(self) -> None:
        real: dict[str, str] = {}
        with ServerProcess() as server:
            for step in steps(section('A walk with curl')):
                with self.subTest(step.command):
                    output = run(renamed(step.command, real), server.port)
                    real |= zip(names_in(step.output), names_in(output))
                    shown = {name: key for key, name in real.items()}
                    self.assertEqual(comparable(renamed(output, shown)), comparable(step.output))

    def test_every_route_is_in_the_table_of_requests(self) -> None:
        documented = ' '.join(re.findall('`([^`]+)`', section('The API')))
        for route in ROUTES:
            self.assertIn(route.template, documented)
        self.assertLessEqual(named_paths('The API'), templates(ROUTES))

    def test_every_route_of_the_admin_port_is_in_its_table_and_no_other(self) -> None:
        files_of_the_page = {'/{file}'}
        self.assertEqual(named_paths('The admin port'), templates(ADMIN_ROUTES) - files_of_the_page)

    def test_the_commands_for_the_admin_port_print_what_the_readme_shows(self) -> None:
        with ServerProcess({'admin': {'port': 0}}) as server:
            admin_port = server.lines('STARTING')[-1]['admin_port']
            for step in steps(section('The admin port')):
                command = step.command.replace('localhost:8081', f'127.0.0.1:{admin_port}')
                with self.subTest(command):
                    self.assertEqual(run(command, server.port), step.output.rstrip('\n'))

    def test_every_metric_that_is_named_is_exposed_and_every_one_exposed_is_named(self) -> None:
        exposed = {family.name for family in text_string_to_metric_families(
            Metrics().exposition('')[0].decode())}
        own = {name for name in exposed if not name.startswith(('process_', 'python_gc_'))}
        named = {name.removesuffix('_total') for name in first_cells('Metrics')}
        when_known = {'addrservice_entries', 'db_client_connection_count',
                      'db_client_connection_max'}
        self.assertEqual(named - {'process_…', 'python_gc_…'}, own | when_known)

    def test_the_table_of_settings_is_that_of_the_schema(self) -> None:
        self.assertEqual(first_cells('Configuration'),
                         list(settings(json.loads(SCHEMA_FILE.read_text()))))

    def test_the_words_of_run_py_are_those_that_its_help_tells(self) -> None:
        told = subprocess.run([sys.executable, 'run.py', '--help'], cwd=ROOT_DIR, text=True,
                              capture_output=True, check=True, timeout=20).stdout
        documented = re.findall(r'python3 run\.py (\w+)', ' '.join(first_cells('Working on it')))
        known = re.findall(r'^ {4}([a-z]+)(?: {2,}.+)?$', told, re.MULTILINE)
        self.assertEqual(sorted(documented), sorted(known))

    def test_every_file_and_folder_that_is_named_is_there(self) -> None:
        for name in re.findall(r'`((?:addrservice|configs|data|schema|tests|benchmarks)/[\w./-]+)`',
                               README):
            with self.subTest(name):
                self.assertTrue((ROOT_DIR / name).exists())

    def test_every_link_within_the_readme_leads_to_a_heading(self) -> None:
        headings = {re.sub(r'[^\w -]', '', title).strip().lower().replace(' ', '-')
                    for title in re.findall('^#+ (.+)$', README, re.MULTILINE)}
        for anchor in re.findall(r'\]\(#([^)]+)\)', README):
            self.assertIn(anchor, headings)


if __name__ == '__main__':
    unittest.main()

"""The service as a real process: how it starts, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.client
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml

from addrservice import __version__
from addrservice.config import load_config
from data import address_data_suite
from tests.support import (
    DEADLINE, ROOT, Answer, ServerProcess, on_each_transport, parse_logfmt, read_to_end,
    split_answers)

Config = dict[str, Any]

LOCAL_CONFIG = './configs/addressbook-local.yaml'
ENTRY = json.dumps(address_data_suite()['namo'])
SIGNALS = (signal.SIGTERM, signal.SIGINT)
OPTIONS = {'--config', '--port', '--host', '--debug', '--check-config', '--version'}
AT_ONCE = 5.0
"""Seconds; far less than what would pass if the process waited for something."""

# Outside a virtual environment run.py would make one first, which its own tests look at.
RUN_PY = ['run.py'] if sys.prefix != sys.base_prefix else ['-c', (
    'import runpy, sys; sys.base_prefix = ""; sys.argv[0] = "run.py"; '
    'runpy.run_path("run.py", run_name="__main__")')]
WAYS: Mapping[str, list[str]] = {
    'module': ['-m', 'addrservice'],
    'script': ['addrservice/tornado/server.py'],
    'run.py': [*RUN_PY, 'serve'],
}
WAYS_FROM_ANYWHERE: Mapping[str, list[str]] = {
    'script': [str(ROOT / 'addrservice/tornado/server.py')],
    'run.py': [part.replace('run.py', str(ROOT / 'run.py')) for part in WAYS['run.py']],
}

TIME = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}'
MESSAGES = (
    r'message="STARTING" service_name="Address Book" port=\d+ admin_port=\d+',
    r'req_id="[0-9a-f]{32}" method="POST" uri="/addresses" ip="127\.0\.0\.1" '
    r'trace_id="[0-9a-f]{32}" span_id="[0-9a-f]{16}" '
    r'message="RESPONSE" status=201 time_ms=\d+\.\d+ route="/addresses" bytes=0',
    r'message="SHUTTING DOWN" service_name="Address Book"',
    r'message="STOPPED" service_name="Address Book"')
BRIEF = f'{TIME} addrservice INFO : '
"""How lines begin with the configuration for this machine, and with the default one."""

PLAIN = f'time="{TIME}" logger="addrservice" level="INFO" '
ORIGIN = ['time', 'logger', 'level', 'file', 'lineno', 'function']
IDENTITY = ['req_id', 'method', 'uri', 'ip', 'trace_id', 'span_id']
OUTCOME = ['message', 'status', 'time_ms', 'route', 'bytes']


class Ended(NamedTuple):
    """What is left of a process."""

    status: int
    out: str
    err: str


def limit_open_files(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class ProcessTest(unittest.TestCase):
    """Starts processes, and sees to it that each of them ends."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.numbers = itertools.count()

    def path(self, suffix: str) -> Path:
        """A path in the temporary folder that nothing has yet."""
        return self.folder / f'{next(self.numbers)}{suffix}'

    def config_file(self, content: str | Config) -> str:
        path = self.path('.yaml')
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    def spawn(self, *arguments: str, cwd: Path = ROOT, preexec: Callable[[], None] | None = None,
              **environment: str) -> subprocess.Popen[str]:
        """Starts Python; the process is killed when it takes too long, and at the latest
        when the test ends."""
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=preexec,
            env={**os.environ, 'ADDRSERVICE_LOG': str(self.path('.log')), **environment})
        watchdog = threading.Timer(2 * DEADLINE, process.kill)
        watchdog.start()
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.addCleanup(watchdog.cancel)
        return process

    def ended(self, process: subprocess.Popen[str]) -> Ended:
        """Waits for the end."""
        out, err = process.communicate(timeout=2 * DEADLINE)
        return Ended(process.returncode, out, err)

    def run_all(self, commands: Mapping[str, list[str]]) -> dict[str, Ended]:
        """Runs all of them at once; gives the end of each."""
        started = {name: self.spawn(*command) for name, command in commands.items()}
        return {name: self.ended(process) for name, process in started.items()}

    @contextlib.contextmanager
    def server(self, config: Config | None = None, *arguments: str) -> Iterator[ServerProcess]:
        """A server that, unless told otherwise, does not wait when it is to end."""
        config = {'drain': {'delay': 0}, **(config or {})}
        with ServerProcess(config, *arguments) as server:
            yield server

    def assert_stopped(self, server: ServerProcess, status: int) -> None:
        """The process said goodbye, and nothing after that."""
        self.assertEqual(status, 0)
        self.assertEqual(server.lines()[-1]['message'], 'STOPPED')


def line_with(stream: Any, text: str) -> str:
    """Reads on until a line has this text, and returns the line."""
    for line in stream:
        if text in line:
            return str(line)
    raise AssertionError(f'no line with {text!r}')


def port_in(line: str) -> int:
    return int(line.rpartition(' port=')[2].split()[0])


def request(port: int, method: str, target: str, body: str | None = None) -> Answer:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request(method, target, body)
        return answer_on(connection)


def answer_on(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    return Answer(response.status, response.reason, response.headers, response.read())


class WaysToStartTest(ProcessTest):
    def start_everywhere(self) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """Each way that is documented, in the repository and where it can be, elsewhere; with how
        its lines begin."""
        options = ['--port', '0', '--debug']
        for way in WAYS.values():
            yield self.spawn(*way, '--config', LOCAL_CONFIG, *options), BRIEF
        for way in WAYS_FROM_ANYWHERE.values():
            yield self.spawn(*way, *options, cwd=self.folder), PLAIN

    def test_every_way_to_start_serves_and_logs_as_documented(self) -> None:
        for process, beginning in list(self.start_everywhere()):
            with self.subTest(command=process.args):
                first = line_with(process.stdout, 'STARTING')
                self.assertEqual(request(port_in(first), 'POST', '/addresses', ENTRY).status, 201)
                process.send_signal(signal.SIGTERM)
                status, rest, err = self.ended(process)
                self.assertEqual((status, err), (0, ''))
                lines = ''.join(f'{beginning}{message}\n' for message in MESSAGES)
                self.assertRegex(first + rest, rf'\A{lines}\Z')

    def test_without_a_configuration_entries_are_there_after_a_restart(self) -> None:
        places = []
        for method, place in (('POST', '/addresses'), ('GET', '/addresses')):
            process = self.spawn(*WAYS_FROM_ANYWHERE['script'], '--port', '0', '--debug',
                                 cwd=self.folder)
            port = port_in(line_with(process.stdout, 'STARTING'))
            answer = request(port, method, place, ENTRY if method == 'POST' else None)
            places.append(answer.headers['Location'])
            process.kill()
            process.wait()
        nickname = places[0].rpartition('/')[2]
        self.assertEqual(list(answer.json()), [nickname])
        self.assertTrue((self.folder / 'local' / 'addressbook.db').is_file())

    def test_a_module_or_script_beside_the_server_hides_no_library(self) -> None:
        # The folder of server.py is first on the path when it is run as a script.
        code = 'import sys; print([p for p in sys.path if p.endswith("addrservice/tornado")])'
        (self.folder / 'sitecustomize.py').write_text(
            f'import atexit\natexit.register(lambda: exec({code!r}))\n')
        process = self.spawn(*WAYS['script'], '--version', PYTHONPATH=str(self.folder))
        self.assertEqual(self.ended(process).out, f'addrservice {__version__}\n[]\n')

    def test_the_log_file_has_the_documented_fields_in_their_order(self) -> None:
        log_file = self.path('.log')
        process = self.spawn(*WAYS['module'], '--config', LOCAL_CONFIG, '--port', '0', '--debug',
                             ADDRSERVICE_LOG=str(log_file))
        request(port_in(line_with(process.stdout, 'STARTING')), 'POST', '/addresses', ENTRY)
        process.send_signal(signal.SIGTERM)
        self.ended(process)
        lines = [parse_logfmt(line) for line in log_file.read_text().splitlines()
                 if 'logger="addrservice"' in line]
        self.assertEqual([list(line) for line in lines], [
            [*ORIGIN, 'message', 'service_name', 'port', 'admin_port'],
            [*ORIGIN, *IDENTITY, *OUTCOME],
            [*ORIGIN, 'message', 'service_name'], [*ORIGIN, 'message', 'service_name']])
        self.assertRegex(lines[0]['time'], rf'\A{TIME}\Z')
        self.assertEqual((lines[0]['level'], lines[0]['service_name']), ('INFO', 'Address Book'))


class CommandLineTest(ProcessTest):
    def test_version_and_help_say_what_they_should_on_every_way(self) -> None:
        commands = {f'{name} {option}': [*way, option]
                    for name, way in WAYS.items() for option in ('--version', '--help')}
        for name, (status, out, err) in self.run_all(commands).items():
            with self.subTest(name):
                self.assertEqual((status, err), (0, ''))
                if name.endswith('--version'):
                    self.assertEqual(out, f'addrservice {__version__}\n')
                else:
                    self.assertLessEqual(OPTIONS, set(re.findall(r'--[a-z-]+', out)))

    def test_a_port_that_is_none_is_refused(self) -> None:
        ports = ('-1', '65536', 'http', '', '8o80', '+80', '8_0', '1.0', '٨٠')
        commands = {port: [*WAYS['module'], f'--port={port}'] for port in ports}
        commands['unknown option'] = [*WAYS['module'], '--prot', '80']
        for name, (status, out, err) in self.run_all(commands).items():
            with self.subTest(name):
                self.assertEqual((status, out), (2, ''))
                self.assertIn('--prot' if name == 'unknown option' else '--port', err)
                self.assertNotIn('Traceback', err)

    def test_an_empty_host_is_refused_and_not_taken_for_every_address(self) -> None:
        process = self.spawn(*WAYS['module'], '--host=', '--port=0', '--check-config')
        ended = self.ended(process)
        self.assertEqual((ended.status, ended.out), (2, ''))
        self.assertIn('host', ended.err)

    def test_port_and_host_win_over_the_file(self) -> None:
        config = {'server': {'host': '192.0.2.1', 'port': 1}}
        with self.server(config, '--host', '127.0.0.1') as server:
            self.assertNotEqual(server.port, 1)


class CheckConfigTest(ProcessTest):
    def check(self, config: str | Config, *options: str) -> Ended:
        return self.ended(self.spawn(
            *WAYS['module'], '--check-config', '--config', self.config_file(config), *options))

    def effective(self, config: str | Config, *options: str) -> Any:
        status, out, err = self.check(config, *options)
        self.assertEqual((status, err), (0, ''))
        return yaml.safe_load(out)

    def test_what_is_printed_is_complete_and_loads_to_the_same_again(self) -> None:
        config = {'server': {'port': 1234}, 'service': {'name': 'A: "b" # é'}}
        effective = self.effective(config)
        self.assertEqual(effective, load_config(self.config_file(config)))
        self.assertEqual(load_config(self.config_file(effective)), effective)

    def test_what_is_printed_loads_again_when_it_has_dollar_signs(self) -> None:
        out = self.check("service: {name: '$${message} $$$$ 5$'}").out
        self.assertEqual(load_config(self.config_file(out))['service']['name'], '${message} $$ 5$')

    def test_options_are_a_part_of_what_is_effective(self) -> None:
        effective = self.effective('', '--port', '4321', '--host', '::1', '--debug')
        self.assertEqual((effective['server']['port'], effective['server']['host'],
                          effective['drain']['delay']), (4321, '::1', 0))

    def test_secrets_are_masked(self) -> None:
        logging = {'version': 1, 'handlers': {'mail': {
            'class': 'logging.handlers.SMTPHandler', 'mailhost': '127.0.0.1',
            'fromaddr': 'a@b.example', 'toaddrs': ['c@d.example'], 'subject': 'x',
            'credentials': ['me', 'hunter2']}}}
        out = self.check({'logging': logging, 'service': {
            'name': 'postgresql://me:hunter2@db.example/book'}}).out
        self.assertNotIn('hunter2', out)
        self.assertIn('postgresql://me:***@db.example/book', out)

    def test_a_bad_file_is_refused_in_one_line(self) -> None:
        path = self.config_file('server: {prot: 1}')
        ended = self.ended(self.spawn(*WAYS['module'], '--check-config', '--config', path))
        self.assertEqual(ended, (2, '', f"addrservice: {path}: server.prot: unknown key, "
                                        "did you mean 'port'?\n"))


class BadStartTest(ProcessTest):
    """What cannot start says so in one line that names file and key, and ends with 2."""

    def assert_refused_in_one_line(self, configs: Mapping[str, str]) -> None:
        """
        :param configs: the content of a file -> what is named beside the file.
        """
        self.assert_files_refused(
            {self.config_file(config): named for config, named in configs.items()})

    def assert_files_refused(self, files: Mapping[str, str]) -> None:
        ends = self.run_all({file: [*WAYS['module'], '--config', file] for file in files})
        for file, ended in ends.items():
            with self.subTest(Path(file).read_text()[:60] if Path(file).is_file() else file):
                self.assert_one_line(ended, file, files[file])

    def assert_one_line(self, ended: Ended, *named: str) -> None:
        self.assertEqual(ended.err.count('\n'), 1, ended.err)
        for text in named:
            self.assertIn(text, ended.err)
        self.assertEqual((ended.status, ended.out), (2, ''))

    def test_what_is_wrong_in_a_file_is_named(self) -> None:
        self.assert_refused_in_one_line({
            'server: {prot: 80}': 'server.prot',
            'servr: {}': 'servr',
            'server: {port: "80"}': 'server.port',
            'server: {port: 80.0}': 'server.port',
            'server: {port: 0}\ndrain: {delay: .nan}': 'drain.delay',
            'server:\n  port: [1\n': 'line 3, column 1',
            '- server\n': 'mapping',
            'addr-db: {sqlit: x}': 'addr-db.sqlit',
            'server:\n  host: ${ADDRSERVICE_TEST_NOT_SET}\n': 'ADDRSERVICE_TEST_NOT_SET',
            'service: {name: 2020-13-45}': 'line 1',
            'server: ' + '[' * 5000: 'YAML',
            'server: {trusted-proxies: [10.0.0.0/33]}': 'server.trusted-proxies'})

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        self.assert_files_refused({
            str(self.path('.yaml')): 'No such file', str(self.folder): 'directory'})

    def test_an_address_that_cannot_be_listened_on_is_named(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
            hosts = {'192.0.2.1': '192.0.2.1', 'nobody.invalid': 'nobody.invalid',
                     'a..b': 'a..b', 'x' * 64: 'x' * 64}
            self.assert_refused_in_one_line({
                f'server: {{port: {port}}}': 'server.port',
                **{f'server: {{host: {host}, port: 0}}': f'server.host: cannot listen on {named}'
                   for host, named in hosts.items()}})

    def test_a_store_that_cannot_be_used_is_named(self) -> None:
        file = self.path('')
        file.touch()
        self.assert_refused_in_one_line({
            f'server: {{port: 0}}\naddr-db: {{fs: {path}}}': 'addr-db.fs'
            for path in (file, file / 'below', '/proc/addrservice', 'x' * 300, r'"a\0b"')})

    def test_a_store_that_cannot_be_used_is_the_only_thing_told_on_the_console(self) -> None:
        config = load_config(str(ROOT / LOCAL_CONFIG))
        config['logging']['handlers']['file']['filename'] = str(self.path('.log'))
        config |= {'server': {'port': 0}, 'addr-db': {'fs': '/proc/addrservice'}}
        self.assert_refused_in_one_line({yaml.safe_dump(config): 'addr-db.fs'})

    def test_a_logging_section_that_cannot_be_used_is_named(self) -> None:
        self.assert_refused_in_one_line({
            f'server: {{port: 0}}\nlogging: {{version: 1, {section}}}\n': f'logging: {named}'
            for section, named in {
                'handlers: {h: {class: nobody.Handler}}': "Unable to configure handler 'h'",
                'handlers: {f: {class: logging.FileHandler, filename: /proc/x.log}}':
                    "Unable to configure handler 'f'",
                'root: {handlers: [h]}': 'Unable to configure root logger',
                'loggers: {a: {level: LOUD}}': "Unable to configure logger 'a'",
                'formatters: {b: {format: "%(x"}}': "Unable to configure formatter 'b'",
                'handlers: 5': '', 'loggers: [a]': ''}.items()})

    def test_a_limit_of_open_files_that_is_too_low_is_named(self) -> None:
        path = self.config_file('server: {port: 0}')
        process = self.spawn(*WAYS['module'], '--config', path, preexec=limit_open_files(256, 256))
        self.assert_one_line(self.ended(process), path, 'server.max-connections', '256')

    def test_a_bad_file_is_refused_alike_on_every_way_to_start(self) -> None:
        path = self.config_file('server: {prot: 80}')
        commands = {name: [*way, '--config', path] for name, way in WAYS.items()}
        for name, ended in self.run_all(commands).items():
            with self.subTest(name):
                self.assert_one_line(ended, path, 'server.prot')

    def test_a_port_that_is_taken_is_refused_when_it_comes_from_the_command_line(self) -> None:
        path = self.config_file('')
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = str(taken.getsockname()[1])
            process = self.spawn(*WAYS['module'], '--config', path, '--port', port)
            self.assert_one_line(self.ended(process), path, 'server.port', port)


class SmallConfigTest(ProcessTest):
    """Sections that are missing, or unusual, and fine."""

    def life_of(self, config: str | Config, preexec: Callable[[], None] | None = None) -> Ended:
        """Starts, and ends again at the first line of the log on stderr."""
        process = self.spawn(*WAYS['module'], '--config', self.config_file(config), '--port', '0',
                             '--debug', preexec=preexec)
        first = line_with(process.stderr, 'STARTING')
        process.send_signal(signal.SIGTERM)
        status, out, rest = self.ended(process)
        return Ended(status, out, first + rest)

    def assert_lived(self, ended: Ended, **fields: object) -> None:
        """Start and stop are on stderr as logfmt, every line with these fields."""
        self.assertEqual((ended.status, ended.out), (0, ''))
        lines = [parse_logfmt(line) for line in ended.err.splitlines()]
        self.assertEqual([line['message'] for line in lines],
                         ['STARTING', 'SHUTTING DOWN', 'STOPPED'])
        for line in lines:
            self.assertLessEqual(fields.items(), line.items())

    def test_an_empty_file_will_do(self) -> None:
        self.assert_lived(self.life_of(''), logger='addrservice', service_name='Address Book')

    def test_a_custom_name_and_logger_without_a_logging_section_log_like_the_default(self) -> None:
        self.assert_lived(self.life_of('service: {name: Mine, logger: my.book}'),
                          logger='my.book', service_name='Mine')

    def test_a_low_limit_of_open_files_is_raised_where_it_may_be(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.assert_lived(self.life_of('', limit_open_files(256, hard)))

    def test_a_custom_logger_gets_every_line_of_the_service(self) -> None:
        with self.server({'service': {'logger': 'my.book'}}) as server:
            server.request('POST', '/addresses', ENTRY)
            server.request('GET', '/nowhere')
            self.assert_stopped(server, server.stop())
            lines = [line for line in server.lines() if line['logger'] != 'asyncio']
        self.assertEqual({line['logger'] for line in lines}, {'my.book'})
        self.assertEqual([line['status'] for line in lines if line.get('route') != '/readiness'
                          and line['message'] == 'RESPONSE'], [201, 404])

    def test_a_logging_section_without_loggers_or_handlers_will_do(self) -> None:
        # Nobody listens, so wait until it answers.
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        path = self.config_file('logging: {version: 1, root: {level: ERROR}}')
        process = self.spawn(*WAYS['module'], '--config', path, '--port', str(port), '--debug')
        self.wait_until_ready(process, port)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(self.ended(process), (0, '', ''))

    def wait_until_ready(self, process: subprocess.Popen[str], port: int) -> None:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                if request(port, 'GET', '/readiness').status == 200:
                    return
            time.sleep(0.02)


@on_each_transport
class CanonicalLineTest(ProcessTest):
    @classmethod
    @functools.cache
    def lines_of_requests(cls, *arguments: str) -> dict[str, Config]:
        """The lines of some requests, each under what it shows."""
        with contextlib.ExitStack() as stack:
            store = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(ServerProcess(
                {'addr-db': {'fs': str(store)}, 'drain': {'delay': 0}}, *arguments))
            (store / 'damaged.json').write_text('{')
            server.request('POST', '/addresses', ENTRY, {'X-Request-ID': 'created'})
            server.request('GET', '/addresses', headers={'X-Request-ID': 'listed'})
            server.request('GET', '/nowhere', headers={'X-Request-ID': 'unknown'})
            server.request('POST', '/addresses', '{"', {'X-Request-ID': 'refused'})
            server.request('GET', '/addresses/damaged', headers={'X-Request-ID': 'failed'})
            server.request('GET', '/healthz', headers={'X-Request-ID': 'probe'})
            server.send(b'GET /x\r\n\r\n')
            server.stop()
            return {line['req_id']: line for line in server.lines('RESPONSE')}

    def fields(self, line: Config) -> list[str]:
        self.assertEqual(list(line)[:2], ['level', 'logger'])
        return list(line)[2:]

    def test_the_fields_stand_in_their_order(self) -> None:
        lines = self.lines_of_requests()
        fine, failed = [*IDENTITY, *OUTCOME], [*IDENTITY, 'reason', *OUTCOME]
        self.assertEqual(self.fields(lines['created']), fine)
        self.assertEqual(self.fields(lines['listed']), fine)
        self.assertEqual(self.fields(lines['probe']), fine)
        self.assertEqual([field for field in self.fields(lines['unknown']) if field != 'detail'],
                         [field for field in failed if field != 'route'])
        self.assertEqual(self.fields(lines['refused']), [*failed, 'detail'])
        self.assertEqual(self.fields(lines['failed']), [*failed, 'detail', 'cause', 'trace'])

    def test_a_line_tells_what_was_asked_and_answered(self) -> None:
        line = dict(self.lines_of_requests()['refused'])
        self.assertGreater(line.pop('time_ms'), 0)
        self.assertGreater(line.pop('bytes'), 0)
        self.assertIn('JSON', line.pop('detail'))
        self.assertRegex(line.pop('trace_id'), '^[0-9a-f]{32}$')
        self.assertRegex(line.pop('span_id'), '^[0-9a-f]{16}$')
        self.assertEqual(line, {
            'level': 'WARNING', 'logger': 'addrservice', 'req_id': 'refused', 'method': 'POST',
            'uri': '/addresses', 'ip': '127.0.0.1', 'reason': 'Invalid JSON body',
            'message': 'RESPONSE', 'status': 400, 'route': '/addresses'})

    def test_the_level_follows_from_the_status(self) -> None:
        lines = self.lines_of_requests()
        self.assertEqual(
            {req_id: (lines[req_id]['level'], lines[req_id]['status']) for req_id in (
                'created', 'listed', 'unknown', 'refused', 'failed', 'probe')},
            {'created': ('INFO', 201), 'listed': ('INFO', 200), 'unknown': ('WARNING', 404),
             'refused': ('WARNING', 400), 'failed': ('ERROR', 500), 'probe': ('DEBUG', 200)})

    def test_a_trace_belongs_to_faults_of_ours_and_with_debug_to_every_error(self) -> None:
        for arguments, traced in (((), {500}), (('--debug',), {400, 404, 500})):
            lines = self.lines_of_requests(*arguments).values()
            with self.subTest(arguments=arguments):
                self.assertEqual({line['status'] for line in lines if 'trace' in line}, traced)
                for line in lines:
                    self.assertRegex(line.get('trace', 'Traceback'), r'\ATraceback')

    def test_a_malformed_request_has_its_line_too(self) -> None:
        malformed = [line for line in self.lines_of_requests().values() if line['uri'] == '/x']
        self.assertEqual([(line['status'], line['level']) for line in malformed],
                         [(400, 'WARNING')])


@on_each_transport
class StartSignalTest(ProcessTest):
    """Told to stop while starting, the process ends with 0 and without a word."""

    MODULES = ('yaml', 'jsonschema', 'addrservice.tornado.app')
    """Imported one after the other, all of them after our first line has run."""

    def end_when_imported(self, way: str, module: str, number: int, delay: float = 0) -> Ended:
        """Starts a server, and signals it so many seconds after it has imported a module."""
        process = self.spawn(
            '-X', 'importtime', *WAYS[way], '--port', '0', '--config',
            self.config_file({'drain': {'delay': 0}, 'logging': {'version': 1}}))
        for line in process.stderr or ():
            if line.rpartition('|')[2].strip() == module:
                break
        time.sleep(delay)
        process.send_signal(number)
        return self.ended(process)

    def assert_end_quietly(self, cases: Iterable[tuple[str, str, int, float]]) -> None:
        with ThreadPoolExecutor(4) as pool:
            ends = {case: pool.submit(self.end_when_imported, *case) for case in cases}
        for case, end in ends.items():
            with self.subTest(case):
                status, out, err = end.result()
                told = re.sub(r'(?m)^import time:.*\n|^[ \d]*\|.*\n', '', err)
                self.assertEqual(told, '')
                self.assertEqual((status, out), (0, ''))

    def test_a_signal_between_any_two_imports_ends_it(self) -> None:
        self.assert_end_quietly(itertools.product(WAYS, self.MODULES, SIGNALS, [0]))

    def test_a_signal_at_any_later_moment_of_the_start_ends_it(self) -> None:
        self.assert_end_quietly(
            (way, self.MODULES[-1], number, milliseconds / 1000) for milliseconds, way, number in
            zip(range(0, 150, 10), itertools.cycle(WAYS), itertools.cycle(SIGNALS)))

    RUN_WITH_SIGNAL = '''
import importlib.abc, runpy, signal, sys, weakref

class Thing: pass

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == 'addrservice.tornado.app':
            thing = Thing()
            reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
            del thing

sys.meta_path.insert(0, Finder())
sys.argv[:] = sys.argv[2:]
sys.base_prefix = ''
if sys.argv[0] == '-m':
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name='__main__')
'''

    def test_a_signal_is_not_lost_where_python_swallows_exceptions(self) -> None:
        # Imports run callbacks of weak references, and what those raise is ignored.
        config = self.config_file('logging: {version: 1}\ndrain: {delay: 0}\n')
        ways = {**WAYS, 'run.py': ['run.py', 'serve']}
        started = {name: self.spawn('-c', self.RUN_WITH_SIGNAL, '--', *way, '--port', '0',
                                    '--config', config) for name, way in ways.items()}
        for way, process in started.items():
            with self.subTest(way=way):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(AT_ONCE)
                process.kill()
                self.assertEqual(self.ended(process), (0, '', ''))


@on_each_transport
class DrainTest(ProcessTest):
    def start_upload(self, server: ServerProcess) -> socket.socket:
        """Sends a request but for the last byte of its body."""
        connection = server.connect()
        self.addCleanup(connection.close)
        head = f'POST /addresses HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ENTRY)}\r\n\r\n'
        connection.sendall((head + ENTRY[:-1]).encode())
        # An answer on another connection shows that the server has seen this one.
        server.request('GET', '/healthz')
        return connection

    def finish_upload(self, connection: socket.socket) -> Answer:
        connection.sendall(ENTRY[-1:].encode())
        answer, = split_answers(read_to_end(connection))
        return answer

    def is_refused(self, server: ServerProcess) -> bool:
        try:
            server.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    def send(self, server: ServerProcess, number: signal.Signals) -> None:
        assert server.process is not None
        server.process.send_signal(number)

    def wait_for_end(self, server: ServerProcess, seconds: float = DEADLINE) -> int:
        assert server.process is not None
        return server.process.wait(seconds)

    def err(self, server: ServerProcess) -> str:
        assert server.process is not None
        return server.process.communicate()[1]

    def test_both_signals_serve_on_for_the_delay_and_say_that_it_ends(self) -> None:
        for number in SIGNALS:
            with self.subTest(signal=number.name), self.server({'drain': {'delay': 1}}) as server:
                self.assert_drains(server, number)

    def assert_drains(self, server: ServerProcess, number: signal.Signals) -> None:
        kept = http.client.HTTPConnection('127.0.0.1', server.port, timeout=DEADLINE)
        kept.request('GET', '/healthz')
        self.assertNotEqual(answer_on(kept).headers['Connection'], 'close')
        self.send(server, number)
        server.wait_for(lambda: server.request('GET', '/readiness').status == 503)
        self.assertIs(server.request('GET', '/readiness').json()['ready'], False)
        answers = [server.request('GET', '/healthz'), server.request('POST', '/addresses', ENTRY)]
        with contextlib.closing(kept):
            kept.request('GET', '/healthz')
            answers.append(answer_on(kept))
        self.assertEqual([(answer.status, answer.headers['Connection']) for answer in answers],
                         [(200, 'close'), (201, 'close'), (200, 'close')])
        self.assert_stopped(server, self.wait_for_end(server))
        self.assertTrue(self.is_refused(server))
        self.assertEqual(self.err(server), '')

    def test_a_request_in_flight_ends_while_new_connections_are_refused(self) -> None:
        with self.server() as server:
            connection = self.start_upload(server)
            self.send(server, signal.SIGTERM)
            server.wait_for(lambda: self.is_refused(server))
            answer = self.finish_upload(connection)
            self.assertEqual((answer.status, answer.headers['Connection']), (201, 'close'))
            self.assert_stopped(server, self.wait_for_end(server))
            self.assertEqual(server.lines('RESPONSE')[-1]['status'], 201)

    def test_a_request_that_never_ends_is_cut_off_and_has_its_line(self) -> None:
        with self.server({'drain': {'delay': 0, 'timeout': 0.5}}) as server:
            connection = self.start_upload(server)
            self.assertEqual(server.stop(), 0)
            self.assertEqual(read_to_end(connection), b'')
            messages = [line['message'] for line in server.lines()]
            self.assertEqual(messages[-3:], ['DRAIN TIMED OUT', 'RESPONSE', 'STOPPED'])
            cut_off = server.lines('RESPONSE')[-1]
            self.assertEqual((cut_off['method'], cut_off['uri']), ('POST', '/addresses'))
            self.assertIn(cut_off['status'], (499, 503))
            self.assertEqual(self.err(server), '')

    def test_a_request_that_waits_for_the_store_is_cut_off_and_has_its_line(self) -> None:
        store = self.path('')
        with self.server({'drain': {'delay': 0, 'timeout': 0.3},
                          'addr-db': {'fs': str(store)}}) as server:
            location = server.request('POST', '/addresses', ENTRY).headers['Location']
            with self.locked(store):
                connection = server.connect()
                self.addCleanup(connection.close)
                connection.sendall(f'DELETE {location} HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
                server.request('GET', '/healthz')
                self.send(server, signal.SIGTERM)
                server.wait_for(lambda: bool(server.lines('DRAIN TIMED OUT')))
            self.assert_stopped(server, self.wait_for_end(server))
            self.assertEqual(server.lines('DRAIN TIMED OUT')[0]['connections'], 1)
            cut_off = server.lines('RESPONSE')[-1]
            self.assertEqual(cut_off['method'], 'DELETE')
            self.assertEqual(self.err(server), '')

    @contextlib.contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Keeps the file engine from replacing and deleting, as another process could."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def test_a_disk_that_hangs_does_not_keep_the_process(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            hang = Path(folder, 'hang')
            program = ('import os, sys, time\n'
                       'from addrservice.tornado import server, serving\n'
                       'real = os.fsync\n'
                       f'slow = lambda fd: time.sleep(60 * os.path.exists({str(hang)!r}))\n'
                       'os.fsync = lambda fd: slow(fd) or real(fd)\n'
                       'serving.STOP_SECONDS = 0.2\n'
                       'sys.exit(server.main(sys.argv[1:]))\n')
            config = {'addr-db': {'fs': f'{folder}/book'}, 'server': {'request-timeout': 0.2},
                      'drain': {'delay': 0, 'timeout': 0.2}}
            with ServerProcess(config, command=(sys.executable, '-c', program)) as server:
                hang.touch()
                answer = server.request('POST', '/addresses', '{"full_name": "x"}')
                self.assertEqual(answer.status, 503)
                self.assertEqual(server.stop(), 1)
                self.assertEqual(server.lines()[-1]['message'], 'STORE HANGS')

    def test_a_second_signal_during_the_delay_ends_it_at_once(self) -> None:
        for first, second in itertools.product(SIGNALS, SIGNALS):
            with self.subTest(first=first.name, second=second.name):
                with self.server({'drain': {'delay': 60}}) as server:
                    self.assert_killed(server, first, second)

    def test_a_second_signal_while_a_request_hangs_ends_it_at_once(self) -> None:
        with self.server({'drain': {'delay': 0, 'timeout': 60}}) as server:
            self.start_upload(server)
            self.assert_killed(server, signal.SIGTERM, signal.SIGTERM)

    def assert_killed(self, server: ServerProcess, *numbers: signal.Signals) -> None:
        for number in numbers:
            self.send(server, number)
            server.wait_for(lambda: bool(server.lines('SHUTTING DOWN')))
        self.assertEqual(self.wait_for_end(server, AT_ONCE), 1)
        self.assertEqual(self.err(server), '')

    def test_signals_at_the_very_end_do_no_harm(self) -> None:
        for number in SIGNALS:
            with self.subTest(signal=number.name), self.server() as server:
                self.send(server, number)
                while not server.lines('STOPPED'):
                    pass
                self.send_until_it_ends(server, number)
                self.assertIn(self.wait_for_end(server), (0, 1))
                self.assertEqual(self.err(server), '')

    def send_until_it_ends(self, server: ServerProcess, number: signal.Signals) -> None:
        assert server.process is not None
        while server.process.poll() is None:
            self.send(server, number)
            time.sleep(0.001)

    def test_idle_connections_do_not_keep_it_from_ending(self) -> None:
        with self.server() as server, contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(server.connect())
            used = stack.enter_context(server.connect())
            used.sendall(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
            self.assertTrue(used.recv(1))
            began = time.monotonic()
            self.assert_stopped(server, server.stop())
            self.assertLess(time.monotonic() - began, AT_ONCE)


class Client(threading.Thread):
    """Writes and reads over one kept-alive connection, until none is accepted any more."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection('127.0.0.1', port, timeout=DEADLINE)
        self.answers: list[int] = []
        self.broken: list[str] = []

    def run(self) -> None:
        with contextlib.closing(self.connection), contextlib.suppress(ConnectionRefusedError):
            while not self.broken:
                location = self.request('POST', '/addresses', ENTRY)
                self.request('GET', location)

    def request(self, method: str, target: str, body: str | None = None) -> str:
        if self.connection.sock is None:
            self.connection.connect()  # what fails here was never sent
        try:
            self.connection.request(method, target, body)
            answer = answer_on(self.connection)
        except (OSError, http.client.HTTPException) as error:
            self.broken.append(repr(error))
            raise ConnectionRefusedError from error
        self.answers.append(answer.status)
        return answer.headers.get('Location', '')


@on_each_transport
class DrainUnderLoadTest(ProcessTest):
    CLIENTS = 50

    def stop_under_load(self, delay: float) -> tuple[list[Client], list[Config]]:
        """The clients, and the lines of their requests."""
        with self.server({'drain': {'delay': delay}}) as server:
            clients = [Client(server.port) for _ in range(self.CLIENTS)]
            for client in clients:
                client.start()
            server.wait_for(lambda: all(client.answers for client in clients))
            self.assert_stopped(server, server.stop())
            for client in clients:
                client.join()
            lines = server.lines('RESPONSE')
        return clients, [line for line in lines if line['route'] != '/readiness']

    def assert_nothing_broke(self, delay: float) -> None:
        clients, lines = self.stop_under_load(delay)
        self.assertEqual([broken for client in clients for broken in client.broken], [])
        answers = [status for client in clients for status in client.answers]
        self.assertEqual(set(answers), {200, 201})
        self.assertEqual(sorted(line['status'] for line in lines), sorted(answers))

    def test_fifty_clients_at_work_lose_no_request_when_it_ends_after_a_delay(self) -> None:
        for _ in range(2):
            with self.subTest():
                self.assert_nothing_broke(delay=1)

    def test_fifty_clients_at_work_lose_no_request_when_it_ends_at_once(self) -> None:
        for _ in range(3):
            with self.subTest():
                self.assert_nothing_broke(delay=0)


@on_each_transport
class RestartTest(ProcessTest):
    def test_entries_in_files_survive_a_restart_as_the_very_same_documents(self) -> None:
        documents = [
            {'full_name': 'Zoë 😀 \u0928 "quoted" \\ back', 'emails': []},
            *address_data_suite().values()]
        with self.server({'addr-db': {'fs': str(self.path(''))}}) as server:
            locations = [server.request('POST', '/addresses', json.dumps(document))
                         .headers['Location'] for document in documents]
            before = [server.request('GET', location) for location in locations]
            self.assert_stopped(server, server.stop())
            server.start()
            after = [server.request('GET', location) for location in locations]
            self.assertEqual([answer.json() for answer in after], documents)
            self.assertEqual([(answer.body, answer.headers['Etag']) for answer in after],
                             [(answer.body, answer.headers['Etag']) for answer in before])
            self.assert_stopped(server, server.stop())

    def test_entries_in_memory_end_with_the_process(self) -> None:
        with self.server() as server:
            server.request('POST', '/addresses', ENTRY)
            server.stop()
            server.start()
            self.assertEqual(server.request('GET', '/addresses').json(), {})


if __name__ == '__main__':
    unittest.main()

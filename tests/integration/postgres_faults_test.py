"""The service on PostgreSQL when that stops, hangs, moves to another machine, or is slow.

With ``ADDRSERVICE_REPORT`` in the environment it prints how long writes failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg

from addrservice.database.sql_db import INSERT
from tests.postgres import PASSWORD, PostgresServer, dsn_of, shared_server
from tests.support import DEADLINE, ROOT, Answer, ServerProcess

NOT_KNOWN = 'whether the change was made is not known'
IF_NEW = {'If-None-Match': '*'}
CLIENTS = 50
SHORT = {'acquire-timeout': 0.5, 'connect-timeout': 0.5, 'command-timeout': 0.5}
"""Settings with which a server that hangs is noticed soon. On a busy machine it may look as if
one did: then a write is answered 503, and may be tried again."""

IN_TIME = 10
"""Seconds in which is over what waits for less than two, also on a machine with other work."""


PATIENT = {'acquire-timeout': 15, 'connect-timeout': 15, 'command-timeout': 15,
           'statement-timeout': 15, 'lock-timeout': 15}
"""Settings that wait for longer than anything takes, also on a machine with other work."""


def config_of(dsn: str, **settings: float) -> dict[str, Any]:
    section = {'dsn': dsn, **{key.replace('_', '-'): value for key, value in settings.items()}}
    return {'addr-db': {'postgres': section}}


def document_of(name: str) -> str:
    return json.dumps({'full_name': f'{name} ' + 'x' * 100})


def report(text: str) -> None:
    if os.environ.get('ADDRSERVICE_REPORT'):
        print(text, file=sys.stderr)


class Attempt(NamedTuple):
    """A request that made, or should have made, an entry; or one that read."""

    name: str
    status: int
    start: float
    end: float
    retry_after: str | None


class Load:
    """Clients that create entries, each under a name of its own, and clients that read."""

    def __init__(self, service: ServerProcess, writers: int = 4, readers: int = 2) -> None:
        self.service = service
        self.attempts: list[Attempt] = []
        self.reads: list[Attempt] = []
        self._stopped = threading.Event()
        self._threads = [
            *(threading.Thread(target=self._write, args=(i,)) for i in range(writers)),
            *(threading.Thread(target=self._read) for _ in range(readers))]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int) -> None:
        count = 0
        while not self._stopped.wait(0.005):
            name = f'w{number}-{count}'
            count += 1
            self._try(self.attempts, 'PUT', name)

    def _read(self) -> None:
        while not self._stopped.wait(0.01):
            self._try(self.reads, 'GET', 'nobody')

    def _try(self, attempts: list[Attempt], method: str, name: str) -> None:
        start = time.monotonic()
        body = document_of(name) if method == 'PUT' else None
        answer = self.service.request(method, f'/addresses/{name}', body, IF_NEW if body else None)
        attempts.append(Attempt(name, answer.status, start, time.monotonic(),
                                answer.headers['Retry-After']))

    def acknowledged(self) -> set[str]:
        return {attempt.name for attempt in self.attempts if attempt.status == 201}

    def statuses(self) -> set[int]:
        return {attempt.status for attempt in [*self.attempts, *self.reads]}

    def wait_for_write(self) -> None:
        """Returns when an entry was made by a request that starts from now on."""
        now = time.monotonic()
        wait_for(lambda: any(attempt.status == 201 and attempt.start > now
                             for attempt in list(self.attempts)))

    def wait_for_failure(self) -> None:
        """Returns when a write and a read have failed that started from now on."""
        now = time.monotonic()
        wait_for(lambda: all(any(attempt.status == 503 and attempt.start > now
                                 for attempt in list(attempts))
                             for attempts in (self.attempts, self.reads)))

    def gap(self) -> float:
        """The longest time in which no entry was made."""
        ends = sorted(attempt.end for attempt in self.attempts if attempt.status == 201)
        return max(later - earlier for earlier, later in zip(ends, ends[1:]))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError('it took too long')
        time.sleep(0.01)


def is_noise(line: dict[str, Any]) -> bool:
    """asyncpg 0.32 forgets the future of a connection that is given up before it is there."""
    return 'unexpected connection_lost() call' in str(line.get('trace'))


class PostgresServiceTestCase(unittest.TestCase):

    @contextlib.contextmanager
    def serve(self, config: dict[str, Any]) -> Iterator[ServerProcess]:
        """The service; at its end its log is looked at, whatever the test is about."""
        with ServerProcess(config) as service:
            yield service
            self.assertEqual(0, service.stop())
            self.assert_clean(service)

    def assert_clean(self, service: ServerProcess) -> None:
        """Nothing in the log that nobody should see, and no surprise."""
        text = service.log_file.read_text()
        for secret in (PASSWORD, PASSWORD[:16], quote(PASSWORD, safe='')):
            self.assertNotIn(secret, text)
        self.assertEqual([], service.lines('Uncaught exception'))
        # What is wrong is said by this service, once, and not by its libraries besides.
        loud = [line for line in service.lines()
                if line['logger'] != 'addrservice' and line['level'] in ('WARNING', 'ERROR')]
        self.assertEqual([], [line for line in loud if not is_noise(line)])

    def assert_probes(self, service: ServerProcess, ready_status: int) -> None:
        start = time.monotonic()
        self.assertEqual(200, service.request('GET', '/healthz').status)
        self.assertLess(time.monotonic() - start, IN_TIME)
        start = time.monotonic()
        wait_for(lambda: service.request('GET', '/readiness').status == ready_status)
        self.assertLess(time.monotonic() - start, IN_TIME)

    def assert_kept(self, server: PostgresServer, load: Load) -> None:
        """What was acknowledged is there, and what is there is whole."""
        stored = {name: text for name, text in server.fetch(
            "SELECT nickname, document FROM addresses WHERE nickname LIKE 'w%'")}
        self.assertEqual(set(), load.acknowledged() - set(stored))
        self.assertEqual(set(), set(stored) - {attempt.name for attempt in load.attempts})
        for name, text in stored.items():
            self.assertEqual(json.loads(document_of(name)), json.loads(text))

    def assert_fair_answers(self, load: Load) -> None:
        self.assertLessEqual(load.statuses(), {201, 404, 503}, [
            (line['cause'], line.get('trace'))
            for line in load.service.lines() if line.get('status') == 500])
        for attempt in [*load.attempts, *load.reads]:
            self.assertLess(attempt.end - attempt.start, IN_TIME)
            if attempt.status == 503:
                self.assertIn(attempt.retry_after, ('1', '2', '3'))


class OutageTest(PostgresServiceTestCase):
    """PostgreSQL is away for a while, and the service is not restarted."""

    server: ClassVar[PostgresServer]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = PostgresServer()
        cls.addClassCleanup(cls.server.close)
        cls.server.start()

    def outage(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.server.execute('DROP TABLE IF EXISTS addresses, addresses_schema')
        with self.serve(config_of(self.server.dsn(), **SHORT)) as service:
            with Load(service) as load:
                load.wait_for_write()
                begin()
                self.assert_probes(service, 503)
                load.wait_for_failure()
                self.assert_probes(service, 503)
                end()
                self.assert_probes(service, 200)
                load.wait_for_write()
            report(f'{self.id()}: no write for {load.gap():.2f} s')
            self.assert_fair_answers(load)
            self.assert_kept(self.server, load)

    def test_a_server_that_is_stopped_and_started_again(self) -> None:
        self.outage(self.server.stop, self.server.start)

    def test_a_server_that_is_killed_and_started_again(self) -> None:
        self.outage(self.server.kill, self.server.start)

    def test_a_server_that_hangs_and_goes_on(self) -> None:
        self.outage(self.server.freeze, self.server.thaw)

    def test_a_restart_under_load_loses_nothing(self) -> None:
        self.server.execute('DROP TABLE IF EXISTS addresses, addresses_schema')
        with self.serve(config_of(self.server.dsn(), **SHORT)) as service:
            with Load(service) as load:
                for _ in range(2):
                    load.wait_for_write()
                    self.server.restart()
                load.wait_for_write()
            self.assert_fair_answers(load)
            self.assert_kept(self.server, load)


class LateStartTest(PostgresServiceTestCase):
    """The service starts first, PostgreSQL later."""

    def starting(self, dsn: str) -> Waiting:
        waiting = Waiting(config_of(dsn))
        self.addCleanup(waiting.__exit__)
        waiting.start()
        return waiting

    def test_a_service_without_its_database_waits_for_it_and_then_serves(self) -> None:
        with PostgresServer(durable=False) as server:
            server.stop()
            service = self.starting(server.dsn())
            self.assert_waits(service)
            server.start()
            wait_for(lambda: service.request('GET', '/readiness').status == 200)
            answer = service.request('PUT', '/addresses/a', document_of('a'), IF_NEW)
            self.assertEqual(201, answer.status)
            self.assertEqual(0, service.stop())
            self.assert_clean(service)

    def assert_waits(self, service: ServerProcess) -> None:
        wait_for(lambda: bool(service.lines('STORE NOT REACHABLE')))
        self.assertEqual(200, service.request('GET', '/healthz').status)
        self.assertEqual(503, service.request('GET', '/readiness').status)
        answer = service.request('GET', '/addresses/a')
        self.assertEqual(503, answer.status)
        self.assertIn('Retry-After', answer.headers)
        line = service.lines('STORE NOT REACHABLE')[0]
        self.assertEqual('WARNING', line['level'])
        self.assertIn('Connect', line['cause'])

    def test_a_service_that_waits_can_be_stopped(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            service = self.starting('postgresql://u:sesame@127.0.0.1:1/db')
            self.assert_waits(service)
            start = time.monotonic()
            self.assertEqual(0, service.stop(number))
            self.assertLess(time.monotonic() - start, IN_TIME)
            self.assertNotIn('sesame', service.log_file.read_text())
            self.assertEqual('STOPPED', service.lines()[-1]['message'])


class Waiting(ServerProcess):
    """The service in a process of its own that need not become ready.

    It says where it listens only when the store is open, so it is told a port.
    """

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            self.port = probe.getsockname()[1]
        self.command[self.command.index('--port') + 1] = str(self.port)
        self.process = subprocess.Popen(self.command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.wait_for(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return self.request('GET', '/healthz').status == 200
        return False


class FailoverTest(PostgresServiceTestCase):
    """The primary is lost, and its standby takes over: the DSN names both."""

    def failover(self, lose: Callable[[PostgresServer], None]) -> None:
        with PostgresServer() as primary, primary.standby() as standby:
            dsn = dsn_of(primary, standby, target_session_attrs='read-write')
            with self.serve(config_of(dsn, **SHORT)) as service:
                with Load(service) as load:
                    load.wait_for_write()
                    lose(primary)
                    lost = time.monotonic()
                    load.wait_for_failure()
                    self.assert_probes(service, 503)
                    standby.promote()
                    promoted = time.monotonic()
                    load.wait_for_write()
                    self.assert_probes(service, 200)
                back = min(attempt.end for attempt in load.attempts
                           if attempt.status == 201 and attempt.start > lost)
                report(f'{self.id()}: no write for {load.gap():.2f} s,'
                       f' {back - promoted:.2f} s of it after the promotion')
                self.assertLess(back - promoted, IN_TIME)
                self.assert_fair_answers(load)
                self.assert_kept(standby, load)

    def test_a_primary_that_is_killed(self) -> None:
        self.failover(PostgresServer.kill)

    def test_a_primary_that_hangs_for_ever(self) -> None:
        self.failover(PostgresServer.freeze)


class LostStandbyTest(PostgresServiceTestCase):

    def test_a_write_that_no_standby_confirms_is_of_unknown_outcome_and_may_be_there(self) -> None:
        with PostgresServer() as primary, primary.standby() as standby:
            with self.serve(config_of(primary.dsn(), **SHORT)) as service:
                wait_for(lambda: self.put(service, 'before').status in (201, 412))
                standby.kill()
                start = time.monotonic()
                answer = self.put(service, 'during')
                self.assertEqual(503, answer.status, answer.body)
                self.assertLess(time.monotonic() - start, IN_TIME)
                self.assertIn(NOT_KNOWN, answer.json()['detail'])
                self.assertIn('Retry-After', answer.headers)
                # Given up, it stays where it is written, and is seen once its wait is cancelled.
                wait_for(lambda: primary.fetch(
                    "SELECT 1 FROM addresses WHERE nickname = 'during'") == [(1,)])
                # So it is there.
                wait_for(lambda: self.put(service, 'during').status == 412)
                wait_for(lambda: service.request('GET', '/addresses/during').status == 200)
                standby.start()
                wait_for(lambda: self.put(service, 'after').status in (201, 412))
                wait_for(lambda: service.request('GET', '/addresses').status == 200)
                self.assertEqual(
                    {'before', 'during', 'after'}, {name for name, in primary.fetch(
                        'SELECT nickname FROM addresses')})

    def put(self, service: ServerProcess, name: str) -> Answer:
        return service.request('PUT', f'/addresses/{name}', document_of(name), IF_NEW)


class SharedDatabaseTestCase(PostgresServiceTestCase):
    """A database of its own on the server that does not fail."""

    def setUp(self) -> None:
        self.server = shared_server()
        self.database = self.server.create_database()
        self.addCleanup(self.server.drop_database, self.database)
        self.dsn = self.server.dsn(self.database)


class ReplicaTest(SharedDatabaseTestCase):
    """Two processes of the service on one database."""

    def test_of_many_clients_who_count_up_one_number_over_both_none_is_lost(self) -> None:
        config = config_of(self.dsn, **PATIENT)
        with self.serve(config) as one, self.serve(config) as other:
            one.request('PUT', '/addresses/n', json.dumps({'full_name': '0'}), IF_NEW)
            with ThreadPoolExecutor(CLIENTS) as pool:
                tags = list(pool.map(count_up, [one, other] * (CLIENTS // 2)))
            self.assertEqual(CLIENTS, len(set(tags)))
            answer = other.request('GET', '/addresses/n')
            self.assertEqual(f'{CLIENTS}', answer.json()['full_name'])
            self.assertIn(answer.headers['ETag'], tags)

    def test_of_many_who_create_one_entry_over_both_one_wins(self) -> None:
        config = config_of(self.dsn, **PATIENT)
        with self.serve(config) as one, self.serve(config) as other:
            for turn in range(3):
                def create(number: int, turn: int = turn) -> int:
                    return [one, other][number % 2].request(
                        'PUT', f'/addresses/r{turn}', json.dumps({'full_name': f'{number}'}),
                        IF_NEW).status
                with ThreadPoolExecutor(CLIENTS) as pool:
                    statuses = list(pool.map(create, range(CLIENTS)))
                self.assertEqual([201] + [412] * (CLIENTS - 1), sorted(statuses))
                name = one.request('GET', f'/addresses/r{turn}').json()['full_name']
                self.assertEqual(f'{statuses.index(201)}', name)


def count_up(service: ServerProcess) -> str:
    """Adds one to the number in an entry, however many others do the same.

    :return: the tag of the version that this made.
    """
    connection = http.client.HTTPConnection('127.0.0.1', service.port, timeout=DEADLINE)
    with contextlib.closing(connection):
        while True:
            connection.request('GET', '/addresses/n')
            response = connection.getresponse()
            number = int(json.load(response)['full_name'])
            connection.request('PUT', '/addresses/n', json.dumps({'full_name': f'{number + 1}'}),
                               {'If-Match': response.headers['ETag']})
            response = connection.getresponse()
            response.read()
            if response.status == 204:
                return response.headers['ETag']
            assert response.status == 412, response.status


class SmallPoolTest(SharedDatabaseTestCase):

    def test_fifty_requests_at_once_on_two_connections_are_all_answered(self) -> None:
        with self.serve(config_of(self.dsn, pool_max=2)) as service:
            with ThreadPoolExecutor(51) as pool:
                probes = pool.submit(self.probe, service, 0.8)
                results = list(pool.map(self.create_for(service, 0.8), range(50)))
                self.assertEqual({200}, probes.result())
            statuses = [status for each in results for status, _ in each]
            self.assertLessEqual(set(statuses), {201, 503})
            self.assertGreater(statuses.count(201), 0)
            self.assertLess(max(took for each in results for _, took in each), IN_TIME)
            self.assertEqual([(statuses.count(201),)], self.server.fetch(
                'SELECT count(*) FROM addresses', database=self.database))

    def create_for(self, service: ServerProcess, seconds: float
                   ) -> Callable[[int], list[tuple[int, float]]]:
        end = time.monotonic() + seconds

        def create(_: int) -> list[tuple[int, float]]:
            results = []
            while (start := time.monotonic()) < end:
                answer = service.request('POST', '/addresses', document_of('x'))
                results.append((answer.status, time.monotonic() - start))
            return results
        return create

    def probe(self, service: ServerProcess, seconds: float) -> set[int]:
        end = time.monotonic() + seconds
        statuses = set()
        while time.monotonic() < end:
            for path in ('/healthz', '/readiness'):
                statuses.add(service.request('GET', path).status)
            time.sleep(0.05)
        return statuses

    def test_a_pool_that_waits_for_a_lock_is_full_and_says_so_and_the_process_is_alive(self
                                                                                       ) -> None:
        with self.serve(config_of(self.dsn, pool_max=2, acquire_timeout=0.5,
                                  lock_timeout=0.5)) as service:
            for name in ('a', 'b'):
                self.server.execute(INSERT, name, '0' * 16, document_of(name),
                                    database=self.database)
            with Locked(self.dsn, 'a'), ThreadPoolExecutor(10) as pool:
                start = time.monotonic()
                writes = [pool.submit(service.request, 'PUT', '/addresses/a', document_of('a'))
                          for _ in range(10)]
                self.assertEqual(200, service.request('GET', '/healthz').status)
                answers = [write.result() for write in writes]
                self.assertLess(time.monotonic() - start, IN_TIME)
            self.assertEqual({503}, {answer.status for answer in answers})
            wait_for(lambda: service.request('GET', '/addresses/b').status == 200)
            self.assert_probes(service, 200)


class Locked:
    """Somebody else is changing an entry, on a thread of its own."""

    def __init__(self, dsn: str, nickname: str) -> None:
        self.dsn, self.nickname = dsn, nickname

    def __enter__(self) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(self._lock())

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.connection.close())
        self.runner.close()

    async def _lock(self) -> None:
        self.connection = await asyncpg.connect(self.dsn)
        await self.connection.execute('BEGIN')
        await self.connection.execute(
            'SELECT FROM addresses WHERE nickname = $1 FOR UPDATE', self.nickname)


class SecretTest(SharedDatabaseTestCase):
    """The password of the DSN stays where it is."""

    def assert_secret(self, text: str) -> None:
        for secret in (PASSWORD, PASSWORD[:16], quote(PASSWORD, safe=''), 'sesame'):
            self.assertNotIn(secret, text)

    def test_no_answer_and_no_line_of_the_log_holds_it(self) -> None:
        with self.serve(config_of(self.dsn)) as service:
            self.server.execute('DROP TABLE addresses', database=self.database)
            for method, path in (('GET', '/addresses'), ('GET', '/addresses/a'),
                                 ('POST', '/addresses'), ('DELETE', '/addresses/a')):
                body = document_of('x') if method == 'POST' else None
                answer = service.request(method, path, body)
                self.assertEqual(500, answer.status)
                self.assert_secret(f'{answer.headers}{answer.body!r}')
                self.assertNotIn('Undefined', answer.body.decode())
                self.assertNotIn('asyncpg', answer.body.decode())
            self.assertIn('UndefinedTableError', service.log_file.read_text())

    def run_with(self, dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = ServerProcess(config_of(dsn), *arguments)
        self.addCleanup(process.__exit__)
        return subprocess.run(process.command, cwd=ROOT, text=True, capture_output=True,
                              timeout=DEADLINE)

    def test_the_effective_settings_are_shown_without_it(self) -> None:
        result = self.run_with(self.dsn, '--check-config')
        self.assertEqual(0, result.returncode, result.stderr)
        self.assertIn('***', result.stdout)
        self.assert_secret(result.stdout + result.stderr)

    def test_a_service_that_refuses_to_start_says_why_in_one_line_without_it(self) -> None:
        wrong = self.dsn.replace(quote(PASSWORD, safe=''), 'sesame')
        dsns = (wrong, self.server.dsn('nowhere'), 'postgresql://u:sesame@h:port/db',
                'postgresql://u:sesame\u2100@h/db')
        with ThreadPoolExecutor() as pool:
            results = {dsn: pool.submit(self.run_with, dsn) for dsn in dsns}
        for dsn in dsns:
            with self.subTest(dsn=dsn):
                result = results[dsn].result()
                self.assert_secret(result.stdout + result.stderr)
                self.assertEqual(2, result.returncode)
                self.assertEqual(1, result.stderr.count('\n'), result.stderr)
                self.assertIn('addr-db.postgres', result.stderr)


if __name__ == '__main__':
    unittest.main()

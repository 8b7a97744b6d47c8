"""The connector to PostgreSQL: what becomes of errors, what is run again, how long all may take."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import ssl
import struct
import sys
import tempfile
import time
import unittest
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock
from urllib.parse import quote

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg

from addrservice.config import complete_config
from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.records import encode_record
from addrservice.database.postgres_db import PostgresConnector, _Connection, _one_by_one
from addrservice.database.sql_db import (
    DELETE, INSERT, MIGRATIONS, READ, UPDATE, SQLAddressBookDB)
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressChanged, AddressNotFound, ConfigError, OutcomeUnknown, StorageError,
    StorageUnavailable)
from tests.postgres import PASSWORD, USER, Rows, shared_server
from tests.support import DEADLINE, quiet_logger

SECRET = 'sesame'
DSN = f'postgresql://u:{SECRET}@nowhere.invalid/db'
SOON = 10.0
"""Seconds in which is over what waits for less than one, also on a machine with other work."""

LOST = [
    asyncpg.ConnectionDoesNotExistError, asyncpg.ConnectionFailureError, asyncpg.InterfaceError,
    asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, ConnectionResetError, BrokenPipeError,
    ConnectionAbortedError, asyncpg.StatementCompletionUnknownError,
    # Of a connection on which the server has said goodbye, but not hung up yet.
    asyncpg.InternalClientError]

UNDONE = [
    asyncpg.SerializationError, asyncpg.DeadlockDetectedError,
    asyncpg.ReadOnlySQLTransactionError, asyncpg.InvalidCachedStatementError]

SILENT = [TimeoutError, OSError]

PASSING = [
    asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError,
    asyncpg.TooManyConnectionsError, asyncpg.DiskFullError, asyncpg.OutOfMemoryError,
    asyncpg.CannotConnectNowError, asyncpg.IdleSessionTimeoutError, asyncpg.DatabaseDroppedError]

FAILING = [
    asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.PostgresSyntaxError,
    asyncpg.InsufficientPrivilegeError, asyncpg.DataError, asyncpg.NotNullViolationError,
    asyncpg.DataCorruptedError, asyncpg.InternalServerError, asyncpg.PostgresIOError,
    asyncpg.PostgresError]

NOT_KNOWN = 'whether the change was made is not known'

# Made once for a thousand years: no program is needed to make it, and it is a
# secret of nobody. For the address 127.0.0.1 alone, and signed by itself.
KEY = '''\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpCxNvN8RCLEjGFqQ
eHjAjkDCm5OnQT6ju5sza/ZgcTuhRANCAASMo6vo79iMik+uCEj/WDFusRU7edhV
8SSdl55zbPHNyUJu2k11bcA0eS0/V072rnALRogpesBfXVhP+9/ZuKtn
-----END PRIVATE KEY-----
'''
CERTIFICATE = '''\
-----BEGIN CERTIFICATE-----
MIIBZTCCAQugAwIBAgIUaD362V/b1xinl56of1+ghmEWOyMwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEZ29vZDAgFw0wMDAxMDEwMDAwMDBaGA8yOTk5MTIzMTIzNTk1
OVowDzENMAsGA1UEAwwEZ29vZDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIyj
q+jv2IyKT64ISP9YMW6xFTt52FXxJJ2XnnNs8c3JQm7aTXVtwDR5LT9XTvaucAtG
iCl6wF9dWE/739m4q2ejQzBBMA8GA1UdEwEB/wQFMAMBAf8wDwYDVR0RBAgwBocE
fwAAATAdBgNVHQ4EFgQULgC9JxAcxkfi8mzomvozNhocj9cwCgYIKoZIzj0EAwID
SAAwRQIgXz9tu9iHoWdT9hGgUKRaxZhVRrwR3o6eU5ITUCE8kYwCIQCrFVb4ll8m
85SGFaNt16hQxoIFKHNcRsP15hDWkwEkmQ==
-----END CERTIFICATE-----
'''
OTHER_CERTIFICATE = '''\
-----BEGIN CERTIFICATE-----
MIIBZjCCAQ2gAwIBAgIUZ84lfBpIj7no95Dvu6WMJiKWRmowCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFb3RoZXIwIBcNMDAwMTAxMDAwMDAwWhgPMjk5OTEyMzEyMzU5
NTlaMBAxDjAMBgNVBAMMBW90aGVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
TRac1bJJMEn10jLEtnnqGFEcPX824SvAruP7M1pFlMRffiNFHL1cagIg2WyuIovd
CF3K4tJJgxTQrvS65axXVqNDMEEwDwYDVR0TAQH/BAUwAwEB/zAPBgNVHREECDAG
hwR/AAABMB0GA1UdDgQWBBSTt9qCOYKSfEanQWDLL8BU7im3JjAKBggqhkjOPQQD
AgNHADBEAiAod9myG5jcP139xR8wn+GkKX21bHU1z4AHMwpqS8AZiAIgejIZ5sYu
UIG+i9I2u0Q48B+4A/FxUgqYibWW31CS6Qg=
-----END CERTIFICATE-----
'''


def make_connector(dsn: str, **settings: float) -> PostgresConnector:
    """Not opened; keyword arguments are settings, with underscores for hyphens."""
    section = {'dsn': dsn, **{key.replace('_', '-'): value for key, value in settings.items()}}
    return PostgresConnector(complete_config({'addr-db': {'postgres': section}})
                             ['addr-db']['postgres'])


def make_engine(dsn: str, **settings: float) -> SQLAddressBookDB:
    return SQLAddressBookDB(make_connector(dsn, **settings), quiet_logger())


def pool_of(engine: AbstractAddressBookDB) -> asyncpg.Pool[asyncpg.Record]:
    assert isinstance(engine, SQLAddressBookDB)
    assert isinstance(engine.connector, PostgresConnector) and engine.connector._pool
    return engine.connector._pool


def entry_of(full_name: str) -> AddressEntry:
    return AddressEntry(full_name=full_name)


def error_of(error_class: type[BaseException], message: str = 'as the driver says it'
             ) -> BaseException:
    return error_class(message)


@contextlib.contextmanager
def time_limit(test: unittest.TestCase, at_least: float, at_most: float) -> Iterator[None]:
    """What is done takes so many seconds."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    test.assertLessEqual(at_least, took + 0.01)
    test.assertLessEqual(took, at_most)


async def until_it_answers(engine: SQLAddressBookDB) -> None:
    """Whatever its time-outs are."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(StorageUnavailable):
                await engine.connector.fetch('SELECT pg_sleep(0.02)')
                return
            await asyncio.sleep(0.02)


class ScriptedPool:
    """Stands for asyncpg's pool, and for its connections: each statement has the next outcome."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.run: list[str] = []
        self.acquired = self.released = self.expired = 0

    async def acquire(self, *, timeout: float) -> ScriptedPool:
        self.acquired += 1
        match self.outcomes[:1]:
            case [Refusal(error=error)]:
                del self.outcomes[0]
                raise error
        return self

    async def execute(self, statement: str, *_: object) -> Any:
        self.run.append(statement)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    fetch = fetchrow = execute

    async def release(self, connection: ScriptedPool) -> None:
        self.released += 1

    async def expire_connections(self) -> None:
        self.expired += 1


class Refusal:
    """An outcome in `ScriptedPool`: there is no connection to be had."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_SETTINGS = make_connector(DSN).settings


def scripted(*outcomes: object) -> tuple[PostgresConnector, ScriptedPool]:
    connector, pool = PostgresConnector(_SETTINGS), ScriptedPool(*outcomes)
    connector._pool = cast(Any, pool)
    return connector, pool


async def assert_all_released(test: unittest.TestCase, pool: ScriptedPool) -> None:
    for _ in range(5):
        await asyncio.sleep(0)  # it may be done behind the scenes
    test.assertEqual(len(pool.run), pool.released)


CALLS: dict[str, Callable[[PostgresConnector], Awaitable[object]]] = {
    'ping': lambda connector: connector.ping(),
    'read': lambda connector: connector.fetch_row(READ, 'a'),
    'list': lambda connector: connector.fetch('TABLE addresses'),
    'write': lambda connector: connector.write(DELETE, 'a'),
}
READS = set(CALLS) - {'write'}
ANSWERS: dict[str, object] = {'ping': [], 'read': None, 'list': [], 'write': 'DELETE 1'}


class ErrorTest(unittest.IsolatedAsyncioTestCase):
    """What the driver raises, and what becomes of it, on a driver that does as it is told."""

    async def failure_of(self, call: str, *outcomes: object) -> StorageError:
        connector, pool = scripted(*outcomes)
        with self.assertRaises(StorageError) as raised:
            await CALLS[call](connector)
        self.assertEqual([], pool.outcomes)
        await assert_all_released(self, pool)
        return raised.exception

    async def test_what_becomes_of_each_error(self) -> None:
        expected: list[tuple[type[StorageError], type[StorageError],
                             Sequence[type[BaseException]]]] = [
            (StorageUnavailable, OutcomeUnknown, [*LOST, *SILENT]),
            (StorageUnavailable, StorageUnavailable, [*UNDONE, *PASSING]),
            (StorageError, StorageError, FAILING)]
        for of_read, of_write, causes in expected:
            for cause in causes:
                for call in CALLS:
                    with self.subTest(cause=cause.__name__, call=call):
                        connector, pool = scripted(*[error_of(cause) for _ in range(2)])
                        with self.assertRaises(StorageError) as raised:
                            await CALLS[call](connector)
                        self.assertIs(of_read if call in READS else of_write,
                                      type(raised.exception))
                        self.assertEqual(f'{cause.__name__}: as the driver says it',
                                         raised.exception.cause)
                        self.assertNotIn('driver', str(raised.exception))
                        await assert_all_released(self, pool)

    async def test_who_gets_no_connection_hears_that_it_is_unavailable(self) -> None:
        for cause in [*LOST, *SILENT, *UNDONE, *PASSING, *FAILING, ValueError,
                      asyncpg.InvalidPasswordError, asyncpg.TargetServerAttributeNotMatched]:
            with self.subTest(cause=cause.__name__):
                for call in CALLS:
                    error = await self.failure_of(call, Refusal(error_of(cause)))
                    self.assertIs(StorageUnavailable, type(error))
                    self.assertNotIn(NOT_KNOWN, error.detail)

    async def test_a_write_whose_outcome_is_unknown_says_so_and_no_other(self) -> None:
        for causes, is_unknown in ((LOST, True), (SILENT, True), (UNDONE, False), (PASSING, False)):
            for cause in causes:
                with self.subTest(cause=cause.__name__):
                    connector, _ = scripted(error_of(cause), error_of(cause))
                    with self.assertRaises(StorageUnavailable) as raised:
                        await connector.write(INSERT, 'a')
                    self.assertEqual(is_unknown, NOT_KNOWN in raised.exception.detail)

    async def test_what_was_undone_and_then_finds_no_connection_has_had_no_effect(self) -> None:
        error = await self.failure_of('write', asyncpg.SerializationError('x'),
                                      Refusal(ConnectionRefusedError('x')))
        self.assertIs(StorageUnavailable, type(error))

    async def test_what_was_undone_and_then_lost_is_of_unknown_outcome(self) -> None:
        error = await self.failure_of('write', asyncpg.SerializationError('x'),
                                      asyncpg.ConnectionDoesNotExistError('x'))
        self.assertIs(OutcomeUnknown, type(error))

    async def test_no_error_holds_the_password(self) -> None:
        messages = [f'no answer from {DSN}', f"password='{SECRET}' is wrong"]
        for cause in (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            for message in messages:
                for outcome in (error_of(cause, message), Refusal(error_of(cause, message))):
                    connector, _ = scripted(outcome)
                    with self.assertRaises(StorageError) as raised:
                        await connector.write(INSERT, 'a')
                    self.assertNotIn(SECRET, f'{raised.exception} {raised.exception.cause}')

    async def test_what_is_no_fault_of_the_database_is_not_made_one(self) -> None:
        for error in (AssertionError(), KeyError(), asyncio.CancelledError()):
            connector, pool = scripted(error)
            with self.assertRaises(type(error)):
                await connector.fetch_row(READ, 'a')
            self.assertEqual(1, len(pool.run))
            await assert_all_released(self, pool)

    async def test_before_open_and_after_close_it_is_unavailable(self) -> None:
        connector = make_connector(DSN)
        for call in CALLS.values():
            with self.assertRaises(StorageUnavailable):
                await call(connector)
        await connector.close()


class RepeatTest(unittest.IsolatedAsyncioTestCase):
    """What is run once more, and what never, on a driver that does as it is told."""

    async def runs(self, call: str, *outcomes: object) -> int:
        """How often a call runs its statement."""
        connector, pool = scripted(*outcomes)
        with contextlib.suppress(StorageError):
            await CALLS[call](connector)
        await assert_all_released(self, pool)
        return len(pool.run)

    async def test_on_a_lost_connection_reads_run_once_more_and_writes_never(self) -> None:
        for cause in LOST:
            for call, answer in ANSWERS.items():
                with self.subTest(cause=cause.__name__, call=call):
                    self.assertEqual(1 + (call in READS),
                                     await self.runs(call, error_of(cause), answer))

    async def test_what_has_certainly_had_no_effect_runs_once_more(self) -> None:
        for cause in UNDONE:
            for call, answer in ANSWERS.items():
                with self.subTest(cause=cause.__name__, call=call):
                    self.assertEqual(2, await self.runs(call, error_of(cause), answer))

    async def test_nothing_else_is_repeated(self) -> None:
        for cause in [*SILENT, *PASSING, *FAILING]:
            for call, answer in ANSWERS.items():
                with self.subTest(cause=cause.__name__, call=call):
                    self.assertEqual(1, await self.runs(call, error_of(cause), answer))

    async def test_nothing_runs_more_than_twice(self) -> None:
        for first in (*LOST, *UNDONE):
            for second in (*LOST, *UNDONE):
                for call, answer in ANSWERS.items():
                    outcomes = (error_of(first), error_of(second), answer)
                    self.assertLessEqual(await self.runs(call, *outcomes), 2)

    async def test_the_answer_is_that_of_the_second_attempt(self) -> None:
        connector, _ = scripted(asyncpg.SerializationError('x'), 'UPDATE 3')
        self.assertEqual(3, await connector.write(UPDATE, 'a'))
        connector, _ = scripted(asyncpg.ConnectionFailureError('x'), [(1, 'x')])
        self.assertEqual([(1, 'x')], await connector.fetch('TABLE addresses'))

    async def test_the_other_connections_are_mistrusted_when_the_server_is_in_doubt(self) -> None:
        doubtful = {*LOST, *SILENT, asyncpg.ReadOnlySQLTransactionError}
        for cause in [*LOST, *SILENT, *UNDONE, *PASSING, *FAILING]:
            with self.subTest(cause=cause.__name__):
                connector, pool = scripted(error_of(cause), [])
                with contextlib.suppress(StorageError):
                    await connector.fetch('TABLE addresses')
                self.assertEqual(cause in doubtful, pool.expired > 0)

    async def test_a_change_that_was_undone_and_then_found_another_version_is_refused(self
                                                                                      ) -> None:
        connector, _ = scripted(asyncpg.SerializationError('x'), 'UPDATE 0', ('b' * 16, '{}'))
        engine = SQLAddressBookDB(connector, quiet_logger())
        with self.assertRaises(AddressChanged):
            await engine.update_address('a', entry_of('x'), 'a' * 16)


class ConfigurationTest(unittest.IsolatedAsyncioTestCase):
    """What is wrong with the settings is said in one line, without a password."""

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines

    async def refusal_of(self, dsn: str, **settings: float) -> str:
        with self.assertRaises(ConfigError) as raised:
            engine = make_engine(dsn, **settings)
            try:
                await engine.start()
            finally:
                await engine.stop()
        text = str(raised.exception)
        self.assertIn('addr-db.postgres', text)
        self.assertNotIn(SECRET, text)
        self.assertTrue(text.isprintable(), text)
        return text

    async def test_a_dsn_that_is_none_is_refused(self) -> None:
        for dsn in (f'http://u:{SECRET}@h/db', f'host=h password={SECRET}', SECRET,
                    f'postgresql://u:{SECRET}@h:port/db', f'postgresql://u:1@{SECRET}:x@h:5/db',
                    f'postgresql://u:{SECRET}@h/db?{SECRET}',
                    f'postgresql://u:{SECRET}@h/db?sslmode=none',
                    f'postgresql://u:{SECRET}@h/db?target_session_attrs=none'):
            with self.subTest(dsn=dsn):
                await self.refusal_of(dsn)

    async def test_a_dsn_that_urllib_does_not_take_is_refused(self) -> None:
        for dsn in (f'postgresql://u:{SECRET}@[::1/db', f'postgresql://u:{SECRET}[@h/db',
                    f'postgresql://u:{SECRET}\u2100@h/db', f'postgresql://u:p@[]{SECRET}@h/db',
                    f'postgresql://u:{SECRET}@[127.0.0.1]:1/db'):
            with self.subTest(dsn=dsn):
                await self.refusal_of(dsn)

    async def test_a_dsn_that_the_driver_stumbles_over_is_refused(self) -> None:
        for dsn in (f'postgresql://u:{SECRET}@127.0.0.1:-1/db',
                    f'postgresql://u:{SECRET}@127.0.0.1:65536/db',
                    f'postgresql:///db?host=a,,b&password={SECRET}'):
            with self.subTest(dsn=dsn):
                await self.refusal_of(dsn)

    async def test_a_wrong_login_or_database_is_refused(self) -> None:
        server = shared_server()
        wrong = server.dsn().replace(quote(PASSWORD, safe=''), SECRET)
        self.assertIn('InvalidPasswordError', await self.refusal_of(wrong))
        self.assertIn('InvalidPasswordError', await self.refusal_of(wrong.replace(USER, 'nobody')))
        self.assertIn('"nowhere"', await self.refusal_of(server.dsn('nowhere')))

    async def test_a_parameter_that_the_server_does_not_take_is_refused(self) -> None:
        server = shared_server()
        for name, value in {'sslmod': 'require', 'statement_timeout': 'long',
                            'server_version': '1', 'options': '-c none=1'}.items():
            with self.subTest(name=name):
                await self.refusal_of(server.dsn(**{name: value}))

    async def test_a_file_for_tls_that_is_not_there_is_refused(self) -> None:
        for words in ('sslmode=verify-full', 'sslmode=verify-full&sslrootcert=/no/such',
                      'sslmode=require&sslcert=/no/such', 'sslmode=verify-ca&sslrootcert=/'):
            with self.subTest(words=words):
                await self.refusal_of(f'postgresql://u:{SECRET}@127.0.0.1:1/db?{words}')

    async def test_a_pool_of_one_needs_no_other_setting(self) -> None:
        server = shared_server()
        name = server.create_database()
        self.addCleanup(server.drop_database, name)
        engine = make_engine(server.dsn(name), pool_max=1)
        self.addAsyncCleanup(engine.stop)
        await engine.start()
        await engine.ping()

    async def test_a_database_of_another_encoding_is_refused(self) -> None:
        server = shared_server()
        name = f'{server.create_database()}_latin'
        self.addCleanup(server.drop_database, name.removesuffix('_latin'))
        server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1'"
                       " LOCALE_PROVIDER libc LOCALE 'C'")
        self.addCleanup(server.drop_database, name)
        self.assertIn('LATIN1', await self.refusal_of(server.dsn(name)))

    async def test_who_is_not_there_is_unavailable(self) -> None:
        async with silent_listener() as silent:
            for host in ('127.0.0.1:1', 'nowhere.invalid', '127.0.0.1:1,[::1]:1',
                         f'127.0.0.1:{silent}', '%2Fno%2Fsuch'):
                with self.subTest(host=host), time_limit(self, 0, SOON + DEADLINE):
                    engine = make_engine(f'postgresql://u:{SECRET}@{host}/db',
                                         connect_timeout=0.2)
                    with self.assertRaises(StorageUnavailable) as raised:
                        await engine.start()
                    self.assertNotIn(SECRET, f'{raised.exception} {raised.exception.cause}')
                    await engine.stop()


class HostsTest(unittest.IsolatedAsyncioTestCase):

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # no word about slow machines
        self.server = shared_server()
        self.database = self.server.create_database()
        self.addCleanup(self.server.drop_database, self.database)

    def dsn(self, *before: int, after: tuple[int, ...] = ()) -> str:
        """The address of the server behind and before other ports of this machine."""
        one = f'127.0.0.1:{self.server.port}'
        return self.server.dsn(self.database).replace(
            one, ','.join([*(f'127.0.0.1:{port}' for port in before), one,
                           *(f'127.0.0.1:{port}' for port in after)]))

    def test_a_dsn_of_several_hosts_is_one_for_each(self) -> None:
        for dsn, expected in {
            'postgresql://h/d': ['postgresql://h/d'],
            'postgresql://h': ['postgresql://h'],
            'postgresql://a,b/d?x=1,2': ['postgresql://a/d?x=1,2', 'postgresql://b/d?x=1,2'],
            'postgres://u@a:1,b:2/d': ['postgres://u@a:1/d', 'postgres://u@b:2/d'],
            'postgresql://u:p%40,%2F@a,b:2/d': [
                'postgresql://u:p%40,%2F@a/d', 'postgresql://u:p%40,%2F@b:2/d'],
            'postgresql://u:p,q@a,b/d': ['postgresql://u:p,q@a/d', 'postgresql://u:p,q@b/d'],
            'postgresql://[::1]:5,h,[fe80::2]/d': [
                'postgresql://[::1]:5/d', 'postgresql://h/d', 'postgresql://[fe80::2]/d'],
            'postgresql://u@%2Frun%2Fpg,b/d': ['postgresql://u@%2Frun%2Fpg/d',
                                               'postgresql://u@b/d'],
        }.items():
            with self.subTest(dsn=dsn):
                self.assertEqual(expected, _one_by_one(dsn))

    async def test_the_host_that_serves_is_found_behind_others_and_asked_first_from_then_on(
            self) -> None:
        async with silent_listener() as silent:
            engine = make_engine(self.dsn(1, silent), connect_timeout=0.5, acquire_timeout=5)
            self.addAsyncCleanup(engine.stop)
            with time_limit(self, 0.5, SOON):
                await engine.start()
            assert isinstance(engine.connector, PostgresConnector)
            hosts = tuple(engine.connector.hosts)
            self.assertIn(f':{self.server.port}/', hosts[0])
            await pool_of(engine).expire_connections()
            await engine.ping()
            self.assertEqual(hosts, tuple(engine.connector.hosts), 'the first one was good')

    async def test_a_host_that_hangs_costs_one_request_its_acquire_timeout_and_the_next_nothing(
            self) -> None:
        async with silent_listener() as silent:
            engine = make_engine(self.dsn(after=(silent,)), acquire_timeout=0.2)
            self.addAsyncCleanup(engine.stop)
            await engine.start()
            assert isinstance(engine.connector, PostgresConnector)
            engine.connector.hosts.rotate()
            await pool_of(engine).expire_connections()
            with time_limit(self, 0.2, SOON), self.assertRaises(StorageUnavailable):
                await asyncio.gather(*[engine.ping() for _ in range(5)])
            await until_it_answers(engine)

    async def test_connections_are_read_write_unless_the_dsn_says_otherwise(self) -> None:
        self.server.execute(f'ALTER DATABASE {self.database}'
                            ' SET default_transaction_read_only = on')
        for words, cause in (('', 'TargetServerAttributeNotMatched'),
                             ('?target_session_attrs=any', 'ReadOnlySQLTransactionError')):
            engine = make_engine(self.dsn() + words)
            with self.assertRaises(StorageUnavailable) as raised:
                await engine.start()
            self.assertIn(cause, raised.exception.cause)
            await engine.stop()

    async def test_the_environment_may_say_which_sessions_are_wanted(self) -> None:
        self.server.execute(f'ALTER DATABASE {self.database}'
                            ' SET default_transaction_read_only = on')
        with mock.patch.dict('os.environ', {'PGTARGETSESSIONATTRS': 'any'}):
            engine = make_engine(self.dsn())
            with self.assertRaises(StorageUnavailable) as raised:
                await engine.start()
        self.assertIn('ReadOnlySQLTransactionError', raised.exception.cause)
        await engine.stop()

    async def test_a_standby_is_passed_over(self) -> None:
        self.assertIn('target_session_attrs', make_connector(self.dsn())._options())
        given = make_connector(f'{self.dsn()}?target_session_attrs=primary')
        self.assertNotIn('target_session_attrs', given._options())


class DatabaseTestCase(unittest.IsolatedAsyncioTestCase):
    """An empty database of a real server, and an engine on it that waits for longer than
    anything takes, also on a machine with other work."""

    settings: dict[str, float] = {
        'acquire_timeout': 15, 'connect_timeout': 15, 'command_timeout': 15,
        'statement_timeout': 15, 'lock_timeout': 15, 'pool_max': 4}

    async def asyncSetUp(self) -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 60  # no word about slow machines
        self.complaints: list[dict[str, Any]] = []
        loop.set_exception_handler(self.on_complaint)
        self.server = shared_server()
        self.database = self.server.create_database()
        self.dsn = self.server.dsn(self.database)
        self.addCleanup(self.server.drop_database, self.database)
        self.addCleanup(self.server.thaw)

    def on_complaint(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # asyncpg 0.32 forgets the future of a connection that is given up before it is there.
        if 'unexpected connection_lost() call' not in repr(context.get('exception')):
            self.complaints.append(context)

    async def start(self, dsn: str = '', /, **settings: float) -> SQLAddressBookDB:
        engine = make_engine(dsn or self.dsn, **{**self.settings, **settings})
        self.addAsyncCleanup(engine.stop)
        await engine.start()
        return engine

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Of somebody else, on the same database."""
        connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def locked(self, nickname: str) -> AsyncIterator[None]:
        """Somebody else is changing an entry."""
        async with self.session() as other, other.transaction():
            await other.execute('SELECT FROM addresses WHERE nickname = $1 FOR UPDATE', nickname)
            yield

    async def assert_whole_pool_works(self, engine: SQLAddressBookDB) -> None:
        """As many as the pool may have can be at work at once: none is lost."""
        async with asyncio.timeout(DEADLINE):
            pool = pool_of(engine)
            await asyncio.gather(*[until_it_answers(engine) for _ in range(pool.get_max_size())])
            while pool.get_idle_size() < pool.get_size():
                await asyncio.sleep(0.01)  # it may be given back behind the scenes

    def sessions(self) -> Rows:
        """Who is connected to the database."""
        return self.server.fetch(
            'SELECT pid, state, query FROM pg_stat_activity WHERE datname = $1', self.database)

    async def assert_no_sessions(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.sessions() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)  # a session ends a moment after its connection
        self.assertEqual([], self.sessions())


class SessionTest(DatabaseTestCase):

    async def shown(self, engine: SQLAddressBookDB, *names: str) -> list[str]:
        rows = [await engine.connector.fetch_row(f'SHOW {name}') for name in names]
        return [row[0] for row in rows if row]

    async def test_the_settings_of_a_session_are_in_effect(self) -> None:
        engine = make_engine(self.dsn)
        self.addAsyncCleanup(engine.stop)
        await engine.start()
        self.assertEqual(['2s', '1s', '5s', 'addrservice'], await self.shown(
            engine, 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',
            'application_name'))

    async def test_zero_means_never_and_nothing_else_does(self) -> None:
        engine = await self.start(statement_timeout=0, lock_timeout=0.0001)
        self.assertEqual(['0', '1ms'], await self.shown(
            engine, 'statement_timeout', 'lock_timeout'))

    async def test_what_the_dsn_says_about_sessions_wins(self) -> None:
        engine = await self.start(f'{self.dsn}?application_name=x&statement_timeout=7s'
                                  '&work_mem=123kB')
        self.assertEqual(['x', '7s', '15s', '123kB'], await self.shown(
            engine, 'application_name', 'statement_timeout', 'lock_timeout', 'work_mem'))

    async def test_what_the_options_in_the_dsn_say_about_sessions_wins(self) -> None:
        engine = await self.start(f'{self.dsn}?options=-c%20statement_timeout%3D7s'
                                  '%20-clock_timeout%3D8s')
        self.assertEqual(['7s', '8s', 'addrservice'], await self.shown(
            engine, 'statement_timeout', 'lock_timeout', 'application_name'))

    async def test_a_request_is_one_statement_and_nothing_is_reset_behind_it(self) -> None:
        engine = await self.start(f'{self.dsn}?log_statement=all', pool_initial=1, pool_max=1)
        await engine.create_address(entry_of('x'), 'a')
        await engine.read_address('a')
        start = len(self.server.log())
        for _ in range(3):
            await engine.read_address('a')
        logged = re.findall(r'LOG: +(?:statement|execute [^:]+): (.*)',
                            self.server.log()[start:])
        self.assertEqual([READ] * 3, logged)

    async def test_names_are_in_the_order_of_code_points_whatever_the_locale(self) -> None:
        engine = await self.start()
        self.assertEqual([('C',)], self.server.fetch(
            'SELECT collname::text FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation'
            " WHERE attrelid = 'addresses'::regclass AND attname = 'nickname'",
            database=self.database))
        for name in ('b', 'a-b', 'B', 'ab', 'a', '-', '10', '9'):
            await engine.create_address(entry_of(name), name)
        names = [stored.nickname async for stored in engine.read_all_addresses()]
        self.assertEqual(sorted(names), names)
        names = [stored.nickname async for stored in engine.read_all_addresses('B')]
        self.assertEqual(['a', 'a-b', 'ab', 'b'], names)

    async def test_a_page_is_read_off_the_index_of_names(self) -> None:
        await self.start()
        plan = self.server.fetch(
            "EXPLAIN SELECT nickname, version, document FROM addresses"
            " WHERE nickname > 'a' ORDER BY nickname LIMIT 5", database=self.database)
        self.assertIn('addresses_pkey', '\n'.join(row[0] for row in plan))


class PoolTest(DatabaseTestCase):

    async def test_who_finds_the_pool_full_waits_for_the_acquire_timeout(self) -> None:
        engine = await self.start(pool_initial=1, pool_max=1, acquire_timeout=0.1,
                                  statement_timeout=0, command_timeout=60)
        busy = asyncio.create_task(engine.connector.fetch('SELECT pg_sleep(60)'))
        await asyncio.sleep(0.02)
        with time_limit(self, 0.1, SOON), self.assertRaises(StorageUnavailable) as raised:
            await engine.ping()
        self.assertIn('TimeoutError', raised.exception.cause)
        self.assertNotIn(NOT_KNOWN, raised.exception.detail)
        busy.cancel()
        await self.assert_whole_pool_works(engine)

    async def test_who_waits_for_a_connection_gets_it_when_it_is_free(self) -> None:
        engine = await self.start(pool_initial=1, pool_max=1)
        await asyncio.gather(*[engine.connector.fetch('SELECT pg_sleep(0.02)')
                               for _ in range(10)])
        self.assertEqual(1, len(self.sessions()))

    async def test_there_are_never_more_sessions_than_the_pool_may_have(self) -> None:
        engine = await self.start(pool_initial=2, pool_max=3)
        self.assertEqual(2, len(self.sessions()))
        await asyncio.gather(*[engine.connector.fetch('SELECT pg_sleep(0.02)')
                               for _ in range(20)])
        self.assertEqual(3, len(self.sessions()))

    async def test_a_call_that_is_cancelled_at_any_moment_loses_no_connection(self) -> None:
        engine = await self.start(pool_initial=0, pool_max=2)
        await engine.create_address(entry_of('x'), 'a')
        for is_connected in (True, False):
            for steps in range(24):
                if not is_connected:
                    await pool_of(engine).expire_connections()
                tasks = [asyncio.create_task(engine.read_address('a')) for _ in range(4)]
                for _ in range(steps):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        await self.assert_whole_pool_works(engine)
        self.assertLessEqual(len(self.sessions()), 2)

    async def test_a_call_that_is_cancelled_at_any_time_loses_no_connection(self) -> None:
        engine = await self.start(pool_initial=0, pool_max=2)
        for is_connected in (True, False):
            for delay in range(30):
                if not is_connected:
                    await pool_of(engine).expire_connections()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay / 2000):
                        await engine.connector.fetch('SELECT pg_sleep(0.002)')
        await self.assert_whole_pool_works(engine)
        self.assertEqual([], self.complaints)

    async def test_a_write_that_is_cancelled_is_there_or_not_and_blocks_nobody(self) -> None:
        engine = await self.start()
        await engine.create_address(entry_of('0'), 'a')
        for delay in range(20):
            task = asyncio.create_task(engine.update_address('a', entry_of(f'{delay}')))
            await asyncio.sleep(delay / 5000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.assert_whole_pool_works(engine)  # what was cancelled has ended
        await engine.update_address('a', entry_of('last'))
        self.assertEqual('last', (await engine.read_address('a')).entry.full_name)
        await self.assert_whole_pool_works(engine)

    async def test_connections_that_are_mistrusted_while_in_use_are_not_lost(self) -> None:
        engine = await self.start(pool_initial=2, pool_max=2)
        for _ in range(10):
            busy = [asyncio.create_task(engine.connector.fetch('SELECT pg_sleep(0.01)'))
                    for _ in range(4)]
            await asyncio.sleep(0.005)
            await pool_of(engine).expire_connections()
            await asyncio.gather(*busy)
        await self.assert_whole_pool_works(engine)
        self.assertLessEqual(len(self.sessions()), 2)


HASTY: dict[str, float] = {'acquire_timeout': 0.3, 'connect_timeout': 0.3, 'command_timeout': 0.4}
"""Settings of a client that soon notices a server that hangs. On a busy machine it may do so
where none does: what is made ready for a test is made by another client."""


class TimeoutTest(DatabaseTestCase):

    async def assert_unavailable(self, call: Awaitable[object], cause: str, at_least: float,
                                 at_most: float = SOON) -> None:
        with time_limit(self, at_least, at_most), self.assertRaises(StorageUnavailable) as raised:
            await call
        self.assertIn(cause, raised.exception.cause)

    async def test_a_statement_that_takes_too_long_is_given_up_by_the_server(self) -> None:
        engine = await self.start(pool_initial=1, pool_max=1, statement_timeout=0.2)
        before = self.sessions()[0][0]
        await self.assert_unavailable(
            engine.connector.fetch('SELECT pg_sleep(60)'), 'QueryCanceledError', 0.2)
        await until_it_answers(engine)
        self.assertEqual(before, self.sessions()[0][0], 'the connection is as good as before')

    async def test_who_waits_too_long_for_a_lock_gives_up(self) -> None:
        engine = await self.start(lock_timeout=0.1)
        version = (await engine.create_address(entry_of('x'), 'a')).version
        async with self.locked('a'):
            for call in (engine.update_address('a', entry_of('y')),
                         engine.update_address('a', entry_of('y'), version),
                         engine.delete_address('a'), engine.delete_address('a', version)):
                await self.assert_unavailable(call, 'LockNotAvailableError', 0.1)
            self.assertEqual('x', (await engine.read_address('a')).entry.full_name)
        await engine.update_address('a', entry_of('y'), version)
        await self.assert_whole_pool_works(engine)

    async def test_a_create_waits_no_longer_for_one_of_the_same_name(self) -> None:
        engine = await self.start(lock_timeout=0.1)
        async with self.session() as other:
            transaction = other.transaction()
            await transaction.start()
            await other.execute(INSERT, 'a', '0' * 16, '{"full_name":"other"}')
            await self.assert_unavailable(
                engine.create_address(entry_of('x'), 'a'), 'LockNotAvailableError', 0.1)
            await transaction.rollback()
        await engine.create_address(entry_of('x'), 'a')

    async def test_a_server_that_hangs_is_given_up(self) -> None:
        await (await self.start()).create_address(entry_of('x'), 'a')
        engine = await self.start(**HASTY)
        self.server.freeze()
        for call in (engine.read_address('a'), engine.update_address('a', entry_of('y'))):
            # The answer of the one is waited for; the other gets no connection.
            await self.assert_unavailable(call, 'TimeoutError', 0.3)
        self.server.thaw()
        await self.assert_recovered(engine)

    async def assert_recovered(self, engine: SQLAddressBookDB) -> None:
        await until_it_answers(engine)
        await self.assert_whole_pool_works(engine)

    async def test_a_server_that_hangs_leaves_no_error_that_nobody_asked_about(self) -> None:
        engine = await self.start(pool_initial=2, **HASTY)
        self.server.freeze()
        for _ in range(3):
            with self.assertRaises(StorageUnavailable):
                await engine.ping()
        await asyncio.sleep(0.5)  # the connections that are mistrusted are closed behind the scenes
        self.server.thaw()
        await self.assert_recovered(engine)
        gc.collect()
        self.assertEqual([], self.complaints)

    async def test_no_deadline_of_the_caller_is_overrun_by_the_cleaning_up(self) -> None:
        engine = await self.start(acquire_timeout=60, command_timeout=60)
        self.server.freeze()
        with time_limit(self, 0.2, SOON), self.assertRaises(TimeoutError):
            async with asyncio.timeout(0.2):
                await engine.ping()
        self.server.thaw()
        await self.assert_recovered(engine)

    async def test_a_listing_that_is_given_up_in_mid_page_leaves_the_pool_whole(self) -> None:
        engine = await self.start()
        for name in ('a', 'b', 'c'):
            await engine.create_address(entry_of(name), name)
        async for _ in engine.read_all_addresses():
            break
        await self.assert_whole_pool_works(engine)


@contextlib.contextmanager
def answer_lost(error: Exception) -> Iterator[None]:
    """The next statement that writes is run by the server, which says so to nobody."""
    execute = _Connection.execute
    errors = [error]

    async def run(self: _Connection, *args: Any, **kwargs: Any) -> str:
        tag = await execute(self, *args, **kwargs)
        if errors:
            raise errors.pop()
        return tag

    with mock.patch.object(_Connection, 'execute', run):
        yield


class LostConnectionTest(DatabaseTestCase):

    def terminate(self, *pids: int) -> None:
        """Ends sessions, and returns when they have ended."""
        for pid in pids or [row[0] for row in self.sessions()]:
            self.server.execute('SELECT pg_terminate_backend($1, $2)', pid, int(1000 * DEADLINE))

    async def test_sessions_that_end_while_idle_are_replaced_unnoticed(self) -> None:
        engine = await self.start(pool_initial=4)
        await engine.create_address(entry_of('x'), 'a')
        for _ in range(3):
            self.terminate()
            await engine.read_address('a')
            await engine.update_address('a', entry_of('y'))
            await self.assert_whole_pool_works(engine)

    async def test_a_read_whose_session_ends_is_run_again(self) -> None:
        engine = await self.start(pool_initial=1, pool_max=1)
        async with self.session() as other:
            await other.execute('SELECT pg_advisory_lock(1)')
            read = asyncio.create_task(engine.connector.fetch_row(
                'SELECT pg_backend_pid(), pg_advisory_xact_lock(1)'))
            pid = await self.waiting()
            self.terminate(pid)
        row = await read
        assert row is not None
        self.assertNotEqual(pid, row[0])

    async def waiting(self) -> int:
        """The session that waits for a lock."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for row in self.server.fetch(
                        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                        ' AND datname = $1', self.database):
                    return int(row[0])
                await asyncio.sleep(0.01)

    async def test_a_plain_write_whose_session_ends_is_not_run_again(self) -> None:
        engine = await self.start()
        await engine.create_address(entry_of('x'), 'a')
        for call in (engine.update_address('a', entry_of('y')), engine.delete_address('a')):
            async with self.locked('a'):
                write = asyncio.create_task(cast(Any, call))
                self.terminate(await self.waiting())
                # What settles it may wait for the lock, too.
                await asyncio.wait({write}, timeout=0.2)
            with self.assertRaises(OutcomeUnknown) as raised:
                await write
            self.assertIn(NOT_KNOWN, raised.exception.detail)
            self.assertEqual('x', (await engine.read_address('a')).entry.full_name)
        await self.assert_whole_pool_works(engine)

    async def test_a_write_to_a_version_whose_session_ends_is_run_again(self) -> None:
        engine = await self.start()
        version = (await engine.create_address(entry_of('x'), 'a')).version
        async with self.locked('a'):
            write = asyncio.create_task(engine.update_address('a', entry_of('y'), version))
            first = await self.waiting()
            self.terminate(first)
            while await self.waiting() == first:
                await asyncio.sleep(0.01)
        self.assertEqual(await write, (await engine.read_address('a')).version)
        self.assertEqual('y', (await engine.read_address('a')).entry.full_name)
        await self.assert_whole_pool_works(engine)

    async def test_a_write_to_a_version_whose_session_ends_and_that_is_overtaken_is_unknown(
            self) -> None:
        engine = await self.start()
        version = (await engine.create_address(entry_of('x'), 'a')).version
        async with self.session() as other, other.transaction():
            await other.execute(UPDATE, 'a', 'f' * 16, '{"full_name":"other"}')
            write = asyncio.create_task(engine.update_address('a', entry_of('y'), version))
            self.terminate(await self.waiting())
        with self.assertRaises(OutcomeUnknown):
            await write
        self.assertEqual('f' * 16, (await engine.read_address('a')).version)

    async def test_a_write_that_is_made_and_whose_answer_is_lost_is_found(self) -> None:
        engine = await self.start()
        for error in (asyncpg.ConnectionDoesNotExistError('x'), TimeoutError()):
            with answer_lost(error):
                key = await engine.create_address(entry_of('1'))
            stored = await engine.read_address(key.nickname)
            self.assertEqual((key.version, '1'), (stored.version, stored.entry.full_name))
            with answer_lost(error):
                version = await engine.update_address(key.nickname, entry_of('2'))
            self.assertEqual(version, (await engine.read_address(key.nickname)).version)
            with answer_lost(error):
                version = await engine.update_address(key.nickname, entry_of('3'), version)
            stored = await engine.read_address(key.nickname)
            self.assertEqual((version, '3'), (stored.version, stored.entry.full_name))
            with answer_lost(error), self.assertRaises(OutcomeUnknown):
                await engine.delete_address(key.nickname, version)
            self.assertEqual(0, await engine.count_addresses())

    async def test_a_write_that_is_given_up_while_it_waits_is_of_unknown_outcome(self) -> None:
        version = (await (await self.start()).create_address(entry_of('x'), 'a')).version
        engine = await self.start(command_timeout=0.4)
        async with self.locked('a'):
            with time_limit(self, 0.4, SOON), self.assertRaises(OutcomeUnknown):
                await engine.update_address('a', entry_of('y'), version)
            await self.assert_whole_pool_works(engine)  # nobody waits any more
        self.assertEqual('x', (await (await self.start()).read_address('a')).entry.full_name)

    async def test_a_write_that_lost_a_race_of_transactions_is_run_again(self) -> None:
        engine = await self.start(f'{self.dsn}?default_transaction_isolation=serializable')
        await engine.create_address(entry_of('x'), 'a')
        async with self.session() as other:
            async with other.transaction():
                await other.execute(UPDATE, 'a', 'f' * 16, '{"full_name":"other"}')
                write = asyncio.create_task(engine.update_address('a', entry_of('y')))
                await self.waiting()
        self.assertEqual(await write, (await engine.read_address('a')).version)

    async def test_of_many_who_count_up_in_serializable_transactions_none_is_lost(self) -> None:
        engines = [await self.start(f'{self.dsn}?default_transaction_isolation=serializable')
                   for _ in range(2)]
        await engines[0].create_address(entry_of('0'), 'a')

        async def count_up(engine: SQLAddressBookDB) -> None:
            while True:
                stored = await engine.read_address('a')
                with contextlib.suppress(AddressChanged, StorageUnavailable):
                    number = int(stored.entry.full_name) + 1
                    await engine.update_address('a', entry_of(f'{number}'), stored.version)
                    return

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*[count_up(engine) for engine in engines * 5])
        self.assertEqual('10', (await engines[0].read_address('a')).entry.full_name)

    async def test_who_finds_itself_on_a_standby_looks_for_the_primary(self) -> None:
        engine = await self.start(pool_initial=1, pool_max=1)
        pid = self.sessions()[0][0]
        await engine.connector.fetch('SET default_transaction_read_only = on')
        await engine.create_address(entry_of('x'), 'a')
        self.assertNotEqual(pid, self.sessions()[0][0])

    async def test_a_table_that_changes_its_types_is_read_on(self) -> None:
        engine = await self.start()
        await engine.create_address(entry_of('x'), 'a')
        await engine.read_address('a')
        self.server.execute('ALTER TABLE addresses ALTER document TYPE varchar',
                            database=self.database)
        self.assertEqual('x', (await engine.read_address('a')).entry.full_name)
        await engine.update_address('a', entry_of('y'))

    async def test_a_table_that_is_gone_is_a_failure_that_the_log_explains(self) -> None:
        engine = await self.start()
        self.server.execute('DROP TABLE addresses', database=self.database)
        with self.assertRaises(StorageError) as raised:
            await engine.read_address('a')
        self.assertIs(StorageError, type(raised.exception))
        self.assertIn('UndefinedTableError', raised.exception.cause)


class UpgradeTest(DatabaseTestCase):

    V1 = ('CREATE TABLE addresses (nickname text COLLATE "C" PRIMARY KEY NOT NULL,'
          ' document text NOT NULL)')
    SCHEMA = 'CREATE TABLE addresses_schema (id integer PRIMARY KEY, version integer NOT NULL)'

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.server.execute(statement, database=self.database)

    def fetch(self, statement: str) -> Rows:
        return self.server.fetch(statement, database=self.database)

    def put_version(self, version: int) -> None:
        self.execute(self.SCHEMA, f'INSERT INTO addresses_schema VALUES (1, {version})')

    def columns(self) -> Rows:
        return self.fetch('SELECT column_name::text, data_type::text, is_nullable::text,'
                          ' collation_name::text FROM information_schema.columns'
                          " WHERE table_name = 'addresses' ORDER BY 1")

    async def test_a_store_of_version_1_is_brought_up_to_date_with_its_entries(self) -> None:
        self.put_version(1)
        self.execute(self.V1)
        for name in ('a', 'B'):
            self.server.execute('INSERT INTO addresses VALUES ($1, $2)', name,
                                encode_record(entry_of(name)), database=self.database)
        engine = await self.start()
        self.assertEqual([(len(MIGRATIONS),)], self.fetch('SELECT version FROM addresses_schema'))
        stored = [stored async for stored in engine.read_all_addresses()]
        self.assertEqual(['B', 'a'], [one.nickname for one in stored])
        self.assertEqual([entry_of('B'), entry_of('a')], [one.entry for one in stored])
        for one in stored:
            version = await engine.update_address(one.nickname, entry_of('new'), one.version)
            with self.assertRaises(AddressChanged):
                await engine.update_address(one.nickname, entry_of('newer'), one.version)
            await engine.delete_address(one.nickname, version)

    async def test_a_store_that_is_up_to_date_needs_no_right_to_make_tables(self) -> None:
        await self.start()
        role = f'clerk_{self.database}'
        self.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'",
                     f'GRANT SELECT, INSERT, UPDATE, DELETE ON addresses TO {role}',
                     f'GRANT SELECT ON addresses_schema TO {role}')
        self.addCleanup(self.server.execute, f'DROP OWNED BY {role}; DROP ROLE {role}',
                        database=self.database)
        engine = await self.start(
            f'postgresql://{role}:secret@127.0.0.1:{self.server.port}/{self.database}')
        key = await engine.create_address(entry_of('x'))
        await engine.delete_address(*key)

    async def test_nothing_is_served_before_the_store_is_known(self) -> None:
        self.put_version(1)
        self.execute(self.V1)
        engine = make_engine(self.dsn, **self.settings)
        self.addAsyncCleanup(engine.stop)
        async with self.session() as other, other.transaction():
            await other.execute('UPDATE addresses_schema SET version = 99')
            starting = asyncio.create_task(engine.start())
            await asyncio.sleep(0.2)  # now it waits for the lock
            for call in (engine.read_address('a'), engine.create_address(entry_of('x')),
                         engine.count_addresses(), engine.ping()):
                with self.assertRaises(StorageUnavailable):
                    await call
        with self.assertRaises(ConfigError):
            await starting
        self.assertEqual([(0,)], self.fetch('SELECT count(*) FROM addresses'))

    async def test_an_upgraded_store_is_like_a_new_one(self) -> None:
        self.put_version(1)
        self.execute(self.V1)
        await self.start()
        upgraded = self.columns()
        self.execute('DROP TABLE addresses', 'DROP TABLE addresses_schema')
        await self.start()
        self.assertEqual(upgraded, self.columns())
        self.assertIn(('nickname', 'text', 'NO', 'C'), upgraded)

    async def test_an_empty_store_that_was_begun_is_finished(self) -> None:
        self.put_version(0)
        engine = await self.start()
        self.assertEqual(0, await engine.count_addresses())

    async def test_a_store_of_a_newer_program_is_refused_and_left_as_it_is(self) -> None:
        self.put_version(len(MIGRATIONS) + 1)
        with self.assertRaises(ConfigError) as raised:
            await self.start()
        self.assertIn(f'{len(MIGRATIONS) + 1}', str(raised.exception))
        self.assertEqual([(len(MIGRATIONS) + 1,)],
                         self.fetch('SELECT version FROM addresses_schema'))
        self.assertEqual([], self.columns())
        await self.assert_no_sessions()

    async def test_ten_engines_can_start_at_once_on_an_empty_database(self) -> None:
        for words in ('', '?default_transaction_isolation=serializable'):
            engines = [make_engine(self.dsn + words, pool_initial=1, **self.settings)
                       for _ in range(10)]
            for engine in engines:
                self.addAsyncCleanup(engine.stop)
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*[engine.start() for engine in engines])
            await engines[0].create_address(entry_of('x'), 'a')
            for engine in engines:
                self.assertEqual('x', (await engine.read_address('a')).entry.full_name)
                await engine.stop()
            self.execute('DROP TABLE addresses', 'DROP TABLE addresses_schema')

    async def test_ten_engines_can_upgrade_one_store_at_once(self) -> None:
        self.put_version(1)
        self.execute(self.V1)
        engines = [make_engine(self.dsn, pool_initial=1, **self.settings) for _ in range(10)]
        for engine in engines:
            self.addAsyncCleanup(engine.stop)
        await asyncio.gather(*[engine.start() for engine in engines])
        await engines[0].create_address(entry_of('x'), 'a')

    async def test_an_upgrade_is_made_whole_or_not_at_all(self) -> None:
        self.execute('CREATE TABLE addresses (other integer)')  # of somebody else
        before = self.columns()
        with self.assertRaises((StorageError, ConfigError)) as raised:
            await self.start()
        self.assertIn('DuplicateTableError', f'{raised.exception}'
                      f'{getattr(raised.exception, "cause", "")}')
        self.assertEqual(before, self.columns())
        self.assertEqual([(None,)], self.fetch("SELECT to_regclass('addresses_schema')"))
        await self.assert_no_sessions()

    async def test_an_upgrade_that_cannot_have_its_locks_is_tried_later(self) -> None:
        self.put_version(1)
        self.execute(self.V1)
        engine = make_engine(self.dsn, **{**self.settings, 'lock_timeout': 0.1})
        self.addAsyncCleanup(engine.stop)
        async with self.session() as other, other.transaction():
            await other.execute('TABLE addresses')
            with self.assertRaises(StorageUnavailable):
                await engine.start()
        self.assertEqual([(1,)], self.fetch('SELECT version FROM addresses_schema'))
        await engine.start()
        await engine.ping()


class CloseTest(DatabaseTestCase):

    async def test_close_ends_all_sessions(self) -> None:
        engine = await self.start(pool_initial=4)
        self.assertEqual(4, len(self.sessions()))
        await engine.stop()
        await self.assert_no_sessions()
        await engine.stop()

    async def test_an_engine_can_be_started_again(self) -> None:
        engine = await self.start()
        await engine.create_address(entry_of('x'), 'a')
        await engine.stop()
        await engine.start()
        self.assertEqual('x', (await engine.read_address('a')).entry.full_name)

    async def test_close_waits_for_what_is_under_way(self) -> None:
        engine = await self.start()
        busy = asyncio.create_task(engine.connector.fetch('SELECT pg_sleep(0.1), 5'))
        await asyncio.sleep(0.03)
        await engine.stop()
        self.assertEqual(5, (await busy)[0][1])
        await self.assert_no_sessions()

    async def test_close_waits_no_longer_than_a_statement_may_take(self) -> None:
        engine = await self.start(**HASTY)
        busy = asyncio.create_task(engine.ping())
        await asyncio.sleep(0)
        self.server.freeze()
        with time_limit(self, 0, SOON):
            await engine.stop()
        with contextlib.suppress(StorageUnavailable):
            await busy
        self.server.thaw()
        await self.assert_no_sessions()
        gc.collect()
        self.assertEqual([], self.complaints)

    async def test_a_start_that_is_cancelled_at_any_time_leaves_no_session(self) -> None:
        for delay in range(0, 40, 3):
            engine = make_engine(self.dsn, pool_initial=3)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay / 1000):
                    await engine.start()
            await engine.stop()
        await self.assert_no_sessions()
        gc.collect()
        self.assertEqual([], self.complaints)

    async def test_a_start_on_a_server_that_hangs_ends_and_leaves_no_session(self) -> None:
        self.server.freeze()
        engine = make_engine(self.dsn, **HASTY)
        with time_limit(self, 0.3, SOON), self.assertRaises(StorageUnavailable):
            await engine.start()
        self.server.thaw()
        await self.assert_no_sessions()

    async def test_after_a_missing_entry_the_pool_is_whole(self) -> None:
        engine = await self.start()
        for _ in range(10):
            with self.assertRaises(AddressNotFound):
                await engine.update_address('a', entry_of('x'), '0' * 16)
        await self.assert_whole_pool_works(engine)


class TLSTest(DatabaseTestCase):
    """TLS by the words of the DSN. The server of the tests has none built in: before it stands
    what speaks TLS as PostgreSQL does, and takes nothing else (``hostssl`` alone)."""

    async def asyncSetUp(self) -> None:
        await super().asyncSetUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = self.write(folder, 'root.crt', CERTIFICATE)
        self.other_root = self.write(folder, 'other.crt', OTHER_CERTIFICATE)
        self.front = TLSFront(self.server.port, self.root,
                              self.write(folder, 'server.key', KEY))
        await self.front.open()
        self.addAsyncCleanup(self.front.close)

    def write(self, folder: tempfile.TemporaryDirectory[str], name: str, text: str) -> Path:
        path = Path(folder.name) / name
        path.write_text(text)
        return path

    def secured(self, host: str = '127.0.0.1', **words: object) -> str:
        query = '&'.join(f'{key}={quote(str(value))}' for key, value in words.items())
        return f'{self.dsn}?{query}'.replace(f'127.0.0.1:{self.server.port}',
                                             f'{host}:{self.front.port}')

    async def test_a_connection_is_encrypted_if_the_dsn_wants_it(self) -> None:
        for words in ({'sslmode': 'require'}, {'sslmode': 'prefer'}, {},
                      {'sslmode': 'verify-ca', 'sslrootcert': self.root},
                      {'sslmode': 'verify-full', 'sslrootcert': self.root}):
            with self.subTest(words=words):
                before = self.front.encrypted
                engine = await self.start(self.secured(**words), pool_initial=2)
                await engine.ping()
                self.assertEqual(before + 2, self.front.encrypted)
                await engine.stop()

    async def test_a_server_of_another_root_or_name_is_refused(self) -> None:
        for dsn in (self.secured(sslmode='verify-full', sslrootcert=self.other_root),
                    self.secured(sslmode='verify-ca', sslrootcert=self.other_root),
                    self.secured('localhost', sslmode='verify-full', sslrootcert=self.root)):
            with self.assertRaises(ConfigError) as raised:
                await self.start(dsn)
            self.assertIn('SSLCertVerificationError', str(raised.exception))
            self.assertNotIn(PASSWORD[:16], str(raised.exception))

    async def test_who_wants_no_encryption_is_refused_where_it_is_required(self) -> None:
        with self.assertRaises(ConfigError) as raised:
            await self.start(self.secured(sslmode='disable'))
        self.assertIn('no encryption', str(raised.exception))
        self.assertEqual(0, self.front.encrypted)

    async def test_a_server_without_encryption_is_not_talked_to_if_the_dsn_wants_it(self) -> None:
        for words in ('sslmode=require', f'sslmode=verify-full&sslrootcert={self.root}'):
            with self.assertRaises(StorageUnavailable) as raised:
                await self.start(f'{self.dsn}?{words}')
            self.assertIn('rejected SSL upgrade', raised.exception.cause)

    async def test_a_statement_can_be_given_up_on_an_encrypted_connection(self) -> None:
        engine = await self.start(self.secured(sslmode='require'), statement_timeout=0,
                                  command_timeout=0.5)
        with self.assertRaises(StorageUnavailable):
            await engine.connector.fetch('SELECT pg_sleep(60)')
        await self.assert_whole_pool_works(engine)
        async with asyncio.timeout(DEADLINE):
            while any('pg_sleep(60)' in row[2] for row in self.sessions() if row[1] == 'active'):
                await asyncio.sleep(0.02)


class TLSFront:
    """Speaks TLS as PostgreSQL does, and hands on what it hears."""

    REQUEST = struct.pack('!ll', 8, 80877103)
    REFUSAL = b'SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for host, no encryption\0\0'

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self.server_port = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.encrypted = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, '127.0.0.1', 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.closing(writer), contextlib.suppress(
                OSError, EOFError, asyncio.CancelledError):
            if await reader.readexactly(8) != self.REQUEST:
                writer.write(b'E' + struct.pack('!l', 4 + len(self.REFUSAL)) + self.REFUSAL)
                return
            writer.write(b'S')
            await writer.start_tls(self.context)
            await self._hand_on(reader, writer)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(8)
        self.encrypted += head[4:] == struct.pack('!l', 3 << 16)  # not one that cancels another
        server_reader, server_writer = await asyncio.open_connection('127.0.0.1', self.server_port)
        server_writer.write(head)
        with contextlib.closing(server_writer):
            ways = [asyncio.create_task(self._copy(reader, server_writer)),
                    asyncio.create_task(self._copy(server_reader, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


@contextlib.asynccontextmanager
async def silent_listener() -> AsyncIterator[int]:
    """A port that takes connections, and on which nobody ever says anything."""
    writers = []

    async def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(keep, '127.0.0.1', 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()


if __name__ == '__main__':
    unittest.main()

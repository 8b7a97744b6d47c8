"""The connector to PostgreSQL, and to what speaks like it: a pool of connections, by asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import urllib.parse
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import asyncpg

from addrservice.config import mask_secrets
from addrservice.database.addressbook_db import Connections
from addrservice.database.sql_db import (
    READ_SCHEMA, Plan, Row, SQLConnector, Upgrade, queried)
from addrservice.errors import ConfigError, OutcomeUnknown, StorageError, StorageUnavailable
from addrservice.utils.tracing import traced

T = TypeVar('T')
Connection: TypeAlias = 'asyncpg.pool.PoolConnectionProxy[asyncpg.Record]'

ENCODING = 'UTF8'
UPGRADE_TRIES = 10
"""How often to begin anew when others make the same tables at the same time."""

_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""All that asyncpg raises; a TimeoutError is an OSError."""

_UNKNOWN = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, ConnectionError,
            asyncpg.InternalClientError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
            asyncpg.StatementCompletionUnknownError)
"""The connection has ended: whether the statement took effect is not known."""

_UNDONE = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError,
           asyncpg.ReadOnlySQLTransactionError, asyncpg.InvalidCachedStatementError)
"""The statement has certainly had no effect, and may have one if it is run again."""

_MISTRUSTED = (*_UNKNOWN, OSError, asyncpg.ReadOnlySQLTransactionError)
"""The server is gone, hangs, or has become a standby."""

_PASSING = (*_UNKNOWN, *_UNDONE, OSError, asyncpg.TransactionRollbackError,
            asyncpg.InsufficientResourcesError, asyncpg.OperatorInterventionError,
            asyncpg.LockNotAvailableError)

_ELSEWHERE = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched,
              asyncpg.PostgresConnectionError)
"""This host does not serve now; another one may."""

_RACED = (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError, asyncpg.DuplicateColumnError,
          asyncpg.InternalServerError, asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""What those see who make a table while others do."""

_MISCONFIGURED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError,
                  asyncpg.SyntaxOrAccessError, asyncpg.InvalidParameterValueError,
                  asyncpg.CantChangeRuntimeParamError, ValueError, OverflowError, LookupError)
"""What only somebody who changes something can mend; a ValueError is about the DSN."""


class _Connection(asyncpg.Connection):

    def get_reset_query(self) -> str:
        """Nothing, which saves a round trip each time: no statement here leaves a trace in its
        session."""
        return ''

    async def close(self, *, timeout: float | None = None) -> None:
        """Closes also if the server does not answer. Of those that it no longer
        trusts, the pool asks nobody how it went."""
        with contextlib.suppress(*_FAULTS):
            await super().close(timeout=timeout)


class PostgresConnector(SQLConnector):
    """Survives what the server survives: with its defaults, and a disk that
    keeps its word, power loss; with a synchronous standby, the loss of a machine.
    """

    system = 'postgresql'
    # In the order of bytes, whatever the collation of the database.
    name_type = 'text COLLATE "C"'

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """
        :param settings: of the section ``addr-db.postgres``; see schema/config-v1.0.json.
        """
        self.settings = settings
        try:
            self.hosts = deque(_one_by_one(settings['dsn']))
        except ValueError as error:
            raise ConfigError(f'addr-db.postgres: {_cause(error)}') from None
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._releasing: set[asyncio.Task[None]] = set()

    async def open(self, plan: Plan) -> None:
        _require_files(self.settings['dsn'])
        pool = asyncpg.create_pool(
            self.settings['dsn'], connection_class=_Connection, **self._options())
        try:
            await pool
            await self._upgrade(pool, plan)
            self._pool = pool  # only now: nothing is asked of a store that may be refused
        except BaseException as error:
            await self._end(pool)
            if isinstance(error, _MISCONFIGURED):
                raise ConfigError(f'addr-db.postgres: {_cause(error)}') from error
            if isinstance(error, _FAULTS):
                raise _unreachable(error) from error
            raise

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool:
            await self._end(pool)

    async def _end(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        try:
            async with asyncio.timeout(self.settings['command-timeout']):
                await pool.close()
        except (TimeoutError, *_FAULTS):
            pool.terminate()

    def connections(self) -> Connections | None:
        if self._pool is None:
            return None
        idle = self._pool.get_idle_size()
        return Connections(self._pool.get_size() - idle, idle, self._pool.get_max_size())

    async def ping(self) -> None:
        await self.fetch(READ_SCHEMA)

    @traced(attributes=queried)
    async def fetch_row(self, statement: str, *arguments: object) -> Row | None:
        row = await self._read(lambda on: on.fetchrow(statement, *arguments))
        return None if row is None else tuple(row)

    @traced(attributes=queried)
    async def fetch(self, statement: str, *arguments: object) -> Sequence[Row]:
        rows = await self._read(lambda on: on.fetch(statement, *arguments))
        return [tuple(row) for row in rows]

    @traced(attributes=queried)
    async def write(self, statement: str, *arguments: object) -> int:
        try:
            tag = await self._run(lambda on: on.execute(statement, *arguments), _UNDONE)
        except (*_UNKNOWN, OSError) as error:
            raise OutcomeUnknown('The address book did not answer; whether the change was made '
                                 'is not known', _cause(error)) from error
        except _FAULTS as error:
            raise _translated(error) from error
        return int(tag.rpartition(' ')[2])  # as in "INSERT 0 1"

    async def _read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await self._run(work, (*_UNKNOWN, *_UNDONE))
        except _FAULTS as error:
            raise _translated(error) from error

    async def _run(self, work: Callable[[Connection], Awaitable[T]],
                   repeated: tuple[type[Exception], ...]) -> T:
        """Does it, and once more after one of these faults.

        :raises StorageUnavailable: there is no connection to be had for it.
        """
        try:
            return await self._try(work)
        except _FAULTS as error:
            await self._mistrust(error)
            if not isinstance(error, repeated):
                raise
        return await self._try(work)

    async def _try(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        pool = self._pool
        if pool is None:
            raise StorageUnavailable('The address book is not open')
        try:
            connection = await pool.acquire(timeout=self.settings['acquire-timeout'])
        except (*_FAULTS, ValueError) as error:
            raise _unreachable(error) from error
        try:
            result = await work(connection)
        except BaseException:
            # Not waited for: the statement may have to be cancelled on the server first.
            releasing = asyncio.create_task(_release(pool, connection))
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)
            raise
        await _release(pool, connection)
        return result

    async def _mistrust(self, error: BaseException) -> None:
        """Lets no connection be used again when one has shown that its server is
        gone, hangs or has become a standby: the others lead there, too."""
        if self._pool and isinstance(error, _MISTRUSTED):
            await self._pool.expire_connections()

    async def _connect(self, _dsn: str, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        """Connects to the first host that serves, from the last one on that did.

        The time-out is for each host, as for libpq; asyncpg alone would spend it
        all on a host that hangs.
        """
        fault: BaseException | None = None
        for host in tuple(self.hosts):
            try:
                return await asyncpg.connect(host, **options)
            except asyncio.CancelledError:
                self._try_last(host)  # who waited for it has given up
                raise
            except _ELSEWHERE as error:
                self._try_last(host)
                fault = error
        assert fault is not None
        raise fault

    def _try_last(self, host: str) -> None:
        if self.hosts[0] is host:
            self.hosts.rotate(-1)

    def _options(self) -> dict[str, Any]:
        given = _query(self.settings['dsn'])
        words = re.findall(r'(?:-c\s*|--)([\w-]+)\s*=', given.get('options', [''])[-1])
        given |= {word.replace('-', '_'): [] for word in words}
        session = {
            'application_name': 'addrservice',
            'statement_timeout': _milliseconds(self.settings['statement-timeout']),
            'lock_timeout': _milliseconds(self.settings['lock-timeout']),
            'idle_in_transaction_session_timeout': _milliseconds(5)}
        options: dict[str, Any] = {
            'connect': self._connect,
            # Not as a floor, which asyncpg would see to for ever, in whose context
            # it happens to notice, and with a traceback each time.
            'min_size': 0,
            'init_size': min(self.settings['pool-initial'], self.settings['pool-max']),
            'max_size': self.settings['pool-max'],
            'timeout': self.settings['connect-timeout'],
            'command_timeout': self.settings['command-timeout'],
            'server_settings': {key: value for key, value in session.items() if key not in given}}
        if 'target_session_attrs' not in given and 'PGTARGETSESSIONATTRS' not in os.environ:
            options['target_session_attrs'] = 'read-write'
        return options

    async def _upgrade(self, pool: asyncpg.Pool[asyncpg.Record], plan: Plan) -> None:
        async with pool.acquire(timeout=self.settings['connect-timeout']) as connection:
            encoding = connection.get_settings().server_encoding
            if encoding != ENCODING:
                raise ConfigError(f'addr-db.postgres: the database has the encoding {encoding}, '
                                  f'and names need {ENCODING}')
            for tries_left in reversed(range(UPGRADE_TRIES)):
                try:
                    return await _transact(connection, plan(await _schema(connection)))
                except _RACED:
                    if not tries_left:
                        raise


async def _schema(connection: Connection) -> Sequence[Row]:
    try:
        return [tuple(row) for row in await connection.fetch(READ_SCHEMA)]
    except asyncpg.UndefinedTableError:
        return []


async def _release(pool: asyncpg.Pool[asyncpg.Record], connection: Connection) -> None:
    with contextlib.suppress(*_FAULTS):  # what was done counts
        await pool.release(connection)


async def _transact(connection: Connection, steps: Upgrade | None) -> None:
    if steps is None:
        return
    async with connection.transaction():
        with contextlib.suppress(StopIteration):
            statement = next(steps)
            while True:
                rows = await connection.fetch(statement)
                statement = steps.send([tuple(row) for row in rows])


def _one_by_one(dsn: str) -> list[str]:
    """A DSN for each host of one that names several."""
    parts = urllib.parse.urlsplit(dsn)
    login, at, hosts = parts.netloc.rpartition('@')
    return [parts._replace(netloc=f'{login}{at}{host}').geturl() for host in hosts.split(',')]


def _query(dsn: str) -> dict[str, list[str]]:
    return urllib.parse.parse_qs(urllib.parse.urlsplit(dsn).query)


def _require_files(dsn: str) -> None:
    """What is not there now will not be there later, unlike a server."""
    for key, values in _query(dsn).items():
        if key in ('sslrootcert', 'sslcert', 'sslkey', 'sslcrl'):
            try:
                open(values[-1]).close()
            except OSError as error:
                raise ConfigError(f'addr-db.postgres: {key}: cannot be read: '
                                  f'{error.strerror}') from error


def _milliseconds(seconds: float) -> str:
    return str(math.ceil(1000 * seconds))


def _cause(error: BaseException) -> str:
    if type(error) is ValueError:  # of `urllib`, and may quote a part of the password
        return 'the DSN cannot be understood'
    return f'{type(error).__name__}: {mask_secrets(" ".join(str(error).split()))}'


def _unreachable(error: BaseException) -> StorageUnavailable:
    return StorageUnavailable('The address book cannot be reached now', _cause(error))


def _translated(error: BaseException) -> StorageError:
    if isinstance(error, _PASSING):
        return StorageUnavailable('The address book cannot be used now', _cause(error))
    return StorageError('The address book failed', _cause(error))

"""Entries in a table: the statements, once for every SQL database, and no driver.

A connector runs them; `sqlite_db.py` and `postgres_db.py` have one each. The
SQL is plain, and each request is one statement, so that a database which only
speaks like PostgreSQL will do, too.
"""

from __future__ import annotations

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar

from addrservice.database.addressbook_db import (
    AbstractAddressBookDB, Connections, no_such_entry, require_version)
from addrservice.database.records import (
    Columns, Key, Record, Stored, are_nicknames, checked_nickname, checked_version, decode_record,
    encode_record, is_nickname, is_version)
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressExists, ConfigError, OutcomeUnknown, StorageError, StorageUnavailable)

READ = 'SELECT version, document FROM addresses WHERE nickname = $1'
PAGE = ('SELECT nickname, version, document FROM addresses'
        ' WHERE nickname > $1 ORDER BY nickname LIMIT $2')
COUNT = 'SELECT count(*) FROM addresses'
INSERT = ('INSERT INTO addresses (nickname, version, document) VALUES ($1, $2, $3)'
          ' ON CONFLICT (nickname) DO NOTHING')
UPDATE = 'UPDATE addresses SET version = $2, document = $3 WHERE nickname = $1'
UPDATE_IF = f'{UPDATE} AND version = $4'
DELETE = 'DELETE FROM addresses WHERE nickname = $1'
DELETE_IF = f'{DELETE} AND version = $2'

READ_SCHEMA = 'SELECT version FROM addresses_schema WHERE id = 1'

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    ('CREATE TABLE addresses (nickname {name} PRIMARY KEY NOT NULL, document text NOT NULL)',),
    ("ALTER TABLE addresses ADD COLUMN version {name} NOT NULL DEFAULT '0000000000000000'",),
)
"""What makes a store of each version out of one of the version before, from
an empty database on. What has been released here is never changed."""

Row = Sequence[Any]
Upgrade = Generator[str, Sequence[Row], None]
"""Statements to be run in one transaction; each is sent the rows of the one before."""

Plan = Callable[[Sequence[Row]], Upgrade | None]
"""From the rows of `READ_SCHEMA`, none if there is no such table, to what has to be done."""


class SQLConnector(ABC):
    """Runs statements on one database, and says what went wrong in our words.

    Any call may raise `StorageUnavailable`, also before `open` and after
    `close`, or `StorageError`.
    """

    system: ClassVar[str]
    """The kind of database, as OpenTelemetry calls it."""

    name_type: ClassVar[str]
    """The type of a text that is compared by its code points."""

    @abstractmethod
    async def open(self, plan: Plan) -> None:
        """Connects to the database. Until it returns, other calls raise
        `StorageUnavailable`.

        :param plan: what to do before anything else; also whenever the
            connector finds that it is connected to another store than before.
        :raises ConfigError: this will not work until the configuration, or
            the database's, has changed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Ends all connections. A second time, or before `open`, is fine."""

    @abstractmethod
    async def ping(self) -> None:
        """Returns when the database takes statements now."""

    def connections(self) -> Connections | None:
        """How many connections it has; None if it does not count them."""
        return None

    @abstractmethod
    async def fetch_row(self, statement: str, *arguments: object) -> Row | None:
        """The only row of a result, if there is one.

        :param statement: reads; ``$1`` and so on stand for the arguments.
        """

    @abstractmethod
    async def fetch(self, statement: str, *arguments: object) -> Sequence[Row]:
        """All rows of a result.

        :param statement: reads, and may take longer than a look at one row.
        """

    @abstractmethod
    async def write(self, statement: str, *arguments: object) -> int:
        """How many rows a statement has changed, for good.

        :raises OutcomeUnknown: it was sent, and no answer came.
        """


def queried(connector: SQLConnector, statement: str, *arguments: object) -> Mapping[str, str]:
    """What the span of a statement says of it, under the names of OpenTelemetry's conventions
    (https://opentelemetry.io/docs/specs/semconv/database/); arguments are nobody's business."""
    return {'db.system.name': connector.system, 'db.query.text': statement}


class SQLAddressBookDB(AbstractAddressBookDB):
    """Survives what its database survives. Any number of processes may share one."""

    def __init__(self, connector: SQLConnector, logger: logging.Logger) -> None:
        """
        :param connector: to the database; opened and closed by this engine.
        """
        super().__init__(logger)
        self.connector = connector

    async def start(self) -> None:
        await self.connector.open(self._plan)

    async def stop(self) -> None:
        await self.connector.close()

    async def ping(self) -> None:
        await self.connector.ping()

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        key = Key(checked_nickname(nickname), checked_version(version))
        if not await self._write(INSERT, key, encode_record(entry)):
            raise AddressExists('This id is taken')
        return key

    async def read_address(self, nickname: str) -> Stored:
        row = await self._row(nickname)
        return decode_record(_record(nickname, *row))

    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        key, text = Key(nickname, checked_version(version)), encode_record(entry)
        await self._refuse_impossible(nickname, if_version)
        if if_version is None:
            changed = await self._write(UPDATE, key, text)
        else:
            changed = await self._write(UPDATE_IF, key, text, if_version)
        if not changed:
            await self._explain(nickname, if_version)
        return key.version

    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        await self._refuse_impossible(nickname, if_version)
        if if_version is None:
            changed = await self.connector.write(DELETE, nickname)
        else:
            changed = await self.connector.write(DELETE_IF, nickname, if_version)
        if not changed:
            await self._explain(nickname, if_version)

    def connections(self) -> Connections | None:
        return self.connector.connections()

    async def count_addresses(self) -> int:
        [(count,)] = await self.connector.fetch(COUNT)
        return int(count)

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        # The next page starts behind the last name of this one, so that it costs
        # the same wherever it is, and nothing is held open in between.
        bound = _bound(after)
        while rows := await self.connector.fetch(PAGE, bound, size):
            bound = rows[-1][0]
            nicknames, versions, texts = zip(*rows)
            if not are_nicknames(nicknames):
                # Others have put names there that no entry can have.
                rows = [row for row in rows if is_nickname(str(row[0]))]
                nicknames, versions, texts = zip(*rows) if rows else ((), (), ())
            yield Columns(_record, nicknames, versions, texts)

    async def _refuse_impossible(self, nickname: str, if_version: str | None) -> None:
        """What no entry can have is not sent: not every database takes any text."""
        if not is_nickname(nickname):
            raise no_such_entry()
        if if_version is not None and not is_version(if_version):
            await self._explain(nickname, if_version)

    async def _row(self, nickname: str) -> Row:
        row = is_nickname(nickname) and await self.connector.fetch_row(READ, nickname)
        if not row:
            raise no_such_entry()
        return row

    async def _write(self, statement: str, key: Key, text: str, *condition: str) -> int:
        """How many rows a write has changed. One of unknown outcome is run again
        if it has a condition: it finds another version, and cannot apply twice.

        Whether any was made is shown by writing the same over its own version:
        to see it there would not mean that a standby has it, too.
        """
        try:
            return await self.connector.write(statement, *key, text, *condition)
        except OutcomeUnknown:
            with contextlib.suppress(StorageError):
                if condition and await self.connector.write(statement, *key, text, *condition):
                    return 1
                if await self.connector.write(UPDATE_IF, *key, text, key.version):
                    return 1
            raise

    async def _explain(self, nickname: str, if_version: str | None) -> None:
        """Says why a change found no row to be made to."""
        if if_version is None:
            raise no_such_entry()
        version, _ = await self._row(nickname)
        require_version(version, if_version)
        # It has come back to that version: a copy, between the two statements.
        raise StorageUnavailable('The entry is being changed by others; try again')

    def _plan(self, schema: Sequence[Row]) -> Upgrade | None:
        """What makes the store one of this version. If it is one, nothing is
        written: not every start shall need the right, or a standby, for that.

        :raises ConfigError: a newer program has made it.
        """
        is_current = [_known(version) for version, in schema] == [len(MIGRATIONS)]
        return None if is_current else self._upgrade()

    def _upgrade(self) -> Upgrade:
        """Brings a store up to date, while others wait who want to do the same.

        :raises ConfigError: a newer program has made it.
        """
        yield 'CREATE TABLE IF NOT EXISTS addresses_schema (id integer PRIMARY KEY,' \
              ' version integer NOT NULL)'
        yield 'INSERT INTO addresses_schema (id, version) VALUES (1, 0) ON CONFLICT (id) DO NOTHING'
        yield 'UPDATE addresses_schema SET version = version'  # locks the row
        [(version,)] = yield READ_SCHEMA
        for statements in MIGRATIONS[_known(version):]:
            for statement in statements:
                yield statement.format(name=self.connector.name_type)
        yield f'UPDATE addresses_schema SET version = {len(MIGRATIONS)}'


def _known(version: Any) -> int:
    if not isinstance(version, int) or not 0 <= version <= len(MIGRATIONS):
        raise ConfigError(f'addr-db: the store has version {version!r}, made by a newer program; '
                          f'this one knows versions up to {len(MIGRATIONS)}')
    return version


def _record(nickname: str, version: str, text: Any) -> Record:
    return Record(nickname, version, text, f'addresses.nickname={nickname}')


def _bound(after: str) -> str:
    """A text of ASCII that comes after the same nicknames: not every database
    takes U+0000 or a lone surrogate, and no nickname has a character beyond "z"."""
    head, other, _ = re.split('([^\x01-\x7e])', f'{after}\0', maxsplit=1)
    return head if other == '\0' else f'{head}\x7f'

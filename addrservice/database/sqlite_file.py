"""One file of SQLite, and the connections to it; everything here may wait for the disk."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from addrservice.database.disk import make_folder
from addrservice.database.sql_db import READ_SCHEMA, Plan, Row
from addrservice.errors import OutcomeUnknown, StorageError, StorageUnavailable

_Place = tuple[int, int] | None
"""Which file is somewhere: its device and number there."""

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CROWDED = (*_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
            sqlite3.SQLITE_PROTOCOL)
_PASSING = (*_CROWDED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_MISUSE)
"""Codes of errors that may not come again."""

_HARMLESS = (*_CROWDED, sqlite3.SQLITE_CORRUPT)
"""Codes of errors after which a connection is as good as before."""

Statement = tuple[str, Sequence[object]]
"""A statement, with what stands for its ``$1`` and so on."""


class SQLiteFile:
    """The connections to one file."""

    def __init__(self, path: Path, busy_timeout: float) -> None:
        """
        :raises StorageUnavailable: it is not there.
        :raises sqlite3.Error: it cannot be opened.
        """
        self.path = str(path)
        self.log = f'{path}-wal'
        self.identity: tuple[_Place, _Place] = (_identity(self.path), None)
        self.require_some()
        self.writing = _connect(path, busy_timeout)
        self.scan = _connect(path, busy_timeout)
        self.point = _connect(path, busy_timeout)
        self.busy_timeout = busy_timeout

    def prepare(self, plan: Plan) -> None:
        """Makes it a store of this version.

        :raises StorageError: it is damaged, or cannot be written to.
        """
        self._use_wal(time.monotonic() + self.busy_timeout)
        for reading in (self.scan, self.point):
            reading.execute('PRAGMA query_only = ON')
        self.point.execute('PRAGMA busy_timeout = 0')
        self._check()
        self._upgrade(plan)
        self.probe()
        self.identity = (self.identity[0], _identity(self.log))

    def is_there(self) -> bool:
        """Whether the path still leads to this file, and so does that of its log: what
        is written to one that was removed would be lost."""
        return (_identity(self.path), _identity(self.log)) == self.identity

    def require_some(self) -> None:
        """
        :raises StorageUnavailable: there is no file at the path, be it this one or another.
        """
        if _identity(self.path) is None:
            raise StorageUnavailable('The address book cannot be used now',
                                     f'{self.path}: not there')

    def leave(self) -> None:
        """Closes what writes; the others are closed already. A file that has been
        moved takes all that is in the log beside its old place along: SQLite
        would apply it to whatever file comes there next, and destroy that."""
        with contextlib.suppress(OSError, sqlite3.Error):
            there = _identity(self.path)
            if there != self.identity[0] and _identity(self.log) == self.identity[1]:
                [(is_busy, *_)] = self.writing.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()
                # If none is there yet this one may come back, and others still use its log.
                if there and not is_busy:
                    os.unlink(self.log)
                    os.unlink(f'{self.path}-shm')
        self.writing.close()

    def probe(self) -> None:
        """Shows that it can be written to now."""
        with self.transaction():
            pass
        for path in (self.path, os.path.dirname(self.path)):
            if not os.access(path, os.W_OK):
                raise StorageUnavailable('The address book cannot be used now',
                                         f'{path}: not writable')

    def commit(self, statements: Sequence[Statement]) -> list[int]:
        """How many rows each of these has changed, for the thread that writes.

        :raises OutcomeUnknown: it was done in a file that is not at its path any more.
        """
        with self.transaction():
            counts = [self.writing.execute(_own(statement), arguments).rowcount
                      for statement, arguments in statements]
        if not self.is_there():
            raise OutcomeUnknown('The address book was moved; whether the change was made is '
                                 'not known', f'{self.path}: removed, or another file now')
        return counts

    def look(self, statement: str, arguments: Sequence[object]) -> Sequence[Row]:
        """The rows of a statement that takes no longer than a look at one, for
        the event loop; it waits for no lock."""
        return _rows(self.point, statement, arguments)

    def read(self, statement: str, arguments: Sequence[object]) -> Sequence[Row]:
        """The rows of a statement, for the thread that reads."""
        return _rows(self.scan, statement, arguments)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written meanwhile. It asks for the lock at
        once: one that reads first could find later that it may not write."""
        self.writing.execute('BEGIN IMMEDIATE')
        try:
            yield
            self.writing.execute('COMMIT')
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.writing.execute('ROLLBACK')
            raise

    def _upgrade(self, plan: Plan) -> None:
        steps = plan(self._schema())
        if steps is not None:
            with self.transaction(), contextlib.suppress(StopIteration):
                statement = next(steps)
                while True:
                    statement = steps.send(self.writing.execute(statement).fetchall())

    def _schema(self) -> Sequence[Row]:
        name = 'SELECT name FROM sqlite_master WHERE name = ?'
        is_there = self.writing.execute(name, ('addresses_schema',)).fetchall()
        return self.writing.execute(READ_SCHEMA).fetchall() if is_there else []

    def close(self) -> None:
        """Closes all connections; to be called where none is in use."""
        for connection in (self.point, self.scan, self.writing):
            connection.close()

    def _use_wal(self, deadline: float) -> None:
        # The one statement that does not wait by itself, if others do the same.
        while True:
            try:
                self.writing.execute('PRAGMA journal_mode = WAL')
                return
            except sqlite3.OperationalError as error:
                if not is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _check(self) -> None:
        """Looks for damage; about a millisecond for a megabyte.

        :raises StorageError: there is some.
        """
        [(verdict,)] = self.writing.execute('PRAGMA quick_check(1)').fetchall()
        if verdict != 'ok':
            raise StorageError('The address book is damaged',
                               f'{self.path}: {" ".join(verdict.split())}')


def _connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    # As a URI, to open only what is there: a new file would be an empty book.
    connection = sqlite3.connect(
        f'file://{urllib.parse.quote(os.fsencode(path))}?mode=rw', uri=True, timeout=busy_timeout,
        isolation_level=None, check_same_thread=False)
    connection.execute('PRAGMA synchronous = FULL')
    return connection


def _rows(connection: sqlite3.Connection, statement: str, arguments: Sequence[object]
          ) -> Sequence[Row]:
    """The rows of a statement that reads. What is no UTF-8 becomes surrogates, which no entry may
    hold; as a call for each text takes half of the time, it is done only where it must."""
    try:
        return connection.execute(_own(statement), arguments).fetchall()
    except sqlite3.OperationalError as error:
        if hasattr(error, 'sqlite_errorcode'):  # it is SQLite's, not that of the decoder
            raise
    connection.text_factory = lambda data: data.decode('utf-8', 'surrogateescape')
    try:
        return connection.execute(_own(statement), arguments).fetchall()
    finally:
        connection.text_factory = str


def _identity(path: str) -> _Place:
    """Which file is there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@functools.cache
def _own(statement: str) -> str:
    """A statement as SQLite knows it: ``?1`` in place of ``$1``."""
    return re.sub(r'\$(\d+)', r'?\1', statement)


def _code(error: BaseException | None) -> int:
    """The primary result code of an error."""
    return getattr(error, 'sqlite_errorcode', 0) & 0xff  # without what extends it


def is_locked(error: BaseException) -> bool:
    """Whether somebody else has a lock that was wanted."""
    return _code(error) in _LOCKED or _code(error.__cause__) in _LOCKED


def is_harmless(error: sqlite3.Error) -> bool:
    """Whether the connections are as good as before."""
    return _code(error) in _HARMLESS


def is_passing(error: sqlite3.Error) -> bool:
    """Whether it may work later; so it may if it only was closed meanwhile."""
    return _code(error) in _PASSING or isinstance(error, sqlite3.ProgrammingError)


def make_file(path: Path) -> None:
    """Makes an empty file, and the folders it is in, if it is not there."""
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        # Only if it is not there: to open and close a file that SQLite has
        # open in this process would take its locks away.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))

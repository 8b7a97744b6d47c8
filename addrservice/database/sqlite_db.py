"""The connector to SQLite: a database in one file, in this process.

Three connections to it, each used by one thread:

- Looking at one row takes microseconds, a hundredth of a visit to another
  thread: that is done where it is asked for, on the event loop. Where it would
  have to wait for a lock, it goes the way of the others.
- What reads many rows has a thread.
- What writes has a thread, which commits all that has come in while it was busy
  in one transaction: they share the wait for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import os
import re
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from addrservice.database.sql_db import Row, SQLConnector, Upgrade
from addrservice.errors import ConfigError, OutcomeUnknown, StorageError, StorageUnavailable

P = ParamSpec('P')
T = TypeVar('T')

MAX_GROUP = 1000
"""Writes in one transaction."""

_Place = tuple[int, int] | None
"""Which file is somewhere: its device and number there."""

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CROWDED = (*_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
            sqlite3.SQLITE_PROTOCOL)
_PASSING = (*_CROWDED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_MISUSE)
"""Codes of errors that may not come again."""

_HARMLESS = (*_CROWDED, sqlite3.SQLITE_CORRUPT)
"""Codes of errors after which a connection is as good as before."""


class _Write(NamedTuple):
    """A statement that waits for the thread that writes."""

    statement: str
    arguments: Sequence[object]
    changed: asyncio.Future[int]


class SQLiteConnector(SQLConnector):
    """Survives the end of the process at any moment, and power loss as far as
    the disk keeps what it has acknowledged (WAL, ``synchronous=FULL``).
    Several processes on one machine may share the file.
    """

    name_type = 'text'

    def __init__(self, path: str, busy_timeout: float) -> None:
        """
        :param path: the file; made, with the folders it is in, when it is not there.
        :param busy_timeout: seconds to wait for another process that writes.
        """
        self.path = Path(os.path.abspath(path))
        self.busy_timeout = busy_timeout
        self._upgrade: Callable[[], Upgrade] | None = None
        self._file: _File | None = None
        self._left: list[tuple[_File, Future[None]]] = []
        self._reader: ThreadPoolExecutor | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._waiting: list[_Write] = []
        self._committing: asyncio.Task[None] | None = None

    async def open(self, upgrade: Callable[[], Upgrade]) -> None:
        self._upgrade = upgrade
        self._reader = ThreadPoolExecutor(1, 'sqlite-reader')
        self._writer = ThreadPoolExecutor(1, 'sqlite-writer')
        try:
            await self._in_thread(self._writer, self._make_file)
            await self._in_thread(self._writer, self._open_file)
        except BaseException as error:
            await self.close()
            if isinstance(error, (OSError, ValueError, StorageError)) and not _is_locked(error):
                raise self._unusable(error) from error
            raise

    async def close(self) -> None:
        reader, writer, self._reader, self._writer = self._reader, self._writer, None, None
        if self._committing:
            await asyncio.wait({self._committing})
        if reader and writer:
            if self._file:
                self._let_go(self._file, reader, writer)
            await asyncio.to_thread(_shut_down, reader, writer)
        if self._file:  # opened by who was given up meanwhile
            self._file.close()
            self._file = None

    async def ping(self) -> None:
        file = self._current() or await self._opened()
        await self._in_thread(self._writer, file.probe)

    async def fetch_row(self, statement: str, *arguments: object) -> Row | None:
        file = self._current() or await self._opened()
        try:
            rows = file.point.execute(_own(statement), arguments).fetchall()
        except sqlite3.Error as error:
            if not _is_locked(error):
                raise self._failed(file, error) from error
            return next(iter(await self.fetch(statement, *arguments)), None)
        return rows[0] if rows else None

    async def fetch(self, statement: str, *arguments: object) -> Sequence[Row]:
        file = self._current() or await self._opened()
        return await self._in_thread(self._reader, file.read, statement, arguments)

    async def write(self, statement: str, *arguments: object) -> int:
        self._current() or await self._opened()
        write = _Write(statement, arguments, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._committing is None or self._committing.done():
            # In no caller's context: it works for all.
            self._committing = asyncio.create_task(
                self._commit_waiting(), context=contextvars.Context())
        return await write.changed

    async def _commit_waiting(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            group = [write for write in group if not write.changed.done()]  # nobody gave up
            try:
                file = self._current() or await self._opened()
                counts = await self._in_thread(self._writer, file.commit, group)
            except Exception as error:
                _tell_each(group, error)
            else:
                for write, count in zip(group, counts, strict=True):
                    if not write.changed.done():
                        write.changed.set_result(count)

    def _current(self) -> _File | None:
        """The file, if it is open, and still the one at its path."""
        return self._file if self._file and self._file.is_there() else None

    async def _opened(self) -> _File:
        """The file, opened anew: it has been replaced, or has failed.

        :raises StorageUnavailable: it is not there; when it is back, it goes on.
        """
        if self._file and self._reader and self._writer:
            self._file.require_some()
            self._let_go(self._file, self._reader, self._writer)
        try:
            return await self._in_thread(self._writer, self._open_file)
        except ConfigError as error:
            raise StorageError('The address book failed', str(error)) from error

    def _let_go(self, file: _File, reader: ThreadPoolExecutor, writer: ThreadPoolExecutor) -> None:
        # Each connection is closed where it is used, when that is done. The thread that
        # writes may open another file as soon as there is none here: it must find this one.
        file.point.close()
        self._left.append((file, reader.submit(file.scan.close)))
        self._file = None
        writer.submit(self._close_left)

    async def _in_thread(self, thread: ThreadPoolExecutor | None, work: Callable[P, T],
                         *args: P.args, **kwargs: P.kwargs) -> T:
        if thread is None:
            raise StorageUnavailable('The address book is not open')
        call = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
        file = self._file
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, call)
        except sqlite3.Error as error:
            raise self._failed(file, error) from error

    def _failed(self, file: _File | None, error: sqlite3.Error) -> StorageError:
        """What an error of SQLite means. After a failure of the disk the file is opened
        anew: what a connection remembers may not be what is there."""
        is_lost = _code(error) not in _HARMLESS and file is self._file
        if is_lost and file and self._reader and self._writer:
            self._let_go(file, self._reader, self._writer)
        cause = f'{self.path}: {getattr(error, "sqlite_errorname", "")} {error}'
        if _code(error) in _PASSING or isinstance(error, sqlite3.ProgrammingError):  # closed
            return StorageUnavailable('The address book cannot be used now', cause)
        return StorageError('The address book failed; whether a change was made is not known',
                            cause)

    def _unusable(self, error: Exception) -> ConfigError:
        reason = getattr(error, 'cause', '') or getattr(error, 'strerror', '') or error
        return ConfigError(f'addr-db.sqlite: {str(self.path)!a}: cannot be used as the file '
                           f'for entries: {reason}')

    # All that follows runs in the thread that writes.

    def _make_file(self) -> None:
        for folder in reversed(self.path.parents):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
                _sync(folder.parent)
        with contextlib.suppress(FileExistsError):
            # Only if it is not there: to open and close a file that SQLite has
            # open in this process would take its locks away.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))

    def _close_left(self) -> None:
        while self._left:
            file, scan_closed = self._left.pop()
            scan_closed.result()
            file.leave()

    def _open_file(self) -> _File:
        file = self._file  # read once: the event loop may let go of it at any time
        if file is None:
            assert self._upgrade is not None
            self._close_left()  # before another file has a log at the same path
            file = _File(self.path, self.busy_timeout)
            try:
                file.prepare(self._upgrade())
            except BaseException:
                file.close()
                raise
            self._file = file
        return file


class _File:
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

    def prepare(self, upgrade: Upgrade) -> None:
        """Makes it a store of this version.

        :raises StorageError: it is damaged.
        """
        self._use_wal(time.monotonic() + self.busy_timeout)
        for reading in (self.scan, self.point):
            reading.execute('PRAGMA query_only = ON')
        self.point.execute('PRAGMA busy_timeout = 0')
        self._check()
        with self.transaction():
            rows: Sequence[Row] = ()
            with contextlib.suppress(StopIteration):
                statement = next(upgrade)
                while True:
                    rows = self.writing.execute(statement).fetchall()
                    statement = upgrade.send(rows)
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

    def commit(self, group: Sequence[_Write]) -> list[int]:
        """How many rows each of these has changed, for the thread that writes.

        :raises OutcomeUnknown: it was done in a file that is not at its path any more.
        """
        with self.transaction():
            counts = [self.writing.execute(_own(write.statement), write.arguments).rowcount
                      for write in group]
        if not self.is_there():
            raise OutcomeUnknown('The address book was moved; whether the change was made is '
                                 'not known', f'{self.path}: removed, or another file now')
        return counts

    def read(self, statement: str, arguments: Sequence[object]) -> Sequence[Row]:
        """The rows of a statement, for the thread that reads."""
        return self.scan.execute(_own(statement), arguments).fetchall()

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
                if not _is_locked(error) or time.monotonic() > deadline:
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
    # What is no UTF-8 becomes surrogates, which no entry may hold.
    connection.text_factory = lambda data: data.decode('utf-8', 'surrogateescape')
    return connection


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


def _is_locked(error: BaseException) -> bool:
    return _code(error) in _LOCKED or _code(error.__cause__) in _LOCKED


def _tell_each(group: Sequence[_Write], error: Exception) -> None:
    for write in group:
        if not write.changed.done():
            own = copy.copy(error)  # one for each: who catches it adds to its traceback
            own.__cause__ = error.__cause__ or error
            write.changed.set_exception(own)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shut_down(*threads: ThreadPoolExecutor) -> None:
    for thread in threads:
        thread.shutdown()

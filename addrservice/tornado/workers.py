"""Several processes that share one port: forked, started again, and told to stop, as one.

Tornado's `fork_processes` does the first two. What it does not is here: signals are passed
on, workers know of each other what they must, and what they count is told as a sum.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tornado.process import fork_processes

from addrservice import MULTIPROCESS
from addrservice.config import Config
from addrservice.errors import ConfigError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

RESTART_SECONDS = 1.0
"""Between two starts of a worker, so that one that always fails does nothing worse."""

CANNOT_START = 2
"""The exit status of a worker that would fail again, however often it was started."""


class Board:
    """What supervisor and workers tell each other: memory that they share, as it is older
    than the fork. Each cell is a number, written at one stroke."""

    def __init__(self, count: int) -> None:
        """
        :param count: how many workers there are.
        """
        self._cells = memoryview(mmap.mmap(-1, 8 * (3 + 2 * count))).cast('q')
        self._count = count

    @property
    def is_stopping(self) -> bool:
        """Whether the supervisor has been told to stop."""
        return bool(self._cells[0])

    @property
    def is_out(self) -> bool:
        """Whether the workers are to be out of rotation."""
        return bool(self._cells[1])

    @is_out.setter
    def is_out(self, is_out: bool) -> None:
        self._cells[1] = is_out

    @property
    def status(self) -> int:
        """The exit status for all."""
        return self._cells[2]

    def pids(self) -> list[int]:
        """The process ids of those that have started."""
        return [pid for pid in self._cells[3:3 + self._count] if pid]

    def stop(self) -> None:
        """Nobody shall be started any more."""
        self._cells[0] = 1

    def fail(self, status: int) -> bool:
        """Sets the exit status, if nobody has.

        :return: whether it was set.
        """
        is_first = not self._cells[2]
        self._cells[2] = self._cells[2] or status
        return is_first

    def enter(self, number: int) -> float | None:
        """Notes that this process is now the worker with that number.

        :return: how many seconds ago the one before it started, if there was one.
        """
        now, started = time.monotonic_ns(), self._cells[3 + self._count + number]
        self._cells[3 + number] = os.getpid()
        self._cells[3 + self._count + number] = now
        return (now - started) / 1e9 if started else None


class FairSocket(socket.socket):
    """A listening socket that gives one connection at a time. Tornado takes all that wait
    at one go, so that the first worker to wake would have them all, and the others none."""

    _has_given = False

    def accept(self) -> tuple[socket.socket, Any]:
        self._has_given = not self._has_given
        if not self._has_given:
            raise BlockingIOError  # as if no more were there; those that are wake somebody again
        try:
            return super().accept()
        except OSError:
            self._has_given = False
            raise


@dataclass(frozen=True)
class Worker:
    """One of several processes."""

    number: int
    """From 0 on."""

    board: Board
    sockets: Sequence[socket.socket]
    """The public port, on which all of them listen."""

    supervisor: int
    """The process that has started it."""

    def is_orphan(self) -> bool:
        """Whether the supervisor is gone, so that nobody will tell it to stop."""
        return os.getppid() != self.supervisor


Work = Callable[[Worker], int]


def count_of(config: Config) -> int:
    """How many processes a configuration wants.

    :raises ConfigError: more than one, and they could not share their entries.
    """
    count = config['server']['processes'] or _cores()
    if count > 1 and 'memory' in config['addr-db']:
        raise ConfigError('server.processes: entries in memory are those of one process; '
                          f'{count} processes would have {count} address books')
    return int(count)


def _cores() -> int:
    """Those that this process may use, where the system tells (Linux does)."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def config_of(config: Config, number: int) -> Config:
    """The configuration for a worker: what only one process can have is numbered."""
    own = {**config}
    if 'admin' in config and config['admin']['port']:
        own['admin'] = {**config['admin'], 'port': config['admin']['port'] + number}
    collectors = config['tracing']['collectors']
    if 'file' in collectors:
        path = Path(collectors['file']['path'])
        file = {**collectors['file'], 'path': str(path.with_stem(f'{path.stem}-{number}'))}
        own['tracing'] = {**config['tracing'], 'collectors': {**collectors, 'file': file}}
    return own


@contextlib.contextmanager
def sharing_metrics() -> Iterator[None]:
    """Meanwhile processes that are forked count together; to be entered before the
    library that counts is imported. The folder is the operator's, or a new one."""
    if MULTIPROCESS in os.environ:
        yield
        return
    supervisor = os.getpid()
    os.environ[MULTIPROCESS] = folder = tempfile.mkdtemp(prefix='addrservice-metrics-')
    try:
        yield
    finally:
        if os.getpid() == supervisor:
            shutil.rmtree(folder, ignore_errors=True)


def run_workers(count: int, sockets: Sequence[socket.socket], work: Work) -> int:
    """Runs so many workers until they are told to stop, and starts again those that die.

    Called once, it returns in each process: in a worker when its work is done, in the
    supervisor when all have ended.

    :param sockets: the public port, which all listen on.
    :param work: what a worker does; gives its exit status.
    :return: the exit status of this process.
    """
    board, supervisor = Board(count), os.getpid()
    for number in STOP_SIGNALS:
        signal.signal(number, partial(_pass_on, board, supervisor))
    # What is there by now is there to stay: it can be shared, and need not be looked at again.
    gc.collect()
    gc.freeze()
    try:
        task_id = fork_processes(count, max_restarts=sys.maxsize)
    except SystemExit:
        return board.status
    fair = [FairSocket(fileno=each.detach()) for each in sockets]
    for each in fair:
        each.setblocking(False)
    return _run_worker(Worker(task_id, board, fair, supervisor), work)


def _run_worker(worker: Worker, work: Work) -> int:
    # A group of its own: Ctrl-C in a terminal is for the supervisor, who passes it on.
    os.setpgid(0, 0)
    board = worker.board
    since_last = board.enter(worker.number)
    if board.is_stopping:
        if since_last is not None:  # the one before did not end as it should
            board.fail(1)
        return 0
    if since_last is not None:
        time.sleep(max(0.0, RESTART_SECONDS - since_last))
    status = work(worker)
    if status != CANNOT_START:
        return status
    os.kill(worker.supervisor, signal.SIGTERM)
    return 0  # or it would be started again


def _pass_on(board: Board, supervisor: int, _number: int, _frame: FrameType | None) -> None:
    """A signal came. In a worker that has not come to serving yet it ends that."""
    if os.getpid() != supervisor:
        os._exit(0)
    if board.is_stopping:
        board.fail(1)
    board.stop()
    for pid in board.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

"""What it costs to have work done in a thread: an executor of Python's, and our own way.

Both do nothing for the same number of tasks that wait, in turn, each in one thread and all on one
core. Prints the microseconds of CPU time for one piece of work, the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import functools
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import uvloop

from addrservice.database.threads import WorkerThreads

PIECES = 3200
ROUNDS = 9
WAITING = (1, 8, 32)
"""Tasks that have something done at the same time."""

Way = Callable[[], Awaitable[None]]


def nothing() -> None:
    """Does nothing, so that all else is what it costs to have it done."""


async def by_executor(executor: ThreadPoolExecutor) -> None:
    """As `asyncio.to_thread` does it."""
    call = functools.partial(contextvars.copy_context().run, nothing)
    await asyncio.get_running_loop().run_in_executor(executor, call)


async def microseconds(way: Way, waiting: int) -> float:
    """CPU time of all threads for one piece of work."""
    async def some() -> None:
        for _ in range(PIECES // waiting):
            await way()

    start = time.process_time()
    await asyncio.gather(*(some() for _ in range(waiting)))
    return 1e6 * (time.process_time() - start) / PIECES


async def compare(waiting: int) -> list[float]:
    """Of each way the median."""
    with ThreadPoolExecutor(1) as executor:
        threads = WorkerThreads('worker')
        ways: list[Way] = [functools.partial(by_executor, executor),
                           functools.partial(threads.run, nothing)]
        rounds = [[await microseconds(way, waiting) for way in ways] for _ in range(ROUNDS)]
        await asyncio.to_thread(threads.join)
    return [statistics.median(figures) for figures in zip(*rounds)]


def main() -> None:
    argparse.ArgumentParser(prog='threads.py', description=__doc__.split('\n\n')[0]).parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f'{"waiting":>8}{"executor":>10}{"ours":>8}{"ratio":>8}')
    for waiting in WAITING:
        executor, ours = uvloop.run(compare(waiting))
        print(f'{waiting:8}{executor:10.1f}{ours:8.1f}{ours / executor:8.2f}')


if __name__ == '__main__':
    main()

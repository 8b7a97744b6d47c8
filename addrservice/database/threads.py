"""Work that may wait, in threads beside the event loop.

`concurrent.futures` has executors for this, with two futures, several locks and a semaphore around
each piece of work, which take longer than it takes to read an entry. Here is one queue, and who
waits is told on the event loop. `benchmarks/threads.py` compares them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec('P')
T = TypeVar('T')


class WorkerThreads:
    """Threads that take work from one queue.

    They are daemons: a process that ends without `close` does not wait for them, and what they
    do then is done, or not, as if it had been killed.
    """

    def __init__(self, name: str, count: int = 1) -> None:
        """
        :param name: of the threads, which begin when there is work for them.
        :param count: threads, at most.
        """
        self._name = name
        self._count = count
        self._threads: list[threading.Thread] = []
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closed = False

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Has it done in the context of the caller. It is not begun if the caller has given up by
        then; once it has, it is done to the end.

        :return: to be awaited: what it returns, or raises.
        :raises RuntimeError: the threads have been closed.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        call = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
        self.put(functools.partial(_settle, loop, outcome, call))
        return outcome

    def put(self, call: Callable[[], None]) -> None:
        """Has it done, and nobody waits for it: what it raises is logged.

        :raises RuntimeError: the threads have been closed.
        """
        if self._is_closed:
            raise RuntimeError('The threads have been closed')
        if len(self._threads) < self._count:
            self._begin()
        self._work.put(call)

    def close(self) -> None:
        """Lets them end when all that has been put is done; a second time is fine."""
        if not self._is_closed:
            self._is_closed = True
            for _ in self._threads:
                self._work.put(None)

    def join(self) -> None:
        """Closes them, and waits until they have ended."""
        self.close()
        for thread in self._threads:
            thread.join()

    def _begin(self) -> None:
        thread = threading.Thread(target=_do_all, args=[self._work], daemon=True,
                                  name=f'{self._name}_{len(self._threads)}')
        self._threads.append(thread)
        thread.start()


# All that follows runs in a thread.

def _do_all(work: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while call := work.get():
        try:
            call()
        except Exception:
            logging.getLogger(__name__).exception('Work that nobody waits for has failed')
        del call  # what it holds may be large


def _settle(loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[T], call: Callable[[], T]
            ) -> None:
    if outcome.cancelled():
        return
    result, error = None, None
    try:
        result = call()
    except BaseException as caught:
        error = caught
    with contextlib.suppress(RuntimeError):  # a loop that is closed: nobody waits
        loop.call_soon_threadsafe(_tell, outcome, result, error)
    del outcome, error  # an error knows this frame, and would hold itself


# And this on the event loop.

def _tell(outcome: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if outcome.done():  # given up meanwhile
        return
    if error is None:
        outcome.set_result(result)
    else:
        outcome.set_exception(error)

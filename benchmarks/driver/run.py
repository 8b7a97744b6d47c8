"""One run: fills the book, drives the requests, and clears up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import selectors
from collections.abc import AsyncIterator, Coroutine
from time import monotonic, process_time
from typing import Any, TypeVar

from benchmarks.driver.book import Book
from benchmarks.driver.client import TIMEOUT, Client, Failure
from benchmarks.driver.plan import POST, Plan, schedule
from benchmarks.driver.result import Result

T = TypeVar('T')

WRITERS = 16
"""Connections that fill and clear the book; more might be more than the service takes at once."""

PATIENCE_SECONDS = 1.0
"""For the requests under way, and for each that removes an entry, when a run is broken off."""

UNSENT, UNFINISHED = 'unsent', 'unfinished'


class Unreachable(Exception):
    """Nothing takes connections at the URL."""


class NotFilled(Exception):
    """The service does not make the entries that a run needs."""


class Load:
    """One run of a plan. Made on an event loop; `stop` breaks it off."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.result = Result(plan)
        """What came of it so far."""
        self.doing = 'filling'
        """Then `driving`, then `clearing`."""
        self._book = Book(plan)
        self._clients: list[Client] = []
        self._workers: list[asyncio.Task[None]] = []
        self._stopped = asyncio.get_running_loop().create_future()
        self._ends = math.inf
        self._patience = plan.timeout

    async def run(self) -> Result:
        """Fills the book, drives the requests, and removes the entries; to be called once.

        :raises Unreachable: nobody takes connections.
        :raises NotFilled: the entries cannot be made.
        """
        async with self._connected():
            try:
                await self._fill()
                await self._drive()
            finally:
                await self._clear()
                self.result.left += self._book.lost_posts
                self.result.opened = sum(client.opened for client in self._clients)
        return self.result

    def stop(self) -> None:
        """Breaks the run off: what is under way has a second to end, and `run` returns."""
        self.result.interrupted = True
        self._ends = monotonic()
        self._patience = PATIENCE_SECONDS
        for client in self._clients:
            client.timeout = min(client.timeout, PATIENCE_SECONDS)
        if not self._stopped.done():
            self._stopped.set_result(None)
        for worker in self._workers:
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, worker.cancel)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """All connections are there before the first request is due."""
        try:
            await self._together(self._connect())
            yield
        except (Failure, TimeoutError) as error:
            raise Unreachable(f'{self.plan.url}: {error.__cause__ or TIMEOUT}') from error
        finally:
            for client in self._clients:
                client.close()

    async def _connect(self) -> None:
        address = self.plan.host, self.plan.port
        for _ in range(self.plan.connections):
            client = Client(address, self.plan.timeout)
            self._clients.append(client)
            await asyncio.wait_for(client.connected(), self.plan.timeout)
            address = client.address

    async def _fill(self) -> None:
        async def write(client: Client) -> None:
            for _ in posts:
                if self.result.interrupted:
                    return
                await self._make_entry(client)

        posts = iter(range(self.plan.entries))
        await self._together(*map(write, self._clients[:WRITERS]))

    async def _make_entry(self, client: Client) -> None:
        request = self._book.request(POST)
        error = UNFINISHED
        try:
            error = self._book.settle(request, await client.ask(request.data))
        except Failure as failure:
            error = str(failure)
        finally:
            self._book.doubt(request, error)
        if error:
            raise NotFilled(f'{self.plan.url}: cannot make an entry: {error}')

    async def _drive(self) -> None:
        if self.result.interrupted:
            return
        began, cpu = monotonic(), process_time()
        self._ends = began + self.plan.seconds
        self.doing = 'driving'
        self._moments = schedule(self.plan, began, monotonic)
        try:
            await self._together(*map(self._work, self._clients))
            for due in itertools.takewhile(lambda due: due < self._ends, self._moments):
                self._give_up(due)
        finally:
            self.result.duration = monotonic() - began
            self.result.cpu_seconds = process_time() - cpu

    async def _together(self, *work: Coroutine[Any, Any, None]) -> None:
        """Waits for all, or until one has an error, which is raised. `stop` may cancel them."""
        self._workers = [asyncio.create_task(part) for part in work]
        try:
            done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for worker in self._workers:
                worker.cancel()
        for worker in done:
            if not worker.cancelled():
                worker.result()

    async def _work(self, client: Client) -> None:
        """Takes the next request that is due whenever the one before has its answer. The workers
        share the schedule, and so are a queue in front of the connections, first come, first
        served, which takes no room however long it gets."""
        for due in self._moments:
            in_time = await self._until(min(due, self._ends))
            if due >= self._ends:
                return
            if monotonic() > self._ends + self._patience:
                return self._give_up(due)
            if in_time:
                self.result.lateness.append(monotonic() - due)
            await self._perform(client, self._book.choose(), due)

    def _give_up(self, due: float) -> None:
        self.result.note(self._book.choose(), monotonic() - due, UNSENT)

    async def _perform(self, client: Client, operation: str, due: float) -> None:
        request = self._book.request(operation)
        error = UNFINISHED
        try:
            answer = await client.ask(request.data)
            self.result.statuses[operation, answer.status] += 1
            error = self._book.settle(request, answer)
        except Failure as failure:
            error = str(failure)
            await asyncio.sleep(0)  # a refused connection lets nobody else have a turn
        finally:
            self.result.note(operation, monotonic() - due, error)
            self._book.doubt(request, error)

    async def _until(self, moment: float) -> bool:
        """Waits; `stop` ends it, too.

        :return: whether there was something to wait for.
        """
        pause = moment - monotonic()
        if pause > 0:
            await asyncio.wait([self._stopped], timeout=pause)
        return pause > 0

    async def _clear(self) -> None:
        """Removes the entries. A client that gets no answer gives up, so that this ends soon
        after the service did."""
        async def remove(client: Client) -> None:
            for entry in entries:
                try:
                    answer = await client.ask(self._book.delete(entry).data)
                except Failure:
                    return
                self.result.left -= answer.status in (204, 404)

        made = [*self._book.entries, *self._book.doubtful]
        entries = iter(made)
        self.result.left = len(made)
        self.doing = 'clearing'
        await self._together(*map(remove, self._clients[:WRITERS]))


async def drive(plan: Plan) -> Result:
    """One run, with its entries made before and removed after it, also when it is cancelled.

    :raises Unreachable: nobody takes connections.
    :raises NotFilled: the entries cannot be made.
    """
    load = Load(plan)
    running = asyncio.create_task(load.run())
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        load.stop()
        with contextlib.suppress(Unreachable, NotFilled):
            await running
        raise


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine as `asyncio.run` does, but on a loop that keeps time: epoll, its usual
    choice, wakes up to a millisecond late, which is more than many an answer takes."""
    def punctual_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        return runner.run(work)

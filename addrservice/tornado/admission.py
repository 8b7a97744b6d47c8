"""How much is taken on at once: requests under way are counted, too many are refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Admission:
    """Counts the requests under way. Probes are counted apart: they are
    answered however busy the service is."""

    def __init__(self, max_in_flight: int) -> None:
        """
        :param max_in_flight: requests worked on at once; probes do not count.
        """
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.probes_in_flight = 0
        self._tasks: set[asyncio.Task[object]] = set()

    def enter(self, is_probe: bool) -> None:
        """Takes note of a request; each one must `leave`."""
        if is_probe:
            self.probes_in_flight += 1
        else:
            self.in_flight += 1

    def work_in(self, task: asyncio.Task[object]) -> None:
        """Takes note of the task that works for a request."""
        self._tasks.add(task)

    def cancel(self) -> None:
        """Breaks off all that is under way."""
        for task in tuple(self._tasks):
            task.cancel()

    def leave(self, is_probe: bool, task: asyncio.Task[object] | None = None) -> None:
        """A request has ended, and its task works for it no more; to be called once for each."""
        if task:  # it had come to have one
            self._tasks.discard(task)
        if is_probe:
            self.probes_in_flight -= 1
        else:
            self.in_flight -= 1

    def is_overloaded(self) -> bool:
        """Whether more requests are under way than should be."""
        return self.in_flight > self.max_in_flight

    @contextlib.contextmanager
    def waiting_for_client(self) -> Iterator[None]:
        """While a request waits for its client only, it is no work that would
        keep others from being taken on: a slow reader has no effect on them."""
        self.in_flight -= 1
        try:
            yield
        finally:
            self.in_flight += 1

    async def until_idle(self) -> None:
        """Returns when no request is under way."""
        while self.in_flight or self.probes_in_flight:
            await asyncio.sleep(0.02)

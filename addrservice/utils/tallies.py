"""Tallies: what is observed waits in a list, and is counted when somebody looks, many at a time.

To observe is one `append`, which no thread can come between; `Histogram.observe`
takes a lock for each of two numbers, and looks for the bucket in Python.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import compress, repeat
from typing import TypeVar

from prometheus_client import Histogram, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

K = TypeVar('K', bound=Hashable)
T = TypeVar('T')

BATCH = 256
"""Observations of a kind that wait at most, about, where nobody looks. Many share what counting
costs at all; they hold a loop up for a tenth of a millisecond, and 60 KB where each has a trace."""


class Tally(list[T]):
    """Observations of one kind that have not been counted yet.

    Whoever appends one pours when there are `BATCH`. No method does both: a call
    of one would cost as much again as the observation.
    """

    __slots__ = ('_count', '_pouring')

    def __init__(self, count: Callable[[Sequence[T]], None]) -> None:
        """
        :param count: gets what has been observed, in order; never nothing.
        """
        super().__init__()
        self._count = count
        self._pouring = threading.Lock()  # or two who pour would count the same

    def pour(self, wait: bool = False) -> None:
        """Counts what waits; observations that come meanwhile are for the next time.

        :param wait: if another thread is at it, until it has done; who only makes
            room need not, and must not where a finalizer, run inside of this
            method, ends a span in the same thread.
        """
        if self._pouring.acquire(wait):
            try:
                taken = self[:]
                if taken:
                    del self[:len(taken)]
                    self._count(taken)
            finally:
                self._pouring.release()


class Tallies(dict[K, Tally[T]]):
    """The tallies of one metric, by what tells them apart; one that is missing is made."""

    def __init__(self, make: Callable[[K], Tally[T]]) -> None:
        """
        :param make: for a key that is not there. It sees to it that there are not too
            many: the tally is kept if it says so, by `setdefault`, as another thread
            may have come first.
        """
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> Tally[T]:
        return self._make(key)

    def pour(self) -> None:
        """Counts all that has been observed until now."""
        for tally in list(self.values()):  # other threads may add some
            tally.pour(wait=True)


class BeforeCollecting(Collector):
    """Has something done whenever a registry collects; registered as the first, before all else."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        self._act()
        return ()


def observe_all(histogram: Histogram, values: Sequence[float],
                trace_ids: Sequence[str | None] = (), times: Sequence[float] = ()) -> None:
    """Does what `histogram.observe` would do for each value, and reaches behind it for that:
    the library, which is exactly pinned, can only observe one by one.

    :param histogram: one without labels, or with their values.
    :param trace_ids: of each value, if it has one: the newest of a bucket is its exemplar.
    :param times: of each value, in seconds since the epoch.
    """
    places = list(map(bisect_left, repeat(histogram._upper_bounds), values))
    histogram._sum.inc(sum(values))
    for place, count in Counter(places).items():
        histogram._buckets[place].inc(count)
    newest = dict(compress(zip(places, zip(trace_ids, values, times)), trace_ids))
    for place, (trace_id, value, when) in newest.items():
        histogram._buckets[place].set_exemplar(Exemplar({'trace_id': str(trace_id)}, value, when))

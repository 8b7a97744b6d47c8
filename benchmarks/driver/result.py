"""What came of a run: counts, and every latency."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator

from benchmarks.driver.plan import OPERATIONS, Plan

TICKS_PER_HALF_DISTANCE = 5


class Latencies:
    """Times in seconds, sorted. All figures of none are 0."""

    def __init__(self, samples: Iterable[float]) -> None:
        self.values = array('d', sorted(samples))

    def __len__(self) -> int:
        return len(self.values)

    def percentile(self, percent: float) -> float:
        """The smallest value that so many percent of all do not exceed."""
        # Rounded, for 99.9 percent of 41000 is a little more than 40959 in floating point.
        rank = math.ceil(round(len(self) * percent / 100, 6))
        return self.values[max(rank, 1) - 1] if self.values else 0.0

    def up_to(self, seconds: float) -> int:
        """How many took no longer."""
        return bisect.bisect_right(self.values, seconds)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else 0.0

    @property
    def maximum(self) -> float:
        return self.percentile(100)

    def distribution(self) -> Iterator[tuple[float, float, int]]:
        """Value, percentile and the number of times up to the value, as HdrHistogram steps:
        with every halving of what is left up to 100 percent its steps become half as wide."""
        percent, count = 0.0, 0
        while count < len(self):
            value = self.percentile(percent)
            count = self.up_to(value)
            yield value, percent, count
            halvings = math.floor(math.log2(100 / (100 - percent))) + 1
            percent += 100 / (TICKS_PER_HALF_DISTANCE * 2 ** halvings)
        yield self.maximum, 100.0, count


@dataclasses.dataclass
class Result:
    """What came of a run. Every request that was due counts, also one that failed or that there
    was no time to send: its latency ends where that was known."""

    plan: Plan
    samples: dict[str, array[float]] = dataclasses.field(
        default_factory=lambda: {operation: array('d') for operation in OPERATIONS})
    """Seconds that each request of an operation took, in the order in which they ended."""

    statuses: Counter[tuple[str, int]] = dataclasses.field(default_factory=Counter)
    """Answers by operation and status."""

    errors: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """Requests that went wrong, by operation and kind: `status …`, one that is not expected;
    `no location`; and the kinds of `Failure`. Further: `unsent`, when a time-out after the end,
    or a second after it was broken off, all connections were still busy with earlier ones;
    `unfinished`, under way at that time."""

    lateness: array[float] = dataclasses.field(default_factory=lambda: array('d'))
    """Seconds by which requests were sent late though a connection was free: a fault of the
    generator, not of the service, but part of the latency."""

    opened: int = 0
    """Connections."""

    duration: float = 0.0
    """Seconds from the start to the end of the last request."""

    cpu_seconds: float = 0.0
    """Used by this process in that time."""

    left: int = 0
    """Entries that could not be removed, or that a failed post may have made."""

    interrupted: bool = False

    @property
    def count(self) -> int:
        """Requests that were due."""
        return sum(map(len, self.samples.values()))

    @property
    def throughput(self) -> float:
        """Requests per second that were answered as expected."""
        return (self.count - self.errors.total()) / self.duration if self.duration else 0.0

    @property
    def busy(self) -> float:
        """The share of one core that this process used: near 1 it has measured itself."""
        return self.cpu_seconds / self.duration if self.duration else 0.0

    def latencies(self, operation: str | None = None) -> Latencies:
        """Those of one operation, or of all. Sorts them: ask once for several percentiles."""
        chosen = [self.samples[operation]] if operation else self.samples.values()
        return Latencies(itertools.chain.from_iterable(chosen))

    def errors_of(self, operation: str) -> int:
        return sum(times for (name, _), times in self.errors.items() if name == operation)

    def note(self, operation: str, seconds: float, error: str) -> None:
        """Counts a request that has ended; `error` is empty if there was none."""
        self.samples[operation].append(seconds)
        if error:
            self.errors[operation, error] += 1

"""What a run is to do, and when its requests are due."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from urllib.parse import urlsplit

GET, LIST, PUT, POST, DELETE = OPERATIONS = ('get', 'list', 'put', 'post', 'delete')
MIX: Mapping[str, float] = {GET: 60, LIST: 5, PUT: 15, POST: 10, DELETE: 10}
"""As many are made as deleted: the book of the last second is as large as that of the first."""

MOST = {'seconds': 3600, 'rate': 100_000, 'timeout': 600,
        'connections': 500}  # select() takes descriptors up to 1023
MOST_ENTRIES = 1_000_000

URL = re.compile(r'http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:0*[1-9]\d{0,4})?/?')


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is to do.

    :raises ValueError: a value is out of its range; the text is one line.
    """

    url: str = 'http://localhost:8080'
    """`http://host` or `http://host:port`, without a path."""

    seconds: float = 10.0
    """How long requests become due; above 0."""

    rate: float | None = None
    """Requests per second, in an open loop; None for a closed loop."""

    is_even: bool = False
    """Whether the requests of an open loop are due one after the other at the same distance;
    else at random, as from many clients."""

    connections: int = 16
    """Kept alive, with one request at a time on each."""

    mix: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(MIX))
    """Operations and their weights; one that is not there is not used."""

    entries: int = 100
    """Made before the first request that counts."""

    timeout: float = 10.0
    """Seconds from sending a request, or from connecting for it, to the end of its answer."""

    def __post_init__(self) -> None:
        for holds, rule in self._rules():
            if not holds:
                raise ValueError(rule)

    @property
    def host(self) -> str:
        """A name or an address; that of IPv6 without brackets."""
        return urlsplit(self.url).hostname or ''

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def authority(self) -> str:
        """What the field Host says."""
        return urlsplit(self.url).netloc

    def _rules(self) -> Iterator[tuple[bool, str]]:
        yield (URL.fullmatch(self.url) is not None and self.port > 0,
               'the URL must be http://HOST or http://HOST:PORT')
        for name, most in MOST.items():
            value = getattr(self, name)
            yield value is None or 0 < value <= most, f'{name} must be above 0 and at most {most}'
        yield 0 <= self.entries <= MOST_ENTRIES, f'entries must be 0 to {MOST_ENTRIES}'
        yield set(self.mix) <= set(OPERATIONS), f'the mix must be of {", ".join(OPERATIONS)}'
        yield (all(0 <= weight < math.inf for weight in self.mix.values())
               and any(self.mix.values()), 'the weights must be from 0 on, and not all 0')


def schedule(plan: Plan, began: float, clock: Callable[[], float]) -> Iterator[float]:
    """When requests are due, without end, each time the same; in a closed loop that is always
    now."""
    if plan.rate is None:
        return iter(clock, None)
    if plan.is_even:
        return itertools.count(began, 1 / plan.rate)
    pauses = iter(partial(random.Random('arrivals').expovariate, plan.rate), None)
    return itertools.accumulate(pauses, initial=began)

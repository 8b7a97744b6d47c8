"""Who runs where: the server has a core to itself, where there are two or more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

Core = frozenset[int]
"""The cores that a process may use; none stands for any."""


class Cores(NamedTuple):
    """How the cores are shared out."""

    server: Core
    load: Core
    others: Core
    """For a database server."""

    @property
    def are_shared(self) -> bool:
        """Whether the load generator takes its time from the server."""
        return self.server == self.load

    def describe(self) -> str:
        """One line for people."""
        if not self.server:
            return 'processes cannot be pinned here: the system runs them where it likes'
        if self.are_shared:
            return 'there is one core only: what makes the load takes its time from the server'
        return (f'the server runs on core {_names(self.server)}, the load generator on core '
                f'{_names(self.load)}, a database on core {_names(self.others)}')


def share_out() -> Cores:
    """Shares out the cores that this process may use."""
    if not hasattr(os, 'sched_setaffinity'):
        return Cores(frozenset(), frozenset(), frozenset())
    cores = sorted(os.sched_getaffinity(0))
    server, load, *others = cores if len(cores) > 1 else cores * 2
    return Cores(frozenset({server}), frozenset({load}), frozenset(others or {load}))


@contextlib.contextmanager
def on(core: Core) -> Iterator[None]:
    """Meanwhile this thread, and all processes that it starts for good, use no other core."""
    if not core:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _names(core: Core) -> str:
    return ', '.join(map(str, sorted(core)))

"""The tasks of the event loop, and what each of them waits for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from addrservice.utils import frames

MAX_TASKS = 1000
"""Tasks that are described; of more it is known how many there are."""

# How coroutines, generators and asynchronous generators name what they run in,
# and what they wait for (the table in the documentation of `inspect`).
_KINDS = (('cr_code', 'cr_frame', 'cr_await'), ('gi_code', 'gi_frame', 'gi_yieldfrom'),
          ('ag_code', 'ag_frame', 'ag_await'))

# Steps of another coroutine or generator, who do not tell of which.
_STEPS = ('anext_awaitable', 'async_generator_asend', 'async_generator_athrow',
          'coroutine_wrapper')


class TaskInfo(NamedTuple):
    """One task, as it stands now."""

    name: str
    coroutine: str
    """The function that the task runs."""

    state: str
    """``running`` is the one that asks; others are ``waiting``."""

    stack: list[str]
    """Where it stands, the outermost function first."""

    awaits: str | None
    """The class of what the innermost function waits for."""


class Tasks(NamedTuple):
    """The tasks of an event loop."""

    total: int
    tasks: list[TaskInfo]
    """Ordered by name; at most `MAX_TASKS`."""


def running_tasks() -> Tasks:
    """All tasks of the running event loop that have not ended."""
    found = asyncio.all_tasks()
    current = asyncio.current_task()
    described = sorted(found, key=lambda task: task.get_name())[:MAX_TASKS]
    return Tasks(len(found), [_describe(task, task is current) for task in described])


def _describe(task: asyncio.Task[Any], is_current: bool) -> TaskInfo:
    coroutine: Any = task.get_coro()
    stack, waits_for = [], coroutine
    for code, frame, waits_for in _chain(coroutine):
        stack.append(frames.place(code, frame and frame.f_lineno))
    return TaskInfo(task.get_name(), getattr(coroutine, '__qualname__', repr(type(coroutine))),
                    'running' if is_current else 'waiting', frames.shorten(stack),
                    None if waits_for is None else type(waits_for).__qualname__)


def _chain(coroutine: Any) -> Iterator[tuple[CodeType, FrameType | None, Any]]:
    """A coroutine, the one it waits for, and so on: `Task.get_stack` knows the first one only.

    :return: code, frame and what is waited for, of each.
    """
    while kind := next((names for names in _KINDS if hasattr(coroutine, names[0])), None):
        code, frame, awaited = (getattr(coroutine, name) for name in kind)
        coroutine = _who_steps(awaited)
        yield code, frame, coroutine


def _who_steps(awaited: Any) -> Any:
    """What is behind a step; only the garbage collector is told."""
    while type(awaited).__name__ in _STEPS:
        awaited = next((each for each in gc.get_referents(awaited)
                        if isinstance(each, (AsyncGenerator, Awaitable))), None)
    return awaited

"""Tasks are told with the whole chain of what they wait for."""

from __future__ import annotations

import asyncio
import sys
import types
import unittest
import unittest.mock
from collections.abc import AsyncIterator, Coroutine, Generator
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.utils import tasks
from addrservice.utils.tasks import TaskInfo, running_tasks


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await inner(event)


@types.coroutine
def old_style(event: asyncio.Event) -> Generator[Any, Any, None]:
    yield from inner(event).__await__()


async def numbers(event: asyncio.Event) -> AsyncIterator[int]:
    await inner(event)
    yield 1


async def read_all(event: asyncio.Event) -> None:
    async for _ in numbers(event):
        pass


async def read_one(event: asyncio.Event) -> None:
    await anext(numbers(event), None)


def functions(info: TaskInfo) -> list[str]:
    return [line.split()[-1] for line in info.stack]


class TasksTest(unittest.IsolatedAsyncioTestCase):
    async def describe(self, coroutine: Coroutine[Any, Any, None], event: asyncio.Event
                       ) -> TaskInfo:
        """What is told of a task that waits for an event."""
        task = asyncio.create_task(coroutine, name='ours')
        await asyncio.sleep(0)
        info, = (info for info in running_tasks().tasks if info.name == 'ours')
        event.set()
        await task
        return info

    async def test_a_task_is_told_with_all_that_it_awaits(self) -> None:
        event = asyncio.Event()
        info = await self.describe(outer(event), event)
        self.assertEqual((info.coroutine, info.state, info.awaits),
                         ('outer', 'waiting', 'FutureIter'))
        self.assertEqual(functions(info), ['outer', 'inner', 'Event.wait'])
        self.assertIn(f'tasks_test.py:{outer.__code__.co_firstlineno + 1} ', info.stack[0])

    async def test_generators_that_are_awaited_are_in_the_stack(self) -> None:
        event = asyncio.Event()

        async def await_old_style() -> None:
            await old_style(event)

        info = await self.describe(await_old_style(), event)
        self.assertEqual(functions(info)[1:], ['old_style', 'inner', 'Event.wait'])

    async def test_asynchronous_generators_are_in_the_stack(self) -> None:
        for read in (read_all, read_one):
            event = asyncio.Event()
            info = await self.describe(read(event), event)
            self.assertEqual(functions(info),
                             [read.__name__, 'numbers', 'inner', 'Event.wait'])

    async def test_the_task_that_asks_is_running(self) -> None:
        own = asyncio.current_task()
        assert own is not None
        info, = (info for info in running_tasks().tasks if info.name == own.get_name())
        self.assertEqual((info.state, info.awaits), ('running', None))

    async def test_of_very_many_tasks_it_is_told_how_many_there_are(self) -> None:
        event = asyncio.Event()
        waiting = [asyncio.create_task(inner(event)) for _ in range(5)]
        with unittest.mock.patch.object(tasks, 'MAX_TASKS', 3):
            told = running_tasks()
        self.assertEqual((told.total, len(told.tasks)), (6, 3))
        event.set()
        await asyncio.gather(*waiting)

    async def test_a_task_that_has_not_begun_is_told_too(self) -> None:
        event = asyncio.Event()
        task = asyncio.create_task(inner(event), name='new')
        info, = (info for info in running_tasks().tasks if info.name == 'new')
        self.assertEqual((info.state, len(info.stack), info.awaits), ('waiting', 1, None))
        event.set()
        await task


if __name__ == '__main__':
    unittest.main()

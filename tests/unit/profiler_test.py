"""A profile tells what the event loop does, one at a time, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import unittest
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop

from addrservice.errors import ProfilerBusy
from addrservice.utils.profiler import FORMATS, WAITING, LoopProfiler, render


async def work_hard() -> None:
    while True:
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            sum(range(1000))
        await asyncio.sleep(0.001)


class ProfilerTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.profiler = LoopProfiler()
        working = asyncio.create_task(work_hard())
        self.addCleanup(working.cancel)

    async def test_it_shows_what_other_tasks_do_in_every_format(self) -> None:
        session = await self.profiler.profile(0.2)
        for name, media_type in FORMATS.items():
            with self.subTest(format=name):
                text, told = render(session, name)
                self.assertEqual(told, media_type)
                self.assertTrue('work_hard' in text)

    async def test_speedscope_gets_its_own_format(self) -> None:
        text, _ = render(await self.profiler.profile(0.1), 'speedscope')
        self.assertIn('speedscope.app/file-format-schema.json', json.loads(text)['$schema'])

    async def test_speedscope_gets_calls_however_short_they_are(self) -> None:
        working = asyncio.create_task(work_a_little())
        self.addCleanup(working.cancel)
        text, _ = render(await self.profiler.profile(0.7), 'speedscope')
        names = {frame['name'] for frame in json.loads(text)['shared']['frames']}
        self.assertLessEqual({'work_a_little', 'come_first', 'come_last'}, names)

    async def test_the_page_may_load_nothing(self) -> None:
        text, _ = render(await self.profiler.profile(0.05), 'html')
        head = text[:1000]
        self.assertIn("default-src 'none'", head)
        self.assertLess(head.index('Content-Security-Policy'), text.index('<script'))

    async def test_there_is_one_at_a_time(self) -> None:
        first = asyncio.create_task(self.profiler.profile(0.1))
        await asyncio.sleep(0)
        with self.assertRaises(ProfilerBusy):
            await self.profiler.profile(0.1)
        await first
        await self.profiler.profile(0.01)

    async def test_one_that_is_cancelled_leaves_nothing_behind(self) -> None:
        before = sys.getprofile()
        first = asyncio.create_task(self.profiler.profile(60))
        await asyncio.sleep(0.05)
        first.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await first
        self.assertIs(sys.getprofile(), before)
        await self.profiler.profile(0.01)


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(100))


def come_first() -> None:
    burn(0.0004)


def come_last() -> None:
    burn(0.0004)


async def work_a_little() -> None:
    """Less than the time between two samples, and then nothing for long."""
    while True:
        come_first()
        come_last()
        await asyncio.sleep(0.003)


async def block() -> None:
    while True:
        burn(0.001)
        time.sleep(0.004)
        await asyncio.sleep(0)


class TimeTest(unittest.TestCase):
    """On each event loop: asyncio's waits in a function of Python's, uvloop's in C."""

    def check_on_each_loop(self, work: Callable[[], Awaitable[None]],
                           check: Callable[[Counter[str], float], None]) -> None:
        """Samples that work.

        :param check: takes the shares of CPU time that functions have with all they call, and
            the share of all time that was waited in them; and that of the CPU in all time.
        """
        for loop in (asyncio.new_event_loop, uvloop.new_event_loop):
            with self.subTest(loop.__module__), asyncio.Runner(loop_factory=loop) as runner:
                check(*runner.run(self.sampled(work)))

    async def sampled(self, work: Callable[[], Awaitable[None]]) -> tuple[Counter[str], float]:
        working = asyncio.ensure_future(work())
        session = await LoopProfiler().profile(1.0)
        working.cancel()
        in_all = sum(seconds for _, seconds in session.frame_records)
        self.assertAlmostEqual(session.duration, in_all, delta=0.3 * session.duration)
        found: Counter[str] = Counter()
        for stack, seconds in session.frame_records:
            is_wait = stack[-1] == WAITING
            for name in {frame.split('\0')[0] for frame in stack}:
                found[f'waited in {name}' * is_wait or name] += (  # type: ignore[assignment]
                    seconds / (session.duration if is_wait else session.cpu_time))
        return found, session.cpu_time / session.duration

    def test_of_what_takes_little_time_the_waiting_is_told_apart(self) -> None:
        def check(shares: Counter[str], busy: float) -> None:
            self.assertLess(busy, 0.6)
            self.assertAlmostEqual(1 - busy, shares['waited in run'], delta=0.1)
            for name in ('come_first', 'come_last'):
                self.assertTrue(0.2 < shares[name] < 0.7, shares)
                self.assertLess(shares[f'waited in {name}'], 0.2)

        self.check_on_each_loop(work_a_little, check)

    def test_what_blocks_the_loop_is_shown_where_it_does(self) -> None:
        def check(shares: Counter[str], busy: float) -> None:
            self.assertGreater(shares['burn'], 0.6)
            self.assertLess(shares['sleep'], 0.2)
            self.assertGreater(shares['waited in sleep'], 0.6 * (1 - busy))

        self.check_on_each_loop(block, check)


if __name__ == '__main__':
    unittest.main()

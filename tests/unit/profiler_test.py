"""A profile tells what the event loop does, one at a time, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import unittest
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.errors import ProfilerBusy
from addrservice.utils.profiler import FORMATS, LoopProfiler, render


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


if __name__ == '__main__':
    unittest.main()

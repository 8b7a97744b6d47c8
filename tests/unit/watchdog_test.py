"""Who holds up the event loop is named, once for each time, and nobody else is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.utils.frames import MAX_LINES
from addrservice.utils.logutils import set_log_context
from addrservice.utils.watchdog import Watchdog
from tests.support import DEADLINE, ROOT, parse_logfmt, recording_logger

THRESHOLD = 0.03
STALL = 0.1
HEARTBEAT = THRESHOLD / 4


def block(seconds: float = STALL) -> None:
    time.sleep(seconds)


def block_again() -> None:
    time.sleep(STALL)


def block_in_library() -> None:
    threading.Event().wait(STALL)


def block_deep_down(depth: int) -> None:
    if depth:
        block_deep_down(depth - 1)
    else:
        block()


def block_first_briefly() -> None:
    block(2 * THRESHOLD)
    time.sleep(1.5 * STALL)


def compute_in_c() -> None:
    """Lets other threads run only between calls of C code, each of which is a stall."""
    for _ in range(3):  # as it need not be the watchdog whose turn it is
        sum(range(5 * 10 ** 6))


def stop_all_threads() -> None:
    """Lets no other thread run for a while, nor this one: as if the process was suspended."""
    ctypes.PyDLL(None).usleep(int(STALL * 1_000_000))


class WatchdogTest(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        self.logger, self.records = recording_logger()
        self.lags: list[float] = []

    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # asyncio need not complain, too

    @contextlib.contextmanager
    def watching(self, **options: float) -> Iterator[Watchdog]:
        watchdog = Watchdog(THRESHOLD, self.logger, self.lags.append, **options)
        watchdog.start()
        try:
            yield watchdog
        finally:
            watchdog.stop()

    async def beats(self, number: int = 2) -> None:
        """Returns when so many more heartbeats have been told."""
        number += len(self.lags)
        async with asyncio.timeout(DEADLINE):
            while len(self.lags) < number:
                await asyncio.sleep(HEARTBEAT / 2)

    def lines(self) -> list[dict[str, Any]]:
        return [parse_logfmt(record.getMessage()) for record in self.records]

    def functions(self) -> list[str]:
        return [line['function'].rpartition('.')[2] for line in self.lines()]

    async def test_a_stall_is_one_line_with_its_culprit_and_its_duration(self) -> None:
        with self.watching():
            await self.beats()
            start = time.monotonic()
            block()
            await self.beats()
            longest = time.monotonic() - start
        [line] = self.lines()
        self.assertEqual((line['message'], line['function']), ('EVENT LOOP STALLED',
                                                               f'{__name__}.block'))
        self.assertGreaterEqual(line['blocked_ms'], int(1000 * (STALL - HEARTBEAT)))
        self.assertLessEqual(line['blocked_ms'], 1000 * longest)
        self.assertEqual([record.levelno for record in self.records], [logging.WARNING])

    async def test_the_stack_ends_in_the_culprit_and_shows_no_folder_of_the_machine(self) -> None:
        with self.watching():
            await self.beats()
            block()
            await self.beats()
        stack = self.lines()[0]['stack'].split('\n')
        self.assertRegex(stack[-1], r'^(?:tests/unit/)?watchdog_test\.py:\d+ block$')
        self.assertTrue(stack[-2].endswith(self._testMethodName))
        self.assertNotIn(str(ROOT), ' '.join(stack))

    async def test_the_loop_and_its_callers_are_not_in_the_stack(self) -> None:
        with self.watching():
            await self.beats()
            asyncio.get_running_loop().call_soon(block)
            await self.beats()
        self.assertEqual(len(self.lines()[0]['stack'].split('\n')), 1)

    async def test_two_stalls_are_two_lines(self) -> None:
        with self.watching():
            for blocking in (block, block_again):
                await self.beats()
                blocking()
            await self.beats()
        self.assertEqual(self.functions(), ['block', 'block_again'])

    async def test_a_loop_that_turns_is_not_accused(self) -> None:
        with self.watching():
            await self.beats(10)
        self.assertEqual(self.lines(), [])

    async def test_the_function_is_ours_where_a_library_blocks(self) -> None:
        with self.watching():
            await self.beats()
            block_in_library()
            await self.beats()
        self.assertEqual(self.functions(), ['block_in_library'])
        self.assertTrue(self.lines()[0]['stack'].endswith(' Condition.wait'))

    async def test_the_function_is_the_innermost_where_none_is_ours(self) -> None:
        with self.watching():
            await self.beats()
            asyncio.get_running_loop().call_soon(threading.Event().wait, STALL)
            await self.beats()
        self.assertEqual(self.lines()[0]['function'], 'threading.Condition.wait')

    async def test_what_was_seen_most_often_is_named(self) -> None:
        with self.watching():
            await self.beats()
            block_first_briefly()
            await self.beats()
        self.assertEqual(self.functions(), ['block_first_briefly'])

    async def test_code_that_lets_no_thread_run_is_named(self) -> None:
        with self.watching():
            await self.beats()
            compute_in_c()
            await self.beats()
        self.assertEqual(self.functions(), ['compute_in_c'])

    async def test_nobody_is_accused_when_the_thread_was_late_too(self) -> None:
        with self.watching():
            await self.beats()
            stop_all_threads()
            await self.beats()
        self.assertEqual(self.lines(), [])
        self.assertGreaterEqual(max(self.lags), STALL - HEARTBEAT)

    async def test_the_clock_of_the_process_will_do_where_threads_have_none(self) -> None:
        self.addCleanup(setattr, time, 'pthread_getcpuclockid', time.pthread_getcpuclockid)
        del time.pthread_getcpuclockid
        with self.watching():
            await self.beats()
            stop_all_threads()
            await self.beats()
            compute_in_c()
            await self.beats()
        self.assertEqual(self.functions(), ['compute_in_c'])

    async def test_a_deep_stack_is_cut_in_the_middle(self) -> None:
        with self.watching():
            await self.beats()
            block_deep_down(500)
            await self.beats()
        stack = self.lines()[0]['stack'].split('\n')
        self.assertEqual(len(stack), MAX_LINES)
        self.assertTrue(stack[0].endswith(self._testMethodName))
        self.assertTrue(stack[-1].endswith(' block'))

    async def test_a_line_has_no_context_of_a_request(self) -> None:
        set_log_context(req_id='r')
        with self.watching():
            await self.beats()
            block()
            await self.beats()
        self.assertEqual(list(self.lines()[0]), ['message', 'blocked_ms', 'function', 'stack'])

    async def test_a_loop_that_is_stuck_is_named_while_it_lasts_and_at_its_end(self) -> None:
        def block_until_it_is_said() -> None:
            end = time.monotonic() + DEADLINE
            while not self.records and time.monotonic() < end:
                time.sleep(HEARTBEAT)
            time.sleep(HEARTBEAT)

        with self.watching(stuck_seconds=2 * THRESHOLD):
            await self.beats()
            block_until_it_is_said()
            self.assertEqual([line['message'] for line in self.lines()], ['EVENT LOOP STUCK'])
            await self.beats()
        stuck, stalled = self.lines()
        self.assertEqual(stalled['message'], 'EVENT LOOP STALLED')
        self.assertEqual(self.functions(), ['block_until_it_is_said'] * 2)
        self.assertLess(stuck['blocked_ms'], stalled['blocked_ms'])
        self.assertEqual([record.levelno for record in self.records],
                         [logging.ERROR, logging.WARNING])

    async def test_a_stall_that_ends_in_the_stop_is_reported(self) -> None:
        with self.watching() as watchdog:
            await self.beats()
            block()
            watchdog.stop()
            self.assertEqual(self.functions(), ['block'])
        self.assertEqual(len(self.lines()), 1)

    async def test_a_start_that_blocks_is_reported(self) -> None:
        with self.watching():
            block()
            await self.beats()
        self.assertEqual(self.functions(), ['block'])

    async def test_after_the_stop_nothing_is_left(self) -> None:
        before = threading.enumerate()
        with self.watching():
            await self.beats()
        lags = len(self.lags)
        await asyncio.sleep(3 * HEARTBEAT)
        self.assertEqual((threading.enumerate(), len(self.lags)), (before, lags))

    async def test_a_watchdog_that_was_not_started_can_be_stopped(self) -> None:
        Watchdog(THRESHOLD, self.logger, self.lags.append).stop()

    async def test_a_metric_that_fails_does_not_stop_the_heart(self) -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))

        def fail(lag: float) -> None:
            self.lags.append(lag)
            raise ValueError

        watchdog = Watchdog(THRESHOLD, self.logger, fail)
        watchdog.start()
        await self.beats(3)
        watchdog.stop()
        self.assertGreaterEqual(len(failures), 3)
        self.assertEqual(self.lines(), [])


if __name__ == '__main__':
    unittest.main()

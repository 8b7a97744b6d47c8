"""Work in threads: what becomes of it, in which order, and what is left when they are closed."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import subprocess
import sys
import threading
import unittest
import weakref
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR
from addrservice.database.threads import WorkerThreads

DEADLINE = 30.0

caller: contextvars.ContextVar[str] = contextvars.ContextVar('caller')


class Gate:
    """Work that is under way until it is let go."""

    def __init__(self) -> None:
        self.begun, self._let_go = threading.Semaphore(0), threading.Event()

    def pass_through(self) -> str:
        self.begun.release()
        if not self._let_go.wait(DEADLINE):
            raise AssertionError('held for too long')
        return threading.current_thread().name

    def open(self) -> None:
        self._let_go.set()

    async def is_reached(self, times: int = 1) -> None:
        for _ in range(times):
            assert await asyncio.to_thread(self.begun.acquire, timeout=DEADLINE)


def fail(error: BaseException) -> None:
    raise error


class WorkerThreadsTest(unittest.IsolatedAsyncioTestCase):

    def setUp(self) -> None:
        self.gate = Gate()
        self.threads = WorkerThreads('worker')
        self.addCleanup(self.threads.join)
        self.addCleanup(self.gate.open)

    async def test_who_waits_gets_what_it_returns_or_raises(self) -> None:
        self.assertEqual(await self.threads.run(max, 3, 8, key=lambda number: -number), 3)
        for error in (KeyError('x'), SystemExit(1)):
            with self.assertRaises(type(error)) as caught:
                await self.threads.run(fail, error)
            self.assertIs(caught.exception, error)
        self.assertEqual(await self.threads.run(threading.current_thread), self.threads._threads[0])

    async def test_it_is_done_in_the_context_of_who_asks(self) -> None:
        for name in ('a', 'b'):
            caller.set(name)
            self.assertEqual(await self.threads.run(caller.get), name)

    async def test_one_thread_does_one_after_the_other(self) -> None:
        done: list[int] = []
        held = self.threads.run(self.gate.pass_through)
        await self.gate.is_reached()
        others = [self.threads.run(done.append, n) for n in range(20)]
        await asyncio.sleep(0.01)
        self.assertEqual(done, [])
        self.gate.open()
        await asyncio.gather(held, *others)
        self.assertEqual(done, list(range(20)))

    async def test_several_work_at_the_same_time_and_no_more_than_that(self) -> None:
        threads = WorkerThreads('three', 3)
        self.addCleanup(threads.join)
        work = [threads.run(self.gate.pass_through) for _ in range(9)]
        await self.gate.is_reached(3)
        self.assertFalse(await asyncio.to_thread(self.gate.begun.acquire, timeout=0.05))
        self.gate.open()
        self.assertEqual({'three_0', 'three_1', 'three_2'}, set(await asyncio.gather(*work)))

    async def test_none_begins_before_there_is_work(self) -> None:
        self.assertEqual(self.threads._threads, [])
        for _ in range(3):
            await self.threads.run(int)
        self.assertEqual(len(self.threads._threads), 1)

    async def test_what_nobody_waits_for_any_more_is_not_begun(self) -> None:
        done: list[str] = []
        held = self.threads.run(self.gate.pass_through)
        await self.gate.is_reached()
        given_up, kept = [self.threads.run(done.append, name)
                          for name in ('given up', 'kept')]
        given_up.cancel()
        self.gate.open()
        await asyncio.gather(held, kept)
        self.assertEqual(done, ['kept'])

    async def test_what_has_begun_is_done_to_the_end(self) -> None:
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        done: list[str] = []

        def work() -> None:
            self.gate.pass_through()
            done.append('done')
            raise KeyError('nobody wants to know')

        given_up = self.threads.run(work)
        await self.gate.is_reached()
        given_up.cancel()
        self.gate.open()
        await self.threads.run(int)
        self.assertEqual((done, told), (['done'], []))

    async def test_what_fails_unwaited_for_is_logged_and_the_thread_goes_on(self) -> None:
        with self.assertLogs('addrservice.database.threads') as logs:
            self.threads.put(lambda: fail(KeyError('lost')))
            await self.threads.run(int)
        self.assertIn("KeyError: 'lost'", logs.output[0])

    async def test_an_error_and_its_future_do_not_hold_each_other(self) -> None:
        class Error(Exception):
            pass

        def fail_anew() -> None:
            raise Error

        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        try:
            await self.threads.run(fail_anew)
        except Error as error:
            left = weakref.ref(error)
        await self.threads.run(int)
        self.assertIsNone(left())

    async def test_what_was_put_is_done_before_they_end(self) -> None:
        done: list[int] = []
        for number in range(100):
            self.threads.put(functools.partial(done.append, number))
        self.threads.close()
        self.threads.close()
        await asyncio.to_thread(self.threads.join)
        self.assertEqual(done, list(range(100)))
        self.assertFalse(any(thread.is_alive() for thread in self.threads._threads))

    async def test_closed_they_take_nothing(self) -> None:
        self.threads.close()
        with self.assertRaisesRegex(RuntimeError, 'closed'):
            await self.threads.run(int)
        with self.assertRaisesRegex(RuntimeError, 'closed'):
            self.threads.put(lambda: None)

    def test_they_outlive_the_loop_that_asked(self) -> None:
        async def ask() -> None:
            self.threads.run(self.gate.pass_through)
            await self.gate.is_reached()

        async def ask_again() -> None:
            self.assertEqual(await self.threads.run(int), 0)

        asyncio.run(ask())
        self.gate.open()
        asyncio.run(ask_again())

    def test_a_process_that_ends_does_not_wait_for_them(self) -> None:
        script = ('import time; from addrservice.database.threads import WorkerThreads; '
                  'WorkerThreads("idle").put(int); WorkerThreads("busy").put(lambda: '
                  'time.sleep(600))')
        ended = subprocess.run([sys.executable, '-c', script], cwd=ROOT_DIR, timeout=DEADLINE,
                               capture_output=True, check=True)
        self.assertEqual((ended.stdout, ended.stderr), (b'', b''))


if __name__ == '__main__':
    unittest.main()

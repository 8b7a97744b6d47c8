"""Requests are counted while they are under way, and too many are noticed."""

from __future__ import annotations

import asyncio
import sys
import unittest
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.tornado.admission import Admission


class AdmissionTest(unittest.TestCase):
    def setUp(self) -> None:
        self.admission = Admission(max_in_flight=2)

    def enter(self, count: int, is_probe: bool = False) -> None:
        for _ in range(count):
            self.admission.enter(is_probe)

    def test_more_requests_than_may_be_under_way_are_too_many(self) -> None:
        self.enter(2)
        self.assertFalse(self.admission.is_overloaded())
        self.enter(1)
        self.assertTrue(self.admission.is_overloaded())
        self.admission.leave(is_probe=False)
        self.assertFalse(self.admission.is_overloaded())

    def test_probes_are_never_too_many(self) -> None:
        self.enter(3, is_probe=True)
        self.assertFalse(self.admission.is_overloaded())

    def test_a_request_that_waits_for_its_client_keeps_nobody_out(self) -> None:
        self.enter(3)
        with self.admission.waiting_for_client():
            self.assertFalse(self.admission.is_overloaded())
        self.assertTrue(self.admission.is_overloaded())

    def test_it_is_idle_when_the_last_request_and_the_last_probe_have_ended(self) -> None:
        async def end_all() -> None:
            self.enter(1)
            self.enter(1, is_probe=True)
            idle = asyncio.create_task(self.admission.until_idle())
            for is_probe in (False, True):
                await asyncio.sleep(0.05)
                self.assertFalse(idle.done())
                self.admission.leave(is_probe)
            await asyncio.wait_for(idle, 5)

        asyncio.run(end_all())

    def test_what_is_under_way_can_be_broken_off(self) -> None:
        async def break_off() -> None:
            working = asyncio.create_task(asyncio.sleep(60))
            self.admission.work_in(working)
            self.admission.cancel()
            await asyncio.wait({working}, timeout=5)
            self.assertTrue(working.cancelled())

        asyncio.run(break_off())


if __name__ == '__main__':
    unittest.main()

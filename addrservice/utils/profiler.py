"""Where the event loop's time goes, measured while it serves.

pyinstrument tells what is on the stack, but not when to look. It looks as soon as an interval has
passed, so after each wait, and makes the function that it finds there answer for the interval: on
uvloop, which waits in C, that is the one that runs the loop, and of a service that has little to do
nothing else would be seen. Here a look is due after a random amount of CPU time of the thread (a
Poisson process), so each function is seen as often as it has a core. What is no CPU time is told
apart, below the function that waited: for something to do, for a disk, for a core.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any

from addrservice.errors import ProfilerBusy

if TYPE_CHECKING:
    from pyinstrument.session import Session

INTERVAL = 0.001
"""Seconds of CPU time between two samples, in the mean."""

WAITING = '[waiting]\0<waiting>\x000'
"""The innermost frame of a stack that was there while its thread had no core; written as
pyinstrument writes frames."""

TOLERANCE = 0.00001
"""Seconds that two clocks may differ by without a wait."""

FORMATS: Mapping[str, str] = MappingProxyType({
    'html': 'text/html; charset=UTF-8',
    'speedscope': 'application/json',
    'session': 'application/json',
})
"""What a profile can be rendered as, with its media type: a page to look at,
a file for https://www.speedscope.app, and pyinstrument's own to render later."""

_Record = tuple[list[str], float]
"""A stack, outermost frame first, and the seconds that it stands for."""

_CHARSET = '<meta charset="utf-8">'
# The page would load fonts from a stranger, and tell them who looks at profiles.
_ALONE = (_CHARSET + '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
          "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:\">")


class LoopProfiler:
    """Samples the stack of the event loop's thread, whichever task runs.

    Meanwhile each call of a Python function costs more, so code that does
    little else takes several times as long; before and after, nothing does.
    """

    def __init__(self) -> None:
        self._is_busy = False

    async def profile(self, seconds: float) -> Session:
        """Samples for a while; ends early, and leaves nothing behind, when cancelled.

        :param seconds: how long; each takes up to some megabytes of memory.
        :raises ProfilerBusy: another profile is being taken.
        """
        if self._is_busy:
            raise ProfilerBusy('A profile is being taken; ask again when it is done.')
        self._is_busy = True
        try:
            return await _sample(seconds)
        finally:
            self._is_busy = False


async def _sample(seconds: float) -> Session:
    # In a thread, for the loop would stand still meanwhile; it takes effect once.
    await asyncio.to_thread(importlib.import_module, 'pyinstrument')
    sampler = _Sampler()
    sampler.start()
    try:
        await asyncio.sleep(seconds)
    finally:
        sampler.stop()
    return sampler.session(f'The event loop, for {seconds:g} s')


class _Sampler:
    """Looks at the stack of the thread that starts and stops it.

    Asking for the CPU time costs several times as much as for the time of day, too much for every
    call of a function. So it is asked for when as much time has passed as CPU time is left until
    the next sample: earlier that cannot be due. If it is not due then, there was a wait.
    """

    def __init__(self) -> None:
        from pyinstrument.low_level.stat_profile import setstatprofile
        from pyinstrument.stack_sampler import build_call_stack

        self._call_after, self._stack_of = setstatprofile, build_call_stack
        self._records: list[_Record] = []
        self._left = _pause()

    def start(self) -> None:
        """To be called within what is sampled."""
        self._stack = self._stack_of(sys._getframe(1), 'initial', None)
        self._began = time.time(), time.perf_counter(), time.thread_time()
        self._wait()

    def stop(self) -> None:
        """Leaves nothing behind in the thread."""
        self._call_after(None)
        _, passed, worked = self._began
        self._passed, self._worked = time.perf_counter() - passed, time.thread_time() - worked

    def session(self, description: str) -> Session:
        """What was seen, once it has been stopped."""
        from pyinstrument.session import Session

        records = _with_waits_of(self._passed - self._worked, self._records)
        return Session(
            frame_records=records, start_time=self._began[0], duration=self._passed,
            min_interval=INTERVAL, max_interval=INTERVAL, sample_count=len(records),
            start_call_stack=self._stack, target_description=description, cpu_time=self._worked,
            sys_path=sys.path, sys_prefixes=Session.current_sys_prefixes())

    def _wait(self) -> None:
        """Has itself called at the first call of a function, or return from one, that a sample can
        be due at."""
        self._asked = time.perf_counter(), time.thread_time()
        self._call_after(self._look, self._left, timer_type='walltime')

    def _look(self, frame: FrameType, event: str, arg: Any) -> None:
        passed, worked = (now - then for now, then in zip(
            (time.perf_counter(), time.thread_time()), self._asked, strict=True))
        late, waited = passed - self._left, passed - worked
        self._left -= worked
        if self._left <= 0:
            # Those that were due meanwhile, too: no function was called.
            self._records.append((self._stack_of(frame, event, arg), INTERVAL - self._left))
            self._left = _pause()
        elif late > waited / 2 > TOLERANCE:  # else the wait has ended before, elsewhere
            self._records.append(([*self._stack_of(frame, event, arg), WAITING], INTERVAL + late))
        self._wait()


def _pause() -> float:
    """Seconds to the next sample: without memory, as those that come at random are."""
    return random.expovariate(1 / INTERVAL)


def _with_waits_of(seconds: float, records: Sequence[_Record]) -> list[_Record]:
    """The same, but with waits that are so long in all.

    :param seconds: known better than from samples.
    """
    found = sum(each for stack, each in records if stack[-1] == WAITING)
    factor = max(0.0, seconds) / (found or 1)
    return [(stack, each * factor if stack[-1] == WAITING else each) for stack, each in records]


def render(session: Session, format: str) -> tuple[str, str]:
    """A profile as text, and its media type.

    Takes seconds for a long profile, so call it in a thread; it shares nothing
    with the profiler or other calls, also of the same session. It shows paths
    of this machine.

    :param format: one of `FORMATS`; ``html`` loads nothing from anywhere.
    :raises KeyError: it is none of them.
    """
    from pyinstrument import renderers

    media_type = FORMATS[format]
    if format == 'session':
        return renderers.SessionRenderer().render(session), media_type
    if format == 'speedscope':
        # All of it: each call is a frame of its own there, and one below a hundredth would go.
        return renderers.SpeedscopeRenderer(show_all=True).render(session), media_type
    # With an interval of 0 it does not complain on stderr of a session that is long.
    page = renderers.HTMLRenderer(resample_interval=0).render(session)
    return page.replace(_CHARSET, _ALONE, 1), media_type

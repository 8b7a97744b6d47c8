"""A stalled event loop names its culprit."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import NamedTuple

from addrservice.utils import frames
from addrservice.utils.logutils import log_line

STUCK_SECONDS = 10.0
"""After this time a stall is reported although it lasts: it may never end."""

MAX_PERIOD = 0.1
"""Seconds between two heartbeats, at most."""

BEATS_PER_THRESHOLD = 4


class Watchdog:
    """Watches the event loop, and logs who keeps it from turning.

    A heartbeat on the loop tells how late the loop is. A thread looks whether
    the heartbeat is overdue by the threshold, and then at the stack of the
    loop's thread, again and again while that lasts. When the loop turns
    again, one line (``EVENT LOOP STALLED``, WARNING) has the function that was
    seen most often and the stack in which it was seen first; of a stall that
    lasts, the thread logs the same (``EVENT LOOP STUCK``, ERROR) once.

    Time in which the thread was held up, too, does not count, unless the
    loop's thread was computing (in C code that lets no other thread run): so a
    process that was suspended accuses nobody. A stall of less than
    the threshold is never reported; one of twice the threshold is, unless the
    machine is too busy to tell.
    """

    def __init__(self, threshold: float, logger: logging.Logger,
                 on_lag: Callable[[float], None], stuck_seconds: float = STUCK_SECONDS) -> None:
        """
        :param threshold: seconds without a turn that are a stall; more than 0.
        :param logger: gets the lines, also from the watchdog's own thread.
        :param on_lag: gets, on the loop and for each heartbeat, the seconds
            by which it was late.
        :param stuck_seconds: after which a stall is reported while it lasts.
        """
        self._threshold = threshold
        self._logger = logger
        self._on_lag = on_lag
        self._stuck_seconds = stuck_seconds
        self._period = min(MAX_PERIOD, threshold / BEATS_PER_THRESHOLD)
        self._lock = threading.Lock()  # of the turn, which the loop changes and the thread fills
        self._turn = _Turn(0.0)
        self._stem = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to watch the running loop; once, to be called on it."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._loop_cpu = _cpu_clock()
        self._turn = _Turn(time.monotonic())
        self._timer = self._loop.call_soon(self._begin)
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch, and reports a stall in which it is called.

        To be called in the loop's thread; again, or without `start`, it does nothing.
        """
        if self._thread is None:
            return
        self._stopping.set()
        self._timer.cancel()
        self._thread.join()
        self._thread = None
        self._end_turn(time.monotonic())

    # --- on the loop ---

    def _begin(self) -> None:
        # What is below a callback is the loop and its callers, who are never to blame.
        self._stem = len(_stack(sys._getframe().f_back))
        self._beat()

    def _beat(self) -> None:
        # First of all, for a heart that fails with what follows would seem to be a stall.
        self._timer = self._loop.call_later(self._period, self._beat)
        self._on_lag(self._end_turn(time.monotonic()))

    def _end_turn(self, now: float) -> float:
        """Reports the turn if it was a stall; gives the seconds by which it was late."""
        with self._lock:
            turn, self._turn = self._turn, _Turn(now + self._period)
        if turn.seen:
            log_line(self._logger, logging.WARNING, turn.report('EVENT LOOP STALLED', now))
        return max(0.0, now - turn.due)

    # --- in the thread ---

    def _watch(self) -> None:
        pause, moment = 2 * self._period, self._moment()
        while not self._stopping.wait(pause):
            last, moment = moment, self._moment()
            try:
                self._look(moment.time, self._witnessed(last, moment, pause))
            except Exception:  # of a log's handler: it must not be the end of the watch
                traceback.print_exc()
            # A wake costs more than what is done then, so there are few until there is a need.
            pause = self._period if self._turn.overdue else 2 * self._period

    def _moment(self) -> _Moment:
        return _Moment(time.monotonic(), self._loop_cpu())

    def _witnessed(self, last: _Moment, now: _Moment, pause: float) -> float:
        """How much of the time between two looks can be laid at the loop's door."""
        gap = now.time - last.time
        if gap <= pause + self._period:
            return gap
        return max(pause, now.loop_cpu - last.loop_cpu)

    def _look(self, now: float, witnessed: float) -> None:
        with self._lock:
            turn = self._turn
            if now <= turn.due or turn.is_reported:
                return
            turn.overdue = min(turn.overdue + witnessed, now - turn.due)
            if turn.overdue >= self._threshold:
                self._sample(turn)
            turn.is_reported = bool(turn.seen) and turn.overdue >= self._stuck_seconds
            stuck = turn.report('EVENT LOOP STUCK', now) if turn.is_reported else None
        if stuck:  # not under the lock: a log that is slow must not hold up the loop
            log_line(self._logger, logging.ERROR, stuck)

    def _sample(self, turn: _Turn) -> None:
        stack = _stack(sys._current_frames().get(self._loop_thread))
        callback = stack[:len(stack) - self._stem]
        if callback:
            turn.saw(callback)
        else:  # between two callbacks: the loop turns, as soon as the machine lets it
            turn.overdue = 0.0


class _Moment(NamedTuple):
    time: float
    loop_cpu: float
    """Seconds for which the loop's thread has been computing."""


@dataclass
class _Turn:
    """What the thread sees between two heartbeats."""

    due: float
    """When the second is, in seconds of the monotonic clock."""

    overdue: float = 0.0
    """Seconds past that in which the thread was awake, too."""

    seen: Counter[str] = field(default_factory=Counter)
    """How often each function was found to run then."""

    stacks: dict[str, str] = field(default_factory=dict)
    is_reported: bool = False

    def saw(self, stack: list[FrameType]) -> None:
        """
        :param stack: a callback of the loop, innermost frame first.
        """
        frame = next((frame for frame in stack if not frames.is_library(frame.f_code.co_filename)),
                     stack[0])
        function = f'{frame.f_globals.get("__name__")}.{frame.f_code.co_qualname}'
        self.seen[function] += 1
        if function not in self.stacks:
            self.stacks[function] = _text(stack)

    def report(self, message: str, now: float) -> dict[str, object]:
        """The fields of a line about this turn, of which something was seen."""
        [(function, _)] = self.seen.most_common(1)
        return {'message': message, 'blocked_ms': round((now - self.due) * 1000),
                'function': function, 'stack': self.stacks[function]}


def _cpu_clock() -> Callable[[], float]:
    """What tells, in any thread, for how many seconds this thread has computed;
    for how many the process has, where the system knows no better (macOS)."""
    if not hasattr(time, 'pthread_getcpuclockid'):
        return time.process_time
    return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))


def _stack(frame: FrameType | None) -> list[FrameType]:
    """A frame and its callers, innermost first."""
    return [frame for frame, _ in traceback.walk_stack(frame)] if frame else []


def _text(stack: list[FrameType]) -> str:
    return '\n'.join(frames.shorten(
        [frames.place(frame.f_code, frame.f_lineno) for frame in reversed(stack)]))

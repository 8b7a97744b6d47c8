"""Where the event loop's time goes, measured while it serves."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from addrservice.errors import ProfilerBusy

if TYPE_CHECKING:
    from pyinstrument.session import Session

INTERVAL = 0.001
"""Seconds between two samples."""

FORMATS: Mapping[str, str] = MappingProxyType({
    'html': 'text/html; charset=UTF-8',
    'speedscope': 'application/json',
    'session': 'application/json',
})
"""What a profile can be rendered as, with its media type: a page to look at,
a file for https://www.speedscope.app, and pyinstrument's own to render later."""

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
    from pyinstrument import Profiler

    profiler = Profiler(INTERVAL, async_mode='disabled')
    profiler.start(target_description=f'The event loop, for {seconds:g} s')
    try:
        await asyncio.sleep(seconds)
    finally:
        session = profiler.stop()
    return session


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
        return renderers.SpeedscopeRenderer().render(session), media_type
    # With an interval of 0 it does not complain on stderr of a session that is long.
    page = renderers.HTMLRenderer(resample_interval=0).render(session)
    return page.replace(_CHARSET, _ALONE, 1), media_type

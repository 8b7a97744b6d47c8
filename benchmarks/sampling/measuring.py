"""Drives requests at the service, and looks at it: without the profiler, then with it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.driver.plan import Plan
from benchmarks.driver.result import Result
from benchmarks.driver.run import Load
from benchmarks.sampling.server import LOOK_SECONDS, Server, ServerFailed, ask_profile

CONNECTIONS = 8
WARM_UP_PART = 0.1
"""Of the seconds asked for."""


class Window(NamedTuple):
    """What happened in some seconds."""

    seconds: float
    requests: int
    loop: float
    """Microseconds of CPU time per request, on the event loop."""
    threads: float
    """The same, in all other threads."""


class Findings(NamedTuple):
    """All that there is to tell."""

    plain: Window
    profiled: Window
    session: dict[str, Any]
    """As pyinstrument writes it."""
    result: Result


async def measure(config: str | None, seconds: float, tell: Callable[[str], None]) -> Findings:
    """Serves, drives requests, and looks at it: first without the profiler, then with it.

    :param config: a file, as `Server` takes it.
    :param seconds: for each of the two.
    :param tell: takes a line about what is going on.
    :raises ServerFailed: there is no server, or not to the end.
    :raises Unreachable, NotFilled: it takes no requests.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(config, Path(folder))
        try:
            port, admin_port = await server.ports()
            async with _driven(port) as load:
                tell(f'{seconds:g} s without the profiler, then {seconds:g} s with it …')
                return await _look(server, admin_port, load, seconds)
        finally:
            server.end()


@contextlib.asynccontextmanager
async def _driven(port: int) -> AsyncIterator[Load]:
    """Requests all the time, once the book is filled; in the end it is cleared."""
    load = Load(Plan(f'http://127.0.0.1:{port}', seconds=3600, connections=CONNECTIONS))
    running = asyncio.create_task(load.run())
    try:
        while load.doing == 'filling' and not running.done():
            await asyncio.sleep(LOOK_SECONDS)
        if running.done():
            running.result()
        yield load
    finally:
        load.stop()
        await running


async def _look(server: Server, admin_port: int, load: Load, seconds: float) -> Findings:
    await asyncio.to_thread(ask_profile, admin_port, 0.001)  # loads the profiler
    await server.sleep(seconds * WARM_UP_PART)
    plain = await _window(server, load, seconds)
    profiled, session = await asyncio.gather(
        _window(server, load, seconds),
        asyncio.to_thread(ask_profile, admin_port, seconds))
    return Findings(plain, profiled, session, load.result)


async def _window(server: Server, load: Load, seconds: float) -> Window:
    before, count = server.cpu(), load.result.count
    await server.sleep(seconds)
    after, requests = server.cpu(), load.result.count - count
    if not requests:
        raise ServerFailed(f'it has answered nothing within {seconds:g} s')
    each = 1e6 / requests
    loop = after.loop - before.loop
    threads = max(0.0, after.all - before.all - loop)  # they are counted in ticks
    return Window(seconds, requests, loop * each, threads * each)

"""The admin port's pages about what happens inside: requests, tasks, time, loggers."""

from __future__ import annotations

import asyncio
import logging
import math

from tornado.web import HTTPError

from addrservice.tornado.admin import AdminRequestHandler
from addrservice.utils import logutils
from addrservice.utils.profiler import FORMATS, LoopProfiler, render
from addrservice.utils.flight_recorder import KINDS, FlightRecorder
from addrservice.utils.tasks import running_tasks

LEVELS = ('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG')

MAX_PROFILE_SECONDS = 60.0
PROFILE_SECONDS = '10'


class LoggersRequestHandler(AdminRequestHandler):
    """``/loggers``: who logs, and how much."""

    async def get(self) -> None:
        """All loggers that there are."""
        names = sorted(name for name, logger in logging.root.manager.loggerDict.items()
                       if isinstance(logger, logging.Logger))
        self.finish_json({'levels': LEVELS,
                          'loggers': {name: _levels_of(name) for name in ['root', *names]}})

    head = get


class LoggerRequestHandler(AdminRequestHandler):
    """``/loggers/{name}``: one of them."""

    async def get(self, name: str) -> None:
        """Its own level, and the one in effect."""
        _require_logger(name)
        self.finish_json({'name': name, **_levels_of(name)})

    head = get

    async def put(self, name: str) -> None:
        """Sets its level until the process ends; null: that of its parent."""
        logger, document = _require_logger(name), self.read_json()
        level = document.get('level', '') if isinstance(document, dict) else ''
        if level not in (*LEVELS, None) or (level is None and name == 'root'):
            raise HTTPError(400, 'A document {"level": …} is wanted, with null or one of '
                                 f'{", ".join(LEVELS)}; root must have one')
        told = {'message': 'LEVEL CHANGED', 'name': name, 'before': _levels_of(name)['level'],
                'after': level}
        is_heard = self.telemetry.logger.isEnabledFor(logging.INFO)
        if is_heard:  # it may be for the last time
            logutils.log(self.telemetry.logger, logging.INFO, **told)
        logger.setLevel(level or logging.NOTSET)
        if not is_heard:
            logutils.log(self.telemetry.logger, logging.INFO, **told)
        await self.get(name)


class RequestsRequestHandler(AdminRequestHandler):
    """``/requests``: what the flight recorder has."""

    async def get(self) -> None:
        """The last, the slowest and the failed requests; with ``kind`` one of these."""
        kinds = self.get_query_arguments('kind') or KINDS
        if any(kind not in KINDS for kind in kinds):
            raise HTTPError(400, f'kind: one of {", ".join(KINDS)}')
        recorder = self._recorder()
        self.finish_json({kind: recorder.summaries(kind) for kind in kinds})

    head = get

    def _recorder(self) -> FlightRecorder:
        recorder = self.instance.telemetry.tracing.recorder
        if recorder is None:
            raise HTTPError(404, 'There is no collector "ring" in this configuration')
        return recorder


class RequestRequestHandler(RequestsRequestHandler):
    """``/requests/{req_id}``: one request, with its spans."""

    async def get(self, req_id: str = '') -> None:
        """All of it; a client may have used an id more than once."""
        found = self._recorder().find(req_id)
        if not found:
            raise HTTPError(404, 'No request with this id is kept')
        self.finish_json({'requests': found})

    head = get


class ProfileRequestHandler(AdminRequestHandler):
    """``/profile``: where the time goes."""

    async def get(self) -> None:
        """Samples the event loop for some seconds, while it serves."""
        seconds = self._seconds()
        kind = self.get_query_argument('format', 'html')
        if kind not in FORMATS:
            raise HTTPError(400, f'format: one of {", ".join(FORMATS)}')
        text, media_type = await self._profile(seconds, kind)
        self.set_header('Content-Type', media_type)
        self.finish(text)

    async def _profile(self, seconds: float, kind: str) -> tuple[str, str]:
        profiler: LoopProfiler = self.settings['profiler']
        self._profiling = asyncio.create_task(profiler.profile(seconds))
        return await asyncio.to_thread(render, await self._profiling, kind)

    def _seconds(self) -> float:
        try:
            seconds = float(self.get_query_argument('seconds', PROFILE_SECONDS))
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_PROFILE_SECONDS:
            raise HTTPError(400, f'seconds: more than 0, at most {MAX_PROFILE_SECONDS:g}')
        return seconds

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if hasattr(self, '_profiling'):
            self._profiling.cancel()


class TasksRequestHandler(AdminRequestHandler):
    """``/tasks``: what is waited for."""

    async def get(self) -> None:
        """Every task of the event loop, with the stack of what it awaits."""
        found = running_tasks()
        self.finish_json({'total': found.total,
                          'tasks': [task._asdict() for task in found.tasks]})

    head = get


def _require_logger(name: str) -> logging.Logger:
    """
    :raises HTTPError: 404, there is none with that name; none is made.
    """
    logger = logging.root if name == 'root' else logging.root.manager.loggerDict.get(name)
    if not isinstance(logger, logging.Logger):
        raise HTTPError(404, 'There is no such logger')
    return logger


def _levels_of(name: str) -> dict[str, str | None]:
    logger = _require_logger(name)
    return {'level': logging.getLevelName(logger.level) if logger.level else None,
            'effective': logging.getLevelName(logger.getEffectiveLevel())}

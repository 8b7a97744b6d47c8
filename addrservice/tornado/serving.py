"""One process at work: it opens the store, serves both ports, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import NoReturn

import uvloop

from addrservice.config import Config
from addrservice.errors import StorageUnavailable
from addrservice.tornado.admin import Instance
from addrservice.tornado.app import AdminApplication, make_addrservice_app
from addrservice.tornado.connection import Connect, HTTPServer
from addrservice.tornado.listening import admin_limits, bind, limits_of, tls_of
from addrservice.tornado.stream_transport import StreamConnection
from addrservice.tornado.transport import FastConnection
from addrservice.tornado.workers import STOP_SIGNALS, Worker
from addrservice.utils import logutils
from addrservice.utils.watchdog import Watchdog

TRANSPORTS: Mapping[str, Connect] = {'fast': FastConnection, 'tornado': StreamConnection}
"""What the configuration calls them."""

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    'fast': uvloop.new_event_loop, 'tornado': asyncio.new_event_loop}

CUT_OFF_SECONDS = 1.0
"""For requests that were cut off to end in the log."""

RETRY_SECONDS = 1.0
"""Between two attempts to open a store that cannot be reached yet."""

MEASURE_SECONDS = 1.0
"""Between two looks at what metrics tell without being asked."""

STOP_SECONDS = 5.0
"""For the storage engine to finish what it has begun, and close."""

YOUNG_OBJECTS = 10_000
"""After so many the garbage collector looks at the new ones. Requests leave it nothing, but thirty
at a time are more than its own 700, and it would look at each of them."""


class Server:
    """The service, from its start to its end."""

    def __init__(self, config: Config, debug: bool, worker: Worker | None = None) -> None:
        """
        :param config: complete, as `load_config` returns it.
        :param debug: whether error answers carry a trace.
        :param worker: which of several processes this is, if there are several.
        :raises ConfigError: the configuration cannot be used.
        """
        self.config = config
        self.worker = worker
        self.logger = logging.getLogger(config['service']['logger'])
        self.service, self.app = make_addrservice_app(config, debug, self.logger)
        limits = limits_of(config['server'])
        connect = TRANSPORTS[config['server']['transport']]
        self.http = HTTPServer(self.app, self.app.refuse, limits,
                               self.app.telemetry.connection_refused, connect,
                               tls_of(config['server']))
        self.instance = Instance(self.service, self.app.telemetry, self.app.metrics,
                                 self._take_out)
        self.admin: HTTPServer | None = None
        if 'admin' in config:
            admin = AdminApplication(self.instance, config['admin']['hosts'], debug)
            self.admin = HTTPServer(admin, admin.refuse, admin_limits(limits),
                                    admin.telemetry.connection_refused, connect)
        self.watchdog = Watchdog(config['watchdog']['threshold'], self.logger,
                                 self.app.metrics.loop_lagged)
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until a signal comes, then drains and stops.

        :raises ConfigError: the store cannot be used, or the port not be had.
        """
        self._catch_signals()
        ports = self._listen()
        measuring = asyncio.create_task(self._measure())
        try:
            self.watchdog.start()
            await self._start_service()
            # What is there by now is there to stay: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS)
            if self.service.is_started:  # and not told to stop before that
                self._log('STARTING', **ports)
            await self.stopping.wait()
            self._log('SHUTTING DOWN')
            await self._drain()
        finally:
            measuring.cancel()
            await self._close()
        # Nothing is left to stop: a signal from here on must not spoil the status.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._log('STOPPED')

    def _listen(self) -> dict[str, int]:
        """Accepts connections: before the store is open, probes are answered as
        alive and not ready.

        :return: the ports, as the log names them.
        """
        sockets = self.worker.sockets if self.worker else bind('server', self.config['server'])
        ports = {'port': sockets[0].getsockname()[1]}
        if self.admin:
            admin_sockets = bind('admin', self.config['admin'])
            ports['admin_port'] = admin_sockets[0].getsockname()[1]
            self.admin.add_sockets(admin_sockets)
        self.http.add_sockets(sockets)
        return ports

    async def _measure(self) -> None:
        """Keeps up to date what other processes tell of this one; a process that
        is alone looks when it is asked."""
        while self.app.metrics.is_shared:
            try:
                self.app.metrics.refresh()
                await self.instance.measure()
            except Exception as error:  # a mistake of ours must not end it
                logutils.log_line(self.logger, logging.ERROR, {
                    'message': 'NOT MEASURED', 'trace': logutils.one_line_trace(error)})
            if self.worker:
                self._follow(self.worker)
            await asyncio.sleep(MEASURE_SECONDS)

    def _follow(self, worker: Worker) -> None:
        """Does what another process has been told to do, or could not be told."""
        if worker.is_orphan():
            self.stopping.set()
        is_out = self.service.is_draining
        if worker.board.is_out != is_out and self.instance.state() in ('serving', 'draining'):
            self.instance.take_out(not is_out)

    def _take_out(self, is_out: bool) -> None:
        self.http.take_out(is_out)
        if self.worker:
            self.worker.board.is_out = is_out

    async def _start_service(self) -> None:
        starting = asyncio.create_task(self._open_store())
        stopping = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            starting.result()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    async def _open_store(self) -> None:
        """Waits for a store that is elsewhere and not there yet: whatever starts
        first, both come up, and nobody needs to restart this process."""
        while True:
            try:
                return await self.service.start()
            except StorageUnavailable as error:
                logutils.log_line(self.logger, logging.WARNING, {
                    'message': 'STORE NOT REACHABLE', 'reason': str(error), 'cause': error.cause})
            await asyncio.sleep(RETRY_SECONDS)

    async def _drain(self) -> None:
        """Stops without breaking a request: first every answer says that its
        connection ends and probes say "not ready", then no connection is
        accepted, then what is under way ends."""
        settings = self.config['drain']
        self.instance.is_stopping = True
        self.service.drain()
        self.http.drain()
        await asyncio.sleep(settings['delay'])
        await self.http.stop_accepting()
        try:
            async with asyncio.timeout(settings['timeout']):
                await self.http.until_drained()
                await self.app.admission.until_idle()
        except TimeoutError:
            self._log('DRAIN TIMED OUT', connections=len(self.http.connections))

    async def _close(self) -> None:
        self.http.stop()
        self.http.close_connections()
        # What was cut off still has its line to write.
        if not await self._requests_end():
            self.app.admission.cancel()
            await self._requests_end()
        try:
            hangs = await self._store_hangs()
        finally:
            await self._close_admin()
            self.watchdog.stop()
            # Last, so that all that happened is in them.
            await asyncio.to_thread(self.app.telemetry.tracing.stop)
            self.app.metrics.stop()
        if hangs:
            # Threads that wait for a disk cannot be ended, and would keep the
            # process. An engine must survive the end of the process anyway.
            end_at_once()

    async def _requests_end(self) -> bool:
        """Whether all that is under way ends in a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CUT_OFF_SECONDS):
                await self.http.until_drained()
                await self.app.admission.until_idle()
                return True
        return False

    async def _store_hangs(self) -> bool:
        """Stops the service, if it can be stopped."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.service.stop()
        except TimeoutError:
            self._log('STORE HANGS')
            return True
        return False

    async def _close_admin(self) -> None:
        if self.admin:
            self.admin.stop()
            self.admin.close_connections()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CUT_OFF_SECONDS):
                    await self.admin.until_drained()

    def _catch_signals(self) -> None:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            # Asked twice: end at once, whatever is under way.
            self._log('KILLED')
            self.app.metrics.stop()  # or others would not be told of the last second
            end_at_once()
        self.stopping.set()

    def _log(self, message: str, **fields: object) -> None:
        logutils.log_line(self.logger, logging.INFO, {
            'message': message, 'service_name': self.config['service']['name'],
            'worker': self.worker and self.worker.number, **fields}, stacklevel=2)


def run(config: Config, debug: bool, worker: Worker | None = None) -> None:
    """Serves until a signal comes; arguments and errors are those of `Server`."""
    server = Server(config, debug, worker)
    with asyncio.Runner(loop_factory=LOOPS[config['server']['transport']]) as runner:
        runner.run(server.run())


def end_at_once() -> NoReturn:
    """Ends the process with status 1, whatever its threads do."""
    logging.shutdown()
    os._exit(1)

"""The process: arguments, configuration, logs, signals, serving and draining."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == '__main__':
    # Told to stop while still importing: there is nothing to stop yet.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    # Run as a script this folder is the first on the path: the package would
    # not be found, and modules here could hide libraries of the same name.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
import asyncio
import contextlib
import errno
import ipaddress
import logging
import logging.config
import resource
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml
from tornado.netutil import bind_sockets

from addrservice import ROOT_DIR, __version__
from addrservice.config import Config, load_config, printable
from addrservice.errors import ConfigError, StorageUnavailable
from addrservice.tornado.app import make_addrservice_app
from addrservice.tornado.connection import HTTPServer
from addrservice.tornado.reader import Limits, Network
from addrservice.utils import logutils

DEFAULT_CONFIG = ROOT_DIR / 'configs' / 'addressbook-sqlite.yaml'

SPARE_DESCRIPTORS = 64
"""File descriptors beside those of connections: logs, the store, the loop."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

CUT_OFF_SECONDS = 1.0
"""For requests that were cut off to end in the log."""

RETRY_SECONDS = 1.0
"""Between two attempts to open a store that cannot be reached yet."""

STOP_SECONDS = 5.0
"""For the storage engine to finish what it has begun, and close."""

DEFAULT_LOGGING: Config = {
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {'logfmt': {
        '()': 'addrservice.utils.logutils.LogfmtFormatter',
        'fmt': 'time="%(asctime)s" logger="%(name)s" level="%(levelname)s" %(message)s'}},
    'handlers': {'console': {'class': 'logging.StreamHandler', 'formatter': 'logfmt'}},
    'root': {'level': 'WARNING', 'handlers': ['console']},
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the process with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(prog='addrservice', description='Serves the address book.')
    parser.add_argument('--config', default=str(DEFAULT_CONFIG), metavar='FILE',
                        help='YAML file with the settings (default: %(default)s)')
    parser.add_argument('--host', help='address to listen on; wins over the file')
    parser.add_argument('--port', type=_port, help='port to listen on; wins over the file')
    parser.add_argument('--debug', action='store_true',
                        help='traces in error answers, no delay when stopping')
    parser.add_argument('--check-config', action='store_true',
                        help='print the effective settings, secrets masked, and exit: 0 if they '
                             'are valid, 2 if not; folder and port are not tried')
    parser.add_argument('--version', action='version', version=f'addrservice {__version__}')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service until it is told to stop.

    :return: the exit status: 0 after a stop, 2 if it could not start.
    """
    args = parse_args(argv)
    try:
        config = load_config(args.config, {
            'server': {'host': args.host, 'port': args.port},
            'drain': {'delay': 0 if args.debug else None}})
        configure_logging(config)
        server = Server(config, args.debug)
        if args.check_config:
            print(yaml.safe_dump(printable(config), sort_keys=False), end='')
            return 0
        asyncio.run(server.run())
        return 0
    except ConfigError as error:
        print(f'addrservice: {args.config}: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    finally:
        logging.shutdown()


def configure_logging(config: Config) -> None:
    """Applies the section ``logging``.

    :raises ConfigError: `logging.config` cannot make anything of it.
    """
    default = {**DEFAULT_LOGGING, 'loggers': {config['service']['logger']: {'level': 'INFO'}}}
    section = config.get('logging', default)
    try:
        # The loggers that exist, asyncio's among them, have things to say.
        logging.config.dictConfig({'disable_existing_loggers': False, **section})
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f'logging: {error}: {error.__cause__ or ""}') from error


class Server:
    """The service, from its start to its end."""

    def __init__(self, config: Config, debug: bool) -> None:
        """
        :param config: complete, as `load_config` returns it.
        :param debug: whether error answers carry a trace.
        :raises ConfigError: the configuration cannot be used.
        """
        self.config = config
        self.logger = logging.getLogger(config['service']['logger'])
        self.service, self.app = make_addrservice_app(config, debug, self.logger)
        self.http = HTTPServer(self.app, self.app.refuse, limits_of(config['server']), self.logger)
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until a signal comes, then drains and stops.

        :raises ConfigError: the store cannot be used, or the port not be had.
        """
        self._catch_signals()
        sockets = self._bind()
        try:
            # Probes are answered before the store is open: alive, not ready.
            self.http.add_sockets(sockets)
            await self._start_service()
            self._log('STARTING', port=sockets[0].getsockname()[1])
            await self.stopping.wait()
            self._log('SHUTTING DOWN')
            await self._drain()
        finally:
            await self._close()
        # Nothing is left to stop: a signal from here on must not spoil the status.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._log('STOPPED')

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
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CUT_OFF_SECONDS):
                await self.http.until_drained()
                await self.app.admission.until_idle()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.service.stop()
        except TimeoutError:
            # Threads that wait for a disk cannot be ended, and would keep the
            # process. An engine must survive the end of the process anyway.
            self._log('STORE HANGS')
            end_at_once()
        await asyncio.to_thread(self.app.telemetry.tracing.stop)

    def _bind(self) -> list[socket.socket]:
        host, port = self.config['server']['host'], self.config['server']['port']
        try:
            return bind_sockets(port, address=host)
        except (OSError, UnicodeError) as error:
            is_ports_fault = getattr(error, 'errno', None) in (errno.EADDRINUSE, errno.EACCES)
            key = 'port' if is_ports_fault else 'host'
            raise ConfigError(f'server.{key}: cannot listen on {host} port {port}: '
                              f'{getattr(error, "strerror", "not a host name")}') from error

    def _catch_signals(self) -> None:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            # Asked twice: end at once, whatever is under way.
            self._log('KILLED')
            end_at_once()
        self.stopping.set()

    def _log(self, message: str, **fields: object) -> None:
        logutils.log_line(self.logger, logging.INFO, {
            'message': message, 'service_name': self.config['service']['name'], **fields},
            stacklevel=2)


def end_at_once() -> NoReturn:
    """Ends the process with status 1, whatever its threads do."""
    logging.shutdown()
    os._exit(1)


def limits_of(settings: Mapping[str, Any]) -> Limits:
    """What the section ``server`` says about connections.

    :raises ConfigError: this process cannot have so many.
    """
    _require_descriptors(settings['max-connections'] + SPARE_DESCRIPTORS)
    return Limits(
        max_connections=settings['max-connections'],
        max_body_size=settings['max-body-size'],
        max_header_size=settings['max-header-size'],
        idle_timeout=settings['idle-timeout'],
        header_timeout=settings['header-timeout'],
        body_timeout=settings['body-timeout'],
        write_timeout=settings['write-timeout'],
        trusted_proxies=[_network(text) for text in settings['trusted-proxies']])


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f'server.trusted-proxies: {text!r} is neither an address '
                          'nor a network') from error


def _require_descriptors(wanted: int) -> None:
    """Raises this process's limit of open files if it must and may: out of
    descriptors, a server can neither accept nor refuse."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ConfigError(f'server.max-connections: needs {wanted} open files, '
                              f'and the limit of this process is {hard}')
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError('must be a number from 0 to 65535')
    return int(text)


if __name__ == '__main__':
    sys.exit(main())

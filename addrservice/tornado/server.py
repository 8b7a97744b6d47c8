"""The command: arguments, configuration, logs, and one process or several that serve."""

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
import logging
import logging.config
from collections.abc import Sequence
from functools import partial

import yaml

from addrservice import ROOT_DIR, __version__
from addrservice.config import Config, load_config, printable
from addrservice.errors import ConfigError
from addrservice.tornado.listening import bind
from addrservice.tornado.workers import (
    CANNOT_START, Worker, config_of, count_of, run_workers, sharing_metrics)
from addrservice.utils.log_records import look_up_only_what_is_asked_for

DEFAULT_CONFIG = ROOT_DIR / 'configs' / 'addressbook-sqlite.yaml'

DEFAULT_LOGGING: Config = {
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {'logfmt': {
        '()': 'addrservice.utils.logutils.LogfmtFormatter',
        'fmt': 'time="%(asctime)s" logger="%(name)s" level="%(levelname)s" %(message)s'}},
    'handlers': {'console': {
        'class': 'addrservice.utils.logutils.TurnStreamHandler', 'formatter': 'logfmt'}},
    'root': {'level': 'WARNING', 'handlers': ['console']},
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ends the process with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(prog='addrservice', description='Serves the address book.')
    parser.add_argument('--config', default=str(DEFAULT_CONFIG), metavar='FILE',
                        help='YAML file with the settings (default: %(default)s)')
    parser.add_argument('--host', help='address to listen on; wins over the file')
    parser.add_argument('--port', type=_port, help='port to listen on; wins over the file')
    parser.add_argument('--admin-port', type=_port,
                        help='port for operators, on 127.0.0.1 unless the file says otherwise; '
                             'wins over the file')
    parser.add_argument('--processes', type=_count, metavar='N',
                        help='processes that share the port; 0: one for each core; wins over '
                             'the file')
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
            'server': {'host': args.host, 'port': args.port, 'processes': args.processes},
            'admin': {'port': args.admin_port},
            'drain': {'delay': 0 if args.debug else None}})
        configure_logging(config)
        count = count_of(config)
        if args.check_config:
            return check(config)
        return serve(args, config) if count == 1 else serve_together(args, config, count)
    except ConfigError as error:
        return refuse(args, error)
    finally:
        logging.shutdown()


def check(config: Config) -> int:
    """Prints the settings in effect.

    :raises ConfigError: they cannot be used.
    """
    from addrservice.tornado.serving import Server
    Server(config, debug=False)
    print(yaml.safe_dump(printable(config), sort_keys=False), end='')
    return 0


def serve(args: argparse.Namespace, config: Config, worker: Worker | None = None) -> int:
    """Serves in this process until it is told to stop.

    :param worker: which of several this process is, if there are several.
    :raises ConfigError: the configuration cannot be used.
    """
    # Not before: what counts looks when it is imported whether others count, too.
    from addrservice.tornado.serving import run
    run(config, args.debug, worker)
    return 0


def serve_together(args: argparse.Namespace, config: Config, count: int) -> int:
    """Serves in so many processes.

    :raises ConfigError: the port cannot be had.
    """
    with sharing_metrics():
        sockets = bind('server', config['server'])
        return run_workers(count, sockets, partial(serve_as_worker, args, config))


def serve_as_worker(args: argparse.Namespace, config: Config, worker: Worker) -> int:
    """Serves as one of several; what is wrong with the configuration is told once."""
    try:
        return serve(args, config_of(config, worker.number), worker)
    except ConfigError as error:
        return refuse(args, error) if worker.board.fail(CANNOT_START) else CANNOT_START


def refuse(args: argparse.Namespace, error: ConfigError) -> int:
    """Says in one line what is wrong with the configuration; gives the exit status."""
    print(f'addrservice: {args.config}: {" ".join(str(error).split())}', file=sys.stderr)
    return CANNOT_START


def configure_logging(config: Config) -> None:
    """Applies the section ``logging``.

    :raises ConfigError: `logging.config` cannot make anything of it.
    """
    default = {**DEFAULT_LOGGING, 'loggers': {config['service']['logger']: {'level': 'INFO'}}}
    section = config.get('logging', default)
    try:
        # The loggers that exist, asyncio's among them, have things to say.
        logging.config.dictConfig({'disable_existing_loggers': False, **section})
        look_up_only_what_is_asked_for(section)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f'logging: {error}: {error.__cause__ or ""}') from error


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 1000:
        raise argparse.ArgumentTypeError('must be a number from 0 to 1000')
    return int(text)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError('must be a number from 0 to 65535')
    return int(text)


if __name__ == '__main__':
    sys.exit(main())

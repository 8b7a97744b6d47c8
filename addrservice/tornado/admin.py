"""The admin port's pages about this process: its state, its metrics, in and out of rotation.

What looks into requests and code is in `diagnosis.py`. The port is for
operators: it is not to be reached from outside.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import ipaddress
import os
import platform
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tornado.web import HTTPError

from addrservice import ROOT_DIR, __version__
from addrservice.config import printable
from addrservice.errors import AddrServiceError
from addrservice.service import AddressBookService
from addrservice.tornado.base import BaseRequestHandler
from addrservice.tornado.telemetry import Telemetry
from addrservice.utils.metrics import Metrics

COUNT_SECONDS = 10.0
"""How old the number of entries may be that metrics tell: some engines have to count."""

COUNT_TIMEOUT = 1.0
"""Seconds that counting may take."""

SAFE_METHODS = ('GET', 'HEAD', 'OPTIONS')
OWN_SITE = ('same-origin', 'none')

PAGE_FOLDER = Path(__file__).parent / 'admin_page'
PAGE_TYPES = {
    'index.html': 'text/html', 'page.css': 'text/css', 'page.js': 'text/javascript',
    'metrics.js': 'text/javascript', 'requests.js': 'text/javascript'}
PAGE_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
               "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
"""What the page may load (https://www.w3.org/TR/CSP3/): its own files, and nobody else's."""


class Instance:
    """This process, as the admin port shows and controls it."""

    def __init__(self, service: AddressBookService, telemetry: Telemetry, metrics: Metrics,
                 set_draining: Callable[[bool], None]) -> None:
        """
        :param service: the address book.
        :param telemetry: of the public port.
        :param metrics: those of the public port.
        :param set_draining: makes the public port's connections end with their
            answers, or lets them be kept again.
        """
        self.service = service
        self.telemetry = telemetry
        self.metrics = metrics
        self.is_stopping = False
        self.started = datetime.now(timezone.utc)
        self._set_draining = set_draining
        self._counted_at = float('-inf')

    def state(self) -> str:
        """``starting``, ``serving``, ``draining`` or ``stopping``."""
        if self.is_stopping:
            return 'stopping'
        if not self.service.is_started:
            return 'starting'
        return 'draining' if self.service.is_draining else 'serving'

    def take_out(self, is_out: bool) -> None:
        """Takes this process out of rotation, or back into it: while it is out
        it is not ready, connections end with their answers, and it still serves.

        :raises HTTPError: 409, it has not started yet, or is about to end.
        """
        if self.state() in ('starting', 'stopping'):
            raise HTTPError(409, f'The process is {self.state()}')
        if is_out:
            self.service.drain()
        else:
            self.service.undrain()
        self._set_draining(is_out)

    async def measure(self) -> None:
        """Brings up to date what is only known by looking."""
        connections = self.service.addr_db.connections()
        if connections:
            self.metrics.set_connections(*connections)
        is_ready = await self.service.is_ready()
        self.metrics.set_ready(is_ready)
        if not is_ready and not self.service.is_draining:
            self.metrics.set_entries(None)
        elif time.monotonic() - self._counted_at >= COUNT_SECONDS:
            self.metrics.set_entries(await self._count_entries())

    async def _count_entries(self) -> int | None:
        try:
            async with asyncio.timeout(COUNT_TIMEOUT):
                count = await self.service.count_addresses()
        except (AddrServiceError, TimeoutError):
            return None  # the metrics say by themselves how the store fails
        self._counted_at = time.monotonic()
        return count


class AdminRequestHandler(BaseRequestHandler):
    """A page of the admin port. Looking is logged at DEBUG, as a probe is; changing at INFO."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        self.is_probe = self.request.method in SAFE_METHODS
        super().initialize(*args, **kwargs)

    @property
    def instance(self) -> Instance:
        """What all pages are about."""
        instance = self.settings['instance']
        assert isinstance(instance, Instance)
        return instance

    def prepare(self) -> None:
        super().prepare()
        self._refuse_other_sites()

    def _refuse_other_sites(self) -> None:
        """A page that somebody else's site has put into an operator's browser
        could otherwise drain this process, or read what it shows.

        :raises HTTPError: 403, the request is made by another site; 421, it is
            made to a name that may be another site's.
        """
        headers = self.request.headers
        name = _name_of(headers.get('Host', ''))
        if name not in self.settings['hosts'] and name != 'localhost' and not _is_address(name):
            raise HTTPError(421, 'This name is not among admin.hosts')
        origin = headers.get('Origin', f'http://{headers["Host"]}').partition('://')[2]
        if origin != headers['Host'] or self._is_of_other_site():
            raise HTTPError(403, 'The request comes from another site')

    def _is_of_other_site(self) -> bool:
        """What a browser says (https://www.w3.org/TR/fetch-metadata/); to follow a link
        that stands elsewhere is no harm."""
        headers = self.request.headers
        is_link = (self.request.method in SAFE_METHODS
                   and headers.get('Sec-Fetch-Dest') == 'document')
        return headers.get('Sec-Fetch-Site', 'none') not in OWN_SITE and not is_link


class AdminReadinessRequestHandler(AdminRequestHandler):
    """``/readiness``: what is checked, one by one."""

    async def get(self) -> None:
        """As on the public port, with the checks and how long each took."""
        checks = await self.instance.service.checks()
        is_ready = all(check.ok for check in checks)
        self.set_status(200 if is_ready else 503)
        self.finish_json({
            'ready': is_ready, 'uptime': self.service.uptime_ms(),
            'checks': [{**check._asdict(), 'time_ms': round(check.time_ms, 3)}
                       for check in checks]})

    head = get


class MetricsRequestHandler(AdminRequestHandler):
    """``/metrics``: for Prometheus."""

    async def get(self) -> None:
        """Prometheus' text, or OpenMetrics for who accepts it."""
        await self.instance.measure()
        body, media_type = self.instance.metrics.exposition(self.request.headers.get('Accept', ''))
        self.set_header('Content-Type', media_type)
        self.finish(body)

    head = get


class InfoRequestHandler(AdminRequestHandler):
    """``/info``: what runs here."""

    async def get(self) -> None:
        """Version, commit, Python, dependencies, and the settings in effect."""
        instance, config = self.instance, self.service.config
        git, dependencies = await asyncio.to_thread(lambda: (commit(), versions()))
        self.finish_json({
            'service': config['service']['name'], 'version': __version__, 'git': git,
            'python': platform.python_version(), 'platform': platform.platform(),
            'pid': os.getpid(), 'started': instance.started.isoformat(timespec='milliseconds'),
            'uptime': self.service.uptime_ms(), 'engine': self.service.engine,
            'state': instance.state(), 'dependencies': dependencies, 'config': printable(config)})

    head = get


class DrainRequestHandler(AdminRequestHandler):
    """``/drain``: out of rotation."""

    is_out = True

    async def post(self) -> None:
        """Takes this process out of rotation; a second time does nothing."""
        self.instance.take_out(self.is_out)
        self.finish_json({'state': self.instance.state()})


class UndrainRequestHandler(DrainRequestHandler):
    """``/undrain``: back into rotation."""

    is_out = False


class PageRequestHandler(AdminRequestHandler):
    """The page that shows it all, and its files."""

    async def get(self, name: str = 'index.html') -> None:
        """A file of the page."""
        if name not in PAGE_TYPES:
            raise HTTPError(404)
        self.set_header('Content-Type', f'{PAGE_TYPES[name]}; charset=UTF-8')
        self.set_header('Content-Security-Policy', PAGE_POLICY)
        self.finish((PAGE_FOLDER / name).read_bytes())

    head = get


@functools.cache
def commit() -> str | None:
    """The commit that runs here: what ``ADDRSERVICE_GIT_COMMIT`` says, as an
    image may, or else git, if it is there and knows this folder."""
    said = os.environ.get('ADDRSERVICE_GIT_COMMIT')
    if said or not (ROOT_DIR / '.git').exists():
        return said or None
    try:
        return _git('rev-parse', 'HEAD')
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(['git', '-C', str(ROOT_DIR), *arguments], capture_output=True,
                          text=True, check=True, timeout=5).stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """All that is installed here, by name."""
    found: Sequence[importlib.metadata.Distribution] = list(importlib.metadata.distributions())
    return dict(sorted((each.metadata['Name'], each.version) for each in found))


def _name_of(host: str) -> str:
    """The name in a Host field, in small letters, without the port; empty if there is none."""
    try:
        return urllib.parse.urlsplit(f'//{host}').hostname or ''
    except ValueError:
        return ''


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""What is served where: one table, and the application made from it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tornado.web
from tornado import httputil

from addrservice import __version__
from addrservice.service import AddressBookService
from addrservice.tornado.addressbook import (
    AddressBookEntryRequestHandler, AddressBookRequestHandler)
from addrservice.tornado.admin import (
    AdminReadinessRequestHandler, DrainRequestHandler, InfoRequestHandler, Instance,
    MetricsRequestHandler, PageRequestHandler, UndrainRequestHandler)
from addrservice.tornado.admission import Admission
from addrservice.tornado.base import (
    BaseRequestHandler, DefaultRequestHandler, ErrorRequestHandler, log_request)
from addrservice.tornado.conditions import TaggingGZip
from addrservice.tornado.diagnosis import (
    LoggerRequestHandler, LoggersRequestHandler, ProfileRequestHandler, RequestRequestHandler,
    RequestsRequestHandler, TasksRequestHandler)
from addrservice.tornado.monitor import HealthRequestHandler, ReadinessRequestHandler
from addrservice.tornado.telemetry import Telemetry
from addrservice.utils.metrics import Metrics
from addrservice.utils.profiler import LoopProfiler
from addrservice.utils.recording import RecordedTracing, are_recorded_only
from addrservice.utils.tracing import Tracing


MAX_ADMIN_REQUESTS = 20


class Route(NamedTuple):
    """A path, with ``{name}`` for a part that varies, and who answers on it."""

    template: str
    handler: type[BaseRequestHandler]

    def pattern(self) -> str:
        """The template as a regular expression; a trailing slash is accepted."""
        return re.sub(r'\{\w+\}', '([^/]+)', self.template) + '/?'


ROUTES = (
    Route('/addresses', AddressBookRequestHandler),
    Route('/addresses/{id}', AddressBookEntryRequestHandler),
    Route('/addressbook', AddressBookRequestHandler),
    Route('/addressbook/{id}', AddressBookEntryRequestHandler),
    Route('/healthz', HealthRequestHandler),
    Route('/readiness', ReadinessRequestHandler),
)


ADMIN_ROUTES = (
    Route('/healthz', HealthRequestHandler),
    Route('/readiness', AdminReadinessRequestHandler),
    Route('/metrics', MetricsRequestHandler),
    Route('/info', InfoRequestHandler),
    Route('/loggers', LoggersRequestHandler),
    Route('/loggers/{name}', LoggerRequestHandler),
    Route('/requests', RequestsRequestHandler),
    Route('/requests/{req_id}', RequestRequestHandler),
    Route('/drain', DrainRequestHandler),
    Route('/undrain', UndrainRequestHandler),
    Route('/profile', ProfileRequestHandler),
    Route('/tasks', TasksRequestHandler),
    Route('/', PageRequestHandler),
    Route('/{file}', PageRequestHandler),
)


class RoutedApplication(tornado.web.Application):
    """What is served on one port, and what watches over its requests."""

    def __init__(self, routes: Sequence[Route], service: AddressBookService,
                 telemetry: Telemetry, admission: Admission, **settings: Any) -> None:
        self.routes = routes
        self.telemetry = telemetry
        self.admission = admission
        self.shared: dict[str, Any] = {
            'service': service, 'telemetry': telemetry, 'admission': admission}
        super().__init__(
            [(route.pattern(), route.handler, {**self.shared, 'route': route.template})
             for route in routes],
            default_handler_class=DefaultRequestHandler, default_handler_args=self.shared,
            log_function=log_request, transforms=[TaggingGZip], **settings)

    def refuse(self, request: httputil.HTTPServerRequest, error: tornado.web.HTTPError
               ) -> httputil.HTTPMessageDelegate:
        """Who answers a request that cannot be served, as every error is answered."""
        return self.get_handler_delegate(request, ErrorRequestHandler, {
            **self.shared, 'route': self.template_of(request.path), 'error': error})

    def template_of(self, path: str) -> str | None:
        """The template of the route that serves a path, if one does."""
        return next((route.template for route in self.routes
                     if re.fullmatch(route.pattern(), path)), None)


class AddressBookApplication(RoutedApplication):
    """The public port."""

    def __init__(self, service: AddressBookService, telemetry: Telemetry, admission: Admission,
                 metrics: Metrics) -> None:
        self.metrics = metrics
        super().__init__(ROUTES, service, telemetry, admission)


class AdminApplication(RoutedApplication):
    """The admin port. Its requests are no load of the service: they are neither
    in its metrics nor in its traces, and nobody waits for them."""

    def __init__(self, instance: Instance, hosts: Sequence[str], debug: bool) -> None:
        """
        :param instance: what it shows and controls.
        :param hosts: names that it may be called by, beside ``localhost`` and addresses.
        :param debug: whether error answers carry a trace.
        """
        telemetry = Telemetry(instance.telemetry.logger, Tracing(), None, debug)
        super().__init__(ADMIN_ROUTES, instance.service, telemetry, Admission(MAX_ADMIN_REQUESTS),
                         instance=instance, hosts={name.lower() for name in hosts},
                         profiler=LoopProfiler())


def make_addrservice_app(config: Mapping[str, Any], debug: bool, logger: logging.Logger
                         ) -> tuple[AddressBookService, AddressBookApplication]:
    """Makes the service and its web application; the caller starts the service.

    :param config: as in a YAML file of configs/; what is left out has its default.
    :param debug: whether error documents carry a trace.
    :param logger: gets one line per request.
    :raises ConfigError: the configuration cannot be used.
    """
    metrics = Metrics()
    service = AddressBookService(config, logger, metrics)
    telemetry = Telemetry(logger, make_tracing(service.config, logger, metrics), metrics, debug)
    admission = Admission(service.config['server']['max-in-flight'])
    return service, AddressBookApplication(service, telemetry, admission, metrics)


def make_tracing(config: Mapping[str, Any], logger: logging.Logger, metrics: Metrics) -> Tracing:
    """What collects spans, as far as a complete configuration wants any.

    :raises ConfigError: a collector cannot be made.
    """
    settings = config['tracing']
    if not settings['collectors']:
        return Tracing(settings['sample-ratio'])
    if are_recorded_only(settings['collectors']):
        return RecordedTracing(settings, metrics)
    from addrservice.utils.collectors import CollectedTracing  # imports OpenTelemetry's SDK
    return CollectedTracing(settings, config['service']['name'], __version__,
                            logger, metrics)

"""What is served where: one table, and the application made from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tornado.web
from tornado import httputil
from tornado.escape import url_unescape

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
from addrservice.tornado.conditions import compression
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
    """A path, whose last part may vary if it stands in braces, and who answers on it."""

    template: str
    handler: type[BaseRequestHandler]

    @property
    def folder(self) -> str | None:
        """What comes before the part that varies; None if no part does."""
        folder, _, last = self.template.rpartition('/')
        return folder if last.startswith('{') else None


class RouteTable:
    """Finds the route of a path at once, however many there are."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """
        :param routes: where two serve a path, the one that says all of it.
        """
        self._fixed = {route.template: route for route in routes if route.folder is None}
        self._varying = {route.folder: route for route in routes if route.folder is not None}

    def find(self, path: str) -> tuple[Route | None, list[bytes]]:
        """The route that serves a path, if one does, and the part that varies, decoded.

        :param path: as it was sent; a slash at its end makes no difference.
        """
        path = path[:-1] if path.endswith('/') and path != '/' else path
        if route := self._fixed.get(path):
            return route, []
        folder, slash, last = path.rpartition('/')
        route = self._varying.get(folder) if slash and last else None
        if route is None:
            return None, []
        if '%' in last:
            return route, [url_unescape(last, encoding=None, plus=False)]
        return route, [last.encode()]


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


class HandlerDelegate(httputil.HTTPMessageDelegate):
    """Hands one request to its handler when it is whole, as it is by then on our connections:
    Tornado's own delegate lets the handler wait for its body, and goes through all that could
    be awaited else."""

    _chunks: Sequence[bytes] = ()
    _handler: BaseRequestHandler | None = None

    def __init__(self, application: tornado.web.Application, request: httputil.HTTPServerRequest,
                 handler_class: type[BaseRequestHandler], arguments: Mapping[str, Any],
                 path_args: Sequence[bytes]) -> None:
        """
        :param arguments: for the handler's ``initialize``.
        :param path_args: for its method.
        """
        self._application = application
        self._request = request
        self._handler_class = handler_class
        self._arguments = arguments
        self._path_args = path_args

    def headers_received(self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
                         headers: httputil.HTTPHeaders) -> None:
        pass  # they are in the request

    def data_received(self, chunk: bytes) -> None:
        self._chunks = (*self._chunks, chunk)  # nearly always the only one

    def finish(self) -> None:
        """Starts the handler, now that its request is here."""
        request = self._request
        if self._chunks:
            request.body = b''.join(self._chunks)
        self._handler = handler = self._handler_class(
            self._application, request, **self._arguments)
        handler._transforms = [make(request) for make in self._application.transforms]
        handler.task = asyncio.get_running_loop().create_task(handler.run(self._path_args))

    def on_connection_close(self) -> None:
        if self._handler:
            self._handler.on_connection_close()


class RoutedApplication(tornado.web.Application):
    """What is served on one port, and what watches over its requests."""

    def __init__(self, routes: Sequence[Route], service: AddressBookService,
                 telemetry: Telemetry, admission: Admission, **settings: Any) -> None:
        self.table = RouteTable(routes)
        self.telemetry = telemetry
        self.admission = admission
        self.shared: dict[str, Any] = {
            'service': service, 'telemetry': telemetry, 'admission': admission}
        self._arguments = {route: {**self.shared, 'route': route.template} for route in routes}
        super().__init__(default_handler_class=DefaultRequestHandler,
                         default_handler_args=self.shared,
                         transforms=[compression],  # type: ignore[list-item]  # is called as one
                         **settings)

    log_request = staticmethod(log_request)  # type: ignore[assignment]  # handlers are ours

    def find_handler(  # type: ignore[override]  # Tornado names a class of its own
            self, request: httputil.HTTPServerRequest, **kwargs: Any
    ) -> httputil.HTTPMessageDelegate:
        """Who answers a request; called by the server. Tornado itself would try one pattern
        after the other."""
        route, arguments = self.table.find(request.path)
        if route is None:
            return super().find_handler(request, **kwargs)
        return HandlerDelegate(self, request, route.handler, self._arguments[route], arguments)

    def get_handler_delegate(  # type: ignore[override]  # as above
            self, request: httputil.HTTPServerRequest,
            target_class: type[BaseRequestHandler],
            target_kwargs: dict[str, Any] | None = None, path_args: list[bytes] | None = None,
            path_kwargs: dict[str, bytes] | None = None) -> httputil.HTTPMessageDelegate:
        """Runs a handler for a request."""
        return HandlerDelegate(self, request, target_class, target_kwargs or {},
                               path_args or [])

    def refuse(self, request: httputil.HTTPServerRequest, error: tornado.web.HTTPError
               ) -> httputil.HTTPMessageDelegate:
        """Who answers a request that cannot be served, as every error is answered."""
        route, _ = self.table.find(request.path)
        return self.get_handler_delegate(request, ErrorRequestHandler, {
            **self.shared, 'route': route and route.template, 'error': error})


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

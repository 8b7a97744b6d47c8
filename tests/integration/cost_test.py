"""What a request costs does not grow unnoticed: calls are counted, whatever else a machine does."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.config import complete_config
from addrservice.tornado.app import make_addrservice_app
from addrservice.tornado.connection import HTTPServer
from addrservice.tornado.listening import bind, limits_of
from addrservice.tornado.serving import TRANSPORTS
from addrservice.utils.logutils import LogfmtFormatter, TurnStreamHandler
from benchmarks.validation import TYPICAL
from tests.support import DEADLINE

WARM_UP, REQUESTS = 20, 100
BODY = json.dumps(TYPICAL)

GET = 'GET /addresses/one HTTP/1.1\r\nHost: x\r\n\r\n'
POST = f'POST /addresses HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}'

CALLS = {'get': (GET, 403), 'post': (POST, 461)}
"""Calls of Python and C functions that one request may take, four percent above what
it took when this was written; lower them when it takes fewer. Entries in memory, with
line, metrics and flight recorder."""


Measure = Callable[[socket.socket, bytes], Coroutine[Any, Any, float]]


class Service:
    """The service, its event loop in this thread, with calls counted in it."""

    def __init__(self, transport: str = 'fast') -> None:
        self.transport = transport
        self.config = complete_config({'server': {'port': 0},
                                       'tracing': {'collectors': {'ring': None}}})
        self.calls: Counter[str] = Counter()

    def count(self, request: str) -> float:
        """Calls for one request, on average."""
        return asyncio.run(self._serve(self._count, request.encode()))

    def garbage(self, request: str) -> float:
        """Objects of one request, on average, that know each other when it has ended."""
        return asyncio.run(self._serve(self._collect, request.encode()))

    async def _serve(self, measure: Measure, request: bytes) -> float:
        with open(os.devnull, 'w') as nowhere:
            service, app = make_addrservice_app(self.config, False, self._logger(nowhere))
            await service.start()
            await service.create_address(TYPICAL, 'one')
            server = HTTPServer(app, app.refuse, limits_of(self.config['server']),
                                app.telemetry.connection_refused, TRANSPORTS[self.transport])
            listening, = bind('server', self.config['server'])
            server.add_sockets([listening])
            try:
                with socket.create_connection(listening.getsockname(), DEADLINE) as client:
                    await asyncio.to_thread(exchange, client, request, WARM_UP)
                    return await measure(client, request)
            finally:
                server.stop()
                server.close_connections()
                await server.until_drained()
                await service.stop()

    async def _count(self, client: socket.socket, request: bytes) -> float:
        sys.setprofile(self._on_event)
        try:
            await asyncio.to_thread(exchange, client, request, REQUESTS)
        finally:
            sys.setprofile(None)
        return (self.calls['call'] + self.calls['c_call']) / REQUESTS

    async def _collect(self, client: socket.socket, request: bytes) -> float:
        gc.collect()
        gc.disable()
        try:
            await asyncio.to_thread(exchange, client, request, REQUESTS)
            return gc.collect() / REQUESTS
        finally:
            gc.enable()

    def _on_event(self, frame: object, event: str, argument: object) -> None:
        self.calls[event] += 1

    def _logger(self, stream: Any) -> logging.Logger:
        handler = TurnStreamHandler(stream)
        handler.setFormatter(LogfmtFormatter('%(asctime)s %(message)s'))
        logger = logging.Logger('cost')
        logger.addHandler(handler)
        return logger


def exchange(client: socket.socket, request: bytes, count: int) -> None:
    """Sends a request so many times, each when the one before has been answered."""
    for _ in range(count):
        client.sendall(request)
        answer = client.recv(65536)
        assert answer.startswith((b'HTTP/1.1 20', b'HTTP/1.1 404')), answer


class GarbageTest(unittest.TestCase):
    def test_a_request_leaves_nothing_for_the_garbage_collector(self) -> None:
        requests = {name: request for name, (request, _) in CALLS.items()}
        requests['not found'] = 'GET /addresses/none HTTP/1.1\r\nHost: x\r\n\r\n'
        requests['list'] = 'GET /addresses HTTP/1.1\r\nHost: x\r\n\r\n'
        for transport in TRANSPORTS:
            for name, request in requests.items():
                with self.subTest(name, transport=transport):
                    self.assertLess(Service(transport).garbage(request), 1)


class CostTest(unittest.TestCase):
    def test_a_request_takes_no_more_calls_than_it_did(self) -> None:
        for name, (request, most) in CALLS.items():
            with self.subTest(name):
                self.assertLessEqual(Service().count(request), most)


if __name__ == '__main__':
    unittest.main()

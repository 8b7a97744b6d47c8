"""The log line of a request as a plain ASGI middleware: the leanest that FastAPI takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from benchmarks.peers.request_log import log_request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class LogMiddleware:
    """Logs when an application has answered."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]],
                 logger: logging.Logger) -> None:
        self._app = app
        self._logger = logger

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            return await self._app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            log_request(self._logger, scope['method'], scope['path'], status, began)

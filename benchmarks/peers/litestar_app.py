"""Litestar, which has msgspec for its own, on uvicorn."""

from __future__ import annotations

import sys
import time
import uuid
from typing import Annotated, cast

from litestar import Litestar, Response, get, post, put
from litestar.enums import ScopeType
from litestar.exceptions import NotFoundException
from litestar.middleware import ASGIMiddleware
from litestar.params import Parameter
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.msgspec_entry import Book, Entry, first
from benchmarks.peers.request_log import log_request, make_logger
from benchmarks.peers.uvicorn_server import serve


class LogMiddleware(ASGIMiddleware):
    """The log line, when the application has answered."""

    scopes = (ScopeType.HTTP,)

    def __init__(self) -> None:
        self._logger = make_logger()

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        began, status = time.perf_counter(), 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
            await send(message)

        try:
            await next_app(scope, receive, send_and_look)
        finally:
            request = cast(HTTPScope, scope)
            log_request(self._logger, request['method'], request['path'], status, began)


def make_app() -> Litestar:
    book: Book = {}

    @post('/addresses')
    async def create(data: Entry) -> Response[None]:
        entry_id = uuid.uuid4().hex
        book[entry_id] = data
        return Response(None, status_code=201, headers={'Location': f'/addresses/{entry_id}'})

    @get('/addresses/{entry_id:str}')
    async def read(entry_id: str) -> Entry:
        if entry_id not in book:
            raise NotFoundException
        return book[entry_id]

    @put('/addresses/{entry_id:str}', status_code=204)
    async def replace(entry_id: str, data: Entry) -> None:
        if entry_id not in book:
            raise NotFoundException
        book[entry_id] = data

    @get('/addresses')
    async def read_some(limit: Annotated[int, Parameter(ge=1, le=MAX_LIMIT)] = 100) -> Book:
        return first(book, limit)

    return Litestar([create, read, replace, read_some], middleware=[LogMiddleware()],
                    openapi_config=None, logging_config=None)


if __name__ == '__main__':
    serve(make_app(), int(sys.argv[1]))

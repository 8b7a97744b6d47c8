"""BlackSheep with msgspec, on uvicorn."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Awaitable, Callable

import msgspec
from blacksheep import (
    Application, Content, FromBytes, Request, Response, no_content, not_found)
from blacksheep.server.responses import status_code

from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.msgspec_entry import Book, Entry, first
from benchmarks.peers.request_log import log_request, make_logger
from benchmarks.peers.uvicorn_server import serve


def add_log(app: Application) -> None:
    logger = make_logger()

    async def log(request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await handler(request)
        log_request(logger, request.method, request.path, response.status, began)
        return response

    app.middlewares.append(log)


def add_writing(app: Application, book: Book) -> None:
    decoder = msgspec.json.Decoder(Entry)

    @app.router.post('/addresses')
    async def create(body: FromBytes) -> Response:
        try:
            entry = decoder.decode(body.value)
        except msgspec.DecodeError as error:
            return status_code(422, str(error))
        entry_id = uuid.uuid4().hex
        book[entry_id] = entry
        return Response(201, [(b'Location', f'/addresses/{entry_id}'.encode())])

    @app.router.put('/addresses/{entry_id}')
    async def replace(entry_id: str, body: FromBytes) -> Response:
        try:
            entry = decoder.decode(body.value)
        except msgspec.DecodeError as error:
            return status_code(422, str(error))
        if entry_id not in book:
            return not_found()
        book[entry_id] = entry
        return no_content()


def add_reading(app: Application, book: Book) -> None:
    encoder = msgspec.json.Encoder()

    def answer(found: object) -> Response:
        return Response(200, content=Content(b'application/json', encoder.encode(found)))

    @app.router.get('/addresses/{entry_id}')
    async def read(entry_id: str) -> Response:
        return answer(book[entry_id]) if entry_id in book else not_found()

    @app.router.get('/addresses')
    async def read_some(limit: int = 100) -> Response:
        return answer(first(book, min(limit, MAX_LIMIT)))


def make_app() -> Application:
    app, book = Application(), Book()
    add_log(app)
    add_writing(app, book)
    add_reading(app, book)
    return app


if __name__ == '__main__':
    serve(make_app(), int(sys.argv[1]))

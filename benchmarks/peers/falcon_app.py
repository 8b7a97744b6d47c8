"""Falcon's ASGI application with msgspec, on uvicorn."""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import falcon
import falcon.asgi
import msgspec

from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.msgspec_entry import Book, Entry, first
from benchmarks.peers.request_log import log_request, make_logger
from benchmarks.peers.uvicorn_server import serve


class LogMiddleware:
    """The log line, when a request has been processed."""

    def __init__(self) -> None:
        self._logger = make_logger()

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        req.context.began = time.perf_counter()

    async def process_response(self, req: falcon.asgi.Request, resp: falcon.asgi.Response,
                               resource: object, req_succeeded: bool) -> None:
        log_request(self._logger, req.method, req.path, resp.status_code, req.context.began)


_decoder = msgspec.json.Decoder(Entry)


async def _entry(req: falcon.asgi.Request) -> Entry:
    try:
        return _decoder.decode(await req.stream.read())
    except msgspec.DecodeError as error:
        raise falcon.HTTPUnprocessableEntity(description=str(error)) from error


class AddressBook:
    """``/addresses``"""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._encoder = msgspec.json.Encoder()

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        entry = await _entry(req)
        entry_id = uuid.uuid4().hex
        self._book[entry_id] = entry
        resp.status = falcon.HTTP_201
        resp.location = f'/addresses/{entry_id}'

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        limit = req.get_param_as_int('limit', min_value=1, max_value=MAX_LIMIT, default=100)
        resp.data = self._encoder.encode(first(self._book, limit))


class AddressEntry:
    """``/addresses/{entry_id}``"""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._encoder = msgspec.json.Encoder()

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response,
                     entry_id: str) -> None:
        if entry_id not in self._book:
            raise falcon.HTTPNotFound
        resp.data = self._encoder.encode(self._book[entry_id])

    async def on_put(self, req: falcon.asgi.Request, resp: falcon.asgi.Response,
                     entry_id: str) -> None:
        entry = await _entry(req)
        if entry_id not in self._book:
            raise falcon.HTTPNotFound
        self._book[entry_id] = entry
        resp.status = falcon.HTTP_204


def make_app() -> falcon.asgi.App[Any, Any]:
    book: Book = {}
    app = falcon.asgi.App(middleware=[LogMiddleware()])
    app.add_route('/addresses', AddressBook(book))
    app.add_route('/addresses/{entry_id}', AddressEntry(book))
    return app


if __name__ == '__main__':
    serve(make_app(), int(sys.argv[1]))

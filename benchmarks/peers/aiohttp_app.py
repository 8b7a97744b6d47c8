"""aiohttp with msgspec, on its own server and uvloop."""

from __future__ import annotations

import sys
import time
import uuid

import msgspec
import uvloop
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.msgspec_entry import Book, Entry, first
from benchmarks.peers.request_log import log_request, make_logger


def make_log() -> Middleware:
    logger = make_logger()

    @web.middleware
    async def log(request: web.Request, handler: Handler) -> web.StreamResponse:
        began, status = time.perf_counter(), 500
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        finally:
            log_request(logger, request.method, request.path, status, began)

    return log


class Handlers:
    """The job, on a book of its own."""

    def __init__(self) -> None:
        self._book = Book()
        self._decoder, self._encoder = msgspec.json.Decoder(Entry), msgspec.json.Encoder()

    async def create(self, request: web.Request) -> web.Response:
        entry = await self._entry(request)
        entry_id = uuid.uuid4().hex
        self._book[entry_id] = entry
        return web.Response(status=201, headers={'Location': f'/addresses/{entry_id}'})

    async def read(self, request: web.Request) -> web.Response:
        entry = self._book.get(request.match_info['entry_id'])
        if entry is None:
            raise web.HTTPNotFound
        return self._answer(entry)

    async def replace(self, request: web.Request) -> web.Response:
        entry, entry_id = await self._entry(request), request.match_info['entry_id']
        if entry_id not in self._book:
            raise web.HTTPNotFound
        self._book[entry_id] = entry
        return web.Response(status=204)

    async def read_some(self, request: web.Request) -> web.Response:
        limit = min(int(request.query.get('limit', 100)), MAX_LIMIT)
        return self._answer(first(self._book, limit))

    async def _entry(self, request: web.Request) -> Entry:
        try:
            return self._decoder.decode(await request.read())
        except msgspec.DecodeError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error

    def _answer(self, found: object) -> web.Response:
        return web.Response(body=self._encoder.encode(found), content_type='application/json')


def make_app() -> web.Application:
    app, handlers = web.Application(middlewares=[make_log()]), Handlers()
    app.router.add_post('/addresses', handlers.create)
    app.router.add_get('/addresses', handlers.read_some)
    app.router.add_get('/addresses/{entry_id}', handlers.read)
    app.router.add_put('/addresses/{entry_id}', handlers.replace)
    return app


if __name__ == '__main__':
    web.run_app(make_app(), host='127.0.0.1', port=int(sys.argv[1]), access_log=None, print=None,
                loop=uvloop.new_event_loop())

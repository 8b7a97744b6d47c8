"""Sanic with msgspec, on its own server."""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import msgspec
from sanic import HTTPResponse, Request, Sanic, empty, raw
from sanic.exceptions import BadRequest, NotFound

from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.msgspec_entry import Book, Entry, first
from benchmarks.peers.request_log import log_request, make_logger


def add_log(app: Sanic[Any, Any]) -> None:
    logger = make_logger()

    @app.on_request
    async def begin(request: Request) -> None:
        request.ctx.began = time.perf_counter()

    @app.on_response
    async def log(request: Request, response: HTTPResponse) -> None:
        log_request(logger, request.method, request.path, response.status, request.ctx.began)


def make_app() -> Sanic[Any, Any]:
    app, book = Sanic('peer'), Book()
    decoder, encoder = msgspec.json.Decoder(Entry), msgspec.json.Encoder()
    add_log(app)

    def entry_of(request: Request) -> Entry:
        try:
            return decoder.decode(request.body)
        except msgspec.DecodeError as error:
            raise BadRequest(str(error)) from error

    @app.post('/addresses')
    async def create(request: Request) -> HTTPResponse:
        entry = entry_of(request)
        entry_id = uuid.uuid4().hex
        book[entry_id] = entry
        return empty(201, {'Location': f'/addresses/{entry_id}'})

    @app.get('/addresses/<entry_id:str>')
    async def read(request: Request, entry_id: str) -> HTTPResponse:
        if entry_id not in book:
            raise NotFound
        return raw(encoder.encode(book[entry_id]), content_type='application/json')

    @app.put('/addresses/<entry_id:str>')
    async def replace(request: Request, entry_id: str) -> HTTPResponse:
        entry = entry_of(request)
        if entry_id not in book:
            raise NotFound
        book[entry_id] = entry
        return empty()

    @app.get('/addresses')
    async def read_some(request: Request) -> HTTPResponse:
        limit = min(int(request.args.get('limit', 100)), MAX_LIMIT)
        return raw(encoder.encode(first(book, limit)), content_type='application/json')

    return app


if __name__ == '__main__':
    make_app().run('127.0.0.1', int(sys.argv[1]), single_process=True, access_log=False, motd=False)

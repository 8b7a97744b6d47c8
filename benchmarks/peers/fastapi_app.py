"""FastAPI with pydantic, on uvicorn; entries in a dict, the log line from an ASGI middleware."""

from __future__ import annotations

import sys
import uuid
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Response

from benchmarks.peers.asgi_log import LogMiddleware
from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.pydantic_entry import Entry
from benchmarks.peers.request_log import make_logger
from benchmarks.peers.uvicorn_server import serve

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


def add_routes(app: FastAPI) -> None:
    """The job, on a book of its own."""
    book: dict[str, Entry] = {}

    @app.post('/addresses', status_code=201)
    async def create(entry: Entry) -> Response:
        entry_id = uuid.uuid4().hex
        book[entry_id] = entry
        return Response(status_code=201, headers={'Location': f'/addresses/{entry_id}'})

    @app.get('/addresses/{entry_id}', response_model_exclude_unset=True)
    async def read(entry_id: str) -> Entry:
        if entry_id not in book:
            raise HTTPException(404)
        return book[entry_id]

    @app.put('/addresses/{entry_id}', status_code=204)
    async def replace(entry_id: str, entry: Entry) -> Response:
        if entry_id not in book:
            raise HTTPException(404)
        book[entry_id] = entry
        return Response(status_code=204)

    @app.get('/addresses', response_model_exclude_unset=True)
    async def read_some(limit: Limit = 100) -> dict[str, Entry]:
        return {entry_id: book[entry_id] for entry_id in sorted(book)[:limit]}


def make_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(LogMiddleware, logger=make_logger())
    add_routes(app)
    return app


if __name__ == '__main__':
    serve(make_app(), int(sys.argv[1]))

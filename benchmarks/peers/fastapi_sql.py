"""The job of the peers on FastAPI that keep entries in a table, whatever runs the statements."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, HTTPException, Query, Response

from benchmarks.peers.asgi_log import LogMiddleware
from benchmarks.peers.limits import MAX_LIMIT
from benchmarks.peers.pydantic_entry import Entry
from benchmarks.peers.request_log import make_logger

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


class Store(Protocol):
    """A table of entries."""

    def open(self, app: FastAPI) -> AbstractAsyncContextManager[None]:
        """The lifespan of an application."""

    async def insert(self, entry_id: str, version: str, document: str) -> None:
        """Adds a row, for good."""

    async def update(self, entry_id: str, version: str, document: str) -> bool:
        """Changes a row, for good; tells whether there is such a row."""

    async def read(self, entry_id: str) -> Any:
        """Version and document, to be asked for by their place, if there is such a row."""

    async def page(self, limit: int) -> Iterable[Any]:
        """Id, version and document of the first rows."""


def make_app(store: Store) -> FastAPI:
    """Entries are stored as the text that is sent to clients: nobody need parse it again."""
    app = FastAPI(lifespan=store.open)
    app.add_middleware(LogMiddleware, logger=make_logger())

    @app.post('/addresses', status_code=201)
    async def create(entry: Entry) -> Response:
        entry_id = uuid.uuid4().hex
        await store.insert(entry_id, secrets.token_hex(8),
                           entry.model_dump_json(exclude_unset=True))
        return Response(status_code=201, headers={'Location': f'/addresses/{entry_id}'})

    @app.get('/addresses/{entry_id}')
    async def read(entry_id: str) -> Response:
        row = await store.read(entry_id)
        if row is None:
            raise HTTPException(404)
        return Response(row[1], media_type='application/json')

    @app.put('/addresses/{entry_id}', status_code=204)
    async def replace(entry_id: str, entry: Entry) -> Response:
        if not await store.update(entry_id, secrets.token_hex(8),
                                  entry.model_dump_json(exclude_unset=True)):
            raise HTTPException(404)
        return Response(status_code=204)

    @app.get('/addresses')
    async def read_some(limit: Limit = 100) -> Response:
        members = (f'"{entry_id}":{document}' for entry_id, _, document in await store.page(limit))
        return Response(f'{{{",".join(members)}}}', media_type='application/json')

    return app

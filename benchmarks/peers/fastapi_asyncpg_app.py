"""FastAPI with entries in PostgreSQL, by a pool of asyncpg."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import asyncpg
from fastapi import FastAPI

from benchmarks.peers.fastapi_sql import make_app
from benchmarks.peers.statements import INSERT, PAGE, READ, TABLE, UPDATE
from benchmarks.peers.uvicorn_server import serve


class PostgresStore:
    """A pool as large as that of addrservice; asyncpg prepares each statement once."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    @contextlib.asynccontextmanager
    async def open(self, _app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(self._dsn, min_size=2, max_size=10) as self._pool:
            for statement in TABLE:
                await self._pool.execute(statement.format(name='text COLLATE "C"'))
            yield

    async def insert(self, entry_id: str, version: str, document: str) -> None:
        await self._pool.execute(INSERT, entry_id, version, document)

    async def update(self, entry_id: str, version: str, document: str) -> bool:
        tag = await self._pool.execute(UPDATE, entry_id, version, document)
        return bool(tag == 'UPDATE 1')

    async def read(self, entry_id: str) -> Any:
        return await self._pool.fetchrow(READ, entry_id)

    async def page(self, limit: int) -> Iterable[Any]:
        return await self._pool.fetch(PAGE, '', limit)


if __name__ == '__main__':
    serve(make_app(PostgresStore(sys.argv[2])), int(sys.argv[1]))

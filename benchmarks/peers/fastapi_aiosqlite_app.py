"""FastAPI with entries in SQLite, by aiosqlite."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiosqlite
from fastapi import FastAPI

from benchmarks.peers.fastapi_sql import make_app
from benchmarks.peers.statements import INSERT, PAGE, READ, TABLE, UPDATE
from benchmarks.peers.uvicorn_server import serve


class SQLiteStore:
    """One connection for all requests: to open one for each would cost several times as much.
    What it promises is what addrservice does: WAL, and a commit is on the disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._insert, self._update, self._read, self._page = (
            re.sub(r'\$(\d)', r'?\1', statement) for statement in (INSERT, UPDATE, READ, PAGE))

    @contextlib.asynccontextmanager
    async def open(self, _app: FastAPI) -> AsyncIterator[None]:
        async with aiosqlite.connect(self._path) as self._connection:
            await self._connection.execute('PRAGMA journal_mode = WAL')
            await self._connection.execute('PRAGMA synchronous = FULL')
            for statement in TABLE:
                await self._connection.execute(statement.format(name='text'))
            await self._connection.commit()
            yield

    async def insert(self, entry_id: str, version: str, document: str) -> None:
        await self._connection.execute(self._insert, (entry_id, version, document))
        await self._connection.commit()

    async def update(self, entry_id: str, version: str, document: str) -> bool:
        cursor = await self._connection.execute(self._update, (entry_id, version, document))
        await self._connection.commit()
        return bool(cursor.rowcount)

    async def read(self, entry_id: str) -> Any:
        async with self._connection.execute(self._read, (entry_id,)) as cursor:
            return await cursor.fetchone()

    async def page(self, limit: int) -> Iterable[Any]:
        async with self._connection.execute(self._page, ('', limit)) as cursor:
            return await cursor.fetchall()


if __name__ == '__main__':
    serve(make_app(SQLiteStore(sys.argv[2])), int(sys.argv[1]))

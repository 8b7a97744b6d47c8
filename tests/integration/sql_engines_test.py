"""The SQL engines keep the contract of the port, too: on a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import sys
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import asyncpg

from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.database.records import new_version
from addrservice.database.db_engines import create_addressbook_db
from tests.postgres import shared_server
from tests.unit.addressbook_db_test import EngineContract, SharedStoreContract, Store

PUT = ('INSERT INTO addresses (nickname, version, document) VALUES ($1, $2, $3)'
       ' ON CONFLICT (nickname) DO UPDATE SET version = $2, document = $3')


class SQLiteStore(Store):
    survives_restart = True

    async def open(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / 'addressbook.db'

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        return create_addressbook_db({'sqlite': str(self.path)}, logger)

    def execute(self, statement: str, *arguments: object) -> list[tuple[str, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement, arguments).fetchall()

    async def put(self, nickname: str, record: bytes) -> None:
        await self.put_all({nickname: record})

    async def put_all(self, records: Mapping[str, bytes]) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.executemany(
                'INSERT OR REPLACE INTO addresses (nickname, version, document)'
                ' VALUES (?, ?, CAST(? AS text))',
                [(nickname, new_version(), record) for nickname, record in records.items()])

    async def text(self, nickname: str) -> str:
        [(text,)] = self.execute('SELECT document FROM addresses WHERE nickname = ?', nickname)
        return text

    async def nicknames(self) -> list[str]:
        return [row[0] for row in self.execute('SELECT nickname FROM addresses ORDER BY 1')]

    async def close(self) -> None:
        self._folder.cleanup()


class PostgresStore(Store):
    survives_restart = True

    async def open(self) -> None:
        self.server = shared_server()
        self.database = await asyncio.to_thread(self.server.create_database)
        self.connection = await asyncpg.connect(self.server.dsn(self.database))

    def make_engine(self, logger: logging.Logger) -> AbstractAddressBookDB:
        # Fifty who count up one number need a while for it on a slow machine.
        return create_addressbook_db({'postgres': {
            'dsn': self.server.dsn(self.database), 'acquire-timeout': 20}}, logger)

    async def put(self, nickname: str, record: bytes) -> None:
        await self.put_all({nickname: record})

    async def put_all(self, records: Mapping[str, bytes]) -> None:
        # PostgreSQL holds no text with such bytes: they become an escape that JSON does not know.
        await self.connection.executemany(PUT, [
            (nickname, new_version(),
             record.decode('utf-8', 'backslashreplace').replace('\0', '\\x00'))
            for nickname, record in records.items()])

    async def text(self, nickname: str) -> str:
        return str(await self.connection.fetchval(
            'SELECT document FROM addresses WHERE nickname = $1', nickname))

    async def nicknames(self) -> list[str]:
        return [row[0] for row in await self.connection.fetch(
            'SELECT nickname FROM addresses ORDER BY 1')]

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.to_thread(self.server.drop_database, self.database)


class SQLiteEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = SQLiteStore


class SharedSQLiteTests(SharedStoreContract, unittest.IsolatedAsyncioTestCase):
    store_class = SQLiteStore


class PostgresEngineTests(EngineContract, unittest.IsolatedAsyncioTestCase):
    store_class = PostgresStore


class SharedPostgresTests(SharedStoreContract, unittest.IsolatedAsyncioTestCase):
    store_class = PostgresStore


if __name__ == '__main__':
    unittest.main()

"""A new store for each server that is measured: nobody inherits what another has written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.contest.cores import Core, on

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

ENGINES = ('memory', 'fs', 'sqlite', 'postgres')
"""As the configuration of the service names them."""


class Store(NamedTuple):
    """Where one server keeps its entries."""

    engine: str
    place: str | None
    """A path or a DSN; nothing for entries in memory."""

    folder: Path
    """For the files of this server, removed after it."""


class Stores:
    """Makes stores of one engine."""

    def __init__(self, engine: str, database: PostgresServer | None) -> None:
        self._engine = engine
        self._database = database

    @contextlib.contextmanager
    def new(self, folder: Path) -> Iterator[Store]:
        """
        :param folder: an empty one.
        """
        if self._database:
            name = self._database.create_database()
            try:
                yield Store(self._engine, self._database.dsn(name), folder)
            finally:
                self._database.drop_database(name)
        else:
            place = None if self._engine == 'memory' else str(folder / 'store')
            yield Store(self._engine, place, folder)


@contextlib.contextmanager
def stores_of(engine: str, core: Core) -> Iterator[Stores]:
    """
    :param core: for the database server, if the engine needs one: the one of the tests, which
        lasts as long as this does, and whose commits wait for the disk.
    """
    if engine != 'postgres':
        yield Stores(engine, None)
        return
    from tests.postgres import PostgresServer  # it makes programs and folders ready

    with on(core):
        server = PostgresServer()
        server.start()
    with server:
        yield Stores(engine, server)

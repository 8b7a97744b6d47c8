"""From the configuration's word to an engine; the only file that knows them all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from addrservice.config import complete_config
from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.errors import ConfigError


def create_addressbook_db(config: Mapping[str, Any], logger: logging.Logger
                          ) -> AbstractAddressBookDB:
    """Makes the engine that the section ``addr-db`` names, not yet started.

    An engine's module is imported only when it is asked for, so that nobody
    needs the driver of another engine.

    :param config: the section: one key, the engine's name, with its settings;
        what is left out has its default.
    :param logger: where the engine reports what nobody asked about.
    :raises ConfigError: there is no such engine.
    """
    match list(complete_config({'addr-db': config})['addr-db'].items()):
        case [('memory', None)]:
            from addrservice.database.memory_db import InMemoryAddressBookDB
            return InMemoryAddressBookDB(logger)
        case [('fs', str(path))]:
            from addrservice.database.file_db import FileAddressBookDB
            return FileAddressBookDB(path, logger)
        case [('sqlite', {'path': str(path), 'busy-timeout': busy_timeout})]:
            from addrservice.database.sql_db import SQLAddressBookDB
            from addrservice.database.sqlite_db import SQLiteConnector
            return SQLAddressBookDB(SQLiteConnector(path, busy_timeout), logger)
        case [('postgres', {'dsn': str()} as settings)]:
            from addrservice.database.postgres_db import PostgresConnector
            from addrservice.database.sql_db import SQLAddressBookDB
            return SQLAddressBookDB(PostgresConnector(settings), logger)
    raise ConfigError(f'addr-db: {", ".join(config)}: described, but not built')

"""From the configuration's word to an engine; the only file that knows them all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from addrservice.database.addressbook_db import AbstractAddressBookDB
from addrservice.errors import ConfigError


def create_addressbook_db(config: Mapping[str, Any], logger: logging.Logger
                          ) -> AbstractAddressBookDB:
    """Makes the engine that the section ``addr-db`` names, not yet started.

    An engine's module is imported only when it is asked for, so that nobody
    needs the driver of another engine.

    :param config: the section: one key, the engine's name, with its settings.
    :param logger: where the engine reports what nobody asked about.
    :raises ConfigError: there is no such engine.
    """
    match list(config.items()):
        case [('memory', None)]:
            from addrservice.database.memory_db import InMemoryAddressBookDB
            return InMemoryAddressBookDB(logger)
        case [('fs', str(path))]:
            from addrservice.database.file_db import FileAddressBookDB
            return FileAddressBookDB(path, logger)
    # Names only: the settings of an engine may hold a password.
    raise ConfigError(f'addr-db: no engine is known by {", ".join(config) or "nothing"!r} '
                      'with such settings')

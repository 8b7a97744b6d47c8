"""Every engine, for tests that run on all of them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.postgres import shared_server
from tests.support import AddressServiceAppTestCase

Section = dict[str, Any]
"""What a configuration says under ``addr-db``."""

LASTING = ('fs', 'sqlite', 'postgres')
"""The engines whose entries outlive the process."""


@contextlib.contextmanager
def new_store(engine: str, folder: Path) -> Iterator[Section]:
    """Names a store that does not exist yet, or a database that is empty and dropped afterwards.

    :param folder: where the store will be, if its engine needs one.
    """
    match engine:
        case 'memory':
            yield {'memory': None}
        case 'fs':
            yield {'fs': str(folder / 'store')}
        case 'sqlite':
            yield {'sqlite': str(folder / 'store.db')}
        case 'postgres':
            database = shared_server().create_database()
            try:
                yield {'postgres': shared_server().dsn(database)}
            finally:
                shared_server().drop_database(database)


class EngineAppTestCase(AddressServiceAppTestCase):
    """Serves the web application with an empty book on some engine."""

    engine = 'memory'
    settings: dict[str, Any] = {}
    """What the configuration says under ``server``."""

    def make_config(self) -> dict[str, Any]:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        section = self.enterContext(new_store(self.engine, folder))
        return {'addr-db': section, 'server': self.settings}

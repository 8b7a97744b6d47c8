"""The servers that are compared, and how each is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from addrservice import ROOT_DIR
from benchmarks.contest import environment
from benchmarks.contest.stores import Store
from benchmarks.validation import TYPICAL

Command = list[str]
Start = Callable[[int, Store], Command]
"""From a port and a store to the command that serves there; it runs in the root folder."""

OWN = 'addrservice'
BASE = 'fastapi'
"""What the others are compared with."""

KEEPS, REFUSES, LOGS = JOB = ('keeps', 'refuses', 'logs')
"""The parts of the job: entries come back as they were put, also those that have replaced others,
wrong ones are refused, and each request has its line in the log."""


class Peer(NamedTuple):
    """One server of the comparison."""

    name: str
    """As --peers has it."""

    title: str
    """As tables have it."""

    start: Start
    job: tuple[str, ...] = JOB
    """What it does of the job; the less, the more of a mere yardstick it is."""

    @property
    def needs_setup(self) -> bool:
        """Whether it runs on what `--setup` makes."""
        return not self.name.startswith(OWN)


def peers_of(engine: str) -> Sequence[Peer]:
    """All servers that can keep entries there; the service is one of them."""
    own = Peer(OWN, OWN, _addrservice({'ring': None}))
    return {
        'memory': (own, *_MEMORY),
        'fs': (own,),
        'sqlite': (own, Peer(BASE, 'FastAPI on uvicorn, aiosqlite', _python('fastapi_aiosqlite'))),
        'postgres': (own, Peer(BASE, 'FastAPI on uvicorn, asyncpg', _python('fastapi_asyncpg'))),
    }[engine]


def _addrservice(collectors: Mapping[str, None]) -> Start:
    """As its user starts it: metrics are counted, the log is the default one, a line for each
    request.

    :param collectors: of traces: ``ring`` is what configs/addressbook-local.yaml has, none is
        what there is without such a section.
    """
    def start(port: int, store: Store) -> Command:
        file = store.folder / 'config.yaml'
        file.write_text(json.dumps({  # which is YAML, too
            'addr-db': {store.engine: store.place}, 'admin': {'port': 0}, 'drain': {'delay': 0},
            'tracing': {'collectors': collectors}}))
        return [sys.executable, '-m', 'addrservice', '--config', str(file), '--port', str(port)]

    return start


def _python(name: str) -> Start:
    """A program of benchmarks/peers/ in the peers' own environment."""
    def start(port: int, store: Store) -> Command:
        place = [store.place] if store.place else []
        return [str(environment.PYTHON), '-m', f'benchmarks.peers.{name}_app', str(port), *place]

    return start


def _ceiling(port: int, store: Store) -> Command:
    return [*_python('ceiling')(port, store), json.dumps(TYPICAL, separators=(',', ':'))]


def _seed(port: int, store: Store) -> Command:
    return [*_python('seed')(port, store), str(store.folder)]


def _fastify(port: int, _store: Store) -> Command:
    program = Path('benchmarks', 'peers', 'fastify_app.js')
    return [str(environment.node()), str(ROOT_DIR / program), str(port)]


_MEMORY = (
    Peer(f'{OWN}-no-ring', f'{OWN} without its flight recorder', _addrservice({})),
    Peer('ceiling', 'ceiling: uvloop + httptools, constant answers', _ceiling, job=()),
    Peer('fastify', 'Fastify (Node)', _fastify),
    Peer('blacksheep', 'BlackSheep on uvicorn, msgspec', _python('blacksheep')),
    Peer('sanic', 'Sanic, msgspec', _python('sanic')),
    Peer('aiohttp', 'aiohttp + uvloop, msgspec', _python('aiohttp')),
    Peer('falcon', 'Falcon ASGI on uvicorn, msgspec', _python('falcon')),
    Peer('litestar', 'Litestar on uvicorn, msgspec', _python('litestar')),
    Peer('tornado', 'bare Tornado: no log, no validation', _python('tornado'), job=(KEEPS,)),
    Peer('seed', 'the seed: Tornado, jsonschema.validate', _seed),
    Peer(BASE, 'FastAPI on uvicorn', _python('fastapi')),
    Peer('fastapi-http', "FastAPI on uvicorn, @app.middleware('http')", _python('fastapi_http')))

"""The service as the two documents describe it that this project has grown from: a tutorial of
Tornado, and its outline. Written anew, from what they say and show, as a stand-in for it:

- Tornado's own server, and an entry's `Etag` from its body, as Tornado makes it by itself.
- A request id, method, URI and address are kept in the context of the task, and become a line of
  logfmt when the request has ended. It goes through logging's dictConfig to two handlers: a brief
  one to the console, and one with file, line and function to a file that could rotate.
- Answers to what went wrong, and their lines, have the traceback.
- Entries are kept in a dict, behind an interface whose functions are all coroutines.

How a body is checked they leave open: a JSON schema describes it, tests check files with that, and
an object model made by hand knows what the schema cannot say. Here it is `jsonschema.validate`, the
plain call, for each body. That checks the schema, too, each time, which takes most of the time of a
POST; the schema is that of the other peers, and larger than theirs may have been. The object model
is left out.

The job has a `limit` that they do not have; what it does not ask for, deletion and probes, is not
here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import sys
import traceback
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jsonschema
from tornado.web import Application, HTTPError, RequestHandler

from benchmarks.peers.limits import MAX_LIMIT, SCHEMA

Document = Mapping[str, Any]

_context: ContextVar[dict[str, Any]] = ContextVar('log_context')


def logging_config(folder: Path) -> dict[str, Any]:
    """As configs/addressbook-local.yaml has it in the documents, but for the folder.

    :param folder: for the file that has the detailed lines.
    """
    return {
        'version': 1,
        'formatters': {
            'brief': {'format': '%(asctime)s %(name)s %(levelname)s : %(message)s'},
            'detailed': {'format': 'time="%(asctime)s" logger="%(name)s" level="%(levelname)s" '
                                   'file="%(filename)s" lineno=%(lineno)d '
                                   'function="%(funcName)s" %(message)s'}},
        'handlers': {
            'console': {'class': 'logging.StreamHandler', 'level': 'INFO', 'formatter': 'brief',
                        'stream': 'ext://sys.stdout'},
            'file': {'class': 'logging.handlers.RotatingFileHandler', 'level': 'DEBUG',
                     'formatter': 'detailed', 'filename': str(folder / 'addrservice-app.log'),
                     'backupCount': 3}},
        'loggers': {
            'addrservice': {'level': 'DEBUG', 'handlers': ['console', 'file'],
                            'propagate': False},
            'tornado': {'level': 'DEBUG', 'handlers': ['file'], 'propagate': False}},
        'root': {'level': 'WARNING', 'handlers': ['console']}}


def log(logger: logging.Logger, level: int, **fields: Any) -> None:
    """A line with what the context of the task has, and these fields: numbers bare, all else as
    JSON has texts."""
    fields = {**_context.get({}), **fields}
    logger.log(level, ' '.join(f'{name}={_value(value)}' for name, value in fields.items()))


def _value(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else json.dumps(str(value))


class AddressBookDB:
    """Entries in memory, where a database could be."""

    def __init__(self) -> None:
        self._entries: dict[str, Document] = {}

    async def create_address(self, entry: Document) -> str:
        entry_id = uuid.uuid4().hex
        self._entries[entry_id] = entry
        return entry_id

    async def read_address(self, entry_id: str) -> Document:
        """
        :raises KeyError: there is none; so with the next one.
        """
        return self._entries[entry_id]

    async def update_address(self, entry_id: str, entry: Document) -> None:
        if entry_id not in self._entries:
            raise KeyError(entry_id)
        self._entries[entry_id] = entry

    async def read_some_addresses(self, limit: int) -> Document:
        return {entry_id: self._entries[entry_id] for entry_id in sorted(self._entries)[:limit]}


class BaseHandler(RequestHandler):
    """What all requests have in common."""

    def initialize(self, book: AddressBookDB) -> None:
        self.book = book

    def prepare(self) -> None:
        _context.set({'req_id': uuid.uuid4().hex, 'method': self.request.method,
                      'uri': self.request.uri, 'ip': self.request.remote_ip})

    def read_entry(self) -> Document:
        """The body, when it is an entry.

        :raises HTTPError: 400, it is none.
        """
        try:
            entry: Document = json.loads(self.request.body.decode('utf-8'))
            jsonschema.validate(entry, SCHEMA)
        except ValueError as error:
            raise HTTPError(400, reason='Invalid JSON body') from error
        except jsonschema.ValidationError as error:
            raise HTTPError(400, reason='Invalid entry') from error
        return entry

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tells what went wrong; the line of the request has it, too."""
        trace = ''.join(traceback.format_exception(*kwargs['exc_info']))
        _context.get()['reason'], _context.get()['trace'] = self._reason, trace
        self.set_header('Content-Type', 'application/json; charset=UTF-8')
        self.finish({'method': self.request.method, 'uri': self.request.path,
                     'code': status_code, 'message': self._reason, 'trace': trace})

    def log_exception(self, *error: Any) -> None:
        """Nothing: the line of the request has it."""


class AddressBookHandler(BaseHandler):
    """``/addresses``"""

    async def post(self) -> None:
        entry_id = await self.book.create_address(self.read_entry())
        self.set_status(201)
        self.set_header('Location', f'/addresses/{entry_id}')
        self.finish()

    async def get(self) -> None:
        limit = min(int(self.get_argument('limit', '100')), MAX_LIMIT)
        self.finish(dict(await self.book.read_some_addresses(limit)))


class AddressBookEntryHandler(BaseHandler):
    """``/addresses/{entry_id}``"""

    async def get(self, entry_id: str) -> None:
        try:
            self.finish(dict(await self.book.read_address(entry_id)))
        except KeyError as error:
            raise HTTPError(404) from error

    async def put(self, entry_id: str) -> None:
        try:
            await self.book.update_address(entry_id, self.read_entry())
        except KeyError as error:
            raise HTTPError(404) from error
        self.set_status(204)
        self.finish()


def log_request(handler: RequestHandler) -> None:
    """The canonical line."""
    status, seconds = handler.get_status(), handler.request.request_time()
    level = (logging.INFO if status < 400 else
             logging.WARNING if status < 500 else logging.ERROR)
    log(logging.getLogger('addrservice'), level, message='RESPONSE', status=status,
        time_ms=1000 * seconds)


def make_app() -> Application:
    book = AddressBookDB()
    return Application([('/addresses/?', AddressBookHandler, {'book': book}),
                        ('/addresses/([^/]+)', AddressBookEntryHandler, {'book': book})],
                       log_function=log_request, compress_response=True)


async def main(port: int, folder: Path) -> None:
    logging.config.dictConfig(logging_config(folder))
    make_app().listen(port, '127.0.0.1')
    log(logging.getLogger('addrservice'), logging.INFO, message='STARTING',
        service_name='Address Book', port=port)
    await asyncio.Event().wait()


if __name__ == '__main__':
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))

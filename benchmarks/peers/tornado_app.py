"""Tornado as it comes, on its own server: no log line, no validation. What addrservice is built
on could do so much if that were all."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from typing import Any

from tornado.web import Application, HTTPError, RequestHandler

from benchmarks.peers.limits import MAX_LIMIT

Book = dict[str, Any]


class BookHandler(RequestHandler):
    """``/addresses``"""

    def initialize(self, book: Book) -> None:
        self.book = book

    async def post(self) -> None:
        entry_id = uuid.uuid4().hex
        self.book[entry_id] = json.loads(self.request.body)
        self.set_status(201)
        self.set_header('Location', f'/addresses/{entry_id}')

    async def get(self) -> None:
        limit = min(int(self.get_argument('limit', '100')), MAX_LIMIT)
        self.write({entry_id: self.book[entry_id] for entry_id in sorted(self.book)[:limit]})


class EntryHandler(RequestHandler):
    """``/addresses/{entry_id}``"""

    def initialize(self, book: Book) -> None:
        self.book = book

    async def get(self, entry_id: str) -> None:
        if entry_id not in self.book:
            raise HTTPError(404)
        self.write(self.book[entry_id])

    async def put(self, entry_id: str) -> None:
        entry = json.loads(self.request.body)
        if entry_id not in self.book:
            raise HTTPError(404)
        self.book[entry_id] = entry
        self.set_status(204)


def make_app() -> Application:
    book = Book()
    return Application([('/addresses', BookHandler, {'book': book}),
                        ('/addresses/([^/]+)', EntryHandler, {'book': book})],
                       log_function=lambda handler: None)


async def main(port: int) -> None:
    make_app().listen(port, '127.0.0.1')
    await asyncio.Event().wait()


if __name__ == '__main__':
    asyncio.run(main(int(sys.argv[1])))

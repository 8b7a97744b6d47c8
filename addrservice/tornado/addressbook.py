"""The address book's resources: the book, and one entry of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from addrservice.tornado.base import BaseRequestHandler
from addrservice.tornado.json_body import to_json

BUFFER_SIZE = 64 * 1024
"""Characters of a listing that are sent as one piece. A listing that fits one
is sent whole, with Content-Length and ETag; a longer one is streamed."""


class AddressBookRequestHandler(BaseRequestHandler):
    """``/addresses``: the whole book."""

    async def post(self) -> None:
        """Adds an entry; ``Location`` says where it is now."""
        nickname = await self.service.create_address(self.read_json())
        self.set_status(201)
        # Under the name that was used: the book has two.
        self.set_header('Location', f'{self.request.path.rstrip("/")}/{nickname}')

    async def get(self) -> None:
        """All entries, as one JSON object from id to entry, in id order."""
        self.set_json_type()
        async with contextlib.aclosing(self._pieces()) as pieces:
            size = 0
            async for piece in pieces:
                self.write(piece)
                size += len(piece)
                if size > BUFFER_SIZE:
                    # Waits until the client has taken it: memory stays bounded.
                    with self.telemetry.waiting_for_client():
                        await self.flush()
                    size = 0
                    if self.request.method == 'HEAD':
                        return

    head = get

    async def _pieces(self) -> AsyncGenerator[str, None]:
        separator = '{'
        async with contextlib.aclosing(self.service.get_all_addresses()) as entries:
            async for nickname, document in entries:
                yield f'{separator}"{nickname}": {to_json(document)}'
                separator = ', '
        yield '{}' if separator == '{' else '}'


class AddressBookEntryRequestHandler(BaseRequestHandler):
    """``/addresses/{id}``: one entry."""

    async def get(self, nickname: str) -> None:
        """The entry, exactly as it was put."""
        self.finish_json(await self.service.get_address(nickname))

    head = get

    async def put(self, nickname: str) -> None:
        """Replaces the entry."""
        await self.service.update_address(nickname, self.read_json())
        self.set_status(204)

    async def delete(self, nickname: str) -> None:
        """Removes the entry."""
        await self.service.delete_address(nickname)
        self.set_status(204)

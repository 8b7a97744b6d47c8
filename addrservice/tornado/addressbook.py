"""The address book's resources: the book, and one entry of it."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
from collections.abc import Sequence

from tornado.web import HTTPError

from addrservice.errors import AddressChanged
from addrservice.tornado.base import BaseRequestHandler
from addrservice.tornado.conditions import Conditions, etag_of
from addrservice.tornado.paging import Page

BUFFER_SIZE = 64 * 1024
"""Characters of a listing that are sent as one piece. A listing that fits one
is sent whole, with Content-Length and ETag; a longer one is streamed."""

MAX_PAGE_SIZE = 1024 * 1024
"""Characters after which a page ends before its limit. It cannot be streamed, as
the link to the next one goes ahead of it."""


class AddressBookRequestHandler(BaseRequestHandler):
    """``/addresses``: the whole book, or a page of it."""

    async def post(self) -> None:
        """Adds an entry; ``Location`` says where it is now."""
        key = await self.service.create_address(self.read_entry())
        self.set_status(201)
        self._headers.fields['Etag'] = etag_of(key.version)
        # Under the name that was used: the book has two. A path that is served, and a nickname,
        # hold nothing that could end a header field.
        self._headers.fields['Location'] = f'{self.request.path.rstrip("/")}/{key.nickname}'

    async def get(self) -> None:
        """Entries as one JSON object from id to entry, in id order."""
        page = Page.of(self.request.query_arguments)
        # A streamed answer has no tag to compare, but what is no list is refused everywhere.
        Conditions.of(self.request.headers)
        if page.with_count:
            self.set_header('X-Total-Count', await self.service.count_addresses())
        self.set_json_type()
        await (self._stream(page) if page.limit is None else self._send_page(page, page.limit))

    head = get

    async def _send_page(self, page: Page, limit: int) -> None:
        names: list[str] = []
        versions: list[str] = []
        documents: list[str] = []
        # One more than asked for tells whether there are more.
        async with contextlib.aclosing(
                self.service.get_address_pages(page.after, limit + 1)) as pages:
            async for found in pages:
                names += found.nicknames
                versions += found.versions
                documents += found.texts
                if sum(map(len, documents)) > MAX_PAGE_SIZE:
                    limit = min(limit, _fitting(documents))
                if len(documents) > limit:
                    break
        link = ''
        if len(documents) > limit:
            link = page.link_to_next(self.request.path, names[limit - 1])
            self._headers.fields['Link'] = link
        self.etag = etag_of(_digest(link, versions[:limit]))
        self.finish(_object(names[:limit], documents[:limit]))

    async def _stream(self, page: Page) -> None:
        pieces: list[str] = []
        versions: list[str] = []
        separator, size = '{', 1  # the brace at the end
        async with contextlib.aclosing(self.service.get_address_pages(page.after)) as pages:
            async for found in pages:
                for nickname, version, json in zip(found.nicknames, found.versions, found.texts):
                    versions.append(version)
                    pieces.append(f'{separator}"{nickname}":{json}')
                    separator, size = ',', size + len(pieces[-1])
                    if size > BUFFER_SIZE:
                        await self._send(pieces)
                        pieces, versions, size = [], [], 1
                        if self.request.method == 'HEAD':
                            return
        self.etag = etag_of(_digest('', versions))  # for what is sent whole
        self.finish(''.join([*pieces, '{}' if separator == '{' else '}']))

    async def _send(self, pieces: Sequence[str]) -> None:
        """Sends a part of the answer, and waits until the client has taken it: memory
        stays bounded."""
        self.write(''.join(pieces))
        with self.admission.waiting_for_client():
            await self.flush()


class AddressBookEntryRequestHandler(BaseRequestHandler):
    """``/addresses/{id}``: one entry."""

    async def get(self, nickname: str) -> None:
        """The entry, exactly as it was put; 304 if the client has this version."""
        entry = await self.service.get_address(nickname)
        if not Conditions.of(self.request.headers).allow_read(entry.version):
            raise _is_not_met()
        self.etag = etag_of(entry.version)
        self.set_json_type()
        self.finish(entry.json)

    head = get

    async def put(self, nickname: str) -> None:
        """Replaces the entry; or makes it, if it shall be new."""
        conditions = self._conditions()
        if conditions.ask_to_create():
            await self._create(nickname)
        else:
            await self._replace(nickname, conditions)

    async def delete(self, nickname: str) -> None:
        """Removes the entry."""
        conditions = self._conditions()
        if_version = None if conditions.are_met_by_any() else await self._version_to_change(
            nickname, conditions)
        await self.service.delete_address(nickname, if_version)
        self.set_status(204)

    async def _create(self, nickname: str) -> None:
        # Conditions come before the body; the store has the last word.
        if await self.service.has_address(nickname):
            raise _is_not_met()
        key = await self.service.create_address(self.read_entry(), nickname)
        self.set_status(201)
        self.set_header('Location', self.request.path.rstrip('/'))
        self._headers.fields['Etag'] = etag_of(key.version)

    async def _replace(self, nickname: str, conditions: Conditions) -> None:
        if_version = None if conditions.are_met_by_any() else await self._version_to_change(
            nickname, conditions)
        version = await self.service.update_address(nickname, self.read_entry(), if_version)
        self.set_status(204)
        self._headers.fields['Etag'] = etag_of(version)

    def _conditions(self) -> Conditions:
        """
        :raises HTTPError: 428, there are none, and there must be (RFC 6585 section 3).
        """
        conditions = Conditions.of(self.request.headers)
        must_be = self.service.config['server']['require-preconditions']
        if must_be and conditions == (None, None):
            raise HTTPError(428, 'Send If-Match with the ETag of the entry that is to be changed, '
                                 'or If-None-Match: * to make a new one')
        return conditions

    async def _version_to_change(self, nickname: str, conditions: Conditions) -> str:
        """The version that a change must be made to.

        Conditions come before the body (RFC 9110 section 13.2.1), and a missing
        entry before conditions. They hold for the version that is there now, and
        the change is made only if it still is.
        """
        entry = await self.service.get_address(nickname)
        if not conditions.allow_change(entry.version):
            raise _is_not_met()
        return entry.version


def _fitting(documents: Sequence[str]) -> int:
    """How many of these are in one page: up to the one that makes it too long."""
    sizes = list(itertools.accumulate(map(len, documents)))
    return bisect.bisect_right(sizes, MAX_PAGE_SIZE) + 1


def _object(names: Sequence[str], documents: Sequence[str]) -> str:
    """One JSON object, from names to documents; none of its parts is copied more than once."""
    if not names:
        return '{}'
    parts = [',"', '', '":', ''] * len(names)
    parts[0], parts[1::4], parts[3::4] = '{"', names, documents
    return ''.join([*parts, '}'])


def _digest(link: str, versions: Sequence[str]) -> str:
    """What tells one listing from another: all that an answer says follows from it."""
    state = ' '.join([link, *versions])
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def _is_not_met() -> AddressChanged:
    return AddressChanged('A condition in If-Match or If-None-Match is not met')

"""The query of a listing, and the link to its next page (RFC 8288)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tornado.web import HTTPError

from addrservice.database.records import is_nickname

MAX_LIMIT = 1000
CHECK_SIZE = 6
"""Bytes of a cursor that tell ours from another's."""

_NUMBER = re.compile(r'[0-9]{1,4}')


class Page(NamedTuple):
    """Which part of the book is asked for."""

    limit: int | None
    """At most so many entries; None stands for all."""

    after: str | None
    """Behind this id; None stands for the start."""

    with_count: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Sequence[bytes]]) -> Page:
        """
        :param arguments: of the query; those with other names are ignored.
        :raises HTTPError: 400, one cannot be understood.
        """
        limit, cursor, count = (_only(arguments, name) for name in ('limit', 'cursor', 'count'))
        return cls(None if limit is None else _limit(limit),
                   None if cursor is None else read_cursor(cursor),
                   count is not None and _flag(count))

    def link_to_next(self, path: str, last: str) -> str:
        """The header ``Link`` of a page that ends with that id."""
        return f'<{path}?limit={self.limit}&cursor={make_cursor(last)}>; rel="next"'


def make_cursor(nickname: str) -> str:
    """The place behind an id, for clients to hand back and not to look into."""
    return base64.urlsafe_b64encode(_check(nickname) + nickname.encode()).rstrip(b'=').decode()


def read_cursor(cursor: str) -> str:
    """The id in a cursor.

    :raises HTTPError: 400, it is none that `make_cursor` has made.
    """
    try:
        data = base64.urlsafe_b64decode(cursor + '=' * (-len(cursor) % 4))
        nickname = data[CHECK_SIZE:].decode()
    except (binascii.Error, ValueError):
        nickname = ''
    if not is_nickname(nickname) or make_cursor(nickname) != cursor:
        raise HTTPError(400, 'cursor: is not one that a Link of this service has had')
    return nickname


def _check(nickname: str) -> bytes:
    return hashlib.blake2b(nickname.encode(), digest_size=CHECK_SIZE, person=b'cursor').digest()


def _only(arguments: Mapping[str, Sequence[bytes]], name: str) -> str | None:
    values = arguments.get(name, [])
    if len(values) > 1:
        raise HTTPError(400, f'{name}: stands more than once')
    return values[0].decode('utf-8', 'replace') if values else None


def _limit(text: str) -> int:
    limit = int(text) if _NUMBER.fullmatch(text) else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise HTTPError(400, f'limit: must be a number from 1 to {MAX_LIMIT}')
    return limit


def _flag(text: str) -> bool:
    if text not in ('true', 'false'):
        raise HTTPError(400, 'count: must be true or false')
    return text == 'true'

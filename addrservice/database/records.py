"""Entries as they lie in a store, and the text of one: what all engines share, and no contract.

Every engine stores the text that `encode_record` makes, and a version beside it, so that engines
differ only in where they lie. Of many entries at once a page is kept by column: what is done with
all names, or all texts, takes one call then, and no object for each entry.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, overload

from addrservice.datamodel import AddressEntry, all_checked_json, checked_json
from addrservice.errors import UnreadableRecord

T = TypeVar('T')

MAX_DECODED_AT_ONCE = 256 * 1024
"""Characters of a page that is decoded in one go: a fifth of a millisecond. The records of a
longer one are decoded one by one, so that others can have their turn in between."""

_NICKNAME = re.compile(r'[A-Za-z0-9-]{1,64}')
_VERSION = re.compile(r'[0-9a-f]{16}')

_NICKNAME_CHARACTERS = f'{string.ascii_letters}{string.digits}-'.encode()
_VERSION_CHARACTERS = b'0123456789abcdef'
_NICKNAME_LENGTHS, _VERSION_LENGTHS = frozenset(range(1, 65)), frozenset((16,))


def is_nickname(text: str) -> bool:
    """Whether a text can be an entry's name: 1 to 64 ASCII letters, digits
    and hyphens. It is safe as a file name and in a URL as it stands."""
    return _NICKNAME.fullmatch(text) is not None


def are_nicknames(texts: Sequence[Any]) -> bool:
    """Whether each of these is a text that can be an entry's name."""
    return _consist_of(texts, _NICKNAME_CHARACTERS, _NICKNAME_LENGTHS)


def new_nickname() -> str:
    """A name that no entry has: 32 hexadecimal digits, a UUID of version 4 (RFC 9562 section
    5.4), for which Python's own would make an object."""
    digits = secrets.token_hex(16)
    return f'{digits[:12]}4{digits[13:16]}{"89ab"[int(digits[16], 16) % 4]}{digits[17:]}'


def checked_nickname(nickname: str | None) -> str:
    """The nickname for a new entry.

    :raises ValueError: it cannot be one.
    """
    if nickname is None:
        return new_nickname()
    if not is_nickname(nickname):
        raise ValueError('a nickname is 1 to 64 letters, digits and hyphens')
    return nickname


def is_version(text: str) -> bool:
    """Whether a text can be a version: 16 hexadecimal digits."""
    return _VERSION.fullmatch(text) is not None


def new_version() -> str:
    """A version that no state of an entry has had, nor one that was deleted
    and made again: random, so that no two writers need to agree on it."""
    return secrets.token_hex(8)


def checked_version(version: str | None) -> str:
    """The version for a write.

    :raises ValueError: it cannot be one.
    """
    if version is None:
        return new_version()
    if not is_version(version):
        raise ValueError('a version is 16 hexadecimal digits')
    return version


class Key(NamedTuple):
    """Which entry, in which state."""

    nickname: str
    version: str


class Record(NamedTuple):
    """One entry as it lies in a store."""

    nickname: str
    version: str
    text: str
    """What `encode_record` made; anything else is damage."""

    place: str
    """Where it lies, for the log if it is damaged; nothing secret, such as a DSN."""


class Stored(NamedTuple):
    """An entry, as it is in a store."""

    nickname: str
    version: str
    json: str
    """Its document as text, known to be good: as it goes to whoever has asked for it."""

    @property
    def entry(self) -> AddressEntry:
        """The entry, each time a new one."""
        return AddressEntry.from_json(self.json)

    @property
    def document(self) -> dict[str, Any]:
        """The document, each time a new one."""
        document: dict[str, Any] = json.loads(self.json)
        return document


class Columns(Sequence[T]):
    """Several of a kind, kept by column; one by one they are made when somebody asks."""

    __slots__ = ('_make', 'nicknames', 'versions', 'texts')

    def __init__(self, make: Callable[[str, str, str], T], nicknames: Sequence[str] = (),
                 versions: Sequence[str] = (), texts: Sequence[str] = ()) -> None:
        """
        :param make: from a nickname, a version and a text to one of them.
        """
        self._make = make
        self.nicknames, self.versions, self.texts = nicknames, versions, texts

    def __len__(self) -> int:
        return len(self.nicknames)

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self.nicknames, self.versions, self.texts)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> Columns[T]: ...

    def __getitem__(self, place: int | slice) -> T | Columns[T]:
        if isinstance(place, slice):
            return Columns(
                self._make, self.nicknames[place], self.versions[place], self.texts[place])
        return self._make(self.nicknames[place], self.versions[place], self.texts[place])


def columns_of(rows: Iterable[Sequence[str]]) -> Columns[Stored]:
    """A page of entries.

    :param rows: of each the nickname, the version and the text.
    """
    return Columns(Stored, *zip(*rows))


def encode_record(entry: AddressEntry) -> str:
    """An entry as the text that engines store: one line of JSON."""
    return entry.to_json()


def decode_record(record: Record) -> Stored:
    """The entry in a stored record.

    :raises UnreadableRecord: the text is not what `encode_record` makes, or the
        version not what `new_version` does.
    """
    try:
        nickname, version, text, _ = record
        if not _VERSION.fullmatch(version):
            raise ValueError('its version is not 16 hexadecimal digits')
        return Stored(nickname, version, checked_json(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableRecord('The stored entry cannot be read', record.place) from error


def decode_page(records: Sequence[Record]) -> Columns[Stored] | None:
    """The entries in stored records, as `decode_record` has them; None, if not all of them can be
    read, or only in more time than others should wait."""
    page = records if isinstance(records, Columns) else columns_of(
        record[:3] for record in records)
    try:
        if (sum(map(len, page.texts)) <= MAX_DECODED_AT_ONCE
                and _consist_of(page.versions, _VERSION_CHARACTERS, _VERSION_LENGTHS)):
            return Columns(
                Stored, page.nicknames, page.versions, all_checked_json(page.texts))
    except (TypeError, ValueError, RecursionError):
        pass
    return None  # who decodes them one by one learns which cannot be read, and why


def _consist_of(texts: Sequence[Any], characters: bytes, lengths: frozenset[int]) -> bool:
    """Whether each is a text of one of these lengths and of these characters alone; as a pattern
    would tell of each, in a sixth of the time."""
    try:
        return (lengths.issuperset(map(len, texts))
                and not ''.join(texts).encode().translate(None, characters))
    except (TypeError, UnicodeEncodeError):
        return False

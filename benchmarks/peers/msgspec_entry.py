"""The entry as msgspec has it, for all peers that use msgspec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from benchmarks.peers.limits import (
    ANY_TEXT, DIGITS, EMAIL, FILLED_TEXT, MAX_ITEMS, MAX_NUMBER, NAME)


def _text(limits: dict[str, Any]) -> Meta:
    return Meta(max_length=limits['maxLength'], pattern=limits['pattern'])


_NUMBER, _ITEMS = Meta(ge=0, le=MAX_NUMBER), Meta(max_length=MAX_ITEMS)

Kind = Literal['home', 'work']
Name = Annotated[str, _text(NAME)]
AnyText = Annotated[str, _text(ANY_TEXT)]
FilledText = Annotated[str, _text(FILLED_TEXT)]
Whole = Annotated[int, _NUMBER]
Number = Whole | Annotated[float, _NUMBER]
Digits = Whole | Annotated[str, _text(DIGITS)]


class Address(Struct, forbid_unknown_fields=True, kw_only=True):
    """A place."""

    kind: Kind
    building_name: AnyText | UnsetType = UNSET
    unit_number: Number | UnsetType = UNSET
    street_number: Number | AnyText | UnsetType = UNSET
    street_name: FilledText
    locality: AnyText | UnsetType = UNSET
    city: AnyText | UnsetType = UNSET
    province: AnyText | UnsetType = UNSET
    pincode: Number | FilledText
    country: FilledText


class Phone(Struct, forbid_unknown_fields=True, kw_only=True):
    """A phone or fax number in parts."""

    kind: Kind
    country_code: Digits
    area_code: Digits | UnsetType = UNSET
    local_number: Digits


class Email(Struct, forbid_unknown_fields=True, kw_only=True):
    """An e-mail address."""

    kind: Kind
    email: Annotated[str, _text(EMAIL)]


class Entry(Struct, forbid_unknown_fields=True, kw_only=True):
    """One person in the address book."""

    full_name: Name
    addresses: Annotated[list[Address], _ITEMS] | UnsetType = UNSET
    phone_numbers: Annotated[list[Phone], _ITEMS] | UnsetType = UNSET
    fax_numbers: Annotated[list[Phone], _ITEMS] | UnsetType = UNSET
    emails: Annotated[list[Email], _ITEMS] | UnsetType = UNSET


Book = dict[str, Entry]


def first(book: Book, limit: int) -> Book:
    """The first entries in the order of their ids."""
    return {entry_id: book[entry_id] for entry_id in sorted(book)[:limit]}

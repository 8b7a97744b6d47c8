"""The entry as pydantic has it, for all peers on FastAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.peers.limits import (
    ANY_TEXT, DIGITS, EMAIL, FILLED_TEXT, MAX_ITEMS, MAX_NUMBER, NAME)


def _text(limits: dict[str, Any]) -> Any:
    return Field(max_length=limits['maxLength'], pattern=limits['pattern'])


_NUMBER, _ITEMS = Field(ge=0, le=MAX_NUMBER), Field(max_length=MAX_ITEMS)

Kind = Literal['home', 'work']
Name = Annotated[str, _text(NAME)]
AnyText = Annotated[str, _text(ANY_TEXT)]
FilledText = Annotated[str, _text(FILLED_TEXT)]
Whole = Annotated[int, _NUMBER]
Number = Whole | Annotated[float, _NUMBER]
Digits = Whole | Annotated[str, _text(DIGITS)]


class Model(BaseModel):
    """Takes nothing that is not said, and turns nothing into something else."""

    # Its own engine for patterns does not look ahead, which those of the schema do.
    model_config = ConfigDict(extra='forbid', strict=True, regex_engine='python-re')


class Address(Model):
    """A place."""

    kind: Kind
    building_name: AnyText | None = None
    unit_number: Number | None = None
    street_number: Number | AnyText | None = None
    street_name: FilledText
    locality: AnyText | None = None
    city: AnyText | None = None
    province: AnyText | None = None
    pincode: Number | FilledText
    country: FilledText


class Phone(Model):
    """A phone or fax number in parts."""

    kind: Kind
    country_code: Digits
    area_code: Digits | None = None
    local_number: Digits


class Email(Model):
    """An e-mail address."""

    kind: Kind
    email: Annotated[str, _text(EMAIL)]


class Entry(Model):
    """One person in the address book."""

    full_name: Name
    addresses: Annotated[list[Address], _ITEMS] | None = None
    phone_numbers: Annotated[list[Phone], _ITEMS] | None = None
    fax_numbers: Annotated[list[Phone], _ITEMS] | None = None
    emails: Annotated[list[Email], _ITEMS] | None = None

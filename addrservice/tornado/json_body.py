"""Documents as bytes: what of a request is JSON, with nothing lost, and the way back."""

from __future__ import annotations

import functools
import json
from decimal import Decimal
from typing import Any

import msgspec
from tornado.web import HTTPError

from addrservice.datamodel import AddressEntry
from addrservice.errors import InvalidJSON
from addrservice.tornado.messages import Headers
from addrservice.utils.tracing import traced

JSON_TYPES = ('', 'application/json', 'application/x-www-form-urlencoded')
"""Media types that are read as JSON: none, the right one, and what `curl -d`
says of any data; that is never parsed as a form."""


def require_json_type(headers: Headers) -> None:
    """:raises HTTPError: 415, the body is neither JSON nor may be read as such."""
    if fault := _fault_of_type(headers.fields.get('Content-Type', '')):
        raise HTTPError(415, fault)
    if headers.fields.get('Content-Encoding', 'identity').lower() != 'identity':
        raise HTTPError(415, 'The Content-Encoding must be gzip, or none')


@functools.lru_cache(maxsize=64)  # nearly all say one of a few
def _fault_of_type(content_type: str) -> str | None:
    """What keeps a body of this type from being read as JSON, if anything does."""
    media_type, *parameters = content_type.lower().split(';')
    if media_type.strip() not in JSON_TYPES:
        return 'The Content-Type must be application/json'
    charsets = [value.strip(' "') for name, _, value in
                (parameter.partition('=') for parameter in parameters)
                if name.strip() == 'charset']
    return None if charsets in ([], ['utf-8']) else 'The charset must be UTF-8'


def parse_json(body: bytes) -> Any:
    """The document that a body holds, with nothing lost.

    Only what comes back as it went in is accepted: no member name twice (RFC
    8259 section 4), no number that would come back as another, no NaN or
    Infinity. A BOM is refused, as are encodings other than UTF-8 (section 8.1).

    :raises InvalidJSON: with what is wrong, and where.
    """
    try:
        document = _read(body)
        # Written anew it is the same, but for white space: so nothing has been lost.
        if _write(document) == msgspec.json.format(body, indent=-1):
            return document
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # the careful parser says what is wrong, and where
    return _parse_with_care(body)


@traced
def read_entry(body: bytes) -> object:
    """The entry that a body holds, with nothing lost; or, if it holds none, its document, for
    the rules to say why.

    :raises InvalidJSON: as in `parse_json`.
    """
    try:
        entry = AddressEntry.from_body(body)
        as_sent = msgspec.json.format(body, indent=-1)
        # Members in another order are nothing lost.
        if entry.to_json().encode() == as_sent or _write(_read(body)) == as_sent:
            return entry
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass  # whoever looks more closely says what is wrong, and where
    return parse_json(body)


def _parse_with_care(body: bytes) -> Any:
    try:
        return _DECODER.decode(body.decode('utf-8'))
    except InvalidJSON:
        raise
    except UnicodeDecodeError as error:
        raise InvalidJSON(f'The body is not UTF-8 at byte {error.start}') from error
    except json.JSONDecodeError as error:
        raise InvalidJSON('The body is not JSON at line '
                          f'{error.lineno}, column {error.colno}') from error
    except RecursionError as error:
        raise InvalidJSON('The document is nested too deeply') from error
    except ValueError as error:
        raise InvalidJSON('A number in the document is too long') from error


def to_json(document: object) -> str:
    """A document as the text of an answer."""
    return json.dumps(document, ensure_ascii=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise InvalidJSON('A member name stands twice in one object')
    return document


def _number(text: str) -> float:
    number = float(text)
    if not _is_exact(number, text):
        raise InvalidJSON('A number in the document cannot be kept exactly')
    return number


def _is_exact(number: float, text: str) -> bool:
    if number == 0:
        return not text.lstrip('-0.').rstrip('0123456789+-').rstrip('eE')
    try:
        return Decimal(repr(number)) == Decimal(text)
    except ArithmeticError:  # infinite, or with an exponent beyond all bounds
        return False


def _refuse_constant(name: str) -> float:
    raise InvalidJSON(f'{name} is not JSON')


_read, _write = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_constant=_refuse_constant)
"""`json.loads` would make one for each body."""

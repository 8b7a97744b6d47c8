"""The object data model: what an address book entry is, and its way from and to a document.

An entry travels as a JSON document, described in ``schema/address-book-v1.0.json``; inside the
service it is an object. Each member is declared once, as a field with a rule::

    street_name: str = attrs.field(validator=FILLED_TEXT)

That line is the check when an object is built, the check when the attribute is assigned, the
conversion from and to the document, and the source of every fault found in a document. It also
says what `msgspec`, a fast reader of JSON, may accept without another look: a document that
msgspec refuses is looked at member by member, to say what is wrong with it.

``None`` stands for an absent member and never occurs in a document. An absent and an empty list,
an absent and an empty text, 1 and 1.0 are different documents: each comes back as it was put.
"""

from __future__ import annotations

import functools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, Self

import attrs
import msgspec

from addrservice.errors import Fault, InvalidAddress

MAX_TEXT = 256  # characters, like all lengths here
MAX_NAME = 512
MAX_EMAIL = 254  # RFC 5321, 4.5.3.1.3: 256 with the angle brackets
MAX_DIGITS = 15
MAX_NUMBER = 10 ** MAX_DIGITS - 1  # below 2**53: no JSON reader rounds it
MAX_ITEMS = 50
MAX_FAULTS = 100
MAX_KEPT = 4096  # of a text that is remembered as a good one
MAX_STEP = 64  # of a member name that a caller made up, in a pointer


# --- Patterns ---
#
# The schema has them, too, and they mean the same to Python and to ECMA-262 in Unicode mode. Hence
# no \w, \s or \S, which differ; and in Python $ also matches before a final newline, hence (?!\n).

_SPACES = r' \u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000'  # Unicode's White_Space
_UNSAFE = r'\u0000-\u001F\u007F-\u009F\uD800-\uDFFF'  # C0, DEL and C1 controls, lone surrogates

ANY_PATTERN = rf'^[^{_UNSAFE}]*$(?!\n)'
FILLED_PATTERN = rf'^(?![{_SPACES}]*$)[^{_UNSAFE}]*$(?!\n)'
DIGITS_PATTERN = r'^[0-9]+$(?!\n)'

_NO_SPACES = rf'[^{_SPACES}{_UNSAFE}]+$(?!\n)'
_ATOM = r'[^"(),.:;<>@\[\\\]]+'
_ALNUM = r'[^!-/:-@\[-`{-~]'  # of ASCII: letters and digits; beyond: all
_ALNUM_OR_HYPHEN = r'[^!-,./:-@\[-`{-~]'
_LABEL = rf'{_ALNUM}(?:{_ALNUM_OR_HYPHEN}{{0,61}}{_ALNUM})?'

EMAIL_PATTERN = (
    rf'^(?={_NO_SPACES})(?=[^@]{{1,64}}@){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+$')
"""A Mailbox of RFC 5321, 4.1.2, whose local part is a Dot-string and whose domain has two labels
or more; with RFC 6531, 3.3, both may go beyond ASCII. Dots and "@" fit in one place only and a
label gives back at most 62 characters: the time to match is linear in the length."""

_find_unsafe = re.compile(f'[{_UNSAFE}]')
_find_doubtful = re.compile(rf'[\x7F-\x9F]|\\[^"\\]|:"[{_SPACES}]*"').search
"""In an entry as JSON: what may be a character that no text may hold, or a text that is blank. In
JSON, C0 controls stand behind a backslash, and a quote that belongs to a text does, too."""


_find_odd_start = re.compile(':"[ "]').search
"""Of a value that is a text: it begins with a space, or with its end."""


def _is_doubtful(text: str) -> bool:
    """Look for what `_find_doubtful` finds; in nearly all entries there is no sign of it."""
    is_printable = '\x7f' not in text if text.isascii() else text.isprintable()
    has_signs = not is_printable or '\\' in text or _find_odd_start(text) is not None
    return has_signs and _find_doubtful(text) is not None


# --- Rules ---


class Rule(ABC):
    """What one member may hold: a validator for attrs that knows documents, too."""

    @abstractmethod
    def complaint(self, value: object) -> str:
        """Say what is wrong with an object's value, without quoting it; ``''``: nothing is."""

    @abstractmethod
    def shape(self) -> Any:
        """Tell msgspec what a document's value may be; never more than ``faults`` allows, where
        `_is_doubtful` has nothing against the whole."""

    def load(self, value: Any) -> object:
        """Turn a document's value into an object's.

        :raises LookupError, TypeError, ValueError: it cannot be; ``faults`` says why.
        """
        return value

    def dump(self, value: Any) -> object:
        """Turn an object's value into a document's."""
        return value

    def faults(self, value: object) -> Iterable[Fault]:
        """Find what is wrong with a document's value. Pointers start at that value."""
        complaint = self.complaint(value)
        return [Fault('', complaint)] if complaint else []

    def __call__(self, instance: object, field: attrs.Attribute[Any], value: object) -> None:
        """Check a value that attrs is about to store, or just stored in a new object.

        :raises InvalidAddress: the attribute may not have it.
        """
        complaint = self.complaint(value)
        if complaint and not (value is None and field.default is None):  # None: it is absent
            raise InvalidAddress([Fault(f'/{field.name}', complaint)])


class Text(Rule):
    """Text that is short enough and fits a pattern."""

    def __init__(self, max_length: int, pattern: str, complaint: str) -> None:
        """
        :param complaint: what to say of a text that does not fit the pattern.
        """
        self._max_length = max_length
        # One look at all texts together finds what these forbid.
        self._own_pattern = None if pattern in (ANY_PATTERN, FILLED_PATTERN) else pattern
        self._match = re.compile(pattern).match
        self._complaint = complaint

    def shape(self) -> Any:
        return Annotated[str, msgspec.Meta(max_length=self._max_length,
                                           pattern=self._own_pattern)]

    def complaint(self, value: object) -> str:
        if not isinstance(value, str):
            return 'must be text'
        if len(value) > self._max_length:  # asked first: it bounds the time to match
            return f'must have at most {self._max_length} characters'
        return '' if self._match(value) else self._complaint


class Number(Rule):
    """A number from 0 to MAX_NUMBER or, given a rule for it, a text instead."""

    def __init__(self, *, whole: bool = False, text: Text | None = None) -> None:
        """
        :param whole: refuse fractions. 1.0 has none, as JSON Schema sees it.
        """
        self._whole = whole
        self._text = text

    def shape(self) -> Any:
        fraction = msgspec.Meta(ge=0, le=MAX_NUMBER, multiple_of=1 if self._whole else None)
        number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)] | Annotated[float, fraction]
        return number | self._text.shape() if self._text else number

    def complaint(self, value: object) -> str:
        if self._text and isinstance(value, str):
            return self._text.complaint(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return 'must be a number or text' if self._text else 'must be a number'
        if not 0 <= value <= MAX_NUMBER:  # not "<" and ">": NaN is to be refused
            return f'must be from 0 to {MAX_NUMBER}'
        return 'must be a whole number' if self._whole and value % 1 else ''


class AddressType(Enum):
    """What an address, a phone, a fax or an e-mail is for."""

    HOME = 'home'
    WORK = 'work'


class Kind(Rule):
    """An AddressType; in a document, its value."""

    _types: Mapping[object, AddressType] = {kind.value: kind for kind in AddressType}
    _complaint = 'must be ' + ' or '.join(f'"{value}"' for value in _types)

    def shape(self) -> Any:
        return Literal[tuple(self._types)]

    def complaint(self, value: object) -> str:
        return '' if isinstance(value, AddressType) else self._complaint

    def load(self, value: object) -> AddressType:
        return self._types[value]

    def dump(self, value: AddressType) -> object:
        return value.value

    def faults(self, value: object) -> Iterable[Fault]:
        # A list, for a document's value need not be hashable.
        return [] if value in list(self._types) else [Fault('', self._complaint)]


class ListOf(Rule):
    """A list; in an object, a tuple, which cannot change behind the checks."""

    def __init__(self, item: type[Model]) -> None:
        self._item = item

    def shape(self) -> Any:
        items: Any = list[self._item.shape]  # type: ignore[name-defined]  # made at run time
        return Annotated[items, msgspec.Meta(max_length=MAX_ITEMS)]

    def complaint(self, value: object) -> str:
        if not isinstance(value, tuple):
            return 'must be a list'
        if not all(isinstance(item, self._item) for item in value):
            return f'must hold nothing but {self._item.__name__} objects'
        return self._length_complaint(value)

    def load(self, value: object) -> object:
        if not isinstance(value, list) or self._length_complaint(value):
            raise TypeError('not a list of that length')
        return tuple(map(self._item.load, value))

    def dump(self, value: Iterable[Model]) -> object:
        return [item.to_api_dm() for item in value]

    def faults(self, value: object) -> Iterable[Fault]:
        if not isinstance(value, list):
            return [Fault('', 'must be a list')]
        if complaint := self._length_complaint(value):
            return [Fault('', complaint)]  # and no look at the items: they may be very many
        return self._item_faults(value)

    def _item_faults(self, items: Iterable[object]) -> Iterator[Fault]:
        for index, item in enumerate(items):
            yield from _beneath(f'/{index}', self._item.faults(item))

    def _length_complaint(self, value: list[object] | tuple[object, ...]) -> str:
        return f'must have at most {MAX_ITEMS} items' if len(value) > MAX_ITEMS else ''


_any_complaint = 'must not hold control characters or lone surrogates'
_filled_complaint = 'must not be blank nor hold control characters or lone surrogates'

ANY_TEXT = Text(MAX_TEXT, ANY_PATTERN, _any_complaint)
FILLED_TEXT = Text(MAX_TEXT, FILLED_PATTERN, _filled_complaint)
NAME = Text(MAX_NAME, FILLED_PATTERN, _filled_complaint)
EMAIL = Text(MAX_EMAIL, EMAIL_PATTERN, 'must be an e-mail address')
NUMBER = Number()
NUMBER_OR_ANY_TEXT = Number(text=ANY_TEXT)
NUMBER_OR_FILLED_TEXT = Number(text=FILLED_TEXT)
DIGITS = Number(whole=True, text=Text(MAX_DIGITS, DIGITS_PATTERN, 'must be digits, 0 to 9'))
KIND = Kind()


# --- Pointers (RFC 6901) ---


def _step(name: str) -> str:
    """Write a member name that a caller made up as a step of a JSON Pointer, within bounds."""
    shown = name if len(name) <= MAX_STEP else name[:MAX_STEP] + '…'
    printable = _find_unsafe.sub('\N{REPLACEMENT CHARACTER}', shown)
    return '/' + printable.replace('~', '~0').replace('/', '~1')


def _beneath(step: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    """Let the pointers of faults start one step higher."""
    return (Fault(step + pointer, message) for pointer, message in faults)


# --- The entry and its parts ---


def _struct_field(field: attrs.Attribute[Any]) -> tuple[Any, ...]:
    """Declare a member for msgspec. Where it may be absent, it still may not be null."""
    shape = field.validator.shape()  # type: ignore[union-attr]  # every field has a rule
    if field.default is attrs.NOTHING:
        return field.name, shape
    return field.name, shape | msgspec.UnsetType, msgspec.UNSET


@attrs.define
class Model:
    """What an entry and its parts have in common: the way from and to a document."""

    NOUN: ClassVar[str]
    shape: ClassVar[Any]
    """What msgspec reads its documents as; made of what the rules say."""

    _rules: ClassVar[Mapping[str, Rule]]

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        fields = [field for field in attrs.fields(cls) if field.init]
        cls._rules = {field.name: field.validator for field in fields}
        cls.shape = msgspec.defstruct(cls.__name__, map(_struct_field, fields), kw_only=True,
                                      forbid_unknown_fields=True, gc=False)

    @classmethod
    def from_api_dm(cls, document: object) -> Self:
        """Make an object from a document.

        :raises InvalidAddress: it is not a good one; lists its faults, the first MAX_FAULTS.
        """
        try:
            return cls.load(document)
        except (LookupError, TypeError, ValueError):
            faults = tuple(islice(cls.faults(document), MAX_FAULTS))
            if not faults:
                raise  # then the mistake is in here, not in the document
        raise InvalidAddress(faults)

    def to_api_dm(self) -> dict[str, object]:
        """Make the document of this object, equal to the one that it was made from."""
        document = {}
        for name, rule in self._rules.items():
            value = getattr(self, name)
            if value is not None:
                document[name] = rule.dump(value)
        return document

    @classmethod
    def load(cls, document: Any) -> Self:
        """Make an object, hoping that the document is good: fast, and curt if it is not.

        :raises LookupError, TypeError, ValueError: it is not; ``faults`` says why.
        """
        if not isinstance(document, dict):
            raise TypeError('not an object')
        rules, members = cls._rules, {}
        for name, value in document.items():
            if value is None:
                raise TypeError('null')  # it would pass for an absent member
            members[name] = rules[name].load(value)
        return cls(**members)

    @classmethod
    def faults(cls, document: object) -> Iterator[Fault]:
        """Find what is wrong with a document, one fault each time the caller wants another."""
        if not isinstance(document, dict):
            yield Fault('', f'must be an object that describes {cls.NOUN}')
            return
        for name, value in document.items():
            yield from cls._member_faults(name, value)
        for field in attrs.fields(cls):
            if field.default is attrs.NOTHING and field.name not in document:
                yield Fault(f'/{field.name}', 'is required')

    @classmethod
    def _member_faults(cls, name: object, value: object) -> Iterable[Fault]:
        if not isinstance(name, str):
            return [Fault('', 'has a member whose name is not text')]
        if name not in cls._rules:
            return [Fault(_step(name), f'is not a member of {cls.NOUN}')]
        return _beneath(f'/{name}', cls._rules[name].faults(value))


@attrs.define(kw_only=True)
class Address(Model):
    """A place. Some numbers are text: 221B is one, and 00144 is not 144."""

    NOUN: ClassVar = 'an address'

    kind: AddressType = attrs.field(validator=KIND)
    building_name: str | None = attrs.field(default=None, validator=ANY_TEXT)
    unit_number: float | None = attrs.field(default=None, validator=NUMBER)
    street_number: float | str | None = attrs.field(default=None, validator=NUMBER_OR_ANY_TEXT)
    street_name: str = attrs.field(validator=FILLED_TEXT)
    locality: str | None = attrs.field(default=None, validator=ANY_TEXT)
    city: str | None = attrs.field(default=None, validator=ANY_TEXT)
    province: str | None = attrs.field(default=None, validator=ANY_TEXT)
    pincode: float | str = attrs.field(validator=NUMBER_OR_FILLED_TEXT)
    country: str = attrs.field(validator=FILLED_TEXT)


@attrs.define(kw_only=True)
class Phone(Model):
    """A phone or fax number in parts: whole numbers, or text that keeps a leading zero."""

    NOUN: ClassVar = 'a phone or fax number'

    kind: AddressType = attrs.field(validator=KIND)
    country_code: float | str = attrs.field(validator=DIGITS)
    area_code: float | str | None = attrs.field(default=None, validator=DIGITS)
    local_number: float | str = attrs.field(validator=DIGITS)


@attrs.define(kw_only=True)
class Email(Model):
    """An e-mail address."""

    NOUN: ClassVar = 'an e-mail'

    kind: AddressType = attrs.field(validator=KIND)
    email: str = attrs.field(validator=EMAIL)


def _as_tuple(items: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """Take any iterable; what is none is left for the rule to refuse."""
    return tuple(items) if isinstance(items, Iterable) else items


def _unfold_first(entry: AddressEntry, _field: attrs.Attribute[Any], value: Any) -> Any:
    """Let an entry have all its parts before one of them is changed."""
    entry.unfold()
    return value


@attrs.define(kw_only=True,
              on_setattr=[_unfold_first, attrs.setters.convert, attrs.setters.validate])
class AddressEntry(Model):
    """One person in the address book. Give a list as any iterable; it is kept as a tuple.

    An entry that was made from a document stays folded, as JSON text that is known to be good,
    until somebody looks at a part of it: most are on their way into the store or out of it.
    """

    NOUN: ClassVar = 'an entry'

    full_name: str = attrs.field(validator=NAME)
    addresses: tuple[Address, ...] | None = attrs.field(
        default=None, converter=_as_tuple, validator=ListOf(Address))
    phone_numbers: tuple[Phone, ...] | None = attrs.field(
        default=None, converter=_as_tuple, validator=ListOf(Phone))
    fax_numbers: tuple[Phone, ...] | None = attrs.field(
        default=None, converter=_as_tuple, validator=ListOf(Phone))
    emails: tuple[Email, ...] | None = attrs.field(
        default=None, converter=_as_tuple, validator=ListOf(Email))
    _text: str | None = attrs.field(
        default=None, init=False, eq=False, repr=False, on_setattr=attrs.setters.NO_OP)
    """The whole of a folded entry."""

    @classmethod
    def from_api_dm(cls, document: object) -> Self:
        try:
            return cls._folded(_written(msgspec.convert(document, cls.shape)))
        except (msgspec.ValidationError, ValueError):
            pass  # the rules have more to say about it
        return super().from_api_dm(document)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make an object from a document that is text, as ``to_json`` writes it.

        :raises InvalidAddress: it is not the document of an entry.
        :raises ValueError: it is not JSON.
        """
        return cls._folded(checked_json(text))

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Make an object from a document that is bytes, in the shortest way: what is wrong with
        it is not told, nor whether all of it is in the object.

        :raises ValueError: it may not be the document of an entry.
        """
        try:
            return cls._folded(_check(body))
        except msgspec.DecodeError as error:
            raise ValueError from error

    def to_json(self) -> str:
        """Write the document of this object: one line of JSON, nothing in it without need."""
        return self._text or msgspec.json.encode(self.to_api_dm()).decode()

    def unfold(self) -> None:
        """Make the parts of a folded entry."""
        if self._text:
            text, self._text = self._text, None
            whole = self.load(json.loads(text))
            for name in self._rules:
                object.__setattr__(self, name, getattr(whole, name))

    @classmethod
    def _folded(cls, text: str) -> Self:
        entry = cls.__new__(cls)
        object.__setattr__(entry, '_text', text)  # past what checks the parts
        return entry

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: the parts of a folded entry."""
        if name not in self._rules:
            raise AttributeError(name, name=name, obj=self)
        self.unfold()
        return getattr(self, name)


def checked_json(text: str) -> str:
    """Write the document of an entry that a text holds the way ``to_json`` does.

    :raises InvalidAddress: it is not the document of an entry.
    :raises ValueError: it is not JSON.
    """
    try:
        return _checked(text) if len(text) <= MAX_KEPT else _check(text)
    except (msgspec.DecodeError, ValueError):
        pass  # the rules have more to say about it
    return AddressEntry.from_api_dm(json.loads(text)).to_json()


def all_checked_json(texts: Sequence[str]) -> list[str]:
    """As ``checked_json`` for each of them.

    :raises InvalidAddress, ValueError: one of them is no such document.
    """
    try:
        if max(map(len, texts), default=0) <= MAX_KEPT:
            return list(map(_checked, texts))
    except (msgspec.DecodeError, ValueError):
        pass
    return list(map(checked_json, texts))


_read_entry = msgspec.json.Decoder(AddressEntry.shape).decode


def _check(text: str | bytes) -> str:
    """Write the document that a text holds the way ``to_json`` does.

    :raises DecodeError, ValueError: it may hold none.
    """
    return _written(_read_entry(text))


def _written(shaped: Any) -> str:
    """Write what msgspec has taken for a document.

    :raises ValueError: it may be none.
    """
    text = msgspec.json.encode(shaped).decode()
    if _is_doubtful(text):
        raise ValueError('a text in it may not be allowed')
    return text


_checked = functools.lru_cache(maxsize=1024)(_check)
"""What is read again and again is checked once."""

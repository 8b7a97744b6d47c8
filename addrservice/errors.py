"""Every error that the address book can report.

The tree says *what happened*; which HTTP status that becomes is decided
once, in ``STATUS_OF`` at the edge (``addrservice/tornado/base.py``)::

    AddrServiceError
    ├── ConfigError            the configuration cannot be used
    ├── InvalidJSON            a body is not a JSON document
    ├── InvalidAddress         a document is not an address book entry
    ├── AddressNotFound        no entry has that nickname      (a KeyError too)
    ├── AddressExists          the nickname is taken
    ├── AddressChanged         an entry has another version than was expected
    ├── Overloaded             more work than this process takes on at once
    ├── ProfilerBusy           a profile is being taken, and there is one at a time
    └── StorageError           the store failed; trying again is no help
        ├── UnreadableRecord   one record is damaged, the others are fine
        └── StorageUnavailable the store cannot be reached *now*
            └── OutcomeUnknown it was asked, and no answer came

A new error is a class here and a row there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong with a document."""

    pointer: str
    """Where: a JSON Pointer (RFC 6901); ``""`` is the whole document."""

    message: str
    """What: a sentence without the offending value in it."""


class AddrServiceError(Exception):
    """Base of all errors that this project raises on purpose."""

    reason: ClassVar[str] = ''
    """A constant phrase, fit for an HTTP status line; empty: whatever phrase
    is standard for the status."""

    def __init__(self, detail: str = '') -> None:
        """
        :param detail: one sentence for the person who made the request. It
            may quote that request, never a path, a statement or a secret.
        """
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class ConfigError(AddrServiceError):
    """The configuration cannot be used; the detail names file and key."""


class InvalidJSON(AddrServiceError, ValueError):
    """A body is not one JSON document (RFC 8259) that can be kept exactly."""

    reason = 'Invalid JSON body'


class InvalidAddress(AddrServiceError, ValueError):
    """A document does not describe an address book entry."""

    reason = 'JSON Schema validation failed'

    def __init__(self, faults: Iterable[Fault]) -> None:
        """
        :param faults: what is wrong, at least one, in document order.
        """
        self.faults = tuple(faults)
        first = self.faults[0]
        super().__init__(f'{first.pointer or "document"}: {first.message}')


class AddressNotFound(AddrServiceError, KeyError):
    """No entry has that nickname."""


class AddressExists(AddrServiceError):
    """The nickname is taken."""


class AddressChanged(AddrServiceError):
    """An entry has another version than the one that a change is for."""


class Overloaded(AddrServiceError):
    """This process already has as much work as it takes on at once."""


class ProfilerBusy(AddrServiceError):
    """A profile is being taken already; there is one at a time."""


class StorageError(AddrServiceError):
    """The store failed in a way that trying again will not mend.

    ``str()`` and ``detail`` are for the client. What an operator needs (a
    file name, the driver's message) goes into ``cause``, and into logs only.
    """

    def __init__(self, detail: str = '', cause: str = '') -> None:
        """
        :param detail: one sentence for the client.
        :param cause: what failed, for the log.
        """
        super().__init__(detail)
        self.cause = cause


class UnreadableRecord(StorageError):
    """One record cannot be read; others are not affected."""


class StorageUnavailable(StorageError):
    """The store cannot do it now; trying again later may work."""


class OutcomeUnknown(StorageUnavailable):
    """The store was asked for a change and has not answered: it may be made, or not."""

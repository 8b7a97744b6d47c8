"""Log lines as logfmt, and the context that every line of a request shares."""

from __future__ import annotations

import contextvars
import copy
import json
import logging
import re
import traceback
from collections.abc import Mapping
from types import MappingProxyType

MAX_VALUE_LENGTH = 16 * 1024
"""Characters of one value that reach the log; the middle of a longer one is
left out, so that nobody can fill a disk with one request."""

_NEEDS_ESCAPE = re.compile(r'["\\]')
_SHORT_ESCAPES = {'"': '\\"', '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t'}
_BARE_KEY = re.compile(r'[A-Za-z_][A-Za-z0-9_.-]*')

# Replaced as a whole, never changed in place: tasks started by a request
# share the object, and would see each other's changes.
_LOG_CONTEXT: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar(
    'log_context', default=MappingProxyType({}))


def get_log_context() -> Mapping[str, object]:
    """What every line of the current task carries; read-only."""
    return _LOG_CONTEXT.get()


def set_log_context(**fields: object) -> None:
    """Adds fields to every line that the current task will log."""
    _LOG_CONTEXT.set(MappingProxyType({**_LOG_CONTEXT.get(), **fields}))


def logfmt(fields: Mapping[str, object]) -> str:
    """``{'a': 1, 'b': 'x y'}`` as ``a=1 b="x y"``, always on one line.

    Numbers and booleans stand bare, everything else in double quotes with the
    escapes of JSON (RFC 8259 section 7) for quotes, backslashes and whatever
    is not printable; a reader that undoes them gets the very value back.

    :param fields: names and values, in the order in which they are written; a
        value of None is left out.
    """
    return ' '.join(f'{_key(name)}={_value(value)}'
                    for name, value in fields.items() if value is not None)


def log(logger: logging.Logger, level: int, **fields: object) -> None:
    """Logs one line of logfmt: the request's own fields, then these.

    :param logger: the logger that the caller was given.
    :param level: as in the `logging` module.
    :param fields: the line's own names and values.
    """
    log_line(logger, level, {**get_log_context(), **fields}, stacklevel=2)


def log_line(logger: logging.Logger, level: int, fields: Mapping[str, object],
             stacklevel: int = 1) -> None:
    """Logs one line of logfmt with these fields alone.

    :param stacklevel: whom the line names as its origin: 1 the caller, 2 its
        caller, and so on.
    """
    if logger.isEnabledFor(level):
        logger.log(level, '%s', logfmt(fields), stacklevel=stacklevel + 1,
                   extra={'logfmt': True})


def one_line_trace(error: BaseException) -> str:
    """A traceback as text; `logfmt` makes one line of it."""
    return ''.join(traceback.format_exception(error)).rstrip()


class LogfmtFormatter(logging.Formatter):
    """Keeps every record on one line of logfmt, whoever logged it.

    Records of `log` are logfmt already. The text of any other record becomes
    the value of ``message``, its traceback the value of ``trace``.
    """

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record if hasattr(record, 'logfmt') else _as_logfmt(record))


def _as_logfmt(record: logging.LogRecord) -> logging.LogRecord:
    error = record.exc_info[1] if record.exc_info else None
    fields = {'message': record.getMessage(), 'trace': error and one_line_trace(error)}
    quoted = copy.copy(record)
    quoted.msg, quoted.args = logfmt({**get_log_context(), **fields}), None
    quoted.exc_info = quoted.exc_text = quoted.stack_info = None
    return quoted


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else '_' + re.sub(r'[^A-Za-z0-9_.-]', '_', name)


def _value(value: object) -> str:
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return f'"{_escape(_shorten(str(value)))}"'


def _shorten(text: str) -> str:
    if len(text) <= MAX_VALUE_LENGTH:
        return text
    # A traceback says most at its end, a target at its start: keep both.
    half = MAX_VALUE_LENGTH // 2
    return f'{text[:half]}…{len(text) - 2 * half} characters…{text[-half:]}'


def _escape(text: str) -> str:
    if text.isprintable() and not _NEEDS_ESCAPE.search(text):
        return text
    return ''.join(_SHORT_ESCAPES.get(char) or _escape_char(char) for char in text)


def _escape_char(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x10000:
        return f'\\u{code:04x}'
    # As in JSON: beyond the basic plane a pair of surrogates.
    code -= 0x10000
    return f'\\u{0xd800 + (code >> 10):04x}\\u{0xdc00 + (code & 0x3ff):04x}'

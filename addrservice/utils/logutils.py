"""Log lines as logfmt, and the context that every line of a request shares."""

from __future__ import annotations

import contextvars
import copy
import functools
import json
import logging
import math
import re
import time
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

MAX_VALUE_LENGTH = 16 * 1024
"""Characters of one value that reach the log; the middle of a longer one is
left out, so that nobody can fill a disk with one request."""

CALLER_FIELDS = ('pathname', 'filename', 'module', 'lineno', 'funcName')
"""Of a record: where in the code it was made, for which the stack has to be looked at."""

SEND_RECORDS = ('SocketHandler', 'DatagramHandler', 'HTTPHandler', 'QueueHandler')
"""Handlers that send whole records to who knows whom."""

_SRCFILE = logging._srcfile

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
    return ' '.join([f'{_key(name)}={_value(value)}'
                     for name, value in fields.items() if value is not None])


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
        logger.log(level, _Logfmt(logfmt(fields)), stacklevel=stacklevel + 1)


def one_line_trace(error: BaseException) -> str:
    """A traceback as text; `logfmt` makes one line of it."""
    return ''.join(traceback.format_exception(error)).rstrip()


class _Logfmt(str):
    """The message of a record that is logfmt already."""


class LogfmtFormatter(logging.Formatter):
    """Keeps every record on one line of logfmt, whoever logged it.

    Records of `log` are logfmt already. The text of any other record becomes
    the value of ``message``, its traceback the value of ``trace``.
    """

    _second = (0, '')
    """The second of the last line, and how it is written."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record if isinstance(record.msg, _Logfmt) else _as_logfmt(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As everywhere in `logging`; but of the many lines of one second only the first
        has the calendar looked at."""
        if datefmt:
            return super().formatTime(record, datefmt)
        second, text = self._second
        if second != int(record.created):
            text = time.strftime(self.default_time_format, self.converter(record.created))
            self._second = int(record.created), text
        return f'{text},{int(record.msecs):03d}'


def _as_logfmt(record: logging.LogRecord) -> logging.LogRecord:
    error = record.exc_info[1] if record.exc_info else None
    fields = {'message': record.getMessage(), 'trace': error and one_line_trace(error)}
    quoted = copy.copy(record)
    quoted.msg, quoted.args = logfmt({**get_log_context(), **fields}), None
    quoted.exc_info = quoted.exc_text = quoted.stack_info = None
    return quoted


def look_up_only_what_is_asked_for(section: Mapping[str, Any]) -> None:
    """Keeps `logging` from looking up, for each record, what no line tells: where in the
    code it was made, in which thread and in which process. The chapter "Optimization" of
    Python's Logging HOWTO says how.

    :param section: what `logging.config.dictConfig` was given. Somebody's own class in it
        may want to know anything.
    """
    parts = [part for kind in ('formatters', 'handlers', 'filters')
             for part in section.get(kind, {}).values()]
    formats = ' '.join(map(str, section.get('formatters', {}).values()))

    def is_asked_for(*fields: str) -> bool:
        return (any(field in formats for field in fields)
                or any(not _is_known(part) for part in parts))

    logging._srcfile = _SRCFILE if is_asked_for(*CALLER_FIELDS) else None
    logging.logThreads = is_asked_for('thread')
    logging.logProcesses = logging.logMultiprocessing = is_asked_for('process')


def _is_known(part: Mapping[str, Any]) -> bool:
    name = str(part.get('()', part.get('class', 'logging.Formatter')))
    return name.startswith(('logging.', 'addrservice.')) and not name.endswith(SEND_RECORDS)


@functools.lru_cache(maxsize=256)  # nearly all are written in the code
def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else '_' + re.sub(r'[^A-Za-z0-9_.-]', '_', name)


def _value(value: object) -> str:
    match value:
        case str():
            return f'"{_escape(_shorten(value))}"'
        case bool():
            return 'true' if value else 'false'
        case int():
            return int.__repr__(value)  # of one that has a name, too
        case float() if math.isfinite(value):
            return float.__repr__(value)
        case float():
            return json.dumps(value)
    return f'"{_escape(_shorten(str(value)))}"'


def _shorten(text: str) -> str:
    if len(text) <= MAX_VALUE_LENGTH:
        return text
    # A traceback says most at its end, a target at its start: keep both.
    half = MAX_VALUE_LENGTH // 2
    return f'{text[:half]}…{len(text) - 2 * half} characters…{text[-half:]}'


def _escape(text: str) -> str:
    if text.isprintable() and '"' not in text and '\\' not in text:
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

"""Log lines as logfmt, and the context that every line of a request shares."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import json
import logging
import math
import re
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TextIO

MAX_VALUE_LENGTH = 16 * 1024
"""Characters of one value that reach the log; the middle of a longer one is
left out, so that nobody can fill a disk with one request."""

_SHORT_ESCAPES = {'"': '\\"', '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t'}
_BARE_KEY = re.compile(r'[A-Za-z_][A-Za-z0-9_.-]*')

# Replaced as a whole, never changed in place: tasks started by a request
# share the object, and would see each other's changes.
_LOG_CONTEXT: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar(
    'log_context', default={})


def get_log_context() -> Mapping[str, object]:
    """What every line of the current task carries; read-only."""
    return MappingProxyType(_LOG_CONTEXT.get())


def set_log_context(**fields: object) -> None:
    """Adds fields to every line that the current task will log."""
    add_log_context(fields)


def add_log_context(fields: Mapping[str, object]) -> None:
    """As `set_log_context`.

    :param fields: are not changed from now on.
    """
    others = _LOG_CONTEXT.get()
    _LOG_CONTEXT.set({**others, **fields} if others else fields)


def logfmt(fields: Mapping[str, object]) -> str:
    """``{'a': 1, 'b': 'x y'}`` as ``a=1 b="x y"``, always on one line.

    Numbers and booleans stand bare, everything else in double quotes with the
    escapes of JSON (RFC 8259 section 7) for quotes, backslashes and whatever
    is not printable; a reader that undoes them gets the very value back.

    :param fields: names and values, in the order in which they are written; a
        value of None is left out.
    """
    # Nearly always nothing has to be escaped: one look at all texts at once tells.
    if is_plain(''.join([value for value in fields.values() if value.__class__ is str])):
        return ' '.join([
            f'{_key(name)}="{value}"' if value.__class__ is str else f'{_key(name)}={_value(value)}'
            for name, value in fields.items() if value is not None])
    return ' '.join([f'{_key(name)}={_value(value)}'
                     for name, value in fields.items() if value is not None])


def is_plain(text: str) -> bool:
    """Whether a text is written as it is: nothing in it has to be escaped or left out."""
    return (text.isprintable() and '"' not in text and '\\' not in text
            and len(text) <= MAX_VALUE_LENGTH)


def log(logger: logging.Logger, level: int, **fields: object) -> None:
    """Logs one line of logfmt: the request's own fields, then these.

    :param logger: the logger that the caller was given.
    :param level: as in the `logging` module.
    :param fields: the line's own names and values.
    """
    log_line(logger, level, {**_LOG_CONTEXT.get(), **fields}, stacklevel=2)


def log_line(logger: logging.Logger, level: int, fields: Mapping[str, object],
             stacklevel: int = 1) -> None:
    """Logs one line of logfmt with these fields alone.

    :param stacklevel: whom the line names as its origin: 1 the caller, 2 its
        caller, and so on.
    """
    if logger.isEnabledFor(level):
        log_text(logger, level, logfmt(fields), stacklevel + 1)


def log_text(logger: logging.Logger, level: int, text: str, stacklevel: int = 1) -> None:
    """Logs a line that is logfmt already.

    :param level: one that the logger is enabled for.
    :param stacklevel: as in `log_line`.
    """
    message = _Logfmt(text)
    if logging._srcfile:
        logger.log(level, message, stacklevel=stacklevel + 1)
    else:  # nobody asks who the caller is
        logger.handle(logger.makeRecord(logger.name, level, '', 0, message, (), None))


def log_texts(logger: logging.Logger, level: int, texts: Sequence[str]) -> None:
    """Logs several lines that are logfmt already: each as `log_text` does, and where it goes
    is found out once for all of them.

    :param level: one that the logger is enabled for.
    :raises ExceptionGroup: somebody's filter has failed; all other lines are logged.
    """
    handlers = _handlers_of_texts(logger) if len(texts) > 1 else []
    if not handlers:
        return _log_one_by_one(logger, level, texts)
    record = logger.makeRecord(logger.name, level, '', 0, _Logfmt(), (), None)
    for handler in handlers:
        if level >= handler.level:
            handler.write_texts(record, texts)


def _log_one_by_one(logger: logging.Logger, level: int, texts: Iterable[str]) -> None:
    faults: list[Exception] = []
    for text in texts:
        try:
            log_text(logger, level, text, stacklevel=3)
        except Exception as fault:
            faults.append(fault)
    if faults:
        raise ExceptionGroup('Lines could not be logged', faults)


def _handlers_of_texts(logger: logging.Logger) -> list[TurnStreamHandler]:
    """All that get what is logged there, found as `logging` does; none, if one of them has to
    be given line by line, or somebody has a say in each."""
    if logging._srcfile or logger.disabled or logger.filters:
        return []
    every: list[logging.Handler] = []
    source: logging.Logger | None = logger
    while source:
        every += source.handlers
        source = source.parent if source.propagate else None
    handlers = [handler for handler in every
                if isinstance(handler, TurnStreamHandler) and handler.takes_texts]
    return handlers if handlers == every else []


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

    @functools.cached_property
    def _uses_time(self) -> bool:
        return self.usesTime()

    @functools.cached_property
    def _percent_format(self) -> str:
        """The format, if it is one of Python's oldest kind, that each record is merely put in;
        else nothing."""
        style = self._style
        is_percent = type(style) is logging.PercentStyle and not getattr(style, '_defaults', None)
        return self._fmt or '' if is_percent else ''

    @property
    def writes_lines(self) -> bool:
        """Whether `lines` does what `format` does for each."""
        return type(self) is LogfmtFormatter and bool(self._percent_format)

    def format(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, _Logfmt):
            return super().format(_as_logfmt(record))
        record.message = record.msg
        if self._uses_time:
            record.asctime = self.formatTime(record, self.datefmt)
        text = self._percent_format
        return text % vars(record) if text else self.formatMessage(record)

    def lines(self, record: logging.LogRecord, texts: Iterable[str]) -> list[str]:
        """Texts that are logfmt already as so many lines.

        :param record: has all that is told with each of them.
        """
        fields = vars(record)
        if self._uses_time:
            record.asctime = self.formatTime(record, self.datefmt)
        lines = []
        for fields['message'] in texts:
            lines.append(self._percent_format % fields)
        return lines

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As everywhere in `logging`; but of the many lines of one second only the first
        has the calendar looked at."""
        if datefmt:
            return super().formatTime(record, datefmt)
        second, text = self._second
        if second != (now := int(record.created)):
            text = time.strftime(self.default_time_format, self.converter(record.created))
            self._second = now, text
        return f'{text},{int(record.msecs):03d}'


class TurnStreamHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of one turn of the event loop together, at its end.

    As fast as requests come, there are many to a turn, and a system call for each line would
    cost more than the line. What is logged where no loop runs, from a thread or at the end,
    is written at once, and takes along what waits: nothing is lost when the process stops, or
    when the loop does. Only ``kill -9`` can lose lines, those of the turn that it cuts short.
    """

    _due_in: asyncio.AbstractEventLoop | None = None
    """The loop that is going to write what waits, if one is."""

    @property
    def takes_texts(self) -> bool:
        """Whether `write_texts` does what `handle` does for each."""
        return (isinstance(self.formatter, LogfmtFormatter) and self.formatter.writes_lines
                and not self.filters and type(self) is TurnStreamHandler)

    def write_texts(self, record: logging.LogRecord, texts: Iterable[str]) -> None:
        """Writes several texts that are logfmt already, each as one line.

        :param record: has all that is told with each of them.
        """
        assert self.lock is not None and isinstance(self.formatter, LogfmtFormatter)
        with self.lock:
            try:
                lines = self.formatter.lines(record, texts)
                self.stream.write(self.terminator.join([*lines, '']))
                self.flush()
            except Exception:
                self.handleError(record)

    def handle(self, record: logging.LogRecord) -> bool:
        """As any handler's, with two calls in place of seven where nothing is filtered."""
        if self.filters:
            return super().handle(record)
        assert self.lock is not None
        with self.lock:
            self.emit(record)
        return True

    def flush(self) -> None:
        """Called for each line; and by `logging` at the end, outside of any loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return super().flush()
        if self._due_in is not loop:
            self._due_in = loop
            # In no request's context, which it would keep alive.
            loop.call_soon(self._flush_turn, context=contextvars.Context())

    def close(self) -> None:
        """Writes what waits: this may be the last thing that the process does."""
        super().flush()
        super().close()

    def _flush_turn(self) -> None:
        self._due_in = None
        try:
            assert self.lock is not None
            with self.lock:
                self.stream.flush()
        except Exception:
            self.handleError(logging.makeLogRecord({'msg': 'Lines could not be written'}))


def _as_logfmt(record: logging.LogRecord) -> logging.LogRecord:
    error = record.exc_info[1] if record.exc_info else None
    fields = {'message': record.getMessage(), 'trace': error and one_line_trace(error)}
    quoted = copy.copy(record)
    quoted.msg, quoted.args = logfmt({**_LOG_CONTEXT.get(), **fields}), None
    quoted.exc_info = quoted.exc_text = quoted.stack_info = None
    return quoted


@functools.lru_cache(maxsize=256)  # nearly all are written in the code
def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else '_' + re.sub(r'[^A-Za-z0-9_.-]', '_', name)


def _value(value: object) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, int):
        return int.__repr__(value)  # of one that has a name, too
    if isinstance(value, float):
        return float.__repr__(value) if math.isfinite(value) else json.dumps(value)
    return _quoted(str(value))


def _quoted(text: str) -> str:
    if is_plain(text):
        return f'"{text}"'
    return f'"{_escape(_shorten(text))}"'


def _shorten(text: str) -> str:
    if len(text) <= MAX_VALUE_LENGTH:
        return text
    # A traceback says most at its end, a target at its start: keep both.
    half = MAX_VALUE_LENGTH // 2
    return f'{text[:half]}…{len(text) - 2 * half} characters…{text[-half:]}'


def _escape(text: str) -> str:
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

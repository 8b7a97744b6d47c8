"""Records of `logging` that hold what lines tell, and no more.

For each record `logging` looks up where in the code it was made, in which thread and in which
process, and takes a path apart. Where no format asks for that, records are made without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

CALLER_FIELDS = ('pathname', 'filename', 'module', 'lineno', 'funcName')
"""Of a record: where in the code it was made, for which the stack has to be looked at."""

RARE_FIELDS = ('relativeCreated', 'exc_info', 'exc_text', 'stack_info', 'args')
"""Of a record: what is known of each, and hardly ever put in a line as it stands."""

SEND_RECORDS = ('SocketHandler', 'DatagramHandler', 'HTTPHandler', 'QueueHandler')
"""Handlers that send whole records to who knows whom."""

SRCFILE = logging._srcfile


class _BriefRecord(logging.LogRecord):
    """A record that does not take the path apart that it has not got. Of what no line is going
    to tell, all records have the same."""

    args = ()
    pathname = filename = module = funcName = ''
    lineno = 0
    exc_info = exc_text = stack_info = None
    relativeCreated = 0.0
    thread = threadName = process = processName = None

    def __init__(self, name: str, level: int, pathname: str, lineno: int, msg: object, args: Any,
                 exc_info: Any, func: str | None = None, sinfo: str | None = None) -> None:
        if args or exc_info or sinfo:
            super().__init__(name, level, pathname, lineno, msg, args, exc_info, func, sinfo)
            return
        self.name = name
        self.msg = str(msg) if msg is None else msg
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.created = now = time.time()
        self.msecs = now % 1 * 1000


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

    names_caller, names_thread = is_asked_for(*CALLER_FIELDS), is_asked_for('thread')
    names_process, names_others = is_asked_for('process'), is_asked_for(*RARE_FIELDS)
    logging._srcfile = SRCFILE if names_caller else None
    logging.logThreads = names_thread
    logging.logProcesses = logging.logMultiprocessing = names_process
    is_brief = not (names_caller or names_thread or names_process or names_others)
    logging.setLogRecordFactory(_BriefRecord if is_brief else logging.LogRecord)


def _is_known(part: Mapping[str, Any]) -> bool:
    name = str(part.get('()', part.get('class', 'logging.Formatter')))
    return name.startswith(('logging.', 'addrservice.')) and not name.endswith(SEND_RECORDS)

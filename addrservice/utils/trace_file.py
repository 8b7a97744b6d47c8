"""Spans as a file that a browser draws: Chrome's trace events, which Perfetto opens.

The format is the "JSON Array Format" of the Trace Event Format
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU):
an array of events, whose closing bracket may be missing, so that a file can
be appended to and opened at any time.
"""

from __future__ import annotations

import errno
import json
import logging.handlers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id, format_trace_id

from addrservice.utils.flight_recorder import ids_of


MOST_OF_AN_EVENT = 1024 * 1024
"""Bytes; what a span may hold is bounded."""


class TraceEventFile(SpanExporter):
    """Appends spans to a file; a full one is renamed, as log files are."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """
        :param settings: ``path``; ``max-bytes`` of one file; ``backups`` to
            keep, named ``path.1`` and so on, the newest first.
        :raises OSError: there can be no such file. It is made when the first span comes.
        """
        self._file = _Rotating(settings['path'], settings['max-bytes'], settings['backups'])

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes them; called in a thread of its own."""
        for span in spans:
            self._file.write(',\n'.join(map(_json, _events(span))))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


class _Rotating(logging.handlers.RotatingFileHandler):
    """The library's file that is renamed when it is full, for events in place of records."""

    terminator = ',\n'

    def __init__(self, path: str, max_bytes: int, backups: int) -> None:
        _require_place(Path(path).resolve())
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding='utf-8',
                         delay=True)

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_end(Path(self.baseFilename))
        stream = super()._open()
        if os.fstat(stream.fileno()).st_size == 0:
            stream.write('[\n')
        return stream

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what cannot be written is reported by who asked for it

    def write(self, events: str) -> None:
        """Appends events, in a new file if they do not fit this one."""
        self.handle(logging.makeLogRecord({'msg': events}))


def _cut_torn_end(path: Path) -> None:
    """Removes the part of an event that a kill or a full disk has left at the end of a file,
    behind which nothing could be read."""
    if not path.is_file():
        return
    with path.open('rb+') as file:
        file.seek(-min(MOST_OF_AN_EVENT, path.stat().st_size), os.SEEK_END)
        start, tail = file.tell(), file.read()
        whole = max(tail.rfind(end) + len(end) if end in tail else 0 for end in (b',\n', b'[\n'))
        file.truncate(start + whole)


def _require_place(path: Path) -> None:
    """Looks whether a file can be written or made there, and touches nothing: the
    configuration may only be meant to be checked.

    :raises OSError: it cannot.
    """
    nearest = next(each for each in (path, *path.parents) if each.exists())
    if nearest.is_dir() == (nearest == path):
        number = errno.EISDIR if nearest == path else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(nearest))
    if not os.access(nearest, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def _events(span: ReadableSpan) -> Sequence[Mapping[str, Any]]:
    """A span's begin and end. They are asynchronous events, as the spans of
    requests that overlap would not nest; those of one trace have one track."""
    ids = ids_of(span)
    common = {'cat': 'request', 'name': span.name, 'id': format_trace_id(ids.trace_id),
              'pid': os.getpid(), 'tid': 0}
    args = {**(span.attributes or {}), 'span_id': format_span_id(ids.span_id),
            'parent_id': format_span_id(span.parent.span_id) if span.parent else None,
            'error': span.status.description}
    args = {name: value for name, value in args.items() if value is not None}
    return ({**common, 'ph': 'b', 'ts': (span.start_time or 0) / 1000, 'args': args},
            {**common, 'ph': 'e', 'ts': (span.end_time or 0) / 1000})


def _json(event: Mapping[str, Any]) -> str:
    return json.dumps(event, default=str)

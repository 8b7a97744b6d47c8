"""Tornado's header fields and requests, made the short way.

They are what Tornado's own are, and hold the same; their constructors do without what nearly
no request needs. `tests/unit/messages_test.py` holds them against the originals.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tornado import httputil
from tornado.httputil import _normalize_header


class Headers(httputil.HTTPHeaders):
    """Header fields; none to begin with. They lie in one dictionary, where Tornado's own has two,
    and a list for each field."""

    _lists: Mapping[str, Sequence[str]] = {}
    """Of names that have more than one value, those values. Never changed, only replaced."""

    def __init__(self, fields: dict[str, str] | None = None) -> None:
        """
        :param fields: its `fields`; becomes its own.
        """
        self.fields: dict[str, str] = {} if fields is None else fields
        """The values by name, as Tornado writes names: ``Etag``; several of one name are joined by
        commas. A field may be set here, too."""

    def copy(self) -> Headers:
        copied = Headers(self.fields.copy())
        if self._lists:
            copied._lists = self._lists
        return copied

    __copy__ = copy

    @classmethod
    def of(cls, headers: httputil.HTTPHeaders) -> Headers:
        """Headers of this kind, with what others hold."""
        ours = cls()
        for name, value in headers.get_all():
            ours.add(name, value)
        return ours

    def add(self, name: str, value: str, **how: Any) -> None:
        values = self.get_list(name)
        if not values:
            return super().add(name, value, **how)
        httputil.HTTPHeaders().add(name, value, **how)  # raises for what is no value
        values.append(value)
        self[name] = ','.join(values)
        self._lists = {**self._lists, _normalize_header(name): values}

    def get_list(self, name: str) -> list[str]:
        name = _normalize_header(name)
        return self._values(name, self.fields[name]) if name in self.fields else []

    def get_all(self) -> Iterable[tuple[str, str]]:
        if not self._lists:
            return self.fields.items()
        return [(name, each) for name, value in self.fields.items()
                for each in self._values(name, value)]

    def _values(self, name: str, value: str) -> list[str]:
        values = self._lists.get(name, (value,))
        return [*values] if ','.join(values) == value else [value]  # which has replaced them

    def lines(self) -> str:
        """All fields as they are sent."""
        fields = self.get_all() if self._lists else self.fields.items()
        return '\r\n'.join(map(': '.join, fields)) + '\r\n' if fields else ''

    def __getitem__(self, name: str) -> str:
        return self.fields[_normalize_header(name)]

    def __setitem__(self, name: str, value: str) -> None:
        self.fields[_normalize_header(name)] = value

    def __delitem__(self, name: str) -> None:
        del self.fields[_normalize_header(name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _normalize_header(name) in self.fields

    def __len__(self) -> int:
        return len(self.fields)

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping; but no exception is made and caught for a field that is not there."""
        return self.fields.get(_normalize_header(name), default)


class Request(httputil.HTTPServerRequest):
    """What a handler is given."""

    headers: Headers

    # Of nearly every request; of others they are set.
    body = b''
    server_connection = None
    _finish_time = None

    def __init__(self, connection: Any, start_line: httputil.RequestStartLine, headers: Headers
                 ) -> None:
        """
        :param connection: takes the answer; with a ``context`` that tells who asks.
        :raises HTTPInputError: its Host or its query string makes no sense.
        """
        host = headers.fields.get('Host')
        if host is None:
            super().__init__(connection=connection, start_line=start_line, headers=headers)
            return
        # All that Tornado's constructor sets.
        self.method, self.uri, self.version = start_line
        self.headers, self.connection = headers, connection
        self.remote_ip, self.protocol = connection.context
        self.host, self.host_name = host, _host_name(host)
        self.path, _, self.query = self.uri.partition('?')
        if self.query:
            self.query_arguments = _copied(_arguments(self.query))
        self._start_time = time.time()

    # Tornado sets these four for each request, which the type checker knows; few ask for them.

    @functools.cached_property
    def query_arguments(self) -> dict[str, list[bytes]]:  # type: ignore[override]  # see above
        """What the query says; nothing here, or it would have been set."""
        return {}

    @functools.cached_property
    def arguments(self) -> dict[str, list[bytes]]:  # type: ignore[override]  # see above
        """What the query and the body say; of bodies nothing, before one is parsed as a form."""
        return _copied(_arguments(self.query)) if self.query else {}

    @functools.cached_property
    def body_arguments(self) -> dict[str, list[bytes]]:  # type: ignore[override]  # see above
        """What the body says; nothing, before it is parsed as a form."""
        return {}

    @functools.cached_property
    def files(self) -> dict[str, list[httputil.HTTPFile]]:  # type: ignore[override]  # see above
        """What a form has brought."""
        return {}


def _copied(arguments: Mapping[str, list[bytes]]) -> dict[str, list[bytes]]:
    return {name: values[:] for name, values in arguments.items()}


@functools.lru_cache(maxsize=256)
def _host_name(host: str) -> str:
    """The name in a Host field, as Tornado understands it; nearly all requests have the same.

    :raises HTTPInputError: there is none in it.
    """
    return _as_tornado('/', host).host_name


@functools.lru_cache(maxsize=256)
def _arguments(query: str) -> dict[str, list[bytes]]:
    """What a query string says, as Tornado understands it; not to be changed.

    :raises HTTPInputError: it makes no sense.
    """
    return _as_tornado(f'/?{query}', 'host').arguments


def _as_tornado(target: str, host: str) -> httputil.HTTPServerRequest:
    start_line = httputil.RequestStartLine('GET', target, 'HTTP/1.1')
    headers = Headers()
    headers['Host'] = host
    return httputil.HTTPServerRequest(start_line=start_line, headers=headers)

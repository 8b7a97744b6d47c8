"""Tornado's header fields and requests, made the short way.

They are what Tornado's own are, and hold the same; their constructors do without what nearly
no request needs. `tests/unit/messages_test.py` holds them against the originals.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from tornado import httputil
from tornado.httputil import _normalize_header


class Headers(httputil.HTTPHeaders):
    """Header fields; none to begin with."""

    _has_many = False
    """Whether a name may have more than one value."""

    def __init__(self) -> None:
        # As in Tornado's constructor, which looks for fields in its arguments then.
        self._as_list = {}
        self._combined_cache = {}

    def copy(self) -> Headers:
        copied = Headers()
        # The lists in it are nowhere changed, only replaced.
        copied._as_list = self._as_list.copy()
        copied._combined_cache = self._combined_cache.copy()
        if self._has_many:
            copied._has_many = True
        return copied

    def add(self, name: str, value: str, **how: Any) -> None:
        if name in self:
            self._has_many = True
            self._as_list[_normalize_header(name)] = self.get_list(name)
        super().add(name, value, **how)

    def get_list(self, name: str) -> list[str]:
        return super().get_list(name)[:]

    def __contains__(self, name: object) -> bool:
        return _normalize_header(name) in self._as_list

    def lines(self) -> str:
        """All fields as they are sent."""
        if self._has_many or not self._as_list:
            return ''.join([f'{name}: {value}\r\n' for name, value in self.get_all()])
        return '\r\n'.join(map(': '.join, self._combined_cache.items())) + '\r\n'

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping; but no exception is made and caught for a field that is not there."""
        return self[name] if name in self else default


def has(headers: httputil.HTTPHeaders, name: str) -> bool:
    """Whether a field is there, as ``name in headers`` tells, without a look at the name.

    :param name: as Tornado writes it: ``Etag``.
    """
    return name in headers._as_list


def put(headers: httputil.HTTPHeaders, name: str, value: str) -> None:
    """Sets a field as ``headers[name] = value`` does, without a look at the name.

    :param name: as Tornado writes it: ``Etag``.
    """
    headers._as_list[name] = [value]
    headers._combined_cache[name] = value


class Request(httputil.HTTPServerRequest):
    """What a handler is given."""

    def __init__(self, connection: Any, start_line: httputil.RequestStartLine,
                 headers: httputil.HTTPHeaders) -> None:
        """
        :param connection: takes the answer; with a ``context`` that tells who asks.
        :raises HTTPInputError: its Host or its query string makes no sense.
        """
        host = headers._combined_cache.get('Host')
        if host is None:
            super().__init__(connection=connection, start_line=start_line, headers=headers)
            return
        # All that Tornado's constructor sets.
        self.method, self.uri, self.version = start_line
        self.headers, self.connection = headers, connection
        self.remote_ip, self.protocol = connection.context
        self.host, self.host_name = host, _host_name(host)
        self.path, _, self.query = start_line.path.partition('?')
        self.arguments, self.query_arguments, self.body_arguments = {}, {}, {}
        if self.query:
            for name, values in _arguments(self.query).items():
                self.arguments[name], self.query_arguments[name] = values[:], values[:]
        self.body, self.files, self.server_connection = b'', {}, None
        self._start_time, self._finish_time = time.time(), None


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

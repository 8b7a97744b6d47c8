"""From what the configuration says about a port to sockets that listen, and limits."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import resource
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from tornado.netutil import bind_sockets

from addrservice.errors import ConfigError
from addrservice.tornado.reader import Limits, Network

SPARE_DESCRIPTORS = 64
"""File descriptors beside those of connections: logs, the store, the loop."""

ADMIN_CONNECTIONS = 20
"""Connections to the admin port that are open at once."""


ADMIN_HEADER_TIMEOUT = 3.0
"""Seconds for the header of a request to the admin port."""


def bind(section: str, settings: Mapping[str, Any]) -> list[socket.socket]:
    """Listens where a section of the configuration says.

    :param section: its name.
    :param settings: with ``host`` and ``port``.
    :raises ConfigError: this process cannot listen there.
    """
    host, port = settings['host'], settings['port']
    try:
        return bind_sockets(port, address=host)
    except (OSError, UnicodeError) as error:
        is_ports_fault = getattr(error, 'errno', None) in (errno.EADDRINUSE, errno.EACCES)
        key = 'port' if is_ports_fault else 'host'
        raise ConfigError(f'{section}.{key}: cannot listen on {host} port {port}: '
                          f'{getattr(error, "strerror", "not a host name")}') from error


def limits_of(settings: Mapping[str, Any]) -> Limits:
    """What the section ``server`` says about connections.

    :raises ConfigError: this process cannot have so many.
    """
    _require_descriptors(settings['max-connections'] + ADMIN_CONNECTIONS + SPARE_DESCRIPTORS)
    return Limits(
        max_connections=settings['max-connections'],
        max_body_size=settings['max-body-size'],
        max_header_size=settings['max-header-size'],
        idle_timeout=settings['idle-timeout'],
        header_timeout=settings['header-timeout'],
        body_timeout=settings['body-timeout'],
        write_timeout=settings['write-timeout'],
        trusted_proxies=[_network(text) for text in settings['trusted-proxies']])


def tls_of(settings: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What the section ``server`` says about TLS; None if it says nothing.

    :raises ConfigError: the certificate or its key cannot be used.
    """
    if 'tls' not in settings:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate, key = settings['tls']['certificate'], settings['tls']['key']
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # `ssl.SSLError` is one
        reason = getattr(error, 'reason', None) or error.strerror
        raise ConfigError(f'server.tls: {certificate} and {key} cannot be used as a certificate '
                          f'and its key: {reason}') from error
    return context


def admin_limits(limits: Limits) -> Limits:
    """Those of the admin port: few connections, which nobody shall hold by sending slowly."""
    return dataclasses.replace(limits, max_connections=ADMIN_CONNECTIONS,
                               header_timeout=min(limits.header_timeout, ADMIN_HEADER_TIMEOUT))


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f'server.trusted-proxies: {text!r} is neither an address '
                          'nor a network') from error


def _require_descriptors(wanted: int) -> None:
    """Raises this process's limit of open files if it must and may: out of
    descriptors, a server can neither accept nor refuse."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ConfigError(f'server.max-connections: needs {wanted} open files, '
                              f'and the limit of this process is {hard}')
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

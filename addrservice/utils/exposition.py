"""How metrics are told: the format that is asked for, and the folder that processes share."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.openmetrics import exposition as openmetrics

from addrservice import MULTIPROCESS
from addrservice.errors import ConfigError

_FILE_OF_LIVE_GAUGES = re.compile(r'gauge_live\w*_(\d+)\.db')
_OPENMETRICS, _ANY_TEXT = 'application/openmetrics-text', ('text/plain', 'text/*', '*/*')


def text_of(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics of a registry, as text for Prometheus.

    :param accept: the request's Accept header (RFC 9110 section 12.5.1): whoever
        takes OpenMetrics gets that, with exemplars, everyone else the older format.
    :return: the body and its media type.
    """
    if prefers_openmetrics(accept):
        # The library is half typed.
        text = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]  # half typed
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def prefers_openmetrics(accept: str) -> bool:
    """Whether a client would rather have OpenMetrics than plain text.

    :param accept: its Accept header (RFC 9110 section 12.5.1).
    """
    weights: dict[str, float] = {}
    for item in accept.lower().split(','):
        media_type, *parameters = (part.strip() for part in item.split(';'))
        weights[media_type] = max(weights.get(media_type, 0.0), _weight(parameters))
    text = next((weights[name] for name in _ANY_TEXT if name in weights), 0.0)
    wanted = weights.get(_OPENMETRICS, 0.0)
    return wanted > 0 and wanted >= text


def _weight(parameters: Sequence[str]) -> float:
    """The parameter ``q``; 0 if it makes no sense (RFC 9110 section 12.4.2)."""
    given = next((text[2:] for text in parameters if text.startswith('q=')), '1')
    return float(given) if re.fullmatch(r'[01](\.\d{0,3})?', given) else 0.0


def sum_of_all(folder: str) -> CollectorRegistry:
    """What all processes that share a folder have counted, and what is true of those that run."""
    forget_dead_processes(folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]  # adds itself
    return registry


def prepare_folder(folder: str) -> None:
    """Makes the folder that processes share, and removes from it what was true of those
    that have ended without saying so, one with this process's own number among them: in a
    container each has the same.

    :raises ConfigError: it cannot be used.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        forget(os.getpid(), folder)
        forget_dead_processes(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it can be written
    except OSError as error:
        raise ConfigError(f'{MULTIPROCESS}: {folder}: cannot be used: {error.strerror}') from error


def forget_dead_processes(folder: str) -> None:
    """Removes what was true of processes that do not run any more."""
    found = map(_FILE_OF_LIVE_GAUGES.fullmatch, os.listdir(folder))
    for pid in {int(match[1]) for match in found if match}:
        if not _is_alive(pid):
            forget(pid, folder)


def forget(pid: int, folder: str) -> None:
    """Removes what is only true of a process while it runs; what it has counted stays."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]  # the library is half typed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    return True

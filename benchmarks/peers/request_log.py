"""The log line of a request, the same for every peer in Python: logfmt, on stdout."""

from __future__ import annotations

import logging
import sys
import time
import uuid


def make_logger() -> logging.Logger:
    """A logger of its own, so that no framework's settings have a say in it."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(
        'time=%(created).3f level=%(levelname)s %(message)s'))
    logger = logging.Logger('requests', logging.INFO)
    logger.addHandler(handler)
    return logger


def log_request(logger: logging.Logger, method: str, path: str, status: int, began: float) -> None:
    """One line about a request that has ended.

    :param began: when it did, by `time.perf_counter`.
    """
    logger.info('method=%s path="%s" status=%d duration=%.6f request_id=%s', method, path, status,
                time.perf_counter() - began, uuid.uuid4().hex)

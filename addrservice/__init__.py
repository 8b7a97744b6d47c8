"""addrservice: an address book as a microservice."""

from pathlib import Path

__version__ = '1.1.0'

LOGGER_NAME = 'addrservice'
MULTIPROCESS = 'PROMETHEUS_MULTIPROC_DIR'
"""The environment variable with the folder through which processes share what they count; to be
set before prometheus-client is imported."""

ROOT_DIR = Path(__file__).resolve().parent.parent

"""addrservice: an address book as a microservice."""

from pathlib import Path

__version__ = '1.1.0'

LOGGER_NAME = 'addrservice'
ROOT_DIR = Path(__file__).resolve().parent.parent

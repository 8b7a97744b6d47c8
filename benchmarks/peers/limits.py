"""What an entry may hold, as its schema says it, for the models of the peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[2] / 'schema' / 'address-book-v1.0.json').read_text('utf-8'))
_DEFINITIONS = SCHEMA['$defs']

NAME: dict[str, Any] = SCHEMA['properties']['full_name']
ANY_TEXT: dict[str, Any] = _DEFINITIONS['any_text']
FILLED_TEXT: dict[str, Any] = _DEFINITIONS['filled_text']
DIGITS: dict[str, Any] = _DEFINITIONS['digits']
EMAIL: dict[str, Any] = _DEFINITIONS['email_address']

MAX_NUMBER: int = _DEFINITIONS['number']['maximum']
MAX_ITEMS: int = SCHEMA['properties']['addresses']['maxItems']
MAX_LIMIT = 1000
"""Entries of one listing."""

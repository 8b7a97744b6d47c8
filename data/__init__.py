"""Sample entries: for tests, for benchmarks, and for a first try with curl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def address_data_suite() -> dict[str, dict[str, Any]]:
    """Read the samples: a nickname (a file's name without ``.json``) -> its document."""
    files = sorted((Path(__file__).parent / 'addresses').glob('*.json'))
    return {file.stem: json.loads(file.read_text(encoding='utf-8')) for file in files}

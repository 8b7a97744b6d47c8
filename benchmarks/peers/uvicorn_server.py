"""uvicorn, as `uvicorn[standard]` runs an application: uvloop and httptools."""

from __future__ import annotations

from typing import Any

import uvicorn


def serve(app: Any, port: int) -> None:
    """Serves until a signal comes; the application writes the log line, so uvicorn writes none."""
    uvicorn.run(app, host='127.0.0.1', port=port, loop='uvloop', http='httptools',
                access_log=False, log_level='warning')

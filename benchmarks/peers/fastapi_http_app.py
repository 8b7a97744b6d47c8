"""FastAPI as in fastapi_app.py, but with the log line from the kind of middleware that FastAPI's
own documentation shows first; what that costs is the difference between the two."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from benchmarks.peers.fastapi_app import add_routes
from benchmarks.peers.request_log import log_request, make_logger
from benchmarks.peers.uvicorn_server import serve


def make_app() -> FastAPI:
    app, logger = FastAPI(), make_logger()

    @app.middleware('http')
    async def log(request: Request, call_next: Callable[[Request], Awaitable[Response]]
                  ) -> Response:
        began = time.perf_counter()
        response = await call_next(request)
        log_request(logger, request.method, request.url.path, response.status_code, began)
        return response

    add_routes(app)
    return app


if __name__ == '__main__':
    serve(make_app(), int(sys.argv[1]))

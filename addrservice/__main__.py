"""``python3 -m addrservice``: the service, with the options of `server.main`."""

import os
import signal
import sys


def run() -> int:
    """Runs the service; a signal that comes while it is still importing ends it quietly."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # No exception: one that strikes inside a callback of an import is lost.
        signal.signal(number, lambda *_: os._exit(0))
    from addrservice.tornado.server import main
    return main()


if __name__ == '__main__':
    sys.exit(run())

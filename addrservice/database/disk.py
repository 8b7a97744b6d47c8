"""What engines on a disk of this machine share: folders that last, and work in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
T = TypeVar('T')


async def run_in_thread(threads: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
                        ) -> T:
    """Does it in one of these threads, in the context of the caller."""
    call = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads, call)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those it is in, if they are not there: for their
    owner only, and so that they last."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
        sync_folder(missing.parent)
    folder.mkdir(exist_ok=True)  # says what else is there, if it is no folder


def sync_folder(folder: Path) -> None:
    """Sends what is called how in a folder to the disk."""
    with opened(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_DIRECTORY) -> Iterator[int]:
    """A file, or by default a folder, open for reading; closed afterwards."""
    descriptor = os.open(path, os.O_RDONLY | flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

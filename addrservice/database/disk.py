"""What engines on a disk of this machine share: folders that last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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

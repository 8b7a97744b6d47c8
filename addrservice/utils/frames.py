"""Where code stands, told without the folders of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import CodeType

MAX_LINES = 60
"""Lines of one stack; the middle of a deeper one is left out."""

_HEAD = 10
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_INSTALLED = ('site-packages', 'dist-packages')


def is_library(filename: str) -> bool:
    """Whether a code object's file is Python's own, installed or no file at
    all; what is left belongs to the application."""
    return (filename.startswith(('<', _STANDARD_LIBRARY))
            or any(folder in filename.split(os.sep) for folder in _INSTALLED))


def place(code: CodeType, line: int | None) -> str:
    """``file:line function``, the file as seen from where it is imported."""
    return f'{_short_path(code.co_filename)}:{line or code.co_firstlineno} {code.co_qualname}'


def shorten(lines: Sequence[str]) -> list[str]:
    """The lines of a stack, at most `MAX_LINES`: both ends say more than the middle."""
    left_out = len(lines) - MAX_LINES + 1
    if left_out <= 1:
        return list(lines)
    return [*lines[:_HEAD], f'… {left_out} more …', *lines[_HEAD + left_out:]]


def _short_path(filename: str) -> str:
    folders = (os.path.join(folder, '') for folder in sys.path if folder)
    longest = max((folder for folder in folders if filename.startswith(folder)),
                  key=len, default='')
    return filename[len(longest):] if longest else os.path.basename(filename)

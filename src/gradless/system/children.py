"""Python processes that we start: none of them runs a file of the folder in which the user happens to be.

Started with ``-m`` or ``-c``, Python searches the current folder before its own library, so a ``struct.py`` beside the
user's data would be run. The switch ``-P`` leaves that folder out for a process; the variable ``PYTHONSAFEPATH`` does
so for the processes that it starts in turn.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final

PYTHON: Final = (sys.executable, "-P")
"""Begins the command line of a process in Python."""
VARIABLE: Final = "PYTHONSAFEPATH"


def environment(**changes: str) -> dict[str, str]:
    """Return the variables of a process in Python: ours, with changes."""
    return {**os.environ, VARIABLE: "1", **changes}


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Make processes that a library starts inside the block, such as those of `multiprocessing`, safe too."""
    previous = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = previous

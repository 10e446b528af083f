"""Claims on runs: a lock that a process holds as long as it lives, and no longer.

A lock belongs to an open file, so it is gone when the last process that has the file open ends, however it ends.
The process of a run inherits its claim: if the worker that started it is killed, the run keeps its claim until it
ends, and nobody starts it a second time beside it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gradless.errors import BadInput


def take(path: Path) -> int | None:
    """Claim what ``path`` stands for.

    Returns:
        A file descriptor; closing it gives the claim back. None if another has the claim.

    Raises:
        BadInput: the file system has no locks.
        OSError: the file cannot be made.
    """
    if sys.platform == "win32":
        return _exclusive(path)
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise BadInput(f"{path} cannot be locked ({error.strerror}): put --out on another file system") from None
    return descriptor


@contextlib.contextmanager
def alone(path: Path, *, poll: float = 0.01) -> Iterator[None]:
    """Wait for a claim and hold it inside; for short work on files that several workers write."""
    while (descriptor := take(path)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        os.close(descriptor)


def _exclusive(path: Path) -> int | None:
    """Where files have no locks: a file that cannot be removed while a process has it open."""
    with contextlib.suppress(FileNotFoundError):
        try:
            path.unlink()  # left by a process that is gone
        except PermissionError:
            return None
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return None

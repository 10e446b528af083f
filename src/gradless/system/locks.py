"""Locks that a process holds as long as it lives, and no longer.

A lock belongs to an open file (*filelock* takes it: ``flock``, or ``LockFileEx`` on Windows), so it is gone when the
last process that has the file open ends, however it ends. The process of a run inherits the lock on its run: if the
worker that started it is killed, the run stays locked until it ends, and nobody starts it a second time beside it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from gradless.errors import BadInput


def take(path: Path) -> int | None:
    """Lock what ``path`` stands for.

    Returns:
        A file descriptor; closing it gives the lock back. None if another has the lock.

    Raises:
        BadInput: the file system has no locks.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked = filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        os.close(descriptor)
        raise BadInput(f"{path} cannot be locked ({error.strerror}): put --out on another file system") from None
    if locked:
        return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def alone(path: Path, *, poll: float = 0.01) -> Iterator[None]:
    """Wait for a lock and hold it inside the block; for short work on files that several workers write."""
    while (descriptor := take(path)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        os.close(descriptor)

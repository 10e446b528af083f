"""Locks that a process holds as long as it lives, and no longer.

A lock belongs to an open file (*filelock* takes it: ``flock``, or ``LockFileEx`` on Windows), so it is gone when the
last process that has the file open ends, however it ends. The process of a run inherits the lock on its run: if the
worker that started it is killed, the run stays locked until it ends, and nobody starts it a second time beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import filelock

from gradless.errors import BadInput

LOCK: Final = ".lock"  # in a folder that `claimed` holds
CLOSED: Final = -1  # in place of a descriptor, whose number may belong to another file by then
LONGEST_HOLDER: Final = 200  # bytes of a lock file that are read


class NoLocks(BadInput):
    """The file system has no locks."""


def take(path: Path) -> int | None:
    """Lock what ``path`` stands for, and write into it which process has it.

    Returns:
        A file descriptor; closing it gives the lock back. None if another has the lock.

    Raises:
        NoLocks: the file system has no locks.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = filelock.lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            os.close(descriptor)
            raise NoLocks(f"{path} cannot be locked ({error.strerror}): put --out on another file system") from None
        if locked and _is_file(descriptor, path):
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return descriptor
        os.close(descriptor)
        if not locked:
            return None  # else its last holder has removed the file in between


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder(path: Path) -> str:
    """Return which process has a lock file, such as ``process 12 on host``; empty if it does not say so."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_HOLDER).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if text.startswith("process ") and text.isprintable() else ""


@contextlib.contextmanager
def alone(path: Path, *, poll: float = 0.01) -> Iterator[None]:
    """Wait for a lock and hold it inside the block; for short work on files that several workers write."""
    while (descriptor := take(path)) is None:
        time.sleep(poll)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(folder: Path, *, option: str = "--out", say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a folder inside the block; whoever writes to a folder claims it before anything else.

    The folder is made if there is none. It is removed again, with those above it that were made, if the block leaves
    nothing in it. A folder that cannot be written to needs no lock.

    Args:
        folder: what to hold. A process cannot claim it twice.
        option: of the command line that named it, for sentences.
        say: receives one line if the file system has no locks; the block goes on without.

    Raises:
        BadInput: another process holds it, or it is a file.
        OSError: it cannot be made.
    """
    new_folders = _make(folder, option)
    descriptor = None
    try:
        descriptor = _claim(folder, option, say)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink()
            os.close(descriptor)
        for path in new_folders:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def _claim(folder: Path, option: str, say: Callable[[str], None]) -> int | None:
    """Lock a folder; returns None where there is nothing to lock."""
    path = folder / LOCK
    while True:
        try:
            descriptor = take(path)
        except NoLocks:
            say(f"{folder} is on a file system without locks: make sure that no other process works in it")
            return None
        except FileNotFoundError:  # whoever held it has just removed the empty folder
            folder.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None
            raise
        if descriptor is None:
            by = holder(path)
            who = f"another process ({by})" if by else "another process"
            raise BadInput(f"{who} is working on {folder}: wait for it, stop it, or choose another {option}")
        return descriptor


def _make(folder: Path, option: str) -> list[Path]:
    """Make a folder and return those that there were not, from the innermost out."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    above = next(path for path in (folder, *folder.parents) if path not in new)
    broken = next((path for path in new if path.is_symlink()), None)
    if broken is not None:
        raise BadInput(f"{broken} is a link that leads nowhere: remove it, or choose another {option}")
    if not above.is_dir():
        raise BadInput(f"{above} is a file, not a folder: choose another {option}")
    folder.mkdir(parents=True, exist_ok=True)
    return new


def opened_for_appending(path: Path) -> int:
    """Open a file that one process at a time appends to; the lock lasts until `close_appended`, or the process ends.

    Returns:
        A file descriptor.

    Raises:
        BadInput: another process has it open; two would interleave their records.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        locked = filelock.lock_descriptor(file, blocking=False)
    except OSError:  # a file system without locks
        locked = True
    if not locked:
        os.close(file)
        raise BadInput(f"another process is working on {path.parent}: wait for it, or stop it")
    return file


def close_appended(file: int) -> None:
    """Close what `opened_for_appending` returned.

    Processes that were forked meanwhile, such as the workers of a data loader, have the file open as well: the lock is
    given back all the same.
    """
    with contextlib.suppress(OSError):  # a file system without locks
        filelock.unlock_descriptor(file)
    os.close(file)

"""The folder where fetched and converted files are kept, and the one way anything gets into it.

An entry is built under a temporary name in the same folder and renamed when it is complete. So an entry that
exists is whole: a crash, a full disk or a second process at work leaves no half-written one behind.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gradless.errors import BadInput

Say = Callable[[str], None]

TEMPORARY: Final = ".building-"
STALE_SECONDS: Final = 24 * 3600.0


def quiet(_line: str) -> None:
    """The `Say` that says nothing."""


def cache_root() -> Path:
    """Return ``$GRADLESS_CACHE``, else ``$XDG_CACHE_HOME/gradless``, else ``~/.cache/gradless``."""
    if own := os.environ.get("GRADLESS_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "gradless"
    return Path.home() / ".cache" / "gradless"


def ensure(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder ``target``; if it is not there, let ``build`` fill an empty folder that becomes it.

    Two processes may build the same entry: the one that finishes first wins, the other's copy is dropped.

    Raises:
        BadInput: the cache cannot be written, or the disk is full (nothing is left behind).
    """
    if target.is_dir():
        return target
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=target.parent))
        build(scratch)
        scratch.chmod(0o755)  # mkdtemp's 0700 would lock others out of a shared cache
        _publish(scratch, target)
    except OSError as error:
        raise _explain(error, target) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _publish(scratch: Path, target: Path) -> None:
    try:
        scratch.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, and its entry is as good
            raise


def _sweep(folder: Path) -> None:
    """Remove what a killed process left, once it is too old to be anyone's work in progress."""
    for entry in folder.glob(TEMPORARY + "*"):
        try:
            if time.time() - entry.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        except OSError:
            continue


def _explain(error: OSError, target: Path) -> Exception:
    where = "point GRADLESS_CACHE to a folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadInput(f"the disk is full: free some space in {target.parent} or {where} on another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return BadInput(f"the cache {target.parent} cannot be written ({error.strerror}): {where} that can be")
    return error

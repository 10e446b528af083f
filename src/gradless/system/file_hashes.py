"""Hashes of files, remembered: a model of many gigabytes is read for its hash once, not at every start.

A hash is kept under the file's path, device, inode, size and times of change, and is used again only while all of these
are the same. A file that was changed less than `RECENT` seconds before it was read is never remembered: one more change
within the same tick of the clock of its file system would leave the times as they are. Who sets clocks back or writes
to the disk below its file system can still deceive it, so what *verifies* a run hashes anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from gradless.system import remembered
from gradless.system.hashing import file_sha256

FOLDER: Final = "hashes"
MOST: Final = 1024
"""Hashes that are kept, the newest ones."""
RECENT: Final = 2.0


def sha256(path: Path, *, anew: bool = False) -> str:
    """SHA-256 of a file.

    Args:
        path: of the file.
        anew: read the file whatever is remembered.

    Cost: one pass over the file, or a look at its times where it has been hashed before.
    """
    return derived([path], {}, lambda: file_sha256(path), anew=anew)


def files_sha256(paths: Iterable[Path], *, anew: bool = False) -> str:
    """SHA-256 of a file, or of the hexadecimal hashes of several, one after the other.

    Args:
        paths: the files, in their order.
        anew: read the files whatever is remembered.

    Cost: one pass over the files that have changed, several of them at once.
    """
    files = list(paths)
    with ThreadPoolExecutor(max(1, min(len(files), os.cpu_count() or 1))) as pool:  # hashlib releases the lock
        digests = list(pool.map(lambda path: sha256(path, anew=anew), files))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def derived(paths: Sequence[Path], facts: Mapping[str, Any], compute: Callable[[], str], *, anew: bool = False) -> str:
    """Return a hash that the contents of files decide, remembered as `sha256` is.

    Args:
        paths: the files.
        facts: what else decides it, as JSON.
        compute: the hash.
        anew: compute it whatever is remembered.
    """
    key = {"files": [_key(path) for path in paths], **facts}
    known = None if anew else remembered.read(FOLDER, key)
    if known is not None and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    digest = compute()
    changed = max((max(one["mtime_ns"], one["ctime_ns"]) for one in key["files"]), default=0) / 1e9
    if key["files"] and [_key(path) for path in paths] == key["files"] and changed < time.time() - RECENT:
        remembered.write(FOLDER, key, {"sha256": digest}, most=MOST)
    return digest


def _key(path: Path) -> dict[str, Any]:
    """What tells whether a file is the one that was hashed."""
    status = os.stat(path)
    return {
        "path": str(path.resolve()),
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }

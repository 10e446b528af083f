"""What was measured or computed once, kept in the cache folder of the user: one small JSON file for each key.

Processes at work together never write to one file, and nothing depends on the folder: where it is missing, read-only or
damaged, the work is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradless.system.atomic import NEW
from gradless.system.cache import cache_root

Key = Mapping[str, Any]
"""Values of JSON that decide a result."""


def read(folder: str, key: Key) -> dict[str, Any] | None:
    """Return what was kept under a key, or None.

    Args:
        folder: below the cache folder.
        key: what decides the values; it stands in the file and is compared.
    """
    try:
        values = json.loads(path_of(folder, key).read_bytes())
        return values if values["key"] == dict(key) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write(folder: str, key: Key, values: Mapping[str, Any], *, most: int) -> None:
    """Keep values under a key, where the cache folder can be written.

    Args:
        folder: below the cache folder.
        key: what decides the values.
        values: as JSON.
        most: files that are kept in the folder, the newest ones.
    """
    path = path_of(folder, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=NEW, dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps({"key": dict(key), **values}, indent=2) + "\n")
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock others out of a shared cache
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _shorten(path.parent, most)


def path_of(folder: str, key: Key) -> Path:
    """Return the file of a key."""
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    try:
        root = cache_root()
    except RuntimeError:  # a user without a home
        root = Path(os.devnull)  # below which nothing can be read or written
    return root / folder / f"{name}.json"


def _shorten(folder: Path, most: int) -> None:
    """Delete the oldest files, those too that a killed process left half-written."""
    ages = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages)[:-most]:
        with contextlib.suppress(OSError):
            path.unlink()

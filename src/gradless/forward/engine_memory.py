"""Which engine was faster: remembered for this machine and this shape of a step.

Every measurement is a small JSON file of its own, below ``engines`` in the cache folder of the user, so that processes
at work together never write to one file; in a process the measurements are known without files as well. Nothing depends
on the folder: where it is missing, read-only or damaged, the engines are measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gradless.system.atomic import NEW
from gradless.system.cache import cache_root

FOLDER: Final = "engines"
MOST: Final = 256
"""Files that are kept, the newest ones."""
_known: dict[Path, float] = {}

Key = Mapping[str, Any]


def recall(key: Key) -> float | None:
    """The ratio (`gradless.forward.engines.EngineChoice.ratio`) that was measured under a key; None: never."""
    path = _path(key)
    if path not in _known:
        try:
            values = json.loads(path.read_bytes())
            ratio = float(values["ratio"])
            if values["key"] != dict(key) or not math.isfinite(ratio) or ratio <= 0:
                return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        _known[path] = ratio
    return _known[path]


def remember(key: Key, ratio: float, rounds: int) -> None:
    """Keep a measurement, in this process and, where that can be written, in the cache folder."""
    path = _path(key)
    _known[path] = ratio
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=NEW, dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps({"key": dict(key), "ratio": ratio, "rounds": rounds}, indent=2) + "\n")
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock others out of a shared cache
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _shorten(path.parent)


def forget() -> None:
    """Forget what this process knows; files stay."""
    _known.clear()


def _path(key: Key) -> Path:
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    try:
        folder = cache_root()
    except RuntimeError:  # a user without a home
        folder = Path(os.devnull)  # below which nothing can be read or written
    return folder / FOLDER / f"{name}.json"


def _shorten(folder: Path) -> None:
    """Delete the oldest files, those too that a killed process left half-written."""
    ages = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages)[:-MOST]:
        with contextlib.suppress(OSError):
            path.unlink()

"""Which engine was faster: remembered for this machine and this shape of a step.

Measurements are small files in the cache folder of the user (`gradless.system.remembered`); in a process they are known
without files as well. Where there are none, the engines are measured again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from gradless.system import remembered
from gradless.system.remembered import Key

FOLDER: Final = "engines"
MOST: Final = 256
"""Measurements that are kept, the newest ones."""
_known: dict[Path, float] = {}


def recall(key: Key) -> float | None:
    """The ratio (`gradless.forward.engines.EngineChoice.ratio`) that was measured under a key; None: never."""
    path = remembered.path_of(FOLDER, key)
    if path not in _known:
        try:
            ratio = float((remembered.read(FOLDER, key) or {})["ratio"])
        except (LookupError, ValueError, TypeError):
            return None
        if not math.isfinite(ratio) or ratio <= 0:
            return None
        _known[path] = ratio
    return _known[path]


def remember(key: Key, ratio: float, rounds: int) -> None:
    """Keep a measurement, in this process and, where that can be written, in the cache folder."""
    _known[remembered.path_of(FOLDER, key)] = ratio
    remembered.write(FOLDER, key, {"ratio": ratio, "rounds": rounds}, most=MOST)


def forget() -> None:
    """Forget what this process knows; files stay."""
    _known.clear()

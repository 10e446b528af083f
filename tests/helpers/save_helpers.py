"""A tuned run to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import run_helpers as h
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)


LARGE = {"full": 1e-3, "lora": 1e-2, "prefix": 1e-2, "prompt": 1e-2, "head": 1e-2}


def tuned(folder: Path, **changes: Any) -> Path:
    """A finished run that moved its weights far enough to be seen in 16 bits."""
    changes.setdefault("lr", LARGE[changes.get("scheme", "full")])
    h.tune(h.config(folder, **changes), folder / "run")
    return folder / "run"

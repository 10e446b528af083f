"""A tuned run to save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import run_helpers as h
from gradless import ledger
from gradless.runs import build, card
from gradless.runs.usage import Usage
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)


LARGE = {"full": 1e-3, "lora": 1e-2, "prefix": 1e-2, "prompt": 1e-2, "head": 1e-2}


def tuned(folder: Path, **changes: Any) -> Path:
    """A finished run that moved its weights far enough to be seen in 16 bits."""
    changes.setdefault("lr", LARGE[changes.get("scheme", "full")])
    h.tune(h.config(folder, **changes), folder / "run")
    return folder / "run"


def facts_of(folder: Path) -> card.Facts:
    """What the card of a run's selected step is made from."""
    contents, result = ledger.read(folder / "ledger"), json.loads((folder / "result.json").read_text())
    return card.Facts(
        name="x",
        location="me/x",
        config=build.TuneConfig.from_json(contents.header["config"]),
        masked=False,
        use=Usage("", "code", 9),
        step=result["selected_step"],
        header=contents.header,
        result=result,
        ledger_bytes=contents.good_bytes,
        sha256=result["weights_sha256"],
    )

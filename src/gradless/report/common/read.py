"""Reading what runs wrote, whatever state it is in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none that can be read."""
    try:
        return mapping(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def parse_json(text: str) -> Any:
    """What JSON text of a run holds; NaN too, which earlier releases wrote.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def mapping(value: Any) -> dict[str, Any]:
    """A dictionary, empty for anything else."""
    return dict(value) if isinstance(value, Mapping) else {}

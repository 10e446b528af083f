"""Reading what runs wrote, whatever state it is in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradless.system.typed import parse_json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none that can be read."""
    try:
        return mapping(parse_json(path.read_text()))
    except (OSError, ValueError):
        return {}


def mapping(value: Any) -> dict[str, Any]:
    """A dictionary, empty for anything else."""
    return dict(value) if isinstance(value, Mapping) else {}

"""Reading what runs wrote, whatever state it is in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradless import plugins
from gradless.errors import BadInput


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


def plugin_note(configs: Iterable[Mapping[str, Any]], names: plugins.Names) -> str:
    """Say which plugins of runs are not loaded, or others than theirs; empty if none.

    Args:
        configs: of the runs, as their files hold them.
        names: parts that the runs name, by table; installed packages that define them are imported.
    """
    for table, some in names.items():
        for name in some:
            with contextlib.suppress(BadInput):  # the page does without
                plugins.find(table, name)
    recorded = {str(key): str(value) for config in configs for key, value in mapping(config.get("plugins")).items()}
    return plugins.note(recorded)

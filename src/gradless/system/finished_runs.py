"""Finished runs of an earlier benchmark or comparison, taken over from its ``results.jsonl``.

A run's id is the hash of what determines its result, so a line with the id of a run that is asked for is its result,
whichever machine made it. What a machine decides (seconds, memory) stays that of the one which made the run; a line
that was taken over names its file in ``reused``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradless.errors import BadInput
from gradless.system.atomic import write_json
from gradless.system.typed import parse_json

REUSED = "reused.json"


def finished(path: Path, runs: Iterable[str], statuses: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return lines of a ``results.jsonl`` by id: those of ``runs`` that ended with one of ``statuses``.

    Raises:
        BadInput: the file is missing or damaged, is none of gradless, or has none of these runs.
    """
    try:
        lines = [parse_json(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
        by_id = {line["id"]: {**line, "reused": path.name} for line in lines if line["status"] in statuses}
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}): give the results.jsonl of finished runs") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} has damaged or foreign lines: give the results.jsonl of finished runs") from None
    finished_here = {run: by_id[run] for run in runs if run in by_id}
    if not finished_here:
        raise BadInput(
            f"{path} has no finished run that is asked for here: settings, data or the release of gradless "
            "differ; run without --reuse"
        )
    return finished_here


def take_over(lines: dict[str, dict[str, Any]], runs: Path) -> int:
    """Write lines to the directories of their runs and return how many; a run that has begun stays as it is."""
    new = [run for run in lines if not (runs / run).exists()]
    for run in new:
        (runs / run).mkdir(parents=True)
        write_json(runs / run / REUSED, lines[run])
    return len(new)


def line(folder: Path) -> dict[str, Any] | None:
    """Return the line that was taken over into a run directory; None if there is none that can be read."""
    try:
        taken_over = parse_json((folder / REUSED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return taken_over if isinstance(taken_over, dict) and {"id", "status"} <= taken_over.keys() else None


def origin(records: Iterable[dict[str, Any]]) -> str:
    """Return what a table of costs must say of its runs: a sentence if some were taken over, else ``""``."""
    files = [str(record["reused"]) for record in records if record.get("reused")]
    if not files:
        return ""
    return (
        f" {len(files)} of the runs were taken over from {', '.join(sorted(set(files)))}, with the seconds and the "
        "memory of the machine that made them."
    )

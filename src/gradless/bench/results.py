"""``results.jsonl`` of a bench directory, made from requests and run directories.

Beside what `gradless tune` writes, the directory of a run holds ``process.json`` (how long its processes took) and,
if it failed, ``failed.json`` with the reason; without that file the run is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradless.bench.grid import ZERO_SHOT, Request
from gradless.lm.metrics import METRICS
from gradless.runs.record import INTERRUPTED, read_events
from gradless.system import finished_runs
from gradless.system.atomic import write_json, write_text
from gradless.system.side_files import read_json, read_jsonl

FAILED = "failed"
RESULTS = "results.jsonl"
LINE = {"id", "phase", "cell", "status"}  # what others read of a line
NUMBERS = ("loss", *METRICS)
COPIED = ("steps", "selected_step", "forwards", "train_seconds", "seconds_per_step")
MEASURED = ("peak_memory_bytes", "inference_memory_bytes", "tuned_parameters")


def run_folder(out: Path, run: str) -> Path:
    """Return the directory of a run."""
    return out / "runs" / run


def request_file(out: Path, run: str) -> Path:
    """Return the file of a request."""
    return out / "requests" / f"{run}.json"


def line(out: Path, request: Request) -> dict[str, Any] | None:
    """Return the line of a run in ``results.jsonl``, or None if the run is not finished.

    ``curve`` has the dev evaluations during training, each with the forwards and the training seconds up to then.
    ``overhead`` is what the processes of the run took beyond training, evaluation and the forwards that measure the
    memory of inference: starting, loading, hashing, replaying, writing; None where a process ended unseen, so that
    its time is not known.
    """
    taken_over = finished_runs.line(run_folder(out, request.id))
    if taken_over is not None:  # from a grid that may have called its cell, point and rung otherwise
        return {**taken_over, **_asked(request)}
    try:
        return _own_line(out, request)
    except (KeyError, TypeError, ValueError, AttributeError):  # files of another shape: as good as none
        return None


def _own_line(out: Path, request: Request) -> dict[str, Any] | None:
    folder = run_folder(out, request.id)
    result = _read(folder / "result.json", status=str)
    extended = result is not None and result.get("steps", 0) > request.config.steps  # it is another run now
    if result is None or extended or result["status"] == INTERRUPTED:
        result = _read(folder / "failed.json", status=str)
        if result is None:
            return None
    log = read_events(folder / "metrics.jsonl")
    zero_shot = request.phase == ZERO_SHOT
    steps, forwards = result.get("steps", 0), 0 if zero_shot else result.get("forwards", 0)
    line = {
        **_asked(request),
        "status": result["status"],
        "reason": result.get("reason") or (f"diverged at step {steps}" if result["status"] == "diverged" else ""),
        **{name: result.get(name, 0) for name in COPIED},
        "forwards": forwards,  # of training
        "forwards_per_step": forwards / steps if steps else 0,
        **{name: result.get(name, 0) for name in MEASURED},
        "dev": result.get("dev", {}),
        "test": result.get("test", {}),
        "zero_shot": result.get("test" if zero_shot else "zero_shot", {}),
        "curve": curve(log),
    }
    evaluating = sum(entry.get("seconds", 0.0) for entry in log if entry["event"] in ("eval", "inference"))
    evaluating += result.get("seconds", 0.0) if zero_shot else 0.0
    return {**line, **_times(folder, line["train_seconds"] + evaluating)}


def _asked(request: Request) -> dict[str, Any]:
    """Return what a line tells of its request."""
    asked = request.to_json()
    del asked["config"]
    return asked


def curve(log: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the dev evaluations of a run with what was spent on training until then.

    Args:
        log: lines of ``metrics.jsonl``. A crash can lose the line of a step; the next line stands in for it.
    """
    log = list(log)
    steps = {line["step"]: line for line in log if line["event"] == "step"}
    dev = {line["step"]: line for line in log if line["event"] == "eval" and line["split"] == "dev" and line["step"]}
    points, forwards, seconds, start = [], 0, 0.0, 0
    for step in sorted(dev):
        for number in range(start, step):
            nearest = next((steps[n] for n in range(number, step) if n in steps), None)
            forwards += nearest["forwards"] if nearest else 0
            seconds += nearest["seconds"] if nearest else 0.0
        start = step
        scores = {name: dev[step][name] for name in NUMBERS if name in dev[step]}
        points.append({"step": step, "forwards": forwards, "seconds": seconds, **scores})
    return points


def rebuild(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write ``results.jsonl``, sorted by id, whole or not at all."""
    ordered = sorted(lines, key=lambda one: one["id"])
    write_text(out / RESULTS, "".join(json.dumps(one, allow_nan=False) + "\n" for one in ordered))


def read(out: Path) -> list[dict[str, Any]]:
    """Return the lines of ``results.jsonl``; none if there is no such file."""
    path = out / RESULTS
    return [line for line in read_jsonl(path)[0] if line.keys() >= LINE]


def overhead(out: Path) -> float:
    """Return the share of all run time that was neither training nor evaluation; 0.0 before a run is finished."""
    timed = [one for one in read(out) if one.get("overhead") is not None and one.get("wall_seconds")]
    whole = sum(one["wall_seconds"] for one in timed)
    return sum(one["overhead"] for one in timed) / whole if whole else 0.0


# ---------------------------------------------------------------------------------------------------------------
# processes of runs


def began(folder: Path, threads: int | None) -> None:
    """Record that a process of a run begins."""
    known = _process(folder) or {"wall_seconds": 0.0, "launches": 0, "whole": True}
    changes = {
        "launches": known["launches"] + 1,
        "threads": threads,
        "whole": known["whole"] and not known.get("running"),  # else an earlier one ended unseen
        "running": True,
    }
    write_json(folder / "process.json", {**known, **changes})


def ended(folder: Path, seconds: float) -> None:
    """Record that the process of a run has ended."""
    known = _process(folder)
    total = known.get("wall_seconds", 0.0) + seconds
    write_json(folder / "process.json", {**known, "wall_seconds": total, "running": False})


def settled(out: Path, run: str) -> bool:
    """Return whether all that will be known of a finished run is written."""
    return not _process(run_folder(out, run)).get("running")


def failed(folder: Path, reason: str, code: int, stderr: str) -> None:
    """Record a run that failed."""
    write_json(folder / "failed.json", {"status": FAILED, "reason": reason, "exit_code": code, "stderr": stderr})


def _times(folder: Path, accounted: float) -> dict[str, Any]:
    process = _process(folder)
    wall = process.get("wall_seconds", 0.0)
    known = process.get("whole") and not process.get("running")
    return {
        "threads": process.get("threads"),
        "wall_seconds": wall if known else None,
        "overhead": wall - accounted if known else None,
    }


def _process(folder: Path) -> dict[str, Any]:
    return _read(folder / "process.json", wall_seconds=(int, float), launches=int, whole=bool) or {}


def _read(path: Path, **needed: type | tuple[type, ...]) -> dict[str, Any] | None:
    """Return what a side file holds; None where there is none, or it is not what a run has written."""
    values = read_json(path)
    sound = isinstance(values, dict) and all(isinstance(values.get(name), kind) for name, kind in needed.items())
    return values if sound else None

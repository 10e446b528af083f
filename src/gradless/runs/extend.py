"""Another number of steps for a run that has begun: it may have it if each step so far would have been the same.

An extended run ends with the files of a run that had this number of steps from the start: the weights, the ledger to
its last byte, and the evaluations. Its files change in an order that leaves a run to continue wherever a crash comes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradless import __version__, ledger
from gradless.errors import BadInput
from gradless.estimators import linear_queries
from gradless.forward.engines import AUTO
from gradless.gradients import Update
from gradless.ledger import Contents
from gradless.methods import METHODS
from gradless.rules import SCHEDULES
from gradless.runs import build, predictions
from gradless.runs.build import Say
from gradless.runs.config import TuneConfig, read_config, read_values
from gradless.runs.record import DIVERGED, DONE, read_result
from gradless.system.atomic import replacing


def settled(config: TuneConfig, folder: Path, resume: bool) -> TuneConfig:
    """Return the configuration with nothing left open.

    A resumed run keeps its engine, the steps between its evaluations, the walk that was measured and the commits of its
    data on the hub, unless others are asked for.
    """
    if not resume or not (folder / "config.json").exists():
        return config.resolved()
    held = read_config(folder)
    names = ("engine", "eval_every", *(("walk",) if config.lr == "auto" else ()))
    kept = {name: getattr(held, name) for name in names if getattr(config, name) in (None, AUTO)}
    return build.pinned(dataclasses.replace(config, **kept).resolved(), held)


def dependence(old: TuneConfig, new: TuneConfig, done: int) -> str:
    """Return what makes the first ``done`` steps differ between two numbers of steps; empty if nothing does."""

    def rates(config: TuneConfig) -> Iterator[float]:
        return map(SCHEDULES[config.schedule](1.0, config.steps, config.warmup), range(done))

    def queries(config: TuneConfig) -> Iterator[int]:
        return map(linear_queries(config.queries or 1, config.steps), range(done))

    if old.steps == new.steps or not done:
        return ""
    if not METHODS[old.method].replays:
        return f"the method {old.method}"
    unknown = old.lr == "auto" and old.walk is None  # a run of a release that measured none
    if unknown or (old.lr == "auto" and build.auto_rate(old) != build.auto_rate(new)):
        return "--lr auto"
    if any(a != b for a, b in zip(rates(old), rates(new), strict=True)):
        return f"a {old.schedule} learning rate"
    if old.query_schedule == "linear" and any(a != b for a, b in zip(queries(old), queries(new), strict=True)):
        return "a linear query schedule"
    return ""


def check_auto_rate(config: TuneConfig, updates: Sequence[Update]) -> None:
    """Refuse to go on with --lr auto where it stood for another rate when the run began.

    Raises:
        BadInput: another release took these steps at another rate.
    """
    if config.lr != "auto" or not updates:
        return
    rate, held = SCHEDULES[config.schedule](build.auto_rate(config), config.steps, config.warmup)(0), updates[0].lrs[0]
    if not math.isclose(rate, held, rel_tol=1e-6):
        raise BadInput(
            f"--lr auto stood for a rate of {held:.3g} when this run began, and stands for {rate:.3g} in gradless "
            f"{__version__}: start a new run with another --out"
        )


def check(held: TuneConfig, config: TuneConfig, folder: Path) -> None:
    """Check that the run in a folder can go on to another number of steps.

    Raises:
        BadInput: it has taken more steps, it diverged, no ledger continues it, or its steps depend on their number.
    """
    path, result = folder / "ledger", read_result(folder)
    done = len(ledger.read(path).moves) if path.exists() else 0
    anew = f"start a new run with --steps {config.steps} and another --out"
    if not METHODS[held.method].replays:
        raise BadInput(f"{folder} holds {held.steps} steps of {held.method}, which no ledger can continue: {anew}")
    if result is not None and result["status"] == DIVERGED:
        raise BadInput(f"{folder} diverged after {done} steps: start a new run with a lower --lr and another --out")
    if config.steps < done:
        raise BadInput(
            f"{folder} has taken {done} steps, more than --steps {config.steps}: leave --steps out, or rebuild that "
            f"step with 'gradless replay {folder} --until {config.steps} --save DIR'"
        )
    if reason := dependence(held, config, done):
        raise BadInput(f"{folder} has {reason}, which depends on the number of steps ({held.steps}): {anew}")


def begin(config: TuneConfig, folder: Path, done: int, say: Say) -> None:
    """Write another number of steps into ``config.json``, if it is another.

    The result of the earlier end is kept as ``result-STEPS.json``: nobody takes it for that of the longer run.
    """
    held, result = read_config(folder), read_result(folder)
    if held.steps == config.steps:
        return
    values = {**read_values(folder), "steps": config.steps}
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            if result is not None and result["status"] == DONE:
                (folder / "result.json").replace(folder / f"result-{result['steps']}.json")
            (folder / "result.json").unlink()
        (folder / predictions.FILE).unlink(missing_ok=True)
    say(f"{folder} goes on from step {done} to step {config.steps} instead of {held.steps}")


def relabel(config: TuneConfig, path: Path, contents: Contents) -> Contents:
    """Write the number of steps into the ledger's header, if it is another there; returns the ledger as it is then."""
    header: dict[str, Any] = contents.header
    if header["config"]["steps"] == config.steps:
        return contents
    return ledger.relabel(path, contents, {**header, "config": {**header["config"], "steps": config.steps}})

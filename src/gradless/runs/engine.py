"""The engine of a run: chosen before its first step where ``auto`` was asked for, recorded, and kept from then on."""

from __future__ import annotations

import dataclasses
from typing import Any

from gradless.forward.engines import AUTO, STREAM, EngineChoice
from gradless.ranks import DIRECTIONS
from gradless.runs.config import RECORDED, TuneConfig, read_values
from gradless.runs.context import RunContext, closure_of
from gradless.runs.replay import shared


def settled(run: RunContext) -> tuple[RunContext, EngineChoice | None]:
    """Return the run with an engine in place of ``auto``, and how it was chosen; None: it was named.

    Collective. Cost: `gradless.ZerothOrder.choose_engine` on the batch of the next step; nothing where the run has
    chosen before.
    """
    evaluator, opt = run.model.optimizer.evaluator, run.model.optimizer
    if run.config.engine != AUTO:
        evaluator.choice = _recorded(run)
        return run, evaluator.choice
    if reason := _one_by_one(run):
        evaluator.settle(EngineChoice(STREAM, reason=reason))
    else:
        opt.choose_engine(closure_of(run, opt.t))
    return run._replace(config=dataclasses.replace(run.config, engine=opt.engine)), evaluator.choice


def _one_by_one(run: RunContext) -> str:
    """Return why a run must evaluate one point at a time; empty if it may do otherwise."""
    if run.objective.of_texts is not None and not run.model.optimizer.estimator.rows:
        return "text is generated token by token, for one point at a time"
    if run.config.split == DIRECTIONS:
        return "the last bits of a loss must not depend on how many points a process evaluates"
    return ""


def _recorded(run: RunContext) -> EngineChoice | None:
    """Return what a run that goes on has recorded of its choice, unless its engine was named since."""
    if not (run.folder / "config.json").exists():
        return None
    choice = EngineChoice.from_json(read_values(run.folder).get(RECORDED))
    return choice if choice is not None and choice.engine == run.config.engine else None


def in_header(header: dict[str, Any], config: TuneConfig, choice: EngineChoice | None) -> dict[str, Any]:
    """Return the header of a ledger with what was measured before the first step, and how an engine was chosen."""
    chosen = {} if choice is None else {"engine": choice.to_json()}
    return {**header, "config": shared(config).to_json(), **chosen}

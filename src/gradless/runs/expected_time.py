"""What a run is expected to take, from one timed forward pass of a training batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

import torch

from gradless.kernels import products
from gradless.lm import LanguageModel
from gradless.lm.encode import Encoded
from gradless.lm.objectives import Objective
from gradless.runs import build
from gradless.runs.context import RunContext
from gradless.runs.facts import Time
from gradless.runs.record import RunLog
from gradless.tasks import Task

ALONE: Final = ("gold", "lm")
"""Objectives that read the right option of a row and no other."""
SAMPLED: Final = 100
"""Steps whose cost stands for all, where it changes from step to step."""
FEW: Final = 8
MANY: Final = 16 * FEW
"""Rows of which an evaluation takes so long that it is worth a forward of `FEW` to tell how long."""


def of_run(run: RunContext, log: RunLog, done: int) -> Time:
    """Return what is left of a run is expected to take, its evaluations included.

    Args:
        run: With the rows as tokens.
        log: Evaluations that it has are not made again.
        done: Steps that the ledger has.

    Cost: one forward of a training batch (of its first micro-batch), or two on an accelerator, where the first one is
    slow.
    """
    config, lm, train = run.config, run.model.lm, run.encoded["train"]
    chosen = build.batch_indices(len(train), config.batch_size, config.seed, done)
    rows = [train[i] for i in chosen[: config.micro_batch_size]]
    seconds = timed(lm, run.objective, rows)
    alone = run.objective.name in ALONE
    each = seconds / num_tokens(rows, alone=alone)
    sampled = range(done, config.steps, max(1, (config.steps - done) // SAMPLED))
    forwards = statistics.fmean(map(run.model.optimizer.cost, sampled)) if sampled else 0.0
    tokens = (config.steps - done) * forwards * config.batch_size * num_tokens(train, alone=alone) / len(train)
    parts = [f"{config.steps - done} steps of {forwards:.3g} forwards"]
    for split, count in _evaluations(run, log, done).items():
        if count:
            generated = run.task.max_new_tokens * len(run.encoded[split]) if run.task.kind == "generation" else 0
            tokens += count * (num_tokens(run.encoded[split]) + generated)
            parts.append(f"{count} evaluation{'s' if count > 1 else ''} of {split}")
    processes = run.ranks.size if run.ranks is not None else 1
    how = f"{', '.join(parts)}; from one timed forward of {len(rows)} rows, {seconds:.3g} s"
    return Time(seconds=tokens * each / processes, how=how)


def of_evaluation(lm: LanguageModel, objective: Objective, task: Task, rows: Sequence[Encoded]) -> Time | None:
    """Return what an evaluation of rows is expected to take; None where it is over before that is known.

    Cost: one forward of `FEW` rows.
    """
    if len(rows) < MANY:
        return None
    few = rows[:FEW]
    seconds = timed(lm, objective, few)
    tokens = num_tokens(rows) + (task.max_new_tokens * len(rows) if task.kind == "generation" else 0)
    alone = objective.name in ALONE
    how = f"from one timed forward of {FEW} rows, {seconds:.3g} s"
    return Time(seconds=tokens * seconds / num_tokens(few, alone=alone), how=how)


@torch.no_grad()
def timed(lm: LanguageModel, objective: Objective, rows: Sequence[Encoded]) -> float:
    """Return the seconds of one forward of some rows."""
    batch = objective.prepare(lm, rows)
    for _ in range(1 if lm.device.type == "cpu" else 2):
        begun = time.perf_counter()
        with products.faster():
            float(objective.loss(lm, batch))  # the number waits for the device
        seconds = time.perf_counter() - begun
    return seconds


def num_tokens(rows: Sequence[Encoded], *, alone: bool = False) -> int:
    """Return the tokens of all options of rows, or of the right one ``alone``."""
    return sum(row.longest * (1 if alone else row.sequences) for row in rows)


def _evaluations(run: RunContext, log: RunLog, done: int) -> dict[str, int]:
    """Return how often dev and test will be evaluated."""
    config = run.config
    assert config.eval_every is not None
    due = config.steps // config.eval_every - done // config.eval_every + (config.steps % config.eval_every > 0)
    untuned = {split: config.zero_shot and log.evaluation(split, 0) is None for split in ("dev", "test")}
    counts = {"dev": due + untuned["dev"], "test": 1 + untuned["test"]}
    return {split: count for split, count in counts.items() if run.encoded.get(split)}

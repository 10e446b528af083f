"""What the parts of a run share: its configuration, data and model, and how they evaluate rows and choose a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gradless.lm import encode, evaluate, objectives
from gradless.lm.encode import Encoded
from gradless.lm.evaluate import Evaluation
from gradless.lm.metrics import REWARDS
from gradless.lm.objectives import Objective
from gradless.lm.rewarded import RewardClosure, Sampling, drawn
from gradless.ranks import BATCH, Ranks
from gradless.rewards import Rewards
from gradless.runs import build
from gradless.runs.build import Model
from gradless.runs.config import TuneConfig
from gradless.runs.record import RunLog
from gradless.system.progress import Reporter
from gradless.tasks import Row, Splits, Task


class RunContext(NamedTuple):
    """What a run works with."""

    config: TuneConfig
    folder: Path
    task: Task
    splits: Splits
    objective: Objective
    model: Model
    reporter: Reporter
    ranks: Ranks | None = None
    encoded: Mapping[str, Sequence[Encoded]] = {}
    """Rows as the tokens that this model reads, by split; of a split that is missing they are made when needed."""
    rewards: Rewards | None = None
    """Functions that the run is trained on."""


def closure_of(run: RunContext, step: int) -> Callable[[], Tensor]:
    """Return what measures the loss of this rank's share of a step's batch."""
    lm, objective, batches = run.model.lm, run.objective, batches_of(run, step)
    if objective.of_texts is None:
        return lambda: objectives.loss_over(lm, objective, batches)
    # F1 is that of greedy answers, as published (MeZO, section 3.3); members of a reward's population are sampled.
    sampling = Sampling(run.config.temperature if objective.passes is not None else 0.0, run.config.seed)
    return RewardClosure(lm, objective, batches, sampling, rows=run.model.optimizer.estimator.rows)


def batches_of(run: RunContext, step: int) -> list[Any]:
    """Return this rank's share of a step's batch, as its objective takes it, and give the share its weight."""
    config, encoded = run.config, run.encoded["train"]
    rows = [encoded[i] for i in build.batch_indices(len(encoded), config.batch_size, config.seed, step)]
    if run.objective.of_texts is not None:
        rows = drawn(rows, f"step/{step}")
    if config.micro_batch_size:
        rows.sort(key=lambda row: row.longest)  # like lengths share a micro-batch: less padding
    batches = objectives.prepare(run.model.lm, run.objective, shard(rows, run.ranks), config.micro_batch_size)
    if run.ranks is not None:
        run.ranks.weight = sum(batch.weight for batch in batches)
    return batches


def shard(rows: list[Encoded], ranks: Ranks | None) -> list[Encoded]:
    """Return this rank's part of a batch."""
    return rows if ranks is None or ranks.split != BATCH else list(ranks.own(rows))


def evaluate_split(run: RunContext, split: str, title: str, *, predict: bool = True) -> Evaluation:
    """Evaluate the model on a split and say the first metric and the loss; the run's progress bar stays as it is."""
    rows: Sequence[Row] = getattr(run.splits, split)
    evaluation = evaluate.evaluate(
        run.model.lm,
        run.task,
        rows,
        max_length=run.config.max_length,
        objective=run.objective,
        predict=predict,
        ranks=run.ranks,
        encoded=run.encoded.get(split),
    )
    scores = [*evaluation.metrics.items()][:1]
    if evaluation.loss is not None:
        scores.append(("loss", evaluation.loss))
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in scores)
    side = encode.cut_side(run.model.lm)
    cut = f"; {evaluation.cut} longer than {evaluation.limit} tokens, without their {side}" if evaluation.cut else ""
    run.reporter.say(f"{title}: {numbers}  ({len(rows)} rows, {evaluation.seconds:.0f} s{cut})")
    return evaluation


def selection_key(run: RunContext) -> tuple[str, int]:
    """Return the name of the number that ``select`` compares on dev, and 1 if lower is better, else -1."""
    measured = REWARDS if run.objective.passes is not None else run.task.metrics
    key = "loss" if run.config.select == "loss" else measured[0]
    return key, 1 if key == "loss" else -1


def selected_step(run: RunContext, log: RunLog, trained: int) -> int:
    """Return the step whose dev loss was lowest (or metric highest), or ``trained`` if dev was never evaluated."""
    key, sign = selection_key(run)
    lines = [line for line in log.of("eval") if line["split"] == "dev" and 0 < line["step"] <= trained]
    finite = [line for line in lines if line.get(key) is not None and math.isfinite(line[key])]
    best = min(finite, key=lambda line: (sign * line[key], line["step"]), default={"step": trained})
    return int(best["step"])

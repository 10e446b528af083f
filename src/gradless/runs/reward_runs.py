"""What a run on a reward does beside other runs: its functions, what its steps and evaluations note, pass@k."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from gradless import rewards
from gradless.errors import Diverged
from gradless.estimators import Estimator
from gradless.lm import metrics, objectives
from gradless.lm.batching import Prompts, groups
from gradless.lm.encode import Encoded
from gradless.lm.generation import write
from gradless.lm.loading import LanguageModel
from gradless.lm.objectives import Objective
from gradless.lm.predict import default_batch_tokens
from gradless.lm.rewarded import RewardClosure, Sampling
from gradless.methods import METHODS
from gradless.rewards import Rewards
from gradless.runs.config import TuneConfig, read_values
from gradless.runs.context import RunContext
from gradless.runs.record import RunLog
from gradless.runs.reward_settings import SOURCES
from gradless.tasks import Row, Splits, Task

ANSWERS: Final = "answers"
"""Column of the accepted answers, which rows of tasks that have some get."""
UNREWARDED: Final = 5
"""Steps in a row without any reward after which a run ends."""


def load(config: TuneConfig, task: Task, splits: Splits, say: Callable[[str], None]) -> Rewards | None:
    """Return the reward functions of a run, checked against the columns of its rows; None without any.

    Raises:
        BadInput: a function that is not there, or takes other parameters.
    """
    if not config.reward:
        return None
    row: Row = next((rows[0] for rows in splits[:3] if rows), {})
    held = row.get("columns", row)
    columns = [*(held if isinstance(held, dict) else row)]
    if task.render is not None and row and task.render(dict(row)).answers:
        columns.append(ANSWERS)
    return rewards.load(config.reward, config.reward_weight, timeout=config.reward_timeout, columns=columns, say=say)


def objective(config: TuneConfig, task: Task, functions: Rewards | None) -> Objective:
    """Return the objective of a run.

    Raises:
        BadInput: it does not fit the task or the method.
    """
    scored = None if functions is None else objectives.rewarded(functions, config.pass_reward)
    differentiates, limit = METHODS[config.method].differentiates, config.max_length
    return objectives.choose(task, config.objective, backprop=differentiates, rewards=scored, max_length=limit)


def sources(functions: Rewards | None) -> dict[str, Any]:
    """Return what ``config.json`` records of reward functions: the hashes of their files."""
    return {SOURCES: functions.sources} if functions is not None and functions.sources else {}


def of_step(closure: Any, estimator: Estimator, step: int, loss: float) -> dict[str, Any]:
    """Return what the log of a step says of its texts; nothing if none were written.

    Args:
        closure: that measured it.
        estimator: that compared the losses; what was evaluated after its points was a check.
        step: of the run.
        loss: of the step, of all ranks.
    """
    if not isinstance(closure, RewardClosure) or not closure.members:
        return {}
    members = closure.members[: estimator.forwards(estimator.queries(step))]
    return {
        "reward": 0.0 - loss if math.isfinite(loss) else None,
        "reward_members": [_number(one.reward) for one in members],
        "valid": _mean([one.valid for one in members]),
        "completion_tokens": _mean([one.tokens for one in members]),
    }


class Comparisons:
    """Counts the steps whose members could not be compared, those in the log first.

    Args:
        run: a run on a reward.
        log: what it has done so far.

    Cost: one pass over the log; nothing of its length for a step.
    """

    def __init__(self, run: RunContext, log: RunLog) -> None:
        self._run = run
        self._count = self._unrewarded = 0
        for line in log.of("step"):
            self._add(line)

    def _add(self, line: Mapping[str, Any]) -> bool:
        """Count the line of a step; returns whether its members could not be compared."""
        if "reward_members" not in line:
            return False
        equal = _incomparable(line)
        self._count += equal
        self._unrewarded = self._unrewarded + 1 if line["reward"] is None else 0
        return equal

    def check(self, line: Mapping[str, Any]) -> None:
        """Say that the members of a step could not be compared: the first time, and as often as powers of two.

        Raises:
            Diverged: in so many steps in a row no text had a reward.
        """
        if not self._add(line):
            return
        functions = self._run.rewards
        if self._unrewarded >= UNREWARDED:
            raise Diverged(f"in {UNREWARDED} steps in a row no text had a reward: {_reason(functions)}")
        if self._count & (self._count - 1) == 0:
            self._run.reporter.warn(incomparable(line["step"], [line["reward"]], self._count, functions))


def incomparable(
    step: int, rewards: Sequence[float | None], count: int, functions: Rewards | None, *, of_all: str = ""
) -> str:
    """Return a sentence about a step whose members could not be compared.

    Args:
        step: the step.
        rewards: that all members of a batch had, for each such batch; None: none had one.
        count: of such batches so far.
        functions: that gave no reward.
        of_all: whose members they are, where there are several peers.
    """
    if None in rewards:
        why, fix = "no text has a reward", _reason(functions)
    else:
        same = len(set(rewards)) == 1
        why = f"all have the reward {rewards[0]:.4g}" if same else "all of a peer have the same reward"
        fix = "raise --eps or --batch-size, or grade the reward"
    return f"step {step}: the members{of_all} cannot be compared, {why} (such batches so far: {count}): {fix}"


def counted(functions: Rewards | None, equal_steps: int) -> dict[str, Any]:
    """Return what a ``result.json`` says under ``rewards``; nothing where nothing is rewarded."""
    if functions is None:
        return {}
    return {"rewards": {**dataclasses.asdict(functions.counts), "equal_steps": equal_steps}}


def _incomparable(line: Mapping[str, Any]) -> bool:
    """Return whether the members of a step were all as good, or could not be told: nothing moves."""
    return not any(line["coeffs"] or ())


def _reason(functions: Rewards | None) -> str:
    error = functions.counts.last_error if functions is not None else ""
    return f"correct the reward function, which says: {error}" if error else "let the reward function return numbers"


def note_changes(functions: Rewards, folder: Path, warn: Callable[[str], None]) -> None:
    """Say so if the file of a function is another one than when the run in a folder began."""
    if not (folder / "config.json").exists():
        return
    recorded = read_values(folder).get(SOURCES)
    for name, sha256 in functions.sources.items():
        if isinstance(recorded, dict) and recorded.get(name, sha256) != sha256:
            warn(f"{name} has changed since the run began: the steps that follow are measured by what it is now")


def sample(run: RunContext, log: RunLog, step: int) -> None:
    """Sample texts behind the test rows for pass@k, if the run asks for it, unless the log has that already."""
    config, encoded = run.config, run.encoded.get("test")
    if not config.samples or not encoded or run.objective.passes is None or samples_at(log, step) is not None:
        return
    sampling = Sampling(config.temperature, config.seed)
    values = sampled(run.model.lm, run.objective, encoded, config.samples, sampling)
    log.write(event="samples", step=step, rewards=[[_number(value) for value in row] for row in values])


def samples_at(log: RunLog, step: int) -> list[list[float | None]] | None:
    """Return the rewards that `sample` noted at a step; None if it did not."""
    return next((line["rewards"] for line in log.of("samples") if line["step"] == step), None)


def sampled(
    lm: LanguageModel, chosen: Objective, encoded: Sequence[Encoded], samples: int, sampling: Sampling
) -> list[list[float]]:
    """Return the rewards of several sampled texts behind each row: ``[rows][samples]``; NaN where there is none.

    Cost: ``samples`` generations of all rows.
    """
    assert chosen.of_texts is not None
    values = [[math.nan] * samples for _ in encoded]
    for group in groups(lm, encoded, batch_tokens=default_batch_tokens(lm)):
        for sample in range(samples):
            rows = [encoded[i]._replace(draw=f"sample/{i}/{sample}") for i in group]
            prompts: Prompts = chosen.prepare(lm, rows)
            with torch.no_grad():
                written = write(lm, prompts, sampling.of(prompts))
            for i, value in zip(group, (0.0 - chosen.of_texts(prompts, written)).tolist(), strict=True):
                values[i][sample] = value
    return values


def pass_at(values: Sequence[Sequence[float | None]], passes: float) -> dict[str, Any]:
    """Return pass@k for k = 1, 2, 4, ... up to the number of samples, each with its 95 % interval.

    The share of rows of which one of k texts is right, estimated without bias from n: 1 - C(n - c, k) / C(n, k) with c
    right ones (Chen et al. 2021, arXiv 2107.03374); Wilson's interval over rows.

    Example:
        >>> pass_at([[1.0, 0.0], [0.0, 0.0]], 1.0)["1"][0], pass_at([[1.0, 0.0], [0.0, 0.0]], 1.0)["2"][0]
        (0.25, 0.5)
    """
    n = len(values[0])
    right = [sum(value is not None and value >= passes for value in row) for row in values]
    shares: dict[str, Any] = {"samples": n}
    for k in (1 << power for power in range(n.bit_length()) if 1 << power <= n):
        share = float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for c in right]))
        shares[str(k)] = [share, *metrics.wilson(share * len(right), len(right))]
    return shares


def intervals(untouched: Sequence[float | None], tuned: Sequence[float | None]) -> dict[str, list[float]]:
    """Return 95 % intervals of the mean reward before and after, and of the mean of the rows' paired differences.

    Rewards in [0, 1] get Wilson's and Agresti and Min's, which have a width where all are the same; others the normal
    one. Rows without a reward are left out.
    """
    named = {"reward_zero_shot": untouched, "reward_test": tuned}
    known = {name: _known(values) for name, values in named.items()}
    pairs = [pair for pair in zip(untouched, tuned, strict=False) if len(_known(pair)) == 2]
    bounded = all(((values >= 0) & (values <= 1)).all() for values in known.values())
    result = {}
    for name, values in known.items():
        if len(values):
            low_high = metrics.wilson(float(values.sum()), len(values)) if bounded else _normal(values)
            result[name] = list(low_high)
    if pairs:
        first, second = np.asarray(pairs, dtype=np.float64).T
        both = metrics.difference_interval(first, second) if bounded else _normal(second - first)
        result["reward_difference"] = list(both)
    return result


def of_result(run: RunContext, log: RunLog, step: int) -> dict[str, Any]:
    """Return what ``result.json`` says of reward functions, of steps that could not compare members, and pass@k."""
    if run.rewards is None:
        return {}
    equal = sum(_incomparable(line) for line in log.of("step"))
    held = {"zero_shot": samples_at(log, 0), "test": samples_at(log, step)}
    shares = {name: pass_at(values, run.config.pass_reward) for name, values in held.items() if values}
    return {**counted(run.rewards, equal), **({"pass_at": shares} if shares else {})}


def _known(values: Sequence[float | None]) -> np.ndarray:
    """Return the values that are there."""
    return np.asarray([value for value in values if value is not None and not math.isnan(value)], dtype=np.float64)


def _normal(values: np.ndarray) -> tuple[float, float]:
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()) - half, float(values.mean()) + half


def _mean(values: Sequence[float]) -> float:
    known = _known(values)
    return float(known.mean()) if len(known) else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value

"""What peers note that learn from a reward: of the texts of their last batches, of evaluations, and of failures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gradless.gradients import Probe
from gradless.rewards import Rewards
from gradless.runs import reward_runs


class Rewarded:
    """The reward functions of the peers of this process, and what their texts earned so far.

    Args:
        functions: of these peers; closed with this.

    Attributes:
        rewards: mean reward of each peer on test rows, in the last evaluation; NaN where no text has one.
        equal_steps: batches so far whose members earned the same or nothing, so that a peer sent no direction.
    """

    def __init__(self, functions: Rewards) -> None:
        self._functions = functions
        self._observed: dict[int, Mapping[str, Any]] = {}  # by peer, of the last step that was probed
        self._step = -1
        self.rewards: Sequence[float] = ()
        self.equal_steps = 0
        self._told_next = 1

    def note(self, step: int, peer: int, observed: Mapping[str, Any], estimate: Probe) -> None:
        """Note what a peer's members wrote in a step, by `gradless.runs.reward_runs.of_step`."""
        equal = not (estimate.finite and any(estimate.sketch.coeffs))
        self.equal_steps += equal
        if self._step != step:
            self._step, self._observed = step, {}
        self._observed[peer] = {**observed, "equal": equal}

    def of_step(self, step: int) -> dict[str, Any]:
        """Return what the line of a step says: means over these peers, and how many of them could compare nothing.

        Of a step that was over before these peers had measured anything there is nothing to say.
        """
        if self._step != step:
            return {}
        there = self._observed.values()
        means = {name: _mean([one[name] for one in there]) for name in ("reward", "valid", "completion_tokens")}
        return {**means, "equal": sum(one["equal"] for one in there)}

    def sentence(self, step: int) -> str:
        """Return a sentence if members could not be compared, the first time and whenever that has doubled; else ""."""
        line = self.of_step(step)
        if not line.get("equal") or self.equal_steps < self._told_next:
            return ""
        self._told_next = 2 * self.equal_steps
        return reward_runs.incomparable(step, line["reward"], self.equal_steps, self._functions)

    def of_evaluation(self) -> dict[str, Any]:
        """Return what the line of an evaluation says."""
        if not self.rewards:
            return {}
        known = [value for value in self.rewards if not math.isnan(value)]
        return {
            "reward": [None if math.isnan(value) else value for value in self.rewards],
            "worst_reward": min(known, default=None),
            "mean_reward": _mean(known),
        }

    def scores(self, passed: float) -> dict[str, float]:
        """Return the last evaluation of one peer, of which such a share of texts passed, by the names of other runs."""
        mean = self.of_evaluation().get("mean_reward")
        return {"passed": passed} if mean is None else {"reward": mean, "passed": passed}

    def counts(self) -> dict[str, Any]:
        """Return what ``result.json`` says of the functions and of steps that compared nothing."""
        return reward_runs.counted(self._functions, self.equal_steps)

    def of_result(self) -> dict[str, Any]:
        """Return what ``result.json`` of a simulation says: the last evaluation, and `counts`."""
        return {**self.of_evaluation(), **self.counts()}

    def close(self) -> None:
        """End the process of the functions, if there is one."""
        self._functions.close()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None

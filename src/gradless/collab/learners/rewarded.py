"""What peers note that learn from a reward: of the texts of their last batches, of evaluations, and of failures."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gradless.gradients import Probe
from gradless.rewards import Rewards
from gradless.runs import reward_runs

NUMBERS = ("reward", "valid", "completion_tokens")


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
        self._step = -1
        self._observed: dict[int, Mapping[str, Any]] = {}  # by peer, of that step
        self.rewards: Sequence[float] = ()
        self.equal_steps = 0
        self._told = 0  # of them, when a sentence about one was last given
        self._unrewarded = 0  # steps in a row without any reward

    @property
    def sources(self) -> Mapping[str, str]:
        """SHA-256 of the files of functions, by name."""
        return self._functions.sources

    def note(self, step: int, peer: int, observed: Mapping[str, Any], probe: Probe) -> None:
        """Note what a peer's members wrote in a step.

        Args:
            step: the step.
            peer: of this process.
            observed: by `gradless.runs.reward_runs.of_step`; empty where the model wrote nothing finite.
            probe: what it gave.
        """
        equal = not (probe.finite and any(probe.sketch.coeffs))
        self.equal_steps += equal
        if self._step != step:
            self._step, self._observed = step, {}
        self._observed[peer] = {**observed, "equal": equal}
        if observed.get("reward") is not None:
            self._unrewarded = 0

    def of_step(self, step: int) -> dict[str, Any]:
        """Return what the line of a step says: means over these peers, and how many of them could compare nothing.

        Of a step that was over before these peers had measured anything there is nothing to say.
        """
        if self._step != step:
            return {}
        there = self._observed.values()
        means = {name: _mean([one.get(name) for one in there]) for name in NUMBERS}
        return {**means, "equal": sum(one["equal"] for one in there)}

    def passes_over(self, step: int) -> bool:
        """Return whether a step in which no peer had anything to send is no reason to stop.

        It is where texts were written and none has a reward, which may be another batch's fortune; in a row that may
        happen less often than `gradless.runs.reward_runs.UNREWARDED` times.
        """
        self._unrewarded += 1
        written = all("reward" in one for one in self._observed.values())
        return self._step == step and written and self._unrewarded < reward_runs.UNREWARDED

    def sentence(self, step: int) -> str:
        """Return a sentence if members could not be compared, the first time and whenever that has doubled; else ""."""
        equal = [one for one in self._observed.values() if one["equal"]]
        if self._step != step or not equal or self.equal_steps < 2 * self._told:
            return ""
        self._told = self.equal_steps
        of_all = f" of {len(equal)} of {len(self._observed)} peers" if len(self._observed) > 1 else ""
        if not all("reward" in one for one in equal):
            return f"step {step}: the model{of_all} writes nothing finite: lower --lr"
        rewards = [one["reward"] for one in equal]
        return reward_runs.incomparable(step, rewards, self.equal_steps, self._functions, of_all=of_all)

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

    def state(self) -> dict[str, Any]:
        """Return what was counted, between two steps."""
        counts = dataclasses.asdict(self._functions.counts)
        own = {"equal_steps": self.equal_steps, "told": self._told, "unrewarded": self._unrewarded}
        return {**own, "functions": counts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on counting from what `state` returned."""
        self.equal_steps, self._told, self._unrewarded = (state[one] for one in ("equal_steps", "told", "unrewarded"))
        for name, value in state["functions"].items():
            setattr(self._functions.counts, name, value)

    def close(self) -> None:
        """End the process of the functions, if there is one."""
        self._functions.close()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None

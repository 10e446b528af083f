"""The weighted sum of several reward functions, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradless.errors import BadInput
from gradless.rewards.functions import Answers, Function, Raised, TimedOut
from gradless.system import terminal


@dataclass(kw_only=True, slots=True)
class Counts:
    """What reward functions have answered so far."""

    calls: int = 0
    """Batches for which `Rewards` was called."""
    completions: int = 0
    """Completions in them."""
    missing: int = 0
    """Answers of single functions that were None, NaN or infinite."""
    raised: int = 0
    """Calls of single functions that raised, or ended their process."""
    timed_out: int = 0
    """Calls of single functions that took longer than they may."""
    last_error: str = ""
    """The last of these, in one line."""


class Rewards:
    """Weighted reward functions and what they answered so far; a context manager.

    Args:
        functions: what is asked.
        weights: of the functions.
        say: takes a sentence, once for each kind of failure.
        close: ends what the functions run in.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        weights: Sequence[float],
        *,
        say: Callable[[str], object] = terminal.say,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.names = tuple(one.name for one in functions)
        self.sources = {one.name: one.sha256 for one in functions if one.sha256}
        self.counts = Counts()
        self._weighted = tuple(zip(functions, weights, strict=True))
        self._say, self._close = say, close
        self._said: set[tuple[str, str]] = set()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> NDArray[np.float64]:
        """Return the reward of each completion: the weighted sum over the functions that have one.

        Args:
            prompts: N texts, or N conversations: lists of ``{"role", "content"}``.
            completions: N texts, or N conversations of one message of the assistant.
            columns: N entries of each column of the data; also what TRL hands over (`functions.OF_THE_RUN`).

        Returns:
            float64 ``[N]``; NaN where no function has a reward, and for all of them where the call of one failed: sums
            of the others would rank members of a population by that.

        Raises:
            BadInput: lengths differ, a column is missing, or a function returned something else than N rewards.
        """
        count = len(completions)
        for name, rows in {"prompts": prompts, **columns}.items():
            if isinstance(rows, Sequence) and len(rows) != count:
                raise BadInput(f"{name} has length {len(rows)}, and there are {count} completions: give one for each")
        if not count:
            return np.zeros(0)
        self.counts.calls += 1
        self.counts.completions += count
        rewards, failed = np.full((len(self._weighted), count), np.nan), False
        for row, (function, weight) in zip(rewards, self._weighted, strict=True):
            answers = self._ask(function, function.parameters.arguments(function.title, prompts, completions, columns))
            failed = failed or answers is None
            row[:] = [np.nan if one is None else weight * one for one in answers or [None] * count]
        with np.errstate(over="ignore", invalid="ignore"):
            total: NDArray[np.float64] = np.where(np.isnan(rewards), 0.0, rewards).sum(axis=0)
        total[np.isnan(rewards).all(axis=0) | ~np.isfinite(total) | failed] = np.nan
        return total

    def _ask(self, function: Function, arguments: Mapping[str, Any]) -> Answers | None:
        """Return the answers of a function; None, counted and told, where it failed."""
        try:
            answers = function.run(arguments)
        except Raised as error:
            self.counts.raised += 1
            self._failed(function, error.kind, error.reason)
            return None
        except TimedOut as error:
            self.counts.timed_out += 1
            self._failed(function, "timeout", str(error))
            return None
        if missing := answers.count(None):
            self.counts.missing += missing
            self._tell(
                function, "missing", f"returned None, NaN or infinity for {missing} of {len(answers)} completions"
            )
        return answers

    def _failed(self, function: Function, kind: str, reason: str) -> None:
        self.counts.last_error = f"{function.title} {reason}"
        self._tell(function, kind, f"{reason}: this batch has no rewards")

    def _tell(self, function: Function, kind: str, what: str) -> None:
        if (function.name, kind) not in self._said:
            self._said.add((function.name, kind))
            self._say(f"{function.title} {what} (counted, said once)")

    def close(self) -> None:
        """End the process of the user's functions, if there is one."""
        self._close()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

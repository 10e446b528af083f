"""Losses of every row of a batch at several points, which evolution strategies compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gradless.errors import BadInput
from gradless.forward.engines import DUAL, STREAM, EngineChoice
from gradless.forward.losses import checked_rows
from gradless.forward.points import Point
from gradless.forward.random_state import RandomState
from gradless.gradients import Leaf
from gradless.ranks import DIRECTIONS, Ranks

__all__ = ["Rows", "choice", "elsewhere", "mean", "over_ranks", "own"]

KEPT_BYTES: Final = 1 << 28
"""Bytes of copies of the weights, kept for the length of a generation, up to which ``auto`` is ``dual``."""


class Rows:
    """A closure whose losses ``[B]`` are checked, with its own way to evaluate all copies of the weights.

    That is its method ``side_by_side``, if it has one (`gradless.forward.batched.BatchedForward.losses`).
    """

    def __init__(self, closure: Any, start: RandomState) -> None:
        self._checked = checked_rows(start.pinned(closure))
        if hasattr(closure, "side_by_side"):
            self.side_by_side = closure.side_by_side

    def __call__(self) -> Any:
        """Return the losses at the weights as they are."""
        return self._checked()


def own(ranks: Ranks | None, points: Sequence[Point]) -> Sequence[Point]:
    """Return the points that this rank evaluates."""
    return ranks.own(points) if ranks is not None and ranks.split == DIRECTIONS else points


def elsewhere(ranks: Ranks | None, points: Sequence[Point]) -> int:
    """Return the number of points that only other ranks evaluate."""
    return len(points) - len(own(ranks, points))


def over_ranks(
    ranks: Ranks | None, points: Sequence[Point], evaluate: Callable[[Sequence[Point]], list[Any]]
) -> np.ndarray:
    """Return the loss of every row at every point: float64 ``[points, B]``, the same bits on all ranks.

    Ranks that split the batch have rows of their own, equally many, which stand side by side in rank order; ranks that
    split the directions have the same rows, and each evaluates some of the points.

    Raises:
        BadInput: the number of rows differs between points.

    Cost: 8 bytes for each loss to every other rank.
    """
    mine = own(ranks, points)
    rows = evaluate(mine) if mine else []
    if len({len(row) for row in rows}) > 1:
        raise BadInput("the closure returns another number of losses at other weights: return one for each row")
    losses = np.array(rows, dtype=np.float64).reshape(len(mine), -1)
    if ranks is None:
        return losses
    if ranks.split != DIRECTIONS:
        theirs = ranks.gather(losses.ravel().tolist())
        return np.concatenate([np.reshape(row, (len(points), -1)) for row in theirs], axis=1)
    width = int(max(count for (count,) in ranks.gather((losses.shape[1],))))
    padded = np.full((-(-len(points) // ranks.size), width), math.nan)
    padded[: len(mine)] = losses.reshape(len(mine), -1)
    shares = [np.reshape(row, padded.shape) for row in ranks.gather(padded.ravel().tolist())]
    return np.stack([shares[index % ranks.size][index // ranks.size] for index in range(len(points))])


def mean(losses: Any) -> float:
    """Return the mean of the losses that are numbers; NaN if there are none."""
    values = np.asarray(losses, dtype=np.float64).ravel()
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else math.nan


def choice(leaves: Sequence[Leaf], closure: Any, members: int) -> EngineChoice:
    """Return what the engine ``auto`` stands for: nothing is timed, since a generation takes too long for that."""
    if not hasattr(closure, "side_by_side"):
        return EngineChoice(STREAM, reason="members of a population are evaluated one after the other")
    kept = sum(
        leaf.param.numel() * leaf.param.element_size() * members
        for leaf in leaves
        if leaf.stream.kind != "low_rank" or leaf.param.ndim != 2
    )
    if kept > KEPT_BYTES:
        return EngineChoice(STREAM, reason=f"the weights of {members} members would take {kept / 1e9:.1f} GB")
    return EngineChoice(DUAL, reason="all members are evaluated in one batch")

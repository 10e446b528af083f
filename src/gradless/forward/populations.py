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

    Ranks that split the batch have rows of their own, which stand side by side in rank order; where each has one number
    for its shard, that is one row, their mean by `Ranks.weight`. A rank of weight 0 is not looked at. Ranks that split
    the directions have the same rows, and each evaluates some of the points.

    Raises:
        BadInput: (on all ranks) the number of rows differs between points, or no rank has a weight.

    Cost: two messages to every other rank, 24 bytes and 8 for each loss.
    """
    mine = own(ranks, points)
    rows = evaluate(mine) if mine else []
    if ranks is None:
        return np.array(rows, dtype=np.float64).reshape(len(rows), _same([_count(rows)]))
    return _of_points(ranks, rows, len(points)) if ranks.split == DIRECTIONS else _of_shards(ranks, rows)


def _of_shards(ranks: Ranks, rows: list[Any]) -> np.ndarray:
    """Return the losses of all shards of the batch ``[points, B]``, from this rank's rows at every point."""
    one = all(np.ndim(row) == 0 for row in rows)
    told = ranks.gather((_count(rows), one, ranks.weight))
    counts = [int(count) if weight else 0 for count, _, weight in told]
    _same([min(counts)])
    if all(one for _, one, weight in told if weight):
        return np.reshape(ranks.mean([mean(row) for row in rows]), (len(rows), 1))
    padded = np.full((len(rows), max(counts)), math.nan)
    if count := counts[ranks.rank]:
        padded[:, :count] = np.reshape(rows, (len(rows), count))
    shares = ranks.gather(padded.ravel().tolist())
    return np.concatenate(
        [np.reshape(share, padded.shape)[:, :count] for share, count in zip(shares, counts, strict=True)], axis=1
    )


def _of_points(ranks: Ranks, rows: list[Any], num_points: int) -> np.ndarray:
    """Return the losses at all points ``[points, B]``, from those of the whole batch at this rank's points."""
    width = _same([int(count) for (count,) in ranks.gather((_count(rows),))])
    padded = np.full((-(-num_points // ranks.size), width), math.nan)
    padded[: len(rows)] = np.reshape(rows, (len(rows), width))
    shares = [np.reshape(share, padded.shape) for share in ranks.gather(padded.ravel().tolist())]
    return np.stack([shares[index % ranks.size][index // ranks.size] for index in range(num_points)])


def _count(rows: list[Any]) -> int:
    """Return how many losses each point has; 0 without points, -1 where points have several numbers of them."""
    counts = {np.size(row) for row in rows} or {0}
    return counts.pop() if len(counts) == 1 else -1


def _same(counts: Sequence[int]) -> int:
    """Return the number of losses that all have, but for those that have none.

    Raises:
        BadInput: they have several.
    """
    several = set(counts) - {0}
    if len(several) > 1 or -1 in several:
        raise BadInput("the closure returns another number of losses at other weights: return one for each row")
    return several.pop() if several else 0


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

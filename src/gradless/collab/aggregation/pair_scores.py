"""Scores of peers from the coefficients they sent: whose slopes disagree with everybody else's over many steps.

Along a direction that all share, the slopes of two honest peers have the same sign a little more often than not, since
their data have something in common; a peer who pushes against the others disagrees with them in every step a little.
One step tells nothing, a hundred do. The score of peer i is the median over the others j of

    t_ij = mean(p) / sd(p) sqrt(m),    p = c_i c_j over the m coefficients of the steps in which both are present,

which is about normal with deviation 1 for rows that are independent. The rule *memory* leaves out the rows of peers
below `THRESHOLD`, at most f of them, and lowers f by as many.

What it does not tell: why peers disagree. Honest peers with unlike data may; liars who know the rule may stay above it.

All replicas must leave out the same rows, so scores have equal bits on all processors: products of two float32 are
exact in float64, sums are rounded once (`math.fsum`), and nothing else than +, -, *, / and square roots is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

WINDOW: Final = 100
"""Steps that the rule looks back."""
FEWEST: Final = 30
"""Steps that two peers must share before their t-value counts."""
THRESHOLD: Final = -3.0


def pair_scores(rows: np.ndarray) -> list[float | None]:
    """Return the score of every peer; None where it shares fewer than `FEWEST` steps with half of the others.

    Args:
        rows: float32 [T, n, K], the coefficients of T steps; NaN in a row that is not there.

    Cost: n (n - 1) T K additions in Python: 2 ms for n = 10, T = 100 and K = 4.

    Example:
        >>> agree = np.ones((40, 3, 1), np.float32) * np.linspace(1, 2, 40, dtype=np.float32)[:, None, None]
        >>> agree[:, 2] *= -1
        >>> [round(score) for score in pair_scores(agree)]
        [16, 16, -16]
    """
    peers = rows.shape[1]
    values = np.full((peers, peers), math.nan)
    wide = rows.astype(np.float64)
    here = np.logical_and.reduce(np.isfinite(wide), axis=2)
    for i in range(peers):
        for j in range(i):
            both = here[:, i] & here[:, j]
            if int(both.sum()) >= FEWEST:
                values[i, j] = values[j, i] = t_value((wide[both, i] * wide[both, j]).ravel().tolist())
    return [_median([value for j, value in enumerate(row) if j != i]) for i, row in enumerate(values.tolist())]


def t_value(numbers: Sequence[float]) -> float:
    """Return mean / standard deviation * sqrt(count), with equal bits everywhere; 0 for numbers that are all 0.

    Numbers that are all the same, but not 0, give an infinity of their sign.
    """
    count = len(numbers)
    mean = math.fsum(numbers) / count
    squares = math.fsum((number - mean) * (number - mean) for number in numbers)
    if squares <= 0.0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean * math.sqrt(count) / math.sqrt(squares / (count - 1))


def _median(values: Sequence[float]) -> float | None:
    """Return the upper median of the values that there are; None if they are fewer than half."""
    known = sorted(value for value in values if not math.isnan(value))
    if 2 * len(known) < max(1, len(values)):
        return None
    return known[len(known) // 2]


def left_out(scores: Sequence[float | None], most: int) -> tuple[int, ...]:
    """Return the peers whose rows the rule *memory* leaves out, ascending: the ``most`` lowest below `THRESHOLD`.

    Of equal scores the lower number goes first.
    """
    below = sorted((score, peer) for peer, score in enumerate(scores) if score is not None and score < THRESHOLD)
    return tuple(sorted(peer for _, peer in below[: max(0, most)]))


class Memory:
    """The rows of the last steps, and whose rows they say to leave out of the next.

    Args:
        window: steps that are remembered.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.rows: list[np.ndarray] = []
        """float32 [n, K] of each step, the oldest first; NaN in a row that was not there."""

    def left_out(self, most: int) -> tuple[int, ...]:
        """Return the peers to leave out of the next step, at most ``most``; see `left_out`."""
        if len(self.rows) < FEWEST or most < 1:
            return ()
        return left_out(pair_scores(np.stack(self.rows)), most)

    def append(self, rows: np.ndarray) -> None:
        """Remember the rows of a step, those that were left out included: a peer can come back."""
        self.rows = [*self.rows, rows.astype(np.float32)][-self.window :]

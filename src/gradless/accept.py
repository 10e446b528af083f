"""Acceptance policies: whether an update is applied, left out or reversed, decided from losses.

A policy gets ``value(a)``, the loss on the step's batch after ``a`` times the update, and returns the factor to take:
1 the update, 0 none, -1 the opposite. The loss is that of the very weights that the factor would give, weight decay
and rounding included; none of them are touched to find out, so "none" leaves them bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["always", "conservative"]

Accept = Callable[[Callable[[float], float]], float]


def always(value: Callable[[float], float]) -> float:
    """Take every update. ``value(a)`` would be the loss after ``a`` times the update. Cost: no forward."""
    return 1.0


def conservative(value: Callable[[float], float]) -> float:
    """Of theta, theta - lr g and theta + lr g, keep the one with the lowest loss: the ZO-SGD-Cons of ZO-Bench.

    All three are evaluated on the batch of the estimate. A loss that is not finite counts as worst; with none finite
    nothing is done. Ties go to the update, then to none, so that a loss too coarse to feel a step does not stop a run.
    Cost: 3 forwards beside the estimate's. Zhang et al. 2024 (arXiv 2402.11592).

    Example:
        >>> conservative(lambda a: (a - 0.8) ** 2), conservative(lambda a: a**2), conservative(lambda a: 1.0)
        (1.0, 0.0, 1.0)
    """
    losses = {a: value(a) for a in (0.0, 1.0, -1.0)}
    finite = [a for a in (1.0, 0.0, -1.0) if math.isfinite(losses[a])]
    return min(finite, key=losses.__getitem__, default=0.0)


FORWARDS: Final[Mapping[Callable[..., float], int]] = {always: 0, conservative: 3}
"""Forward passes of a policy in one step; policies that are not listed are counted when they run."""

"""Learning-rate schedules: functions from a step to a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(lr: float, *, warmup: int = 0) -> Schedule:
    """Rise to ``lr`` over ``warmup`` steps as `linear`, then stay there; without a rise the schedule of the MeZO paper.

    Example:
        >>> [round(constant(1.0, warmup=3)(t), 3) for t in range(4)]
        [0.333, 0.667, 1.0, 1.0]
    """
    return lambda step: lr * (step + 1) / warmup if step < warmup else lr


def linear(lr: float, steps: int, *, warmup: int = 0) -> Schedule:
    """Rise to ``lr`` over ``warmup`` steps, then fall linearly to zero at ``steps``.

    Step t of the rise has lr (t + 1) / warmup, where transformers has lr t / warmup: here the first step moves.

    Example:
        >>> [round(linear(1.0, 4, warmup=1)(t), 3) for t in range(5)]
        [1.0, 1.0, 0.667, 0.333, 0.0]
    """
    return lambda step: (
        lr * min((step + 1) / warmup if warmup else 1.0, max(steps - step, 0) / max(steps - warmup, 1), 1.0)
    )


def cosine(lr: float, steps: int, *, warmup: int = 0) -> Schedule:
    """Rise to ``lr`` over ``warmup`` steps, then fall along half a cosine to zero at ``steps``; rises as `linear`."""

    def schedule(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        done = min(max(step - warmup, 0) / max(steps - warmup, 1), 1.0)
        return lr * 0.5 * (1 + math.cos(math.pi * done))

    return schedule


SCHEDULES: dict[str, Callable[[float, int, int], Schedule]] = {
    "constant": lambda lr, steps, warmup: constant(lr, warmup=warmup),
    "linear": lambda lr, steps, warmup: linear(lr, steps, warmup=warmup),
    "cosine": lambda lr, steps, warmup: cosine(lr, steps, warmup=warmup),
}

"""Rules that normalise: signs, and steps divided by what the losses themselves say about their scale.

The scalar rules map a mixture to a mixture, so their runs cost what plain ones cost and replay from the coefficients
alone. They read the K coefficients of one step, so they stand first in a chain, before `momentum`. Their arithmetic is
Python's float64 with exactly rounded sums and square roots: the same bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradless.errors import BadInput
from gradless.gradients import Gradient, Lazy, Mixture
from gradless.rules.base import Rule


class Square(NamedTuple):
    """A running mean of squares, and the sum of the weights in it: their quotient has no start-up bias."""

    mean: float = 0.0
    total: float = 0.0


def sign() -> Rule:
    """The sign of every element of the gradient; zero stays zero.

    With one +1/-1 query this is `scalar_sign`; with more it is a majority vote, weighted by the coefficients. Cost: one
    float32 copy of the largest leaf, no state; not linear, so steps replay one by one. Liu et al. 2019, "signSGD via
    zeroth-order oracle" (ICLR 2019).
    """
    return Rule("sign", lambda: None, lambda g, state: (Lazy(lambda leaf: g.leaf(leaf).sign()), state), linear=False)


def scalar_sign() -> Rule:
    """The sign of each projected gradient times its direction: 1/K sum_k sign(c_k) z_k, a normalised ZO-SGD.

    What the code of ZO-Bench runs under the name of ZO-SGD-Sign; the literature's element-wise form is `sign`. Cost:
    none, no state. Zhang et al. 2024 (arXiv 2402.11592).

    Example:
        >>> rule = scalar_sign()
        >>> rule.update(Mixture((7, 8), (0.3, -2.0)), rule.init())[0]
        Mixture(keys=(7, 8), weights=(0.5, -0.5))
    """

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        mixture = _estimate(g, "scalar_sign")
        return mixture._replace(weights=tuple(_sign(w) / len(mixture.weights) for w in mixture.weights)), state

    return Rule("scalar_sign", lambda: None, update)


def std_normalised(floor: float = 1e-12) -> Rule:
    """Divide the estimate by the standard deviation of its coefficients: the step of FZOO.

    For one-sided differences c_k = (L_k - L_0) / eps this is 1/K sum_k (L_k - L_0) / std(L) z_k: eps cancels, and the
    learning rate is the step along differences of loss in units of their spread. The standard deviation is that of a
    sample (K - 1), as in the paper; its code has that of a population (K). A step whose coefficients do not differ by
    more than ``floor`` is not taken.

    Use four queries or more (the paper: eight): the ratio of mean and deviation of two coefficients has tails so heavy
    that single steps throw a run off. Cost: none, no state. Dang et al. 2025 (arXiv 2506.09034).

    Args:
        floor: smallest standard deviation of the coefficients that counts.

    Raises:
        BadInput: in the first step, with fewer than two queries.

    Example:
        >>> rule = std_normalised()
        >>> rule.update(Mixture((7, 8), (1.0, 3.0)), rule.init())[0].weights  # coefficients 2 and 6
        (0.35355339059327373, 1.0606601717798212)
    """
    _check_floor(floor)

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        mixture = _estimate(g, "std_normalised")
        count = len(mixture.weights)
        if count < 2:
            raise BadInput("std_normalised got one coefficient: a standard deviation needs two queries a step or more")
        coeffs = [w * count for w in mixture.weights]
        mean = math.fsum(coeffs) / count
        deviation = math.sqrt(math.fsum((c - mean) * (c - mean) for c in coeffs) / (count - 1))
        return _divided(mixture, deviation, floor), state

    return Rule("std_normalised", lambda: None, update)


def rms_normalised(beta: float = 0.9, floor: float = 1e-12) -> Rule:
    """Divide the estimate by a running root mean square of its coefficients: Adam with one second moment for all.

    v <- beta v + (1 - beta) mean_k c_k^2, corrected for its start at zero. The step does not depend on the loss's
    scale. MEAZO squares the mean of the coefficients where this takes the mean of their squares; with one query they
    are the same. State: two numbers. Cost: none. Dbouk et al. 2026 (MEAZO, arXiv 2605.03869).

    Args:
        beta: decay of the second moment; 0 looks at the present step only.
        floor: smallest root mean square that counts; below it no step is taken.

    Raises:
        BadInput: a number out of range.
    """
    if not 0 <= beta < 1:
        raise BadInput(f"beta is {beta}: it must lie in [0, 1)")
    _check_floor(floor)

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        mixture = _estimate(g, "rms_normalised")
        mean, total = state
        mean = beta * mean + (1 - beta) * _mean_square(mixture.weights)
        total = beta * total + (1 - beta)  # not 1 - beta^t: powers differ between machines in the last bit
        return _divided(mixture, math.sqrt(mean / total), floor), Square(mean, total)

    return Rule("rms_normalised", Square, update)


def _mean_square(weights: Sequence[float]) -> float:
    """Of the coefficients behind a step's weights."""
    count = len(weights)
    return math.fsum((w * count) * (w * count) for w in weights) / count


def _divided(mixture: Mixture, divisor: float, floor: float) -> Mixture:
    """The mixture over a scale, or nothing at all where the scale is too small to divide by."""
    keep = divisor > floor
    return mixture._replace(weights=tuple(w / divisor if keep else 0.0 for w in mixture.weights))


def _estimate(g: Gradient, rule: str) -> Mixture:
    if not isinstance(g, Mixture) or not g.weights:
        raise BadInput(f"{rule} needs the coefficients of an estimate: put it first in the chain, for forward methods")
    return g


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _check_floor(floor: float) -> None:
    if not 0 <= floor < math.inf:
        raise BadInput(f"floor is {floor}: it must be finite and not negative")

"""Estimators: how a few loss values become K coefficients.

An estimator sees the objective only through an oracle ``values([(key, scale), ...])``, the losses at the points
theta + scale * z(key) (``key=None``: at theta), and returns the mean loss and one projected gradient per key. What is
perturbed, and how, is not its business; points that it asks for together may be evaluated side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gradless.errors import BadInput

Values = Callable[[Sequence[tuple[int | None, float]]], Sequence[float]]


class Estimator(NamedTuple):
    """``estimate(values, keys) -> (loss, coeffs)``; ``queries(step)`` directions, ``forwards(K)`` evaluations."""

    name: str
    eps: float
    queries: Callable[[int], int]
    estimate: Callable[[Values, Sequence[int]], tuple[float, tuple[float, ...]]]
    forwards: Callable[[int], int]


def constant_queries(queries: int) -> Callable[[int], int]:
    """The same number of directions every step."""
    if queries < 1:
        raise BadInput(f"queries is {queries}: a step needs at least one direction")
    return lambda step: queries


def linear_queries(queries: int, steps: int) -> Callable[[int], int]:
    """Rise from 1 to ``queries`` directions over ``steps`` steps (MeZO appendix A.2).

    Example:
        >>> schedule = linear_queries(4, steps=8)
        >>> [schedule(t) for t in range(8)]
        [1, 1, 1, 1, 2, 2, 3, 3]
    """
    if queries < 1 or steps < 1:
        raise BadInput(f"a linear query schedule needs queries and steps of at least 1, not {queries} and {steps}")
    return lambda step: max(1, min(step, steps) * queries // steps)


def spsa(*, eps: float = 1e-3, queries: int | Callable[[int], int] = 1) -> Estimator:
    """Two-sided differences: c_k = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps).

    Unbiased up to O(eps^2). Cost: 2K forwards, no backward; memory of inference plus the largest leaf.
    Spall 1992; n-SPSA with K queries: Malladi et al. 2023 (arXiv 2305.17333).
    """
    _check_eps(eps)

    def estimate(values: Values, keys: Sequence[int]) -> tuple[float, tuple[float, ...]]:
        losses = values([(key, scale) for key in keys for scale in (eps, -eps)])
        pairs = list(zip(losses[::2], losses[1::2], strict=True))
        loss = sum(plus + minus for plus, minus in pairs) / (2 * len(pairs))
        return loss, tuple((plus - minus) / (2 * eps) for plus, minus in pairs)

    return Estimator("spsa", eps, _queries(queries), estimate, lambda k: 2 * k)


def one_sided(*, eps: float = 1e-3, queries: int | Callable[[int], int] = 1) -> Estimator:
    """Forward differences: c_k = (L(theta + eps z_k) - L(theta)) / eps.

    Biased by O(eps), cheaper for many queries, and reports L(theta) itself. Cost: K + 1 forwards, no backward.
    """
    _check_eps(eps)

    def estimate(values: Values, keys: Sequence[int]) -> tuple[float, tuple[float, ...]]:
        base, *moved = values([(None, 0.0), *((key, eps) for key in keys)])
        return base, tuple((loss - base) / eps for loss in moved)

    return Estimator("one_sided", eps, _queries(queries), estimate, lambda k: k + 1)


def _queries(queries: int | Callable[[int], int]) -> Callable[[int], int]:
    return constant_queries(queries) if isinstance(queries, int) else queries


def _check_eps(eps: float) -> None:
    if not 0 < eps < float("inf"):
        raise BadInput(f"eps is {eps}: the perturbation scale must be positive and finite, e.g. 1e-3")

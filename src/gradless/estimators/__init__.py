"""Estimators: how a few answers of an oracle become K coefficients, or a stored gradient.

An estimator sees the objective only through an `Oracle`, which answers three questions: losses at nearby points, slopes
along directions, gradients. It returns the mean loss, one projected gradient for each key, and, if it asked for
gradients, those. What is perturbed, and how, is not its business; points that it asks for together may be evaluated
side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from torch import Tensor

from gradless.errors import BadInput, pick, real, whole
from gradless.estimators.shaping import SHAPINGS
from gradless.gradients import Part

__all__ = ["backprop", "forward_grad", "hybrid", "linear_queries", "one_sided", "population", "spsa"]

Values = Callable[[Sequence[tuple[int | None, float]]], Sequence[float]]
Rows = Callable[[Sequence[tuple[int | None, float]]], np.ndarray]
Slopes = Callable[[Sequence[int]], tuple[float, Sequence[float]]]
Gradients = Callable[[], tuple[float, Mapping[str, Tensor]]]
BACKPROP = 3  # forwards that a loss with its gradient counts as: a backward costs two
MOST_QUERIES: Final = 10**6  # directions of a step
MOST_STEPS: Final = 2**63 - 1
FORWARD_MODE = 2  # forwards that a loss with its slope along one direction counts as


class Oracle(NamedTuple):
    """The questions that an estimator may ask about the loss at the current weights."""

    values: Values  # losses at theta + scale * z(key) for pairs (key, scale); (None, 0): at theta
    slopes: Slopes  # the loss, and its derivative along z(key) for every key, by forward-mode differentiation
    gradients: Gradients  # the loss, and its gradient for every leaf that takes part, by backpropagation
    rows: Rows  # as values, where a closure returns a loss for every row of its batch: float64 [points, B]


class Estimate(NamedTuple):
    """The result of an estimator."""

    loss: float
    coeffs: tuple[float, ...]  # of z(keys), averaged by the optimizer
    tensors: Mapping[str, Tensor] | None = None  # gradients by leaf name, if some were asked for


class Estimator(NamedTuple):
    """``estimate(oracle, keys)``; ``queries(step)`` directions; ``forwards(K)`` passes, a backward as two."""

    name: str
    eps: float
    queries: Callable[[int], int]
    estimate: Callable[[Oracle, Sequence[int]], Estimate]
    forwards: Callable[[int], int]
    deep: Callable[[str], bool] | None = None  # leaves, by name, that gradients are stored for instead of coefficients
    rows: bool = False  # it asks for the loss of every row
    shaped: bool = False  # coefficients tell which members are better, not how steep the loss is


def constant_queries(queries: int) -> Callable[[int], int]:
    """The same number of directions every step."""
    count = whole("queries", queries, least=1, most=MOST_QUERIES)
    return lambda step: count


def linear_queries(queries: int, steps: int) -> Callable[[int], int]:
    """Rise from 1 to ``queries`` directions over ``steps`` steps (MeZO appendix A.2); forwards rise alike.

    Raises:
        BadInput: either is no whole number, or less than 1.

    Example:
        >>> schedule = linear_queries(4, steps=8)
        >>> [schedule(t) for t in range(8)]
        [1, 1, 1, 1, 2, 2, 3, 3]
    """
    most = whole("queries", queries, least=1, most=MOST_QUERIES)
    over = whole("steps", steps, least=1, most=MOST_STEPS)
    return lambda step: max(1, min(step, over) * most // over)


def spsa(*, eps: float = 1e-3, queries: int | Callable[[int], int] = 1) -> Estimator:
    """Two-sided differences: c_k = (L(theta + eps z_k) - L(theta - eps z_k)) / (2 eps).

    Unbiased up to O(eps^2). Cost: 2K forwards, no backward; memory of inference plus the largest leaf.
    Spall 1992; n-SPSA with K queries: Malladi et al. 2023 (arXiv 2305.17333).
    """
    eps = real("eps", eps, above=0.0)

    def estimate(oracle: Oracle, keys: Sequence[int]) -> Estimate:
        losses = oracle.values([(key, scale) for key in keys for scale in (eps, -eps)])
        pairs = list(zip(losses[::2], losses[1::2], strict=True))
        loss = sum(plus + minus for plus, minus in pairs) / (2 * len(pairs))
        return Estimate(loss, tuple((plus - minus) / (2 * eps) for plus, minus in pairs))

    return Estimator("spsa", eps, _queries(queries), estimate, lambda k: 2 * k)


def one_sided(*, eps: float = 1e-3, queries: int | Callable[[int], int] = 1) -> Estimator:
    """Forward differences: c_k = (L(theta + eps z_k) - L(theta)) / eps.

    Biased by O(eps), cheaper for many queries, and reports L(theta) itself. Cost: K + 1 forwards, no backward.
    """
    eps = real("eps", eps, above=0.0)

    def estimate(oracle: Oracle, keys: Sequence[int]) -> Estimate:
        base, *moved = oracle.values([(None, 0.0), *((key, eps) for key in keys)])
        return Estimate(base, tuple((loss - base) / eps for loss in moved))

    return Estimator("one_sided", eps, _queries(queries), estimate, lambda k: k + 1)


def population(
    *, eps: float = 1e-3, queries: int | Callable[[int], int] = 4, shaping: str = "centred_ranks"
) -> Estimator:
    """Evolution strategies: 2K members at theta +- eps z_k, whose losses are shaped before they are compared.

    c_k = (u(+eps z_k) - u(-eps z_k)) / 2, where u are the members' losses after `gradless.estimators.shaping`. Shaped
    losses have no unit, so the size of a step is that of the learning rate, however large rewards are; with the shaping
    "none" they are the mean losses over eps, which makes this `spsa`.

    The closure may return a loss for each row of its batch, ``[B]``: minus the reward of a prompt, for instance. Rows
    in which some member's loss is NaN (a reward that does not apply) are left out for all members. Where all members
    have one value, all coefficients are 0.

    Cost: 2K forwards, or generations. Salimans et al. 2017 (arXiv 1703.03864); for language models Qiu et al. 2025
    (arXiv 2509.24372).

    Args:
        eps: how far members are from theta.
        queries: K, half of the population.
        shaping: a key of `gradless.estimators.shaping.SHAPINGS`.
    """
    eps = real("eps", eps, above=0.0)
    shape = pick("shaping", shaping, SHAPINGS).shape
    scale = eps if shaping == "none" else 1.0

    def estimate(oracle: Oracle, keys: Sequence[int]) -> Estimate:
        losses = oracle.rows([(key, size) for key in keys for size in (eps, -eps)])
        rows = losses[:, ~np.isnan(losses).any(axis=0)]
        if not rows.size:
            return Estimate(float("nan"), (float("nan"),) * len(keys))
        utilities = shape(rows)
        coefficients = (utilities[::2] - utilities[1::2]) / (2 * scale)
        return Estimate(float(rows.mean()), tuple(coefficients.tolist()))

    return Estimator(
        "population", eps, _queries(queries), estimate, lambda k: 2 * k, rows=True, shaped=shaping != "none"
    )


def forward_grad(*, queries: int | Callable[[int], int] = 1) -> Estimator:
    """Exact slopes along random directions: c_k = <grad L(theta), z_k> by forward-mode differentiation.

    The limit of `spsa` for eps to 0, without its error in eps. Cost: K forwards with tangents, counted as 2K; memory of
    inference, the tangents of one layer's activations, and the largest leaf (z is never held whole). Attention runs in
    its plain form, since the fused kernels have no forward derivative. Baydin et al. 2022 (arXiv 2202.08587).
    """

    def estimate(oracle: Oracle, keys: Sequence[int]) -> Estimate:
        loss, slopes = oracle.slopes(keys)
        return Estimate(loss, tuple(slopes))

    return Estimator("forward_grad", 0.0, _queries(queries), estimate, lambda k: FORWARD_MODE * k)


def backprop() -> Estimator:
    """The gradient itself, by backpropagation: the baseline that forward-only methods are measured against.

    Cost: a forward and a backward, counted as three forwards; memory of the activations and of one gradient, which
    `gradless.forward.model_blocks.checkpointing` trades for a second forward. Nothing about it fits a ledger.
    """

    def estimate(oracle: Oracle, keys: Sequence[int]) -> Estimate:
        loss, tensors = oracle.gradients()
        return Estimate(loss, (), tensors)

    return Estimator("backprop", 0.0, lambda step: 0, estimate, lambda k: BACKPROP, deep=lambda name: True)


def hybrid(shallow: Estimator, deep: Callable[[str], bool]) -> Estimator:
    """Backpropagation for the leaves that ``deep`` names, ``shallow`` for all others.

    With the layers near the output as ``deep`` ones, backpropagation ends at the cut, and no activation below it is
    kept. The hybrid of ZO-Bench (Zhang et al. 2024, arXiv 2402.11592). Cost: that of ``shallow`` and three forwards.
    """

    def estimate(oracle: Oracle, keys: Sequence[int]) -> Estimate:
        directional = shallow.estimate(oracle, keys)
        loss, tensors = oracle.gradients()
        return Estimate(loss, directional.coeffs, tensors)

    return Estimator(
        f"hybrid-{shallow.name}", shallow.eps, shallow.queries, estimate, lambda k: shallow.forwards(k) + BACKPROP, deep
    )


ESTIMATORS: Final[dict[str, Part[Estimator]]] = {
    "spsa": Part(spsa, "two-sided differences", "Spall 1992; Malladi et al. 2023, arXiv 2305.17333", "2K forwards"),
    "one_sided": Part(one_sided, "forward differences", "Spall 1992", "K + 1 forwards"),
    "population": Part(
        population,
        "evolution strategies: shaped losses of antithetic members, a loss for each row of the batch",
        "Salimans et al. 2017, arXiv 1703.03864; Qiu et al. 2025, arXiv 2509.24372",
        "2K forwards or generations",
    ),
    "forward_grad": Part(
        forward_grad,
        "exact slopes along directions, by forward-mode differentiation",
        "Baydin et al. 2022, arXiv 2202.08587",
        "K forwards with tangents, counted as 2K; tangents of one layer",
    ),
    "backprop": Part(
        backprop,
        "the gradient, by backpropagation",
        "",
        "a forward and a backward, counted as 3 forwards; all activations",
        "one gradient of the tuned weights",
    ),
    "hybrid": Part(
        hybrid,
        "backpropagation in some leaves, another estimator in the others",
        "Zhang et al. 2024, arXiv 2402.11592",
        "3 forwards and those of the other estimator; activations above the cut",
        "one gradient of these leaves",
    ),
}
"""Estimators by the name of their function."""


def check_stored(estimator: Estimator, *, tried: bool, shared: bool) -> None:
    """Refuse what cannot be had with stored gradients: updates tried out before they are made, several ranks.

    Raises:
        BadInput: with the way out.
    """
    if estimator.deep is not None and tried:
        raise BadInput(f"{estimator.name} stores gradients, which acceptance cannot try out: leave accept out")
    if estimator.deep is not None and shared:
        raise BadInput(f"{estimator.name} stores gradients, which are no scalars to share: use one process")


def _queries(queries: int | Callable[[int], int]) -> Callable[[int], int]:
    if not callable(queries):
        return constant_queries(queries)
    return lambda step: whole(f"queries of step {step}", queries(step), least=1, most=MOST_QUERIES)

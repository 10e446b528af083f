"""What estimators promise: honest coefficients for what they are asked, at the cost that they name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.estimators import BACKPROP, FORWARD_MODE, Estimate, Estimator, Oracle
from gradless.testing import problems
from gradless.testing.checks import Check, chance_bound, demand, generators_untouched, run, suite

SAMPLES: Final = 200
QUERIES: Final = (1, 2, 5)


class Setting(NamedTuple):
    """What a suite of checks is run with."""

    queries: tuple[int, ...]


def estimator_checks(*, queries: Sequence[int] = QUERIES) -> tuple[Check, ...]:
    """Checks of an `Estimator`, each called with it; what it asks is answered in float64 by a quadratic.

    Args:
        queries: numbers of directions to try.
    """
    return suite("estimator", CHECKS, Setting(tuple(queries)))


def check_estimator(estimator: Estimator, *, queries: Sequence[int] = QUERIES) -> None:
    """Run all checks of `estimator_checks`.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless import one_sided
        >>> check_estimator(one_sided(eps=1e-3))
    """
    run(estimator_checks(queries=queries), estimator)


class Asked:
    """An oracle over a quadratic that counts what it is asked, in forwards."""

    def __init__(self, deep: Callable[[str], bool] | None = None, *, sick: bool = False) -> None:
        self.bowl = _bowl()
        self.deep = deep or (lambda name: False)
        self.sick = sick
        self.forwards = 0
        self.drawn: dict[int, dict[str, Tensor]] = {}

    def z(self, key: int) -> dict[str, Tensor]:
        """The direction of a key, float64; zero on leaves whose gradients are stored."""
        if key not in self.drawn:
            self.drawn[key] = self._draw(key)
        return self.drawn[key]

    def _draw(self, key: int) -> dict[str, Tensor]:
        starts = self.bowl.start
        signs = rng.rademacher(key, 0, 0, sum(start.numel() for start in starts.values())).double()
        parts = zip(starts.items(), signs.split([start.numel() for start in starts.values()]), strict=True)
        return {name: part.view(start.shape) * (not self.deep(name)) for (name, start), part in parts}

    def values(self, points: Sequence[tuple[int | None, float]]) -> list[float]:
        """Losses at points."""
        self.forwards += len(points)
        return [math.nan if self.sick else self.bowl.loss(self._at(key, size)) for key, size in points]

    def rows(self, points: Sequence[tuple[int | None, float]]) -> np.ndarray:
        """Losses at points, of a batch of one row."""
        return np.array(self.values(points))[:, None]

    def _at(self, key: int | None, size: float) -> Mapping[str, Tensor]:
        if key is None:
            return self.bowl.start
        z = self.z(key)
        return {name: start + size * z[name] for name, start in self.bowl.start.items()}

    def slopes(self, keys: Sequence[int]) -> tuple[float, list[float]]:
        """The loss, and its slopes along directions."""
        self.forwards += FORWARD_MODE * len(keys)
        gradient = self.bowl.gradient()
        slopes = [float(sum((gradient[n] * t).sum() for n, t in self.z(key).items())) for key in keys]
        return (math.nan, [math.nan] * len(keys)) if self.sick else (self.bowl.loss(self.bowl.start), slopes)

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """The loss, and the gradients of leaves that have stored ones."""
        self.forwards += BACKPROP
        nan = math.nan if self.sick else 0.0
        stored = {name: (g + nan).float() for name, g in self.bowl.gradient().items() if self.deep(name)}
        return self.bowl.loss(self.bowl.start) + nan, stored

    def oracle(self) -> Oracle:
        """What the estimator sees."""
        return Oracle(self.values, self.slopes, self.gradients, self.rows)


@functools.cache
def _bowl() -> problems.Bowl:
    return problems.Bowl()


def _keys(estimator: Estimator, seed: int, queries: int) -> tuple[int, ...]:
    """Keys of a step; none for an estimator that draws no directions."""
    return tuple(rng.direction_key(seed, 0, query) for query in range(queries if estimator.queries(0) else 0))


def _estimate(
    estimator: Estimator, seed: int, queries: int, *, sick: bool = False
) -> tuple[Estimate, Asked, tuple[int, ...]]:
    asked, keys = Asked(estimator.deep, sick=sick), _keys(estimator, seed, queries)
    return estimator.estimate(asked.oracle(), keys), asked, keys


def unbiased(estimator: Estimator, setting: Setting) -> None:
    """On a quadratic the mean estimate is the gradient, element by element, unless losses are shaped."""
    if estimator.shaped:
        return
    for queries in setting.queries:
        exact = _flat(_bowl().gradient())
        rows = []
        for seed in range(SAMPLES if estimator.queries(0) else 1):
            estimate, asked, keys = _estimate(estimator, seed, queries)
            total = {name: torch.zeros_like(start) for name, start in asked.bowl.start.items()}
            for key, coeff in zip(keys, estimate.coeffs, strict=True):
                for name, z in asked.z(key).items():
                    total[name] += coeff / len(keys) * z
            for name, tensor in (estimate.tensors or {}).items():
                total[name] += tensor.double()
            rows.append(_flat(total))
        error = torch.stack(rows) - exact
        # Errors are symmetric: flipping one element of every z flips its error. The small term is for rounding.
        allowed = chance_bound(len(setting.queries) * len(exact)) * error.square().sum(0).sqrt() / len(rows) + 1e-5
        away = error.mean(0).abs()
        index = int((away - allowed).argmax())
        demand(
            bool((away <= allowed).all()),
            f"element {index} has mean {float(error.mean(0)[index] + exact[index]):.3f} over {len(rows)} estimates "
            f"with {queries} queries (seeds from 0), but a gradient of {float(exact[index]):.3f}",
        )


def forwards_are_counted(estimator: Estimator, setting: Setting) -> None:
    """`forwards(K)` is what an estimate asks of the loss, a slope counted as two and a gradient as three."""
    for queries in setting.queries:
        _, asked, keys = _estimate(estimator, 0, queries)
        declared = estimator.forwards(len(keys))
        demand(
            declared == asked.forwards, f"forwards({len(keys)}) is {declared}, but an estimate costs {asked.forwards}"
        )


def one_coefficient_a_key(estimator: Estimator, setting: Setting) -> None:
    """An estimate holds one number for each key, and gradients for just the leaves that `deep` names."""
    for queries in setting.queries:
        estimate, asked, keys = _estimate(estimator, 0, queries)
        numbers = isinstance(estimate.coeffs, tuple) and all(isinstance(c, float) for c in estimate.coeffs)
        demand(numbers, f"the coefficients of {queries} queries are no tuple of floats, but {estimate.coeffs!r}")
        demand(len(estimate.coeffs) == len(keys), f"{len(estimate.coeffs)} coefficients for {len(keys)} keys")
        deep = {name for name in asked.bowl.start if estimator.deep is not None and estimator.deep(name)}
        stored = set(estimate.tensors or {})
        demand(stored == deep, f"gradients are stored for {sorted(stored)}, but `deep` names {sorted(deep)}")


def schedule_of_queries(estimator: Estimator, setting: Setting) -> None:
    """`queries(step)` is a whole number, at least 1 unless all gradients are stored, and the same when asked again."""
    least = 0 if estimator.deep is not None else 1
    for step in (0, 1, 2, 10, 1000, 10**6):
        count = estimator.queries(step)
        demand(
            isinstance(count, int)
            and not isinstance(count, bool)
            and count >= least
            and count == estimator.queries(step),
            f"queries({step}) is {count!r}",
        )


def deterministic(estimator: Estimator, setting: Setting) -> None:
    """The same losses and keys give the same estimate."""
    for queries in setting.queries:
        one, other = (_estimate(estimator, 4, queries)[0] for _ in range(2))
        demand(one[:2] == other[:2], f"coefficients of {queries} queries differ in a second estimate (seed 4)")


def reports_the_loss(estimator: Estimator, setting: Setting) -> None:
    """The reported loss is that of the weights, up to eps^2."""
    bowl = _bowl()
    exact = bowl.loss(bowl.start)
    slack = 50 * estimator.eps**2 * float(sum(c.sum() for c in bowl.curvature.values())) + 1e-6 * exact
    for queries in setting.queries:
        loss = _estimate(estimator, 0, queries)[0].loss
        demand(
            isinstance(loss, float) and abs(loss - exact) <= slack,
            f"the loss is reported as {loss!r} with {queries} queries and eps {estimator.eps:g}, and is {exact:.6f}",
        )


def shows_what_is_not_finite(estimator: Estimator, setting: Setting) -> None:
    """A loss that is not a number shows in the estimate, and never as 0."""
    for queries in setting.queries:
        estimate, _, _ = _estimate(estimator, 0, queries, sick=True)
        tensors = [bool(t.isfinite().all()) for t in (estimate.tensors or {}).values()]
        seen = not (math.isfinite(estimate.loss) and all(map(math.isfinite, estimate.coeffs)) and all(tensors))
        demand(seen, f"losses that are nan give a loss of {estimate.loss} and coefficients {estimate.coeffs}")


def no_global_generator(estimator: Estimator, setting: Setting) -> None:
    """Estimating does not move the global generators of torch, numpy and random."""
    with generators_untouched():
        _estimate(estimator, 0, setting.queries[0])


def prefers_lower_losses(estimator: Estimator, setting: Setting) -> None:
    """Against the mean estimate the loss of a quadratic falls, also where losses are shaped."""
    gradient = _flat(_bowl().gradient())
    for queries in setting.queries:
        slope = 0.0
        for seed in range(SAMPLES if estimator.queries(0) else 0):
            estimate, asked, keys = _estimate(estimator, seed, queries)
            slope += sum(
                c * float(gradient @ _flat(asked.z(key))) for c, key in zip(estimate.coeffs, keys, strict=True)
            )
        demand(
            slope > 0 or not estimator.queries(0),
            f"with {queries} queries the mean of {SAMPLES} estimates points to higher losses (seeds from 0)",
        )


CHECKS = (
    *(
        unbiased,
        prefers_lower_losses,
        forwards_are_counted,
        one_coefficient_a_key,
        schedule_of_queries,
        deterministic,
        reports_the_loss,
    ),
    *(shows_what_is_not_finite, no_global_generator),
)


def _flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values[name].flatten() for name in sorted(values)])

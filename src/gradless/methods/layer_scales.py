"""Per-layer perturbation scales d for `gradless.directions.scaled` (MeZO, arXiv 2305.17333, appendices B.3 and E.6).

A scale is relative: its mean over leaves is 1, so that eps keeps its meaning. Leaves of zeros, or without any effect
on the loss, get scale 1: the published code divides by such norms.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradless import rng
from gradless.errors import BadInput
from gradless.forward.losses import Closure, checked
from gradless.gradients import Mixture, length
from gradless.optimizer import ZerothOrder

__all__ = ["gradient_norm_scales", "parameter_norm_scales"]


def parameter_norm_scales(params: Mapping[str, Tensor]) -> dict[str, float]:
    """Root-mean-square of every leaf, relative to their mean (MeZO table 9). Cost: one pass over the weights.

    Example:
        >>> parameter_norm_scales({"a": torch.ones(4), "b": torch.full((4,), 3.0), "c": torch.zeros(2)})
        {'a': 0.5, 'b': 1.5, 'c': 1.0}
    """
    norms = {name: length(p.detach()) for name, p in params.items()}
    scales = _relative({name: norm / max(params[name].numel(), 1) ** 0.5 for name, norm in norms.items()})
    # A processor's order of summation shows in the last of 16 digits, and a replay elsewhere needs the same scales.
    return {name: float(f"{scale:.6g}") for name, scale in scales.items()}


@torch.no_grad()
def gradient_norm_scales(optimizer: ZerothOrder, closure: Closure, *, queries: int = 1) -> dict[str, float]:
    """Gradient norm of every leaf from forward passes alone (MeZO proposition 1, table 8), relative to their mean.

    Only one leaf is perturbed at a time, and the root-mean-square of (L(+eps z) - L(-eps z)) / (2 eps) over ``queries``
    directions estimates its gradient's norm: with one query the estimate of a leaf can be near zero by chance, which
    the paper's results for it suffered from, so use several where they are affordable.

    Args:
        optimizer: gives eps, the seed and the leaves; its state and the weights are left alone.
        closure: the loss, as for `ZerothOrder.step`.
        queries: directions per leaf.

    Cost: 2 * queries forwards per leaf.

    Raises:
        BadInput: the optimizer's estimator perturbs nothing.
    """
    eps = optimizer.estimator.eps
    if not eps:
        raise BadInput(f"{optimizer.estimator.name} perturbs nothing: measure scales with an optimizer that has an eps")
    closure = checked(optimizer.evaluator.random_state().pinned(closure))
    norms = {}
    for leaf in optimizer.leaves:
        squares = 0.0
        for query in range(queries):
            # A stream of its own: these directions must not be those of the first steps.
            mixture = Mixture((rng.fold(optimizer.key(0, query), rng.INITIAL),), (1.0,))
            plus = optimizer.evaluator.value(closure, mixture, eps, only=leaf)
            minus = optimizer.evaluator.value(closure, mixture, -eps, only=leaf)
            squares += ((plus - minus) / (2 * eps)) ** 2
        norms[leaf.name] = (squares / queries) ** 0.5
    return _relative(norms)


def _relative(values: Mapping[str, float]) -> dict[str, float]:
    """Divide by the mean of the positive ones; the others become 1."""
    positive = [value for value in values.values() if 0 < value < float("inf")]
    mean = sum(positive) / len(positive) if positive else 1.0
    return {name: value / mean if 0 < value < float("inf") else 1.0 for name, value in values.items()}

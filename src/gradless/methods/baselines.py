"""What forward-only training is measured against: backpropagation, alone or in the upper layers, and forward mode."""

from __future__ import annotations

from typing import Unpack

from gradless.directions import gaussian, rademacher
from gradless.directions.blocks import units
from gradless.errors import BadInput
from gradless.estimators import backprop, forward_grad, hybrid, spsa
from gradless.forward import parameters
from gradless.methods.common import Common, Params, Queries, Rate, build, preset
from gradless.optimizer import ZerothOrder
from gradless.rules import chain, on_stored, scale
from gradless.rules.stored import clip, heavy_ball, stored_adam

__all__ = ["fo_adam", "fo_sgd", "forward_gradient", "hybrid_zo_fo"]


@preset
def fo_sgd(
    params: Params,
    *,
    lr: Rate = 1e-3,
    eps: float = 0.0,
    beta: float = 0.0,
    max_norm: float = 1.0,
    **common: Unpack[Common],
) -> ZerothOrder:
    """SGD by backpropagation, the gradient clipped to ``max_norm``; ``beta`` is its momentum.

    Cost: a forward and a backward, counted as three forwards; activations, and a gradient of the tuned weights.
    """
    rules = [clip(max_norm), *([heavy_ball(beta)] if beta else []), scale(lr)]
    return build(params, rademacher(), backprop(), chain(*rules), **common)


@preset
def fo_adam(
    params: Params,
    *,
    lr: Rate = 1e-5,
    eps: float = 0.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    max_norm: float = 1.0,
    **common: Unpack[Common],
) -> ZerothOrder:
    """AdamW by backpropagation, the gradient clipped to ``max_norm``. Cost: that of `fo_sgd` and two more copies.

    ``beta1`` and ``beta2`` are the decays of `gradless.stored_adam`.
    """
    rule = chain(clip(max_norm), stored_adam(beta1, beta2), scale(lr))
    return build(params, rademacher(), backprop(), rule, **common)


@preset
def forward_gradient(
    params: Params, *, lr: Rate = 1e-6, eps: float = 0.0, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """Forward-Grad: exact slopes along Gaussian directions. Cost: K forwards with tangents, counted as 2K.

    Baydin et al. 2022 (arXiv 2202.08587), as in ZO-Bench but with tangents of one layer at a time.
    """
    return build(params, gaussian(), forward_grad(queries=queries), scale(lr), **common)


@preset
def hybrid_zo_fo(
    params: Params,
    *,
    lr: Rate = 1e-6,
    eps: float = 1e-3,
    queries: Queries = 1,
    deep_units: int = 3,
    deep_lr_ratio: float = 10.0,
    **common: Unpack[Common],
) -> ZerothOrder:
    """Backpropagation with Adam in the last ``deep_units`` units of the model, MeZO in the others.

    Units are blocks and the modules around them, in order; a tied output layer belongs to the embeddings. The learning
    rate of the deep part is ``deep_lr_ratio`` times ``lr``. Cost: 2K + 3 forwards; activations, a gradient and two
    copies of the deep part. The hybrid of ZO-Bench (Zhang et al. 2024, arXiv 2402.11592).

    Raises:
        BadInput: too few units to cut between, or a ratio that is not positive.
    """
    groups = parameters.groups(params)
    parts = units([name for group in groups for name, p in group["params"] if p.requires_grad])
    if len(parts) < 2:
        raise BadInput("a hybrid needs tuned parameters in several layers to cut between: use the scheme full or lora")
    if not 0 < deep_lr_ratio < float("inf"):
        raise BadInput(f"deep_lr_ratio is {deep_lr_ratio}: it must be positive and finite")
    if not 1 <= deep_units < len(parts):
        raise BadInput(f"deep_units is {deep_units}: the tuned parameters make {len(parts)} units, so cut below that")
    deep = frozenset(name for unit in parts[-deep_units:] for name in unit)
    split = [
        {**group, "params": part, "lr_scale": group.get("lr_scale", 1.0) * (deep_lr_ratio if is_deep else 1.0)}
        for group in groups
        for is_deep in (False, True)
        if (part := [(name, p) for name, p in group["params"] if (name in deep) == is_deep])
    ]
    rule = chain(on_stored(chain(clip(1.0), stored_adam())), scale(lr))
    return build(split, rademacher(), hybrid(spsa(eps=eps, queries=queries), deep.__contains__), rule, **common)

"""What forward-only training is measured against: backpropagation, alone or in the upper layers, and forward mode."""

from __future__ import annotations

import re
from typing import Unpack

from torch import nn

from gradless.directions import gaussian, rademacher
from gradless.errors import BadInput
from gradless.estimators import backprop, forward_grad, hybrid, spsa
from gradless.forward import block_order, parameters
from gradless.methods.common import Common, Params, Queries, Rate, build, preset
from gradless.optimizer import ZerothOrder
from gradless.rules import chain, on_stored, scale
from gradless.rules.stored import clip, heavy_ball, stored_adam
from gradless.storage.codes import is_tuned

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
    deep: str = "",
    model: nn.Module | None = None,
    **common: Unpack[Common],
) -> ZerothOrder:
    """Backpropagation with Adam in the last ``deep_units`` units of the model, MeZO in the others.

    Units are blocks and the modules around them, in the order in which a forward reads them; a tied output layer
    belongs to the embeddings. The learning rate of the deep part is ``deep_lr_ratio`` times ``lr``. Cost: 2K + 3
    forwards; activations, a gradient and two copies of the deep part. The hybrid of ZO-Bench (Zhang et al. 2024, arXiv
    2402.11592).

    Args:
        params: as for every method.
        lr: of the MeZO part.
        eps: of the MeZO part.
        queries: of the MeZO part.
        deep_units: number of units with backpropagation, from the output: 1 is the last module alone, of more than one
            at least one is a block.
        deep_lr_ratio: their learning rate in units of ``lr``.
        deep: regular expression (`re.search`) of the names of parameters with backpropagation, instead of units.
        model: the model of the parameters, which is asked for the order by a forward of a few tokens. Without it the
            order is that of ``params``, and few models (OPT, DeBERTa) register in another order than they read.
        common: see `gradless.methods.common.Common`.

    Raises:
        BadInput: no blocks to be found, too few units to cut between, a pattern that matches all or none, or a
            ratio that is not positive.
    """
    groups = parameters.groups(params)
    names = [name for group in groups for name, p in group["params"] if is_tuned(p)]
    if not isinstance(deep, str):
        raise BadInput(f"deep is {deep!r}: give a regular expression")
    if not 0 < deep_lr_ratio < float("inf"):
        raise BadInput(f"deep_lr_ratio is {deep_lr_ratio}: it must be positive and finite")
    chosen = _matching(names, deep) if deep else block_order.last_units(names, deep_units, model)
    split = [
        {**group, "params": part, "lr_scale": group.get("lr_scale", 1.0) * (deep_lr_ratio if is_deep else 1.0)}
        for group in groups
        for is_deep in (False, True)
        if (part := [(name, p) for name, p in group["params"] if (name in chosen) == is_deep])
    ]
    rule = chain(on_stored(chain(clip(1.0), stored_adam())), scale(lr))
    return build(split, rademacher(), hybrid(spsa(eps=eps, queries=queries), chosen.__contains__), rule, **common)


def _matching(names: list[str], pattern: str) -> frozenset[str]:
    try:
        matching = frozenset(name for name in names if re.search(pattern, name))
    except re.error as error:
        raise BadInput(f"deep is '{pattern}', no regular expression ({error}): correct the pattern") from None
    if not 0 < len(matching) < len(names):
        how = "all" if matching else "none"
        raise BadInput(
            f"deep is '{pattern}', which matches {how} of the tuned parameters: their names are like {names[-1]}"
        )
    return matching

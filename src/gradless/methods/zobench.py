"""The zeroth-order methods of ZO-Bench (Zhang et al. 2024, arXiv 2402.11592) that MeZO does not have, as defined there.

The released code differs from the paper in places (docs/log.md); these follow the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from torch import Tensor

from gradless.accept import conservative
from gradless.directions import gaussian, rademacher
from gradless.directions.blocks import one_by_one, random_blocks
from gradless.directions.masks import sparse
from gradless.estimators import spsa
from gradless.forward import parameters
from gradless.methods.common import Common, Params, Queries, Rate, build, preset
from gradless.optimizer import ZerothOrder
from gradless.rules import chain, scale
from gradless.rules.normalise import scalar_sign, sign
from gradless.rules.stored import heavy_ball, stored_adam
from gradless.storage.codes import is_tuned

__all__ = ["zo_adam", "zo_block", "zo_blockwise", "zo_cons", "zo_momentum", "zo_scalar_sign", "zo_sign", "zo_sparse"]


@preset
def zo_momentum(
    params: Params,
    *,
    lr: Rate = 1e-7,
    eps: float = 1e-3,
    queries: Queries = 1,
    beta: float = 0.9,
    **common: Unpack[Common],
) -> ZerothOrder:
    """ZO-SGD-MMT: heavy-ball momentum ``beta``, stored in float32. Cost: 2K forwards; one copy of the tuned weights.

    `mezo_momentum` recomputes the same buffer from scalars instead.
    """
    return build(params, rademacher(), spsa(eps=eps, queries=queries), chain(heavy_ball(beta), scale(lr)), **common)


@preset
def zo_adam(
    params: Params,
    *,
    lr: Rate = 1e-4,
    eps: float = 1e-3,
    queries: Queries = 1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    **common: Unpack[Common],
) -> ZerothOrder:
    """ZO-Adam on Gaussian directions, moments stored in float32. Cost: 2K forwards; two copies of the tuned weights.

    ``beta1`` and ``beta2`` are the decays of `gradless.stored_adam`.
    """
    rule = chain(stored_adam(beta1, beta2), scale(lr))
    return build(params, gaussian(), spsa(eps=eps, queries=queries), rule, **common)


@preset
def zo_sign(
    params: Params, *, lr: Rate = 1e-5, eps: float = 1e-3, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """ZO-SGD-Sign: the sign of every element of the estimate. Cost: 2K forwards; memory of inference.

    Liu et al. 2019 (signSGD via zeroth-order oracle, ICLR). With one +1/-1 query it is `zo_scalar_sign`.
    """
    return build(params, gaussian(), spsa(eps=eps, queries=queries), chain(sign(), scale(lr)), **common)


@preset
def zo_scalar_sign(
    params: Params, *, lr: Rate = 1e-5, eps: float = 1e-3, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """The sign of the projected gradient times z: what ZO-Bench's code calls sign. Cost: 2K forwards, no memory."""
    return build(params, rademacher(), spsa(eps=eps, queries=queries), chain(scalar_sign(), scale(lr)), **common)


@preset
def zo_cons(
    params: Params, *, lr: Rate = 1e-6, eps: float = 1e-3, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """ZO-SGD-Cons: of theta, theta - lr g and theta + lr g keep the best on the batch. Cost: 2K + 3 forwards."""
    estimator = spsa(eps=eps, queries=queries)
    return build(params, rademacher(), estimator, scale(lr), accept=conservative, **common)


@preset
def zo_sparse(
    params: Params,
    *,
    lr: Rate = 1e-6,
    eps: float = 1e-3,
    queries: Queries = 1,
    keep: float = 0.5,
    mask: str = "magnitude",
    group: str = "layer",
    norms: Mapping[str, Tensor] | None = None,
    **common: Unpack[Common],
) -> ZerothOrder:
    """ZO-SGD on a fixed share of the weights: gradient sparsity. Cost: 2K forwards; a byte a weight for the mask.

    Args:
        params: see above, as for all arguments that are not here.
        lr: see above.
        eps: see above.
        queries: see above.
        keep: share of the weights of every matrix that is perturbed and updated.
        mask: ``random``, ``magnitude`` (the largest), ``smallest`` or ``wanda`` (the largest times input norm).
        group: whether ``magnitude`` compares weights within a layer or over all layers (``global``).
        norms: input norms of linear layers by weight name, for ``wanda``.
        common: see above.
    """
    directions = sparse(rademacher(), mask, keep, seed=common.get("seed", 0), norms=norms, group=group)
    return build(params, directions, spsa(eps=eps, queries=queries), scale(lr), **common)


@preset
def zo_block(
    params: Params, *, lr: Rate = 1e-6, eps: float = 1e-3, queries: Queries = 1, keep: int = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """``keep`` random blocks of the model a query, and always what is in no block (embeddings, the last norm).

    Freeze the latter to perturb the block alone, which also lets forwards begin there. Cost: 2K forwards. Park et al.
    2025 (MeZO-BCD, arXiv 2501.19099).
    """
    directions = random_blocks(rademacher(), keep=int(keep))
    return build(params, directions, spsa(eps=eps, queries=queries), scale(lr), **common)


@preset
def zo_blockwise(params: Params, *, lr: Rate = 1e-6, eps: float = 1e-3, **common: Unpack[Common]) -> ZerothOrder:
    """Every block of the model in turn, each with its own z, all at the same weights. Cost: 2 forwards a block."""
    groups = parameters.groups(params)
    names = [name for group in groups for name, p in group["params"] if is_tuned(p)]
    directions, count = one_by_one(rademacher(), names)
    return build(groups, directions, spsa(eps=eps, queries=count), scale(lr), **common)

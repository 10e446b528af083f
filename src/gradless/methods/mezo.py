"""MeZO and its nearest relatives: presets of a few lines over directions, estimator, rule and acceptance.

All presets take the same arguments, and some their own:

- ``params``: named parameters or groups of them, as `ZerothOrder` takes them;
- ``lr``: learning rate, a number or a schedule ``step -> lr``;
- ``eps``: perturbation scale;
- ``queries``: directions a step, a number or a schedule ``step -> K``;
- ``seed``, ``weight_decay``, ``transform``, ``engine``, ``defer``: see `gradless.methods.common.Common`.

"""

from __future__ import annotations

from typing import Unpack

from gradless.directions import gaussian, low_rank, rademacher
from gradless.estimators import one_sided, spsa
from gradless.methods.common import Common, Params, Queries, Rate, build, preset
from gradless.optimizer import ZerothOrder
from gradless.rules import adam, chain, momentum, scale

__all__ = ["lozo", "mezo", "mezo_adam", "mezo_gaussian", "mezo_momentum", "mezo_one_sided"]


@preset
def mezo(
    params: Params, *, lr: Rate = 1e-6, eps: float = 1e-3, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """MeZO with portable +1/-1 directions: theta <- theta - lr * c * z, c from two forwards.

    Cost: 2K forwards a step; memory of inference plus the largest leaf. Malladi et al. 2023 (arXiv 2305.17333), with
    Rademacher instead of Gaussian z (`mezo_gaussian` keeps the published distribution).
    """
    return build(params, rademacher(), spsa(eps=eps, queries=queries), scale(lr), **common)


@preset
def mezo_gaussian(
    params: Params, *, lr: Rate = 1e-6, eps: float = 1e-3, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """MeZO as published: Gaussian z. Malladi et al. 2023 (arXiv 2305.17333). Cost: 2K forwards a step."""
    return build(params, gaussian(), spsa(eps=eps, queries=queries), scale(lr), **common)


@preset
def mezo_one_sided(
    params: Params, *, lr: Rate = 1e-6, eps: float = 1e-3, queries: Queries = 1, **common: Unpack[Common]
) -> ZerothOrder:
    """MeZO with forward differences. Cost: K + 1 forwards instead of 2K; the loss logged is the loss itself."""
    return build(params, rademacher(), one_sided(eps=eps, queries=queries), scale(lr), **common)


@preset
def mezo_momentum(
    params: Params,
    *,
    lr: Rate = 1e-7,
    eps: float = 1e-3,
    queries: Queries = 1,
    beta: float = 0.9,
    **common: Unpack[Common],
) -> ZerothOrder:
    """MeZO with heavy-ball momentum recomputed from past scalars: no buffer. See `gradless.rules.momentum` for costs.

    ``beta`` is its decay. Malladi et al. 2023 (arXiv 2305.17333), appendix B.2.
    """
    return build(params, rademacher(), spsa(eps=eps, queries=queries), chain(momentum(beta), scale(lr)), **common)


@preset
def mezo_adam(
    params: Params,
    *,
    lr: Rate = 1e-4,
    eps: float = 1e-3,
    queries: Queries = 1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    window: int = 64,
    **common: Unpack[Common],
) -> ZerothOrder:
    """MeZO-Adam: Gaussian z, and both moments recomputed from the scalars of the last ``window`` steps.

    Adam (Kingma & Ba 2015) for the first ``window`` steps; after that its v forgets what is older, where Adam's beta2
    of 0.999 remembers a thousand steps: `gradless.rules.adam` says how much that is; `zo_adam` stores the moments
    instead. Cost: 2K forwards, and the directions of ``window`` steps twice.

    Malladi et al. 2023 (arXiv 2305.17333), appendix B.2, who recompute over all steps.
    """
    rule = chain(adam(beta1, beta2, window=window), scale(lr))
    return build(params, gaussian(), spsa(eps=eps, queries=queries), rule, **common)


@preset
def lozo(
    params: Params,
    *,
    lr: Rate = 1e-6,
    eps: float = 1e-3,
    queries: Queries = 1,
    rank: int = 8,
    refresh: int = 50,
    **common: Unpack[Common],
) -> ZerothOrder:
    """ZO-SGD along low-rank directions z = U V^T / sqrt(rank) with a V that is kept for ``refresh`` steps.

    Linear layers apply z beside their weights, which are neither copied nor, with ``defer``, written more than once in
    ``refresh`` steps. Cost: 2K forwards and thin products. z has elements of variance 1, so a published eps becomes
    eps sqrt(rank) and a rate of the published code, which leaves U V^T unscaled, lr rank. A matrix with no more than
    ``rank`` rows or columns, as those of LoRA at its default rank, gets signs of every weight, as in `mezo`. Chen et
    al. 2024 (LOZO, arXiv 2410.07698), with signs for Gaussian factors; Sarkar et al. 2025 (EGGROLL, arXiv 2511.16652).
    """
    return build(params, low_rank(rank, refresh=refresh), spsa(eps=eps, queries=queries), scale(lr), **common)

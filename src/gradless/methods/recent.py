"""Methods after MeZO that claim to learn more from a forward; what they did here: docs/reference/method-results.md."""

from __future__ import annotations

from typing import Unpack

from gradless.directions import low_rank, rademacher
from gradless.directions.blocks import random_blocks
from gradless.directions.masks import sparse
from gradless.errors import BadInput, pick, whole
from gradless.estimators import one_sided, population, spsa
from gradless.methods.common import Common, Params, Queries, Rate, build, preset
from gradless.optimizer import ZerothOrder
from gradless.rng import MAX_RANK
from gradless.rules import chain, momentum, scale
from gradless.rules.muon import SCALES, orthogonalise
from gradless.rules.normalise import rms_normalised, std_normalised

__all__ = ["es", "fzoo", "lezo", "mezo_rms", "sparse_mezo", "zo_muon"]


@preset
def es(
    params: Params,
    *,
    lr: Rate = 1e-3,
    eps: float = 1e-3,
    queries: Queries = 4,
    shaping: str = "centred_ranks",
    rank: int | None = None,
    refresh: int = 10,
    **common: Unpack[Common],
) -> ZerothOrder:
    """Evolution strategies: antithetic members compared by their shaped losses. Cost: 2K forwards, or generations.

    The closure may return a loss for each row of its batch, such as minus the reward of each prompt. The step does not
    depend on the size of the loss, so rates are of the size of eps. ``rank``: None for signs of every weight; a number
    for low-rank directions, whose V is new every ``refresh`` steps and with which all members decode in one batch over
    shared weights. Salimans et al. 2017 (arXiv 1703.03864), Qiu et al. 2025 (arXiv 2509.24372), low rank: Sarkar et al.
    2025 (arXiv 2511.16652).

    Raises:
        BadInput: an unknown shaping, or a rank that low-rank directions cannot have.
    """
    directions = (
        rademacher() if rank is None else low_rank(whole("rank", rank, least=1, most=MAX_RANK), refresh=refresh)
    )
    return build(params, directions, population(eps=eps, queries=queries, shaping=shaping), scale(lr), **common)


@preset
def fzoo(
    params: Params, *, lr: Rate = 1e-3, eps: float = 1e-3, queries: Queries = 8, **common: Unpack[Common]
) -> ZerothOrder:
    """FZOO: one-sided differences along K signs, divided by their standard deviation. Cost: K + 1 forwards.

    The step does not depend on the size of the loss: weights change by about lr / sqrt(K), so rates are of the size of
    eps. The deviation is the paper's (K - 1); the published code divides by K, which makes its steps sqrt(K / (K - 1))
    times longer. Dang et al. 2025 (arXiv 2506.09034).

    Raises:
        BadInput: fewer than two queries, which have no spread.
    """
    least = one_sided(queries=queries).queries(0)
    if least < 2:
        raise BadInput(f"fzoo divides by the spread of its differences, so {least} query a step is too few: use 8")
    rule = chain(std_normalised(), scale(lr))
    return build(params, rademacher(), one_sided(eps=eps, queries=queries), rule, **common)


@preset
def mezo_rms(
    params: Params,
    *,
    lr: Rate = 1e-5,
    eps: float = 1e-3,
    queries: Queries = 1,
    beta: float = 0.9,
    decay: float = 0.99,
    **common: Unpack[Common],
) -> ZerothOrder:
    """MeZO with momentum ``beta`` over a running root mean square of its coefficients: one scalar of state.

    ``decay`` is that of the mean square. Cost: 2K forwards. MEAZO, arXiv 2605.03869.

    Raises:
        BadInput: ``decay`` is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise BadInput(f"decay is {decay}: it must lie in [0, 1)")
    rules = [rms_normalised(decay), *([momentum(beta)] if beta else []), scale(lr)]
    return build(params, rademacher(), spsa(eps=eps, queries=queries), chain(*rules), **common)


@preset
def zo_muon(
    params: Params,
    *,
    lr: Rate = 1e-4,
    eps: float = 1e-3,
    queries: Queries = 4,
    rank: int = 16,
    refresh: int = 50,
    sides: int = 2,
    update: str = "rms",
    **common: Unpack[Common],
) -> ZerothOrder:
    """ZO-Muon: low-rank estimates of K queries, orthogonalised matrix by matrix. Cost: 2K forwards, thin factors.

    Directions have rank ``rank``; their V is new every ``refresh`` steps. ``sides``: 2 for central differences, 1 for
    forward differences (K + 1 forwards). ``update``: the scale of `gradless.orthogonalise`; a rate is the change of a
    weight with "rms" and that of the paper with "none". Published: ``rank=2, refresh=100, sides=1, update="none"``,
    with eps sqrt(rank / rows). Lang et al. 2026 (arXiv 2602.17155).

    Raises:
        BadInput: ``sides`` is neither 1 nor 2, or an unknown scale.
    """
    if sides not in (1, 2):
        raise BadInput(f"sides is {sides}: give 2 for differences of plus and minus eps, or 1 for forward differences")
    estimator = spsa(eps=eps, queries=queries) if sides == 2 else one_sided(eps=eps, queries=queries)
    pick("update", update, SCALES)
    rule = chain(orthogonalise(update), scale(lr))
    return build(params, low_rank(rank, refresh=refresh), estimator, rule, **common)


@preset
def sparse_mezo(
    params: Params,
    *,
    lr: Rate = 1e-6,
    eps: float = 1e-3,
    queries: Queries = 1,
    keep: float = 0.25,
    **common: Unpack[Common],
) -> ZerothOrder:
    """Sparse-MeZO: only the smallest weights of each layer move. Cost: 2K forwards; a byte a weight for the mask.

    ``keep`` is their share. Liu et al. 2024 (arXiv 2402.15751); the threshold is taken from the base weights.
    """
    directions = sparse(rademacher(), "smallest", keep)
    return build(params, directions, spsa(eps=eps, queries=queries), scale(lr), **common)


@preset
def lezo(
    params: Params,
    *,
    lr: Rate = 1e-6,
    eps: float = 1e-3,
    queries: Queries = 1,
    keep: float = 0.25,
    **common: Unpack[Common],
) -> ZerothOrder:
    """LeZO: a random share ``keep`` of the layers a query. Cost: 2K forwards, fewer sweeps. arXiv 2410.09823."""
    directions = random_blocks(rademacher(), keep=float(keep))
    return build(params, directions, spsa(eps=eps, queries=queries), scale(lr), **common)

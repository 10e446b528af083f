"""Methods by name: each a preset of a few lines over directions, estimator, rule and acceptance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gradless.directions import gaussian, rademacher
from gradless.estimators import one_sided, spsa
from gradless.optimizer import ZerothOrder
from gradless.rules import Schedule, adam, chain, momentum, scale

Queries = int | Callable[[int], int]


def mezo(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0,
) -> ZerothOrder:  # fmt: skip
    """MeZO with portable +1/-1 directions: theta <- theta - lr * c * z, c from two forwards.

    Cost: 2K forwards a step; memory of inference plus the largest leaf. Malladi et al. 2023 (arXiv 2305.17333), with
    Rademacher instead of Gaussian z (`mezo_gaussian` keeps the published distribution).
    """
    return ZerothOrder(
        params, seed=seed, directions=rademacher(), estimator=spsa(eps=eps, queries=queries), rule=scale(lr),
        weight_decay=weight_decay,
    )  # fmt: skip


def mezo_gaussian(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0,
) -> ZerothOrder:  # fmt: skip
    """MeZO as published: Gaussian z. Malladi et al. 2023 (arXiv 2305.17333). Cost: 2K forwards a step."""
    return ZerothOrder(
        params, seed=seed, directions=gaussian(), estimator=spsa(eps=eps, queries=queries), rule=scale(lr),
        weight_decay=weight_decay,
    )  # fmt: skip


def mezo_one_sided(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0,
) -> ZerothOrder:  # fmt: skip
    """MeZO with forward differences: K + 1 forwards a step instead of 2K; the loss logged is the loss itself."""
    return ZerothOrder(
        params, seed=seed, directions=rademacher(), estimator=one_sided(eps=eps, queries=queries), rule=scale(lr),
        weight_decay=weight_decay,
    )  # fmt: skip


def mezo_momentum(
    params: Iterable[Any], *, lr: float | Schedule = 1e-7, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, beta: float = 0.9,
) -> ZerothOrder:  # fmt: skip
    """MeZO with heavy-ball momentum recomputed from past scalars: no buffer. See `gradless.rules.momentum` for costs.

    Malladi et al. 2023 (arXiv 2305.17333), appendix B.2.
    """
    return ZerothOrder(
        params, seed=seed, directions=rademacher(), estimator=spsa(eps=eps, queries=queries),
        rule=chain(momentum(beta), scale(lr)), weight_decay=weight_decay,
    )  # fmt: skip


def mezo_adam(
    params: Iterable[Any], *, lr: float | Schedule = 1e-4, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0,
) -> ZerothOrder:  # fmt: skip
    """MeZO-Adam with Gaussian z and moments recomputed from past scalars. See `gradless.rules.adam` for costs.

    Malladi et al. 2023 (arXiv 2305.17333), appendix B.2.
    """
    return ZerothOrder(
        params, seed=seed, directions=gaussian(), estimator=spsa(eps=eps, queries=queries), rule=chain(adam(), scale(lr)),
        weight_decay=weight_decay,
    )  # fmt: skip


class Method(NamedTuple):
    """A preset and what `gradless list methods` says of it."""

    make: Callable[..., ZerothOrder]
    summary: str
    paper: str


METHODS: dict[str, Method] = {
    "mezo": Method(mezo, "ZO-SGD, +1/-1 directions; 2K forwards, memory of inference", "Malladi et al. 2023"),
    "mezo-gaussian": Method(
        mezo_gaussian, "ZO-SGD, Gaussian directions, as published", "Malladi et al. 2023"
    ),
    "mezo-one-sided": Method(mezo_one_sided, "ZO-SGD from forward differences; K+1 forwards", "Spall 1992"),
    "mezo-momentum": Method(
        mezo_momentum, "momentum recomputed from past scalars; no buffer", "Malladi et al. 2023"
    ),
    "mezo-adam": Method(mezo_adam, "Adam recomputed from past scalars; no buffers", "Malladi et al. 2023"),
}

"""Methods by name: each a preset of a few lines over directions, estimator, rule and acceptance.

All presets take the same arguments:

- ``params``: named parameters or groups of them, as `ZerothOrder` takes them;
- ``lr``: learning rate, a number or a schedule ``step -> lr``;
- ``eps``: perturbation scale;
- ``seed``: run seed;
- ``queries``: directions a step, a number or a schedule ``step -> K``;
- ``weight_decay``: decoupled weight decay;
- ``transform``: changes the directions, e.g. ``lambda d: gl.scaled(d, scales)``;
- ``engine``, ``defer``: how losses are found and when updates are written, as `ZerothOrder` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gradless.directions import Directions, gaussian, low_rank, rademacher
from gradless.estimators import one_sided, spsa
from gradless.landscape import STREAM
from gradless.optimizer import ZerothOrder
from gradless.rules import Rule, Schedule, adam, chain, momentum, scale

Queries = int | Callable[[int], int]
Transform = Callable[[Directions], Directions]


def mezo(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, transform: Transform | None = None, engine: str = STREAM, defer: bool = False,
) -> ZerothOrder:  # fmt: skip
    """MeZO with portable +1/-1 directions: theta <- theta - lr * c * z, c from two forwards.

    Cost: 2K forwards a step; memory of inference plus the largest leaf. Malladi et al. 2023 (arXiv 2305.17333), with
    Rademacher instead of Gaussian z (`mezo_gaussian` keeps the published distribution).
    """
    return _preset(
        params, rademacher(), spsa(eps=eps, queries=queries), scale(lr), seed, weight_decay, transform, engine, defer
    )


def mezo_gaussian(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, transform: Transform | None = None, engine: str = STREAM, defer: bool = False,
) -> ZerothOrder:  # fmt: skip
    """MeZO as published: Gaussian z. Malladi et al. 2023 (arXiv 2305.17333). Cost: 2K forwards a step."""
    return _preset(
        params, gaussian(), spsa(eps=eps, queries=queries), scale(lr), seed, weight_decay, transform, engine, defer
    )


def mezo_one_sided(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, transform: Transform | None = None, engine: str = STREAM, defer: bool = False,
) -> ZerothOrder:  # fmt: skip
    """MeZO with forward differences: K + 1 forwards a step instead of 2K; the loss logged is the loss itself."""
    return _preset(
        params,
        rademacher(),
        one_sided(eps=eps, queries=queries),
        scale(lr),
        seed,
        weight_decay,
        transform,
        engine,
        defer,
    )


def mezo_momentum(
    params: Iterable[Any], *, lr: float | Schedule = 1e-7, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, transform: Transform | None = None, engine: str = STREAM, defer: bool = False,
    beta: float = 0.9,
) -> ZerothOrder:  # fmt: skip
    """MeZO with heavy-ball momentum recomputed from past scalars: no buffer. See `gradless.rules.momentum` for costs.

    Malladi et al. 2023 (arXiv 2305.17333), appendix B.2.
    """
    rule = chain(momentum(beta), scale(lr))
    return _preset(
        params, rademacher(), spsa(eps=eps, queries=queries), rule, seed, weight_decay, transform, engine, defer
    )


def mezo_adam(
    params: Iterable[Any], *, lr: float | Schedule = 1e-4, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, transform: Transform | None = None, engine: str = STREAM, defer: bool = False,
) -> ZerothOrder:  # fmt: skip
    """MeZO-Adam with Gaussian z and moments recomputed from past scalars. See `gradless.rules.adam` for costs.

    Malladi et al. 2023 (arXiv 2305.17333), appendix B.2.
    """
    rule = chain(adam(), scale(lr))
    return _preset(
        params, gaussian(), spsa(eps=eps, queries=queries), rule, seed, weight_decay, transform, engine, defer
    )


def lozo(
    params: Iterable[Any], *, lr: float | Schedule = 1e-6, eps: float = 1e-3, seed: int = 0, queries: Queries = 1,
    weight_decay: float = 0.0, transform: Transform | None = None, engine: str = STREAM, defer: bool = False,
    rank: int = 8, refresh: int = 50,
) -> ZerothOrder:  # fmt: skip
    """ZO-SGD along low-rank directions z = U V^T / sqrt(rank) with a V that is kept for ``refresh`` steps.

    Linear layers apply z beside their weights, which are neither copied nor, with ``defer``, written more than once in
    ``refresh`` steps. Cost: 2K forwards and thin products. Chen et al. 2024 (LOZO, arXiv 2410.07698), with signs for
    Gaussian factors; Sarkar et al. 2025 (EGGROLL, arXiv 2511.16652).
    """
    estimator, directions = spsa(eps=eps, queries=queries), low_rank(rank, refresh=refresh)
    return _preset(params, directions, estimator, scale(lr), seed, weight_decay, transform, engine, defer)


def _preset(
    params: Iterable[Any], directions: Directions, estimator: Any, rule: Rule, seed: int, weight_decay: float,
    transform: Transform | None, engine: str, defer: bool,
) -> ZerothOrder:  # fmt: skip
    return ZerothOrder(
        params,
        seed=seed,
        directions=transform(directions) if transform else directions,
        estimator=estimator,
        rule=rule,
        weight_decay=weight_decay,
        engine=engine,
        defer=defer,
    )


class Method(NamedTuple):
    """A preset and what `gradless list methods` says of it."""

    make: Callable[..., ZerothOrder]
    summary: str
    paper: str


METHODS: dict[str, Method] = {
    "mezo": Method(mezo, "ZO-SGD, +1/-1 directions; 2K forwards, memory of inference", "Malladi et al. 2023"),
    "mezo-gaussian": Method(mezo_gaussian, "ZO-SGD, Gaussian directions, as published", "Malladi et al. 2023"),
    "mezo-one-sided": Method(mezo_one_sided, "ZO-SGD from forward differences; K+1 forwards", "Spall 1992"),
    "mezo-momentum": Method(mezo_momentum, "momentum recomputed from past scalars; no buffer", "Malladi et al. 2023"),
    "mezo-adam": Method(mezo_adam, "Adam recomputed from past scalars; no buffers", "Malladi et al. 2023"),
    "lozo": Method(lozo, "ZO-SGD along low-rank directions applied beside the weights", "Chen et al. 2024"),
}

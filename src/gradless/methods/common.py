"""What every preset shares: the arguments that mean the same in all methods, and the optimizer made of the rest.

``params``: named parameters, or groups of them, as `gradless.ZerothOrder` takes them. ``lr``: the learning rate, or a
schedule. ``eps``: how far weights are perturbed; methods of backpropagation take and ignore it. ``queries``: directions
K of a step, or a schedule of them. All other common arguments are keys of `Common`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypedDict, Unpack

from gradless.accept import Accept, always
from gradless.directions import Directions
from gradless.estimators import Estimator
from gradless.optimizer import ZerothOrder
from gradless.ranks import Ranks
from gradless.rules import Rule, Schedule, chain
from gradless.rules.normalise import rms_normalised

MEMORY = 0.99  # of the size of coefficients: the last hundred steps
Params = Iterable[Any]
Rate = float | Schedule
Queries = int | Callable[[int], int]
Transform = Callable[[Directions], Directions]


class Common(TypedDict, total=False):
    """Arguments that all presets take."""

    seed: int  # run seed (0)
    weight_decay: float  # decoupled (0)
    transform: Transform | None  # changes the directions, e.g. lambda d: gl.scaled(d, scales)
    engine: str  # as `ZerothOrder` takes it
    defer: bool  # as `ZerothOrder` takes it
    ranks: Ranks | None  # as `ZerothOrder` takes it
    check: bool  # as `ZerothOrder` takes it
    normalise: bool  # divide estimates by the running size of their coefficients: lr is then a change of weights


def build(
    params: Params,
    directions: Directions,
    estimator: Estimator,
    rule: Rule,
    *,
    accept: Accept = always,
    **common: Unpack[Common],
) -> ZerothOrder:
    """The optimizer of one choice on each axis."""
    settings: dict[str, Any] = dict(common)
    transform: Transform | None = settings.pop("transform", None)
    if settings.pop("normalise", False):
        rule = chain(rms_normalised(MEMORY), rule)
    return ZerothOrder(
        params,
        directions=transform(directions) if transform else directions,
        estimator=estimator,
        rule=rule,
        accept=accept,
        **settings,
    )

"""What every preset shares: the arguments that mean the same in all methods, and the optimizer made of the rest.

``params``: named parameters, or groups of them, as `gradless.ZerothOrder` takes them. ``lr``: the learning rate, or a
schedule. ``eps``: how far weights are perturbed; methods of backpropagation take and ignore it. ``queries``: directions
K of a step, or a schedule of them. All other common arguments are keys of `Common`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, TypedDict, Unpack

import numpy as np

from gradless.accept import Accept, always
from gradless.directions import Directions
from gradless.errors import BadInput, UnknownArgument, real, unknown, whole
from gradless.estimators import Estimator
from gradless.optimizer import ZerothOrder
from gradless.ranks import Ranks
from gradless.rules import Rule, Schedule, chain
from gradless.rules.normalise import rms_normalised

MEMORY = 0.99  # of the size of coefficients: the last hundred steps
LARGEST: Final = 2**63 - 1  # of whole numbers
FLAGS: Final = ("defer", "normalise", "check")
DECAYS: Final = ("beta", "beta1", "beta2", "decay")
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


Arguments = ParamSpec("Arguments")


def preset(make: Callable[Arguments, ZerothOrder]) -> Callable[Arguments, ZerothOrder]:
    """The preset, which refuses arguments that it does not have and numbers that it cannot use.

    Raises:
        BadInput: (when it is called) an unknown option, options without names, or a value of another type or range.
    """
    own = {
        name: p.default for name, p in inspect.signature(make).parameters.items() if name not in ("params", "common")
    }
    known = [*own, *Common.__annotations__]

    @functools.wraps(make)
    def checked(*params: Arguments.args, **options: Arguments.kwargs) -> ZerothOrder:
        called = f"{make.__name__}(model.named_parameters(), lr=...)"
        if len(params) != ("params" not in options):
            problem = "takes its options by name" if len(params) > 1 else "needs parameters"
            raise UnknownArgument(f"{make.__name__} {problem}: {called}")
        for name in options:
            if name not in known and name != "params":
                raise UnknownArgument(unknown(f"option of {make.__name__}", name, known))
        options.update({name: _value(name, options[name], own.get(name)) for name in options})
        return make(*params, **options)

    return checked


def _value(name: str, value: Any, default: Any) -> Any:
    """An option in its type; what is no number is left to whoever takes it."""
    if name in FLAGS and not isinstance(value, (bool, np.bool_)):
        raise BadInput(f"{name} is {value!r}: give True or False")
    if name == "transform" and value is not None and not callable(value):
        raise BadInput(f"transform is {value!r}: give a function from directions to directions")
    if isinstance(default, bool) or not isinstance(default, (int, float)) or name in ("lr", "queries"):
        return value
    if isinstance(default, int):
        return whole(name, value, least=1, most=LARGEST)
    if name in DECAYS:
        return real(name, value, least=0.0, below=1.0)
    if name == "eps" and not default:  # which the method does not use
        return real(name, value, least=0.0)
    return math.inf if value == math.inf and name == "max_norm" else real(name, value, above=0.0)


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

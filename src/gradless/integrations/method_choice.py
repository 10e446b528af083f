"""The optimizer that ``zo=`` and ``zo_options=`` stand for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from gradless import plugins
from gradless.errors import BadInput, pick, unknown
from gradless.methods import METHODS
from gradless.methods.common import Common
from gradless.optimizer import ZerothOrder
from gradless.storage import quantised

Choice = str | Callable[..., ZerothOrder]
FIXED = {
    "params": "the model",
    "lr": "TrainingArguments.learning_rate",
    "weight_decay": "TrainingArguments.weight_decay",
    "ranks": "torchrun",
}


def check(zo: Choice, options: Mapping[str, Any]) -> Callable[..., ZerothOrder]:
    """Return the function that makes the optimizer.

    Raises:
        BadInput: an unknown method or option, or one that needs gradients.
    """
    if isinstance(zo, str):
        plugins.find("methods", zo)
        pick("method", zo, METHODS)
    elif not callable(zo):
        raise BadInput(f"zo is {zo!r}: give the name of a method, e.g. 'mezo', or a function like gradless.mezo")
    make = METHODS[zo].make if isinstance(zo, str) else zo
    method = next((entry for entry in METHODS.values() if entry.make is make), None)
    if method is not None and not method.replays:
        raise BadInput(f"zo={zo!r} uses backpropagation: train with transformers.Trainer, or choose another method")
    parameters = inspect.signature(make).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = [name for name in parameters if name not in ("params", "lr", "common")]
    known += [name for name in Common.__annotations__ if open_ended and name not in FIXED]
    for name in options:
        if name in FIXED:
            raise BadInput(f"zo_options has {name!r}, which comes from {FIXED[name]}: leave it out here")
        if name not in known and (method is not None or not open_ended):
            raise BadInput(unknown("entry of zo_options", name, known))
    return make


def describe(zo: Choice | ZerothOrder, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choice as JSON, for the ledger; of what JSON cannot hold, the name."""
    if isinstance(zo, ZerothOrder):
        rule, estimator = zo.rule.name, zo.estimator
        return {"method": "given", "options": {"rule": rule, "estimator": estimator.name, "eps": estimator.eps}}
    make = METHODS[zo].make if isinstance(zo, str) else zo
    name = next((name for name, method in METHODS.items() if method.make is make), None)
    plain = json.loads(
        json.dumps(dict(options), default=lambda value: getattr(value, "__name__", type(value).__name__))
    )
    used = plugins.named(plugins.used({"methods": [name]})) if name else {}
    described = {"method": name or getattr(make, "__name__", type(make).__name__), "options": plain}
    return {**described, **({"plugins": used} if used else {})}


def groups(model: nn.Module, decayed: list[str], weight_decay: float) -> list[Any]:
    """Return named parameters that require grad; those to decay in a group of their own, if there are any."""
    quantised.check_model(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not weight_decay:
        return named
    parts = [
        {"params": [entry for entry in named if (entry[0] in decayed) is with_decay], "weight_decay": decay}
        for with_decay, decay in ((True, weight_decay), (False, 0.0))
    ]
    return [part for part in parts if part["params"]]


def checked(opt: Any) -> ZerothOrder:
    """Return an optimizer that was handed over ready-made, or made by a function of the user's, once checked.

    Raises:
        BadInput: it is of another kind, has its own schedule, or stores gradients.
    """
    if not isinstance(opt, ZerothOrder):
        raise BadInput(f"the optimizer is {type(opt).__name__}: ZOTrainer needs one of gradless, e.g. zo=gradless.mezo")
    if callable(opt.rule.lr):
        raise BadInput(
            "the optimizer has a learning-rate schedule: give it a number, lr_scheduler_type is the schedule"
        )
    if opt.estimator.deep is not None:
        raise BadInput(f"{opt.estimator.name} uses backpropagation: train with transformers.Trainer")
    return opt

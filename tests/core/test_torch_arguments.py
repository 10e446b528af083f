"""Learning rates and schedulers, arguments, closures: what an optimizer takes, and what it refuses in one sentence."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import gradless as gl
from gradless.forward.engines import ENGINES
from gradless.methods import METHODS
from gradless.optimizer import Update
from torch_contract_helpers import Net, X, equal, loss_of, named, refused, weights

# ---------------------------------------------------------------------------------------------------------------
# learning rates


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: 0.5**t),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda t: 0.5),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 1, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 2]),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 2),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.5, total_iters=3),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.5),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=10, cycle_momentum=False),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 5),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(opt, 0.5), lr_scheduler.ConstantLR(opt, 0.5, 2)]
    ),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.5)], [2]
    ),
}


def rates(opt: torch.optim.Optimizer, name: str, step: Callable[[], Any]) -> list[float]:
    scheduler, seen = SCHEDULERS[name](opt), []
    for _ in range(4):
        step()
        seen.append(opt.param_groups[0]["lr"])
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_followed_or_refused_where_it_would_do_nothing(name):
    sgd = torch.optim.SGD(Net().parameters(), lr=0.1)
    expected = rates(sgd, name, lambda: sgd.step())
    for make in (gl.mezo, gl.hybrid_zo_fo):
        model, used = Net(), []
        opt = make(named(model), lr=0.1, **({"deep_units": 1} if make is gl.hybrid_zo_fo else {}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch's: a scheduler before the first step
            log = lambda update, used=used: used.append(update.lrs[0])  # noqa: E731
            rates(opt, name, lambda opt=opt, model=model, log=log: opt.step_with(loss_of(model), log))
        assert used == pytest.approx(expected)
        held = make(named(model), lr=gl.linear(0.1, 10), **({"deep_units": 1} if make is gl.hybrid_zo_fo else {}))
        refused(lambda held=held, model=model: rates(held, name, lambda: held.step(loss_of(model))), "do nothing")


def test_schedulers_that_cycle_momentum_say_so():
    with pytest.raises(ValueError, match="cycle_momentum"):
        lr_scheduler.CyclicLR(gl.mezo(named(Net())), 0.01, 0.1)


def test_a_factor_of_a_group_counts_with_and_without_a_schedule():
    for lr in (0.1, gl.constant(0.1)):
        opt = gl.mezo(
            [{"params": named(Net(), slice(2)), "lr_scale": 3}, {"params": named(Net(), slice(2, None))}], lr=lr
        )
        assert opt.learning_rates() == pytest.approx((0.3, 0.1))


@pytest.mark.parametrize("value", [-1, math.nan, "fast", None])
def test_impossible_values_that_are_set_later_stop_the_next_step(value):
    for key in ("lr", "weight_decay"):
        model = Net()
        opt = gl.mezo(named(model), lr=0.1)
        opt.param_groups[0][key] = value
        logged: list[Update] = []
        refused(lambda opt=opt, model=model, logged=logged: opt.step_with(loss_of(model), logged.append))
        assert (logged, opt.t) == ([], 0)


def test_rates_in_tensors_and_of_zero():
    model, lr = Net(), torch.tensor(0.1)
    opt = gl.mezo(named(model), lr=lr)
    opt.step(loss_of(model))
    lr.fill_(0.0)  # as code for captured graphs does
    moved = weights(model)
    opt.step(loss_of(model))
    gl.mezo(named(model), lr=0).step(loss_of(model))
    assert equal(weights(model), moved)
    held = gl.mezo(named(model), lr=gl.constant(0.1))
    held.step(loss_of(model))
    held.param_groups[0]["lr"] = 0.0
    refused(lambda: held.step(loss_of(model)), "do nothing")


# ---------------------------------------------------------------------------------------------------------------
# arguments


UNUSABLE = (-1, -1e-9, math.nan, math.inf, "x", None, True, 1j, [1], 10**400)


def impossible(make: Callable[..., Any]) -> list[dict[str, Any]]:
    """Arguments of a preset, each of which alone is a mistake."""
    cases: list[dict[str, Any]] = [{name: 0.1} for name in ("maximize", "momentum", "weight_deacy", "betas", "Eps")]
    cases += [{name: value} for name in ("lr", "weight_decay", "seed") for value in UNUSABLE]
    cases += [{"seed": 1.5}, {"seed": 2**64}, {"engine": "x"}, {"engine": None}, {"engine": [1]}, {"transform": 3}]
    cases += [{"defer": "yes"}, {"check": 3}, {"normalise": None}]
    for name, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        if isinstance(default, str):
            cases += [{name: "zz"}, {name: 3}, {name: None}]
        elif name not in ("params", "lr", "common") and isinstance(default, (int, float)):
            cases += [{name: value} for value in UNUSABLE if (name, value) != ("max_norm", math.inf)]
            cases += [{name: 1.5}, {name: 2**63}] if isinstance(default, int) else []
            cases += [{name: 0}] if name not in ("beta", "beta1", "beta2", "decay", "eps") else []
            cases += [{name: 10**12}] if name == "queries" else []
    return cases


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_refuses_arguments_that_it_does_not_have_or_cannot_use(name):
    make = METHODS[name].make
    for case in impossible(make):
        with pytest.raises(gl.BadInput) as error:
            make(named(Net()), **case)
        assert "\n" not in str(error.value), case
    for call in (lambda: make(named(Net()), 1e-3), lambda: make(), lambda: make(lr=0.1)):
        with pytest.raises(TypeError, match=make.__name__):
            call()
    more = {"deep_units": 1} if name == "hybrid" else {}
    for seed in (np.int64(3), torch.tensor(3), 3.0, 2**64 - 1):
        make(params=named(Net()), seed=seed, lr=np.float32(0.0), **more)


def test_a_misspelt_argument_is_guessed():
    refused(
        lambda: gl.mezo(named(Net()), weight_deacy=0.1), "option of mezo 'weight_deacy': did you mean 'weight_decay'"
    )


# ---------------------------------------------------------------------------------------------------------------
# closures


CLOSURES: dict[str, Callable[[nn.Module], Any]] = {
    "nothing": lambda model: print(end=""),
    "a vector": lambda model: model(X).square().mean(1),
    "no element": lambda model: model(X)[:0],
    "a text": lambda model: "x",
    "complex": lambda model: model(X).mean() + 1j,
    "a tuple": lambda model: (model(X).mean(), 1),
    "an output": lambda model: SimpleNamespace(loss=model(X).mean()),
    "backward": lambda model: (loss := model(X).mean(), loss.backward())[0],
}


@pytest.mark.few(8)
@pytest.mark.parametrize("case", CLOSURES)
@pytest.mark.parametrize(
    "make", [*(functools.partial(gl.mezo, engine=e) for e in ENGINES), gl.forward_gradient, gl.fo_sgd]
)
def test_closures_that_return_no_loss_are_refused(case, make):
    model = Net()
    initial = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(lambda: make(named(model), lr=0.1).step(lambda: CLOSURES[case](model)), "the closure")
    assert equal(weights(model), initial)


def test_numbers_and_tensors_of_one_element_are_losses():
    model = Net()
    expected = gl.mezo(named(model)).probe(loss_of(model)).loss
    for turn in (float, lambda loss: loss[None], lambda loss: np.float32(loss.item()), lambda loss: loss.double()):
        assert gl.mezo(named(model)).probe(lambda turn=turn: turn(loss_of(model)())).loss == pytest.approx(expected)
    refused(lambda: gl.mezo(named(model)).step(loss_of(model)()), "needs a closure")
    refused(lambda: gl.forward_gradient(named(model)).step(lambda: float(loss_of(model)())), "no slope")

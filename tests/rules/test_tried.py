"""What an acceptance policy is shown is what is applied: the very weights, decay and rounding included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.accept import conservative
from gradless.directions import Directions
from gradless.directions.blocks import random_blocks
from gradless.directions.masks import sparse
from gradless.errors import BadInput

SHAPES = {"layers.0.w": (8, 6), "layers.1.w": (6, 8), "table": (9, 6), "norm": (6,)}
DIRECTIONS = {
    "rademacher": gl.rademacher,
    "gaussian": gl.gaussian,
    "low-rank": lambda: gl.low_rank(2, refresh=3),
    "blocks": lambda: random_blocks(gl.gaussian(), keep=1),
    "sparse": lambda: sparse(gl.rademacher(), "magnitude", 0.5),
    "own": lambda: Directions("own", draw=lambda key, name, p: rng.normal(key & rng.MASK64, name, p.shape)),
}


class Model:
    """A table, two layers and a norm; remembers the weights at every evaluation."""

    def __init__(self, dtype):
        self.params = {
            name: nn.Parameter((rng.normal(0, name, shape) * 0.5).to(dtype)) for name, shape in SHAPES.items()
        }
        self.seen = []

    def __call__(self):
        p = self.params
        x = nn.functional.embedding(torch.tensor([1, 3, 3, 7]), p["table"])
        x = nn.functional.linear(torch.tanh(nn.functional.linear(x, p["layers.0.w"])), p["layers.1.w"])
        loss = (x.float() * p["norm"].float() - 1).square().mean()
        self.seen.append(({name: (one * 1.0).detach() for name, one in p.items()}, float(loss.detach())))
        return loss


@pytest.mark.few(6)
@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("engine", "defer"), [("stream", False), ("stream", True), ("in-place", False)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("answer", [1.0, -1.0, 0.5])
def test_the_weights_tried_are_the_weights_applied(directions, dtype, engine, defer, decay, answer):
    model = Model(dtype)
    groups = [
        {"params": [(n, p) for n, p in model.params.items() if n in ("table", "norm")], "lr_scale": 3.0},
        {"params": [(n, p) for n, p in model.params.items() if n not in ("table", "norm")], "weight_decay": decay / 2},
    ]

    def accept(value):
        model.seen.clear()
        value(answer)
        return answer

    opt = gl.ZerothOrder(
        groups,
        directions=DIRECTIONS[directions](),
        estimator=gl.spsa(eps=1e-2, queries=2),
        rule=gl.chain(gl.momentum(0.5), gl.scale(gl.linear(0.1, 20))),
        accept=accept,
        weight_decay=decay,
        engine=engine,
        defer=defer,
    )
    for _ in range(4):
        opt.step(model)
        opt.flush()
        tried, _ = model.seen[-1]
        for name, p in model.params.items():
            assert torch.equal(tried[name], p.detach()), name


@pytest.mark.parametrize("lr", [1.0, 3.0])
def test_conservative_steps_with_decay_never_leave_for_worse(lr):
    model = Model(torch.float32)
    rule = gl.scale(lr)
    opt = gl.ZerothOrder(list(model.params.items()), rule=rule, accept=conservative, weight_decay=0.5)
    choices = set()
    for _ in range(12):
        update = opt.step_with(model)[1]
        stay, ahead, behind = (loss for _, loss in model.seen[-3:])
        after = float(model().detach())
        assert after == min(stay, ahead, behind)
        choices.add(update.lrs[0] / lr)
    assert len(choices) > 1


def test_a_policy_must_answer_with_a_number():
    for bad in (float("nan"), float("inf")):
        model = Model(torch.float32)
        opt = gl.ZerothOrder(list(model.params.items()), accept=lambda value, bad=bad: bad)
        initial = {name: p.detach().clone() for name, p in model.params.items()}
        with pytest.raises(BadInput, match="return the factor of the update"):
            opt.step(model)
        assert all(torch.equal(initial[name], p) for name, p in model.params.items())

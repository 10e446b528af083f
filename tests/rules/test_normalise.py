"""Signs and normalised steps; acceptance; bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import accept, rng
from gradless.gradients import Mixture
from gradless.optimizer import Update
from gradless.rules import normalise
from rules_helpers import SHAPES, Bowl, mean_of, train, twin

# ---------------------------------------------------------------------------------------------------------------
# signs and normalised steps


def test_one_query_makes_both_signs_the_same():
    settings = {"lr": 0.05, "eps": 0.1, "queries": 1, "steps": 20, "seed": 8}
    one, other = Bowl(), Bowl()
    train(one, normalise.sign(), **settings)
    train(other, normalise.scalar_sign(), **settings)
    for name in SHAPES:
        torch.testing.assert_close(one.params[name], other.params[name], rtol=0, atol=1e-6)
        assert not torch.equal(one.params[name], one.start[name])


def test_the_sign_of_nothing_is_nothing():
    rule = normalise.scalar_sign()
    assert rule.update(Mixture((1, 2, 3), (0.0, -0.0, 2.0)), None)[0].weights == (0.0, 0.0, 1 / 3)
    leaf = gl.ZerothOrder(Bowl().named()).leaves[0]
    assert not normalise.sign().update(Mixture((1,), (0.0,)), None)[0].leaf(leaf).any()


@pytest.mark.few(1)
@pytest.mark.parametrize("make", [normalise.scalar_sign, normalise.std_normalised, normalise.rms_normalised])
def test_normalised_steps_point_along_the_gradient_on_average(make):
    bowl = Bowl()
    opt = gl.ZerothOrder(bowl.named(), seed=3, estimator=gl.spsa(eps=1e-2, queries=4))
    rule = make()
    total, state = torch.zeros(bowl.count), rule.init()
    for step in range(400):
        opt.t = step
        g, state = rule.update(opt.probe(bowl.closure).sketch.mixture(), state)
        total += torch.cat([g.leaf(leaf).flatten() for leaf in opt.leaves])
    # 35 dimensions, 1600 directions: noise of about sqrt(35 / 1600) = 0.15 of the signal.
    assert torch.cosine_similarity(total, bowl.gradient(), dim=0) > 0.95


@pytest.mark.parametrize("make", [normalise.scalar_sign, normalise.std_normalised, normalise.rms_normalised])
def test_normalised_steps_do_not_know_the_scale_of_the_loss(make):
    settings = {"lr": 0.05, "eps": 0.1, "queries": 4, "steps": 6, "seed": 1, "one_sided": True}
    plain, loud = Bowl(), Bowl(factor=1024.0)
    train(plain, make(), **settings)
    train(loud, make(), **settings)
    for name in SHAPES:
        torch.testing.assert_close(plain.params[name], loud.params[name], rtol=0, atol=1e-6)


def test_std_normalised_does_not_know_eps():
    """(L_k - L_0) / std(L): on a linear loss the step is the same for any eps."""
    rows = []
    for eps in (0.5, 0.125):
        theta = nn.Parameter(torch.zeros(8))
        opt = gl.ZerothOrder(
            [("theta", theta)],
            estimator=gl.one_sided(eps=eps, queries=8),
            rule=gl.chain(normalise.std_normalised(), gl.scale(0.1)),
        )
        opt.step(lambda theta=theta: (theta * torch.arange(8.0)).sum())
        rows.append(theta.detach())
    torch.testing.assert_close(*rows, rtol=0, atol=1e-6)
    assert rows[0].abs().max() > 0


def test_equal_coefficients_are_no_reason_for_a_leap():
    rule = normalise.std_normalised()
    assert rule.update(Mixture((1, 2), (0.5, 0.5)), None)[0].weights == (0.0, 0.0)
    rule = normalise.rms_normalised()
    g, state = rule.update(Mixture((1, 2), (0.0, 0.0)), rule.init())
    assert g.weights == (0.0, 0.0)
    assert rule.update(Mixture((1,), (-2.0,)), state)[0].weights[0] == pytest.approx(-math.sqrt(1.9))


def test_the_scale_of_a_run_is_two_numbers():
    rule = normalise.rms_normalised()
    state = rule.init()
    for step in range(5):
        _, state = rule.update(Mixture((step, step + 9), (0.1 * step, 0.3)), state)
    assert all(type(value) is float for value in state)
    assert len(state) == 2


# ---------------------------------------------------------------------------------------------------------------
# acceptance


@pytest.mark.parametrize(
    ("losses", "choice"),
    [
        ({0.0: 1.0, 1.0: 0.5, -1.0: 2.0}, 1.0),
        ({0.0: 1.0, 1.0: 1.5, -1.0: 2.0}, 0.0),
        ({0.0: 1.0, 1.0: 1.5, -1.0: 0.7}, -1.0),
        ({0.0: 1.0, 1.0: 1.0, -1.0: 1.0}, 1.0),
        ({0.0: 1.0, 1.0: 1.5, -1.0: 1.0}, 0.0),
        ({0.0: 1.0, 1.0: math.nan, -1.0: 2.0}, 0.0),
        ({0.0: math.nan, 1.0: 3.0, -1.0: math.inf}, 1.0),
        ({0.0: math.nan, 1.0: math.nan, -1.0: 9.0}, -1.0),
        ({0.0: math.nan, 1.0: math.nan, -1.0: math.nan}, 0.0),
        ({0.0: 1.0, 1.0: -math.inf, -1.0: 2.0}, 0.0),
    ],
)
def test_conservative_takes_the_lowest_finite_loss(losses, choice):
    asked = []

    def value(a):
        asked.append(a)
        return losses[a]

    assert accept.conservative(value) == choice
    assert len(asked) == accept.FORWARDS[accept.conservative] == 3


@pytest.mark.parametrize("lr", [0.5, 20.0])
def test_conservative_training_follows_its_twin(lr):
    settings = {"lr": lr, "eps": 0.1, "queries": 1, "steps": 15, "seed": 3}
    bowl = Bowl()
    opt, moved = train(bowl, gl.chain(), accept=accept.conservative, **settings)
    chosen = []

    def choose(value):
        losses = [value(-1.0), value(0.0), value(1.0)]
        chosen.append(float(np.argmin(losses)) - 1.0)
        return chosen[-1]

    expected = twin(bowl, lambda t, coeffs, zs: mean_of(coeffs, zs), choose=choose, **settings)
    assert [move.lrs[0] / lr for move in moved] == chosen
    for name, value in bowl.values().items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-4)
    assert opt.forwards == 15 * (2 + accept.FORWARDS[accept.conservative])
    assert (0.0 in chosen) is (lr == 20.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_refused_update_leaves_every_bit(dtype):
    theta = nn.Parameter(rng.normal(0, "theta", (64,)).to(dtype))
    initial = theta.detach().clone()
    opt = gl.ZerothOrder(
        [("theta", theta)], estimator=gl.spsa(eps=0.1), rule=gl.scale(1e6), accept=accept.conservative, weight_decay=0.1
    )
    for _ in range(3):
        _, move = opt.step_with(lambda: theta.float().square().mean())
        assert move.lrs == (0.0,)
    assert torch.equal(theta.detach().view(torch.uint8), initial.view(torch.uint8))
    assert opt.forwards == 15


def test_a_move_of_a_scalar_rule_is_replayed_many_steps_at_once():
    """The fused replay: one sweep for all steps."""
    settings = {"lr": 0.05, "eps": 0.1, "queries": 2, "seed": 5}
    trained, replayed = Bowl(), Bowl()
    _, moved = train(trained, gl.chain(normalise.rms_normalised(), gl.momentum(0.5)), steps=9, **settings)
    moved = [Update(*move) for move in moved]
    opt, _ = train(replayed, gl.chain(normalise.rms_normalised(), gl.momentum(0.5)), steps=0, **settings)
    opt.replay(moved, chunk=4)
    assert all(torch.equal(trained.params[name], replayed.params[name]) for name in SHAPES)

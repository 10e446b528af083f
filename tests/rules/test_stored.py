"""Rules with stored moments, against torch and twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.gradients import Dense, Mixture
from gradless.rules import muon, normalise, on_stored
from gradless.rules import stored as moments
from rules_helpers import SHAPES, Bowl, mean_of, train, twin


def stored(grads):
    """A gradient that is there as tensors: what backpropagation leaves."""
    return Dense(grads, Mixture((), ()))


def heavy_ball_step():
    held = {}

    def step(t, coeffs, directions):
        g = mean_of(coeffs, directions)
        for name in g:
            held[name] = 0.8 * held.get(name, 0.0) + g[name]
        return dict(held)

    return step


def adam_step():
    m, v = {}, {}

    def step(t, coeffs, directions):
        g = mean_of(coeffs, directions)
        for name in g:
            m[name] = 0.8 * m.get(name, 0.0) + 0.2 * g[name]
            v[name] = 0.95 * v.get(name, 0.0) + 0.05 * g[name] ** 2
        return {n: (m[n] / (1 - 0.8 ** (t + 1))) / (np.sqrt(v[n] / (1 - 0.95 ** (t + 1))) + 1e-8) for n in g}

    return step


def sign_step():
    return lambda t, coeffs, directions: {n: np.sign(u) for n, u in mean_of(coeffs, directions).items()}


def scalar_sign_step():
    return lambda t, coeffs, directions: mean_of([math.copysign(1.0, c) for c in coeffs], directions)


def std_step():
    return lambda t, coeffs, directions: mean_of([c / np.std(coeffs, ddof=1) for c in coeffs], directions)


def rms_step():
    squares = []

    def step(t, coeffs, directions):
        squares.append(np.mean(np.square(coeffs)))
        powers = 0.7 ** np.arange(len(squares))[::-1]
        return mean_of([c / np.sqrt(powers @ squares / powers.sum()) for c in coeffs], directions)

    return step


METHODS = {
    "heavy_ball": (lambda: moments.heavy_ball(0.8), heavy_ball_step, {"lr": 0.2}),
    "stored_adam": (lambda: moments.stored_adam(0.8, 0.95), adam_step, {"lr": 0.05}),
    "sign": (normalise.sign, sign_step, {"lr": 0.05}),
    "scalar_sign": (normalise.scalar_sign, scalar_sign_step, {"lr": 0.05}),
    "std_normalised": (normalise.std_normalised, std_step, {"lr": 0.05, "one_sided": True}),
    "rms_normalised": (lambda: normalise.rms_normalised(0.7), rms_step, {"lr": 0.05}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("queries", [1, 4])
def test_rules_follow_their_twins(name, queries):
    rule, step, options = METHODS[name]
    if name == "std_normalised" and queries == 1:
        pytest.skip("needs two queries")
    settings = {"eps": 0.1, "queries": queries, "steps": 12, "seed": 5, **options}
    bowl = Bowl()
    opt, moved = train(bowl, rule(), **settings)
    expected = twin(bowl, step(), **settings)
    for leaf, value in bowl.values().items():
        np.testing.assert_allclose(value, expected[leaf], rtol=0, atol=2e-4, err_msg=leaf)
    assert bowl.loss(expected) < bowl.loss({n: v.double().numpy() for n, v in bowl.start.items()})
    assert opt.forwards == 12 * (queries + 1 if "one_sided" in options else 2 * queries)
    assert all(not move.skipped for move in moved)


# ---------------------------------------------------------------------------------------------------------------
# stored moments


def test_stored_adam_is_torchs_adam_on_stored_gradients():
    bowl, theirs = Bowl(), Bowl()
    leaves = gl.ZerothOrder(bowl.named()).leaves
    adam = torch.optim.Adam(theirs.params.values(), lr=1e-2, betas=(0.9, 0.99), eps=1e-7)
    rule = moments.stored_adam(0.9, 0.99, 1e-7)
    state = rule.init()
    for t in range(40):
        grads = {name: rng.normal(10 + t, name, shape) * 10.0 ** (t % 5 - 2) for name, shape in SHAPES.items()}
        g, state = rule.update(stored(grads), state)
        with torch.no_grad():
            for leaf in leaves:
                bowl.params[leaf.name] -= 1e-2 * g.leaf(leaf)
        for name, p in theirs.params.items():
            p.grad = grads[name].clone()
        adam.step()
        assert all(torch.equal(grads[name], theirs.params[name].grad) for name in SHAPES)  # not overwritten
    for name in SHAPES:
        torch.testing.assert_close(bowl.params[name], theirs.params[name], rtol=0, atol=1e-6)
    assert state.steps == 40
    assert {name: [m.shape for m in held] for name, held in state.tensors.items()} == {
        name: [torch.Size(shape)] * 2 for name, shape in SHAPES.items()
    }


def test_heavy_ball_is_torchs_momentum():
    bowl, theirs = Bowl(), Bowl()
    leaves = gl.ZerothOrder(bowl.named()).leaves
    sgd = torch.optim.SGD(theirs.params.values(), lr=1e-2, momentum=0.9)
    rule = moments.heavy_ball(0.9)
    state = rule.init()
    for t in range(20):
        grads = {name: rng.normal(10 + t, name, shape) for name, shape in SHAPES.items()}
        g, state = rule.update(stored(grads), state)
        with torch.no_grad():
            for leaf in leaves:
                bowl.params[leaf.name] -= 1e-2 * g.leaf(leaf)
        for name, p in theirs.params.items():
            p.grad = grads[name].clone()
        sgd.step()
    for name in SHAPES:
        torch.testing.assert_close(bowl.params[name], theirs.params[name], rtol=0, atol=1e-6)


def test_stored_and_windowed_moments_agree():
    """Two ways to the same average, up to the window's tail."""
    settings = {"lr": 0.05, "eps": 0.1, "queries": 2, "steps": 15, "seed": 2}
    stored, windowed = Bowl(), Bowl()
    train(stored, moments.heavy_ball(0.5), **settings)
    train(windowed, gl.momentum(0.5, tail=1e-9), **settings)
    for name in SHAPES:
        torch.testing.assert_close(stored.params[name], windowed.params[name], rtol=0, atol=1e-5)


def test_moments_pass_through_a_file_as_plain_tensors(tmp_path):
    settings = {"lr": 0.05, "eps": 0.1, "queries": 1, "seed": 2}
    bowl = Bowl()
    opt, _ = train(bowl, moments.stored_adam(), steps=3, **settings)
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    other = Bowl()
    later, _ = train(other, moments.stored_adam(), steps=0, **settings)
    later.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        for name, p in other.params.items():
            p.copy_(bowl.params[name])
    opt.step(bowl.closure)
    later.step(other.closure)
    assert all(torch.equal(bowl.params[name], other.params[name]) for name in SHAPES)


def test_a_leaf_is_made_once_a_step():
    leaf = gl.ZerothOrder(Bowl().named()).leaves[0]
    rule = moments.heavy_ball()
    g, _ = rule.update(Mixture((3,), (1.0,)), rule.init())
    g.leaf(leaf)
    with pytest.raises(gl.BadInput, match="twice"):
        g.leaf(leaf)


def test_moments_of_another_shape_are_refused():
    leaf = gl.ZerothOrder(Bowl().named()).leaves[0]
    rule = moments.heavy_ball()
    g, _ = rule.update(Mixture((3,), (1.0,)), moments.Moments(4, {leaf.name: (torch.zeros(2),)}))
    with pytest.raises(gl.BadInput, match="another rule or shape"):
        g.leaf(leaf)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_is_torchs_clip(max_norm):
    leaves = gl.ZerothOrder(Bowl().named()).leaves
    grads = {name: rng.normal(4, name, shape) for name, shape in SHAPES.items()}
    theirs = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    for name, p in theirs.items():
        p.grad = grads[name].clone()
    torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)
    rule = moments.clip(max_norm)
    g, _ = rule.update(stored(grads), rule.init())
    for leaf in leaves:
        torch.testing.assert_close(g.leaf(leaf), theirs[leaf.name].grad, rtol=1e-6, atol=0)
    total = math.sqrt(sum(float(g.leaf(leaf).square().sum()) for leaf in leaves))
    assert total == pytest.approx(min(max_norm, math.sqrt(sum(float(x.square().sum()) for x in grads.values()))), 1e-5)


def test_clipped_gradients_are_still_stored_and_mixtures_beside_them_as_they_were():
    """Rules for stored gradients only must find them after a clip."""
    leaves = {leaf.name: leaf for leaf in gl.ZerothOrder(Bowl().named()).leaves}
    grads = {"w": torch.full((6, 5), 2.0, dtype=torch.bfloat16)}
    rest = Mixture((1,), (3.0,))
    rule = gl.chain(moments.clip(1.0), on_stored(moments.stored_adam()))
    clipped, _ = moments.clip(1.0).update(Dense(grads, rest), None)
    assert list(clipped.tensors) == ["w"]
    assert len(clipped.tensors) == 1
    assert "b" not in clipped.tensors
    assert clipped.leaf(leaves["w"]).norm() == pytest.approx(1.0, rel=1e-5)
    assert grads["w"].eq(2).all()
    g, _ = rule.update(Dense(grads, rest), rule.init())
    torch.testing.assert_close(g.leaf(leaves["w"]), torch.ones(6, 5), rtol=0, atol=1e-5)  # Adam's first step
    for update in (clipped, g):
        assert torch.equal(update.leaf(leaves["b"]), rest.leaf(leaves["b"]))


def test_clip_leaves_mixtures_alone():
    rule = moments.clip(1e-6)
    mixture = Mixture((1, 2), (5.0, -3.0))
    assert rule.update(mixture, rule.init()) == (mixture, None)


# ---------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: moments.heavy_ball(1.0), "beta is 1.0"),
        (lambda: moments.stored_adam(beta1=-0.1), "beta1"),
        (lambda: moments.stored_adam(beta2=1.0), "beta2"),
        (lambda: moments.stored_adam(eps=0.0), "eps"),
        (lambda: moments.clip(0.0), "max_norm"),
        (lambda: moments.clip(math.nan), "max_norm"),
        (lambda: normalise.std_normalised(-1.0), "floor"),
        (lambda: normalise.rms_normalised(1.0), "beta"),
        (lambda: normalise.rms_normalised(floor=math.inf), "floor"),
        (lambda: normalise.std_normalised().update(Mixture((1,), (1.0,)), None), "two queries"),
        (lambda: normalise.scalar_sign().update(stored({}), None), "first in the chain"),
        (lambda: normalise.rms_normalised().update(Mixture((), ()), normalise.Square()), "coefficients"),
        (lambda: muon.orthogonalise("moun"), "did you mean 'muon'"),
        (lambda: muon.orthogonalise().update(stored({}), None), "before element-wise rules"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(gl.BadInput, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_rules_say_whether_they_keep_mixtures_mixtures():
    linear = [normalise.scalar_sign(), normalise.std_normalised(), normalise.rms_normalised(), moments.clip(1.0)]
    other = [normalise.sign(), moments.heavy_ball(), moments.stored_adam(), muon.orthogonalise()]
    for rule in linear + other:
        g, _ = rule.update(Mixture((1, 2), (1.0, 2.0)), rule.init())
        assert isinstance(g, Mixture) is rule.linear, rule.name
    assert [rule.linear for rule in linear + other] == [True] * 4 + [False] * 4

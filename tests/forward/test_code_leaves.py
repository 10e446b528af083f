"""Codes as leaves of an optimizer: what holds for floats holds for them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gradless as gl
from gradless.gradients import Update
from gradless.methods import METHODS
from gradless.storage.codes import Codes


class Coded(nn.Module):
    """A linear layer of 4-bit codes with one step size, and an embedding of 6-bit codes."""

    def __init__(self):
        super().__init__()
        self.weight_codes = Codes((torch.arange(8 * 6) * 7 % 16).to(torch.uint8).view(8, 6), highest=15)
        self.table_codes = Codes((torch.arange(5 * 6) * 11 % 64).to(torch.uint8).view(5, 6), highest=63)

    def forward(self, ids):
        x = (self.table_codes[ids].float() - 31.5) * 0.05
        return nn.functional.linear(x, (self.weight_codes.float() - 7.5) * 0.1)


IDS = torch.tensor([0, 3, 4, 1, 1, 2])
TARGET = torch.linspace(-1, 1, 48).view(6, 8)


def optimizer(model, **options):
    rule = gl.chain(gl.rms_normalised(), gl.scale(options.pop("lr", 0.3)))
    directions = options.pop("directions", None) or gl.ternary(0.1)
    return gl.ZerothOrder(
        model.named_parameters(), directions=directions, estimator=gl.spsa(eps=1.0), rule=rule, **options
    )


def train(steps, **options):
    torch.manual_seed(0)
    model = Coded()
    opt = optimizer(model, **options)
    losses = [opt.step(lambda: (model(IDS) - TARGET).square().mean()) for _ in range(steps)]
    opt.flush()
    return model, opt, losses


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_codes_learn_and_stay_in_their_range():
    model, _, losses = train(300, engine="stream")
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert int(model.weight_codes.max()) <= 15
    assert int(model.table_codes.max()) <= 63
    assert model.weight_codes.dtype == torch.uint8


@pytest.mark.parametrize("options", [{"engine": "dual"}, {"engine": "stream", "defer": True}, {"engine": "in-place"}])
def test_engines_and_deferred_updates_give_the_same_codes(options):
    first, _, losses = train(12, engine="stream")
    other, _, again = train(12, **options)
    assert losses == pytest.approx(again, rel=1e-5)
    assert same(first, other)


def test_replay_gives_the_same_codes_on_every_backend(monkeypatch):
    trained, opt, records = Coded(), None, []
    opt = optimizer(trained, engine="stream")
    for step in range(8):
        probe = opt.probe(lambda: (trained(IDS) - TARGET).square().mean())
        lrs = opt.apply(probe.sketch)
        records.append(Update(step, probe.sketch.coeffs, lrs, False))
    for backend in ("reference", "numba"):
        monkeypatch.setenv("GRADLESS_KERNELS", backend)
        model = Coded()
        optimizer(model).replay(records)
        assert same(model, trained)


def test_a_probe_leaves_codes_alone_and_copies_keep_their_range():
    model = Coded()
    original = copy.deepcopy(model)
    assert isinstance(original.weight_codes, Codes)
    assert original.weight_codes.highest == 15
    for engine in ("stream", "in-place"):
        optimizer(model, engine=engine, check=False).probe(lambda: (model(IDS) - TARGET).square().mean())
        assert same(model, original)


def test_other_rules_round_to_codes_too():
    for rule in (gl.chain(gl.sign(), gl.scale(0.2)), gl.chain(gl.momentum(0.5), gl.scale(0.2))):
        model = Coded()
        opt = gl.ZerothOrder(
            model.named_parameters(), directions=gl.ternary(0.5), estimator=gl.spsa(eps=1.0), rule=rule, engine="stream"
        )
        start = copy.deepcopy(model)
        for _ in range(3):
            opt.step(lambda model=model: (model(IDS) - TARGET).square().mean())
        assert not same(model, start)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda named: METHODS["mezo-gaussian"].make(named), "gaussian directions .*gl.ternary"),
        (lambda named: gl.ZerothOrder(named), "rademacher directions .*gl.ternary"),
        (lambda named: gl.lozo(named, rank=1), "low_rank directions .*gl.ternary"),
        (lambda named: gl.es(named, lr=1.0), "rademacher directions .*gl.ternary"),
        (lambda named: gl.ZerothOrder(named, directions=gl.ternary()), r"eps is a number of them, not 0\.001"),
        (
            lambda named: gl.ZerothOrder(named, directions=gl.ternary(), estimator=gl.spsa(eps=1.0), weight_decay=0.1),
            "weight_decay",
        ),
        (lambda named: gl.fo_adam(named), "no derivatives"),
        (lambda named: gl.forward_gradient(named), "no derivatives"),
    ],
)
def test_steps_that_codes_cannot_take_are_refused(make, words):
    model = Coded()
    with pytest.raises(gl.BadInput, match=f"_codes' holds whole codes, .*{words}"):
        make(list(model.named_parameters()))
    model.weight_codes.tuned = model.table_codes.tuned = False
    model.scale = nn.Parameter(torch.ones(2))
    make(list(model.named_parameters()))


def test_wrong_codes_are_refused():
    with pytest.raises(gl.BadInput, match="uint8"):
        Codes(torch.zeros(3), highest=15)
    with pytest.raises(gl.BadInput, match="255"):
        Codes(torch.zeros(3, dtype=torch.uint8), highest=256)
    with pytest.raises(gl.BadInput, match="density"):
        gl.ternary(0.0)

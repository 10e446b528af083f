"""One contract for every method in the table: a new row is tested by being there."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from gradless import rng
from gradless.errors import BadInput
from gradless.methods import METHODS, SHARED
from gradless.runs.build import auto_rate, optimizer
from gradless.runs.config import TuneConfig, check_options
from gradless.testing import method_checks

# Learning rates at which 60 steps on the problem below make clear progress, and what else a method needs there.
SETTINGS: dict[str, dict] = {
    **{name: {"lr": 2e-2} for name in METHODS},
    "mezo-momentum": {"lr": 2e-3},
    "zo-momentum": {"lr": 2e-3},
    "mezo-adam": {"lr": 2e-2},
    "zo-adam": {"lr": 2e-2},
    "mezo-rms": {"lr": 1e-3},
    "zo-sign": {"lr": 5e-3},
    "zo-scalar-sign": {"lr": 5e-3},
    "zo-block": {"lr": 1e-1},
    "lezo": {"lr": 5e-2},
    "lozo": {"lr": 2e-2, "rank": 2, "refresh": 10},
    "zo-muon": {"lr": 2e-2, "rank": 2, "refresh": 10},
    "fzoo": {"lr": 5e-3},
    "hybrid": {"lr": 1e-2, "deep_lr_ratio": 2.0},
    "fo-sgd": {"lr": 1e-1},
    "fo-sgd-ckpt": {"lr": 1e-1},
    "fo-adam": {"lr": 2e-2},
    "fo-adam-ckpt": {"lr": 2e-2},
}
NAMES = sorted(METHODS)
DEFERRED = ("deterministic", "replays_or_says_why_not", "resumes", "skips_what_is_not_finite")


class Problem(nn.Module):
    """Five small layers between an input and a norm, to be brought to where other weights are."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))
        self.norm = nn.LayerNorm(6)
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(rng.normal(3, name, p.shape) * 0.3 + (name == "norm.weight"))
        self.calls = 0

    def forward(self):
        """Mean squared distance of the output from a fixed one."""
        self.calls += 1
        x = self.embedding(torch.arange(7))
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return (self.norm(x) - rng.normal(5, "target", (7, 6))).square().mean()


def optimizer_of(name, model, **more):
    settings = {**SETTINGS[name], **more}
    return METHODS[name].make(model.named_parameters(), eps=1e-3, seed=4, **settings)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", method_checks(model=Problem, steps=60, factor=0.9))
def test_it_keeps_the_contract_of_methods(name, check):
    check(functools.partial(METHODS[name].make, eps=1e-3, seed=4, **SETTINGS[name]))


@pytest.mark.few(6)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", [check for check in method_checks(model=Problem) if check.name in DEFERRED])
def test_it_keeps_the_contract_with_deferred_updates(name, check):
    check(functools.partial(METHODS[name].make, eps=1e-3, seed=4, defer=True, **SETTINGS[name]))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_what_replays(name):
    opt = optimizer_of(name, Problem())
    assert METHODS[name].replays == (opt.estimator.deep is None)
    if not METHODS[name].replays:
        with pytest.raises(BadInput, match="cannot be replayed"):
            opt.replay([])


@pytest.mark.parametrize("name", NAMES)
def test_both_engines_agree(name):
    coeffs = []
    for engine in ("stream", "dual"):
        model = Problem()
        coeffs.append(optimizer_of(name, model, engine=engine).probe(model).sketch.coeffs)
    assert coeffs[0] == pytest.approx(coeffs[1], rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_checked(name):
    method = METHODS[name]
    check_options(name, {option: value for option, value in method.options().items() if option != "queries"})
    with pytest.raises(BadInput, match="write --queries" if "queries" in method.options() else "leave it out"):
        check_options(name, {"queries": 2})
    with pytest.raises(BadInput, match="nonsense"):
        check_options(name, {"nonsense": 1})
    assert not set(SHARED) & set(method.options())


@pytest.mark.few(3)
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_learn_too(name):
    model = Problem().to(torch.bfloat16)
    opt = optimizer_of(name, model)

    def closure():
        x = model.embedding(torch.arange(7)).float()
        for layer in model.layers:
            x = x + torch.tanh(layer(x.to(torch.bfloat16)).float())
        return (model.norm(x.to(torch.bfloat16)).float() - rng.normal(5, "target", (7, 6))).square().mean()

    with torch.no_grad():
        initial = float(closure())
    for _ in range(60):
        opt.step(closure)
    with torch.no_grad():
        assert float(closure()) < initial


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].auto])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("steps", "change"), [(5, 0.45), (400, 0.45), (1600, 0.225)])
def test_lr_auto_moves_weights_alike_whatever_the_size_of_the_loss(name, size, steps, change):
    model = Problem()
    asked = {"method": name, "lr": "auto", "walk": 9.0, "eps": 1e-3, "seed": 4, "steps": steps}
    config = TuneConfig(model="tiny-llama", task="sst2", **asked).resolved()
    opt = optimizer(config, list(model.named_parameters()))
    initial = {key: p.detach().clone() for key, p in model.named_parameters()}
    for _ in range(5):
        opt.step(lambda: model() * size)
    opt.flush()
    moved = sum((p.detach() - initial[key]).square().sum().item() for key, p in model.named_parameters())
    count = sum(p.numel() for p in model.parameters())
    expected = change * 1e-3 * math.sqrt(5)  # five steps of a walk in directions of their own
    assert 0.6 * expected < math.sqrt(moved / count) < 1.6 * expected


@pytest.mark.parametrize(("steps", "change"), [(1, 0.45), (400, 0.45), (401, 0.44944), (3600, 0.15), (40_000, 0.045)])
@pytest.mark.parametrize("queries", [None, 4])
def test_lr_auto_falls_with_the_root_of_the_steps_where_they_would_walk_too_far(steps, change, queries):
    asked = {"scheme": "lora", "lr": "auto", "walk": 9.0, "steps": steps, "queries": queries}
    config = TuneConfig(model="tiny-llama", task="sst2", **asked)
    rate = auto_rate(config.resolved())  # eps 1e-2; the mean of four directions is half as long as each
    assert rate == pytest.approx(change * 1e-2 * (2 if queries else 1), rel=1e-3)


def test_lr_auto_is_refused_where_nothing_is_known():
    with pytest.raises(BadInput, match="auto is not known to suit fo-adam"):
        TuneConfig(model="tiny-llama", task="sst2", method="fo-adam", lr="auto").resolved()
    with pytest.raises(BadInput, match="lr is 'fast': give a finite number above 0 or auto"):
        TuneConfig(model="tiny-llama", task="sst2", lr="fast").resolved()

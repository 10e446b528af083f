"""Exact derivatives: against autograd, finite differences, and what they promise about memory and state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradless as gl
from gradless import rng
from gradless.accept import conservative
from gradless.errors import BadInput
from gradless.forward.autodiff import all_finite
from gradless.gradients import Mixture


class Attention(nn.Module):
    """Embedding, attention, a mask, a tied head: what language models are made of."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(rng.normal(1, name, p.shape) * 0.5)

    def forward(self):
        """A cross-entropy."""
        ids = torch.tensor([[1, 2, 3, 1], [4, 5, 10, 0]])
        x = self.embedding(ids)
        for layer in self.layers:
            q, k, v = layer(x).view(2, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        logits = self.norm(x)[:, -1] @ self.embedding.weight[torch.tensor([2, -3])].T
        return F.cross_entropy(logits, torch.tensor([0, 1]))


def autograd(model):
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(model(), params), strict=True))


def dot(gradient, opt, key):
    return sum(
        float((gradient[leaf.name].double() * Mixture((key,), (1.0,)).leaf(leaf).double()).sum()) for leaf in opt.leaves
    )


@pytest.mark.parametrize("queries", [1, 3])
def test_slopes_are_gradients_times_directions(queries):
    model = Attention()
    opt = gl.forward_gradient(model.named_parameters(), queries=queries, seed=2)
    probe = opt.probe(model)
    gradient = autograd(model)
    expected = [dot(gradient, opt, key) for key in probe.sketch.keys]
    assert probe.sketch.coeffs == pytest.approx(expected, rel=1e-4)
    assert probe.loss == pytest.approx(model().item(), rel=1e-6)


def test_two_point_estimates_tend_to_the_slope():
    model = Attention()
    exact = gl.forward_gradient(model.named_parameters(), seed=2).probe(model).sketch.coeffs[0]
    coarse, fine = (
        gl.mezo_gaussian(model.named_parameters(), eps=eps, seed=2).probe(model).sketch.coeffs[0] for eps in (0.3, 0.01)
    )
    assert abs(fine - exact) < 1e-2 * abs(exact) < abs(coarse - exact)


def test_slopes_respect_masks_and_amplitudes():
    model = Attention()
    masks = {name: torch.arange(p.numel()).view(p.shape) % 3 == 0 for name, p in model.named_parameters()}
    opt = gl.forward_gradient(model.named_parameters(), seed=2, transform=lambda base: gl.masked(base, masks))
    gradient = {name: g * masks[name] for name, g in autograd(model).items()}
    probe = opt.probe(model)
    assert probe.sketch.coeffs[0] == pytest.approx(dot(gradient, opt, probe.sketch.keys[0]), rel=1e-4)


def test_backpropagation_is_what_autograd_says():
    model = Attention()
    expected = autograd(model)
    probe = gl.fo_sgd(model.named_parameters()).probe(model)
    assert probe.tensors.keys() == expected.keys()
    assert all(torch.equal(probe.tensors[name], expected[name]) for name in expected)


def test_fo_adam_is_torch_adamw():
    # No biases of keys here: their gradient is zero but for rounding, which Adam makes steps of.
    x, y = rng.normal(1, "x", (16, 6)), rng.normal(1, "y", (16, 1))
    ours, theirs = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    groups = [{"params": list(ours.named_parameters()), "weight_decay": 0.1}]
    mine = gl.fo_adam(groups, lr=1e-2)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(15):
        mine.step(lambda: (ours(x) - y).square().mean())
        reference.zero_grad()
        (theirs(x) - y).square().mean().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-6)


def test_a_hybrid_backpropagates_above_the_cut_only():
    model = Attention()
    opt = gl.hybrid_zo_fo(model.named_parameters(), deep_units=2, seed=2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        probe = opt.probe(model)
    cut = len(saved)
    assert set(probe.tensors) == {"layers.1.weight", "layers.1.bias", "norm.weight", "norm.bias"}
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        gl.fo_sgd(model.named_parameters()).probe(model)
    assert 0 < cut < len(saved)
    shallow = [leaf for leaf in opt.leaves if leaf.name not in probe.tensors]
    key = probe.sketch.keys[0]
    assert all(Mixture((key,), (1.0,)).leaf(leaf).abs().max() == 1 for leaf in shallow)
    assert not any(Mixture((key,), (1.0,)).leaf(leaf).any() for leaf in opt.leaves if leaf.name in probe.tensors)


def test_the_hybrid_gives_its_deep_part_its_own_rate():
    model = Attention()
    opt = gl.hybrid_zo_fo(model.named_parameters(), lr=1e-4, deep_units=2, deep_lr_ratio=50.0)
    assert opt.learning_rates() == pytest.approx((1e-4, 5e-3))
    with pytest.raises(BadInput, match="deep_units is 9"):
        gl.hybrid_zo_fo(model.named_parameters(), deep_units=9)


def test_a_loss_without_a_gradient_is_refused():
    model = Attention()
    opt = gl.fo_sgd(model.named_parameters())
    for closure in (lambda: model().item(), lambda: model().detach()):
        with pytest.raises(BadInput, match="has no gradient"):
            opt.probe(closure)
    assert all(p.requires_grad for p in model.parameters())


def test_what_has_no_forward_derivative_is_refused():
    class Strange(torch.autograd.Function):
        """A function that only knows the way back."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    model = Attention()
    opt = gl.forward_gradient(model.named_parameters())
    with pytest.raises(BadInput, match="no forward derivative"):
        opt.probe(lambda: Strange.apply(model()))


def test_a_gradient_that_is_not_finite_is_skipped():
    model = Attention()
    initial = [p.detach().clone() for p in model.parameters()]
    opt = gl.fo_sgd(model.named_parameters())
    _, move = opt.step_with(lambda: (model.norm.bias * 0).sqrt().sum())
    assert move.skipped
    assert all(torch.equal(a, b) for a, b in zip(initial, model.parameters(), strict=True))


@pytest.mark.parametrize("read", ["T", "mT", "data", "linear"])
def test_attributes_of_a_weight_keep_its_tangent(read):
    w = nn.Parameter(rng.normal(1, "w", (3, 3)))
    x = rng.normal(2, "x", (4, 3))

    def closure():
        match read:
            case "linear":
                return F.linear(x, w).sin().sum()
            case "data":
                return (x @ w.data.T).sin().sum()
            case _:
                return (x @ getattr(w, read)).sin().sum()

    slope = gl.forward_gradient([("w", w)], seed=3).probe(closure).sketch.coeffs[0]
    near = gl.mezo_gaussian([("w", w)], seed=3, eps=1e-3).probe(closure).sketch.coeffs[0]
    assert slope == pytest.approx(near, rel=1e-2)


def test_the_sum_of_a_finite_half_precision_gradient_may_overflow():
    assert all_finite({"w": torch.full((1000, 1000), 0.1, dtype=torch.float16)})
    assert not all_finite({"w": torch.tensor([1.0, float("nan")])})


def test_acceptance_cannot_try_stored_gradients():
    with pytest.raises(BadInput, match="stores gradients"):
        gl.ZerothOrder(Attention().named_parameters(), estimator=gl.backprop(), accept=conservative)

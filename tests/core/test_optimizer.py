"""The optimizer against an independently written MeZO, autograd, and its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.optimizer import Update
from net_helpers import IDS, Net, bits, closure_of, equal_bits, value_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def naive_z(key, name, p, gaussian):
    """The direction from scalar Philox calls: shares nothing with the kernels but the specification."""
    leaf = rng.leaf_id(name)
    table = rng.normal_table()
    out = []
    for i in range(p.numel()):
        block = i // (8 if gaussian else 128)
        words = rng.philox(
            (block & rng.MASK32, block >> 32, leaf & rng.MASK32, leaf >> 32), (key & rng.MASK32, key >> 32)
        )
        if gaussian:
            out.append(table[words[i % 8 // 2] >> 16 * (i % 2) & 0xFFFF].item())
        else:
            out.append(1.0 - 2.0 * (words[i % 128 // 32] >> i % 32 & 1))
    return torch.tensor(out).reshape(p.shape)


def mezo_twin(model, closure, *, lr, eps, seed, steps, gaussian, weight_decay=0.0, queries=1):
    """Algorithm 1 of the MeZO paper, perturbing in place, in float64 scalars; written for this test only."""
    params = dict(model.named_parameters())
    for step in range(steps):
        total = {name: torch.zeros_like(p) for name, p in params.items()}
        for query in range(queries):
            key = rng.direction_key(seed, step, query)
            z = {name: naive_z(key, name, p, gaussian) for name, p in params.items()}
            start = {name: p.detach().clone() for name, p in params.items()}
            losses = []
            for sign in (1, -1):
                for name, p in params.items():
                    p.data = start[name] + sign * eps * z[name]
                with torch.no_grad():
                    losses.append(float(closure()))
            for name, p in params.items():
                p.data = start[name]
                total[name] += (losses[0] - losses[1]) / (2 * eps) * z[name] / queries
        for name, p in params.items():
            p.data = p.data - lr * total[name] - lr * weight_decay * p.data


@pytest.mark.parametrize("make", [gl.mezo, gl.mezo_gaussian])
@pytest.mark.parametrize("options", [{}, {"queries": 3, "weight_decay": 0.1}])
def test_fifty_steps_follow_an_independent_mezo(make, options):
    ours, theirs = Net(), Net()
    opt = make(ours.named_parameters(), lr=2e-2, eps=1e-3, seed=7, **options)
    first = value_of(ours)
    for _ in range(50):
        opt.step(closure_of(ours))
    mezo_twin(
        theirs,
        closure_of(theirs),
        lr=2e-2,
        eps=1e-3,
        seed=7,
        steps=50,
        gaussian=make is gl.mezo_gaussian,
        **options,
    )
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        # A last-bit difference of a loss moves a coefficient by 1e-7 / eps; fifty of them stay below this.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert value_of(ours) < first - 0.1
    assert opt.forwards == 100 * options.get("queries", 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", gl.optimizer.ENGINES)
def test_probe_leaves_the_weights_bit_identical(dtype, engine):
    model = Net(dtype)
    initial = bits(model)
    opt = gl.ZerothOrder(model.named_parameters(), estimator=gl.spsa(eps=1e-2, queries=2), engine=engine)
    for _ in range(3):
        probe = opt.probe(closure_of(model))
    assert any(c != 0 for c in probe.sketch.coeffs)
    assert equal_bits(bits(model), initial)


def test_probe_restores_after_a_forward_that_raises():
    model = Net()
    initial, value = bits(model), value_of(model)

    def broken():
        model(IDS)
        raise RuntimeError("the batch is broken")

    for engine in ("stream", "in-place"):
        opt = gl.ZerothOrder(model.named_parameters(), engine=engine)
        with pytest.raises(RuntimeError, match="broken"):
            opt.probe(broken)
        assert equal_bits(bits(model), initial)
    assert value_of(model) == value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("directions", [gl.rademacher(), gl.gaussian()])
def test_served_and_in_place_perturbation_agree_exactly(dtype, directions):
    """Two engines, the same arithmetic: the coefficients are equal, not merely close."""
    model = Net(dtype)
    coefficients = []
    for engine in ("stream", "in-place"):
        opt = gl.ZerothOrder(model.named_parameters(), directions=directions, engine=engine)
        coefficients.append(opt.probe(closure_of(model)).sketch.coeffs)
    assert coefficients[0] == coefficients[1]


@pytest.mark.few(1)
@pytest.mark.parametrize("directions", [gl.rademacher(), gl.gaussian()])
def test_the_estimate_is_unbiased(directions):
    """Mean of many one-query estimates against autograd, coordinate by coordinate, within 5 sigma."""
    model = Net().double().float()
    closure = closure_of(model)
    model.zero_grad()
    closure().backward()
    leaves = [(name, p) for name, p in model.named_parameters() if name in ("hidden.weight", "norm.weight")]
    exact = torch.cat([p.grad.flatten() for _, p in leaves])
    opt = gl.ZerothOrder(leaves, directions=directions, estimator=gl.spsa(eps=1e-3), rule=gl.scale(1e-3))
    samples = []
    for step in range(2000):
        opt.t = step
        sketch = opt.probe(closure).sketch
        samples.append(torch.cat([sketch.leaf(leaf).flatten() for leaf in opt.leaves]))
    stack = torch.stack(samples)
    error = (stack.mean(0) - exact) / (stack.std(0) / math.sqrt(len(stack)))
    assert error.abs().max() < 5
    assert torch.dot(stack.mean(0), exact) / exact.norm() ** 2 > 0.5


def test_coefficient_is_the_directional_derivative():
    model = Net()
    opt = gl.ZerothOrder(model.named_parameters(), estimator=gl.spsa(eps=1e-3))
    probe = opt.probe(closure_of(model))
    closure_of(model)().backward()
    unit = gl.Sketch(probe.sketch.keys, (1.0,))
    exact = sum((unit.leaf(leaf) * leaf.param.grad).sum().item() for leaf in opt.leaves if leaf.param.grad is not None)
    assert probe.sketch.coeffs[0] == pytest.approx(exact, rel=2e-2, abs=1e-3)


def test_one_sided_costs_k_plus_one_and_reports_the_loss_itself():
    model = Net()
    opt = gl.ZerothOrder(model.named_parameters(), estimator=gl.one_sided(eps=1e-3, queries=3))
    probe = opt.probe(closure_of(model))
    assert probe.forwards == opt.forwards == 4
    assert probe.loss == pytest.approx(value_of(model), abs=1e-6)


def test_parameter_order_does_not_change_the_run():
    runs = []
    for order in (1, -1):
        model = Net()
        opt = gl.mezo(list(model.named_parameters())[::order], lr=1e-2, seed=3)
        for _ in range(10):
            opt.step(closure_of(model))
        runs.append(bits(model))
    assert equal_bits(*runs)


def test_the_global_generators_are_not_touched():
    model = Net()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    gl.mezo(model.named_parameters(), lr=1e-2).step(closure_of(model))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["mezo", "mezo_gaussian", "mezo_one_sided", "mezo_momentum", "mezo_adam"])
def test_replay_rebuilds_the_weights_bit_for_bit(dtype, method):
    model = Net(dtype)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {"lr": 1e-2, "seed": 5, "weight_decay": 0.01, "queries": gl.linear_queries(3, 12)}
    opt = getattr(gl, method)(model.named_parameters(), **options)
    moves = []
    for step in range(12):
        if step == 4:
            opt.skip()
            moves.append(Update(4, (), opt.learning_rates(), True))
            continue
        probe, _ = opt.step_with(closure_of(model))
        moves.append(Update(step, probe.sketch.coeffs, opt.learning_rates(), False))
    trained = bits(model)
    for chunk in (5, 512):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(start[name])
        again = getattr(gl, method)(model.named_parameters(), **options)
        again.replay(moves, chunk=chunk)
        assert equal_bits(bits(model), trained)
        assert (again.t, again.skipped) == (12, 1)


def test_momentum_equals_a_stored_buffer():
    ours, theirs = Net(), Net()
    opt = gl.ZerothOrder(ours.named_parameters(), seed=2, rule=gl.chain(gl.momentum(0.9, tail=1e-7), gl.scale(1e-2)))
    names = [name for name, _ in theirs.named_parameters()]
    sgd = torch.optim.SGD(theirs.parameters(), lr=1e-2, momentum=0.9)
    for _ in range(30):
        probe, _ = opt.step_with(closure_of(ours))
        for name, p in zip(names, theirs.parameters(), strict=True):
            p.grad = sum(
                c * naive_z(key, name, p, False) for key, c in zip(probe.sketch.keys, probe.sketch.coeffs, strict=True)
            )
        sgd.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("directions", [gl.rademacher(), gl.gaussian()])
def test_recomputed_adam_equals_torch_adam(queries, directions):
    ours, theirs = Net(), Net()
    opt = gl.ZerothOrder(
        ours.named_parameters(),
        directions=directions,
        estimator=gl.spsa(queries=queries),
        rule=gl.chain(gl.adam(window=100), gl.scale(1e-2)),
    )
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(20):
        probe, _ = opt.step_with(closure_of(ours))
        for name, p in theirs.named_parameters():
            p.grad = sum(
                c / queries * naive_z(key, name, p, directions.stream == gl.rng.GAUSSIAN)
                for key, c in zip(probe.sketch.keys, probe.sketch.coeffs, strict=True)
            )
        adam.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.sweep
def test_layer_scales_follow_the_paper():
    """Definition 6 stays unbiased; definition 7 divides the gradient by d (MeZO appendix B.3, B.4)."""
    model = Net()
    params = list(model.named_parameters())
    scales = {name: 0.5 + i for i, (name, _) in enumerate(params)}
    closure = closure_of(model)
    closure().backward()
    for mode, divide in (("variance", False), ("expectation", True)):
        opt = gl.ZerothOrder(
            params, directions=gl.scaled(gl.rademacher(), scales, mode=mode), estimator=gl.spsa(eps=1e-3)
        )
        samples = []
        for step in range(1500):
            opt.t = step
            sketch = opt.probe(closure).sketch
            samples.append(torch.cat([sketch.leaf(leaf).flatten() for leaf in opt.leaves]))
        stack = torch.stack(samples)
        exact = torch.cat([leaf.param.grad.flatten() / (scales[leaf.name] if divide else 1) for leaf in opt.leaves])
        error = (stack.mean(0) - exact) / (stack.std(0) / math.sqrt(len(stack)))
        assert error.abs().max() < 5
        assert torch.dot(stack.mean(0), exact) / exact.norm() ** 2 > 0.5


@pytest.mark.sweep
def test_gradient_norms_from_forward_passes_alone():
    """Proposition 1: the root-mean-square over many directions is each leaf's gradient norm."""
    model = Net()
    params = list(model.named_parameters())
    closure_of(model)().backward()
    exact = {name: p.grad.norm().item() for name, p in params}
    opt = gl.mezo(params, lr=1e-2, eps=1e-3)
    initial = bits(model)
    scales = gl.gradient_norm_scales(opt, closure_of(model), queries=400)
    assert equal_bits(bits(model), initial)
    assert opt.t == 0
    mean = sum(exact.values()) / len(exact)
    for name, norm in exact.items():
        assert scales[name] == pytest.approx(norm / mean, rel=0.25)


def test_parameter_groups_schedules_and_frozen_parameters():
    model = Net()
    model.hidden.bias.requires_grad_(False)
    named = dict(model.named_parameters())
    groups = [
        {"params": [("hidden.weight", named["hidden.weight"]), ("hidden.bias", named["hidden.bias"])], "lr_scale": 2.0},
        {"params": [("norm.weight", named["norm.weight"])], "weight_decay": 0.5},
    ]
    opt = gl.ZerothOrder(groups, rule=gl.scale(gl.linear(1e-2, 10)))
    rates = []
    frozen = model.hidden.bias.detach().clone()
    for _ in range(10):
        rates.append(opt.learning_rates())
        opt.step(closure_of(model))
    assert rates[0] == pytest.approx((2e-2, 1e-2))
    assert rates[5] == pytest.approx((1e-2, 5e-3))
    assert torch.equal(model.hidden.bias, frozen)


def test_torch_schedulers_drive_the_learning_rate():
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    opt.step(closure_of(model))
    schedule.step()
    assert opt.learning_rates() == (5e-3,)


def test_micro_batches_accumulate():
    """The mean of micro-batch losses is the batch's loss, so the run is the same up to rounding."""
    runs = []
    for parts in (1, 2):
        model = Net()
        opt = gl.mezo(model.named_parameters(), lr=1e-2)

        def closure(model=model, parts=parts):
            losses = []
            for ids in IDS.chunk(parts):
                logits = model(ids[:, :-1])
                losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
            return torch.stack(losses).mean()

        for _ in range(10):
            opt.step(closure)
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*runs, rtol=0, atol=1e-4)

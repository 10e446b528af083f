"""The optimizer against an independently written MeZO, autograd, and its own promises."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.optimizer import Update

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Net(nn.Module):
    """An embedding tied to the output, a norm, biases: everything leaves can be."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(rng.normal(seed, name, p.shape) * 0.3)
        self.to(dtype)

    def forward(self, ids):
        return self.head(torch.tanh(self.hidden(self.norm(self.embedding(ids)))))


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def closure_of(model):
    def closure():
        logits = model(IDS[:, :-1]).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())

    return closure


def value_of(model):
    with torch.no_grad():
        return float(closure_of(model)())


def bits(model):
    return {name: p.detach().clone().view(torch.int32 if p.dtype == torch.float32 else torch.int16)
            for name, p in model.named_parameters()}  # fmt: skip


def equal_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    before = bits(model)
    opt = gl.ZerothOrder(model.named_parameters(), estimator=gl.spsa(eps=1e-2, queries=2), engine=engine)
    for _ in range(3):
        probe = opt.probe(closure_of(model))
    assert any(c != 0 for c in probe.sketch.coeffs)
    assert equal_bits(bits(model), before)


def test_probe_restores_after_a_forward_that_raises():
    model = Net()
    before = bits(model)

    def broken():
        model(IDS)
        raise RuntimeError("the batch is broken")

    for engine in ("stream", "in-place"):
        opt = gl.ZerothOrder(model.named_parameters(), engine=engine)
        with pytest.raises(RuntimeError, match="broken"):
            opt.probe(broken)
        assert equal_bits(bits(model), before)
    assert value_of(model) == value_of(model)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("directions", [gl.rademacher(), gl.gaussian()])
def test_served_and_in_place_perturbation_agree_exactly(dtype, directions):
    """Two engines, the same arithmetic: the coefficients are equal, not merely close."""
    model = Net(dtype)
    found = []
    for engine in ("stream", "in-place"):
        opt = gl.ZerothOrder(model.named_parameters(), directions=directions, engine=engine)
        found.append(opt.probe(closure_of(model)).sketch.coeffs)
    assert found[0] == found[1]


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
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    gl.mezo(model.named_parameters(), lr=1e-2).step(closure_of(model))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


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
    opt = gl.ZerothOrder(
        ours.named_parameters(), seed=2, rule=gl.chain(gl.momentum(0.9, tail=1e-7), gl.scale(1e-2))
    )  # fmt: skip
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
        ours.named_parameters(), directions=directions, estimator=gl.spsa(queries=queries),
        rule=gl.chain(gl.adam(window=100), gl.scale(1e-2)),
    )  # fmt: skip
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


def test_gradient_norms_from_forward_passes_alone():
    """Proposition 1: the root-mean-square over many directions is each leaf's gradient norm."""
    model = Net()
    params = list(model.named_parameters())
    closure_of(model)().backward()
    exact = {name: p.grad.norm().item() for name, p in params}
    opt = gl.mezo(params, lr=1e-2, eps=1e-3)
    before = bits(model)
    found = gl.gradient_norm_scales(opt, closure_of(model), queries=400)
    assert equal_bits(bits(model), before)
    assert opt.t == 0
    mean = sum(exact.values()) / len(exact)
    for name, norm in exact.items():
        assert found[name] == pytest.approx(norm / mean, rel=0.25)


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


def test_nonfinite_losses_are_skipped_counted_and_finally_fatal():
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    before = bits(model)
    for _ in range(9):
        opt.step(lambda: closure_of(model)() * math.nan)
    assert opt.skipped == 9
    assert equal_bits(bits(model), before)
    opt.step(closure_of(model))  # a good step starts the count again
    for _ in range(9):
        opt.step(lambda: closure_of(model)() * math.inf)
    with pytest.raises(gl.Diverged, match="lower the learning rate"):
        opt.step(lambda: closure_of(model)() * math.nan)


def test_acceptance_may_refuse_or_turn_an_update():
    for answer in (0.0, 1.0, -1.0):
        model = Net()
        opt = gl.ZerothOrder(model.named_parameters(), rule=gl.scale(1e-2), accept=lambda value, a=answer: a)
        before = bits(model)
        opt.step(closure_of(model))
        assert equal_bits(bits(model), before) is (answer == 0.0)


def test_acceptance_sees_the_loss_after_the_update():
    model = Net()
    seen = {}

    def accept(value):
        seen.update({a: value(a) for a in (0.0, 1.0, -1.0)})
        return 1.0

    opt = gl.ZerothOrder(model.named_parameters(), rule=gl.scale(1e-2), accept=accept)
    start = value_of(model)
    opt.step(closure_of(model))
    assert seen[0.0] == pytest.approx(start, abs=1e-6)
    assert seen[1.0] == pytest.approx(value_of(model), abs=1e-6)
    assert seen[-1.0] != seen[1.0]


def test_state_dict_continues_the_run():
    def fresh():
        model = Net()
        return model, gl.mezo_momentum(model.named_parameters(), lr=1e-2, seed=4)

    model, opt = fresh()
    for _ in range(6):
        opt.step(closure_of(model))
    state, weights = opt.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(6):
        opt.step(closure_of(model))
    other, resumed = fresh()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(6):
        resumed.step(closure_of(other))
    assert equal_bits(bits(model), bits(other))
    with pytest.raises(gl.BadInput, match="seed"):
        gl.mezo(Net().named_parameters(), lr=1e-2, seed=1).load_state_dict(state)


def test_scripted_modules_fall_back_to_in_place_visibly():
    """What reads a weight below Python is found by the survey, warned about and perturbed all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        linear = torch.jit.trace(nn.Linear(3, 1, bias=False), torch.zeros(1, 3), check_trace=False)
    before = linear.weight.detach().clone()

    def closure():
        return (linear(torch.eye(3)) - 1).square().mean()

    opt = gl.mezo(linear.named_parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="in place"):
        probe = opt.probe(closure)
    assert probe.sketch.coeffs[0] != 0
    assert torch.equal(linear.weight, before)


def test_a_16_bit_norm_is_probed_and_not_only_moved():
    """Spacing of bfloat16 at 1 is 8 eps: rounded to nearest, a norm's weights would feel no probe at all."""
    norm = nn.LayerNorm(64).to(torch.bfloat16)
    x = rng.normal(0, "x", (8, 64)).to(torch.bfloat16)
    target = rng.normal(0, "target", (8, 64))

    def closure():
        return (
            torch.nn.functional.layer_norm(x.float(), (64,), norm.weight.float(), norm.bias.float()) * target
        ).mean()

    exact = torch.autograd.grad(closure(), [norm.weight])[0].float()
    opt = gl.mezo([("norm.weight", norm.weight)], lr=1e-3, eps=1e-3)
    samples = []
    for step in range(6000):
        opt.t = step
        sketch = opt.probe(closure).sketch
        samples.append(sketch.leaf(opt.leaves[0]))
    stack = torch.stack(samples)
    slope = torch.dot(stack.mean(0), exact) / exact.norm() ** 2
    spread = (stack @ exact).std() / exact.norm() ** 2 / math.sqrt(len(stack))
    assert abs(slope - 1) < 5 * spread
    assert spread < 0.1


def test_a_closure_that_reads_none_of_the_parameters_is_refused():
    model, other = Net(), Net()
    with pytest.raises(gl.BadInput, match="reads none"):
        gl.mezo(other.named_parameters(), lr=1e-2).step(closure_of(model))


def test_parameters_that_are_never_read_are_named():
    model = Net()
    extra = nn.Parameter(torch.ones(3))
    opt = gl.mezo([*model.named_parameters(), ("extra", extra)], lr=1e-2)
    with pytest.warns(UserWarning, match="extra"):
        opt.step(closure_of(model))


def test_a_loss_that_feels_nothing_is_noticed():
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    for _ in range(4):
        opt.step(lambda: closure_of(model)() * 0)
    with pytest.warns(UserWarning, match="exactly zero"):
        opt.step(lambda: closure_of(model)() * 0)


@pytest.mark.parametrize("index", [[100], [-14], [13]])
def test_rows_out_of_range_are_an_error_and_not_a_read_of_other_memory(index):
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    with pytest.raises(IndexError):
        opt.step(lambda: model.embedding.weight[torch.tensor(index)].sum())
    with pytest.raises(IndexError):
        opt.step(lambda: model(torch.tensor([[*index, 1]])).sum())


def test_rows_may_be_counted_from_the_end():
    model = Net()
    opt = gl.ZerothOrder(model.named_parameters(), engine="in-place")
    served = gl.ZerothOrder(model.named_parameters())

    def closure():
        w = model.embedding.weight
        return w[torch.tensor([-1, 0])].square().sum() + w[torch.tensor(-2)].sum() + closure_of(model)()

    assert opt.probe(closure).sketch.coeffs[0] == pytest.approx(served.probe(closure).sketch.coeffs[0], rel=1e-4)


def test_two_parameters_in_one_buffer_are_both_found_below_python():
    """Flattened models: views of one storage, one of them read through a view that was cached before."""
    flat = torch.arange(8.0) / 8
    a, b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    cached = a.detach()[None]

    def closure():
        return (cached.square().sum() + 3 * b.sum()) * 1.0

    def estimate(**options):
        opt = gl.ZerothOrder([("a", a), ("b", b)], seed=1, **options)
        return opt.probe(closure).sketch.coeffs[0]

    with pytest.warns(UserWarning, match="in place"):
        found = estimate()
    assert found == pytest.approx(estimate(engine="in-place"), rel=1e-5)


def test_an_interrupt_while_perturbing_in_place_loses_nothing(monkeypatch):
    from gradless.forward import perturbed

    model = Net()
    before = bits(model)
    opt = gl.ZerothOrder(model.named_parameters(), engine="in-place")
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return streaming_branch(*args, **kwargs)

    streaming_branch = perturbed.branch
    monkeypatch.setattr(perturbed, "branch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.probe(closure_of(model))
    assert equal_bits(bits(model), before)


def test_acceptance_is_asked_once_logged_and_replayed():
    """With two groups and a schedule, what the ledger gets is what was done."""

    def run(moves=None):
        model = Net()
        named = dict(model.named_parameters())
        groups = [
            {"params": [("hidden.weight", named["hidden.weight"])], "lr_scale": 3.0},
            {"params": [("embedding.weight", named["embedding.weight"])], "weight_decay": 0.1},
        ]
        asked = []

        def accept(value):
            asked.append(min((1.0, 0.0, -1.0), key=value))
            return asked[-1]

        opt = gl.ZerothOrder(groups, rule=gl.scale(gl.linear(1e-2, 20, warmup=3)), accept=accept)
        if moves is not None:
            opt.replay(moves)
            return bits(model)
        logged = []
        for _ in range(8):
            opt.step_with(closure_of(model), logged.append)
        assert len(asked) == 8
        return bits(model), logged

    weights, moves = run()
    assert any(lr < 0 for move in moves for lr in move.lrs)  # an update that was turned round
    assert equal_bits(run(moves), weights)


def test_divergence_is_counted_across_a_replay():
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    opt.replay([Update(step, (), (1e-2,), True) for step in range(9)])
    with pytest.raises(gl.Diverged):
        opt.step(lambda: closure_of(model)() * math.nan)


def test_state_dict_needs_no_pickle(tmp_path):
    model = Net()
    opt = gl.mezo_momentum(model.named_parameters(), lr=1e-2)
    for _ in range(3):
        opt.step(closure_of(model))
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = gl.mezo_momentum(Net().named_parameters(), lr=1e-2)
    other.load_state_dict(state)
    assert other._rule_state == opt._rule_state


def test_a_group_may_not_set_a_rate_beside_a_schedule():
    model = Net()
    with pytest.raises(gl.BadInput, match="lr_scale"):
        gl.mezo([{"params": list(model.named_parameters()), "lr": 1e-3}], lr=gl.linear(1e-2, 10))


def test_a_custom_direction_is_one_function():
    """A direction with its own draw works in the probe, the update and the replay."""

    def draw(key, name, p):
        z = rng.normal(key, name, p.shape)
        return z / z.square().mean().sqrt()

    sphere = gl.rademacher()._replace(name="sphere", draw=draw)
    model = Net()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = gl.ZerothOrder(model.named_parameters(), directions=sphere, rule=gl.scale(1e-2))
    first = value_of(model)
    moves = []
    for step in range(40):
        probe, _ = opt.step_with(closure_of(model))
        moves.append(Update(step, probe.sketch.coeffs, (1e-2,), False))
    assert value_of(model) < first
    trained = bits(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    gl.ZerothOrder(model.named_parameters(), directions=sphere, rule=gl.scale(1e-2)).replay(moves)
    assert equal_bits(bits(model), trained)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: gl.mezo(m.parameters()), "named_parameters"),
        (lambda m: gl.mezo([]), "no parameters"),
        (lambda m: gl.mezo([("a", m.norm.weight), ("b", m.norm.weight.detach()[2:].requires_grad_())]), "share memory"),
        (lambda m: gl.mezo([("a", nn.Parameter(torch.ones(2, dtype=torch.float64)))]), "float64"),
        (lambda m: gl.mezo([("a", nn.Parameter(torch.ones(2), requires_grad=False))]), "nothing to tune"),
        (lambda m: gl.mezo(m.named_parameters(), eps=0.0), "eps"),
        (lambda m: gl.mezo(m.named_parameters(), lr=-1.0), "learning rate"),
        (lambda m: gl.mezo(m.named_parameters(), queries=0), "queries"),
        (lambda m: gl.mezo(m.named_parameters(), weight_decay=-1.0), "weight_decay"),
        (lambda m: gl.mezo(m.named_parameters()).step(), "closure"),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(gl.BadInput, match=message) as error:
        make(Net())
    assert "\n" not in str(error.value)

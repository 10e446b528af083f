"""What the optimizer promises beside the estimate: accidents, acceptance, states, and bad input in a sentence."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import nn

import gradless as gl
from gradless import rng
from gradless.optimizer import Update
from net_helpers import Net, bits, closure_of, equal_bits, value_of


def test_nonfinite_losses_are_skipped_counted_and_finally_fatal():
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    initial = bits(model)
    for _ in range(9):
        opt.step(lambda: closure_of(model)() * math.nan)
    assert opt.skipped == 9
    assert equal_bits(bits(model), initial)
    opt.step(closure_of(model))  # a good step starts the count again
    for _ in range(9):
        opt.step(lambda: closure_of(model)() * math.inf)
    with pytest.raises(gl.Diverged, match="lower the learning rate"):
        opt.step(lambda: closure_of(model)() * math.nan)


def test_after_it_diverged_an_optimizer_goes_on_at_a_lower_rate():
    model = Net()
    opt = gl.mezo(model.named_parameters(), lr=1e-2)
    updates: list[Update] = []

    def diverge():
        for _ in range(9):
            opt.step_with(lambda: closure_of(model)() * math.nan, updates.append)
        with pytest.raises(gl.Diverged, match="lower the learning rate"):
            opt.step_with(lambda: closure_of(model)() * math.nan, updates.append)

    diverge()
    opt.param_groups[0]["lr"] = 1e-3
    kept = bits(model)
    opt.step_with(closure_of(model), updates.append)
    assert not equal_bits(bits(model), kept)
    diverge()
    assert opt.skipped == 20
    twin = Net()
    again = gl.mezo(twin.named_parameters(), lr=1e-2)
    again.replay(updates)
    with pytest.raises(gl.Diverged):  # the run had ended so
        again.step(closure_of(twin))
    again.step(closure_of(twin))


def test_acceptance_may_refuse_or_turn_an_update():
    for answer in (0.0, 1.0, -1.0):
        model = Net()
        opt = gl.ZerothOrder(model.named_parameters(), rule=gl.scale(1e-2), accept=lambda value, a=answer: a)
        initial = bits(model)
        opt.step(closure_of(model))
        assert equal_bits(bits(model), initial) is (answer == 0.0)


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
    initial = linear.weight.detach().clone()

    def closure():
        return (linear(torch.eye(3)) - 1).square().mean()

    opt = gl.mezo(linear.named_parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="in place"):
        probe = opt.probe(closure)
    assert probe.sketch.coeffs[0] != 0
    assert torch.equal(linear.weight, initial)


@pytest.mark.sweep
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
        estimated = estimate()
    assert estimated == pytest.approx(estimate(engine="in-place"), rel=1e-5)


def test_an_interrupt_while_perturbing_in_place_loses_nothing(monkeypatch):
    from gradless.forward import perturbed

    model = Net()
    initial = bits(model)
    opt = gl.ZerothOrder(model.named_parameters(), engine="in-place")
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        streaming_branch(*args, **kwargs)

    streaming_branch = perturbed.branch_many
    monkeypatch.setattr(perturbed, "branch_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.probe(closure_of(model))
    assert equal_bits(bits(model), initial)


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


METHODS = {
    "mezo": gl.mezo,
    "momentum": gl.mezo_momentum,
    "stored momentum": gl.zo_momentum,
    "stored adam": gl.zo_adam,
    "root mean square": gl.mezo_rms,
    "standard deviation": gl.fzoo,
    "low rank": gl.lozo,
}


@pytest.mark.parametrize("names_known", [True, False], ids=["state of this release", "state of an older one"])
def test_a_state_of_another_method_is_refused_before_anything_is_changed(names_known):
    def fresh(method, steps):
        layer = nn.Linear(4, 3)
        opt = method(layer.named_parameters(), lr=1e-3 * (1 + steps), engine="stream")
        for _ in range(steps):
            opt.step(lambda: layer(torch.ones(2, 4)).square().mean())
        return opt

    states = {name: fresh(method, 2).state_dict() for name, method in METHODS.items()}
    for state in states.values() if not names_known else ():
        for part in ("rule_name", "directions_name"):
            state["gradless"].pop(part, None)
    refused = {}
    for saved, state in states.items():
        for name, method in METHODS.items():
            opt = fresh(method, 0)
            try:
                opt.load_state_dict(state)
            except gl.BadInput as error:
                refused[saved, name] = str(error)
                assert (opt.t, opt.forwards, opt.param_groups[0]["lr"]) == (0, 0, 1e-3)
    others = set(itertools.permutations(METHODS, 2))
    assert refused.keys() == others if names_known else refused.keys() < others  # some states fit several rules
    assert len(refused) > len(METHODS)
    assert all("by the method that the state was saved from" in reason for reason in refused.values())


def test_masks_of_other_shapes_are_refused():
    layer = nn.Linear(4, 3)
    opt = gl.zo_sparse(layer.named_parameters(), lr=1e-3)
    state = opt.state_dict()
    masks = {name: mask.flatten()[:2] for name, mask in state["gradless"]["masks"].items()}
    with pytest.raises(gl.BadInput, match="masks of other parameters"):
        opt.load_state_dict({**state, "gradless": {**state["gradless"], "masks": masks, "t": 5}})
    assert opt.t == 0

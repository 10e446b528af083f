"""Directions on some blocks, and the forwards that they save."""

from __future__ import annotations

import pytest
import torch

import gradless as gl
from gradless import lm, rng
from gradless.directions.blocks import blocks, one_by_one, random_blocks, units
from gradless.errors import BadInput
from gradless.gradients import Mixture
from gradless.kernels.program import NOTHING, idle, program, restrict

NAMES = ["wte", "h.0.a", "h.0.b", "h.1.a", "h.2.a", "norm.w", "norm.b"]


def test_restricting_a_program_keeps_its_steps():
    whole = program([(0.5, (1, 2), (1.0, 2.0)), (1.0, (3,), (3.0,)), (1.0, (2,), (4.0,))], rounding=(7, 8, 9))
    part = restrict(whole, lambda key: key == 2)
    assert part.starts.tolist() == [0, 1, 1, 2]
    assert part.coeffs.tolist() == [2.0, 4.0]
    assert part.decays.tolist() == [0.5, 1.0, 1.0]
    assert part.rounding.tolist() == [7, 8, 9]
    assert restrict(whole, lambda key: True) is whole
    assert idle(NOTHING)
    assert not idle(restrict(whole, lambda key: False))  # it decays
    assert idle(restrict(program([(1.0, (1,), (1.0,))]), lambda key: False))


def test_units_cover_every_name_once():
    parts = units(NAMES)
    assert parts == [("wte",), ("h.0.a", "h.0.b"), ("h.1.a",), ("h.2.a",), ("norm.w", "norm.b")]
    assert blocks(["a", "b"]) == []
    lora = [f"base_model.model.model.layers.{i}.q.lora_A.default.weight" for i in range(12)]
    assert blocks(lora) == [(name,) for name in lora]


def leaves_of(opt, key):
    return {leaf.name for leaf in opt.leaves if leaf.active is None or leaf.active(key)}


def named(names=NAMES):
    return [(name, torch.nn.Parameter(torch.ones(4, 4))) for name in names]


def test_random_blocks_are_as_many_as_asked_and_all_come():
    opt = gl.ZerothOrder(named(), directions=random_blocks(gl.rademacher(), keep=1))
    seen = [leaves_of(opt, opt.key(step, 0)) for step in range(200)]
    always = {"wte", "norm.w", "norm.b"}
    assert all(always < touched for touched in seen)
    counts = {block: sum(block in touched for touched in seen) for block in ("h.0.a", "h.1.a", "h.2.a")}
    assert sum(counts.values()) == 200
    assert all(45 < count < 90 for count in counts.values())  # 67 expected, 6.7 standard deviation
    two = gl.ZerothOrder(named(), directions=random_blocks(gl.rademacher(), keep=0.67))
    assert all(len(leaves_of(two, two.key(step, 0)) & {"h.0.a", "h.1.a", "h.2.a"}) == 2 for step in range(20))
    for wrong in (0.0, 1.5, 0):
        with pytest.raises(BadInput, match="keep is"):
            random_blocks(gl.rademacher(), keep=wrong)
    with pytest.raises(BadInput, match="no parameter belongs to a numbered block"):
        gl.ZerothOrder(named(["a", "b"]), directions=random_blocks(gl.rademacher(), keep=1))


def test_one_by_one_sums_over_units_with_directions_of_their_own():
    params = named()
    directions, count = one_by_one(gl.rademacher(), [name for name, _ in params])
    assert count == 5
    opt = gl.ZerothOrder(params, directions=directions, estimator=gl.spsa(queries=count), rule=gl.scale(1.0))
    keys = [opt.key(3, query) for query in range(count)]
    reached = [leaves_of(opt, key) for key in keys]
    assert sorted(name for names in reached for name in names) == sorted(NAMES)
    mixture = gl.Sketch(tuple(keys), (1.0, 2.0, 3.0, 4.0, 5.0)).mixture()
    for leaf in opt.leaves:
        (query,) = [k for k, names in enumerate(reached) if leaf.name in names]
        assert torch.equal(mixture.leaf(leaf).abs(), torch.full((4, 4), float(query + 1)))
    a, b = (Mixture(tuple(keys), (1.0,) * count).leaf(leaf) for leaf in opt.leaves[1:3])
    assert not torch.equal(a, b)


@pytest.fixture(scope="module")
def model():
    return lm.load("tiny-llama")


@pytest.mark.parametrize("make", [gl.zo_blockwise, gl.zo_block, gl.lezo])
def test_shared_prefixes_change_nothing_but_the_work(model, make):
    ids = torch.arange(24).view(2, 12) % 40 + 3
    layers = model.model.model.layers
    calls = [0]
    handles = [layer.self_attn.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)) for layer in layers]

    def closure():
        return model.model(input_ids=ids, labels=ids).loss

    probes = []
    try:
        for reuse in (False, True):
            opt = make(model.model.named_parameters(), seed=5, lr=1e-9)
            opt.probe(closure)  # surveys, so it shares nothing yet
            if reuse:
                opt.reuse_prefixes(model.model)
            calls[0] = 0
            opt.t = 1
            probes.append((opt.probe(closure).sketch.coeffs, calls[0]))
    finally:
        for handle in handles:
            handle.remove()
    assert probes[0][0] == probes[1][0]
    assert probes[1][1] <= probes[0][1]
    if make is gl.zo_blockwise:
        assert probes[1][1] < 0.75 * probes[0][1]


def test_leaves_that_are_large_enough_to_be_visited_ahead():
    linears = torch.nn.ModuleList(torch.nn.Linear(300, 300, bias=False) for _ in range(4))
    x = rng.normal(1, "x", (5, 300))

    def closure():
        y = x
        for linear in linears:
            y = torch.tanh(linear(y))
        return y.square().mean()

    def run(engine):
        with torch.no_grad():
            for name, p in linears.named_parameters():
                p.copy_(rng.normal(1, name, p.shape) * 0.1)
        params = [(f"layers.{name}", p) for name, p in linears.named_parameters()]
        opt = gl.lezo(params, lr=1e-4, keep=0.5, engine=engine, defer=True)
        return [opt.step_with(closure)[0].sketch.coeffs[0] for _ in range(10)]

    assert run("stream") == pytest.approx(run("in-place"), rel=1e-3, abs=1e-4)


def test_a_block_that_is_not_reached_keeps_its_bits_and_its_pending_updates(model):
    def run(defer):
        params = named()
        with torch.no_grad():
            for name, p in params:
                p.copy_(rng.normal(1, name, p.shape))
        opt = gl.lezo(params, lr=1e-4, keep=0.34, defer=defer)

        def loss():
            return sum((p.double() * (index + 1)).square().sum() for index, (_, p) in enumerate(params))

        for _ in range(20):
            opt.step(loss)
        opt.flush()
        return [p.detach().clone() for _, p in params]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


@pytest.mark.parametrize("make", [gl.zo_blockwise, gl.zo_block, gl.lezo])
def test_engines_agree_on_leaves_of_whole_blocks_of_bits(make):
    linears = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(4))
    with torch.no_grad():
        for name, p in linears.named_parameters():
            p.copy_(rng.normal(1, name, p.shape) * 0.3)
    x = rng.normal(1, "x", (5, 64))

    def closure():
        y = x
        for linear in linears:
            y = torch.tanh(linear(y))
        return y.square().mean()

    more = {} if make is gl.zo_blockwise else {"queries": 3}
    params = [(f"layers.{name}", p) for name, p in linears.named_parameters()]
    coefficients = [
        make(params, seed=2, engine=e, **more).probe(closure).sketch.coeffs for e in ("stream", "dual", "in-place")
    ]
    assert coefficients[1] == pytest.approx(coefficients[0], rel=1e-3, abs=1e-4)
    assert coefficients[2] == pytest.approx(coefficients[0], rel=1e-3, abs=1e-4)


def test_units_do_not_depend_on_the_order_of_names():
    opt = ["model.decoder.embed_tokens.weight", "model.decoder.final_layer_norm.weight", "model.decoder.layers.0.w"]
    assert units(opt)[-1] == ("model.decoder.final_layer_norm.weight",)
    roberta = ["layer.0.w", "layer.1.w", "lm_head.dense.weight", "embeddings.LayerNorm.weight", "lm_head.dense.bias"]
    assert units(roberta) == [
        ("embeddings.LayerNorm.weight",),
        ("layer.0.w",),
        ("layer.1.w",),
        ("lm_head.dense.weight", "lm_head.dense.bias"),
    ]


def test_low_rank_directions_cannot_go_unit_by_unit():
    with pytest.raises(BadInput, match="cannot go unit by unit"):
        one_by_one(gl.low_rank(2), NAMES)


def test_a_parameter_that_comes_later_is_in_no_unit():
    """It is refused in a sentence, and the optimizer goes on without it."""
    params = dict(named())
    params["wte"].requires_grad_(False)
    opt = gl.zo_blockwise(params.items(), lr=1e-3, engine="stream")
    closure = lambda: sum((p - 1.1).square().mean() for p in params.values() if p.requires_grad)  # noqa: E731
    opt.step(closure)
    params["wte"].requires_grad_(True)
    with pytest.raises(BadInput, match=r"'wte' is in none of the 4 units.*make the optimizer anew"):
        opt.step(closure)
    with pytest.raises(BadInput, match="'wte' is in none"):
        opt.apply(gl.Sketch((), ()))  # as long as it is tuned
    params["wte"].requires_grad_(False)
    opt.step(closure)
    params["new"] = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(BadInput, match="'new' is in none"):
        opt.add_param_group({"params": [("new", params["new"])]})
    assert len(opt.param_groups) == 1
    opt.step(closure)
    assert opt.t == 3


def test_a_group_that_cannot_be_added_is_not_there():
    """Whatever the error: directions of others may raise any."""

    def active(names):
        return {name: {"wte": lambda key: True}[name] for name in names}

    params = named(["wte"])
    opt = gl.ZerothOrder(params, directions=gl.rademacher()._replace(active=active), engine="stream")
    with pytest.raises(KeyError):
        opt.add_param_group({"params": named(["new"])})
    opt.step(lambda: params[0][1].square().mean())
    assert len(opt.param_groups) == 1

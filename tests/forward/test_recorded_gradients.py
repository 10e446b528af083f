"""Closures that differentiate the model by its input: what autograd keeps for its backward is not written meanwhile."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import gradless as gl
from gradless.forward import read_order
from gradless.forward.batched import SMALL
from gradless.forward.perturbed import copies_kept
from gradless.storage import upcast

WIDTH = 300
POINTS = torch.sin(torch.arange(8.0)).view(4, 2)


@pytest.fixture(autouse=True)
def _one_buffer_for_all_layers(monkeypatch):
    """A layer of a large model is longer than what is visited in a row, so the next one takes the same buffer."""
    assert SMALL < WIDTH**2
    monkeypatch.setattr(read_order, "ROW", 0)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    layers = [nn.Linear(2, WIDTH), nn.Tanh()]
    for _ in range(3):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_(torch.sin(torch.arange(float(p.numel())).view_as(p) + number) / WIDTH**0.5)
    return net.to(dtype)


def residual(net: nn.Module):
    """The loss of a physics-informed network: how far its derivative is from 1."""

    def closure():
        with torch.enable_grad():
            x = POINTS.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(net(x).sum(), x)
        return (slope - 1).square().mean()

    return closure


def coefficients(net: nn.Module, method, engine: str, closure=None, **more) -> list[float]:
    opt = method(net.named_parameters(), lr=0.0, eps=1e-2, engine=engine, seed=1, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dual becomes stream
        return [opt.step_with(closure or residual(net))[0].sketch.coeffs[0] for _ in range(3)]


@pytest.mark.parametrize("engine", ["stream", "dual"])
@pytest.mark.parametrize(("method", "more"), [(gl.mezo, {}), (gl.lozo, {"rank": 4})], ids=["mezo", "lozo"])
def test_coefficients_are_those_of_weights_perturbed_in_place(method, more, engine):
    net = network()
    expected = coefficients(net, method, "in-place", **more)
    assert coefficients(net, method, engine, **more) == pytest.approx(expected, rel=1e-3)


def test_low_rank_directions_of_upcast_weights(monkeypatch):
    net = network(torch.bfloat16)
    upcast.prepare(net)
    closure = residual(net)
    expected = coefficients(net, gl.lozo, "in-place", closure, rank=4)
    # Directions of low rank are exact in stream, and rounded to the weights in place.
    assert coefficients(net, gl.lozo, "stream", closure, rank=4) == pytest.approx(expected, rel=0.1, abs=0.05)


def test_copies_that_are_kept_for_a_while_are_not_those_that_autograd_keeps():
    net = network()
    inner = residual(net)

    def closure():
        with torch.enable_grad():
            x = POINTS.clone().requires_grad_(True)
            with copies_kept():
                loss = net(x).sum()
            with torch.no_grad():
                net(POINTS)
            (slope,) = torch.autograd.grad(loss, x)
        return (slope - 1).square().mean()

    assert coefficients(net, gl.mezo, "stream", closure) == coefficients(net, gl.mezo, "stream", inner)


@pytest.mark.parametrize("engine", ["dual", "auto"])
def test_a_closure_that_one_engine_alone_refuses_is_for_the_other(engine, tmp_path, monkeypatch):
    """A batched value has no gradient of its own, so that torch says of a valid closure that it needs none."""
    monkeypatch.setenv("GRADLESS_CACHE", str(tmp_path))
    monkeypatch.delenv("GRADLESS_ENGINE", raising=False)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    x = POINTS.clone().requires_grad_(True)  # made once, outside of the closure

    def closure():
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(net(x).sum(), x)
        return (slope - 1).square().mean()

    opt = gl.mezo(net.named_parameters(), lr=0.0, eps=1e-2, engine=engine, seed=1)
    if engine == "dual":
        with pytest.warns(UserWarning, match=r"torch.autograd.grad\(.* cannot be batched .* does not require grad"):
            coeffs = opt.step_with(closure)[0].sketch.coeffs
    else:
        coeffs = opt.step_with(closure)[0].sketch.coeffs
    assert opt.engine == "stream"
    assert coeffs == gl.mezo(net.named_parameters(), lr=0.0, eps=1e-2, engine="stream", seed=1).probe(closure)[2].coeffs


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place", "auto"])
def test_gradients_that_nobody_records_are_told(engine):
    net = nn.Linear(2, 1)
    opt = gl.mezo(net.named_parameters(), engine=engine)
    with pytest.raises(gl.BadInput, match=r"calls .backward\(\) or asks for gradients.*torch.enable_grad\(\)"):
        opt.step(lambda: net(POINTS).mean().backward())
    assert engine in (opt.engine, "auto")  # which the closure did not get as far as to choose


TRANSFORMED = {
    "grad": lambda net, table: torch.func.grad(lambda x: net(x).sum())(POINTS),
    "vjp": lambda net, table: torch.func.vjp(net, POINTS)[1](torch.ones(4, 1))[0],
    "jvp": lambda net, table: torch.func.jvp(net, (POINTS,), (torch.ones_like(POINTS),))[1],
    "jacrev": lambda net, table: torch.func.vmap(torch.func.jacrev(net))(POINTS),
    "hessian": lambda net, table: torch.func.vmap(torch.func.hessian(lambda x: net(x).sum()))(POINTS),
    "vmap": lambda net, table: torch.func.vmap(lambda row: net(table(row)))(ROWS),
    "grad and a table": lambda net, table: torch.func.grad(lambda x, rows: net(x + table(rows)).sum())(POINTS, ROWS),
    "grad and rows": lambda net, table: torch.func.grad(lambda x: net(x + table.weight[ROWS]).sum())(POINTS),
}
ROWS = torch.tensor([1, 2, 1, 0])


@pytest.mark.parametrize("engine", ["stream", "dual"])
@pytest.mark.parametrize(("method", "more"), [(gl.mezo, {}), (gl.lozo, {"rank": 2})], ids=["mezo", "lozo"])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_inside_of_a_closure_see_perturbed_weights(name, method, more, engine):
    net, table = network(), nn.Embedding(40_000, 2)
    with torch.no_grad():
        table.weight.copy_(torch.sin(torch.arange(80_000.0)).view(40_000, 2))
    both = nn.ModuleDict(
        {"net": net, "table": table} if name in ("vmap", "grad and a table", "grad and rows") else {"net": net}
    )

    def closure():
        return (TRANSFORMED[name](net, table) - 1).square().mean()

    expected = coefficients(both, method, "in-place", closure, **more)
    opt = method(both.named_parameters(), lr=0.0, eps=1e-2, engine=engine, seed=1, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no engine gives way, and no weight is perturbed in place
        coeffs = [opt.step_with(closure)[0].sketch.coeffs[0] for _ in range(3)]
    assert coeffs == pytest.approx(expected, rel=5e-3, abs=5e-3)

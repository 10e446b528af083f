"""The loss is a function: evaluations of a step draw the same numbers, and what still differs is refused."""

# ruff: noqa: NPY002 (the global generator of NumPy is what is tested)

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradless as gl
from gradless.forward.engines import ENGINES
from gradless.forward.random_state import RandomState
from gradless.integrations.window import Window
from net_helpers import bits, equal_bits

X = torch.linspace(-1, 1, 40).view(5, 8)


class Dropping(nn.Module):
    """Drops activations and attention weights, as models in training do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.sin(torch.arange(p.numel()).float()).view(p.shape))

    def forward(self, x: Tensor) -> Tensor:
        q = F.dropout(self.first(x), 0.5).view(len(x), 2, 2, 2)
        mask = torch.ones(len(x), 1, 2, 2).tril()
        attended = F.scaled_dot_product_attention(q, q, q, mask.bool(), dropout_p=0.4)
        return self.last(attended.reshape(len(x), 8))


def noisy(model: nn.Module) -> Tensor:
    """Draws from every generator that has no name, an odd number of normals among them."""
    shift = torch.randn(()) + random.gauss(0, 1) + np.random.randn()
    return (model(X[np.random.permutation(5)]) + shift).square().mean()


def seed() -> None:
    torch.manual_seed(1), random.seed(1), np.random.seed(1)


def ahead() -> tuple[float, ...]:
    """The next number of every generator."""
    return torch.rand(1).item(), random.gauss(0, 1), np.random.randn(), np.random.rand()


def trained(make: Callable[..., gl.ZerothOrder], **options: object) -> tuple[list[float], tuple[float, ...]]:
    model = Dropping()
    seed()
    opt = make(model.named_parameters(), seed=3, **options)
    losses = [opt.step(lambda: noisy(model)) for _ in range(3)]
    return losses, ahead()


def test_a_state_is_put_back_whole():
    seed()
    np.random.randn()  # half of a pair is left
    state = RandomState.capture()
    first = ahead()
    state.restore()
    assert ahead() == first
    state.replaced(state.to_bytes()).restore()
    assert RandomState.capture().same(state)
    assert ahead() == first
    assert not RandomState.capture().same(state)
    with state.revisited():
        state.restore()
        random.random()
    assert ahead() != first


def test_another_generator_of_numpy_is_put_back():
    generator = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(5))
        state = RandomState.capture()
        first = np.random.rand()
        state.restore()
        assert np.random.rand() == first
    finally:
        np.random.set_bit_generator(generator)


@pytest.mark.parametrize("options", [{}, {"queries": 5}])
def test_all_engines_draw_the_same_and_advance_as_one_evaluation(options):
    runs = []
    for engine in ENGINES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runs.append(trained(gl.mezo, engine=engine, lr=1e-3, eps=1e-3, **options))
    for losses, after in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        assert after == runs[0][1]
    model = Dropping()
    seed()
    with torch.no_grad():
        [noisy(model) for _ in range(3)]
    assert runs[0][1] == ahead()


@pytest.mark.parametrize("make", [gl.zo_cons, gl.forward_gradient, gl.fo_sgd, gl.mezo_one_sided])
def test_every_estimator_and_acceptance_advance_as_one_evaluation(make):
    options = {"queries": 2} if make is not gl.fo_sgd else {}
    assert trained(make, lr=1e-3, **options)[1] == trained(gl.mezo, lr=1e-3)[1]


def test_the_slope_is_that_of_the_loss_with_its_noise_held():
    model = Dropping()
    opt = gl.mezo(model.named_parameters(), eps=1e-3)
    seed()
    probe = opt.probe(lambda: noisy(model))
    seed()
    noisy(model).backward()
    exact = sum((gl.Sketch(probe.sketch.keys, (1.0,)).leaf(leaf) * leaf.param.grad).sum().item() for leaf in opt.leaves)
    assert probe.sketch.coeffs[0] == pytest.approx(exact, rel=2e-2)


def test_acceptance_sees_the_numbers_of_the_probe_and_takes_none_back():
    model, seen = Dropping(), []

    def closure():
        loss = noisy(model)
        seen.append(float(loss))
        return loss

    def accept(value):
        seen.clear()
        value(0.0)
        return 0.0

    opt = gl.ZerothOrder(model.named_parameters(), estimator=gl.one_sided(eps=1e-3), accept=accept)
    window = Window(opt, lambda update: None)
    window.gather(closure)
    probe = window.probe()
    between = ahead()
    window.step()
    assert seen == [probe.loss]
    assert ahead() != between


def test_blocks_that_draw_are_not_reused():
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = F.dropout(torch.tanh(layer(x)), 0.5)
            return x.square().mean()

    model = Stack()
    coefficients = []
    for reuse in (False, True):
        opt = gl.zo_block(copy.deepcopy(model).named_parameters(), queries=3, eps=1e-2)
        named = {leaf.name: leaf.param for leaf in opt.leaves}
        mine = copy.deepcopy(model)
        for name in [name for name, _ in mine.named_parameters()]:
            mine.get_submodule(name.rpartition(".")[0])._parameters[name.rpartition(".")[2]] = named[name]
        if reuse:
            opt.reuse_prefixes(mine)
        seed()
        coefficients.append(opt.probe(lambda mine=mine: mine(X)).sketch.coeffs)
    assert coefficients[0] == coefficients[1]


def batches():
    """Other rows at every call."""
    return (torch.rand(5, 8, generator=torch.Generator().manual_seed(i)) for i in range(10**6))


CAUSES = {
    "a loader": lambda: iter(batches()).__next__,
    "a generator": lambda: lambda g=torch.Generator().manual_seed(0): torch.rand(5, 8, generator=g),  # noqa: B008
    "numpy's own": lambda: lambda g=np.random.default_rng(0): torch.from_numpy(g.random((5, 8), np.float32)),  # noqa: B008
    "a state": lambda: lambda seen=[]: (seen.append(1), X * len(seen))[1],
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cause", CAUSES)
def test_a_loss_that_is_no_function_is_refused_in_the_first_step(cause, engine):
    model = Dropping()
    initial = bits(model)
    draw = CAUSES[cause]()
    opt = gl.mezo(model.named_parameters(), engine=engine, lr=0.1)
    for _ in range(2):
        with pytest.raises(gl.BadInput, match=r"another loss.*draw the batch before the step.*check=False"):
            opt.step(lambda: model(draw()).square().mean())
    assert equal_bits(bits(model), initial)
    assert opt.t == 0
    batch = draw()
    opt.step(lambda: model(batch).square().mean())
    careless = gl.mezo(model.named_parameters(), engine=engine, check=False)
    careless.step(lambda: model(draw()).square().mean())
    assert (careless.check_forwards, careless.forwards) == (0, 2)


def test_slopes_are_checked_too_and_what_is_called_once_need_not_be_a_function():
    model, draw = Dropping(), iter(batches()).__next__
    with pytest.raises(gl.BadInput, match="another loss"):
        gl.forward_gradient(model.named_parameters(), queries=2).step(lambda: model(draw()).mean())
    gl.forward_gradient(model.named_parameters()).step(lambda: model(draw()).mean())
    gl.fo_adam(model.named_parameters()).step(lambda: model(draw()).mean())


def test_the_check_costs_one_evaluation_a_run_and_one_after_loading():
    model, calls = Dropping(), [0]

    def closure():
        calls[0] += 1
        return noisy(model) * (float("nan") if calls[0] < 3 else 1.0)

    opt = gl.mezo(model.named_parameters())
    opt.step(closure)  # not finite, so the next step is checked
    opt.step(closure)
    opt.step(closure)
    assert (opt.forwards, opt.check_forwards, calls[0]) == (6, 2, 8)
    again = gl.mezo(model.named_parameters())
    again.load_state_dict(opt.state_dict())
    again.step(closure)
    assert (again.forwards, again.check_forwards) == (8, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_that_differ_by_rounding_pass(dtype):
    weight, calls = nn.Parameter(torch.ones(4, dtype=dtype)), [0]

    def closure():
        calls[0] += 1
        return weight.sum() * (1 + torch.finfo(dtype).eps * (calls[0] % 2) / 2)

    opt = gl.mezo([("w", weight)])
    opt.step(closure)
    assert opt.check_forwards == 1

"""A closure that cannot be batched: one sentence that names the function, and the engine that is used instead."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import gradless as gl


class Doubled(torch.autograd.Function):
    """A function of somebody who does not know of vmap."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


X = torch.linspace(-1, 1, 12).view(4, 3)


def added_in_place(out):
    total = torch.zeros(4, 2)
    total.add_(out)
    return total.square().mean()


def taken_out(out):
    return out.mean() * out.sum().item()


def of_a_size_in_the_data(out):
    return out[out.nonzero()[:, 0]].square().mean()


def branched(out):
    return out.mean() if out.sum() > 0 else out.square().mean()


def through_numpy(out):
    return torch.tensor(np.square(out.numpy()).mean())


def by_a_function_of_its_own(out):
    return Doubled.apply(out).square().mean()


KINDS = {
    added_in_place: "total.add_(out)",
    taken_out: "out.sum().item()",
    of_a_size_in_the_data: "out.nonzero()",
    branched: "out.sum() > 0",
    through_numpy: "out.numpy()",
    by_a_function_of_its_own: "Doubled.apply(out)",
}


@pytest.mark.parametrize("loss", KINDS, ids=lambda loss: loss.__name__)
def test_the_warning_names_the_function_and_the_engine(loss):
    ends = {}
    for engine in ("stream", "dual"):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        opt = gl.mezo(layer.named_parameters(), lr=1e-2, eps=1e-2, seed=0, engine=engine)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                opt.step(lambda layer=layer: loss(layer(X)))
        ends[engine] = layer.weight.detach().clone()
        messages = [str(w.message) for w in caught if "dual" in str(w.message)]
        if engine == "dual":
            (message,) = messages
            assert f"'{KINDS[loss]}' in test_unbatchable.py, line " in message
            assert message.endswith("using the engine 'stream', one forward for each point")
            assert "\n" not in message
    assert torch.equal(ends["stream"], ends["dual"])


def test_an_operator_of_somebody_else_is_batched():
    @torch.library.custom_op("gradless_test::halved", mutates_args=())
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    ends = {}
    for engine in ("stream", "dual"):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        opt = gl.mezo(layer.named_parameters(), lr=1e-2, eps=1e-2, seed=0, engine=engine)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.step(lambda layer=layer: halved(layer(X)).square().mean())
        ends[engine] = layer.weight.detach().clone()
    torch.testing.assert_close(ends["stream"], ends["dual"])

"""Engines over 16-bit weights that are computed with in float32: the losses of the float32 model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradless as gl
from gradless.lm import tiny
from gradless.storage import upcast

IDS = torch.arange(24).view(3, 8)


def closure(model: Any) -> Callable[[], Tensor]:
    return lambda: model(input_ids=IDS, labels=IDS).loss


def pair(family: str, dtype: torch.dtype) -> list[nn.Module]:
    half, whole = tiny(family).model.to(dtype), tiny(family).model
    upcast.prepare(half)
    with torch.no_grad():
        for own, other in zip(
            (*whole.parameters(), *whole.buffers()), (*half.parameters(), *half.buffers()), strict=True
        ):
            own.copy_(other)
    return [half, whole]


@pytest.mark.parametrize("engine", ["stream", "dual"])
@pytest.mark.parametrize("method", ["mezo", "lozo", "fzoo"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma"])
@pytest.mark.parametrize("dtype", upcast.HALVES)
def test_the_first_losses_are_those_of_the_float32_model(
    engine: str, method: str, family: str, dtype: torch.dtype
) -> None:
    probes = []
    for model in pair(family, dtype):
        opt = getattr(gl, method)(model.named_parameters(), lr=1e-4, eps=1e-3, engine=engine)
        initial = [parameter.detach().clone() for parameter in model.parameters()]
        probes.append(opt.probe(closure(model)))
        assert all(torch.equal(a, b) for a, b in zip(initial, model.parameters(), strict=True))
    assert probes[0].loss == pytest.approx(probes[1].loss, rel=1e-6)
    assert probes[0].sketch.coeffs == pytest.approx(probes[1].sketch.coeffs, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("engine", ["stream", "dual", "in-place"])
@pytest.mark.parametrize("tuned", ["all", "norms", "matrices"])
def test_steps_move_16_bit_weights_and_replay_them(engine: str, tuned: str) -> None:
    def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return [
            (name, p)
            for name, p in model.named_parameters()
            if tuned == "all" or ("norm" in name) == (tuned == "norms")
        ]

    model, again = (pair("llama", torch.bfloat16)[0] for _ in range(2))
    for one in (model, again):
        one.requires_grad_(False)
        for _, parameter in named(one):
            parameter.requires_grad_(True)
    opt, twin = (gl.mezo(named(one), lr=1e-4, eps=1e-3, engine=engine, defer=True) for one in (model, again))
    updates = [opt.step_with(closure(model))[1] for _ in range(4)]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    start = pair("llama", torch.bfloat16)[0]
    opt.flush()
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    twin.replay(updates)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_slopes_by_forward_mode() -> None:
    slopes = []
    for model in pair("llama", torch.bfloat16):
        opt = gl.forward_gradient(model.named_parameters(), lr=1e-4)
        slopes.append(opt.probe(closure(model)).sketch.coeffs)
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)

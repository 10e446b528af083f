"""Float32 branches of 16-bit leaves: those of the leaf in float32, on every backend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradless import kernels, rng
from gradless.kernels import reference
from gradless.kernels.program import Fan
from gradless.rng import GAUSSIAN, RADEMACHER, Stream

LEAF = rng.leaf_id("leaf")
HALVES = [torch.bfloat16, torch.float16]
UPDATE = kernels.program([(0.999, [5, 6], [1e-3, 2e-3]), (1.0, [7], [1e-3])], rounding=[1, 2])


def weights(dtype: torch.dtype, shape: tuple[int, ...] = (70, 61)) -> Tensor:
    return (rng.normal(0, "weights", shape) * 0.02).to(dtype)


def probes(mirrored: bool) -> Any:
    steps = [(1.0, [11], [1e-3]), (1.0, [11, 12], [2e-3, -1e-3])]
    return kernels.program(steps if mirrored else steps[:1], rounding=[3, 4][: len(steps if mirrored else steps[:1])])


@pytest.fixture(params=["numba", "reference", "copied"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel module; the last one knows no float32 branches of 16-bit leaves, as Triton's."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="the CPU kernels need numba")
    monkeypatch.setenv("GRADLESS_KERNELS", request.param)
    if request.param == "copied":
        plain = SimpleNamespace(sweep=reference.sweep, fan=reference.fan)
        monkeypatch.setattr(kernels, "backend", lambda device: plain)
    return str(request.param)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("stream", [RADEMACHER, GAUSSIAN, Stream("low_rank", 3)])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_branches_are_those_of_the_updated_leaf_in_float32(
    backend: str, dtype: torch.dtype, mirrored: bool, stream: Stream, kept: bool, masked: bool
) -> None:
    p, run = weights(dtype), probes(mirrored)
    mask = torch.arange(p.numel()).view(p.shape) % 3 > 0 if masked else None
    options: Any = {"leaf": LEAF, "stream": stream, "mask": mask}
    updated = kernels.sweep(torch.empty_like(p), p, UPDATE, amplitude=0.5, **options)
    count = len(run.decays) * (2 if mirrored else 1)
    expected = kernels.fan(
        torch.empty(count, *p.shape), updated.float(), kernels.NOTHING, run, mirrored=mirrored, keep=False, **options
    )
    own, outs = p.clone(), torch.empty(count, *p.shape)
    kernels.fan(outs, own, UPDATE, run, mirrored=mirrored, keep=kept, amplitudes=(0.5, 1.0), **options)
    assert torch.equal(outs, expected)
    assert torch.equal(own, updated if kept else p)
    many, also = p.clone(), torch.empty_like(outs)
    fans = [Fan(also, many, UPDATE, run, LEAF, kept, stream, (0.5, 1.0), mask)]
    kernels.fan_many(fans, mirrored=mirrored)
    assert torch.equal(also, expected)
    assert torch.equal(many, updated if kept else p)
    if not kept:
        rows = torch.tensor([69, 0, 5])
        some = torch.empty(count, 3, p.shape[1])
        kernels.fan(some, p, UPDATE, run, mirrored=mirrored, keep=False, rows=rows, amplitudes=(0.5, 1.0), **options)
        assert torch.equal(some, expected[:, rows])


@pytest.mark.parametrize("dtype", HALVES)
def test_leaves_with_branches_of_either_kind_in_one_call(backend: str, dtype: torch.dtype) -> None:
    run, leaves = probes(True), [weights(dtype, (64, 64)), weights(torch.float32, (33,)), weights(dtype, (65, 3))]
    outs = [torch.empty(4, *p.shape, dtype=kind) for p, kind in zip(leaves, (None, None, dtype), strict=True)]
    fans = [Fan(out, p, kernels.NOTHING, run, LEAF, False) for out, p in zip(outs, leaves, strict=True)]
    kernels.fan_many(fans, mirrored=True)
    for out, p in zip(outs, leaves, strict=True):
        alone = torch.empty_like(out)
        kernels.fan(alone, p, kernels.NOTHING, run, leaf=LEAF, mirrored=True, keep=False)
        assert torch.equal(out, alone)


def test_less_of_the_signal_is_lost() -> None:
    """The difference of two branches is 2 eps z exactly to float32, and to a 16-bit spacing otherwise."""
    p, run = weights(torch.bfloat16, (1 << 14,)), kernels.program([(1.0, [11], [1e-3])], rounding=[3])
    z = kernels.sweep(torch.empty(p.shape), torch.zeros(p.shape), kernels.program([(1.0, [11], [1.0])]), leaf=LEAF)
    errors = []
    for kind in (torch.float32, torch.bfloat16):
        outs = torch.empty(2, *p.shape, dtype=kind)
        kernels.fan(outs, p, kernels.NOTHING, run, leaf=LEAF, mirrored=True, keep=False)
        errors.append(float(((outs[0].float() - outs[1].float()) / 2e-3 - z).abs().max()))
    assert errors[0] < 1e-4
    assert errors[1] > 1e-2

"""The fused sweep: the same bits on every backend, and honest rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradless import kernels, rng
from gradless.kernels import reference

pytest.importorskip("numba", reason="the CPU kernels need numba")
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
LEAF = rng.leaf_id("leaf")


def run(monkeypatch, backend, out, p, program, **options):
    with monkeypatch.context() as patch:
        patch.setenv("GRADLESS_KERNELS", backend)
        return kernels.sweep(out, p, program, leaf=LEAF, **options)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(BITS[a.dtype]), b.contiguous().view(BITS[b.dtype]))


def weights(n, dtype, seed=0):
    return (rng.normal(seed, "weights", (n,)) * 0.02).to(dtype)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("rounding", [(), (5, 2**64 - 1)])
@pytest.mark.parametrize("n", [1, 7, 127, 128, 129, 4095, 4097, 70001])
def test_numba_equals_reference(monkeypatch, gaussian, dtype, rounding, n):
    p = weights(n, dtype)
    steps = [(1.0, [3, 2**63 + 5], [1e-3, -2e-4]), (0.999, [77], [3e-5])]
    program = kernels.program(steps, gaussian=gaussian, rounding=rounding)
    results = [run(monkeypatch, b, torch.empty_like(p), p, program, amplitude=0.7) for b in ("numba", "reference")]
    assert same_bits(*results)
    assert not same_bits(results[0], p)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(5,), (3, 7), (2, 3, 65), (130, 33), (1, 1)]),
    dtype=st.sampled_from(kernels.DTYPES),
    gaussian=st.booleans(),
    layout=st.sampled_from(["packed", "transposed", "strided"]),
    masked=st.booleans(),
    stochastic=st.booleans(),
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
)
def test_any_shape_stride_and_mask(shape, dtype, gaussian, layout, masked, stochastic, keys):
    """Elements count in row-major order whatever the strides are, and a mask keeps bits."""
    base = weights(math.prod(shape), dtype).reshape(shape)
    if layout == "transposed":
        p = base.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "strided":
        wide = torch.zeros(*shape, 2, dtype=dtype)
        p = wide[..., 0]
        p.copy_(base)
    else:
        p = base.clone()
    mask = (rng.rademacher(1, 2, 0, base.numel()) > 0).reshape(shape) if masked else None
    program = kernels.program([(0.99, keys, [1e-2] * len(keys))], gaussian=gaussian, rounding=[9] if stochastic else ())
    expected = torch.empty_like(base)
    reference.sweep(
        expected.view(-1), base.view(-1), torch.zeros(1, dtype=torch.int64), base.numel(), LEAF,
        (program.decays, program.starts, program.keys, program.coeffs.astype("float32")), program.rounding, gaussian,
        None if mask is None else mask.view(-1),
    )  # fmt: skip
    kernels.sweep(p, p, program, leaf=LEAF, mask=mask)
    assert same_bits(p, expected)
    if mask is not None:
        assert torch.equal(p[~mask], base[~mask])


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_rows_equal_rows_of_the_whole(dtype):
    p = weights(50 * 37, dtype).reshape(50, 37)
    program = kernels.program([(1.0, [4], [1e-2])])
    whole = kernels.sweep(torch.empty_like(p), p, program, leaf=LEAF)
    rows = torch.tensor([49, 0, 7, 7, 13])
    part = kernels.sweep(torch.empty(5, 37, dtype=dtype), p, program, leaf=LEAF, rows=rows)
    assert same_bits(part, whole[rows])


@pytest.mark.parametrize("gaussian", [False, True])
def test_z_does_not_depend_on_dtype(gaussian):
    program = kernels.program([(1.0, [4], [1.0])], gaussian=gaussian)
    z = [
        kernels.sweep(torch.zeros(999, dtype=d), torch.zeros(999, dtype=d), program, leaf=LEAF) for d in kernels.DTYPES
    ]
    for other in z[1:]:
        assert torch.equal(z[0].to(other.dtype), other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 0.02, 3e-5, 2e-6])
def test_stochastic_rounding_is_unbiased_and_local(dtype, size):
    """The mean over many keys is the exact value; every result is a neighbour of it."""
    n, rounds = 2000, 400
    value = (rng.normal(1, "v", (n,)) * size).float()
    low = value.to(dtype)
    total = torch.zeros(n, dtype=torch.float64)
    for key in range(rounds):
        rounded = reference.narrow(value, dtype, rng.halves(key, LEAF, 0, n))
        total += rounded.double()
    spacing = (torch.nextafter(low, torch.full_like(low, math.inf)).double() - low.double()).abs()
    error = (total / rounds - value.double()) / spacing
    assert error.abs().max() < 5 * 0.5 / math.sqrt(rounds) + 2**-13
    assert abs(error.mean()) < 5 * 0.5 / math.sqrt(rounds * n) + 2**-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_keeps_what_is_representable(dtype):
    special = torch.tensor([0.0, 1.0, -2.5, 6e-8, 65504.0, math.inf, -math.inf]).to(dtype)
    p = torch.cat([special, weights(1000, dtype)])
    still = kernels.program([(1.0, [1], [0.0])], rounding=[3])
    assert same_bits(kernels.sweep(torch.empty_like(p), p, still, leaf=LEAF), p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiny_updates_survive_in_16_bits_on_average(dtype):
    """Rounding to nearest loses every update below half a unit in the last place; stochastic rounding loses none."""
    p = torch.full((20000,), 0.1, dtype=dtype)
    step = kernels.program([(1.0, [1], [1e-6])], rounding=[8])
    z = kernels.sweep(torch.zeros(20000), torch.zeros(20000), kernels.program([(1.0, [1], [1.0])]), leaf=LEAF)
    moved = (kernels.sweep(torch.empty_like(p), p, step, leaf=LEAF).double() - p.double()) * z.double()
    spread = moved.std() / math.sqrt(len(p))
    assert abs(moved.mean() - 1e-6) < 5 * spread
    nearest = kernels.sweep(torch.empty_like(p), p, step._replace(rounding=step.rounding[:0]), leaf=LEAF)
    assert same_bits(nearest, p)


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("gaussian", [False, True])
def test_one_fused_program_equals_step_after_step(dtype, gaussian):
    p = weights(5000, dtype)
    steps = [(1.0 - 1e-3 * (t % 2), [t, t + 100], [1e-3, -5e-4 * t]) for t in range(20)]
    fused = kernels.program(steps, gaussian=gaussian, rounding=range(20))
    once = kernels.sweep(p.clone(), p, fused, leaf=LEAF)
    for t, step in enumerate(steps):
        kernels.sweep(p, p, kernels.program([step], gaussian=gaussian, rounding=[t]), leaf=LEAF)
    assert same_bits(once, p)


def test_other_dtypes_are_refused():
    p = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        kernels.sweep(p, p, kernels.program([(1.0, [1], [1.0])]), leaf=LEAF)

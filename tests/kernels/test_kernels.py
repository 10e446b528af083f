"""The fused kernels: the same bits on every backend, and honest rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradless import kernels, rng
from gradless.kernels import reference
from gradless.kernels.program import Region, on
from gradless.rng import GAUSSIAN, RADEMACHER, Stream

pytest.importorskip("numba", reason="the CPU kernels need numba")
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
LEAF = rng.leaf_id("leaf")
STREAMS = [RADEMACHER, GAUSSIAN, Stream("low_rank", 5), Stream("low_rank", 32), Stream("factor", 7)]
BASIS = 2**127 + 2**70  # second key of a low-rank stream; the others ignore it


def run(monkeypatch, backend, out, p, program, **options):
    with monkeypatch.context() as patch:
        patch.setenv("GRADLESS_KERNELS", backend)
        return kernels.sweep(out, p, program, leaf=LEAF, **options)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(BITS[a.dtype]), b.contiguous().view(BITS[b.dtype]))


def whole(p):
    return Region(LEAF, torch.zeros(1, dtype=torch.int64), p.numel(), p.numel() // p.shape[0])


def weights(n, dtype, seed=0):
    return (rng.normal(seed, "weights", (n,)) * 0.02).to(dtype)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("rounding", [(), (5, 2**64 - 1)])
@pytest.mark.parametrize("n", [1, 7, 127, 128, 129, 4095, 4097, 70001])
def test_numba_equals_reference(monkeypatch, stream, dtype, rounding, n):
    p = weights(n, dtype)
    steps = [(1.0, [3, BASIS + 2**63 + 5], [1e-3, -2e-4]), (0.999, [77], [3e-5])]
    program = kernels.program(steps, rounding=rounding)
    results = [
        run(monkeypatch, b, torch.empty_like(p), p, program, stream=stream, amplitude=0.7)
        for b in ("numba", "reference")
    ]
    assert same_bits(*results)
    assert not same_bits(results[0], p)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_values_of_16_bits_in_place(monkeypatch, dtype, stochastic):
    """Zeros, subnormals, the largest numbers, infinities: whole tiles in place, which may take a path of their own."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    for n, coeff in ((2**16, 0.0), (2**16, 1e-3), (2**16 - 37, 3e-7), (2**16, -6e4), (2**16, 2.0**120)):
        program = kernels.program([(0.999, [3], [coeff])], rounding=[5] if stochastic else ())
        own, expected = values[:n].clone(), values[:n].clone()
        for p, backend in ((own, "numba"), (expected, "reference")):
            run(monkeypatch, backend, p, p, program)
        defined = ~expected.isnan()
        assert torch.equal(own.isnan(), ~defined)
        assert same_bits(own[defined], expected[defined])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(5,), (3, 7), (2, 3, 65), (130, 33), (1, 1)]),
    dtype=st.sampled_from(kernels.DTYPES),
    stream=st.sampled_from(STREAMS),
    layout=st.sampled_from(["packed", "transposed", "strided"]),
    masked=st.booleans(),
    stochastic=st.booleans(),
    keys=st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=3),
)
def test_any_shape_stride_and_mask(shape, dtype, stream, layout, masked, stochastic, keys):
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
    program = kernels.program([(0.99, keys, [1e-2] * len(keys))], rounding=[9] if stochastic else ())
    expected = torch.empty_like(base)
    reference.sweep(
        expected.view(-1), base.view(-1), whole(base), on(program, stream, 1.0), None if mask is None else mask.view(-1)
    )
    kernels.sweep(p, p, program, leaf=LEAF, stream=stream, mask=mask)
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


@pytest.mark.parametrize("stream", STREAMS)
def test_z_does_not_depend_on_dtype(stream):
    program = kernels.program([(1.0, [4], [1.0])])
    z = [
        kernels.sweep(torch.zeros(37, 27, dtype=d), torch.zeros(37, 27, dtype=d), program, leaf=LEAF, stream=stream)
        for d in kernels.DTYPES
    ]
    for other in z[1:]:
        assert torch.equal(z[0].to(other.dtype), other)


@pytest.mark.few(3)
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
    nearest = kernels.sweep(torch.empty_like(p), p, step.to_nearest(), leaf=LEAF)
    assert same_bits(nearest, p)


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("stream", STREAMS)
def test_one_fused_program_equals_step_after_step(dtype, stream):
    p = weights(5000, dtype).view(50, 100)
    steps = [(1.0 - 1e-3 * (t % 2), [t, BASIS + (t % 3 << 64) + t + 100], [1e-3, -5e-4 * t]) for t in range(20)]
    fused = kernels.program(steps, rounding=range(20))
    once = kernels.sweep(p.clone(), p, fused, leaf=LEAF, stream=stream)
    for t, step in enumerate(steps):
        kernels.sweep(p, p, kernels.program([step], rounding=[t]), leaf=LEAF, stream=stream)
    assert same_bits(once, p)


def test_other_dtypes_are_refused():
    p = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        kernels.sweep(p, p, kernels.program([(1.0, [1], [1.0])]), leaf=LEAF)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(5,), (3, 7), (2, 3, 65), (130, 33), (70, 100)]),
    dtype=st.sampled_from(kernels.DTYPES),
    stream=st.sampled_from(STREAMS),
    transposed=st.booleans(),
    masked=st.booleans(),
    mirrored=st.booleans(),
    keep=st.booleans(),
    updates=st.integers(0, 3),
)
def test_a_fan_is_an_update_and_sweeps_from_it(shape, dtype, stream, transposed, masked, mirrored, keep, updates):
    """One visit gives the bits of an update in place and of one sweep for each branch."""
    base = weights(math.prod(shape), dtype).reshape(shape)
    p = (
        base.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)
        if transposed
        else base.clone()
    )
    mask = (rng.rademacher(1, 2, 0, base.numel()) > 0).reshape(shape) if masked else None
    options = {"leaf": LEAF, "stream": stream, "mask": mask}
    update = kernels.program([(0.999, [t, BASIS + 9], [1e-3, 2e-4]) for t in range(updates)], rounding=range(updates))
    probes = kernels.program([(1.0, [70], [1e-3]), (1.0, [BASIS + 71], [3e-3])], rounding=[8, 9])
    outs = torch.empty(4 if mirrored else 2, *shape, dtype=dtype)
    kernels.fan(outs, p, update, probes, mirrored=mirrored, keep=keep, amplitudes=(0.5, 2.0), **options)

    after = kernels.sweep(torch.empty_like(base), base, update, amplitude=0.5, **options)
    assert same_bits(p, after if keep else base)
    for b, (key, eps) in enumerate([(70, 1e-3), (BASIS + 71, 3e-3)]):
        for s, sign in enumerate((1, -1) if mirrored else (1,)):
            nudge = kernels.program([(1.0, [key], [sign * eps])], rounding=[8 + b])
            expected = kernels.sweep(torch.empty_like(base), after, nudge, amplitude=2.0, **options)
            assert same_bits(outs[2 * b + s if mirrored else b], expected)


@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("stream", STREAMS)
def test_numba_fans_equal_the_reference(monkeypatch, stream, dtype):
    base = weights(130 * 77, dtype).view(130, 77)
    rows = torch.tensor([129, 3, 3, 0])
    update = kernels.program([(1.0, [1], [1e-2]), (0.9, [BASIS + 2, 3], [1e-2, -1e-3])], rounding=[5, 6])
    probes = kernels.program([(1.0, [70, 71], [1e-3, 2e-3])], rounding=[8])
    outputs = {}
    for name in ("numba", "reference"):
        with monkeypatch.context() as patch:
            patch.setenv("GRADLESS_KERNELS", name)
            p, outs, part = base.clone(), torch.empty(2, 130, 77, dtype=dtype), torch.empty(2, 4, 77, dtype=dtype)
            options = {"leaf": LEAF, "mirrored": True, "stream": stream}
            kernels.fan(part, p, update, probes, keep=False, rows=rows, **options)
            kernels.fan(outs, p, update, probes, keep=True, **options)
            outputs[name] = (p, outs, part)
    for one, other in zip(*outputs.values(), strict=True):
        assert same_bits(one, other)
    assert same_bits(part, outs[:, rows])


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("mirrored", [True, False])
def test_many_fans_at_once_equal_fans_one_by_one(monkeypatch, backend, mirrored):
    """Leaves of all shapes, layouts, dtypes and streams, masked or not, kept or not, with updates of their own."""
    monkeypatch.setenv("GRADLESS_KERNELS", backend)
    shapes = [(), (1,), (5,), (128,), (3, 7), (64, 33), (0, 4), (70, 60)]
    fans = []
    for i in range(3 * len(shapes) * len(kernels.DTYPES)):
        shape, dtype = shapes[i % len(shapes)], kernels.DTYPES[i // len(shapes) % 3]
        p = weights(math.prod(shape), dtype, i).reshape(shape)
        if i % 5 == 0 and len(shape) == 2:
            p = p.T.contiguous().T
        updates = kernels.program([(0.999, [t, BASIS + t], [1e-2, 3e-3]) for t in range(i % 4)], rounding=range(i % 4))
        probes = kernels.program([(1.0, [70 + i], [1e-3]), (1.0, [BASIS + 71, 72], [3e-3, 1e-2])], rounding=[8, 9])
        stream = STREAMS[i % 7 % len(STREAMS)]
        mask = (rng.rademacher(1, i, 0, p.numel()) > 0).reshape(shape) if i % 3 == 0 else None
        outs = torch.empty(4 if mirrored else 2, *shape, dtype=dtype)
        fans.append(kernels.Fan(outs, p, updates, probes, 1000 + i, i % 2 == 0, stream, (0.5, 1.0 + i % 3), mask))
    expected = []
    for one in fans:
        arguments = one._replace(outs=torch.empty_like(one.outs), p=one.p.clone())._asdict()
        kernels.fan(**arguments, mirrored=mirrored)
        expected.append(arguments)
    kernels.fan_many(fans, mirrored=mirrored)
    for one, other in zip(fans, expected, strict=True):
        assert same_bits(one.outs, other["outs"])
        assert same_bits(one.p, other["p"])


def test_low_rank_elements_are_what_the_factors_say():
    stream, key, shape = Stream("low_rank", 6), BASIS + 12345, (40, 9, 5)
    u = rng.signs(6, key & rng.MASK64, LEAF, 0, 40)
    v = rng.signs(6, key >> 64, LEAF, 0, 45)
    p = torch.zeros(shape)
    kernels.sweep(p, p, kernels.program([(1.0, [key], [1.0])]), leaf=LEAF, stream=stream)
    torch.testing.assert_close(p.view(40, 45), u @ v.T / 6**0.5)
    assert torch.linalg.matrix_rank(p.view(40, 45)) == 6


@pytest.mark.sweep
def test_low_rank_directions_have_unit_variance_and_no_correlation():
    """Over many keys: mean 0, variance 1, and no correlation within a row, a column, or between queries."""
    stream, n = Stream("low_rank", 4), 2000
    z = torch.stack([rng.draw(stream, (t + 7) << 64 | t, LEAF, 0, 12, 4) * stream.unit for t in range(n)])
    bound = 5 / n**0.5
    assert z.mean(0).abs().max() < bound
    assert (z.T @ z / n - torch.eye(12)).abs().max() < 2 * bound
    shared = torch.stack([rng.draw(stream, 7 << 64 | t, LEAF, 0, 12, 4) * stream.unit for t in range(n)])
    assert (shared[1:] * shared[:-1]).mean(0).abs().max() < 2 * bound  # one V, but a new U each time


def test_a_missing_triton_is_said_once(monkeypatch):
    monkeypatch.delenv("GRADLESS_KERNELS", raising=False)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    kernels._module.cache_clear()
    try:
        with pytest.warns(UserWarning, match="triton is not installed.*pip install triton"):
            assert kernels.backend(torch.device("cuda")) is None
        assert kernels.backend(torch.device("cuda")) is None  # no second warning, which would be an error
    finally:
        kernels._module.cache_clear()

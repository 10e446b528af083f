"""Leaves of codes: whole numbers in a range, the same on every backend; and the ternary directions that move them."""

from __future__ import annotations

import math

import pytest
import torch

from gradless import kernels, rng
from gradless.kernels import reference
from gradless.kernels.program import NOTHING, FlatFan, Region, on
from gradless.rng import GAUSSIAN, RADEMACHER, Stream
from silent_driver import cuda_kernels

LEAF = rng.leaf_id("leaf")
TERNARY = Stream("ternary", 1000)
STREAMS = [TERNARY, Stream("ternary", 1 << 15), RADEMACHER, GAUSSIAN, Stream("low_rank", 5)]
UPDATE = kernels.program([(1.0, [3, 2**63 + 5], [7.5, -0.4]), (0.97, [77], [30.0])], rounding=(5, 2**64 - 1))
PROBES = kernels.program([(1.0, [70], [1.0]), (1.0, [71, 8], [3.25, 0.5])], rounding=[8, 9])


def codes(shape, highest):
    return (rng.halves(4, LEAF, 0, math.prod(shape)) % (highest + 1)).to(torch.uint8).reshape(shape)


def region_of(p, highest):
    return Region(LEAF, torch.zeros(1, dtype=torch.int64), p.numel(), p.numel() // p.shape[0], highest)


def every(module, p, highest, stream, mirrored, mask=None, stochastic=True):
    """What a kernel module makes of a leaf: after an update, and at two or four points, with the leaf as it is then."""
    update, probes = (one if stochastic else one.to_nearest() for one in (UPDATE, PROBES))
    update, probes = on(update, stream, 1.0), on(probes, stream, 1.0)
    flat, region = p.clone().view(-1), region_of(p, highest)
    out, outs = torch.empty_like(flat), torch.empty(4 if mirrored else 2, flat.numel(), dtype=torch.uint8)
    module.sweep(out, flat, region, update, mask)
    module.fan(outs, flat, region, update, probes, mirrored, True, mask)
    return out, outs, flat


@pytest.fixture(scope="module")
def triton_kernels():
    pytest.importorskip("triton", reason="the CUDA kernels need triton, which comes with CUDA builds of torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield cuda_kernels(interpreted=True)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("highest", "shape"), [(15, (5, 27)), (31, (1, 1)), (63, (130, 65)), (255, (3, 1400))])
@pytest.mark.parametrize("stochastic", [True, False])
def test_numba_equals_reference(stream, highest, shape, stochastic):
    cpu = pytest.importorskip("gradless.kernels.cpu", reason="the CPU kernels need numba")
    p, mask = codes(shape, highest), rng.rademacher(1, 2, 0, math.prod(shape)) > 0
    for mirrored, chosen in ((True, None), (False, None), (True, mask)):
        results = [every(m, p, highest, stream, mirrored, chosen, stochastic) for m in (cpu, reference)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("stream", STREAMS[:2])
@pytest.mark.parametrize(("highest", "shape"), [(15, (5, 27)), (255, (3, 170))])
@pytest.mark.parametrize("stochastic", [True, False])
def test_triton_equals_reference(triton_kernels, stream, highest, shape, stochastic):
    p, mask = codes(shape, highest), rng.rademacher(1, 2, 0, math.prod(shape)) > 0
    for mirrored, chosen in ((True, None), (False, mask)):
        results = [every(m, p, highest, stream, mirrored, chosen, stochastic) for m in (triton_kernels, reference)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_triton_visits_many_leaves_of_codes_at_once(triton_kernels):
    probes, leaves = on(PROBES, TERNARY, 1.0), [codes((size, 16), 15) for size in (1, 9, 33)]
    outs = [torch.empty(4, p.numel(), dtype=torch.uint8) for p in leaves]
    flat = [
        FlatFan(out, p.view(-1), region_of(p, 15), on(NOTHING, TERNARY, 1.0), probes, None)
        for out, p in zip(outs, leaves, strict=True)
    ]
    triton_kernels.fan_many(flat, True, False)
    for one in flat:
        expected = torch.empty_like(one.outs)
        reference.fan(expected, one.p, one.region, one.update, one.probes, True, False, None)
        assert torch.equal(one.outs, expected)


def test_rounding_is_unbiased_and_stays_in_the_range():
    value, rounds = torch.linspace(-2, 17, 400), 600
    total = sum(reference.to_codes(value, 15, rng.halves(key, LEAF, 0, 400)).double() for key in range(rounds))
    assert (total / rounds - value.clamp(0, 15).double()).abs().max() < 5 * 0.5 / math.sqrt(rounds)
    odd = reference.to_codes(torch.tensor([math.nan, math.inf, -math.inf, 0.5, 1.5, 15.4]), 15, None)
    assert odd.tolist() == [0, 15, 0, 0, 2, 15]


def test_one_code_either_way_and_back():
    """A probe of one code moves the codes where z is not zero, and none out of the range."""
    p = codes((64, 64), 15)
    z = rng.draw(TERNARY, 70, LEAF, 0, p.numel(), 64).view(p.shape)
    outs = torch.empty(2, *p.shape, dtype=torch.uint8)
    probe = kernels.program([(1.0, [70], [TERNARY.unit**-1])], rounding=[8])
    kernels.fan(outs, p, NOTHING, probe, leaf=LEAF, mirrored=True, keep=False, stream=TERNARY, highest=15)
    for out, sign in zip(outs, (1, -1), strict=True):
        assert torch.equal(out.float(), (p.float() + sign * z).clamp(0, 15))


def test_an_update_moves_a_code_with_its_probability():
    p, share = torch.full((400, 500), 7, dtype=torch.uint8), 0.3
    update = kernels.program([(1.0, [70], [share / TERNARY.unit])], rounding=[8])
    moved = kernels.sweep(torch.empty_like(p), p, update, leaf=LEAF, stream=TERNARY, highest=15).float() - 7
    z = rng.draw(TERNARY, 70, LEAF, 0, p.numel(), 500).view(p.shape)
    assert torch.equal(moved[z == 0], torch.zeros(int((z == 0).sum())))
    rate, count = float((moved * z)[z != 0].mean()), int((z != 0).sum())
    assert set(moved.unique().tolist()) == {-1, 0, 1}
    assert abs(rate - share) < 5 * math.sqrt(share * (1 - share) / count)


def test_ternary_stream():
    """Of each sign half of the density, no correlation between neighbours, keys and leaves."""
    n = 1 << 19
    draws = [rng.draw(TERNARY, key, leaf, 0, n, 1) for key, leaf in ((1, LEAF), (2, LEAF), (1, LEAF + 1))]
    rate = 1000 / 2**15
    for z in draws:
        assert set(z.unique().tolist()) == {-1, 0, 1}
        for sign in (1, -1):
            assert abs(float((z == sign).double().mean()) - rate / 2) < 5 * math.sqrt(rate / 2 / n)
    first = draws[0]
    for lag in (1, 2, 8, 64):
        assert abs(float((first[:-lag] * first[lag:]).sum())) < 5 * rate * math.sqrt(n)
    for other in draws[1:]:
        assert abs(float((first * other).sum())) < 5 * rate * math.sqrt(n)
    assert torch.equal(rng.draw(TERNARY, 1, LEAF, 1001, 77, 1), first[1001:1078])
    assert abs(float((TERNARY.unit * first).var()) - 1) < 0.05
    assert (rng.draw(Stream("ternary", 1 << 15), 1, LEAF, 0, 4096, 1) != 0).all()


def test_a_leaf_of_codes_needs_its_range():
    p = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="highest"):
        kernels.sweep(p, p, UPDATE, leaf=LEAF)
    with pytest.raises(ValueError, match="highest"):
        kernels.sweep(torch.zeros(4), torch.zeros(4), UPDATE, leaf=LEAF, highest=15)


def test_whole_steps_need_no_dice_and_give_the_same_codes():
    p = codes((40, 40), 15)
    whole = kernels.program([(1.0, [70], [1 / TERNARY.unit])], rounding=[8])
    assert not on(whole, TERNARY, 1.0, 15).rounding.size
    for other in (on(whole, TERNARY, 0.5, 15), on(whole, TERNARY, 1.0), on(whole, GAUSSIAN, TERNARY.unit, 15)):
        assert other.rounding.size
    diced, plain = torch.empty(p.numel(), dtype=torch.uint8), torch.empty(p.numel(), dtype=torch.uint8)
    reference.sweep(diced, p.view(-1), region_of(p, 15), on(whole, TERNARY, 1.0), None)
    reference.sweep(plain, p.view(-1), region_of(p, 15), on(whole, TERNARY, 1.0, 15), None)
    assert torch.equal(diced, plain)

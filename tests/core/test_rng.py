"""Known answers and statistics of the counter streams."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch

from gradless import rng

STREAMS = {"rademacher": rng.rademacher, "gaussian": rng.gaussian}
N = 1 << 20


@pytest.fixture(params=sorted(STREAMS))
def draw(request):
    return STREAMS[request.param]


# Random123 known-answer vectors of philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    assert rng.philox(counter, key) == words
    first = counter[0] | counter[1] << 32
    if first < 1 << 62:  # the tensor form counts blocks in signed 64 bits
        leaf = counter[2] | counter[3] << 32
        block = rng.philox_blocks(first, 1, leaf, key[0] | key[1] << 32)
        assert tuple(block[0].tolist()) == words


def test_tensor_philox_equals_integer_philox():
    leaf, key = 0xFEDCBA9876543210, 0x8F1E2D3C4B5A6978
    for first in (0, 2**32 - 2):  # across the carry into the upper counter word
        blocks = rng.philox_blocks(first, 4, leaf, key)
        for i, row in enumerate(blocks.tolist()):
            block = first + i
            counter = (block & rng.MASK32, block >> 32, leaf & rng.MASK32, leaf >> 32)
            assert tuple(row) == rng.philox(counter, (key & rng.MASK32, key >> 32))


def test_normal_table_is_pinned_and_standard():
    table = rng.normal_table()
    digest = hashlib.sha256(table.numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "c5f5ea2d3eff3897271e7e3760dfed060d7fb6d24ef430c0e5626e20d41211b3"
    wide = table.double()
    assert wide.sum() == 0
    assert abs(wide.square().mean() - 1) < 2e-8
    assert torch.equal(table, table.sort().values)


def test_no_table_entry_is_near_a_rounding_boundary():
    # Another libm may differ in the last bit of a logarithm; no entry may depend on it.
    import statistics

    inverse = statistics.NormalDist().inv_cdf
    upper = np.array([inverse((j + 0.5) / 65536) for j in range(32768, 65536)])
    upper /= np.sqrt(np.mean(upper**2))
    fraction = (upper * 65536) % 1
    assert np.abs(fraction - 0.5).min() > 1e-7


def test_moments(draw):
    z = draw(rng.direction_key(0, 0, 0), rng.leaf_id("w"), 0, N).double()
    assert abs(z.mean()) < 5 / math.sqrt(N)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
    kurtosis = {"rademacher": 1.0, "gaussian": 3.0}[draw.__name__]
    assert abs((z**4).mean() - kurtosis) < 5 * math.sqrt(96 / N) + 1e-3


def test_no_correlation_between_what_must_be_independent(draw):
    """Leaves, steps, queries, seeds and neighbouring elements: 5-sigma tests on every pair."""
    key, leaf = rng.direction_key(0, 0, 0), rng.leaf_id("layer.0.weight")
    streams = [
        draw(key, leaf, 0, N),
        draw(key, rng.leaf_id("layer.1.weight"), 0, N),
        draw(rng.direction_key(0, 1, 0), leaf, 0, N),
        draw(rng.direction_key(0, 0, 1), leaf, 0, N),
        draw(rng.direction_key(1, 0, 0), leaf, 0, N),
        draw(key, leaf, N, N),
    ]
    for a, b in itertools.combinations(streams, 2):
        assert abs(torch.dot(a.double(), b.double()).item()) / N < 5 / math.sqrt(N)
    z = streams[0].double()
    for lag in (1, 2, 7, 8, 31, 32, 33, 127, 128, 129, 1024):
        assert abs(torch.dot(z[:-lag], z[lag:]).item()) / (N - lag) < 5 / math.sqrt(N - lag)


def test_every_bit_of_a_word_is_balanced():
    z = rng.rademacher(rng.direction_key(3, 4, 0), rng.leaf_id("w"), 0, N).reshape(-1, 128).double()
    assert z.mean(0).abs().max() < 5 / math.sqrt(len(z))
    correlation = (z.T @ z) / len(z) - torch.eye(128)
    assert correlation.abs().max() < 5.5 / math.sqrt(len(z))


def test_gaussian_passes_kolmogorov_smirnov():
    z = rng.gaussian(rng.direction_key(5, 0, 0), rng.leaf_id("w"), 0, N).double().sort().values
    cdf = torch.special.ndtr(z)
    steps = torch.arange(1, N + 1) / N
    distance = torch.maximum((steps - cdf).abs().max(), (cdf - (steps - 1 / N)).abs().max())
    assert distance < 1.95 / math.sqrt(N)  # p = 0.001


def test_low_steps_and_queries_have_distinct_keys():
    keys = {rng.direction_key(seed, step, k) for seed in range(3) for step in range(200) for k in range(8)}
    assert len(keys) == 3 * 200 * 8
    assert not keys & {rng.rounding_key(seed, step) for seed in range(3) for step in range(200)}


@pytest.mark.parametrize(("start", "count"), [(0, 5), (3, 1), (127, 2), (120, 300), (1000, 4097)])
def test_a_window_is_a_slice_of_the_stream(draw, start, count):
    whole = draw(11, 22, 0, 6000)
    assert torch.equal(draw(11, 22, start, count), whole[start : start + count])


@pytest.mark.sweep
def test_permutation_is_uniform():
    counts = np.zeros((4, 4))
    for seed in range(2400):
        counts[np.arange(4), rng.permutation(4, seed, "train")] += 1
    chi2 = ((counts - 600) ** 2 / 600).sum()
    assert chi2 < 30  # 9 degrees of freedom: p < 0.0005


def test_nothing_touches_the_global_generators(draw):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(1, 2, 0, 100)
    rng.normal(0, "a", (3, 4))
    rng.permutation(10, 0, "x")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_uniform_numbers_fill_the_interval():
    drawn = rng.uniform(3, "here", (100_000,))
    assert drawn.dtype == torch.float64
    assert 0.0 <= drawn.min() < 1e-3 < 1 - 1e-3 < drawn.max() < 1.0
    counts = torch.histc(drawn, 64, 0.0, 1.0)
    chi_square = float(((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum())
    assert 25 < chi_square < 118  # 63 degrees of freedom: outside once in 10,000 samples or less
    assert abs(float(torch.corrcoef(torch.stack((drawn[:-1], drawn[1:])))[0, 1])) < 4 / 100_000**0.5
    assert len(drawn.unique()) == len(drawn)  # 53 bits, not 24


def test_uniform_numbers_are_named():
    assert torch.equal(rng.uniform(3, "here", (5,)), rng.uniform(3, "here", (7,))[:5])
    assert not torch.equal(rng.uniform(3, "here", (5,)), rng.uniform(4, "here", (5,)))
    assert not torch.equal(rng.uniform(3, "here", (5,)), rng.uniform(3, "there", (5,)))
    assert rng.uniform(0, "x", (2, 3)).shape == (2, 3)
    assert rng.uniform(0, "x", ()).shape == ()


def test_names_that_are_used_once_take_no_memory_for_ever():
    """A sampled run has one for every row of every step."""
    ids = [rng.leaf_id(f"step/{step}/0") for step in range(20_000)]
    assert len(set(ids)) == len(ids)
    info = rng.leaf_id.cache_info()
    assert info.maxsize is not None
    assert info.currsize <= info.maxsize < len(ids)

"""Agreement with the classes of ByzFL 0.0.11 that can be trusted, on its NumPy float64 path.

Not compared: CAF and SMEA (one power iteration from an unseeded vector) and centred clipping (the start cannot be
given). To run: ``pip install --no-deps byzfl==0.0.11``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradless.collab.aggregators import (
    arc,
    bucketing,
    clipping,
    compose,
    geometric_median,
    krum,
    mda,
    meamed,
    mean,
    median,
    multi_krum,
    nna,
    nnm,
    trimmed_mean,
)


def rows(n, width=50, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, width))
    x[1] *= 3  # two that stand out
    x[-1] += 1.5
    return x


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (lambda f: mean(), "Average", lambda f: {}),
        (lambda f: median(), "Median", lambda f: {}),
        (lambda f: trimmed_mean(f=f), "TrMean", lambda f: {"f": f}),
        (lambda f: krum(f=f), "Krum", lambda f: {"f": f}),
        (lambda f: multi_krum(f=f), "MultiKrum", lambda f: {"f": f}),
        (lambda f: nna(f=f), "MoNNA", lambda f: {"f": f, "idx": 2}),
        (lambda f: meamed(f=f), "Meamed", lambda f: {"f": f}),
        (lambda f: mda(f=f), "MDA", lambda f: {"f": f}),
        (
            lambda f: geometric_median(nu=0.1, iterations=3, tolerance=0.0, start="origin"),
            "GeometricMedian",
            lambda f: {"nu": 0.1, "T": 3},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (9, 2), (10, 3), (7, 0)])
def test_rules(byzfl, ours, theirs, options, n, f):
    for seed in range(3):
        x = rows(n, seed=seed)
        expected = getattr(byzfl, theirs)(**options(f))(x.copy())
        assert np.allclose(ours(f)(torch.from_numpy(x), pivot=2).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (nnm(f=2), "NNM", {"f": 2}),
        (clipping(norm=5.0), "Clipping", {"c": 5.0}),
        (arc(f=2), "ARC", {"f": 2}),
        (arc(f=0), "ARC", {"f": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("n", [5, 8, 10])  # 2 f / n is exact or harmless in binary: ByzFL rounds k down from a float
def test_pre_aggregators(byzfl, ours, theirs, options, n):
    x = rows(n)
    expected = getattr(byzfl, theirs)(**options)(x.copy())
    assert np.allclose(ours(torch.from_numpy(x)).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_composition(byzfl):
    x = rows(10)
    expected = byzfl.TrMean(f=2)(byzfl.NNM(f=2)(x.copy()))
    assert np.allclose(compose(nnm(f=2), trimmed_mean(f=2))(torch.from_numpy(x)).numpy(), expected)


def test_buckets_of_one_are_the_rows(byzfl):
    x = rows(6)
    expected = byzfl.Bucketing(s=1)(x.copy())
    buckets = bucketing(size=1)(torch.from_numpy(x)).numpy()
    assert np.array_equal(np.sort(buckets, 0), np.sort(expected, 0))

"""Exact rules over many steps at once: the bits of one step after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradless.collab.aggregation import exact, exact_batches
from gradless.collab.network.exchange import agreed

NAMES = [*exact.RULES, *(f"nnm+{name}" for name in exact.RULES)]


def odd_terms(draw: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Terms of every kind of sum: plain, of very unequal sizes, that cancel, half-way between two float64."""
    plain = draw.standard_normal((count, width))
    unequal = plain * 2.0 ** draw.integers(-200, 200, plain.shape)
    cancels = np.concatenate([plain[:, 1:], -plain[:, 1:].sum(1, keepdims=True)], 1)
    halves = np.round(4 * plain) * 2.0 ** draw.choice([0, -52, -53, -54, -106], plain.shape)
    tiny = np.round(4 * plain) * 2.0 ** draw.choice([-1074.0, -1060.0, -1020.0], plain.shape)
    zeros = np.where(plain > 0, 0.0, -0.0)
    return np.concatenate([plain, unequal, cancels, halves, tiny, zeros, (plain.astype("f4") - 1.0) ** 2])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 33])
def test_sums_have_the_bits_of_fsum(width, monkeypatch):
    terms = odd_terms(np.random.default_rng(width), 400, width)
    expected = np.array([math.fsum(row) for row in terms.tolist()])
    by_fsum = []
    monkeypatch.setattr(exact_batches.math, "fsum", lambda row, fsum=math.fsum: by_fsum.append(1) or fsum(row))
    assert np.array_equal(exact_batches.exact_sums(terms).view(np.int64), expected.view(np.int64))
    assert len(by_fsum) < len(terms) / 10  # the proof holds for nearly all


def test_a_sum_that_is_not_proven_is_summed_by_fsum(monkeypatch):
    terms = np.array([[1.0, 2.0**-53, 2.0**-107, 2.0**-160], [1.0, 2.0**-53, -(2.0**-107), 2.0**-170]])
    expected = [math.fsum(row) for row in terms.tolist()]
    assert expected[0] != expected[1]  # a little above, and a little below half-way
    asked = []
    monkeypatch.setattr(exact_batches.math, "fsum", lambda row, fsum=math.fsum: asked.append(row) or fsum(row))
    assert exact_batches.exact_sums(terms).tolist() == expected
    assert asked


@pytest.mark.parametrize("name", NAMES)
def test_many_steps_have_the_bits_of_one_after_the_other(name, monkeypatch):
    monkeypatch.setattr(exact_batches, "TERMS", 5000)  # several pieces
    draw = np.random.default_rng(3)
    for n, f, width in ((4, 1, 1), (7, 2, 4), (10, 3, 5)):
        rows = draw.standard_normal((60, n, width)) * 10.0 ** draw.integers(-3, 4, (60, 1, 1))
        rows = rows.astype(np.float32)
        rows[10:20] = rows[10:20].round()  # equal distances
        rows[20:30, 1:3] = rows[20:30, :1]  # copies
        rows[30:35] = 0.0
        rows[35:40] *= np.float32(-0.0)
        rows[40:45] = np.float32(3e38)
        rule = exact.named(name, f=f)
        one_by_one = np.stack([agreed(rule, torch.from_numpy(step)).numpy() for step in rows])
        assert np.array_equal(exact_batches.mix_steps(rule, rows, f=f).view(np.int32), one_by_one.view(np.int32))
    assert exact_batches.mix_steps(rule, rows[:0], f=3).shape == (0, 5)

"""Scores from many steps: who disagrees with everybody else, with equal bits whatever adds up the numbers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from gradless.collab.aggregation.pair_scores import FEWEST, Memory, left_out, pair_scores, t_value


def group(steps: int = 100, peers: int = 7, liars: int = 2, *, signal: float = 0.7, seed: int = 0) -> np.ndarray:
    """Rows with a common part, which the last peers turn round."""
    drawn = np.random.default_rng(seed)
    rows = signal * drawn.standard_normal((steps, 1, 4)) + drawn.standard_normal((steps, peers, 4))
    rows[:, peers - liars :] *= -1
    return rows.astype(np.float32)


def test_liars_who_push_against_the_others_score_low_and_are_left_out() -> None:
    scores = pair_scores(group())
    assert all(score is not None and score > 0 for score in scores[:5])
    assert all(score is not None and score < -3 for score in scores[5:])
    assert left_out(scores, 2) == (5, 6)
    assert left_out(scores, 1) in ((5,), (6,))
    assert left_out(scores, 0) == ()


def test_nobody_is_left_out_where_nobody_lies() -> None:
    assert left_out(pair_scores(group(liars=0)), 2) == ()
    assert left_out(pair_scores(group(liars=0, signal=0.0)), 2) == ()


def test_the_score_is_the_median_t_value_of_the_pairs() -> None:
    rows = group(steps=60, peers=4, liars=1)
    products = (rows[:, 0].astype(np.float64) * rows[:, 1]).ravel()
    expected = products.mean() / products.std(ddof=1) * math.sqrt(len(products))
    pairs = [t_value((rows[:, 0].astype(np.float64) * rows[:, other]).ravel().tolist()) for other in (1, 2, 3)]
    assert pairs[0] == pytest.approx(expected, rel=1e-12)
    assert pair_scores(rows)[0] == sorted(pairs)[1]


def test_steps_without_a_row_do_not_count_and_too_few_give_no_score() -> None:
    rows = group(steps=80, peers=4, liars=0)
    rows[:40, 3] = np.nan
    later = rows[40:]
    assert pair_scores(rows)[3] == pair_scores(later)[3]
    rows[: 80 - FEWEST + 1, 3] = np.nan
    assert pair_scores(rows)[3] is None
    assert all(score is not None for score in pair_scores(rows)[:3])
    assert pair_scores(rows[:0]) == [None] * 4


def test_sums_are_rounded_once_so_the_order_of_steps_changes_no_bit() -> None:
    rows = group(steps=100, peers=4, liars=0) * np.float32(1e3)
    rows[::7] *= np.float32(1e-6)
    order = list(range(100))
    random.Random(1).shuffle(order)
    assert pair_scores(rows) == pair_scores(rows[order])
    plain = (rows[:, 0].astype(np.float32) * rows[:, 1]).ravel()  # control: float32 sums do depend on it
    assert float(np.cumsum(plain)[-1]) != float(np.cumsum(plain.reshape(100, 4)[order].ravel())[-1])


def test_zeros_and_constants_are_no_errors() -> None:
    assert t_value([0.0] * 40) == 0.0
    assert t_value([1.0] * 40) == math.inf
    assert t_value([-1.0] * 40) == -math.inf
    assert pair_scores(np.zeros((40, 4, 2), np.float32)) == [0.0] * 4


def test_memory_looks_back_over_its_window_alone() -> None:
    memory, rows = Memory(50), group(steps=150, peers=7, liars=2)
    rows[:100, 5:] *= -1  # honest until step 100
    for step in range(100):
        assert memory.left_out(2) == ()
        memory.append(rows[step])
    for step in range(100, 150):
        memory.append(rows[step])
    assert memory.left_out(2) == (5, 6)
    assert len(memory.rows) == 50

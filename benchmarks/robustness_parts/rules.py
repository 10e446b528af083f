"""The exact rules for many groups at once: NumPy twins of `gradless.collab.aggregation.rules`, compared with them.

Shapes: B groups, n rows, K coefficients; every rule is [B, n, K], f -> [B, K].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import torch

from gradless.collab import aggregators

Rule = Callable[[np.ndarray, int], np.ndarray]


def mean(rows: np.ndarray, f: int) -> np.ndarray:
    return rows.mean(1)


def median(rows: np.ndarray, f: int) -> np.ndarray:
    return np.median(rows, 1)


def trimmed_mean(rows: np.ndarray, f: int) -> np.ndarray:
    return np.sort(rows, 1)[:, f : rows.shape[1] - f].mean(1)


def meamed(rows: np.ndarray, f: int) -> np.ndarray:
    ranks = np.sort(rows, 1)  # of two equally far values the smaller stays
    away = np.abs(ranks - np.median(ranks, 1, keepdims=True))
    near = np.argsort(away, 1, kind="stable")[:, : rows.shape[1] - f]
    return np.take_along_axis(ranks, near, 1).mean(1)


def distances(rows: np.ndarray) -> np.ndarray:
    """Squared distances, [B, n, n]."""
    return np.square(rows[:, :, None] - rows[:, None]).sum(-1)


def krum(rows: np.ndarray, f: int) -> np.ndarray:
    scores = np.sort(distances(rows), 2)[:, :, 1 : rows.shape[1] - f].sum(2)
    return np.take_along_axis(rows, scores.argmin(1)[:, None, None], 1)[:, 0]


def nnm(rows: np.ndarray, f: int) -> np.ndarray:
    """Rows [B, n, K] mixed with their nearest neighbours."""
    n = rows.shape[1]
    near = np.argsort(distances(rows), 2, kind="stable")[:, :, : n - f]
    weights = np.zeros((len(rows), n, n))
    np.put_along_axis(weights, near, 1 / (n - f), 2)
    return weights @ rows


def _mixed(rule: Rule, rows: np.ndarray, f: int) -> np.ndarray:
    return rule(nnm(rows, f), f)


RULES: Final[dict[str, Rule]] = {
    "mean": mean,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "meamed": meamed,
    "krum": krum,
    "nnm+trimmed-mean": partial(_mixed, trimmed_mean),
    "nnm+median": partial(_mixed, median),
    "nnm+krum": partial(_mixed, krum),
}


def compare() -> None:
    """Raise AssertionError unless every twin gives what the rule of gradless does."""
    random = np.random.default_rng(1)
    for name, rule in RULES.items():
        for n, f, width in ((4, 1, 1), (4, 1, 4), (7, 2, 4), (10, 3, 16)):
            rows = random.standard_normal((8, n, width)).astype(np.float32)
            theirs = aggregators.named(name, f=f, n=n)
            for group, own in zip(rows, rule(rows.astype(np.float64), f), strict=True):
                np.testing.assert_allclose(
                    own, theirs(torch.from_numpy(group)).numpy(), rtol=2e-5, atol=2e-6, err_msg=name
                )

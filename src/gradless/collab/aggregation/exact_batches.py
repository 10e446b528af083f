"""Exact rules over the rows of many steps at once, for replays of long logs: the bits of one step after the other.

Rules by columns never mix columns, so those of T steps stand side by side. Distances and means of `exact` are exactly
rounded sums (`math.fsum`), in Python one by one. Here a chain of two-sums (Knuth, The Art of Computer Programming 2,
4.2.2) gives for all of them s + e with |sum - (s + e)| <= b, s being s + e rounded. Where b is 0, or |e| + b less than
half the gap to the next float64 on either side of s, the sum rounded once *is* s. That holds for nearly all sums of a
few numbers; the others are summed by `math.fsum`.

Symbols: T steps, n rows, f of them perhaps Byzantine, K columns.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from gradless.collab.aggregation import exact
from gradless.collab.aggregation.base import Aggregator

Numbers = NDArray[np.float64]
TERMS: Final = 1 << 18
"""About so many terms of sums at a time: they and their errors take a few megabytes."""


def mix_steps(rule: Aggregator, rows: NDArray[np.float32], *, f: int) -> NDArray[np.float32]:
    """Return what an exact rule makes of the rows of every step, float32 [T, K].

    Args:
        rule: from `gradless.collab.aggregation.exact.named`, for rows of this number.
        rows: float32 [T, n, K], all finite.
        f: Byzantine peers that the rule stands.

    Cost: n^2 K operations of NumPy a step behind nearest-neighbour mixing, n K otherwise; Krum goes step by step.
    """
    steps, n, width = rows.shape
    if not steps:
        return np.empty((0, width), np.float32)
    most = max(1, TERMS // (n * n * width))
    if steps > most:
        return np.concatenate([mix_steps(rule, rows[first : first + most], f=f) for first in range(0, steps, most)])
    wide: NDArray[np.float32] | Numbers = rows
    if rule.name.startswith(f"{exact.PRE}+"):
        wide = _nearest_means(rows.astype(np.float64), f)
        rule = exact.named(rule.name.partition("+")[2], f=f)
    if rule.column is None:
        return np.stack([exact.apply(rule, torch.from_numpy(step)).numpy() for step in wide]).astype(np.float32)
    beside = np.ascontiguousarray(wide.transpose(1, 0, 2)).reshape(wide.shape[1], -1)
    mixed = rule.column(torch.from_numpy(beside)).to(torch.float32).numpy()
    result: NDArray[np.float32] = mixed.reshape(steps, width)
    return result


def _nearest_means(rows: Numbers, f: int) -> Numbers:
    """Return `exact.mix_nearest` of every step, float64 [T, n, K], of rows that are finite."""
    steps, n = rows.shape[:2]
    between = rows[:, :, None] - rows[:, None]
    distances = exact_sums(between * between)
    distances[:, range(n), range(n)] = -1.0  # before its equals
    near = np.argsort(distances, axis=2, kind="stable")[:, :, : n - f]
    picked = rows[np.arange(steps)[:, None, None], near]  # [T, n, n - f, K]
    means: Numbers = exact_sums(picked.transpose(0, 1, 3, 2)) / (n - f)
    return means


def exact_sums(terms: Numbers) -> Numbers:
    """Return the exactly rounded sums over the last axis: the bits of `math.fsum`.

    Args:
        terms: finite, and so that no partial sum overflows.

    Cost: 20 operations of NumPy a term, and `math.fsum` for sums whose rounding they do not prove.
    """
    count = terms.shape[-1]
    total = np.zeros(terms.shape[:-1])
    errors = []
    for index in range(count):
        total, error = _two_sum(total, terms[..., index])
        errors.append(error)
    small, left = np.zeros_like(total), np.zeros_like(total)  # errors = small + rests, |rests| <= left
    for error in errors:
        small, rest = _two_sum(small, error)
        left += np.abs(rest)
    total, error = _two_sum(total, small)
    gap = np.minimum(np.nextafter(total, np.inf) - total, total - np.nextafter(total, -np.inf)) / 2
    bound = np.abs(error) + left * (1 + count * 2.0**-52)  # the sum that is `left` was rounded as well
    proven = (left == 0.0) | (bound < gap * (1 - 2.0**-50))  # nothing is left: `total` is the sum, rounded once
    sums: Numbers = total + 0.0  # of zeros of either sign math.fsum makes +0
    for position in np.argwhere(~proven):
        sums[tuple(position)] = math.fsum(terms[tuple(position)].tolist())
    return sums


def _two_sum(a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
    """Return the rounded sum, and by how much the sum is larger: exactly, whatever the sizes of a and b."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)

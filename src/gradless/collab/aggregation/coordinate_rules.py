"""Coordinate rules: every column by itself, sorted and averaged over some of its ranks.

A sorting network (a fixed list of compare-exchanges) sorts all columns at once, so it vectorises over them; the
compiled kernels run it on pieces that fit the first-level cache. Anything that is not a CPU sorts with torch instead
and gives the same bits: ranks are summed one after the other in float64 and rounded once.

A NaN counts as plus infinity. Shapes: N rows, t columns of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregation import memory, passes, threads


def mean(tile: Tensor) -> Tensor:
    """The mean of every column, ``[N, t] -> [t]``; a NaN makes it NaN."""
    n = tile.shape[0]
    if passes.compiled(tile.device):
        from gradless.collab.aggregation import numba_kernels

        return _run(tile, numba_kernels.mean_blocks, numba_kernels.BLOCK, n)
    return _mean_of(tile + 0.0, 0, n).to(tile.dtype)


def middle(tile: Tensor, begin: int, end: int) -> Tensor:
    """The mean of ranks ``begin .. end`` of every column, ``[N, t] -> [t]``.

    Cost: about N log^2 N / 4 compare-exchanges a column.
    """
    if not passes.compiled(tile.device):
        return _mean_of(_sorted(tile), begin, end).to(tile.dtype)
    from gradless.collab.aggregation import numba_kernels

    low, high = network(tile.shape[0], begin, end)
    return _sort_and(tile, numba_kernels.middle_blocks, low, high, begin, end)


def around(tile: Tensor, drop: int) -> Tensor:
    """The mean of every column without the ``drop`` values farthest from its median, ``[N, t] -> [t]``.

    Of two equally far ones the larger goes first, whatever their order.
    """
    n = tile.shape[0]
    if passes.compiled(tile.device):
        from gradless.collab.aggregation import numba_kernels

        low, high = network(n, 0, n)
        return _sort_and(tile, numba_kernels.around_blocks, low, high, drop)
    ranks = _sorted(tile).double()
    median = (ranks[(n - 1) // 2] + ranks[n // 2]) / 2
    first, last = torch.zeros_like(median, dtype=torch.int64), torch.full_like(median, n - 1, dtype=torch.int64)
    for _ in range(drop):
        below, above = median - ranks.gather(0, first[None])[0], ranks.gather(0, last[None])[0] - median
        first, last = first + (below > above), last - (below > above).logical_not().long()
    total = torch.zeros_like(median)
    for rank in range(n - drop):
        total += ranks.gather(0, (first + rank)[None])[0]
    return _over(total, n - drop).to(tile.dtype)


def _sorted(tile: Tensor) -> Tensor:
    """Columns in ascending order; NaN as plus infinity, and -0.0 as 0.0 so that equal numbers have equal bits."""
    return torch.where(tile.isnan(), torch.inf, tile + 0.0).sort(0).values


def _mean_of(rows: Tensor, begin: int, end: int) -> Tensor:
    """The mean of some rows, summed in order in float64."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for row in rows[begin:end]:
        total += row
    return _over(total, end - begin)


def _over(total: Tensor, count: int) -> Tensor:
    """Return total / count. By a plain number CUDA does not divide, but multiplies with its rounded reciprocal."""
    return total / torch.full((), count, dtype=total.dtype, device=total.device)


def _sort_and(tile: Tensor, kernel: Callable[..., None], low: np.ndarray, high: np.ndarray, *numbers: int) -> Tensor:
    """Run a kernel that sorts; a NaN counts as plus infinity."""
    from gradless.collab.aggregation import numba_kernels

    number = passes.flat(tile)[0].dtype.type
    rest = (low, high, *numbers, number(np.inf), number(0))
    return _run(tile, kernel, numba_kernels.LANES, len(low) + len(tile), *rest)


def _run(tile: Tensor, kernel: Callable[..., None], block: int, work: int, *rest: Any) -> Tensor:
    """Run a kernel over all columns of a tile, ``block`` at a time, with about ``work`` vector operations for each."""
    (x, starts), width = passes.flat(tile), tile.shape[1]
    out = memory.tensor((width,), tile.dtype, tile.device)
    threads.spread(
        -(-width // block),
        work * width // 4,
        lambda first, last: kernel(first, last, x, starts, width, *rest, out.numpy()),
    )
    return out


@functools.lru_cache(maxsize=256)
def network(n: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare-exchanges that bring ranks ``begin .. end`` of n values to their places: two int64 arrays of wires.

    Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M), without the comparators
    that these ranks do not depend on.

    Example:
        >>> low, high = network(3, 0, 3)
        >>> list(zip(low.tolist(), high.tolist()))
        [(0, 2), (0, 1), (1, 2)]
    """
    pairs = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0 and n > 1:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            q, r, d = q >> 1, p, q - p
        p >>= 1
    wanted, kept = set(range(begin, end)), []
    for low, high in reversed(pairs):
        if low in wanted or high in wanted:
            wanted |= {low, high}
            kept.append((low, high))
    wires = np.array(kept[::-1], np.int64).reshape(-1, 2)
    return np.ascontiguousarray(wires[:, 0]), np.ascontiguousarray(wires[:, 1])

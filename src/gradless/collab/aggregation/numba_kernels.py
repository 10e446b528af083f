"""The compiled part of the aggregation engine. One file, because Numba's cache follows files.

All kernels walk over blocks of columns that stay in the first two cache levels, read every row once, release the GIL
and touch no thread pool (`gradless.collab.aggregation.passes` spreads them). ``x`` is flat memory; row i starts at
``offsets[i]``.

Sums over columns may be reordered by the compiler (that is what vectorises them); everything else is computed in the
order written, without fused multiply-adds, so it does not depend on the machine.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

BLOCK = 512  # columns of a block of the span kernels: N rows of them fit the second-level cache
LANES = 128  # columns that a sorting network works on at a time: N rows of them fit the first-level cache


@njit(nogil=True, cache=True)
def _centre(buffer: Any, x: Any, offsets: Any, base: Any, near: Any, start: Any, m: Any) -> None:
    """Fill rows of BLOCK with x - c for rows that are ``near`` the centre at ``base``, with x for the others."""
    for i in range(offsets.size):
        row, out = x[offsets[i] + start : offsets[i] + start + m], buffer[i * BLOCK : i * BLOCK + BLOCK]
        if near[i]:
            c = x[base + start : base + start + m]
            for k in range(m):
                out[k] = row[k] - c[k]
        else:
            for k in range(m):
                out[k] = row[k]
        for k in range(m, BLOCK):
            out[k] = 0


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _pairs(buffer: Any, n: Any, gram: Any, zero: Any) -> None:
    """Add the inner products of n rows of BLOCK to the upper triangle of ``gram``, two rows by two at a time."""
    for i in range(0, n, 2):
        i2 = min(i + 1, n - 1)  # the last row pairs with itself where n is odd
        p, q = buffer[i * BLOCK : i * BLOCK + BLOCK], buffer[i2 * BLOCK : i2 * BLOCK + BLOCK]
        for j in range(i, n, 2):
            j2 = min(j + 1, n - 1)
            r, s = buffer[j * BLOCK : j * BLOCK + BLOCK], buffer[j2 * BLOCK : j2 * BLOCK + BLOCK]
            pr, ps, qr, qs = zero, zero, zero, zero
            for k in range(BLOCK):
                a, b, c, d = p[k], q[k], r[k], s[k]
                pr += a * c
                ps += a * d
                qr += b * c
                qs += b * d
            gram[i, j] += pr
            if j2 > j:
                gram[i, j2] += ps
            if i2 > i:
                gram[i2, j] += qr
                if j2 > j:
                    gram[i2, j2] += qs


@njit(nogil=True, cache=True)
def gram_blocks(
    first: Any, last: Any, x: Any, offsets: Any, base: Any, near: Any, width: Any, gram: Any, zero: Any
) -> None:
    """Blocks ``first .. last``: add inner products of rows around a centre, and of minus the centre, to ``gram``."""
    n = offsets.size
    buffer = np.zeros((n + 1) * BLOCK, x.dtype)
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, width - start)
        _centre(buffer, x, offsets, base, near, start, m)
        c, out = x[base + start : base + start + m], buffer[n * BLOCK : n * BLOCK + BLOCK]
        for k in range(m):
            out[k] = -c[k]
        for k in range(m, BLOCK):
            out[k] = 0
        _pairs(buffer, n + 1, gram, zero)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def length_blocks(first: Any, last: Any, x: Any, offsets: Any, width: Any, sums: Any, zero: Any) -> None:
    """Blocks ``first .. last``: add the squared lengths of rows to ``sums``."""
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, width - start)
        for i in range(offsets.size):
            row, total = x[offsets[i] + start : offsets[i] + start + m], zero
            for k in range(m):
                total += row[k] * row[k]
            sums[i] += np.float64(total)


@njit(nogil=True, cache=True)
def product_blocks(
    first: Any,
    last: Any,
    x: Any,
    offsets: Any,
    base: Any,
    near: Any,
    width: Any,
    weights: Any,
    order: Any,
    counts: Any,
    share: Any,
    out: Any,
    targets: Any,
) -> None:
    """Blocks ``first .. last`` of weights @ rows, summed around the centre, of which ``share`` is added last.

    Result p sums rows ``order[p, : counts[p]]``, four at a time.
    """
    n = offsets.size
    buffer, acc = np.zeros(n * BLOCK, x.dtype), np.zeros(BLOCK, x.dtype)
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, width - start)
        _centre(buffer, x, offsets, base, near, start, m)
        for p in range(targets.size):
            for k in range(BLOCK):
                acc[k] = 0
            j = 0
            while j + 3 < counts[p]:
                i0, i1, i2, i3 = order[p, j], order[p, j + 1], order[p, j + 2], order[p, j + 3]
                w0, w1, w2, w3 = weights[p, i0], weights[p, i1], weights[p, i2], weights[p, i3]
                r0, r1 = buffer[i0 * BLOCK : (i0 + 1) * BLOCK], buffer[i1 * BLOCK : (i1 + 1) * BLOCK]
                r2, r3 = buffer[i2 * BLOCK : (i2 + 1) * BLOCK], buffer[i3 * BLOCK : (i3 + 1) * BLOCK]
                for k in range(BLOCK):
                    acc[k] = acc[k] + ((w0 * r0[k] + w1 * r1[k]) + (w2 * r2[k] + w3 * r3[k]))
                j += 4
            while j < counts[p]:
                i0 = order[p, j]
                w0, r0 = weights[p, i0], buffer[i0 * BLOCK : (i0 + 1) * BLOCK]
                for k in range(BLOCK):
                    acc[k] = acc[k] + w0 * r0[k]
                j += 1
            target = out[targets[p] + start : targets[p] + start + m]
            if base >= 0:
                c, s = x[base + start : base + start + m], share[p]
                for k in range(m):
                    target[k] = s * c[k] + acc[k]
            else:
                for k in range(m):
                    target[k] = acc[k]


@njit(nogil=True, cache=True)
def _load_and_sort(
    buffer: Any, x: Any, offsets: Any, start: Any, m: Any, low: Any, high: Any, instead: Any, zero: Any
) -> None:
    """Fill rows of LANES and run the network: comparator t leaves the smaller in low[t], the larger in high[t]."""
    for i in range(offsets.size):
        row, out = x[offsets[i] + start : offsets[i] + start + m], buffer[i * LANES : i * LANES + LANES]
        for k in range(m):
            v = row[k] + zero  # -0.0 becomes 0.0, so that equal numbers have equal bits
            out[k] = v if v == v else instead
    for t in range(low.size):
        p, q = buffer[low[t] * LANES : low[t] * LANES + LANES], buffer[high[t] * LANES : high[t] * LANES + LANES]
        for k in range(LANES):
            a, b = p[k], q[k]
            p[k] = a if a < b else b
            q[k] = b if a < b else a


@njit(nogil=True, cache=True)
def middle_blocks(
    first: Any,
    last: Any,
    x: Any,
    offsets: Any,
    width: Any,
    low: Any,
    high: Any,
    begin: Any,
    end: Any,
    instead: Any,
    zero: Any,
    out: Any,
) -> None:
    """Blocks ``first .. last`` of the mean of ranks ``begin .. end`` of every column."""
    buffer, acc = np.zeros(offsets.size * LANES, x.dtype), np.zeros(LANES, np.float64)
    count = np.float64(end - begin)
    for block in range(first, last):
        start = block * LANES
        m = min(LANES, width - start)
        _load_and_sort(buffer, x, offsets, start, m, low, high, instead, zero)
        for k in range(LANES):
            acc[k] = 0.0
        for i in range(begin, end):
            row = buffer[i * LANES : i * LANES + LANES]
            for k in range(LANES):
                acc[k] = acc[k] + np.float64(row[k])
        target = out[start : start + m]
        for k in range(m):
            target[k] = acc[k] / count


@njit(nogil=True, cache=True)
def mean_blocks(first: Any, last: Any, x: Any, offsets: Any, width: Any, out: Any) -> None:
    """Blocks ``first .. last`` of the mean of every column, summed row by row."""
    acc, count = np.zeros(BLOCK, np.float64), np.float64(offsets.size)
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, width - start)
        acc[:] = 0.0
        i = 0
        while i + 3 < offsets.size:  # four at a time, in their order: sums stay in registers
            i0, i1, i2, i3 = offsets[i] + start, offsets[i + 1] + start, offsets[i + 2] + start, offsets[i + 3] + start
            r0, r1, r2, r3 = x[i0 : i0 + m], x[i1 : i1 + m], x[i2 : i2 + m], x[i3 : i3 + m]
            for k in range(m):
                total = (acc[k] + np.float64(r0[k])) + np.float64(r1[k])
                acc[k] = (total + np.float64(r2[k])) + np.float64(r3[k])
            i += 4
        while i < offsets.size:
            row = x[offsets[i] + start : offsets[i] + start + m]
            for k in range(m):
                acc[k] += np.float64(row[k])
            i += 1
        target = out[start : start + m]
        for k in range(m):
            target[k] = acc[k] / count


@njit(nogil=True, cache=True)
def around_blocks(
    first: Any,
    last: Any,
    x: Any,
    offsets: Any,
    width: Any,
    low: Any,
    high: Any,
    drop: Any,
    instead: Any,
    zero: Any,
    out: Any,
) -> None:
    """Blocks ``first .. last`` of the mean of every column without the ``drop`` values farthest from its median."""
    n = offsets.size
    buffer = np.zeros(n * LANES, x.dtype)
    count = np.float64(n - drop)
    for block in range(first, last):
        start = block * LANES
        m = min(LANES, width - start)
        _load_and_sort(buffer, x, offsets, start, m, low, high, instead, zero)
        for k in range(m):
            a, b = np.float64(buffer[(n - 1) // 2 * LANES + k]), np.float64(buffer[n // 2 * LANES + k])
            median = (a + b) / 2.0
            begin, end = 0, n - 1
            for _ in range(drop):
                if median - np.float64(buffer[begin * LANES + k]) > np.float64(buffer[end * LANES + k]) - median:
                    begin += 1
                else:
                    end -= 1
            total = 0.0
            for i in range(begin, end + 1):
                total += np.float64(buffer[i * LANES + k])
            out[start + k] = total / count


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def spread_blocks(first: Any, last: Any, x: Any, befores: Any, y: Any, afters: Any, width: Any, sums: Any) -> None:
    """Blocks ``first .. last``: add the squared distances of rows from their mean to ``sums``, before and after.

    Then that of the two means, and the squares of the first rows themselves. ``x`` and ``y`` are flat memory with as
    many rows each.
    """
    n = befores.size
    old, mean, square = np.zeros(BLOCK), np.zeros(BLOCK), np.zeros(BLOCK)
    for block in range(first, last):
        start = block * BLOCK
        m = min(BLOCK, width - start)
        b0, a0 = x[befores[0] + start : befores[0] + start + m], y[afters[0] + start : afters[0] + start + m]
        for part in range(2):
            mean[:] = 0.0
            square[:] = 0.0
            centre = b0 if part == 0 else a0  # around a row: squares of near-equal rows keep their digits
            for i in range(n):
                at = (befores[i] if part == 0 else afters[i]) + start
                row = x[at : at + m] if part == 0 else y[at : at + m]
                for k in range(m):
                    d = np.float64(row[k]) - np.float64(centre[k])
                    mean[k] += d
                    square[k] += d * d
            total = 0.0
            for k in range(m):
                total += square[k] - mean[k] * mean[k] / n
            sums[part] += total
            if part == 0:
                old[:m] = mean[:m]
        total = 0.0
        for k in range(m):
            d = (mean[k] - old[k]) / n + (np.float64(a0[k]) - np.float64(b0[k]))
            total += d * d
        sums[2] += total
        total = 0.0
        for k in range(m):
            total += np.float64(a0[k]) * np.float64(a0[k]) + np.float64(b0[k]) * np.float64(b0[k])
        sums[3] += total


@njit(nogil=True, cache=True)
def next_within(inner: Any, bound: Any, subset: Any, resume: Any) -> bool:
    """Advance ``subset`` [k] to the next one, in lexicographic order, whose scatter has no eigenvalue of ``bound``.

    Around its first row r, the scatter of a subset is below the bound where b (1 + [i = j]) - <x_i - x_r, x_j - x_r>
    over its other rows is positive definite. A Cholesky factorisation that grows by a row with every row of the subset
    tells: a row whose pivot is not positive can join no subset with this beginning.

    Args:
        inner: inner products [n, n] of the rows around any centre.
        bound: of the eigenvalues.
        subset: ascending rows; where to go on, and what comes next.
        resume: whether to go on behind ``subset``, or to begin with the first one of all.

    Returns:
        Whether there is one; else ``subset`` holds nothing of use.

    Cost: n k operations for every beginning that the bound allows; memory n k.
    """
    n, k = inner.shape[0], subset.size
    shifted, factor, pivots = np.zeros((n, n)), np.zeros((n, k)), np.zeros((k, n))
    following = resume  # whether the rows up to here are those of ``subset``
    rows = subset.copy()
    depth = 0
    rows[0] = subset[0] if following else 0
    while depth >= 0:
        row = rows[depth]
        while depth > 0 and row < n and not pivots[depth - 1, row] > 0:
            row += 1
        following = following and row == rows[depth]
        rows[depth] = row
        left = k - depth - 1  # rows that are still missing behind this one
        if n - row <= left:
            depth -= 1
            rows[depth] += depth >= 0
            following = False
            continue
        if left == 0:
            if not following:
                subset[:] = rows
                return True
            enough = 0
        elif depth == 0:
            enough = _pivots_around(inner, bound, row, shifted, pivots[0])
        else:
            enough = _eliminate(shifted, factor, pivots, depth, row)
        if left == 0 or enough < left:
            rows[depth] += 1
            following = False
            continue
        depth += 1
        rows[depth] = subset[depth] if following else row + 1
    return False


@njit(nogil=True, cache=True)
def _pivots_around(inner: Any, bound: Any, first: Any, shifted: Any, pivots: Any) -> int:
    """Fill the matrix of rows behind ``first`` around it, and its diagonal; returns how many of them are positive."""
    enough = 0
    for i in range(first + 1, inner.shape[0]):
        for j in range(first + 1, i + 1):
            apart = inner[i, j] - inner[i, first] - inner[j, first] + inner[first, first]
            shifted[i, j] = bound - apart
        shifted[i, i] += bound
        pivots[i] = shifted[i, i]
        enough += pivots[i] > 0
    return enough


@njit(nogil=True, cache=True)
def _eliminate(shifted: Any, factor: Any, pivots: Any, depth: Any, row: Any) -> int:
    """Add ``row`` to the factorisation; returns how many rows behind it still have a positive pivot."""
    root, column, enough = np.sqrt(pivots[depth - 1, row]), depth - 1, 0
    for j in range(row + 1, shifted.shape[0]):
        if not pivots[depth - 1, j] > 0:
            pivots[depth, j] = 0.0
            continue
        total = shifted[j, row]
        for t in range(column):
            total -= factor[j, t] * factor[row, t]
        total /= root
        factor[j, column] = total
        pivots[depth, j] = pivots[depth - 1, j] - total * total
        enough += pivots[depth, j] > 0
    return enough

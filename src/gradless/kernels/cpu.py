"""Numba kernel of the sweep for the CPU: all cores, vectorised, one read and one write of the leaf.

Work is spread over plain Python threads (the kernel releases the GIL) and not over Numba's OpenMP layer: that one
resizes torch's thread pool, and two pools that spin while they wait slow each other down many times over.

Same bits as `gradless.kernels.reference`. Two hazards shape the code. Numba promotes ``uint32 * uint32`` to
uint64 and ``uint32 >> int`` to a signed type, so every Philox word is kept in a uint64 and masked; a sign bit
that got stuck this way would restore perfectly and learn nothing. And nothing may be contracted into a fused
multiply-add, so fast-math stays off.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

TILE = 4096  # elements a core handles at a time: accumulator, words and signs stay in its first-level cache
BLOCKS = TILE // 128 + 1
WORTHWHILE = 1 << 17
FLOAT32, BFLOAT16, FLOAT16 = range(3)

U32 = np.uint64(0xFFFFFFFF)
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
S32 = np.uint64(32)
TO_SIGN = (np.uint32(1) << np.arange(31, -1, -1, dtype=np.uint32)).astype(np.uint32)  # bit j to bit 31


@njit
def _philox(words: Any, first: Any, count: Any, leaf: Any, key: Any) -> None:
    """Fill ``words`` (uint32) with ``count`` blocks starting at block ``first``; the loop over blocks vectorises."""
    for b in range(count):
        block = np.uint64(first + b)
        c0, c1 = block & U32, block >> S32
        c2, c3 = leaf & U32, leaf >> S32
        k0, k1 = key & U32, key >> S32
        for _ in range(10):
            x, y = c0 * M0, c2 * M1
            c0, c1, c2, c3 = (y >> S32) ^ c1 ^ k0, y & U32, (x >> S32) ^ c3 ^ k1, x & U32
            k0, k1 = (k0 + W0) & U32, (k1 + W1) & U32
        words[4 * b] = np.uint32(c0)
        words[4 * b + 1] = np.uint32(c1)
        words[4 * b + 2] = np.uint32(c2)
        words[4 * b + 3] = np.uint32(c3)


@njit
def _add_rademacher(block: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any) -> None:
    """Add coeff * z, a +1/-1 stream, to elements ``start .. start + n``, the first at ``block[start % 128]``.

    Whole blocks are added, so that bits and elements stay aligned; what lies outside the ``n`` elements is scratch. The
    compiler vectorises this form (multiply bit j up to the sign bit) but not the equal one with shifts, which takes
    three times as long: see docs/log.md.
    """
    first = start >> 7
    count = (start - (first << 7) + n + 127) >> 7
    _philox(words, first, count, leaf, key)
    bits = np.float32(coeff).view(np.uint32)
    for w in range(4 * count):
        word = words[w]
        row = block[32 * w : 32 * w + 32]
        for j in range(32):
            sign = np.uint32(np.uint32(word * TO_SIGN[j]) & np.uint32(0x80000000))
            row[j] += np.uint32(bits ^ sign).view(np.float32)


@njit
def _add_gaussian(acc: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any, table: Any) -> None:
    """acc[:n] += coeff * z for elements ``start ..`` of a normal stream, a cache-sized piece at a time."""
    done = 0
    while done < n:
        first = (start + done) >> 3
        offset = start + done - (first << 3)
        m = min(n - done, 8 * BLOCKS - offset)
        _philox(words, first, (offset + m + 7) >> 3, leaf, key)
        for i in range(m):
            e = offset + i
            half = (words[e >> 1] >> np.uint32((e & 1) << 4)) & np.uint32(0xFFFF)
            acc[done + i] += np.float32(coeff * table[half])
        done += m


@njit
def _halves(out: Any, n: Any, start: Any, leaf: Any, key: Any, words: Any) -> None:
    """out[:n] = uniform 16-bit integers for elements ``start ..``."""
    done = 0
    while done < n:
        first = (start + done) >> 3
        offset = start + done - (first << 3)
        m = min(n - done, 8 * BLOCKS - offset)
        _philox(words, first, (offset + m + 7) >> 3, leaf, key)
        for i in range(m):
            e = offset + i
            out[done + i] = (words[e >> 1] >> np.uint32((e & 1) << 4)) & np.uint32(0xFFFF)
        done += m


@njit
def _to_float(bits: Any, kind: Any) -> Any:
    """Bits of a bfloat16 or float16 as float32."""
    b = np.uint32(bits)
    if kind == BFLOAT16:
        return np.uint32(b << np.uint32(16)).view(np.float32)
    sign = (b & np.uint32(0x8000)) << np.uint32(16)
    exponent = (b >> np.uint32(10)) & np.uint32(0x1F)
    fraction = b & np.uint32(0x3FF)
    if exponent == np.uint32(0x1F):
        return np.uint32(sign | np.uint32(0x7F800000) | (fraction << np.uint32(13))).view(np.float32)
    if exponent == np.uint32(0):
        small = np.float32(fraction) * np.float32(2.0**-24)
        return -small if sign else small
    wide = sign | ((exponent + np.uint32(112)) << np.uint32(23)) | (fraction << np.uint32(13))
    return np.uint32(wide).view(np.float32)


@njit
def _narrow(x: Any, r: Any, kind: Any, stochastic: Any) -> Any:
    """Bits of ``x`` in bfloat16 or float16: to nearest even, or up with probability given by 16 random bits ``r``."""
    bits = np.float32(x).view(np.uint32)
    sign = bits & np.uint32(0x80000000)
    size = np.uint32(bits ^ sign)
    if kind == BFLOAT16:
        if size > np.uint32(0x7F800000):
            return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
        if size == np.uint32(0x7F800000):
            return np.uint16(bits >> np.uint32(16))
        add = np.uint32(r) if stochastic else np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(((size + add) | sign) >> np.uint32(16))
    half_sign = np.uint16(sign >> np.uint32(16))
    if size > np.uint32(0x7F800000):
        return half_sign | np.uint16(0x7E00)
    if size == np.uint32(0x7F800000):
        return half_sign | np.uint16(0x7C00)
    if size < np.uint32(0x38800000):  # below 2**-14: a multiple of 2**-24, the spacing of float16 subnormals
        scaled = np.uint32(size).view(np.float32) * np.float32(2.0**24)
        whole = np.floor(scaled)
        part = scaled - whole
        if stochastic:
            up = np.float32(r) < part * np.float32(65536.0)
        else:
            odd = whole - np.float32(2.0) * np.floor(whole * np.float32(0.5)) > np.float32(0.0)
            up = part > np.float32(0.5) or (part == np.float32(0.5) and odd)
        return half_sign | np.uint16(np.uint32(whole) + (np.uint32(1) if up else np.uint32(0)))
    add = np.uint32(r) >> np.uint32(3) if stochastic else np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    rounded = (size + add) >> np.uint32(13)
    if rounded > np.uint32(0x23BFF):  # beyond 65504, the largest float16
        return half_sign | (np.uint16(0x7BFF) if stochastic else np.uint16(0x7C00))
    return half_sign | np.uint16(rounded - np.uint32(0x1C000))


@njit
def _segment(
    out: Any, p: Any, n: Any, start: Any, kind: Any, leaf: Any, steps: Any, rounding: Any, gaussian: Any, table: Any,
    mask: Any, masked: Any, block: Any, words: Any, dice: Any,
) -> None:  # fmt: skip
    """Run the program over ``n <= TILE`` elements whose linear index starts at ``start``."""
    decays, starts, keys, coeffs = steps
    acc = block[start & 127 :]  # so that the 128 signs of a Philox block are aligned in ``block``
    if kind == FLOAT32:
        for i in range(n):
            acc[i] = np.uint32(p[i]).view(np.float32)
    else:
        for i in range(n):
            acc[i] = _to_float(p[i], kind)
    stochastic = rounding.size > 0
    for t in range(decays.size):
        decay = decays[t]
        if decay != np.float32(1.0):
            for i in range(n):
                acc[i] *= decay
        for j in range(starts[t], starts[t + 1]):
            if gaussian:
                _add_gaussian(acc, n, start, leaf, keys[j], coeffs[j], words, table)
            else:
                _add_rademacher(block, n, start, leaf, keys[j], coeffs[j], words)
        if kind != FLOAT32:
            if stochastic:
                _halves(dice, n, start, leaf, rounding[t], words)
            for i in range(n):
                dice[i] = _narrow(acc[i], dice[i], kind, stochastic)
            if t + 1 < decays.size:
                for i in range(n):
                    acc[i] = _to_float(dice[i], kind)
    if masked:
        for i in range(n):
            if mask[i]:
                out[i] = np.float32(acc[i]).view(np.uint32) if kind == FLOAT32 else dice[i]
            else:
                out[i] = p[i]
    elif kind == FLOAT32:
        for i in range(n):
            out[i] = np.float32(acc[i]).view(np.uint32)
    else:
        for i in range(n):
            out[i] = dice[i]


@njit(nogil=True, cache=True)
def _jobs(
    first: Any, last: Any, out: Any, p: Any, rows: Any, width: Any, kind: Any, leaf: Any, decays: Any, starts: Any,
    keys: Any, coeffs: Any, rounding: Any, gaussian: Any, table: Any, mask: Any, masked: Any,
) -> None:  # fmt: skip
    """Tiles ``first .. last`` of rows of ``width`` elements of ``p``, into consecutive rows of ``out``."""
    per_row = (width + TILE - 1) // TILE
    block = np.zeros(128 * BLOCKS, np.float32)
    words = np.empty(4 * BLOCKS, np.uint32)
    dice = np.empty(TILE, np.uint16)
    for job in range(first, last):
        row = job // per_row
        begin = (job - row * per_row) * TILE
        n = min(TILE, width - begin)
        source = rows[row] * width + begin
        target = row * width + begin
        _segment(
            out[target : target + n], p[source : source + n], n, source, kind, leaf, (decays, starts, keys, coeffs),
            rounding, gaussian, table, mask[source : source + n] if masked else mask, masked, block, words, dice,
        )  # fmt: skip


def sweep(
    out: np.ndarray,
    p: np.ndarray,
    rows: np.ndarray,
    width: int,
    kind: int,
    leaf: int,
    steps: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    rounding: np.ndarray,
    table: np.ndarray,
    mask: np.ndarray,
    threads: int,
) -> None:
    """Run a program over flat bit arrays (uint32 for float32, uint16 for the 16-bit types).

    Args:
        out: target bits, ``len(rows) * width`` elements; may be ``p`` itself when ``rows`` is the whole leaf.
        p: source bits of the whole leaf.
        rows: int64 row indices to visit; ``[0]`` with ``width = p.size`` is the whole leaf.
        width: elements a row.
        kind: `FLOAT32`, `BFLOAT16` or `FLOAT16`.
        leaf: 64-bit leaf id.
        steps: decays float32 ``[T]``, starts int64 ``[T + 1]``, keys uint64 ``[J]``, coeffs float32 ``[J]``.
        rounding: uint64 ``[T]`` keys of stochastic rounding, or empty to round to nearest.
        table: the normal table for Gaussian directions, empty for Rademacher.
        mask: uint8 mask of the whole leaf, or empty.
        threads: most threads to use.
    """
    rest: tuple[Any, ...] = (
        out, p, rows, width, kind, np.uint64(leaf), *steps, rounding, table.size > 0, table, mask, mask.size > 0
    )  # fmt: skip
    jobs = rows.size * ((width + TILE - 1) // TILE)
    # A thread is worth waking for some hundred thousand elements of work.
    parts = min(threads, max(1, jobs * max(1, steps[2].size) * min(TILE, width) // WORTHWHILE))
    edges = [jobs * part // parts for part in range(parts + 1)]
    others = [_threads().submit(_jobs, edges[i], edges[i + 1], *rest) for i in range(1, parts)]
    _jobs(edges[0], edges[1], *rest)
    for other in others:
        other.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="gradless-sweep")

"""The arithmetic of the CPU kernels on a piece of a leaf, vectorised: directions, rounding, and the bits of each dtype.

Same bits as `gradless.kernels.reference`. Two hazards shape the code. Numba promotes ``uint32 * uint32`` to
uint64 and ``uint32 >> int`` to a signed type, so every Philox word is kept in a uint64 and masked; a sign bit
that got stuck this way would restore perfectly and learn nothing. And nothing may be contracted into a fused
multiply-add, so fast-math stays off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from gradless import rng

TILE = 4096  # elements a core handles at a time: accumulator, words and signs stay in its first-level cache
BLOCKS = TILE // 128 + 1
FLOAT32, BFLOAT16, FLOAT16, CODES = range(4)  # kinds of leaves; that of a leaf of codes is CODES + its highest code
RADEMACHER, GAUSSIAN, LOW_RANK, FACTOR, TERNARY = (
    rng.KINDS[kind] for kind in ("rademacher", "gaussian", "low_rank", "factor", "ternary")
)

U32 = np.uint64(0xFFFFFFFF)
M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
S32 = np.uint64(32)
TO_SIGN = (np.uint32(1) << np.arange(31, -1, -1, dtype=np.uint32)).astype(np.uint32)  # bit j to bit 31


@intrinsic
def at(typing: Any, address: Any, like: Any) -> Any:
    """The pointer to values of the type of ``like`` at an address."""
    pointer = types.CPointer(like)
    return pointer(types.int64, like), lambda context, builder, signature, args: builder.inttoptr(
        args[0], context.get_value_type(pointer)
    )


@njit
def philox(words: Any, first: Any, count: Any, leaf: Any, key: Any) -> None:
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
def add_rademacher(block: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any) -> None:
    """Add coeff * z, a +1/-1 stream, to elements ``start .. start + n``, the first at ``block[start % 128]``.

    Whole blocks are added, so that bits and elements stay aligned; what lies outside the ``n`` elements is scratch. The
    compiler vectorises this form (multiply bit j up to the sign bit) but not the equal one with shifts, which takes
    three times as long: see docs/log.md.
    """
    first = start >> 7
    count = (start - (first << 7) + n + 127) >> 7
    philox(words, first, count, leaf, key)
    bits = np.float32(coeff).view(np.uint32)
    for w in range(4 * count):
        word = words[w]
        row = block[32 * w : 32 * w + 32]
        for j in range(32):
            sign = np.uint32(np.uint32(word * TO_SIGN[j]) & np.uint32(0x80000000))
            row[j] += np.uint32(bits ^ sign).view(np.float32)


@njit
def add_gaussian(acc: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any, table: Any) -> None:
    """acc[:n] += coeff * z for elements ``start ..`` of a normal stream, a cache-sized piece at a time."""
    done = 0
    while done < n:
        first = (start + done) >> 3
        offset = start + done - (first << 3)
        m = min(n - done, 8 * BLOCKS - offset)
        philox(words, first, (offset + m + 7) >> 3, leaf, key)
        for i in range(m):
            e = offset + i
            half = (words[e >> 1] >> np.uint32((e & 1) << 4)) & np.uint32(0xFFFF)
            acc[done + i] += np.float32(coeff * table[half])
        done += m


@intrinsic
def popcount(typing: Any, x: Any) -> Any:
    """Set bits of a uint32, as int32: one instruction, also in vectorised loops."""
    return types.int32(types.uint32), lambda context, builder, signature, args: builder.ctpop(args[0])


@njit
def add_low_rank(acc: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any, low_rank: Any) -> None:
    """acc[:n] += coeff * (U V^T) for elements ``start ..``: the two sign words agree in rank - popcount bits."""
    rank, columns, right = np.int32(low_rank[0]), low_rank[1], low_rank[2]
    chosen = np.uint32((np.uint64(1) << np.uint64(rank)) - np.uint64(1))
    done, row = 0, start // columns
    column = start - row * columns
    while done < n:
        m = min(n - done, columns - column)
        philox(words, row >> 2, 1, leaf, key)
        left = words[row & 3]
        here, signs = acc[done : done + m], right[column : column + m]
        for i in range(m):
            odd = popcount(np.uint32((signs[i] ^ left) & chosen))
            here[i] += np.float32(coeff * np.float32(np.int32(rank - np.int32(2) * odd)))
        done, row, column = done + m, row + 1, 0


@njit
def add_factor(acc: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any, rank: Any) -> None:
    """acc[:n] += coeff * sign for elements ``start ..`` of a factor: bit k of the word of row i."""
    bits = np.float32(coeff).view(np.uint32)
    last, done, row = (start + n - 1) // rank, 0, start // rank
    column = start - row * rank
    while done < n:
        philox(words, row >> 2, min(BLOCKS, (last >> 2) - (row >> 2) + 1), leaf, key)
        end = min(last + 1, (row >> 2) * 4 + 4 * BLOCKS)
        for w in range(row & 3, (row & 3) + end - row):
            word, here = words[w], acc[done : done + min(n - done, rank - column)]
            for i in range(here.size):
                sign = np.uint32(word >> np.uint32(column + i)) << np.uint32(31)
                here[i] += np.uint32(bits ^ sign).view(np.float32)
            done, column = done + here.size, 0
        row = end


@njit
def add_ternary(acc: Any, n: Any, start: Any, leaf: Any, key: Any, coeff: Any, words: Any, density: Any) -> None:
    """acc[:n] += coeff * z for elements ``start ..`` of a stream of which ``density`` of 2**15 are +1 or -1."""
    done = 0
    while done < n:
        first = (start + done) >> 3
        offset = start + done - (first << 3)
        m = min(n - done, 8 * BLOCKS - offset)
        philox(words, first, (offset + m + 7) >> 3, leaf, key)
        for i in range(m):
            e = offset + i
            half = np.int32((words[e >> 1] >> np.uint32((e & 1) << 4)) & np.uint32(0xFFFF))
            sign = np.float32(np.int32(1) - np.int32(2) * (half & np.int32(1)))
            acc[done + i] += np.float32(coeff * (sign if (half >> np.int32(1)) < density else np.float32(0.0)))
        done += m


@njit
def halves(dice: Any, n: Any, start: Any, leaf: Any, key: Any) -> None:
    """dice[start % 8 :][:n] = uniform 16-bit integers for elements ``start ..``.

    A block is eight of them, the lower half of each word first: so they lie in memory on a little-endian processor,
    the only kind that Numba compiles for, and need no unpacking.
    """
    first = start >> 3
    philox(dice.view(np.uint32), first, ((start + n + 7) >> 3) - first, leaf, key)


@njit
def to_float(bits: Any, kind: Any) -> Any:
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
def narrow(x: Any, r: Any, kind: Any, stochastic: Any) -> Any:
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
def to_code(x: Any, r: Any, highest: Any, stochastic: Any) -> Any:
    """The code that ``x`` is rounded to: to nearest even, or up with probability given by 16 random bits ``r``."""
    value = x if x > np.float32(0.0) else np.float32(0.0)
    value = min(value, highest)
    below = np.floor(value)
    part = np.float32(value - below)
    if stochastic:
        up = np.float32(r) < part * np.float32(65536.0)
    else:
        odd = (np.int32(below) & np.int32(1)) != 0
        up = part > np.float32(0.5) or (part == np.float32(0.5) and odd)
    return np.int32(below) + (np.int32(1) if up else np.int32(0))


@njit
def widen(acc: Any, bits: Any, n: Any, kind: Any) -> None:
    """acc[:n] = the values of ``bits``."""
    if kind > CODES:
        for i in range(n):
            acc[i] = np.float32(bits[i])
    elif kind == FLOAT32:
        for i in range(n):
            acc[i] = np.uint32(bits[i]).view(np.float32)
    elif kind == BFLOAT16:
        for i in range(n):
            acc[i] = to_float(bits[i], BFLOAT16)
    else:
        for i in range(n):
            acc[i] = to_float(bits[i], FLOAT16)


@njit(forceinline=True)
def _narrow_all(out: Any, acc: Any, n: Any, kind: Any, dice: Any, stochastic: Any) -> None:
    """`round_all` for 16 bits. The compiler vectorises the loop where kind and ``stochastic`` are constants alone."""
    for i in range(n):
        out[i] = narrow(acc[i], dice[i], kind, stochastic)


@njit
def round_all(out: Any, acc: Any, n: Any, kind: Any, dice: Any, stochastic: Any) -> None:
    """out[:n] = acc rounded to the dtype of a leaf."""
    if kind > CODES:
        highest = np.float32(kind - CODES)
        for i in range(n):
            out[i] = to_code(acc[i], dice[i], highest, stochastic)
    elif kind == FLOAT32:
        for i in range(n):
            out[i] = np.float32(acc[i]).view(np.uint32)
    elif kind == BFLOAT16 and stochastic:
        _narrow_all(out, acc, n, BFLOAT16, dice, True)
    elif kind == BFLOAT16:
        _narrow_all(out, acc, n, BFLOAT16, dice, False)
    elif stochastic:
        _narrow_all(out, acc, n, FLOAT16, dice, True)
    else:
        _narrow_all(out, acc, n, FLOAT16, dice, False)


@njit
def store(out: Any, acc: Any, p: Any, n: Any, kind: Any, dice: Any, stochastic: Any, mask: Any, masked: Any) -> None:
    """out[:n] = acc rounded to the leaf's dtype where the mask says so, the bits of ``p`` elsewhere."""
    round_all(out, acc, n, kind, dice, stochastic)
    if masked:
        for i in range(n):
            if not mask[i]:
                out[i] = p[i]

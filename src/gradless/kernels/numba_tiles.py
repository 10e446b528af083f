"""The compiled part of the CPU kernels: all tiles of a table of leaves.

A call visits all leaves of a table, with any number of threads: each takes the next few tiles until none are left. It
gets one address, of the numbers of `CALL`; those of `ROW` describe a leaf. So it can run as a plain function of C.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from gradless.kernels import numba_arithmetic
from gradless.kernels.numba_arithmetic import (
    BFLOAT16,
    BLOCKS,
    FACTOR,
    FLOAT32,
    GAUSSIAN,
    LOW_RANK,
    RADEMACHER,
    TERNARY,
    TILE,
    TO_SIGN,
    add_factor,
    add_gaussian,
    add_low_rank,
    add_rademacher,
    add_ternary,
    at,
    halves,
    narrow,
    philox,
    round_all,
    store,
    to_float,
    widen,
)

# A call is an int64 vector, and a leaf a row of its table; names of arrays stand for their addresses.
NEXT_TILE, TILES, TOGETHER, TABLE, LEAVES, DECAYS, FIRST_TERMS, LAST_TERMS, KEYS, COEFFS = range(10)
ROUNDING, RIGHTS, NORMAL, STEPS, TERMS, CALL_SIZE = range(10, 16)
P, KEPT, OUTS, MASK, ROWS, ROW_COUNT, WIDTH, COLUMNS, LEAF, DTYPE, STREAM, RANK = range(12)
UPDATE_FIRST, UPDATE_LAST, PROBE_FIRST, PROBE_LAST, UPDATE_ROUNDS, PROBE_ROUNDS, MIRRORED = range(12, 19)
END_TILE, ROW_SIZE = 19, 20


@intrinsic
def take(typing: Any, address: Any, count: Any) -> Any:
    """The number at an address, to which ``count`` is added at once: no two threads get the same."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], context.get_value_type(types.CPointer(types.int64)))
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), build


@njit
def _add(block: Any, n: Any, start: Any, leaf: Any, programs: Any, j: Any, stream: Any, words: Any) -> None:
    """Add term j of the programs to elements ``start .. start + n``, the first at ``block[start % 128]``."""
    key, coeff = programs[3][j], programs[4][j]
    kind, rank, columns = stream
    acc = block[start & 127 :]
    if kind == LOW_RANK:
        right = carray(at(programs[6][j], np.uint32(0)), columns)
        add_low_rank(acc, n, start, leaf, key, coeff, words, (rank, columns, right))
    elif kind == FACTOR:
        add_factor(acc, n, start, leaf, key, coeff, words, rank)
    elif kind == GAUSSIAN:
        add_gaussian(acc, n, start, leaf, key, coeff, words, programs[7])
    elif kind == TERNARY:
        add_ternary(acc, n, start, leaf, key, coeff, words, rank)
    else:
        add_rademacher(block, n, start, leaf, key, coeff, words)


@njit
def _plus_minus(plus: Any, minus: Any, base: Any, n: Any, words: Any, coeff: Any) -> None:
    """Plus and minus = base +- coeff * z for ``n`` float32 elements, all as bits; z from sign words.

    The commonest branches of all in one pass; the general way takes three times as long. So it is with `_plus`,
    `_step_in_place` and `_step_in_bfloat16`.
    """
    bits = np.float32(coeff).view(np.uint32)
    for w in range(n >> 5):
        word = words[w]
        row, up, down = base[32 * w : 32 * w + 32], plus[32 * w : 32 * w + 32], minus[32 * w : 32 * w + 32]
        for j in range(32):
            sign = np.uint32(np.uint32(word * TO_SIGN[j]) & np.uint32(0x80000000))
            change, value = np.uint32(bits ^ sign).view(np.float32), np.uint32(row[j]).view(np.float32)
            up[j] = np.float32(value + change).view(np.uint32)
            down[j] = np.float32(value - change).view(np.uint32)


@njit
def _plus(plus: Any, base: Any, n: Any, words: Any, coeff: Any) -> None:
    """`_plus_minus` without the second one."""
    bits = np.float32(coeff).view(np.uint32)
    for w in range(n >> 5):
        word = words[w]
        row, up = base[32 * w : 32 * w + 32], plus[32 * w : 32 * w + 32]
        for j in range(32):
            sign = np.uint32(np.uint32(word * TO_SIGN[j]) & np.uint32(0x80000000))
            value = np.uint32(row[j]).view(np.float32)
            up[j] = np.float32(value + np.uint32(bits ^ sign).view(np.float32)).view(np.uint32)


@njit
def _step_in_place(p: Any, n: Any, words: Any, coeff: Any, decay: Any) -> None:
    """P = decay * p + coeff * z, as `_plus_minus`."""
    bits = np.float32(coeff).view(np.uint32)
    for w in range(n >> 5):
        word = words[w]
        row = p[32 * w : 32 * w + 32]
        for j in range(32):
            sign = np.uint32(np.uint32(word * TO_SIGN[j]) & np.uint32(0x80000000))
            value = np.float32(np.uint32(row[j]).view(np.float32) * decay)
            row[j] = np.float32(value + np.uint32(bits ^ sign).view(np.float32)).view(np.uint32)


@njit
def _step_in_bfloat16(p: Any, n: Any, words: Any, coeff: Any, decay: Any, dice: Any) -> None:
    """`_step_in_place` for bfloat16, rounded with dice."""
    bits = np.float32(coeff).view(np.uint32)
    for w in range(n >> 5):
        word = words[w]
        row, rounding = p[32 * w : 32 * w + 32], dice[32 * w : 32 * w + 32]
        for j in range(32):
            sign = np.uint32(np.uint32(word * TO_SIGN[j]) & np.uint32(0x80000000))
            value = np.float32(to_float(row[j], BFLOAT16) * decay)
            value = np.float32(value + np.uint32(bits ^ sign).view(np.float32))
            row[j] = narrow(value, rounding[j], BFLOAT16, True)


@njit
def _advance(block: Any, bits: Any, n: Any, start: Any, row: Any, programs: Any, words: Any, dice: Any) -> None:
    """Run a leaf's update on the elements in ``block``; between two of its steps they take the leaf's dtype.

    After the last step they are left in float32, with the dice of its rounding in ``dice[start % 8 :]``.
    """
    kind, leaf, stochastic = row[DTYPE], np.uint64(row[LEAF]), row[UPDATE_ROUNDS] != 0
    acc = block[start & 127 :]
    for t in range(row[UPDATE_FIRST], row[UPDATE_LAST]):
        if t > row[UPDATE_FIRST] and kind != FLOAT32:
            round_all(bits, acc, n, kind, dice[start & 7 :], stochastic)
            widen(acc, bits, n, kind)
        decay = programs[0][t]
        if decay != np.float32(1.0):
            for i in range(n):
                acc[i] *= decay
        for j in range(programs[1][t], programs[2][t]):
            _add(block, n, start, leaf, programs, j, (row[STREAM], row[RANK], row[COLUMNS]), words)
        if kind != FLOAT32 and stochastic:
            halves(dice, n, start, leaf, programs[5][t])


@njit
def _is_plain(row: Any, source: Any, n: Any) -> Any:
    """Whether a tile is of the commonest kind: directions of signs, no mask, whole words."""
    return row[STREAM] == RADEMACHER and row[MASK] == 0 and source & 127 == 0 and n & 31 == 0


@njit
def _draw(words: Any, row: Any, source: Any, n: Any, step: Any, programs: Any) -> Any:
    """The coefficient of the only term of a step; its sign words are left in ``words``."""
    term = programs[1][step]
    philox(words, source >> 7, (n + 127) >> 7, np.uint64(row[LEAF]), programs[3][term])
    return programs[4][term]


@njit
def _update(row: Any, source: Any, target: Any, n: Any, piece: Any, mask: Any, scratch: Any, programs: Any) -> Any:
    """The bits of a tile after the update, which are also written to where they are kept."""
    block, _, words, dice, bits, base = scratch
    first, last = row[UPDATE_FIRST], row[UPDATE_LAST]
    kind, stochastic = row[DTYPE], row[UPDATE_ROUNDS] != 0
    single = last == first + 1 and programs[2][first] == programs[1][first] + 1
    fused = kind == FLOAT32 or (kind == BFLOAT16 and stochastic)
    if fused and single and row[KEPT] == row[P] and _is_plain(row, source, n):
        coeff, decay = _draw(words, row, source, n, first, programs), programs[0][first]
        if kind == FLOAT32:
            _step_in_place(piece, n, words, coeff, decay)
        else:
            halves(dice, n, source, np.uint64(row[LEAF]), programs[5][first])
            _step_in_bfloat16(piece, n, words, coeff, decay, dice)
        return piece
    under = piece
    if last > first:
        acc, under = block[source & 127 :], base[:n]
        widen(acc, piece, n, kind)
        _advance(block, bits, n, source, row, programs, words, dice)
        store(under, acc, piece, n, kind, dice[source & 7 :], stochastic, mask, row[MASK] != 0)
    if row[KEPT] != 0:
        kept = carray(at(row[KEPT] + base.itemsize * target, base[0]), n)
        for i in range(n):
            kept[i] = under[i]
    return under


@njit
def _branch(
    row: Any, kind: Any, source: Any, target: Any, n: Any, under: Any, mask: Any, scratch: Any, programs: Any
) -> None:
    """Branch off a tile whose bits, of a dtype, are ``under``."""
    block, change, words, dice, _, base = scratch
    stochastic, masked, signs = row[PROBE_ROUNDS] != 0, row[MASK] != 0, 2 if row[MIRRORED] else 1
    acc, sums, plain = block[source & 127 :], change[source & 127 :], kind == FLOAT32 and _is_plain(row, source, n)
    stride = base.itemsize * row[ROW_COUNT] * row[WIDTH]
    address = row[OUTS] + base.itemsize * target
    for b in range(row[PROBE_FIRST], row[PROBE_LAST]):
        up, down = carray(at(address, base[0]), n), carray(at(address + stride, base[0]), n)
        address += signs * stride
        if plain and programs[2][b] == programs[1][b] + 1:
            coeff = _draw(words, row, source, n, b, programs)
            if signs == 2:
                _plus_minus(up, down, under, n, words, coeff)
            else:
                _plus(up, under, n, words, coeff)
            continue
        widen(acc, under, n, kind)
        for i in range(n):
            sums[i] = np.float32(0.0) if signs == 2 else acc[i]
        for j in range(programs[1][b], programs[2][b]):
            _add(change, n, source, np.uint64(row[LEAF]), programs, j, (row[STREAM], row[RANK], row[COLUMNS]), words)
        if kind != FLOAT32 and stochastic:
            halves(dice, n, source, np.uint64(row[LEAF]), programs[5][b])
        if signs == 2:
            for i in range(n):
                other = acc[i] - sums[i]
                sums[i] = acc[i] + sums[i]
                acc[i] = other
            store(down, acc, under, n, kind, dice[source & 7 :], stochastic, mask, masked)
        store(up, sums, under, n, kind, dice[source & 7 :], stochastic, mask, masked)


@njit
def _visit(row: Any, tile: Any, scratch: Any, wide: Any, programs: Any) -> None:
    """One tile of a leaf, or of a row of it: updated, written to where it is kept, and branched off.

    Branches have the leaf's dtype, or float32 where there is a ``wide`` tile to branch off.
    """
    width, like = row[WIDTH], scratch[5]
    per_row = (width + TILE - 1) // TILE
    number = tile // per_row
    begin = (tile - number * per_row) * TILE
    n, target = min(TILE, width - begin), number * width + begin
    source = carray(at(row[ROWS], np.int64(0)), row[ROW_COUNT])[number] * width + begin
    piece = carray(at(row[P] + like.itemsize * source, like[0]), n)
    mask = carray(at(row[MASK] + source, np.uint8(0)), n)
    under = _update(row, source, target, n, piece, mask, scratch, programs)
    if wide is None:
        _branch(row, row[DTYPE], source, target, n, under, mask, scratch, programs)
    else:
        widen(wide, under, n, row[DTYPE])
        block, change, words, dice, _, _ = scratch
        base = wide.view(np.uint32)
        _branch(row, FLOAT32, source, target, n, base[:n], mask, (block, change, words, dice, base, base), programs)


@njit
def _run(address: Any, like: Any, wide: Any) -> None:
    """Visit tiles of the table of a call until none are left."""
    call = carray(at(address, np.int64(0)), CALL_SIZE)
    steps, terms = call[STEPS], call[TERMS]
    programs = (
        carray(at(call[DECAYS], np.float32(0)), steps),
        carray(at(call[FIRST_TERMS], np.int64(0)), steps),
        carray(at(call[LAST_TERMS], np.int64(0)), steps),
        carray(at(call[KEYS], np.uint64(0)), terms),
        carray(at(call[COEFFS], np.float32(0)), terms),
        carray(at(call[ROUNDING], np.uint64(0)), steps),
        carray(at(call[RIGHTS], np.int64(0)), terms),
        carray(at(call[NORMAL], np.float32(0)), 1 << 16),
    )
    table = carray(at(call[TABLE], np.int64(0)), (call[LEAVES], ROW_SIZE))
    block, change = np.zeros(128 * BLOCKS, np.float32), np.zeros(128 * BLOCKS, np.float32)
    kind = carray(at(address, like), 0).dtype
    words, dice = np.empty(4 * BLOCKS, np.uint32), np.empty(TILE + 8, np.uint16)
    scratch = (block, change, words, dice, np.empty(TILE, kind), np.empty(TILE, kind))
    leaf = 0
    while True:
        first = take(address, call[TOGETHER])
        if first >= call[TILES]:
            break
        for tile in range(first, min(first + call[TOGETHER], call[TILES])):
            while tile >= table[leaf, END_TILE]:
                leaf += 1
            begin = table[leaf - 1, END_TILE] if leaf else 0
            _visit(table[leaf], tile - begin, scratch, wide, programs)


def visit_32(address: Any) -> None:
    """A call whose leaves have 32 bits an element."""
    _run(address, np.uint32(0), None)


def visit_16(address: Any) -> None:
    """A call whose leaves have 16 bits an element."""
    _run(address, np.uint16(0), None)


def visit_16_wide(address: Any) -> None:
    """A call whose leaves have 16 bits an element, and whose branches are float32."""
    _run(address, np.uint16(0), np.empty(TILE, np.float32))


def visit_8(address: Any) -> None:
    """A call whose leaves are codes."""
    _run(address, np.uint8(0), None)


def compiled(visit: Any) -> Any:
    """One of the four as a function of C; compiled when it is asked for, or taken from Numba's cache.

    The cache knows whether this file has changed, but not whether the arithmetic has: its name has to say that.
    """
    source = Path(numba_arithmetic.__file__).read_bytes()
    visit.__qualname__ = f"{visit.__name__}_{zlib.crc32(source):08x}"
    return cfunc(types.void(types.int64), nopython=True, cache=True)(visit)

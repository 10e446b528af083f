"""Triton kernels for CUDA: one read and one write of the leaf, the same bits as `gradless.kernels.reference`.

What shapes the code:

- No fused multiply-add. ``a * b + c`` is rounded twice in the reference, so every launch passes
  ``enable_fp_fusion=False``, which keeps LLVM and ptxas (``--fmad=false``) from contracting. Triton's interpreter
  computes with NumPy and cannot notice a contraction: tests look for it in the compiled code instead.
- Subnormals are kept: plain arithmetic of Triton flushes none, and libdevice, which may, is not called.
- Philox is written out on uint32 words: Triton's own generator lays out its counter in another way.
- bfloat16 is taken apart and put together as integers.
- A Philox block holds the signs of 128 elements. Tiles are ``[WORDS, 4, 8]``: each of the words along the first axis is
  computed in one thread and handed to those that use its 32 signs. The last axis is a 16-byte access of 16-bit weights
  and at the same time one block of dice, which so stays in one thread.
- Offsets of elements have 64 bits. Tiles begin at multiples of 128 elements of the leaf, also those of rows.

Programs lie in one int64 vector on the device (`gradless.kernels.cuda.vectors`): ``(decay, rounding key, first term,
last term)`` for each step, where terms are given by their place in the vector; ``(key, number of the basis,
coefficient)`` for each term; then the bases. Decays are there as the bits of float32, coefficients as those of float64:
times the factor of a leaf they are rounded to float32, so leaves of all amplitudes share a vector.

`fan_many` visits many leaves in one launch: a table on the device has a row of `RECORD` words for each, in the order of
`COLUMNS`. A tile finds its leaf by its number, by bisection.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gradless import rng

FLOAT32, BFLOAT16, CODES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(3)  # of codes: CODES + the highest
GAUSSIAN, LOW_RANK, FACTOR, TERNARY = (
    tl.constexpr(rng.KINDS[kind]) for kind in ("gaussian", "low_rank", "factor", "ternary")
)
WHOLE, EVERY, LISTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # rows: a leaf as one, all, some
M0, M1 = tl.constexpr(rng.MULTIPLIERS[0]), tl.constexpr(rng.MULTIPLIERS[1])
W0, W1 = tl.constexpr(rng.WEYL[0]), tl.constexpr(rng.WEYL[1])
STEP, TERM = tl.constexpr(4), tl.constexpr(3)  # words of a step and of a term in the vector of a program
COLUMNS = (
    *("first_tile", "p", "outs", "mask", "table", "leaf", "width", "per_row", "size"),
    *("update", "steps", "probes", "update_factor", "probe_factor"),
)
RECORD = tl.constexpr(16)  # words of a leaf in the table of `fan_many`
UNSPECIALISED = ("leaf", "steps", "branches", "per_row", "factor", "update_factor", "probe_factor", "levels", "count")


@triton.jit
def _philox(block, leaf, key):
    """Words of Philox blocks, four uint32 of the shape of ``block`` (int64)."""
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = leaf.to(tl.uint32), (leaf >> 32).to(tl.uint32)
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        x, y = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1  # both halves of the product in one instruction
        c0, c2 = (y >> 32).to(tl.uint32) ^ c1 ^ k0, (x >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = y.to(tl.uint32), x.to(tl.uint32)
        k0, k1 = k0 + W0, k1 + W1
    return c0, c1, c2, c3


@triton.jit
def _pick(i, w0, w1, w2, w3):
    """Word ``i`` of four."""
    return tl.where(i < 2, tl.where(i == 0, w0, w1), tl.where(i == 2, w2, w3))


@triton.jit
def _row(w0, w1, w2, w3):
    """Four words along two new axes, in their order."""
    return tl.join(tl.join(w0, w2), tl.join(w1, w3))


@triton.jit
def _axes(WORDS: tl.constexpr):
    """Where the elements of a tile are: word, byte of the word, bit of the byte."""
    return tl.arange(0, WORDS)[:, None, None], tl.arange(0, 4)[None, :, None], tl.arange(0, 8)[None, None, :]


@triton.jit
def _halves(first, leaf, key, WORDS: tl.constexpr):
    """Uniform 16-bit integers, as uint32, for the tile that begins at element ``first``."""
    block = tl.arange(0, WORDS)[:, None] * 4 + tl.arange(0, 4)[None, :]
    words = _row(*_philox(first // 8 + block, leaf, key))
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), (WORDS, 4, 8))


@triton.jit
def _signs(first, leaf, key, WORDS: tl.constexpr):
    """A sign stream for the tile that begins at element ``first``: uint32 with the sign in bit 31 and nothing else."""
    # In one vector before they are spread over the tile, the words go through shared memory once.
    words = tl.reshape(_row(*_philox(first // 128 + tl.arange(0, WORDS // 4), leaf, key)), (WORDS,))
    _, byte, bit = _axes(WORDS)
    return (words[:, None, None] << (31 - (byte * 8 + bit)).to(tl.uint32)) & 0x80000000


@triton.jit
def _popcount(x):
    """Set bits of uint32, as int32; in plain arithmetic, which the interpreter runs as well."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return ((((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _term(term, factor, table, leaf, first, start, width, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr):
    """A coefficient times z, for the tile that begins at element ``first``, in the row that begins at ``start``."""
    key, exact = tl.load(term).to(tl.uint64), tl.load(term + 2).to(tl.float64, bitcast=True)
    coeff = (exact * factor.to(tl.int64).to(tl.float64, bitcast=True)).to(tl.float32)
    bits = coeff.to(tl.uint32, bitcast=True)
    word, byte, bit = _axes(WORDS)
    local = word * 32 + byte * 8 + bit
    if KIND == GAUSSIAN:
        return tl.load(table + _halves(first, leaf, key, WORDS).to(tl.int32)) * coeff
    elif KIND == TERNARY:
        half = _halves(first, leaf, key, WORDS).to(tl.int32)
        return tl.where((half >> 1) < RANK, 1.0 - 2.0 * (half & 1).to(tl.float32), 0.0) * coeff
    elif KIND == LOW_RANK:
        # The sign words of a row and of a column agree in rank - popcount bits. A tile lies in one row.
        row, column = start // width, first - start + local
        w0, w1, w2, w3 = _philox(row >> 2, leaf, key)
        here = (column >= 0) & (column < width)
        right = tl.load(table + tl.load(term + 1) * width + column, mask=here, other=0).to(tl.uint32, bitcast=True)
        differ = (right ^ _pick(row & 3, w0, w1, w2, w3)) & ((1 << RANK) - 1)
        return (RANK - 2 * _popcount(differ)).to(tl.float32) * coeff
    elif KIND == FACTOR:
        # A block for every element: such leaves are small, and their rows too short to share one.
        element = first + local
        row = element // RANK
        w0, w1, w2, w3 = _philox(row >> 2, leaf, key)
        sign = _pick(row & 3, w0, w1, w2, w3) << (31 - (element - row * RANK)).to(tl.uint32)
        return ((sign & 0x80000000) ^ bits).to(tl.float32, bitcast=True)
    else:
        return (_signs(first, leaf, key, WORDS) ^ bits).to(tl.float32, bitcast=True)


@triton.jit
def _terms(
    acc, step, program, factor, table, leaf, first, start, width, KIND: tl.constexpr, RANK: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """``acc`` plus all terms of a step, one after the other."""
    for term in range(tl.load(step + 2), tl.load(step + 3), TERM):
        acc = acc + _term(program + term, factor, table, leaf, first, start, width, KIND, RANK, WORDS)
    return acc


@triton.jit
def _dice(step, leaf, first, STOCHASTIC: tl.constexpr, WORDS: tl.constexpr):
    """16 random bits an element for the rounding of a step, or zeros where none are needed."""
    if STOCHASTIC:
        return _halves(first, leaf, tl.load(step + 1).to(tl.uint64), WORDS)
    else:
        return tl.full((1, 1, 1), 0, tl.uint32)


@triton.jit
def _narrow(x, dice, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """Round float32 to what the leaf's dtype can hold, as `gradless.kernels.reference.narrow` does; still float32."""
    bits = x.to(tl.uint32, bitcast=True)
    if DTYPE == FLOAT32:
        return x
    elif DTYPE > CODES:
        value = tl.minimum(tl.where(x > 0.0, x, 0.0), (DTYPE - CODES) * 1.0)
        below = value.to(tl.int32)
        part = value - below.to(tl.float32)
        nearest = (part > 0.5) | ((part == 0.5) & ((below & 1) != 0))
        up = dice.to(tl.float32) < part * 65536.0 if STOCHASTIC else nearest
        return (below + up.to(tl.int32)).to(tl.float32)
    elif DTYPE == BFLOAT16:
        add = dice if STOCHASTIC else 0x7FFF + ((bits >> 16) & 1)
        # Infinity has no bits below the sixteenth and stays what it is; only NaN needs care.
        kept = tl.where(x != x, bits | 0x400000, bits + add)
        return (kept & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif not STOCHASTIC:
        return x.to(tl.float16).to(tl.float32)
    else:
        sign = bits & 0x80000000
        size = bits ^ sign
        small = size < 0x38800000  # below 2**-14 the spacing of float16 is constant: 2**-24
        scaled = tl.where(small, size.to(tl.float32, bitcast=True), 0.0) * 16777216.0
        whole = scaled.to(tl.int32)
        up = dice.to(tl.float32) < (scaled - whole.to(tl.float32)) * 65536.0
        coarse = (whole + up.to(tl.int32)).to(tl.float32) * (1.0 / 16777216.0)
        fine = tl.where(size < 0x7F800000, tl.minimum((size + (dice >> 3)) & 0xFFFFE000, 0x477FE000), size)
        return (tl.where(small, coarse.to(tl.uint32, bitcast=True), fine) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _run(
    acc, program, begin, steps, factor, table, leaf, first, start, width, DTYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """All steps of the program that begins at word ``begin``."""
    for t in range(steps):
        step = program + (begin + STEP * t)
        acc = acc * tl.load(step).to(tl.uint32).to(tl.float32, bitcast=True)
        acc = _terms(acc, step, program, factor, table, leaf, first, start, width, KIND, RANK, WORDS)
        acc = _narrow(acc, _dice(step, leaf, first, STOCHASTIC, WORDS), DTYPE, STOCHASTIC)
    return acc


@triton.jit
def _tile(tile, rows, width, per_row, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """First element of a tile, first element of its row, and how far the elements' targets are from there."""
    if ROWS == WHOLE:
        return tile * (WORDS * 32), tile * 0, tile * 0
    else:
        target = tile // per_row
        row = tl.load(rows + target) if ROWS == LISTED else target
        start = row * width
        return start // 128 * 128 + (tile - target * per_row) * (WORDS * 32), start, (target - row) * width


@triton.jit
def _load(
    p, mask, first, start, width, DTYPE: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """A tile of a leaf: its values, its bits, the elements' offsets, which lie in the row, which may change."""
    word, byte, bit = _axes(WORDS)
    local = word * 32 + byte * 8 + bit
    inside = first + local < start + width
    if ROWS != WHOLE:
        inside = inside & (first + local >= start)
    raw = tl.load(p + first + local, mask=inside, other=0)
    if DTYPE == FLOAT32:
        value = raw.to(tl.float32, bitcast=True)
    elif DTYPE > CODES:
        value = raw.to(tl.float32)
    elif DTYPE == BFLOAT16:
        value = (raw.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = raw.to(tl.float16, bitcast=True).to(tl.float32)
    chosen = (tl.load(mask + first + local, mask=inside, other=0) != 0) if MASKED else inside
    return value, raw, local, inside, chosen


@triton.jit
def _store(out, value, raw, local, inside, chosen, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    """Write values that the dtype can hold where they may change, and the old bits elsewhere."""
    if DTYPE == FLOAT32:
        bits = value.to(tl.int32, bitcast=True)
    elif DTYPE > CODES:
        bits = value.to(tl.int32).to(tl.uint8)
    elif DTYPE == BFLOAT16:
        bits = (value.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True)
    if MASKED:
        bits = tl.where(chosen, bits, raw)
    tl.store(out + local, bits, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def sweep(
    out, p, mask, rows, program, table, leaf: tl.int64, steps: tl.int32, width: tl.int64, per_row: tl.int64,
    factor: tl.int64, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr,
    KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One tile of a sweep."""
    leaf = leaf.to(tl.uint64)
    first, start, shift = _tile(tl.program_id(0).to(tl.int64), rows, width, per_row, ROWS, WORDS)
    value, raw, local, inside, chosen = _load(p, mask, first, start, width, DTYPE, MASKED, ROWS, WORDS)
    value = _run(
        value, program, 0, steps, factor, table, leaf, first, start, width, DTYPE, STOCHASTIC, KIND, RANK, WORDS
    )
    _store(out + (first + shift), value, raw, local, inside, chosen, DTYPE, MASKED)


@triton.jit
def _branch_off(
    outs, p, mask, program, table, leaf, update, steps, probes, branches, update_factor, probe_factor, first, start,
    shift, width, size, UPDATE_STOCHASTIC: tl.constexpr, MIRRORED: tl.constexpr, KEEP: tl.constexpr,
    DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
    RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One tile of a fan; the update has ``steps`` steps from word ``update`` on, a branch is a step of the probes."""
    base, raw, local, inside, chosen = _load(p, mask, first, start, width, DTYPE, MASKED, ROWS, WORDS)
    base = _run(
        base, program, update, steps, update_factor, table, leaf, first, start, width, DTYPE, UPDATE_STOCHASTIC, KIND,
        RANK, WORDS,
    )  # fmt: skip
    if KEEP:
        _store(p + first, base, raw, local, inside, chosen, DTYPE, MASKED)
    # Zeros that the compiler cannot know: it would lay out constants in another way than the leaf, and move the sums.
    nothing = (base.to(tl.int32, bitcast=True) & (steps >> 31)).to(tl.float32, bitcast=True)
    out = outs + (first + shift)
    for b in range(branches):
        step = program + (probes + STEP * b)
        dice = _dice(step, leaf, first, STOCHASTIC, WORDS)
        if MIRRORED:
            change = _terms(nothing, step, program, probe_factor, table, leaf, first, start, width, KIND, RANK, WORDS)
            _store(out, _narrow(base + change, dice, DTYPE, STOCHASTIC), raw, local, inside, chosen, DTYPE, MASKED)
            out += size
            _store(out, _narrow(base - change, dice, DTYPE, STOCHASTIC), raw, local, inside, chosen, DTYPE, MASKED)
        else:
            value = _terms(base, step, program, probe_factor, table, leaf, first, start, width, KIND, RANK, WORDS)
            _store(out, _narrow(value, dice, DTYPE, STOCHASTIC), raw, local, inside, chosen, DTYPE, MASKED)
        out += size


@triton.jit(do_not_specialize=UNSPECIALISED)
def fan(
    outs, p, mask, rows, program, table, leaf: tl.int64, steps: tl.int32, width: tl.int64, per_row: tl.int64,
    update_factor: tl.int64, probe_factor: tl.int64, branches: tl.int32, size: tl.int64,
    UPDATE_STOCHASTIC: tl.constexpr, MIRRORED: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, RANK: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """One tile of a fan; the program's first ``steps`` steps are the update, the others are the branches."""
    first, start, shift = _tile(tl.program_id(0).to(tl.int64), rows, width, per_row, ROWS, WORDS)
    _branch_off(
        outs, p, mask, program, table, leaf.to(tl.uint64), 0, steps, STEP * steps, branches, update_factor,
        probe_factor, first, start, shift, width, size, UPDATE_STOCHASTIC, MIRRORED, KEEP, DTYPE, STOCHASTIC, MASKED,
        ROWS, KIND, RANK, WORDS,
    )  # fmt: skip


@triton.jit
def _pointer(address, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """An address as a pointer, which is a multiple of 16 bytes if all are."""
    pointer = address.to(tl.pointer_type(KIND))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit(do_not_specialize=UNSPECIALISED)
def fan_many(
    records, program, normal, count: tl.int32, levels: tl.int32, branches: tl.int32, UPDATE_STOCHASTIC: tl.constexpr,
    MIRRORED: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr,
    MASKED: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One tile of the fan of one of ``count`` leaves; 2**levels is at least that."""
    tile, one = tl.program_id(0).to(tl.int64), count * 0
    for level in range(levels):
        later = one + (1 << (levels - 1 - level))
        begins = tl.load(records + RECORD * later, mask=later < count, other=0x7FFFFFFFFFFFFFFF)
        one = tl.where(begins <= tile, later, one)
    record = records + RECORD * one
    words: tl.constexpr = tl.int32 if DTYPE == FLOAT32 else (tl.uint8 if DTYPE > CODES else tl.int16)
    p, outs = _pointer(tl.load(record + 1), words, ALIGNED), _pointer(tl.load(record + 2), words, ALIGNED)
    mask = _pointer(tl.load(record + 3), tl.uint8, ALIGNED)
    table = _pointer(tl.load(record + 4), tl.int32, ALIGNED) if KIND == LOW_RANK else normal
    width, size = tl.load(record + 6), tl.load(record + 8)
    if ALIGNED:
        width, size = tl.multiple_of(width, 16), tl.multiple_of(size, 16)
    first, start, shift = _tile(tile - tl.load(record), records, width, tl.load(record + 7), ROWS, WORDS)
    _branch_off(
        outs, p, mask, program, table, tl.load(record + 5).to(tl.uint64), tl.load(record + 9),
        tl.load(record + 10).to(tl.int32), tl.load(record + 11), branches, tl.load(record + 12), tl.load(record + 13),
        first, start, shift, width, size, UPDATE_STOCHASTIC, MIRRORED, KEEP, DTYPE, STOCHASTIC, MASKED, ROWS, KIND,
        RANK, WORDS,
    )  # fmt: skip


@triton.jit(do_not_specialize=("bases", "leaf", "columns"))
def right(out, program, bases: tl.int64, leaf: tl.int64, columns: tl.int64, BLOCK: tl.constexpr):
    """Some of the sign words of V for one basis, of those at ``bases`` in the vector: int32 ``[BLOCK]``."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    basis = tl.program_id(0).to(tl.int64)
    key = tl.load(program + bases + basis).to(tl.uint64)
    w0, w1, w2, w3 = _philox((column >> 2).to(tl.int64), leaf.to(tl.uint64), key)
    words = _pick(column & 3, w0, w1, w2, w3).to(tl.int32, bitcast=True)
    tl.store(out + basis * columns + column, words, mask=column < columns)

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

Programs lie in one int64 vector on the device: ``(decay, rounding key, first term, last term)`` for each step, where
terms are given by their place in the vector; ``(key, number of the basis, coefficient)`` for each term; then the bases.
Floats are there as their bits.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from gradless import rng
from gradless.kernels.program import Program, Region
from gradless.rng import Stream

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
FLOAT32, BFLOAT16 = tl.constexpr(0), tl.constexpr(1)
GAUSSIAN, LOW_RANK, FACTOR = (tl.constexpr(rng.KINDS[kind]) for kind in ("gaussian", "low_rank", "factor"))
WHOLE, EVERY, LISTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # rows: a leaf as one, all, some
M0, M1 = tl.constexpr(rng.MULTIPLIERS[0]), tl.constexpr(rng.MULTIPLIERS[1])
W0, W1 = tl.constexpr(rng.WEYL[0]), tl.constexpr(rng.WEYL[1])
STEP, TERM = tl.constexpr(4), tl.constexpr(3)  # words of a step and of a term in the vector of a program

OPTIONS = {"enable_fp_fusion": False, "num_warps": 4}  # of every launch
UNSPECIALISED = ("leaf", "steps", "branches", "per_row")  # numbers that are not worth a compilation of their own
SWEEP_WORDS, FAN_WORDS = 128, 64  # the longest tiles: 32 or 16 elements a thread
BLOCK = 256  # columns a program instance of `_right` handles


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
def _term(term, table, leaf, first, start, width, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr):
    """A coefficient times z, for the tile that begins at element ``first``, in the row that begins at ``start``."""
    key, bits = tl.load(term).to(tl.uint64), tl.load(term + 2).to(tl.uint32)
    coeff = bits.to(tl.float32, bitcast=True)
    word, byte, bit = _axes(WORDS)
    local = word * 32 + byte * 8 + bit
    if KIND == GAUSSIAN:
        return tl.load(table + _halves(first, leaf, key, WORDS).to(tl.int32)) * coeff
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
    acc, step, program, table, leaf, first, start, width, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr
):  # fmt: skip
    """``acc`` plus all terms of a step, one after the other."""
    for term in range(tl.load(step + 2), tl.load(step + 3), TERM):
        acc = acc + _term(program + term, table, leaf, first, start, width, KIND, RANK, WORDS)
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
    acc, program, steps, table, leaf, first, start, width, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr,
    KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """All steps of a program."""
    for t in range(steps):
        step = program + STEP * t
        acc = acc * tl.load(step).to(tl.uint32).to(tl.float32, bitcast=True)
        acc = _terms(acc, step, program, table, leaf, first, start, width, KIND, RANK, WORDS)
        acc = _narrow(acc, _dice(step, leaf, first, STOCHASTIC, WORDS), DTYPE, STOCHASTIC)
    return acc


@triton.jit
def _tile(rows, width, per_row, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """First element of this tile, first element of its row, and how far the elements' targets are from there."""
    tile = tl.program_id(0).to(tl.int64)
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
):  # fmt: skip
    """A tile of a leaf: its values, its bits, the elements' offsets, which lie in the row, which may change."""
    word, byte, bit = _axes(WORDS)
    local = word * 32 + byte * 8 + bit
    inside = first + local < start + width
    if ROWS != WHOLE:
        inside = inside & (first + local >= start)
    raw = tl.load(p + first + local, mask=inside, other=0)
    if DTYPE == FLOAT32:
        value = raw.to(tl.float32, bitcast=True)
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
    elif DTYPE == BFLOAT16:
        bits = (value.to(tl.uint32, bitcast=True) >> 16).to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True)
    if MASKED:
        bits = tl.where(chosen, bits, raw)
    tl.store(out + local, bits, mask=inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _sweep(
    out, p, mask, rows, program, table, leaf, steps, width, per_row, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr,
    MASKED: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One tile of a sweep."""
    leaf = leaf.to(tl.uint64)
    first, start, shift = _tile(rows, width, per_row, ROWS, WORDS)
    value, raw, local, inside, chosen = _load(p, mask, first, start, width, DTYPE, MASKED, ROWS, WORDS)
    value = _run(value, program, steps, table, leaf, first, start, width, DTYPE, STOCHASTIC, KIND, RANK, WORDS)
    _store(out + (first + shift), value, raw, local, inside, chosen, DTYPE, MASKED)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _fan(
    outs, p, mask, rows, program, table, leaf, steps, width, per_row, branches, size, UPDATE_STOCHASTIC: tl.constexpr,
    MIRRORED: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, KIND: tl.constexpr, RANK: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One tile of a fan; the program's first ``steps`` steps are the update, the others are the branches."""
    leaf = leaf.to(tl.uint64)
    first, start, shift = _tile(rows, width, per_row, ROWS, WORDS)
    base, raw, local, inside, chosen = _load(p, mask, first, start, width, DTYPE, MASKED, ROWS, WORDS)
    base = _run(base, program, steps, table, leaf, first, start, width, DTYPE, UPDATE_STOCHASTIC, KIND, RANK, WORDS)
    if KEEP:
        _store(p + first, base, raw, local, inside, chosen, DTYPE, MASKED)
    # Zeros that the compiler cannot know: it would lay out constants in another way than the leaf, and move the sums.
    nothing = (base.to(tl.int32, bitcast=True) & (steps >> 31)).to(tl.float32, bitcast=True)
    out = outs + (first + shift)
    for b in range(branches):
        step = program + STEP * (steps + b)
        dice = _dice(step, leaf, first, STOCHASTIC, WORDS)
        if MIRRORED:
            change = _terms(nothing, step, program, table, leaf, first, start, width, KIND, RANK, WORDS)
            _store(out, _narrow(base + change, dice, DTYPE, STOCHASTIC), raw, local, inside, chosen, DTYPE, MASKED)
            out += size
            _store(out, _narrow(base - change, dice, DTYPE, STOCHASTIC), raw, local, inside, chosen, DTYPE, MASKED)
        else:
            value = _terms(base, step, program, table, leaf, first, start, width, KIND, RANK, WORDS)
            _store(out, _narrow(value, dice, DTYPE, STOCHASTIC), raw, local, inside, chosen, DTYPE, MASKED)
        out += size


@triton.jit(do_not_specialize=("bases", "leaf", "columns"))
def _right(out, program, bases, leaf, columns, BLOCK: tl.constexpr):
    """Some of the sign words of V for one basis, of those at ``bases`` in the vector: int32 ``[BLOCK]``."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    basis = tl.program_id(0).to(tl.int64)
    key = tl.load(program + bases + basis).to(tl.uint64)
    w0, w1, w2, w3 = _philox((column >> 2).to(tl.int64), leaf.to(tl.uint64), key)
    words = _pick(column & 3, w0, w1, w2, w3).to(tl.int32, bitcast=True)
    tl.store(out + basis * columns + column, words, mask=column < columns)


def sweep(out: Tensor, p: Tensor, region: Region, program: Program, mask: Tensor | None) -> None:
    """Run a program over flat tensors; see `gradless.kernels.sweep` for the meaning of the arguments."""
    _launch(_sweep, SWEEP_WORDS, out, p, region, (program,), mask, (), {})


def fan(
    outs: Tensor, p: Tensor, region: Region, update: Program, probes: Program, mirrored: bool, keep: bool,
    mask: Tensor | None,
) -> None:  # fmt: skip
    """Branch off a leaf, outs ``[B, n]``; see `gradless.kernels.fan` for the meaning of the arguments."""
    more = {
        "UPDATE_STOCHASTIC": _stochastic(p, update if update.decays.size else probes),
        "MIRRORED": mirrored,
        "KEEP": keep and update.decays.size > 0,
    }
    _launch(_fan, FAN_WORDS, outs, p, region, (update, probes), mask, (probes.decays.size, outs.shape[1]), more)


def _launch(
    kernel: Any, longest: int, out: Tensor, p: Tensor, region: Region, programs: tuple[Program, ...],
    mask: Tensor | None, numbers: tuple[int, ...], more: dict[str, bool],
) -> None:  # fmt: skip
    """Run a kernel over all tiles of a region."""
    stream = programs[-1].stream
    width, count = region.width, region.rows.numel()
    rows = EVERY if stream.kind == "low_rank" else WHOLE
    if width != p.numel() or count != 1:
        rows, listed = LISTED, region.rows.to(p.device)
    elif rows is EVERY:
        width, count = region.columns, p.numel() // region.columns
    slack = 0 if rows is WHOLE or width % 128 == 0 else 127  # a tile may begin before its row
    words = max(16, min(longest, triton.next_power_of_2(triton.cdiv(width + slack, 32))))
    per_row = triton.cdiv(width + slack, 32 * words)
    bits, leaf = _bits(p), region.leaf - ((region.leaf >> 63) << 64)  # as a signed number of 64 bits
    with torch.cuda.device_of(p):
        vector, bases = _vector(programs, p.device)
        kernel[(count * per_row,)](
            _bits(out), bits, bits if mask is None else mask.view(torch.uint8), listed if rows is LISTED else vector,
            vector, _table(stream, vector, bases, leaf, region, p.device), leaf, programs[0].decays.size, width,
            per_row, *numbers, **more, DTYPE=KINDS[p.dtype], STOCHASTIC=_stochastic(p, programs[-1]),
            MASKED=mask is not None, ROWS=rows, KIND=rng.KINDS[stream.kind], RANK=stream.rank, WORDS=words, **OPTIONS,
        )  # fmt: skip


def _stochastic(p: Tensor, program: Program) -> bool:
    return p.dtype != torch.float32 and program.rounding.size > 0


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, sharing its memory."""
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def _table(stream: Stream, vector: Tensor, bases: int, leaf: int, region: Region, device: torch.device) -> Tensor:
    """What a stream looks up: quantiles, or the sign words of V for every basis; else anything."""
    if stream.kind == "gaussian":
        return _normal(device)
    if stream.kind != "low_rank" or not bases:
        return vector
    words = torch.empty(bases, region.columns, dtype=torch.int32, device=device)
    grid = (bases, triton.cdiv(region.columns, BLOCK))
    _right[grid](words, vector, len(vector) - bases, leaf, region.columns, BLOCK=BLOCK, **OPTIONS)
    return words


@functools.cache
def _normal(device: torch.device) -> Tensor:
    return rng.normal_table().to(device)


def _vector(programs: tuple[Program, ...], device: torch.device) -> tuple[Tensor, int]:
    """Programs as one vector on the device, and how many bases stand at its end."""
    queue = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _upload(programs, device, queue)


@functools.lru_cache(maxsize=32)  # hundreds of leaves share a program, which is compared by identity
def _upload(programs: tuple[Program, ...], device: torch.device, queue: int) -> tuple[Tensor, int]:
    """`_vector` for the kernels in one queue of the device: another one could be ahead of the copy."""
    decays, keys, coeffs = (
        np.concatenate([getattr(one, name) for one in programs]) for name in ("decays", "keys", "coeffs")
    )
    bases, which = np.unique(np.concatenate([one.bases for one in programs]), return_inverse=True)
    vector = np.empty(STEP.value * len(decays) + TERM.value * len(keys) + len(bases), np.int64)
    head, body, tail = np.split(vector, (STEP.value * len(decays), len(vector) - len(bases)))
    edges = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(one.starts) for one in programs]))])
    offsets = len(head) + TERM.value * edges
    dice = [one.rounding if one.rounding.size else np.zeros_like(one.decays, np.uint64) for one in programs]
    columns = (decays.view(np.uint32), np.concatenate(dice).view(np.int64), offsets[:-1], offsets[1:])
    head.reshape(-1, STEP.value)[:] = np.stack(columns, axis=1)
    body.reshape(-1, TERM.value)[:] = np.stack((keys.view(np.int64), which, coeffs.view(np.uint32)), axis=1)
    tail[:] = bases.view(np.int64)
    host = torch.from_numpy(vector)
    if device.type == "cuda":
        host = host.pin_memory()  # a copy of pageable memory would wait for all kernels before it
    return host.to(device, non_blocking=True), len(bases)

"""Rows of GGUF blocks as float32 on CPUs, compiled by Numba: the bits of `gradless.storage.gguf_blocks`.

A kernel decodes one row and is compiled when it is first needed; `_visit` calls it for rows that threads take in turn,
as `gradless.kernels.cpu` has it. Products and sums are rounded one by one, since Numba fuses none.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

from gradless.kernels import cpu
from gradless.kernels.numba_arithmetic import at
from gradless.kernels.numba_tiles import take
from gradless.storage.gguf_blocks import BlockFormat

MOST_TOGETHER: Final = 16  # rows that a thread takes at a time
WORTHWHILE: Final = 1 << 17  # weights that are worth waking a thread for

NEXT_ROW, ROWS, TOGETHER, KERNEL, SOURCE, ROW_BYTES, TARGET, WIDTH, BLOCKS, ORDER, CALL_SIZE = range(11)
"""A call is a vector of int64; names of arrays stand for their addresses, and ``ORDER`` is 0 for all rows in order."""


@intrinsic
def _call(typing: Any, function: Any, source: Any, target: Any, blocks: Any) -> Any:
    """Call the function of C at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), build


def _visit(address: Any) -> None:
    """Decode the rows of a call until none are left."""
    call = carray(at(address, np.int64(0)), CALL_SIZE)
    order = carray(at(call[ORDER], np.int64(0)), call[ROWS])
    while True:
        first = take(address, call[TOGETHER])
        if first >= call[ROWS]:
            break
        for i in range(first, min(first + call[TOGETHER], call[ROWS])):
            row = order[i] if call[ORDER] else i
            source, target = call[SOURCE] + row * call[ROW_BYTES], call[TARGET] + 4 * i * call[WIDTH]
            _call(call[KERNEL], source, target, call[BLOCKS])


@njit
def _half(low: Any, high: Any) -> Any:
    """The float16 of two bytes as float32, without a subnormal number on the way."""
    bits = np.uint32(low) | (np.uint32(high) << np.uint32(8))
    sign = np.uint32((bits & np.uint32(0x8000)) << np.uint32(16))
    exponent, fraction = np.uint32(bits >> np.uint32(10)) & np.uint32(31), np.uint32(bits & np.uint32(0x3FF))
    if exponent == np.uint32(0):
        value = np.float32(np.float32(fraction) * np.float32(2.0**-24))
        return np.uint32(value.view(np.uint32) | sign).view(np.float32)
    rest = np.uint32(fraction << np.uint32(13))
    if exponent == np.uint32(31):
        return np.uint32(rest | np.uint32(0x7F800000) | sign).view(np.float32)
    return np.uint32(rest | np.uint32((exponent + np.uint32(112)) << np.uint32(23)) | sign).view(np.float32)


@njit
def _bytes(address: Any, count: Any) -> Any:
    return carray(at(address, np.uint8(0)), count)


@njit
def _floats(address: Any, count: Any) -> Any:
    return carray(at(address, np.float32(0)), count)


def f16(source: Any, target: Any, blocks: Any) -> None:
    """Half precision."""
    raw, out = _bytes(source, 2 * blocks), _floats(target, blocks)
    for i in range(blocks):
        out[i] = _half(raw[2 * i], raw[2 * i + 1])


def bf16(source: Any, target: Any, blocks: Any) -> None:
    """The upper half of a float32."""
    raw, out = carray(at(source, np.uint16(0)), blocks), _floats(target, blocks)
    for i in range(blocks):
        out[i] = np.uint32(np.uint32(raw[i]) << np.uint32(16)).view(np.float32)


def q4_0(source: Any, target: Any, blocks: Any) -> None:
    """Sixteen bytes of two codes, less 8."""
    for b in range(blocks):
        raw, out = _bytes(source + 18 * b, 18), _floats(target + 128 * b, 32)
        d, q, low, high = _half(raw[0], raw[1]), raw[2:18], out[:16], out[16:]
        for j in range(16):
            low[j] = d * np.float32(np.int32(q[j] & 15) - np.int32(8))
            high[j] = d * np.float32(np.int32(q[j] >> 4) - np.int32(8))


def q4_1(source: Any, target: Any, blocks: Any) -> None:
    """Sixteen bytes of two codes, and an offset."""
    for b in range(blocks):
        raw, out = _bytes(source + 20 * b, 20), _floats(target + 128 * b, 32)
        d, m, q, low, high = _half(raw[0], raw[1]), _half(raw[2], raw[3]), raw[4:20], out[:16], out[16:]
        for j in range(16):
            low[j] = np.float32(d * np.float32(np.int32(q[j] & 15))) + m
            high[j] = np.float32(d * np.float32(np.int32(q[j] >> 4))) + m


def q8_0(source: Any, target: Any, blocks: Any) -> None:
    """Signed bytes."""
    for b in range(blocks):
        raw, out = _bytes(source + 34 * b, 2), _floats(target + 128 * b, 32)
        d, q = _half(raw[0], raw[1]), carray(at(source + 34 * b + 2, np.int8(0)), 32)
        for j in range(32):
            out[j] = d * np.float32(np.int32(q[j]))


@njit
def _scale_and_minimum(s: Any, k: Any) -> Any:
    """The k-th of eight scales and of eight minima, six bits each, in twelve bytes."""
    if k < 4:
        return np.float32(np.int32(s[k] & 63)), np.float32(np.int32(s[k + 4] & 63))
    low, high = np.int32(s[k + 4] & 15), np.int32(s[k + 4] >> 4)
    return np.float32(low | (np.int32(s[k - 4] >> 6) << 4)), np.float32(high | (np.int32(s[k] >> 6) << 4))


def q4_k(source: Any, target: Any, blocks: Any) -> None:
    """Eight groups of 32, each with a scale and a minimum."""
    for b in range(blocks):
        raw, out = _bytes(source + 144 * b, 144), _floats(target + 1024 * b, 256)
        d, dmin, s = _half(raw[0], raw[1]), _half(raw[2], raw[3]), raw[4:16]
        for k in range(4):
            scale1, min1 = _scale_and_minimum(s, 2 * k)
            scale2, min2 = _scale_and_minimum(s, 2 * k + 1)
            d1, m1, d2, m2 = d * scale1, dmin * min1, d * scale2, dmin * min2
            q, low, high = raw[16 + 32 * k : 48 + 32 * k], out[64 * k : 64 * k + 32], out[64 * k + 32 : 64 * k + 64]
            for j in range(32):
                low[j] = np.float32(d1 * np.float32(np.int32(q[j] & 15))) - m1
                high[j] = np.float32(d2 * np.float32(np.int32(q[j] >> 4))) - m2


@njit
def _fifth_bit(high: Any, j: Any) -> Any:
    return np.int32(((high >> np.uint32(j)) & np.uint32(1)) << np.uint32(4))


@njit
def _word(raw: Any, first: Any) -> Any:
    """Four bytes as uint32."""
    word = np.uint32(raw[first]) | (np.uint32(raw[first + 1]) << np.uint32(8))
    return np.uint32(word | (np.uint32(raw[first + 2]) << np.uint32(16)) | (np.uint32(raw[first + 3]) << np.uint32(24)))


def q5_0(source: Any, target: Any, blocks: Any) -> None:
    """As Q4_0, and a word of fifth bits; less 16."""
    for b in range(blocks):
        raw, out = _bytes(source + 22 * b, 22), _floats(target + 128 * b, 32)
        d, fifth, q, low, high = _half(raw[0], raw[1]), _word(raw, 2), raw[6:22], out[:16], out[16:]
        for j in range(16):
            low[j] = d * np.float32(np.int32(np.int32(q[j] & 15) | _fifth_bit(fifth, j)) - np.int32(16))
            high[j] = d * np.float32(np.int32(np.int32(q[j] >> 4) | _fifth_bit(fifth, j + 16)) - np.int32(16))


def q5_1(source: Any, target: Any, blocks: Any) -> None:
    """As Q4_1, and a word of fifth bits."""
    for b in range(blocks):
        raw, out = _bytes(source + 24 * b, 24), _floats(target + 128 * b, 32)
        d, m, fifth = _half(raw[0], raw[1]), _half(raw[2], raw[3]), _word(raw, 4)
        q, low, high = raw[8:24], out[:16], out[16:]
        for j in range(16):
            low[j] = np.float32(d * np.float32(np.int32(q[j] & 15) | _fifth_bit(fifth, j))) + m
            high[j] = np.float32(d * np.float32(np.int32(q[j] >> 4) | _fifth_bit(fifth, j + 16))) + m


def q5_k(source: Any, target: Any, blocks: Any) -> None:
    """As Q4_K, and 32 bytes of fifth bits: bit k of them belongs to group k."""
    for b in range(blocks):
        raw, out = _bytes(source + 176 * b, 176), _floats(target + 1024 * b, 256)
        d, dmin, s, fifth = _half(raw[0], raw[1]), _half(raw[2], raw[3]), raw[4:16], raw[16:48]
        for k in range(4):
            scale1, min1 = _scale_and_minimum(s, 2 * k)
            scale2, min2 = _scale_and_minimum(s, 2 * k + 1)
            d1, m1, d2, m2 = d * scale1, dmin * min1, d * scale2, dmin * min2
            q, low, high = raw[48 + 32 * k : 80 + 32 * k], out[64 * k : 64 * k + 32], out[64 * k + 32 : 64 * k + 64]
            first, second = np.uint8(2 * k), np.uint8(2 * k + 1)
            for j in range(32):
                one = np.int32(q[j] & 15) | (np.int32((fifth[j] >> first) & 1) << 4)
                two = np.int32(q[j] >> 4) | (np.int32((fifth[j] >> second) & 1) << 4)
                low[j] = np.float32(d1 * np.float32(np.int32(one))) - m1
                high[j] = np.float32(d2 * np.float32(np.int32(two))) - m2


def q6_k(source: Any, target: Any, blocks: Any) -> None:
    """Sixteen groups of 16 with signed scales: four bits and two bits apart; less 32."""
    for b in range(blocks):
        raw, out = _bytes(source + 210 * b, 210), _floats(target + 1024 * b, 256)
        d, scales = _half(raw[208], raw[209]), carray(at(source + 210 * b + 192, np.int8(0)), 16)
        for part in range(4):  # half of the block, half of the group of 32
            half, side = part >> 1, 16 * (part & 1)
            first, second = raw[64 * half + side :][:16], raw[64 * half + side + 32 :][:16]
            more, to = raw[128 + 32 * half + side :][:16], out[128 * half + side :]
            scale = scales[8 * half + (part & 1) :]
            d0, d1 = d * np.float32(np.int32(scale[0])), d * np.float32(np.int32(scale[2]))
            d2, d3 = d * np.float32(np.int32(scale[4])), d * np.float32(np.int32(scale[6]))
            to0, to1, to2, to3 = to[:16], to[32:48], to[64:80], to[96:112]
            for j in range(16):
                high = np.int32(more[j])
                to0[j] = d0 * np.float32(np.int32((np.int32(first[j] & 15) | ((high & 3) << 4)) - 32))
                to1[j] = d1 * np.float32(np.int32((np.int32(second[j] & 15) | ((high & 12) << 2)) - 32))
                to2[j] = d2 * np.float32(np.int32((np.int32(first[j] >> 4) | (high & 48)) - 32))
                to3[j] = d3 * np.float32(np.int32((np.int32(second[j] >> 4) | ((high & 192) >> 2)) - 32))


KERNELS: Final = {
    **{"F16": f16, "BF16": bf16, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0},
    **{"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k},
}
"""The kernel of a row by the name of its format."""


def decode(out: Tensor, raw: Tensor, form: BlockFormat, rows: Tensor | None) -> None:
    """Decode rows of blocks ``raw``, uint8 ``[all rows, bytes]``, into ``out`` in the threads of torch.

    Args:
        out: float32 ``[rows, columns]``, contiguous.
        raw: the blocks.
        form: their format.
        rows: numbers of rows, int64, contiguous; None for all.
    """
    count, threads = len(out), torch.get_num_threads()
    width, order = out.numel() // max(1, count), 0 if rows is None else rows.data_ptr()
    together = max(1, min(MOST_TOGETHER, count // (2 * threads)))
    source = (_compiled(form.name).address, raw.data_ptr(), raw.shape[1])
    call = np.array((0, count, together, *source, out.data_ptr(), width, width // form.weights, order), np.int64)
    if threads == 1 or count < 2 or out.numel() < WORTHWHILE:
        _visitor().ctypes(call.ctypes.data)
    else:
        cpu.team()(_visitor(), call.ctypes.data, threads)


@functools.cache
def _visitor() -> Any:
    return cfunc(types.void(types.int64), nopython=True, cache=True)(_visit)


@functools.cache
def _compiled(name: str) -> Any:
    """A kernel as a function of C; compiled, or from Numba's cache."""
    return cfunc(types.void(types.int64, types.int64, types.int64), nopython=True, cache=True)(KERNELS[name])

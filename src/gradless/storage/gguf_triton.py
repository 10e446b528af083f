"""Rows of GGUF blocks as float32 on CUDA devices, in Triton: the bits of `gradless.storage.gguf_blocks`.

A function of a format takes the addresses of blocks and the places of weights in them, both of one shape. As in
`gradless.kernels.cuda.tiles`, nothing is fused: every product and every sum is rounded.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradless.kernels.cuda.launch import launch, stream
from gradless.storage.gguf_blocks import BlockFormat

TILE: Final = 1024  # weights a program instance decodes


@triton.jit
def _byte(p):
    return tl.load(p).to(tl.int32)


@triton.jit
def _signed(p):
    """A byte as a signed number."""
    value = _byte(p)
    return value - ((value & 128) << 1)


@triton.jit
def _half(p):
    """The float16 of two bytes, which may begin anywhere, as float32."""
    bits = tl.load(p).to(tl.uint16) | (tl.load(p + 1).to(tl.uint16) << 8)
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _nibble(p, j):
    """The code of weight j of 32, of which bytes hold the first 16 in their low halves."""
    return (_byte(p + (j & 15)) >> ((j >> 4) << 2)) & 15


@triton.jit
def _fifth_bit(p, j):
    return ((_byte(p + (j >> 3)) >> (j & 7)) & 1) << 4


@triton.jit
def f16(p, j):
    """Weights of F16."""
    return _half(p)


@triton.jit
def bf16(p, j):
    """Weights of BF16."""
    bits = tl.load(p).to(tl.uint32) | (tl.load(p + 1).to(tl.uint32) << 8)
    return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def q4_0(p, j):
    """Weights of Q4_0."""
    return _half(p) * (_nibble(p + 2, j) - 8).to(tl.float32)


@triton.jit
def q4_1(p, j):
    """Weights of Q4_1."""
    return _half(p) * _nibble(p + 4, j).to(tl.float32) + _half(p + 2)


@triton.jit
def q5_0(p, j):
    """Weights of Q5_0."""
    return _half(p) * ((_nibble(p + 6, j) | _fifth_bit(p + 2, j)) - 16).to(tl.float32)


@triton.jit
def q5_1(p, j):
    """Weights of Q5_1."""
    return _half(p) * (_nibble(p + 8, j) | _fifth_bit(p + 4, j)).to(tl.float32) + _half(p + 2)


@triton.jit
def q8_0(p, j):
    """Weights of Q8_0."""
    return _half(p) * _signed(p + 2 + j).to(tl.float32)


@triton.jit
def _affine(p, code, group):
    """Codes of a group with the six-bit scales and minima of Q4_K and Q5_K."""
    late = group >> 2  # of groups 4 to 7 two bits are elsewhere
    first, second, third = _byte(p + 4 + (group & 3)), _byte(p + 8 + (group & 3)), _byte(p + 12 + (group & 3))
    scale = tl.where(late == 0, first & 63, (third & 15) | ((first >> 2) & 48))
    minimum = tl.where(late == 0, second & 63, (third >> 4) | ((second >> 2) & 48))
    return (_half(p) * scale.to(tl.float32)) * code.to(tl.float32) - _half(p + 2) * minimum.to(tl.float32)


@triton.jit
def q4_k(p, j):
    """Weights of Q4_K."""
    group = j >> 5
    code = (_byte(p + 16 + ((group >> 1) << 5) + (j & 31)) >> ((group & 1) << 2)) & 15
    return _affine(p, code, group)


@triton.jit
def q5_k(p, j):
    """Weights of Q5_K."""
    group = j >> 5
    code = (_byte(p + 48 + ((group >> 1) << 5) + (j & 31)) >> ((group & 1) << 2)) & 15
    return _affine(p, code | (((_byte(p + 16 + (j & 31)) >> group) & 1) << 4), group)


@triton.jit
def q6_k(p, j):
    """Weights of Q6_K."""
    half, quarter, k = j >> 7, (j >> 5) & 3, j & 31
    low = (_byte(p + (half << 6) + ((quarter & 1) << 5) + k) >> ((quarter >> 1) << 2)) & 15
    high = ((_byte(p + 128 + (half << 5) + k) >> (quarter << 1)) & 3) << 4
    scale = _signed(p + 192 + (j >> 4)).to(tl.float32)
    return (_half(p + 208) * scale) * ((low | high) - 32).to(tl.float32)


@triton.jit
def decode_rows(
    raw, rows, out, width, row_bytes, per_row,
    KERNEL: tl.constexpr, WEIGHTS: tl.constexpr, NBYTES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the values of listed rows, a tile of one row a program instance."""
    tile = tl.program_id(0)
    row, column = tile // per_row, (tile % per_row) * TILE + tl.arange(0, TILE)
    inside = column < width
    column = tl.where(inside, column, 0)
    p = raw + tl.load(rows + row).to(tl.int64) * row_bytes + (column // WEIGHTS).to(tl.int64) * NBYTES
    tl.store(out + row.to(tl.int64) * width + column, KERNEL(p, column % WEIGHTS), mask=inside)


KERNELS: Final = {
    **{"F16": f16, "BF16": bf16, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0},
    **{"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k},
}
"""The function of a weight by the name of its format."""


def decode(out: Tensor, raw: Tensor, form: BlockFormat, rows: Tensor | None) -> None:
    """Decode rows, by their numbers (int64) or all, of blocks ``raw``, uint8 ``[all rows, bytes]``, into ``out``."""
    if rows is None:
        rows = torch.arange(len(out), device=raw.device)
    width = out.numel() // max(1, len(rows))
    per_row = -(-width // TILE)
    constants = {"KERNEL": KERNELS[form.name], "WEIGHTS": form.weights, "NBYTES": form.nbytes, "TILE": TILE}
    numbers = (width, raw.shape[1], per_row)
    with torch.cuda.device(raw.device) if raw.device.type == "cuda" else torch.no_grad():
        launch(decode_rows, (len(rows) * per_row,), (raw, rows, out), numbers, constants, stream(raw.device))

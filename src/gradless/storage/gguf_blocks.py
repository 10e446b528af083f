"""Formats of GGUF weights: blocks of bytes, and what they say. This file defines the bits; kernels repeat them.

A row of a weight is a row of blocks. Most formats keep whole codes with a step for a group of them, and some an offset:
``value = step * code + offset``, rounded to float32 after the product and after the sum. The layouts are those of ggml
(``ggml-common.h``); the values equal those of its own Python package, `gguf`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Split(NamedTuple):
    """What blocks say, for n blocks of w weights.

    Attributes:
        codes: int8 ``[n, w]``.
        steps: float32 ``[n, groups]``; a group is ``w / groups`` consecutive weights.
        offsets: float32 ``[n, groups]``, or None.
    """

    codes: Tensor
    steps: Tensor
    offsets: Tensor | None = None


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How a weight is stored.

    Attributes:
        name: ggml's.
        number: ggml's, which files have.
        weights: of a block.
        nbytes: of a block.
        split: reads blocks, uint8 ``[n, nbytes]``; None for floats and for formats that only `gguf` reads.
        halves: where in a block its float16 factors begin: that of the steps, then that of the offsets.
        codes: the smallest and the largest code.
        dtype: of floats.
    """

    name: str
    number: int
    weights: int
    nbytes: int
    split: Callable[[Tensor], Split] | None = None
    halves: tuple[int, ...] = ()
    codes: tuple[int, int] = (0, 0)
    dtype: torch.dtype | None = None

    def decode(self, blocks: Tensor) -> Tensor:
        """Return the values of blocks, uint8 ``[n, nbytes]``, as float32 ``[n, weights]``.

        This is the reference; `gradless.storage.mapped` is faster.

        Raises:
            NotImplementedError: a format that `gguf` does not read either.
        """
        if self.dtype is not None:
            return blocks.contiguous().view(self.dtype).float()
        if self.split is None:
            return _by_library(self.number, blocks)
        codes, steps, offsets = self.split(blocks)
        shape = (len(blocks), steps.shape[1], -1)
        values = steps.unsqueeze(-1) * codes.view(shape).float()
        return (values if offsets is None else values + offsets.unsqueeze(-1)).view(len(blocks), self.weights)


def _by_library(number: int, blocks: Tensor) -> Tensor:
    """The values by the package `gguf`, on the CPU."""
    import gguf

    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks.cpu().numpy(), gguf.GGMLQuantizationType(number))
    return torch.from_numpy(values).to(blocks.device)


def _half(blocks: Tensor, first: int) -> Tensor:
    """The float16 at a byte of every block, as float32 ``[n, 1]``."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).float()


def _nibbles(q: Tensor) -> Tensor:
    """The low halves of bytes, then the high ones, int8 ``[n, 2 * bytes]``."""
    return torch.cat((q & 15, q >> 4), dim=1).to(torch.int8)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Bit j of four bytes, times 16, for weight j, int8 ``[n, 32]``."""
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return (bits.view(len(packed), 32) << 4).to(torch.int8)


def _q4_0(blocks: Tensor) -> Split:
    return Split(_nibbles(blocks[:, 2:]) - 8, _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Split:
    return Split(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Tensor) -> Split:
    return Split((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])) - 16, _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Split:
    return Split(_nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8]), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Split:
    return Split(blocks[:, 2:].contiguous().view(torch.int8), _half(blocks, 0))


def _six_bits(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Eight steps and eight offsets of Q4_K and Q5_K, from 12 bytes of six-bit numbers at byte 4."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((low & 63, (high & 15) | ((low >> 2) & 48)), dim=1)
    minima = torch.cat((middle & 63, (high >> 4) | ((middle >> 2) & 48)), dim=1)
    return _half(blocks, 0) * scales.float(), -(_half(blocks, 2) * minima.float())


def _groups(q: Tensor) -> Tensor:
    """Codes of 128 bytes: 32 low halves, their 32 high halves, and so on, int8 ``[n, 256]``."""
    q = q.reshape(len(q), 4, 1, 32)
    return torch.cat((q & 15, q >> 4), dim=2).view(len(q), 256).to(torch.int8)


def _q4_k(blocks: Tensor) -> Split:
    return Split(_groups(blocks[:, 16:]), *_six_bits(blocks))


def _q5_k(blocks: Tensor) -> Split:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    fifth = ((blocks[:, 16:48].unsqueeze(1) >> shifts) & 1) << 4
    return Split(_groups(blocks[:, 48:]) | fifth.view(len(blocks), 256).to(torch.int8), *_six_bits(blocks))


def _q6_k(blocks: Tensor) -> Split:
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), dim=2).view(-1, 2, 4, 32)
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3) << 4
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return Split((low | high).view(-1, 256).to(torch.int8) - 32, _half(blocks, 208) * scales)


FORMATS: Final = {
    one.name: one
    for one in (
        BlockFormat("F32", 0, 1, 4, dtype=torch.float32),
        BlockFormat("F16", 1, 1, 2, dtype=torch.float16),
        BlockFormat("BF16", 30, 1, 2, dtype=torch.bfloat16),
        BlockFormat("Q4_0", 2, 32, 18, _q4_0, (0,), (-8, 7)),
        BlockFormat("Q4_1", 3, 32, 20, _q4_1, (0, 2), (0, 15)),
        BlockFormat("Q5_0", 6, 32, 22, _q5_0, (0,), (-16, 15)),
        BlockFormat("Q5_1", 7, 32, 24, _q5_1, (0, 2), (0, 31)),
        BlockFormat("Q8_0", 8, 32, 34, _q8_0, (0,), (-128, 127)),
        BlockFormat("Q4_K", 12, 256, 144, _q4_k, (0, 2), (0, 15)),
        BlockFormat("Q5_K", 13, 256, 176, _q5_k, (0, 2), (0, 31)),
        BlockFormat("Q6_K", 14, 256, 210, _q6_k, (208,), (-32, 31)),
    )
}
"""Formats that are decoded here, by name. A new one is a function and a row; its kernels are rows of other tables."""


@functools.cache
def of_number(number: int) -> BlockFormat:
    """Return the format with ggml's number; one that is not in `FORMATS` is decoded by the package `gguf`, slowly.

    Raises:
        KeyError: that package does not know it, or cannot decode it.
    """
    for one in FORMATS.values():
        if one.number == number:
            return one
    import gguf

    known: Any = {kind.value: kind for kind in gguf.GGMLQuantizationType}
    kind = known[number]
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
    one = BlockFormat(kind.name, number, weights, nbytes)
    try:
        one.decode(torch.zeros(1, nbytes, dtype=torch.uint8))
    except NotImplementedError:
        raise KeyError(kind.name) from None
    return one

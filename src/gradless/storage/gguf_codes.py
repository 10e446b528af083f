"""Putting codes back into GGUF blocks: the inverse of what `gradless.storage.gguf_blocks` reads.

Codes are unsigned here, 0 for the smallest: uint8 ``[n, weights of a block]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from gradless.storage.gguf_blocks import BlockFormat


def unsigned(form: BlockFormat, blocks: Tensor) -> Tensor:
    """Return the codes of blocks, uint8 ``[n, nbytes]`` to uint8 ``[n, weights]``."""
    assert form.split is not None
    return (form.split(blocks).codes.to(torch.int16) - form.codes[0]).to(torch.uint8)


def put(form: BlockFormat, blocks: Tensor, codes: Tensor) -> None:
    """Write codes into blocks, whose other bytes stay.

    Cost: a few passes over a byte a weight.
    """
    JOINS[form.name](blocks, codes)


def _fifth_bits(out: Tensor, codes: Tensor) -> None:
    """Bit 4 of 32 codes in four bytes."""
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)
    out.copy_((((codes >> 4) & 1).view(-1, 4, 8) << shifts).sum(-1, dtype=torch.uint8))


def _four(first: int) -> Callable[[Tensor, Tensor], None]:
    def join(blocks: Tensor, codes: Tensor) -> None:
        blocks[:, first:] = codes[:, :16] | (codes[:, 16:] << 4)

    return join


def _five(first: int) -> Callable[[Tensor, Tensor], None]:
    def join(blocks: Tensor, codes: Tensor) -> None:
        low = codes & 15
        blocks[:, first + 4 :] = low[:, :16] | (low[:, 16:] << 4)
        _fifth_bits(blocks[:, first : first + 4], codes)

    return join


def _eight(blocks: Tensor, codes: Tensor) -> None:
    blocks[:, 2:] = codes ^ 128  # two's complement


def _grouped(out: Tensor, codes: Tensor) -> None:
    """128 bytes: 32 codes below the next 32, and so on."""
    pairs = codes.view(-1, 4, 2, 32)
    out.copy_((pairs[:, :, 0] | (pairs[:, :, 1] << 4)).view(-1, 128))


def _four_k(blocks: Tensor, codes: Tensor) -> None:
    _grouped(blocks[:, 16:], codes)


def _five_k(blocks: Tensor, codes: Tensor) -> None:
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device).view(1, 8, 1)
    blocks[:, 16:48] = ((codes >> 4).view(-1, 8, 32) << shifts).sum(1, dtype=torch.uint8)
    _grouped(blocks[:, 48:], codes & 15)


def _six_k(blocks: Tensor, codes: Tensor) -> None:
    quarters = codes.view(-1, 2, 4, 32)
    low = quarters & 15
    blocks[:, :128] = (low[:, :, :2] | (low[:, :, 2:] << 4)).view(-1, 128)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device).view(1, 1, 4, 1)
    blocks[:, 128:192] = ((quarters >> 4) << shifts).sum(2, dtype=torch.uint8).view(-1, 64)


JOINS: Final[dict[str, Callable[[Tensor, Tensor], None]]] = {
    "Q4_0": _four(2),
    "Q4_1": _four(4),
    "Q5_0": _five(2),
    "Q5_1": _five(4),
    "Q8_0": _eight,
    "Q4_K": _four_k,
    "Q5_K": _five_k,
    "Q6_K": _six_k,
}
"""By the name of the format; each has a row in `gradless.storage.gguf_blocks.FORMATS`."""

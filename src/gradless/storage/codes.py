"""Whole numbers that are tuned: the codes of quantised weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from gradless.errors import BadInput


class Codes(nn.Parameter):
    """A parameter of codes, uint8 of any shape: whole numbers from 0 to ``highest``.

    torch has no gradients of integers, so ``requires_grad`` is False; an optimizer of gradless that gets one tunes it,
    with steps of whole codes (`gradless.directions.ternary`), unless its attribute ``tuned`` is False.

    Args:
        data: uint8.
        requires_grad: False; torch's copies pass it.
        highest: the largest code, 1 to 255.

    Raises:
        BadInput: another dtype or range.

    Example:
        >>> Codes(torch.tensor([0, 7, 15], dtype=torch.uint8), highest=15).highest
        15
    """

    highest: int
    tuned: bool

    @staticmethod
    def __new__(cls, data: Tensor, requires_grad: bool = False, *, highest: int = 255) -> Codes:
        """Return the parameter; its memory is that of ``data``."""
        if data.dtype != torch.uint8 or not 1 <= highest <= 255:
            raise BadInput(f"codes are uint8 from 0 to at most 255, not {data.dtype} to {highest}: convert them")
        codes: Codes = nn.Parameter.__new__(cls, data, False)
        codes.highest, codes.tuned = highest, True
        return codes

    def __deepcopy__(self, memo: dict[int, Any]) -> Codes:
        """Return a copy of the same range."""
        if id(self) not in memo:
            copied = memo[id(self)] = Codes(self.detach().clone(), highest=self.highest)
            copied.tuned = self.tuned
        return cast(Codes, memo[id(self)])


def is_tuned(p: Tensor) -> bool:
    """Return whether an optimizer tunes a parameter: one that requires grad, or codes that are not frozen."""
    return p.tuned if isinstance(p, Codes) else p.requires_grad


def freeze(p: Tensor) -> None:
    """Leave a parameter alone from now on."""
    if isinstance(p, Codes):
        p.tuned = False
    else:
        p.requires_grad_(False)

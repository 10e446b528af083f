"""Memory for results: that of earlier ones which nobody holds any more.

What an operating system gives anew it clears page by page, and that takes longer than to cut, copy or average rows.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Final

import numpy as np
import torch
from torch import Tensor

LARGE: Final = 1 << 18  # bytes from which clearing pages takes longer than the bookkeeping here
KEPT: Final = 256 << 20  # bytes that wait for the next result, at most

_free: deque[np.ndarray] = deque()


def tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor that is not cleared, on the CPU in lent memory if it is large."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(lend(size)).view(dtype).view(shape)


def lend(size: int) -> np.ndarray:
    """Return uint8 memory of ``size`` bytes, not cleared; it comes back when nothing refers to it any more.

    Memory that came back serves the next result of at least half its size; little of it is not worth keeping.
    """
    if size < LARGE:
        return np.empty(size, np.uint8)
    block = _fitting(size)
    lent = block[:size]
    weakref.finalize(lent, _take_back, block).atexit = False
    return lent


def _fitting(size: int) -> np.ndarray:
    for _ in range(len(_free)):
        try:
            block = _free.pop()  # the last one may still be in a cache
        except IndexError:  # another thread was faster
            break
        if size <= block.nbytes <= 2 * size:
            return block
        _free.appendleft(block)
    return np.empty(size, np.uint8)


def _take_back(block: np.ndarray) -> None:
    """Keep memory for the next result; the longest unused goes where there is too much."""
    if block.nbytes > KEPT:
        return
    _free.append(block)
    while sum(kept.nbytes for kept in tuple(_free)) > KEPT:
        try:
            _free.popleft()
        except IndexError:
            return

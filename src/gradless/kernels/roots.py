"""Square roots that are the same on every processor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def sqrt_(values: Tensor) -> Tensor:
    """Replace every element by its square root, rounded to nearest as IEEE 754 asks, and return ``values``.

    `torch.sqrt` on a CPU calls MKL, which on some processors (AMD's) is off by one in the last place for a sixth of all
    float32 numbers, so that a ledger would not replay on another machine. NumPy and CUDA use the hardware's root.

    Args:
        values: float32 or float64, of any shape and strides.

    Cost: one pass; no copy.
    """
    if values.device.type != "cpu":
        return torch.sqrt_(values)
    array = values.numpy()
    with np.errstate(invalid="ignore"):  # a NaN stays one, as in torch
        np.sqrt(array, out=array)
    return values

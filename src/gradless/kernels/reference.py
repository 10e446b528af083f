"""The sweep in plain torch: the reference of every backend, and the fallback on every device without a kernel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradless import rng

CHUNK = 1 << 18  # elements at a time, so that a sweep needs megabytes and not copies of the leaf


def stream(key: int, leaf: int, start: int, count: int, gaussian: bool, device: torch.device) -> Tensor:
    """Elements ``start .. start + count`` of a direction: float32 ``[count]``."""
    draw = rng.gaussian if gaussian else rng.rademacher
    return draw(key, leaf, start, count, device)


def narrow(x: Tensor, dtype: torch.dtype, dice: Tensor | None) -> Tensor:
    """Round float32 ``[n]`` to ``dtype``: to nearest even, or stochastically with 16 random bits an element.

    Stochastic rounding goes to one of the two neighbours with probabilities that make it unbiased (to 2**-16 of
    their distance; 2**-13 in float16), and leaves representable values alone. It saturates instead of overflowing.
    """
    if dtype == torch.float32 or dice is None:
        return x.to(dtype)
    if dtype == torch.bfloat16:
        rounded = _truncate(x, dice, 16)
    else:
        fine = _truncate(x, dice >> 3, 13).clamp(-65504.0, 65504.0)
        scaled = x.abs() * 2.0**24  # below 2**-14 the spacing of float16 is constant: 2**-24
        whole = scaled.floor()
        up = dice.float() < (scaled - whole) * 65536.0
        coarse = ((whole + up) * 2.0**-24).copysign(x)
        rounded = torch.where(x.abs() < 2.0**-14, coarse, fine)
    return torch.where(x.isfinite(), rounded, x).to(dtype)


def round_to(x: Tensor, dtype: torch.dtype, rounding: int | None, leaf: int) -> Tensor:
    """Round a whole float32 leaf to ``dtype``, stochastically under the key ``rounding`` if one is given."""
    if dtype == torch.float32 or rounding is None:
        return x.to(dtype)
    dice = rng.halves(rounding, leaf, 0, x.numel(), x.device)
    return narrow(x.reshape(-1), dtype, dice).view(x.shape)


def _truncate(x: Tensor, add: Tensor, bits: int) -> Tensor:
    """Add ``add`` below the last ``bits`` bits of the float32 magnitude and drop them."""
    raw = x.view(torch.int32).to(torch.int64) & rng.MASK32
    size = ((raw & 0x7FFFFFFF) + add) >> bits << bits
    return size.clamp(max=0x7F7FFFFF).to(torch.int32).view(torch.float32).copysign(x)


def sweep(
    out: Tensor,
    p: Tensor,
    rows: Tensor,
    width: int,
    leaf: int,
    steps: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    rounding: np.ndarray,
    gaussian: bool,
    mask: Tensor | None,
) -> None:
    """Run a program over flat tensors; see `gradless.kernels.sweep` for the meaning of the arguments."""
    for target, row in enumerate(rows.tolist()):
        for begin in range(0, width, CHUNK):
            n = min(CHUNK, width - begin)
            source = row * width + begin
            piece = p[source : source + n]
            value = _run(piece, source, leaf, steps, rounding, gaussian)
            if mask is not None:
                value = torch.where(mask[source : source + n], value, piece)
            out[target * width + begin : target * width + begin + n] = value


def _run(
    piece: Tensor,
    source: int,
    leaf: int,
    steps: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    rounding: np.ndarray,
    gaussian: bool,
) -> Tensor:
    """All steps of a program on one chunk, in its own dtype."""
    decays, starts, keys, coeffs = steps
    for t, decay in enumerate(decays):
        acc = piece.float() * float(decay)
        for j in range(starts[t], starts[t + 1]):
            z = stream(int(keys[j]), leaf, source, piece.numel(), gaussian, piece.device)
            acc = acc + z * float(coeffs[j])  # two roundings: a fused multiply-add would differ between backends
        dice = rng.halves(int(rounding[t]), leaf, source, piece.numel(), piece.device) if rounding.size else None
        piece = narrow(acc, piece.dtype, dice)
    return piece

"""What mixing did to the group of honest peers: how much it contracted, how far it was carried away."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradless.collab.aggregation import passes, threads
from gradless.collab.aggregation.gram import measure


class Mixing(NamedTuple):
    """The empirical (alpha, lambda) of one exchange (Farhadkhani et al. 2023, arXiv 2209.10931).

    With x the honest rows before, y after and bars for means over honest peers: ``alpha`` is the mean of
    |y_i - ybar|^2 over that of |x_i - xbar|^2, ``lam`` is |ybar - xbar|^2 over the latter. NaN if all x are equal.
    """

    alpha: float
    lam: float
    consensus: float
    """Root mean square distance of a peer from the mean of the honest ones, after mixing."""


def mixing(sent: Tensor, mixed: Tensor) -> Mixing:
    """Measure one exchange, given the honest rows [H, D] as they were sent and as they were mixed.

    Cost: one read of 2 H rows, with compiled kernels and at least 32 bits, else a Gram matrix of them. Peers whose row
    is not finite, before or after, are left out, at the same price; if none is left, the distance is infinite.
    """
    return _in_one_pass(sent, mixed) or _from_gram(sent, mixed)


def _of(x: float, y: float, shift: float) -> Mixing:
    """Mean squared distances of peers from their mean, before and after, and that of the two means."""
    if x <= 0.0:
        return Mixing(math.nan, math.nan, math.sqrt(y))
    return Mixing(y / x, shift / x, math.sqrt(y))


def _in_one_pass(sent: Tensor, mixed: Tensor) -> Mixing | None:
    """With the compiled kernels; None without them, or if something is not finite or too large to square."""
    if not passes.compiled(sent.device) or sent.dtype not in (torch.float32, torch.float64):
        return None
    if sent.shape[1] > 1 and (sent.stride(1) != 1 or mixed.stride(1) != 1):
        return None
    from gradless.collab.aggregation import numba_kernels as kernel

    count, width = sent.shape
    (x, sent_at), (y, mixed_at) = passes.flat(sent), passes.flat(mixed)

    def run(first: int, last: int) -> Tensor:
        sums = torch.zeros(4, dtype=torch.float64)
        kernel.spread_blocks(first, last, x, sent_at, y, mixed_at, width, sums.numpy())
        return sums

    total = torch.stack(threads.spread(-(-width // kernel.BLOCK), count * width // 2, run)).sum(0)
    if not bool((total < torch.finfo(sent.dtype).max).all()):  # of a NaN too
        return None
    old, new, shift, _ = total.clamp_min(0.0).tolist()
    return _of(old / count, new / count, shift)


def _from_gram(sent: Tensor, mixed: Tensor) -> Mixing:
    """Of the peers that are finite."""
    count = len(sent)
    same = count > 1 and mixed.stride(0) == 0  # mixed once for all
    gram = measure((sent, mixed[:1] if same else mixed))
    sound = gram.finite[:count] & gram.finite[count:]
    if not bool(sound.any()):
        return Mixing(math.nan, math.nan, math.inf)
    inner = gram.points().inner[:-1, :-1]
    later = torch.tensor([count]).expand(count) if same else torch.arange(count, 2 * count)
    was, now = sound.nonzero().flatten(), later[sound]
    old, new, across = inner[was][:, was], inner[now][:, now], inner[was][:, now]
    x = float(old.diagonal().mean() - old.mean())
    y = max(0.0, float(new.diagonal().mean() - new.mean()))
    shift = max(0.0, float(old.mean() + new.mean() - 2 * across.mean()))
    return _of(x, y, shift)

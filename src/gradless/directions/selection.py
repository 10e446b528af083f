"""The elements of highest rank of some tensors, exactly as many as asked for, in chunks.

Ranks are whole numbers. Magnitudes are compared by their bit patterns, whose order is that of the numbers, so that a
selection is the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from gradless.errors import BadInput

CHUNK: Final = 1 << 20  # elements looked at together
DIGIT: Final = 16  # bits of a rank that one pass settles
RANK: Final = (1 << 31) - 1  # largest rank

Ranking = Callable[[Tensor], Tensor]  # values to ranks: int32, 0 to `RANK`, the largest are kept


def highest(leaves: Mapping[str, Tensor], count: int, rank: Ranking) -> dict[str, Tensor]:
    """Masks of the ``count`` elements of highest rank in all leaves together; of equal ones, the first."""
    flats = {name: p.detach().reshape(-1) for name, p in leaves.items()}
    # With nothing to keep the threshold is out of reach.
    threshold, ties = threshold_of([*flats.values()], rank, count) if count else (RANK, 0)
    masks = {}
    for name, flat in flats.items():
        mask, ties = above(flat, rank, threshold, ties)
        masks[name] = mask.view(leaves[name].shape)
    return masks


def threshold_of(flats: list[Tensor], rank: Ranking, count: int) -> tuple[int, int]:
    """The ``count``-th highest rank, and how many elements of just this rank are among the ``count`` highest.

    A radix select: each pass counts one digit of the ranks that agree with the digits found so far.
    """
    size = 1 << DIGIT
    upper, left = 0, count
    for first in (True, False):
        counts = torch.zeros(size, dtype=torch.int64)
        for flat in flats:
            for _, part in chunks(flat):
                ranks = rank(part)
                digits = ranks >> DIGIT
                if not first:
                    digits = (ranks & (size - 1))[digits == upper]
                counts += torch.bincount(digits, minlength=size).cpu()
        reached = counts.flip(0).cumsum(0)  # elements with this digit or a higher one
        index = int(torch.searchsorted(reached, left))
        digit = size - 1 - index
        left -= int(reached[index] - counts[digit])
        upper = upper << DIGIT | digit
    return upper, left


def above(flat: Tensor, rank: Ranking, threshold: int, ties: int) -> tuple[Tensor, int]:
    """Mask of the elements above the threshold and of the first ``ties`` on it, and how many of these are left."""
    mask = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    for start, part in chunks(flat):
        ranks, out = rank(part), mask[start : start + len(part)]
        torch.gt(ranks, threshold, out=out)
        if ties:
            tied = positions(ranks, threshold)[:ties]
            out[tied] = True
            ties -= len(tied)
    return mask, ties


def highest_of_each_output(name: str, p: Tensor, norm: Tensor, keep: float) -> Tensor:
    """Mask of the largest ``|w_ij| * ||x_j||`` of each output of one linear layer."""
    transposed = norm.ndim == 2
    weights = p.detach().mT if transposed else p.detach()
    inputs = weights.shape[-1]
    if p.ndim != 2 or norm.shape != ((inputs, 1) if transposed else (inputs,)):
        raise BadInput(f"norms {[*norm.shape]} do not fit the weight '{name}' {[*p.shape]}: measure them on this model")
    scale, count, rows = norm.reshape(-1).to(p.device, torch.float32), round(keep * inputs), max(1, CHUNK // inputs)
    mask = torch.zeros(weights.shape, dtype=torch.bool, device=p.device)
    for part, out in zip(weights.split(rows), mask.split(rows), strict=True):
        if count:
            ranks = magnitude_rank(part.float() * scale)
            limit = ranks.kthvalue(inputs - count + 1, dim=1, keepdim=True).values
            above, tied = ranks > limit, ranks == limit
            out.copy_(above | (tied & (tied.cumsum(1) <= count - above.sum(1, keepdim=True))))
    return mask.mT.contiguous() if transposed else mask


def magnitude_rank(values: Tensor) -> Tensor:
    """Bit patterns of magnitudes: int32, in the order of the numbers, NaN above infinity."""
    return values.float().abs().view(torch.int32)


def table_rank(values: Tensor) -> Tensor:
    """Bit patterns of `gradless.rng.normal_table`'s entries made positive: exact, they are multiples of 2**-16."""
    return (values + 8.0).view(torch.int32)


def positions(ranks: Tensor, threshold: int) -> Tensor:
    """Indices of the elements whose rank is the threshold: int64."""
    return (ranks == threshold).nonzero().view(-1)


def chunks(flat: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Parts of at most `CHUNK` elements, each with the index of its first."""
    return ((start, flat[start : start + CHUNK]) for start in range(0, len(flat), CHUNK))

"""Where rows lie relative to each other, without looking at their columns twice.

Every rule whose result is a weighted sum of the rows (nearest neighbours, Krum, medians in the sense of distance,
clipping, spectral filters) needs only their inner products. Those are measured once, around a row in their midst:
without a centre, the difference of two nearly equal long vectors drowns in the rounding of their lengths. Affine
combinations of rows, such as mixed rows or what an attacker makes of the honest ones, need no second look either.

Shapes: M or N rows, N' combinations, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregation import passes

SAMPLE, CHUNKS = 1024, 16  # columns from which the centre is guessed, and the pieces that they come in
POOR = 16.0  # measure again if the squared distances from another row are smaller by this factor
ATTEMPTS = 4  # of finding a centre; the last is the best of all rows


class CentredGram(NamedTuple):
    """Inner products of rows around a centre: all that a rule in their span may look at.

    A row with a NaN, an infinity or a value too large to square is infinitely far from everything.
    """

    inner: Tensor  # float64 [N+1, N+1] inner products of (row - centre); the last row is the origin; 0 where not finite
    finite: Tensor  # bool [N]
    near: Tensor  # bool [N]; a row near the origin rather than the centre is held as it is, not minus the centre
    centre: int = -1  # which of the measured rows is the centre; -1: none of these rows

    @property
    def rows(self) -> int:
        """N."""
        return self.finite.shape[0]

    def points(self) -> CentredGram:
        """Return the same with every row held relative to the centre, as rules expect it."""
        return self if bool(self.near.all()) else combine(self, torch.eye(self.rows, dtype=torch.float64))

    def squared(self) -> Tensor:
        """Return squared distances ``[N, N]``: 0 from a finite row to itself, infinite to and from other rows."""
        inner = self.points().inner[:-1, :-1]
        lengths = inner.diagonal()
        squared = (lengths[:, None] + lengths - 2 * inner).clamp_(min=0).fill_diagonal_(0)
        return squared.masked_fill_(~(self.finite[:, None] & self.finite), torch.inf)

    def distances(self) -> Tensor:
        """Return Euclidean distances ``[N, N]``; see `squared`."""
        return self.squared().sqrt_()

    def norms(self) -> Tensor:
        """Return the lengths ``[N]`` of the rows themselves."""
        inner = self.points().inner
        lengths = (inner.diagonal() + inner[-1, -1] - 2 * inner[-1]).clamp_(min=0).sqrt_()[:-1]
        return lengths.masked_fill_(~self.finite, torch.inf)

    def between(self, first: Tensor, second: Tensor) -> float:
        """Return the squared distance of two combinations of the rows, given their coefficients ``[N]``.

        The origin takes what is missing from a sum of one. Infinite if one of them uses a row that is not finite.
        """
        difference = first - second
        if bool(((difference != 0) & ~self.finite).any()):
            return float("inf")
        full = torch.cat((difference, -(difference * self.near).sum()[None]))
        return max(0.0, float(full @ self.inner @ full))


def combine(gram: CentredGram, coefficients: Tensor) -> CentredGram:
    """Return the Gram matrix of linear combinations of rows.

    Args:
        gram: of N rows.
        coefficients: ``[N', N]`` float64. A combination that uses a row that is not finite, or has such a
            coefficient, is not finite itself.

    Cost: N'^2 N.
    """
    return combine_all(gram, coefficients[None])[0]


def combine_all(gram: CentredGram, coefficients: Tensor) -> list[CentredGram]:
    """`combine` for each of P sets of combinations, ``[P, N', M]``; far cheaper than one after another."""
    rows, finite, near = coefficients.detach().numpy(), gram.finite.numpy(), gram.near.numpy()
    wild = ~np.isfinite(rows).all(2)
    if not finite.all():
        wild |= (rows[:, :, ~finite] != 0).any(2)
    sets, n = rows.shape[:2]
    full = np.zeros((sets, n + 1, gram.rows + 1))
    full[:, :-1, :-1] = rows
    full[:, :-1][wild] = 0.0
    full[:, :, -1] = 1 - full[:, :, :-1] @ near
    full[:, :-1][wild] = 0.0
    inner = full @ gram.inner.numpy() @ full.transpose(0, 2, 1)
    inner = torch.from_numpy((inner + inner.transpose(0, 2, 1)) * 0.5)
    tame, points = torch.from_numpy(~wild), torch.ones(n, dtype=torch.bool)
    return [CentredGram(inner[p], tame[p], points) for p in range(sets)]


def measure(blocks: Sequence[Tensor], *, centre: int | None = None) -> CentredGram:
    """Return the inner products of rows around a row in their midst.

    The centre is guessed from a sample of the columns and checked against the result; if another row is far closer to
    most, or the guess is not finite, the rows are measured again.

    Args:
        blocks: rows ``[m_i, D]`` that together are the basis: float16, bfloat16, float32 or float64.
        centre: a first guess, such as the pivot; None: the row in the midst of a sample.

    Raises:
        BadInput: if they are not matrices of one width, dtype and device.

    Cost: M^2 D / 2 multiplications and one read of the rows, rarely two; memory of a tile.
    """
    passes.shape_of(blocks)
    sample = _sample(blocks)
    inner = sample @ sample.T
    lengths, sound = inner.diagonal(), inner.diagonal().isfinite()
    squared = lengths[:, None] + lengths - 2 * inner
    frame = _frame(squared, lengths, sound, None if centre is None else Frame(centre, torch.ones_like(sound)))
    for _ in range(ATTEMPTS):
        gram = _measure_in(blocks, frame)
        if gram is None:  # the centre is not finite, so nothing is known about the others
            sound = _sound(blocks)
            if not bool(sound.any()):
                break
            frame = _frame(squared, lengths, sound, None)
            continue
        better = _frame(gram.squared(), gram.norms().square(), gram.finite, frame)
        if better.centre == frame.centre and bool((better.near == frame.near).all()):
            return gram
        frame = better
    if gram is not None:
        return gram
    return unmeasured(len(sound))._replace(finite=torch.zeros_like(sound))


def unmeasured(rows: int) -> CentredGram:
    """Return a placeholder for so many rows, for rules that do not look at it."""
    nothing = torch.zeros(rows + 1, rows + 1, dtype=torch.float64)
    every = torch.ones(rows, dtype=torch.bool)
    return CentredGram(nothing, every, every)


class Frame(NamedTuple):
    """What rows are measured against."""

    centre: int
    near: Tensor  # bool [M]


def _measure_in(blocks: Sequence[Tensor], frame: Frame) -> CentredGram | None:
    """Return the Gram matrix around a centre; None if that is not finite."""
    inner = passes.gram(blocks, frame.centre, frame.near)
    lengths = inner.diagonal()
    if not bool(lengths[-1].isfinite() & lengths[frame.centre].isfinite()):
        return None
    finite = lengths[:-1].isfinite()
    wild = torch.cat((~finite, torch.zeros(1, dtype=torch.bool)))
    inner = inner.masked_fill(wild[:, None] | wild, 0.0)
    return CentredGram(inner, finite, frame.near, frame.centre)


def _frame(squared: Tensor, lengths: Tensor, sound: Tensor, current: Frame | None) -> Frame:
    """Choose the row that most are close to, and which rows are closer to it than to the origin.

    The current choice stays where it is not poor.
    """
    if not bool(sound.any()):
        return Frame(0, torch.ones_like(sound))
    wild = ~sound
    far = squared.masked_fill(wild[:, None] | wild, torch.inf)
    medians = far.sort(1).values[:, (int(sound.sum()) - 1) // 2]
    best = int(medians.argmin())
    if current is not None and bool(sound[current.centre]) and medians[current.centre] <= POOR * medians[best]:
        best = current.centre
    near = far[best] <= lengths
    if current is not None and best == current.centre:
        held, other = torch.where(current.near, far[best], lengths), torch.where(current.near, lengths, far[best])
        near = torch.where(held <= POOR * other, current.near, near)
    near = near | wild
    near[best] = True
    return Frame(best, near)


def _sample(blocks: Sequence[Tensor]) -> Tensor:
    """Return some columns of all rows: float64 ``[M, at most SAMPLE]``."""
    width = blocks[0].shape[1]
    if width <= SAMPLE:
        pieces = [slice(0, width)]
    else:
        length = SAMPLE // CHUNKS
        pieces = [
            slice(start, start + length) for start in range(0, width - length + 1, (width - length) // (CHUNKS - 1))
        ]
    return torch.cat([torch.cat([block.detach()[:, piece] for piece in pieces], 1) for block in blocks]).double().cpu()


def _sound(blocks: Sequence[Tensor]) -> Tensor:
    """Return which rows are finite and can be squared: bool ``[M]``."""
    shape = passes.shape_of(blocks)
    sound = torch.ones(shape.rows, dtype=torch.bool, device=shape.device)
    for _, tile in passes.tiles(blocks, passes.columns_of(shape.rows, shape.width)):
        sound &= tile.square().sum(1).isfinite()
    return sound.cpu()


def mean_of(rows: int, index: Tensor) -> Tensor:
    """Return the weights ``[rows]`` of the mean of some rows."""
    weights = torch.zeros(rows, dtype=torch.float64)
    weights[index] = 1 / len(index)
    return weights


def smallest(distances: Tensor, keep: int) -> Tensor:
    """Return where the ``keep`` smallest entries of the last dimension are, ties by index: int64 ``[..., keep]``."""
    return distances.sort(dim=-1, stable=True).indices[..., :keep]

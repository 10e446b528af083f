"""Where rows lie relative to each other, without looking at their columns twice.

Every rule whose result is a weighted sum of the rows (nearest neighbours, Krum, medians in the sense of distance,
clipping, spectral filters) needs only their inner products. Those are measured once, around a row in their midst:
without a centre, the difference of two nearly equal long vectors drowns in the rounding of their lengths. Affine
combinations of rows, such as mixed rows or what an attacker makes of the honest ones, need no second look either.

Shapes: M or N rows, N' combinations, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregation import passes

SAMPLE, CHUNKS = 1024, 16  # columns from which the centre is guessed, and the pieces that they come in
POOR = 16.0  # measure again if the squared distances from another row are smaller by this factor
ATTEMPTS = 4  # of finding a centre; the last is the best of all rows
LONGEST = 2.0**800  # squared length; of longer rows, sums of squares could overflow
LARGE = 64  # bits of the largest factor of a row


class CentredGram(NamedTuple):
    """Inner products of rows around a centre: all that a rule in their span may look at.

    A row with a NaN or an infinity, or one too long to square (2^400, or 2^64 of float32), is infinitely far from
    everything. One of numbers is held times a power of two, so that what cuts its length can bring it back.
    """

    inner: Tensor  # float64 [N+1, N+1] inner products of (row - centre); the last row is the origin; 0 of lost rows
    finite: Tensor  # bool [N]
    near: Tensor  # bool [N]; a row near the origin rather than the centre is held as it is, not minus the centre
    centre: int = -1  # which of the measured rows is the centre; -1: none of these rows
    shifts: Tensor | None = None  # int64 [N]: rows too long are held times 2^-shift, if they are known; None: all 0

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
        """Return the lengths ``[N]`` of the rows themselves; infinite where they are not finite or too long."""
        inner = self.points().inner
        lengths = (inner.diagonal() + inner[-1, -1] - 2 * inner[-1]).clamp_(min=0).sqrt_()[:-1]
        return lengths.masked_fill_(~self.finite, torch.inf)

    def cut(self, norm: float) -> Tensor:
        """Return the factors ``[N]`` that cut rows to a length; 1 where they are shorter, or hold what is no number."""
        norms = self.norms()
        factors = torch.where(self.finite & (norms > norm), norm / norms, 1.0)
        held = self.points()
        if held.shifts is not None:
            unit = torch.ldexp(torch.ones_like(norms), -held.shifts)
            squared = held.inner.diagonal()[:-1] + unit * (unit * held.inner[-1, -1] - 2 * held.inner[-1, :-1])
            factors = torch.where(held.shifts > 0, norm / squared.clamp(min=0).sqrt() * unit, factors)
        return factors

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
    if gram.shifts is not None or not float(np.abs(rows[~wild]).max(initial=0.0)) < 2.0**LARGE:
        return [_combine_long(gram, own) for own in rows]
    sets, n = rows.shape[:2]
    full = np.zeros((sets, n + 1, gram.rows + 1))
    full[:, :-1, :-1] = rows
    full[:, :-1][wild] = 0.0
    full[:, :, -1] = 1 - full[:, :, :-1] @ near
    full[:, :-1][wild] = 0.0
    inner = full @ gram.inner.numpy() @ full.transpose(0, 2, 1)
    if not float(inner.diagonal(axis1=1, axis2=2).max()) <= LONGEST:
        return [_combine_long(gram, own) for own in rows]
    inner = torch.from_numpy((inner + inner.transpose(0, 2, 1)) * 0.5)
    tame, points = torch.from_numpy(~wild), torch.ones(n, dtype=torch.bool)
    return [CentredGram(inner[p], tame[p], points) for p in range(sets)]


def _combine_long(gram: CentredGram, rows: np.ndarray) -> CentredGram:
    """`combine` where rows or their factors are too large to square: each result is held times a power of two."""
    n, used, near = len(rows), rows != 0, gram.near.numpy()
    shifts = np.zeros(gram.rows, np.int64) if gram.shifts is None else gram.shifts.numpy()
    lost = ~np.isfinite(rows).all(1) | (used & ~gram.finite.numpy() & (shifts == 0)).any(1)
    used = used & ~lost[:, None]
    digits, bits = np.frexp(np.where(used, rows, 0.0))
    bits = np.where(used, bits + shifts, 0)  # of the factors of what is held
    down = np.maximum(bits.max(1) - LARGE, 0)
    full = np.zeros((n + 1, gram.rows + 1))
    full[:-1, :-1] = np.ldexp(digits, bits - down[:, None])
    full[:-1, -1] = np.where(lost, 0.0, np.ldexp(1.0, -down) - full[:-1, :-1] @ near)
    full[-1, -1] = 1.0
    inner = full @ gram.inner.numpy() @ full.T
    lengths = inner.diagonal()
    more = np.where(lengths > LONGEST, np.frexp(lengths)[1] // 2, 0)
    inner = np.ldexp(inner, -more[:, None] - more)
    down = down + more[:-1]
    finite = torch.from_numpy(~lost & (down == 0))
    inner = torch.from_numpy((inner + inner.T) * 0.5)
    return CentredGram(inner, finite, torch.ones(n, dtype=torch.bool), shifts=torch.from_numpy(down.astype(np.int64)))


def measure(blocks: Sequence[Tensor], *, centre: int | None = None, long: bool = False) -> CentredGram:
    """Return the inner products of rows around a row in their midst.

    The centre is guessed from a sample of the columns and checked against the result; if another row is far closer to
    most, or the guess is not finite, the rows are measured again.

    Args:
        blocks: rows ``[m_i, D]`` that together are the basis: float16, bfloat16, float32 or float64.
        centre: a first guess, such as the pivot; None: the row in the midst of a sample.
        long: whether rows too long to square are wanted as well, for what cuts them; they cost a copy of the basis.

    Raises:
        BadInput: if they are not matrices of one width, dtype and device.

    Cost: M^2 D / 2 multiplications and one read of the rows, rarely two; memory of a tile.
    """
    passes.shape_of(blocks)
    sample = _sample(blocks)
    inner = sample @ sample.T
    lengths, sound = inner.diagonal(), inner.diagonal() <= LONGEST
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
            break
        frame = better
    if gram is not None:
        return _with_long_rows(blocks, gram) if long and not bool(gram.finite.all()) else gram
    return unmeasured(len(sound))._replace(finite=torch.zeros_like(sound))


def measure_lengths(blocks: Sequence[Tensor]) -> CentredGram:
    """Return the lengths of rows in place of all their inner products, for what looks at nothing else.

    Cost: one read of the rows; of those too long to square, three more.
    """
    squared = passes.squared_lengths(blocks)
    finite = squared <= LONGEST
    shifts = None
    if not bool(finite.all()):
        rows, shifts = _long_rows(blocks, finite)
        squared[~finite] = 0.0
        squared[shifts > 0] = rows.square().sum(1)
    inner = torch.cat((squared, squared.new_zeros(1))).diag()
    centre = int(finite.int().argmax()) if bool(finite.any()) else -1
    return CentredGram(inner, finite, torch.ones_like(finite), centre, shifts)


def _long_rows(blocks: Sequence[Tensor], finite: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of numbers that are not ``finite``, float64 ``[L, D]`` and near 1, and the shift of every row."""
    shifts, rows = torch.zeros(len(finite), dtype=torch.int64), []
    for j in (~finite).nonzero().flatten().tolist():
        row = passes.row(blocks, j).detach().double()
        largest = float(row.abs().max())
        if math.isfinite(largest):
            shifts[j] = math.frexp(largest)[1]
            half = int(shifts[j]) // 2  # at once, the factor could be too small for a number
            rows.append(row * 2.0**-half * 2.0 ** (half - int(shifts[j])))
    return torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.float64), shifts


def _with_long_rows(blocks: Sequence[Tensor], gram: CentredGram) -> CentredGram:
    """Return the Gram matrix measured again, with rows too long to square held times a power of two."""
    rows, shifts = _long_rows(blocks, gram.finite)
    if not len(rows):
        return gram
    basis = torch.cat([block.detach() for block in blocks]).to(passes.shape_of(blocks).working)
    basis[shifts > 0] = rows.to(basis)
    lost = torch.cat((~gram.finite & (shifts == 0), torch.zeros(1, dtype=torch.bool)))
    near = gram.near & gram.finite
    inner = passes.gram((basis,), gram.centre, near).masked_fill(lost[:, None] | lost, 0.0)
    return gram._replace(inner=inner, near=near | lost[:-1], shifts=shifts)


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
    if not bool((lengths[-1] <= LONGEST) & lengths[frame.centre].isfinite()):
        return None
    finite = lengths[:-1] <= LONGEST
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
        sound &= tile.square().sum(1) <= LONGEST
    return sound.cpu()


def mean_of(rows: int, index: Tensor) -> Tensor:
    """Return the weights ``[rows]`` of the mean of some rows."""
    weights = torch.zeros(rows, dtype=torch.float64)
    weights[index] = 1 / len(index)
    return weights


def smallest(distances: Tensor, keep: int) -> Tensor:
    """Return where the ``keep`` smallest entries of the last dimension are, ties by index: int64 ``[..., keep]``."""
    return distances.sort(dim=-1, stable=True).indices[..., :keep]

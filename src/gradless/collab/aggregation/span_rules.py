"""Rules in the span of their rows: from the centred Gram matrix of what a receiver got to the weights of its rows.

Whatever such a rule does not give to a row goes to the origin. A row that is not finite gets weight only where more
than f of them leave no choice.

A rule has one of two forms. Where the work lies in a search or an eigenvalue problem, it is written for one receiver,
``(gram, pivot) -> float64 [N]``. Rules of a few vector operations are written for all receivers at once, ``GramBatch ->
float64 [P, N]``, since a search for an attack's strength asks for every receiver's weights forty times in an exchange
and the calls would cost more than the numbers; `gradless.collab.aggregation.base.together` derives the form for one
receiver from them. No rule is written twice.

Shapes: P receivers, N rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradless.collab.aggregation import passes
from gradless.collab.aggregation.gram import CentredGram, mean_of, smallest

CHUNK = 2048  # subsets whose eigenvalues are computed together


Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
TINY = 1e-300  # instead of a distance of zero
EQUAL = 1 - 1e-12  # of two eigenvalues, the larger over the smaller one is not below it


class GramBatch(NamedTuple):
    """The Gram matrices of P receivers who got the same number of rows."""

    inner: Numbers  # [P, N+1, N+1] inner products around each one's centre; the last row is the origin
    finite: Flags  # [P, N]
    pivots: npt.NDArray[np.int64]  # [P] the row that is the receiver's own
    mixing: Numbers | None = None  # [P, N] what a sparse graph makes the rows weigh, sum 1; None: no graph

    @property
    def rows(self) -> int:
        """N."""
        return int(self.finite.shape[1])

    def some(self, chosen: Flags) -> GramBatch:
        """Return those of the chosen receivers, bool ``[P]``."""
        mixing = None if self.mixing is None else self.mixing[chosen]
        return GramBatch(self.inner[chosen], self.finite[chosen], self.pivots[chosen], mixing)

    def distances_from(self, points: Numbers) -> Numbers:
        """Return distances ``[P, N]`` of the rows from a combination of them and the origin, ``[P, N+1]``."""
        towards = (self.inner @ points[:, :, None])[:, :, 0]
        squared = self.inner.diagonal(axis1=1, axis2=2) - 2 * towards
        squared += (points * towards).sum(1, keepdims=True)
        np.maximum(squared, 0, out=squared)
        return np.sqrt(squared[:, :-1])


def batch_of(grams: Sequence[CentredGram], pivots: Sequence[int], mixing: Sequence[Tensor | None] = ()) -> GramBatch:
    """Return the Gram matrices of receivers with equally many rows; one that all share is not copied.

    Args:
        grams: one for each of P receivers.
        pivots: the row of each that is its own.
        mixing: what a graph makes the rows of each weigh, ``[N]``; empty or None without a graph.
    """
    weights = [one.numpy() for one in mixing if one is not None]
    if weights:
        return batch_of(grams, pivots)._replace(mixing=np.stack(weights))
    own = np.array(pivots, np.int64)
    first = grams[0]
    if all(gram is first for gram in grams):
        inner, finite = first.points().inner.numpy(), first.finite.numpy()
        return GramBatch(
            np.broadcast_to(inner, (len(own), *inner.shape)), np.broadcast_to(finite, (len(own), len(finite))), own
        )
    inner = np.stack([gram.points().inner.numpy() for gram in grams])
    return GramBatch(inner, np.stack([gram.finite.numpy() for gram in grams]), own)


# ---------------------------------------------------------------------------------------------------------------
# for one receiver


def uniform(gram: CentredGram, pivot: int) -> Tensor:
    """Weigh all rows alike."""
    return torch.full((gram.rows,), 1 / gram.rows, dtype=torch.float64)


def krum_scores(squared: Tensor, f: int) -> Tensor:
    """Return the sum of squared distances of every row to its N - f - 1 nearest others: float64 ``[N]``."""
    return squared.sort(1).values[:, 1 : squared.shape[0] - f].sum(1)


def best_scores(gram: CentredGram, pivot: int, f: int, keep: int) -> Tensor:
    """Average the ``keep`` rows of the smallest Krum scores."""
    return mean_of(gram.rows, smallest(krum_scores(gram.squared(), f), keep))


def shortest(gram: CentredGram, pivot: int, keep: int) -> Tensor:
    """Average the ``keep`` shortest rows."""
    return mean_of(gram.rows, smallest(gram.norms(), keep))


def least_diameter(gram: CentredGram, pivot: int, f: int) -> Tensor:
    """Average the first subset of N - f rows, in lexicographic order, with the least diameter.

    Rows farther apart than a threshold are joined; a subset within it is what is left when a vertex cover of at most f
    rows is taken away. The threshold is bisected.
    """
    n = gram.rows
    squared = gram.squared()
    levels = torch.cat((torch.zeros(1, dtype=torch.float64), squared.flatten())).unique().tolist()
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _coverable(_far(squared, levels[middle]), (1 << n) - 1, f) else (middle + 1, high)
    far, alive = _far(squared, levels[low]), (1 << n) - 1
    kept: list[int] = []
    for i in range(n):
        if not alive >> i & 1:
            continue
        left = alive & ~far[i]
        if len(kept) < n - f and _coverable(far, left, f - (n - left.bit_count())):
            kept.append(i)
            alive = left
        else:
            alive &= ~(1 << i)
    return mean_of(n, torch.tensor(kept[: n - f]))


def _far(squared: Tensor, level: float) -> list[int]:
    """Return for every row the rows farther from it than the level, as a bit mask."""
    far = ((squared > level) & ~torch.eye(len(squared), dtype=torch.bool)).tolist()
    return [sum(1 << j for j, is_far in enumerate(line) if is_far) for line in far]


def _coverable(joined: list[int], alive: int, budget: int) -> bool:
    """Whether taking away at most ``budget`` of the rows in ``alive`` leaves none joined to another."""
    if budget < 0:
        return False
    most, degree, total, rest = -1, 0, 0, alive
    while rest:
        i = (rest & -rest).bit_length() - 1
        rest &= rest - 1
        own = (joined[i] & alive).bit_count()
        total += own
        if own > degree:
            most, degree = i, own
    if degree == 0:
        return True
    if total > 2 * degree * budget:
        return False
    neighbours = joined[most] & alive
    if degree > 1 and _coverable(joined, alive & ~(1 << most), budget - 1):
        return True
    return _coverable(joined, alive & ~neighbours & ~(1 << most), budget - degree)


def least_eigenvalue(gram: CentredGram, pivot: int, f: int) -> Tensor:
    """Average the first subset of N - f rows with the least top eigenvalue of its scatter.

    Eigenvalues that agree to 12 digits are equal.
    """
    n = gram.rows
    keep = n - f
    sound = gram.finite.nonzero().flatten()
    if len(sound) < keep or keep < 2:
        return mean_of(n, smallest(gram.squared().sum(1), keep))
    inner, squared = gram.points().inner[:-1, :-1][sound][:, sound], gram.squared()[sound][:, sound]
    start = smallest(squared, keep)[int(smallest(squared.sort(1).values[:, :keep].sum(1), 1))]
    bound = [max(float(_top_eigenvalues(inner, start[None])[0]) * (1 + 1e-9), TINY)]
    least, best = math.inf, torch.arange(keep)
    subsets = _subsets_below if passes.compiled(inner.device) else _every_subset
    for index in subsets(inner, squared, keep, bound):
        top = _top_eigenvalues(inner, index)
        first = int(smallest(top, 1))
        if float(top[first]) < least * EQUAL:
            least, best = float(top[first]), index[first]
            bound[0] = min(bound[0], least * EQUAL)
    return mean_of(n, sound[best])


def _subsets_below(inner: Tensor, squared: Tensor, keep: int, bound: Sequence[float]) -> Iterator[Tensor]:
    """Yield subsets [1, k] in lexicographic order whose top eigenvalue is below ``bound[0]``, which may fall meanwhile.

    The scatter of some of a subset's rows is never larger than that of all, so beginnings are ruled out as they grow.
    """
    from gradless.collab.aggregation import numba_kernels

    subset, resume, own = np.zeros(keep, np.int64), False, inner.contiguous().numpy()
    while numba_kernels.next_within(own, bound[0], subset, resume):
        resume = True
        yield torch.from_numpy(subset.copy())[None]


def _every_subset(inner: Tensor, squared: Tensor, keep: int, bound: Sequence[float]) -> Iterator[Tensor]:
    """Yield all subsets [B, k] but those that two of their rows, or the mean of the eigenvalues, rule out."""
    subsets = itertools.combinations(range(len(inner)), keep)
    while chunk := list(itertools.islice(subsets, CHUNK)):
        index = torch.tensor(chunk)
        apart = squared[index[:, :, None], index[:, None, :]].flatten(1)
        floor = torch.maximum(apart.amax(1) / 2, apart.sum(1) / (2 * keep * (keep - 1)))
        index = index[floor <= bound[0]]
        if len(index):
            yield index


def _top_eigenvalues(inner: Tensor, index: Tensor) -> Tensor:
    """Return the top eigenvalues of the scatter of subsets ``[B, k]``: ``[B]``."""
    within = inner[index[:, :, None], index[:, None, :]]
    within = within - within.mean(1, keepdim=True)
    within = within - within.mean(2, keepdim=True)
    largest: Tensor = torch.linalg.eigvalsh(within)[:, -1]
    return largest


def filtered(gram: CentredGram, pivot: int, f: int) -> Tensor:
    """Lower the weights of rows that stand out along the top principal direction; keep the best mean on the way."""
    n, finite = gram.rows, gram.finite
    wild = n - int(finite.sum())
    if wild == n:
        return uniform(gram, pivot)
    inner = gram.points().inner[:-1, :-1]
    _, bits = math.frexp(float(inner.abs().max()))
    inner = inner * 2.0**-bits if bits > 300 else inner  # their fourth powers must be numbers
    weights, least, best = finite.double(), math.inf, finite.double() / (n - wild)
    while True:
        share = weights / weights.sum()
        towards = inner @ share
        around = inner - towards[:, None] - towards + share @ towards
        root = share.sqrt()
        values, vectors = torch.linalg.eigh(root[:, None] * around * root)
        if float(values[-1]) < least:
            least, best = float(values[-1]), share
        outward = torch.where(finite & (weights > 0), (around @ (root * vectors[:, -1])).square(), 0.0)
        if float(outward.max()) <= 0:
            return best
        weights = weights * (1 - outward / outward.max())
        if float(weights.sum()) <= n - wild - 2 * max(0, f - wild):
            return best


# ---------------------------------------------------------------------------------------------------------------
# for all receivers at once


def near_pivot(grams: GramBatch, keep: int) -> Numbers:
    """Average the ``keep`` rows nearest to the pivot, which is its own nearest; ties by index."""
    everyone, own = np.arange(len(grams.pivots)), grams.pivots
    lengths = grams.inner.diagonal(axis1=1, axis2=2)[:, :-1]
    squared = lengths + lengths[everyone, own][:, None] - 2 * grams.inner[everyone, own, :-1]
    np.maximum(squared, 0, out=squared)
    squared[~(grams.finite & grams.finite[everyone, own][:, None])] = np.inf
    squared[everyone, own] = -1.0  # before others at distance zero
    weights = np.zeros_like(squared)
    np.put_along_axis(weights, squared.argsort(1, kind="stable")[:, :keep], 1 / keep, 1)
    return weights


def by_graph(grams: GramBatch) -> Numbers:
    """Weigh rows as the graph does."""
    assert grams.mixing is not None, "only a graph gives weights"
    return grams.mixing.copy()


def weiszfeld(grams: GramBatch, iterations: int, nu: float | None, tolerance: float, from_origin: bool) -> Numbers:
    """Reweight by inverse distances, until the point moves less than ``tolerance`` of the typical distance."""
    finite, n = grams.finite, grams.rows
    typical = _typical(grams)
    scale = typical.min(1)
    weights = np.full((len(finite), n), 1 / n)  # of receivers that have no finite row
    moving = finite.sum(1) > 0
    if not from_origin:  # more than half of the rows are the same: that is the median
        still = moving & (scale == 0.0)
        weights[still] = (typical[still] == 0) / (typical[still] == 0).sum(1, keepdims=True)
        moving &= ~still
    points = np.zeros((int(moving.sum()), n + 1))
    if from_origin:
        points[:, -1] = 1.0
    else:  # near the rows in the midst, however far away others are
        points[:, :-1] = 1 / typical[moving]
        points /= points.sum(1, keepdims=True)
    least = np.maximum(1e-6 * scale if nu is None else nu, TINY) * np.ones(len(scale))
    least, enough = least[moving, None], (tolerance * scale[moving]) ** 2
    grams, receivers = grams.some(moving), moving.nonzero()[0]
    for _ in range(iterations):
        if not len(receivers):
            break
        pulls = grams.finite / np.maximum(grams.distances_from(points), least)
        change = -points
        change[:, :-1] += pulls / pulls.sum(1, keepdims=True)
        points = points + change
        moved = (change * (grams.inner @ change[:, :, None])[:, :, 0]).sum(1)
        weights[receivers] = points[:, :-1]
        left = ~(moved <= enough)
        if not left.all():
            grams, receivers, points = grams.some(left), receivers[left], points[left]
            least, enough = least[left], enough[left]
    return weights


def _typical(grams: GramBatch) -> Numbers:
    """Return the median distance ``[P, N]`` of each row from the finite ones; infinite for rows that are not finite."""
    inner, finite = grams.inner[:, :-1, :-1], grams.finite
    lengths = inner.diagonal(axis1=1, axis2=2)
    squared = lengths[:, :, None] + lengths[:, None] - 2 * inner
    np.maximum(squared, 0, out=squared)
    squared[~(finite[:, :, None] & finite[:, None])] = np.inf
    own = np.arange(grams.rows)
    squared[:, own, own] = np.where(finite, 0.0, np.inf)
    middle = np.maximum(finite.sum(1) - 1, 0) // 2
    return np.sqrt(np.take_along_axis(np.sort(squared, 2), middle[:, None, None], 2)[:, :, 0])


def clipped(grams: GramBatch, from_pivot: bool, f: int | None, radius: float | None, iterations: int) -> Numbers:
    """Step by the mean of differences cut to a radius, from the pivot, or else from the origin.

    Without a radius it is found anew at every step, from the N - f rows nearest to where the step starts. On a graph
    rows weigh what it gives them instead of 1 / N.
    """
    finite, n = grams.finite, grams.rows
    share = finite / n if grams.mixing is None else finite * grams.mixing
    points = np.zeros((len(finite), n + 1))
    points[np.arange(len(finite)), grams.pivots if from_pivot else -1] = 1.0
    for _ in range(iterations):
        distances = grams.distances_from(points)
        reach = np.full((len(finite), 1), radius if radius is not None else np.inf)
        if radius is None and f:
            measured = np.where(finite, distances, np.inf)
            reach = _adaptive_radius(measured, f) if grams.mixing is None else _radius_on_graph(measured, f, grams)
        cut = np.isfinite(reach)
        bound = np.where(cut, reach, 0.0)
        step = share * np.where(cut, bound / np.maximum(distances, np.maximum(bound, TINY)), 1.0)
        points *= 1 - step.sum(1, keepdims=True)
        points[:, :-1] += step
    return points[:, :-1]


def _adaptive_radius(distances: Numbers, f: int) -> Numbers:
    """Return the square root ``[P, 1]`` of the sum of the N - f smallest squared distances over f."""
    kept = np.sort(distances, 1)[:, : distances.shape[1] - f]
    radius: Numbers = np.sqrt((kept * kept).sum(1, keepdims=True) / f)
    return radius


def _radius_on_graph(distances: Numbers, f: int, grams: GramBatch) -> Numbers:
    """Return the radius ``[P, 1]`` of receivers who take the weight w of their f heaviest neighbours for Byzantine.

    The square root of the weighted squared distances over w, of the nearest rows that weigh at most 1 - w together.
    With equal weights it is `_adaptive_radius`.
    """
    assert grams.mixing is not None
    others = grams.mixing.copy()
    np.put_along_axis(others, grams.pivots[:, None], 0.0, 1)
    byzantine = np.sort(others, 1)[:, -f:].sum(1, keepdims=True)
    order = distances.argsort(1, kind="stable")
    weights = np.take_along_axis(grams.mixing, order, 1)
    kept = weights.cumsum(1) <= 1 - byzantine + 1e-12
    nearest = np.where(kept, np.take_along_axis(distances, order, 1), 0.0)
    radius: Numbers = np.sqrt((weights * nearest * nearest).sum(1, keepdims=True) / byzantine)
    return radius

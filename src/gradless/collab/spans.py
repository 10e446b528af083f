"""Rules in the span of their rows: each a function from geometry to weights.

Shapes: N rows; all weights float64 ``[N]``. Whatever such a rule does not give to a row goes to the origin. A row that
is not finite gets weight only where more than f of them leave no choice.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from gradless.collab.geometry import Geometry
from gradless.collab.stages import chosen, nearest

CHUNK = 2048  # subsets whose eigenvalues are computed together


def uniform(geometry: Geometry, pivot: int) -> Tensor:
    """All rows alike."""
    return torch.full((geometry.rows,), 1 / geometry.rows, dtype=torch.float64)


def krum_scores(squared: Tensor, f: int) -> Tensor:
    """The sum of squared distances of every row to its N - f - 1 nearest others."""
    return squared.sort(1).values[:, 1 : squared.shape[0] - f].sum(1)


def best_scores(geometry: Geometry, pivot: int, f: int, keep: int) -> Tensor:
    """The ``keep`` rows of the smallest Krum scores."""
    return chosen(geometry.rows, nearest(krum_scores(geometry.squared(), f), keep))


def shortest(geometry: Geometry, pivot: int, keep: int) -> Tensor:
    """The ``keep`` shortest rows."""
    return chosen(geometry.rows, nearest(geometry.norms(), keep))


def least_diameter(geometry: Geometry, pivot: int, f: int) -> Tensor:
    """The first subset of N - f rows, in lexicographic order, with the least diameter.

    Rows farther apart than a threshold are joined; a subset within it is what is left when a vertex cover of at most f
    rows is taken away. The threshold is bisected.
    """
    n = geometry.rows
    squared = geometry.squared()
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
    return chosen(n, torch.tensor(kept[: n - f]))


def _far(squared: Tensor, level: float) -> list[int]:
    """For every row the rows farther from it than the level, as a bit mask."""
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


def least_eigenvalue(geometry: Geometry, pivot: int, f: int) -> Tensor:
    """The first subset of N - f rows with the least top eigenvalue of its covariance.

    Subsets that two of their rows, or the mean of the eigenvalues, rule out are not decomposed.
    """
    n = geometry.rows
    keep = n - f
    sound = geometry.finite.nonzero().flatten()
    if len(sound) < keep or keep < 2:
        return chosen(n, nearest(geometry.squared().sum(1), keep))
    inner, squared = geometry.points().inner[:-1, :-1], geometry.squared()
    least, best = math.inf, sound[:keep]
    subsets = itertools.combinations(sound.tolist(), keep)
    start = nearest(squared, keep)[int(nearest(krum_scores(squared, f), 1))]
    bound = float(_top_eigenvalues(inner, start[None])[0]) * (1 + 1e-9)
    while chunk := list(itertools.islice(subsets, CHUNK)):
        index = torch.tensor(chunk)
        apart = squared[index[:, :, None], index[:, None, :]].flatten(1)
        floor = torch.maximum(apart.amax(1) / 2, apart.sum(1) / (2 * keep * (keep - 1)))
        index = index[floor <= bound]
        if len(index) == 0:
            continue
        top = _top_eigenvalues(inner, index)
        first = int(nearest(top, 1))
        if float(top[first]) < least:
            least, best = float(top[first]), index[first]
            bound = min(bound, least)
    return chosen(n, best)


def _top_eigenvalues(inner: Tensor, index: Tensor) -> Tensor:
    """The top eigenvalues of the scatter of subsets ``[B, k]``."""
    within = inner[index[:, :, None], index[:, None, :]]
    within = within - within.mean(1, keepdim=True)
    within = within - within.mean(2, keepdim=True)
    return torch.linalg.eigvalsh(within)[:, -1]


def filtered(geometry: Geometry, pivot: int, f: int) -> Tensor:
    """Down-weight rows that stand out along the top principal direction; the best weighted mean on the way."""
    n, finite = geometry.rows, geometry.finite
    wild = n - int(finite.sum())
    if wild == n:
        return uniform(geometry, pivot)
    inner = geometry.points().inner[:-1, :-1]
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

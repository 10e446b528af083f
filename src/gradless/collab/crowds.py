"""Rules in the span of their rows that all receivers compute at once: from a crowd of geometries to weights.

In a round each receiver looks at rows of its own, and an attacker who searches asks for all results forty times. On so
few numbers the calls cost more than the arithmetic, so here one call serves all receivers. NumPy, for the same reason.

Shapes: P receivers, N rows; all weights float64 ``[P, N]``. Whatever a receiver does not give to a row goes to the
origin. Each receiver's weights depend on its own rows alone, whoever else is in the crowd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradless.collab.geometry import Geometry

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
TINY = 1e-300  # instead of a distance of zero


class Crowd(NamedTuple):
    """The geometries of several receivers with the same number of rows."""

    inner: Numbers  # [P, N+1, N+1] inner products around each one's centre; the last row is the origin
    finite: Flags  # [P, N]
    pivots: npt.NDArray[np.int64]  # [P] the row that is the receiver's own

    @property
    def rows(self) -> int:
        """N."""
        return self.finite.shape[1]

    def some(self, chosen: Flags) -> Crowd:
        """Some of the receivers, [P] -> a smaller crowd."""
        return Crowd(self.inner[chosen], self.finite[chosen], self.pivots[chosen])

    def distances_from(self, points: Numbers) -> Numbers:
        """Distances ``[P, N]`` of the rows from an affine combination of them and the origin, ``[P, N+1]``."""
        towards = (self.inner @ points[:, :, None])[:, :, 0]
        found = self.inner.diagonal(axis1=1, axis2=2) - 2 * towards
        found += (points * towards).sum(1, keepdims=True)
        np.maximum(found, 0, out=found)
        return np.sqrt(found[:, :-1])


def crowd(geometries: Sequence[Geometry], pivots: Sequence[int]) -> Crowd:
    """A crowd of geometries of the same number of rows; one that all share is not copied."""
    own = np.array(pivots, np.int64)
    first = geometries[0]
    if all(geometry is first for geometry in geometries):
        inner, finite = first.points().inner.numpy(), first.finite.numpy()
        return Crowd(
            np.broadcast_to(inner, (len(own), *inner.shape)), np.broadcast_to(finite, (len(own), len(finite))), own
        )
    inner = np.stack([geometry.points().inner.numpy() for geometry in geometries])
    return Crowd(inner, np.stack([geometry.finite.numpy() for geometry in geometries]), own)


def near_pivot(given: Crowd, keep: int) -> Numbers:
    """The ``keep`` rows nearest to the pivot, which is its own nearest; ties by index."""
    everyone, own = np.arange(len(given.pivots)), given.pivots
    lengths = given.inner.diagonal(axis1=1, axis2=2)[:, :-1]
    squared = lengths + lengths[everyone, own][:, None] - 2 * given.inner[everyone, own, :-1]
    np.maximum(squared, 0, out=squared)
    squared[~(given.finite & given.finite[everyone, own][:, None])] = np.inf
    squared[everyone, own] = -1.0  # before others at distance zero
    weights = np.zeros_like(squared)
    np.put_along_axis(weights, squared.argsort(1, kind="stable")[:, :keep], 1 / keep, 1)
    return weights


def weiszfeld(given: Crowd, iterations: int, nu: float | None, tolerance: float, from_origin: bool) -> Numbers:
    """Reweighting by inverse distances, until the point moves less than ``tolerance`` of the typical distance."""
    finite, n = given.finite, given.rows
    typical = _typical(given)
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
    given, places = given.some(moving), moving.nonzero()[0]
    for _ in range(iterations):
        if not len(places):
            break
        pulls = given.finite / np.maximum(given.distances_from(points), least)
        change = -points
        change[:, :-1] += pulls / pulls.sum(1, keepdims=True)
        points = points + change
        moved = (change * (given.inner @ change[:, :, None])[:, :, 0]).sum(1)
        weights[places] = points[:, :-1]
        left = ~(moved <= enough)
        if not left.all():
            given, places, points = given.some(left), places[left], points[left]
            least, enough = least[left], enough[left]
    return weights


def _typical(given: Crowd) -> Numbers:
    """The median distance ``[P, N]`` of each row from the finite ones; infinite for rows that are not finite."""
    inner, finite = given.inner[:, :-1, :-1], given.finite
    lengths = inner.diagonal(axis1=1, axis2=2)
    squared = lengths[:, :, None] + lengths[:, None] - 2 * inner
    np.maximum(squared, 0, out=squared)
    squared[~(finite[:, :, None] & finite[:, None])] = np.inf
    own = np.arange(given.rows)
    squared[:, own, own] = np.where(finite, 0.0, np.inf)
    middle = np.maximum(finite.sum(1) - 1, 0) // 2
    return np.sqrt(np.take_along_axis(np.sort(squared, 2), middle[:, None, None], 2)[:, :, 0])


def clipped(given: Crowd, from_pivot: bool, f: int | None, radius: float | None, iterations: int) -> Numbers:
    """Steps by the mean of differences cut to a radius, from the pivot, or else from the origin.

    Without a radius it is found anew at every step, from the N - f rows nearest to where the step starts.
    """
    finite, n = given.finite, given.rows
    points = np.zeros((len(finite), n + 1))
    points[np.arange(len(finite)), given.pivots if from_pivot else -1] = 1.0
    for _ in range(iterations):
        distances = given.distances_from(points)
        reach = np.full((len(finite), 1), radius if radius is not None else np.inf)
        if radius is None and f:
            reach = _adaptive_radius(np.where(finite, distances, np.inf), f)
        cut = np.isfinite(reach)
        bound = np.where(cut, reach, 0.0)
        step = finite / n * np.where(cut, bound / np.maximum(distances, np.maximum(bound, TINY)), 1.0)
        points *= 1 - step.sum(1, keepdims=True)
        points[:, :-1] += step
    return points[:, :-1]


def _adaptive_radius(distances: Numbers, f: int) -> Numbers:
    """The square root ``[P, 1]`` of the sum of the N - f smallest squared distances over f."""
    kept = np.sort(distances, 1)[:, : distances.shape[1] - f]
    return np.sqrt((kept * kept).sum(1, keepdims=True) / f)

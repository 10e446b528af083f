"""Where labels go so that they do not cover each other. Plain geometry, in points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

RADII = (5, 10, 16, 24, 34, 46, 60, 76, 94, 114, 136, 160, 190, 225, 260)
DIRECTIONS = tuple((math.cos(turn * math.pi / 12), math.sin(turn * math.pi / 12)) for turn in range(24))
Point = tuple[float, float]
OVERLAP, OUTSIDE, CROSSING = 1e4, 1e5, 60.0


class Box(NamedTuple):
    """A rectangle; y grows upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.top <= other.bottom or other.top <= self.bottom)

    def inside(self, other: Box) -> bool:
        """Whether it lies in the other one."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Its point next to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def holds(self, x: float, y: float) -> bool:
        """Whether (x, y) lies in it."""
        return self.left < x < self.right and self.bottom < y < self.top


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart and as near as possible (least squares) to the wanted ones, in their order.

    They lie in ``[low, high]`` if there is room, else evenly beyond both ends. Isotonic regression of
    ``wanted[i] - i * gap``, by pooling adjacent violators.

    Example:
        >>> spread([0.0, 0.0, 10.0], 2.0, -5.0, 20.0)
        [-1.0, 1.0, 10.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, size = wanted[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, more = pools.pop()
            mean, size = (mean * size + other * more) / (size + more), size + more
        pools.append((mean, size))
    room = high - (len(wanted) - 1) * gap
    low, room = (low, room) if room >= low else ((low + room) / 2,) * 2
    flat = [min(max(mean, low), room) for mean, size in pools for _ in range(size)]
    positions = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        positions[i] = flat[rank] + rank * gap
    return positions


def place(
    anchors: Sequence[Point],
    area: Box,
    obstacles: Sequence[Box] = (),
    *,
    sizes: Sequence[tuple[float, float]],
) -> list[Box]:
    """A box of each size near its anchor, inside ``area``, clear of the obstacles and of the other boxes.

    Greedy: the most crowded anchor last but one is no worse than it must be, since each takes the cheapest of
    24 directions and 15 distances; leaders that would cross another box cost as much as a longer way round. Where
    there is no room at all, the least overlap is taken.
    """
    crowd = [sum(math.dist(a, b) < 60 for b in anchors) for a in anchors]
    placed: dict[int, Box] = {}
    leaders: list[tuple[Point, Point]] = []
    for i in sorted(range(len(anchors)), key=lambda i: (-crowd[i], -anchors[i][1], i)):
        occupied = [*obstacles, *placed.values()]
        box, least = Box(*anchors[i], *anchors[i]), math.inf
        for radius, candidate in _candidates(anchors[i], sizes[i]):
            cost = _cost(candidate, anchors[i], radius, area, occupied, leaders, least)
            box, least = (candidate, cost) if cost < least else (box, least)
        placed[i] = box
        leaders.append((anchors[i], box.nearest(*anchors[i])))
    return [placed[i] for i in range(len(anchors))]


def _candidates(anchor: Point, size: tuple[float, float]) -> Iterator[tuple[float, Box]]:
    """Boxes whose near side is ``radius`` away, in every direction."""
    (x, y), (width, height) = anchor, size
    for radius in RADII:
        for across, up in DIRECTIONS:
            cx, cy = x + across * (radius + width / 2), y + up * (radius + height / 2)
            yield radius, Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)


def _cost(
    box: Box,
    anchor: Point,
    radius: float,
    area: Box,
    occupied: Sequence[Box],
    leaders: Sequence[tuple[Point, Point]],
    limit: float,
) -> float:
    """The cost of a box for a label; no more is worked out than that it is above ``limit``."""
    near = box.nearest(*anchor)
    cost = math.dist(near, anchor) + 0.2 * radius + OUTSIDE * (not box.inside(area))
    if cost >= limit:
        return cost
    cost += OVERLAP * sum(box.overlaps(other) for other in occupied)
    if cost >= limit:
        return cost
    leader = _along(anchor, near, range(2, 8))
    cost += CROSSING * sum(any(other.holds(*point) for point in leader) for other in occupied)
    for start, end in leaders:
        cost += CROSSING * any(box.holds(*point) for point in _along(start, end, range(9)))
        cost += CROSSING * _cross(start, end, anchor, near)
    return cost


def _along(start: Point, end: Point, eighths: Iterable[int]) -> list[Point]:
    """Points of a segment."""
    return [(start[0] + n / 8 * (end[0] - start[0]), start[1] + n / 8 * (end[1] - start[1])) for n in eighths]


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the segments ab and cd cross."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0

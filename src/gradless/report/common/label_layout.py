"""Where labels go so that they do not cover each other. Plain geometry, in points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

RADII = (5, 10, 16, 24, 34, 46, 60, 76, 94, 114, 136, 160, 190, 225, 260)
DIRECTIONS = tuple((math.cos(turn * math.pi / 12), math.sin(turn * math.pi / 12)) for turn in range(24))
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
    """Places at least ``gap`` apart and as near as possible (least squares) to the wanted ones, in their order.

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
    places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        places[i] = flat[rank] + rank * gap
    return places


def place(
    anchors: Sequence[tuple[float, float]],
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
    leaders: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for i in sorted(range(len(anchors)), key=lambda i: (-crowd[i], -anchors[i][1], i)):
        taken = [*obstacles, *placed.values()]
        box, least = Box(*anchors[i], *anchors[i]), math.inf
        for radius, candidate in _candidates(anchors[i], sizes[i]):
            cost = _cost(candidate, anchors[i], radius, area, taken, leaders, least)
            box, least = (candidate, cost) if cost < least else (box, least)
        placed[i] = box
        leaders.append((anchors[i], box.nearest(*anchors[i])))
    return [placed[i] for i in range(len(anchors))]


def _candidates(anchor: tuple[float, float], size: tuple[float, float]) -> list[tuple[float, Box]]:
    """Boxes whose near side is ``radius`` away, in every direction."""
    (x, y), (width, height) = anchor, size
    found: list[tuple[float, Box]] = []
    for radius in RADII:
        for across, up in DIRECTIONS:
            cx, cy = x + across * (radius + width / 2), y + up * (radius + height / 2)
            found.append((radius, Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)))
    return found


def _cost(
    box: Box,
    anchor: tuple[float, float],
    radius: float,
    area: Box,
    taken: Sequence[Box],
    leaders: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    limit: float,
) -> float:
    """What a place for a label costs; no more is worked out than that it is above ``limit``."""
    near = box.nearest(*anchor)
    cost = math.dist(near, anchor) + 0.2 * radius + OUTSIDE * (not box.inside(area))
    if cost >= limit:
        return cost
    cost += OVERLAP * sum(box.overlaps(other) for other in taken)
    if cost >= limit:
        return cost
    on_the_way = [
        (anchor[0] + part / 8 * (near[0] - anchor[0]), anchor[1] + part / 8 * (near[1] - anchor[1]))
        for part in range(2, 8)
    ]
    cost += CROSSING * sum(any(other.holds(*point) for point in on_the_way) for other in taken)
    for start, end in leaders:
        middle = [
            (start[0] + part / 8 * (end[0] - start[0]), start[1] + part / 8 * (end[1] - start[1])) for part in range(9)
        ]
        cost += CROSSING * any(box.holds(*point) for point in middle)
        cost += CROSSING * _cross(start, end, anchor, near)
    return cost


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    """Whether the segments ab and cd cross."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0

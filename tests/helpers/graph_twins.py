"""The algorithms on graphs as their papers write them, with loops and float64: what the program's are compared with."""

from __future__ import annotations

import math

import numpy as np

Rows = dict[int, np.ndarray]


def weight(neighbours: list[list[int]], i: int, j: int) -> float:
    """Metropolis-Hastings: W_ij of two neighbours, or W_ii."""
    if i != j:
        return 1.0 / (1 + max(len(neighbours[i]), len(neighbours[j])))
    return 1.0 - sum(weight(neighbours, i, k) for k in neighbours[i])


def d_sgd(neighbours: list[list[int]], i: int, rows: Rows) -> np.ndarray:
    """Lian et al. 2017, the mixing of Algorithm 1."""
    total = weight(neighbours, i, i) * rows[i]
    for j in neighbours[i]:
        total = total + weight(neighbours, i, j) * rows[j]
    return total


def bridge(neighbours: list[list[int]], i: int, rows: Rows, f: int) -> np.ndarray:
    """Yang and Bajwa 2019: neighbours' values without f on either side, and the own one, column by column."""
    result = np.empty_like(rows[i])
    for column in range(len(rows[i])):
        values = sorted(float(rows[j][column]) for j in neighbours[i])
        kept = values[f : len(values) - f]
        result[column] = (sum(kept) + float(rows[i][column])) / (len(neighbours[i]) - 2 * f + 1)
    return result


def clip(vector: np.ndarray, radius: float) -> np.ndarray:
    """min(1, radius / |vector|) vector."""
    length = float(np.sqrt((vector**2).sum()))
    return vector if length <= radius else vector * (radius / length)


def clipped_gossip(neighbours: list[list[int]], i: int, rows: Rows, radius: float) -> np.ndarray:
    """He, Karimireddy, Jaggi 2022: x_i + sum_j W_ij clip(x_j - x_i, radius)."""
    total = rows[i].copy()
    for j in neighbours[i]:
        total = total + weight(neighbours, i, j) * clip(rows[j] - rows[i], radius)
    return total


def radius_of(neighbours: list[list[int]], i: int, rows: Rows, f: int) -> float:
    """Its practical radius: the f heaviest neighbours may be Byzantine, the nearest rows of the rest are believed."""
    byzantine = sum(sorted((weight(neighbours, i, j) for j in neighbours[i]), reverse=True)[:f])
    near = sorted([i, *neighbours[i]], key=lambda j: float(np.linalg.norm(rows[j] - rows[i])))
    believed, total = 0.0, 0.0
    for j in near:
        believed += weight(neighbours, i, j)
        if believed > 1 - byzantine + 1e-9:
            break
        total += weight(neighbours, i, j) * float(((rows[j] - rows[i]) ** 2).sum())
    return math.sqrt(total / byzantine)


def scc(neighbours: list[list[int]], i: int, rows: Rows, radius: float, iterations: int) -> np.ndarray:
    """Self-centred clipping, several times on the same rows."""
    point = rows[i].copy()
    for _ in range(iterations):
        step = np.zeros_like(point)
        for j in [i, *neighbours[i]]:
            step = step + weight(neighbours, i, j) * clip(rows[j] - point, radius)
        point = point + step
    return point


def nna(neighbours: list[list[int]], i: int, rows: Rows, f: int) -> np.ndarray:
    """Farhadkhani et al. 2023: the mean of the nearest rows, all but f of those that a peer holds."""
    near = sorted([i, *neighbours[i]], key=lambda j: float(np.linalg.norm(rows[j] - rows[i])))
    kept = near[: len(near) - f]
    return sum(rows[j] for j in kept) / len(kept)

"""Orthogonalised updates from thin factors.

Low-rank directions make the estimate of a matrix a product G = A V^T / sqrt(rank) with A = sum_k w_k U_k, so its
polar factor, the nearest matrix with singular values of one, needs nothing of the matrix's own size: two Gram matrices
of the rank's size and their eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from gradless import kernels
from gradless.errors import BadInput, pick
from gradless.gradients import Gradient, Lazy, Leaf, Mixture, length, wide
from gradless.rng import MASK64, Stream
from gradless.rules.base import Rule

# Factor of the polar factor of a [rows, columns] matrix of that rank; anything else counts as one column.
SCALES: Final[dict[str, Callable[[int, int, int], float]]] = {
    "rms": lambda rows, columns, rank: math.sqrt(rows * columns / rank),
    "muon": lambda rows, columns, rank: 0.2 * math.sqrt(max(rows, columns)),
    "none": lambda rows, columns, rank: 1.0,
}
NOISE: Final = 1e-12  # eigenvalues of a Gram matrix below this share of the largest are rounding of float32 factors


def orthogonalise(scale: str = "rms") -> Rule:
    """Replace the estimate of every matrix by its polar factor U V^T, times a scale: the update of ZO-Muon.

    All directions that the queries found get the same weight, however strongly the loss reacted. For directions of
    `gradless.low_rank` (several queries a step and a small rank; the published scripts: four one-sided queries, rank 2
    and a V kept for 100 steps). Momentum goes before it: ``chain(momentum(0.9), orthogonalise())``.

    Vectors, masked leaves and leaves without low-rank directions are normalised as a whole, as matrices of one column
    are. The published code instead moves vectors by plain ZO-SGD at a fixed rate of 1e-7.

    Cost, per leaf: factors of its rows and columns times the rank, O((rows + columns) rank^2) operations, and one
    float32 copy of the leaf; no state. Estimates over several V (momentum across refreshes) stack their factors; where
    these grow wider than the leaf, the leaf's own Gram matrix is used. Not linear; a replay on another machine may
    differ in last bits, since eigenvectors come from the linear algebra library at hand.

    Lang et al. 2026 (ZO-Muon, arXiv 2602.17155).

    Args:
        scale: ``rms`` gives every leaf's update a root mean square of 1, so that a learning rate is the typical change
            of a weight, carries over between leaves, models and ranks, and compares with rates of Adam;
            ``muon`` is 0.2 sqrt(max(rows, columns)), usual for updates of full rank;
            ``none`` is the polar factor itself, as published (vectors get length 1).

    Raises:
        BadInput: an unknown scale; later, a gradient that another rule has made element by element.
    """
    factor = pick("scale", scale, SCALES)

    def update(g: Gradient, state: Any) -> tuple[Gradient, Any]:
        if not isinstance(g, Mixture):
            raise BadInput("orthogonalise needs the estimate itself: put it before element-wise rules in the chain")
        mixture = g
        return Lazy(lambda leaf: _update(leaf, mixture, factor)), state

    return Rule("orthogonalise", lambda: None, update, linear=False)


def _update(leaf: Leaf, mixture: Mixture, factor: Callable[[int, int, int], float]) -> Tensor:
    """The scaled polar factor of one leaf: float32, of its shape."""
    shape = leaf.param.shape
    if leaf.draw is not None or leaf.stream.kind != "low_rank" or leaf.mask is not None:
        g = mixture.leaf(leaf)
        norm = length(g)
        count = g.numel() if leaf.mask is None else int(leaf.mask.sum())
        scale = factor(count, 1, 1) / norm if norm else 1.0
        # Of an estimate so small that the quotient is no float32, the elements are.
        return g.mul_(scale) if scale <= torch.finfo(g.dtype).max else g.copy_(wide(g).mul_(scale))
    if not any(map(leaf.reached, mixture.keys)):
        return torch.zeros(shape, device=leaf.param.device)
    left, right = factors(leaf, mixture)
    rows, columns = left.shape[0], right.shape[0]
    if left.shape[1] <= min(rows, columns):
        polar, rank = thin_polar(left, right)
    else:
        polar, rank = dense_polar(mixture.leaf(leaf).view(rows, columns))
    return polar.mul_(factor(rows, columns, rank)).view(shape) if rank else polar.view(shape)


def factors(leaf: Leaf, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """A ``[rows, R]`` and V ``[columns, R]`` of a low-rank leaf: its share of the mixture is A V^T * unit * amplitude.

    R is the rank times the number of different V among the keys; see `gradless.rng.Stream` for the unit. float32.
    """
    rows, rank, device = leaf.param.shape[0], leaf.stream.rank, leaf.param.device
    stream = Stream("factor", rank)
    terms: dict[int, list[tuple[int, float]]] = {}
    for key, weight in zip(mixture.keys, mixture.weights, strict=True):
        if not leaf.reached(key):
            continue
        terms.setdefault(key >> 64, []).append((key & MASK64, weight))
    lefts, rights = [], []
    for basis, pairs in terms.items():
        left = torch.zeros(rows, rank, device=device)
        right = torch.zeros(leaf.param.numel() // rows, rank, device=device)
        sums = kernels.program([(1.0, [key for key, _ in pairs], [weight for _, weight in pairs])])
        lefts.append(kernels.sweep(left, left, sums, leaf=leaf.id, stream=stream))
        signs = kernels.program([(1.0, [basis], [1.0])])
        rights.append(kernels.sweep(right, right, signs, leaf=leaf.id, stream=stream))
    return torch.cat(lefts, dim=1), torch.cat(rights, dim=1)


def thin_polar(left: Tensor, right: Tensor) -> tuple[Tensor, int]:
    """The polar factor of A V^T from A ``[rows, R]`` and V ``[columns, R]``: float32 ``[rows, columns]``, and its rank.

    With V = Q H, Q orthonormal, and B = A H^T it is B (B^T B)^(-1/2) Q^T = A M V^T: an ``[R, R]`` matrix M in between.
    Singular values below 1e-6 of the largest are taken for zero, and their directions are left out.
    """
    a, v = wide(left), wide(right)
    roots, vectors = _roots(v.T @ v)
    b = a @ (vectors * roots)
    lengths, turns = _roots(b.T @ b)
    middle = (turns / lengths) @ turns.T @ (vectors / roots).T
    return (b @ middle).float().to(right.device) @ right.T, len(lengths)


def dense_polar(matrix: Tensor) -> tuple[Tensor, int]:
    """The polar factor of a ``[rows, columns]`` matrix and its rank, through the Gram matrix of its shorter side.

    float32 ``[rows, columns]``. Singular values below 1e-6 of the largest are taken for zero.
    """
    if matrix.shape[0] < matrix.shape[1]:
        polar, rank = dense_polar(matrix.T)
        return polar.T.contiguous(), rank
    g = wide(matrix)
    lengths, turns = _roots(g.T @ g)
    return (g @ ((turns / lengths) @ turns.T)).float().to(matrix.device), len(lengths)


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of a Gram matrix's eigenvalues, those of rounding left out, and their eigenvectors, in columns."""
    values, vectors = torch.linalg.eigh(gram)
    keep = values > NOISE * values[-1]
    return values[keep].sqrt(), vectors[:, keep]

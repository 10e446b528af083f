"""Small problems with known answers, on which parts are tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from gradless import rng

SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "embed.weight": (7, 6),
    "layers.0.weight": (12, 10),
    "layers.0.bias": (6,),
    "layers.1.weight": (12, 10),
    "layers.1.bias": (6,),
    "layers.2.weight": (4, 3, 2, 2),
    "norm.weight": (5,),
}
"""Names and shapes like those of a model: numbered blocks, two matrices alike, vectors, a convolution."""


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Values for `SHAPES`, a function of the seed."""
    return {name: (rng.normal(seed, name, shape) * 0.3).to(dtype) for name, shape in SHAPES.items()}


class Bowl:
    """Loss = sum over elements of curvature (theta - target)^2 / 2, at points given as mappings of tensors.

    Curvatures lie in [0.5, 1.5]. Everything is float64, so that differences of losses are exact enough to divide.
    """

    SHAPES: Final = {"layers.0.weight": (4, 3), "layers.1.weight": (3, 2), "norm.weight": (4,)}

    def __init__(self) -> None:
        shapes = self.SHAPES
        self.target = {name: rng.normal(1, name, shape).double() for name, shape in shapes.items()}
        self.start = {name: rng.normal(2, name, shape).double() for name, shape in shapes.items()}
        self.curvature = {name: 0.5 + rng.normal(3, name, s).double().abs().clamp(max=1) for name, s in shapes.items()}

    def loss(self, theta: Mapping[str, Tensor]) -> float:
        """The loss at a point."""
        parts = [(self.curvature[n] * (theta[n] - t).square()).sum() for n, t in self.target.items()]
        return float(sum(parts)) / 2

    def gradient(self) -> dict[str, Tensor]:
        """Its gradient at the start."""
        return {n: self.curvature[n] * (self.start[n] - t) for n, t in self.target.items()}


class Model(nn.Module):
    """A convex problem in the clothes of a model: an embedding, blocks of matrices and biases, a norm.

    ``model()`` is ``size`` times the mean over elements of (weight - target)^2, which starts near 1. Of D elements, one
    direction a step can take away a share of 1 / (D + 2) at most; by default D is 116.
    """

    def __init__(self, *, blocks: int = 4, width: int = 4, size: float = 1.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.size = size
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(rng.normal(4, name, p.shape) * 0.3)
        self.targets = {n: p.detach() + rng.normal(5, n, p.shape) for n, p in self.named_parameters()}
        self.count = sum(p.numel() for p in self.parameters())

    def forward(self) -> Tensor:
        """The loss."""
        modules = {"embedding": self.embedding, **{f"layers.{i}": m for i, m in enumerate(self.layers)}}
        modules["norm"] = self.norm
        total = torch.zeros(())
        for name, module in modules.items():
            for kind in ("weight", "bias"):
                value = getattr(module, kind, None)
                if value is not None:
                    target = self.targets[f"{name}.{kind}"].to(value.device)
                    total = total.to(value.device) + (value.float() - target).square().sum()
        return total * (self.size / self.count)


def bits(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the bits of tensors, as integers."""
    kinds = {4: torch.int32, 2: torch.int16, 8: torch.int64}
    return {n: p.detach().clone().contiguous().view(kinds[p.element_size()]) for n, p in values.items()}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str:
    """The name of the first tensor that is not the same in both, or an empty string."""
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())[0]
    return next((name for name in one if not torch.equal(one[name], other[name])), "")

"""Rows for rules and attacks, and a task whose gradients are known."""

from __future__ import annotations

import torch


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Quadratic:
    """Peer i pulls its model towards target i: the gradient at theta is theta - target."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets, (self.peers, self.dimension) = targets, targets.shape

    def start(self) -> torch.Tensor:
        return torch.zeros(self.peers, self.dimension)

    def gradients(self, theta: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return theta - self.targets, (theta - self.targets).square().sum(1) / 2

    def poisoned(self, theta: torch.Tensor, step: int) -> torch.Tensor:
        return theta + self.targets.mean(0, keepdim=True)

    def accuracy(self, theta: torch.Tensor, rows: int | None) -> list[float]:
        return (theta - self.targets).norm(dim=1).tolist()

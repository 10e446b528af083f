"""Rows for rules and attacks, and a task whose gradients are known."""

from __future__ import annotations

import pytest
import torch

from gradless.collab.simulation import progress, simulate
from gradless.system.progress import Reporter


class Cut(Exception):
    """What ends a process in the midst of a step."""


def cut_at(step, config, folder, monkeypatch):
    """Leave an unfinished run with a checkpoint, which ended as a step began."""
    real = simulate._step

    def stumble(now):
        if now.step == step:
            raise Cut
        return real(now)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "SAVE_EVERY", 0.0)
        patch.setattr(simulate, "_step", stumble)
        with pytest.raises(Cut):
            simulate.simulate(config, folder, reporter=Reporter(quiet=True))


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

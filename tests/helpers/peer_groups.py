"""Groups of peers in one process: tiny learners, and threads that run the loop of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from gradless.collab.learners.coefficients import CoefficientPeers, Member, Score
from gradless.gradients import Update
from gradless.methods.mezo import mezo_momentum
from gradless.optimizer import ZerothOrder

RUN = hashlib.sha256(b"a run of tests").digest()[:16]
WrittenRun = TypeVar("WrittenRun")


def member(peer: int, *, queries: int = 4, seed: int = 3, log: Callable[[Update], None] | None = None) -> Member:
    """A peer with a linear model and a target of its own, of which every batch shows another part."""
    model = torch.nn.Linear(12, 2)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 24).view(2, 12))
        model.bias.zero_()
    optimizer: ZerothOrder = mezo_momentum(
        model.named_parameters(), lr=0.02, eps=1e-3, queries=queries, seed=seed, engine="stream"
    )
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(100 + peer))
    target = torch.randn(12, 2, generator=torch.Generator().manual_seed(7)) + 0.1 * peer

    def closure(step: int) -> Callable[[], torch.Tensor]:
        batch = inputs[torch.arange(step * 8, step * 8 + 8) % 64]
        return lambda: (model(batch) - batch @ target).square().mean()

    def score(rows: int | None) -> Score:
        return Score(-float(closure(0)()))

    return Member(optimizer, closure, closure, score, log)


def one(peer: int, **options: object) -> CoefficientPeers:
    """A peer alone."""
    return CoefficientPeers([member(peer, **options)], batch_size=8)  # type: ignore[arg-type]


def in_threads(work: Sequence[Callable[[], WrittenRun]], limit: float = 120.0) -> list[WrittenRun]:
    """Run all at once; the first failure is raised."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result(limit) for future in [pool.submit(one) for one in work]]

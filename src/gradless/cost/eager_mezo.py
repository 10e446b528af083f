"""MeZO as its paper writes it (Malladi et al. 2023, arXiv 2305.17333, algorithm 1): the baseline of every timing.

Not an optimizer to train with. Seeded generators of devices do not travel between machines, and the three moves
+eps, -2 eps, +eps of a probe do not give 16-bit weights back: use `gradless.mezo`, which has neither fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

# The name under which profilers see a sweep over the weights, here and in the engines.
SWEEP = "gradless.sweep"


@torch.no_grad()
def step(params: Sequence[Tensor], closure: Callable[[], Tensor | float], *, lr: float, eps: float, seed: int) -> float:
    """One step of algorithm 1: perturb in place, measure, perturb back, update with the same normals drawn anew.

    As an eager PyTorch program this is lean: a leaf is drawn in one call into scratch that is shared by all leaves,
    and added in another. What it costs over two forwards lies in the algorithm: each of four sweeps draws a normal
    for every weight, and reads and writes all weights.

    Args:
        params: what to tune, changed in place.
        closure: the loss, without a backward pass.
        lr: learning rate.
        eps: perturbation scale.
        seed: of this step's direction.

    Returns:
        Mean of the two losses.

    Cost: two forwards and four sweeps. Memory: the largest leaf.
    """
    scratch = _scratch(params)
    _move(params, eps, seed, scratch)
    plus = float(closure())
    _move(params, -2 * eps, seed, scratch)
    minus = float(closure())
    _move(params, eps, seed, scratch)
    projected = (plus - minus) / (2 * eps)
    _move(params, -lr * projected, seed, scratch)
    return (plus + minus) / 2


def _move(params: Iterable[Tensor], size: float, seed: int, scratch: dict[tuple, Tensor]) -> None:
    """Theta <- theta + size * z, z drawn from the seed leaf by leaf; one generator for each device."""
    generators: dict[torch.device, torch.Generator] = {}
    with torch.profiler.record_function(SWEEP):
        for p in params:
            if p.device not in generators:
                generators[p.device] = torch.Generator(p.device).manual_seed(seed)
            z = scratch[p.device, p.dtype][: p.numel()].view(p.shape)
            torch.normal(0.0, 1.0, p.shape, generator=generators[p.device], out=z)
            p.add_(z, alpha=size)


def _scratch(params: Iterable[Tensor]) -> dict[tuple, Tensor]:
    """Return room for the largest leaf of each device and dtype."""
    sizes: dict[tuple, int] = {}
    for p in params:
        sizes[p.device, p.dtype] = max(p.numel(), sizes.get((p.device, p.dtype), 0))
    return {(device, dtype): torch.empty(size, device=device, dtype=dtype) for (device, dtype), size in sizes.items()}

"""What a launch costs, and how near the kernels come to the memory's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_parts.bits import LEAF
from gpu_parts.frame import Context, Result, seconds_of, verdict
from gradless import kernels
from gradless.rng import GAUSSIAN, RADEMACHER, Stream

SIDE = 16384  # of the matrix
NEAR = 0.5  # share of copy_ that the fan with update, dice and all must reach


def bandwidth(context: Context) -> Result:
    """Return the share of what torch's ``copy_`` reaches, for each kernel on one large matrix."""
    side = 64 if context.dry else SIDE
    figures: Result = {}
    for dtype in (torch.bfloat16, torch.float32):
        short = str(dtype).removeprefix("torch.")
        p = torch.full((side, side), 0.02, dtype=dtype, device=context.device)
        outs = torch.empty(2, side, side, dtype=dtype, device=context.device)
        size = p.numel() * p.element_size()
        copied = 2 * size / seconds_of(lambda p=p, outs=outs: outs[0].copy_(p), context)
        figures[f"{short} copy_, GB/s"] = copied / 1e9
        for name, passes, call in _calls(p, outs):
            if context.late():
                break
            figures[f"{short} {name}, of copy_"] = passes * size / seconds_of(call, context) / copied
        del p, outs
    small = torch.zeros(2048, dtype=torch.bfloat16, device=context.device)
    program = kernels.program([(1.0, [1], [1e-3])], rounding=[1])
    calls = 3 if context.dry else 500
    each = seconds_of(lambda: kernels.sweep(small, small, program, leaf=LEAF), context, calls=calls)
    figures["microseconds a launch"] = each * 1e6
    slow = [name for name, value in figures.items() if name.endswith("of copy_") and value < NEAR]
    return verdict(context.dry or not slow, figures, slow=slow, elements=side * side)


def _calls(p: Tensor, outs: Tensor) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Yield name, passes over the leaf and call of what is timed."""
    one = kernels.program([(1.0, [1], [1e-6])])
    thrown = kernels.program([(1.0, [1], [1e-6])], rounding=[2])
    signs: Any = {"leaf": LEAF, "mirrored": True}
    yield "fan", 3, lambda: kernels.fan(outs, p, kernels.NOTHING, one, keep=False, **signs)
    yield "fan with dice", 3, lambda: kernels.fan(outs, p, kernels.NOTHING, thrown, keep=False, **signs)
    yield "fan with update and dice", 4, lambda: kernels.fan(outs, p, thrown, thrown, keep=True, **signs)
    for stream in (RADEMACHER, GAUSSIAN, Stream("low_rank", 8)):
        yield f"sweep {stream.kind}", 2, lambda s=stream: kernels.sweep(p, p, one, leaf=LEAF, stream=s)

"""In which type a model computes, where its weights are kept in 16 bits.

On a GPU that is the type of the weights. A processor may have instructions for 16-bit products (AVX512-BF16, AMX, their
counterparts of ARM) and be several times as fast with them, or not have them and be several times as slow. Flags tell
what it has, and not whether this build of torch uses it, a virtual machine passes it on or a variable of oneDNN turns
it off: so one small product is timed both ways.

That is for evaluation. A forward-only step subtracts losses, and bfloat16 products leave an error in the difference
that does not become smaller with eps (`benchmarks/bfloat16_signal.py`): of LoRA's coefficients at eps 1e-3 it is two
and a half times their size. So such steps compute in float32 unless asked.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from torch.nn import functional

from gradless.errors import BadInput, pick
from gradless.kernels import products
from gradless.kernels.products import ROWS, WIDTH
from gradless.storage import StoredWeight, upcast
from gradless.storage.upcast import WIDE

AUTO: Final = "auto"
NAMES: Final = ("float32", "bfloat16", "float16")
CLEAR: Final = 0.8
"""Of float32's time, the most that 16-bit products may take to be worth their rounding."""


def choose(asked: str | None, dtype: torch.dtype, device: torch.device, *, differences: bool = False) -> torch.dtype:
    """Return the type in which a model computes.

    Args:
        asked: ``auto`` (or None), or a type by name.
        dtype: of its weights, as forwards see them.
        device: of its weights.
        differences: whether losses will be subtracted from one another, as forward-only steps do.

    Cost: for ``auto`` with 16-bit weights on a CPU 10 ms, once in a process (0.2 s where 16-bit products are slow).

    Raises:
        BadInput: an unknown name, or neither float32 nor the type of the weights.
    """
    if asked in (None, AUTO):
        has_choice = device.type == "cpu" and dtype in upcast.HALVES
        return torch.float32 if has_choice and (differences or not is_fast(dtype)) else dtype
    pick("compute type", asked, dict.fromkeys((AUTO, *NAMES)))
    kind: torch.dtype = getattr(torch, asked)
    if kind not in (dtype, torch.float32):
        stored = str(dtype).removeprefix("torch.")
        raise BadInput(
            f"--compute-dtype {asked} does not go with {stored} weights: use float32, or --dtype {asked} as well"
        )
    return kind


def for_settings(settings: Any, *, differences: bool) -> str | None:
    """Return the compute type that ``auto`` stands for, by name; None where there is no choice.

    Args:
        settings: of what is to be run: ``dtype``, ``device``, ``quantise`` and ``offload``, as `gradless.lm.load` has
            them.
        differences: as `choose` takes it.
    """
    on_cpu = settings.device.startswith("cpu") or (settings.device == "auto" and not torch.cuda.is_available())
    if not on_cpu or settings.dtype not in ("bfloat16", "float16") or settings.quantise or settings.offload:
        return None
    chosen = choose(None, getattr(torch, settings.dtype), torch.device("cpu"), differences=differences)
    return str(chosen).removeprefix("torch.")


def apply(lm: Any, asked: str | None) -> None:
    """Let a language model compute in the type that `choose` gives; the model is changed in place."""
    if not any(isinstance(parameter, StoredWeight) for parameter in lm.model.parameters()):
        lm.upcast = choose(asked, lm.dtype, lm.device) != lm.dtype
    elif asked not in (None, AUTO) and asked != str(lm.dtype).removeprefix("torch."):
        raise BadInput(
            f"--compute-dtype {asked} goes with weights that are floats in memory: quantised and offloaded ones are "
            "computed with in the type that --dtype names"
        )
    if lm.upcast:
        upcast.prepare(lm.model)


@functools.cache
def is_fast(dtype: torch.dtype) -> bool:
    """Return whether this processor multiplies matrices of a 16-bit type clearly faster than float32 ones, measured.

    The fastest of some short products of either kind counts, taken in turns, so that a busy machine decides alike.
    """
    kinds = {
        kind: (torch.ones(ROWS, WIDTH, dtype=kind), torch.ones(WIDTH, WIDTH, dtype=kind)) for kind in (WIDE, dtype)
    }
    with products.faster():
        best = products.best_times({kind: functools.partial(functional.linear, *pair) for kind, pair in kinds.items()})
    return best[dtype] < CLEAR * best[WIDE]

"""Launches: Triton looks at the arguments of a kernel once for every kind of them, and not at every launch.

``kernel[grid](...)`` compares globals, binds and classifies arguments each time: 0.1 ms. A kernel that is compiled
already is launched by `triton.compiler.CompiledKernel` at once, with addresses instead of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

OPTIONS = {"enable_fp_fusion": False, "num_warps": 4}  # of every launch
_compiled: dict[tuple[Any, ...], Any] = {}


def stream(device: torch.device) -> int:
    """The number of the queue that launches on a device go to now."""
    return 0 if device.type == "cpu" else int(triton.runtime.driver.active.get_current_stream(device.index))


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    constants: dict[str, int | bool],
    queue: int,
) -> None:
    """Run a kernel, whose arguments are tensors, then numbers, then constants.

    Numbers in the kernel's list ``UNSPECIALISED`` have a declared type; of the others, and of addresses, Triton takes
    notice whether they are multiples of 16, and of numbers whether they are 1.
    """
    if not isinstance(kernel, JITFunction):  # the interpreter
        kernel[grid](*tensors, *numbers, **constants)
        return
    addresses = [tensor.data_ptr() for tensor in tensors]
    kind = (
        kernel,
        *constants.values(),
        tensors[0].device.index,
        *[address % 16 == 0 for address in addresses],
        *[(number % 16 == 0, number == 1) for number in numbers],
    )
    ready = _compiled.get(kind)
    if ready is None:
        ready = _compiled[kind] = kernel.warmup(*tensors, *numbers, **constants, **OPTIONS, grid=(1,))
    ready[(*grid, 1, 1)[:3]](*addresses, *numbers, *constants.values(), stream=queue)

"""Frozen weights of floats that stay where they are, in a mapped file or in the host's memory, until a layer runs.

What a layer computes with is a copy in the type and on the device of the computation, so results have the bits of a
model that was loaded whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gradless.storage.stored import StoredWeight

CHUNK_BYTES = 1 << 24


class FloatStore:
    """A tensor of floats and what layers get of it.

    Args:
        tensor: the stored values, ``[rows, ...]``, in any float type: mapped from a file, or in memory.
        dtype: of the values that layers get.
        device: of these.

    Cost: a copy of the weight for each function that takes it; with a graphics card that is its transfer, at the speed
    of the bus where the tensor's memory is pinned.
    """

    quantised = None

    def __init__(self, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = tensor
        self.shape = tensor.shape
        self.dtype = dtype
        self.device = device
        self.nbytes = tensor.nbytes
        self.format = str(dtype).removeprefix("torch.")  # as `stored` gives its bytes

    def decode(self, out: Tensor, start: int = 0) -> None:
        """Write rows from ``start`` on into ``out``."""
        # Where types differ, values are cast on their way out, and so by the processor if the weight is there.
        out.copy_(self.tensor[start : start + len(out)], non_blocking=self.tensor.is_pinned())

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write some rows into ``out``."""
        out.copy_(self.tensor[rows.to(self.tensor.device)])

    def stored(self) -> Iterator[memoryview]:
        """Yield the bytes of the values that layers get: the hash is that of a model that was loaded whole."""
        flat = self.tensor.reshape(-1)
        step = max(1, CHUNK_BYTES // self.dtype.itemsize)
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step].to("cpu", self.dtype).contiguous()
            yield part.view(torch.uint8).numpy().data


class Offloaded(FloatStore):
    """A weight that is elsewhere because memory is short, and is only read."""


def keep(model: nn.Module, dtype: torch.dtype | None, device: torch.device, *, pin: bool = False) -> int:
    """Leave the matrices of a model where they are, and give layers copies on a device; return their number.

    Vectors (biases, norms) and buffers move to the device: they are small, and read by functions of every kind.

    Args:
        model: loaded with its weights mapped from a file, or in the host's memory; it is changed.
        dtype: of the values that layers get; by default that of each weight.
        device: where the model computes.
        pin: copy weights into pinned memory, from which a graphics card reads faster.
    """
    kept: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in kept:
                kept[id(weight)] = _kept(weight, dtype or weight.dtype, device, pin)
            setattr(module, name, kept[id(weight)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return sum(isinstance(weight, StoredWeight) for weight in kept.values())


def _kept(weight: nn.Parameter, dtype: torch.dtype, device: torch.device, pin: bool) -> nn.Parameter:
    if weight.ndim < 2 or isinstance(weight, StoredWeight):
        return nn.Parameter(weight.data.to(device, dtype), requires_grad=False)
    values = weight.data.pin_memory() if pin else weight.data
    return nn.Parameter(StoredWeight(Offloaded(values, dtype, device)), requires_grad=False)

"""Weights of GGUF files: blocks that stay in the mapped file, or in a device's memory, decoded a row at a time."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from gradless import kernels
from gradless.storage.gguf_blocks import BlockFormat

CHUNK_BYTES: Final = 1 << 22  # of blocks, where they are copied


class GgufStore:
    """The store of a weight of a GGUF file; see `gradless.storage.stored.Store`.

    Args:
        raw: its blocks, uint8 ``[rows, bytes]``, contiguous; often pages of a file.
        form: their format.
        order: the row of the file for each row of the weight, int64 ``[rows]``; default all in the file's order.
        tensor: the name that the file has for it.

    Cost: at most about a nanosecond a weight and thread.
    """

    dtype = torch.float32

    def __init__(self, raw: Tensor, form: BlockFormat, order: Tensor | None = None, tensor: str = "") -> None:
        self.raw, self.form, self.order = raw, form, None if order is None else order.to(raw.device)
        self.shape = torch.Size((len(raw), raw.shape[1] // form.nbytes * form.weights))
        self.device, self.nbytes = raw.device, raw.nbytes
        self.format, self.tensor = form.name, tensor
        self.quantised: str | None = None if form.dtype is not None else f"GGUF {form.name}"

    def decode(self, out: Tensor, start: int = 0) -> None:
        """Write the rows from ``start`` on into ``out``, float32 ``[rows, columns]``, contiguous."""
        end = start + len(out)
        if self.order is None:
            self._decode(out, self.raw[start:end], None)
        else:
            self._decode(out, self.raw, self.order[start:end])

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write some rows, by their numbers (int64, ``[rows]``, in any order), into ``out``."""
        rows = rows.to(self.device)
        self._decode(out, self.raw, (rows if self.order is None else self.order[rows]).contiguous())

    def stored(self) -> Iterator[memoryview]:
        """Yield the bytes in the file's order."""
        step = max(1, CHUNK_BYTES // max(1, self.raw.shape[1]))
        for start in range(0, len(self.raw), step):
            yield self.raw[start : start + step].cpu().numpy().data.cast("B")

    def to(self, device: torch.device) -> GgufStore:
        """Return the store with its blocks on a device."""
        return GgufStore(self.raw.to(device), self.form, self.order, self.tensor)

    def _decode(self, out: Tensor, raw: Tensor, rows: Tensor | None) -> None:
        """Write rows of blocks, all of them or some by their numbers."""
        if kernels.backend(self.device) and self.form.name in _module(self.device.type).KERNELS:
            _module(self.device.type).decode(out, raw, self.form, rows)
            return
        step = max(1, CHUNK_BYTES // max(1, raw.shape[1]))
        for start in range(0, len(out), step):
            some = raw[start : start + step] if rows is None else raw[rows[start : start + step]]
            out[start : start + step] = self.form.decode(some.reshape(-1, self.form.nbytes)).view(len(some), -1)


@functools.cache
def _module(device: str) -> Any:
    """The kernels for a kind of device."""
    return importlib.import_module(f"gradless.storage.{'gguf_triton' if device == 'cuda' else 'gguf_numba'}")

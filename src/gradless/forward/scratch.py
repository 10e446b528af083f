"""Scratch memory of forwards: buffers that outlive them, and the copies of leaves that lie in such buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gradless.storage.upcast import values_dtype

ALIGNED = 64  # elements between the beginnings of small parameters in a buffer are a multiple of this


class Buffer:
    """A scratch buffer that several leaves share, and how many of them are still to be read."""

    def __init__(self, flat: Tensor, left: int) -> None:
        self.flat = flat
        self.left = left


class Copies(NamedTuple):
    """A leaf at every point, and the buffer that it lies in."""

    values: Tensor  # [C, *shape]
    buffer: Buffer


class Pool:
    """Scratch buffers that outlive a forward; in use together are at most the parameters of one function call."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def take(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A flat buffer of at least ``size`` elements."""
        same = [b for b in self.free if b.dtype == dtype and b.device == device]
        fits = [b for b in same if b.numel() >= size]
        if not fits:
            # A larger buffer replaces the smaller ones: the pool never holds more than was needed at once.
            self.free = [b for b in self.free if b.dtype != dtype or b.device != device]
            del same  # or they would live on while the larger one is made
            return torch.empty(size, dtype=dtype, device=device)
        best = min(fits, key=Tensor.numel)
        self.free = [b for b in self.free if b is not best]
        return best

    def take_many(self, count: int, params: Iterable[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Buffers, one for all parameters that are alike, and ``[count, *shape]`` in them, by the id of a parameter."""
        buffers, room = [], {}
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for param in params:
            alike.setdefault((values_dtype(param), param.device), []).append(param)
        for kind, group in alike.items():
            sizes = [count * param.numel() for param in group]
            padded = [-(-size // ALIGNED) * ALIGNED for size in sizes]
            buffers.append(self.take(sum(padded), *kind))
            parts = buffers[-1][: sum(padded)].split(padded)
            for param, size, part in zip(group, sizes, parts, strict=True):
                room[id(param)] = part[:size].view(count, *param.shape)
        return buffers, room

    def give(self, buffers: Iterable[Tensor]) -> None:
        """Return buffers."""
        self.free.extend(buffers)

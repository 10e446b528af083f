"""The order in which forwards read leaves, and with it the leaves that are worth visiting together.

A visit right after a large matrix product starts with cold caches; several leaves in a row pay for that once. On an
accelerator they share a launch, and what the host does for one. The order is that of the last forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gradless import kernels
from gradless.gradients import Leaf
from gradless.storage.upcast import values_dtype

ROW = 1 << 22  # elements visited in a row: a transformer block of a small model; more gains no more, less costs


class ReadOrder:
    """The order in which forwards read leaves, learned from the last one.

    Args:
        leaves: on an accelerator, copies of leaves that are visited together may take as much memory as the largest.
    """

    def __init__(self, leaves: Iterable[Leaf] = ()) -> None:
        self._most: dict[torch.device, int] = {}  # elements visited in a row, where that is not `ROW`
        for leaf in leaves:
            device = leaf.param.device
            if kernels.launched(device):
                self._most[device] = max(leaf.param.numel(), self._most.get(device, ROW))
        self._last: list[int] = []
        self._now: list[int] = []

    def begin(self) -> None:
        """A forward starts."""
        self._last, self._now = self._now or self._last, []

    def read(self, key: int) -> None:
        """A leaf is read."""
        self._now.append(key)

    def row(self, leaf: Leaf, leaves: Mapping[int, Leaf], ready: Mapping[int, object]) -> list[Leaf]:
        """``leaf``, just read, and those to visit with it: what followed last time, as long as it is not too much."""
        most = self._most.get(leaf.param.device, ROW)
        index = len(self._now) - 1
        row, size = [leaf], leaf.param.numel()
        if self._last[index : index + 1] != [id(leaf.param)]:
            return row
        for key in self._last[index + 1 :]:
            follower = leaves.get(key)
            if follower is None:  # not perturbed this time
                break
            size += follower.param.numel()
            alike = _kind(follower.param) == _kind(leaf.param)
            if size > most or not alike or key in ready or any(follower is other for other in row):
                break
            row.append(follower)
        return row


def _kind(param: Tensor) -> tuple[torch.dtype, torch.device]:
    return values_dtype(param), param.device

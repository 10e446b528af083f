"""The order in which forwards read leaves, and with it the leaves that are worth visiting together.

A visit right after a large matrix product starts with cold caches; several leaves in a row pay for that once. The order
is that of the last forward.
"""

from __future__ import annotations

from collections.abc import Mapping

from gradless.gradients import Leaf

ROW = 1 << 22  # elements visited in a row: a transformer block of a small model; more gains no more, less costs


class ReadOrder:
    """The order in which forwards read leaves, learned from the last one."""

    def __init__(self) -> None:
        self._last: list[int] = []
        self._now: list[int] = []

    def begin(self) -> None:
        """A forward starts."""
        self._last, self._now = self._now or self._last, []

    def read(self, key: int) -> None:
        """A leaf is read."""
        self._now.append(key)

    def row(self, leaf: Leaf, leaves: Mapping[int, Leaf], ready: Mapping[int, object]) -> list[Leaf]:
        """``leaf``, just read, and those to visit with it: what followed last time, up to `ROW` elements in all."""
        index = len(self._now) - 1
        row, size = [leaf], leaf.param.numel()
        if self._last[index : index + 1] != [id(leaf.param)]:
            return row
        for key in self._last[index + 1 :]:
            follower = leaves.get(key)
            if follower is None:  # not perturbed this time
                break
            size += follower.param.numel()
            alike = (follower.param.dtype, follower.param.device) == (leaf.param.dtype, leaf.param.device)
            if size > ROW or not alike or key in ready or any(follower is other for other in row):
                break
            row.append(follower)
        return row

"""Which tuned parameters a forward reads below the level of torch functions, where they cannot be replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradless.forward.interception import own_reads
from gradless.gradients import Leaf

ADDRESSES: Final = frozenset(("data_ptr", "untyped_storage"))
"""Torch functions that tell where a tensor lies: whoever asks may read it there, as a Triton kernel does."""
LOOKS: Final = 32
"""Steps in which unread leaves are looked for."""


class ReadSurvey(TorchDispatchMode):
    """Find tuned parameters that a forward reads below the level of torch functions."""

    def __init__(self, leaves: Mapping[int, Leaf]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = frozenset(leaves)
        self.owners: dict[int, set[int]] = {}  # several parameters may be views of one buffer
        for key, leaf in leaves.items():
            self.owners.setdefault(leaf.param.untyped_storage().data_ptr(), set()).add(key)
        self.direct: set[int] = set()
        self.quiet = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what gradless itself reads."""
        self.quiet += 1
        try:
            with own_reads():
                yield
        finally:
            self.quiet -= 1

    def addressed(self, value: Tensor) -> None:
        """Note that somebody asked where a tuned parameter lies."""
        if not self.quiet and id(value) in self.keys:
            self.direct.add(id(value))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note every tensor argument that shares memory with a tuned parameter."""
        if not self.quiet:
            for value in torch.utils._pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
                    self.direct |= self.owners.get(_address(value), set())
        return func(*args, **(kwargs or {}))


def _address(value: Tensor) -> int:
    """Where the storage of a tensor begins; 0 of one without memory, such as the zeros of forward derivatives."""
    try:
        return value.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


class Looks:
    """When forwards are watched for leaves that none has read so far: the first forward of some steps.

    A branch may be taken later (an expert, an adapter that is switched on). What watches slows a forward down, so after
    `LOOKS` steps only steps 2, 4, 8, ... times as late are watched.
    """

    def __init__(self) -> None:
        self._count = 0
        self._step_begins = False  # no forward of this step has asked yet

    def begin_step(self) -> None:
        """A step begins."""
        self._step_begins = True

    def due(self) -> bool:
        """Return whether this forward is to be watched."""
        if not self._step_begins:
            return False
        self._step_begins = False
        self._count += 1
        return self._count <= LOOKS or not self._count & (self._count - 1)

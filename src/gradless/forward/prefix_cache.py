"""Forwards that begin where the perturbation begins.

A method that perturbs some blocks of a model leaves everything before the first of them as it was, so the several
forwards of a step compute the same there. `PrefixCache` keeps what the first forward computed and starts the others at
their first perturbed block: half of the work where one block after the other is perturbed, nearly all of it where the
output layer alone is tuned along many directions a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from gradless.forward.block_order import first_block, places
from gradless.forward.model_blocks import Reuse, blocks
from gradless.forward.random_state import RandomState


class PrefixCache:
    """What the forwards of one step have in common.

    Blocks that draw random numbers are computed every time: those after them would draw others.

    Args:
        model: with a list of blocks.
        names: of all parameters that are tuned, if each forward perturbs all of them: one state is kept then.

    Memory: one hidden state for each block and call of the model, or for each call, until the step ends.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] | None = None) -> None:
        self.model = model
        self._modules = [block for _, block in blocks(model)]
        self._places = places(model)
        self._front = 0 if names is None else first_block(model, names, self._places)
        self._keep = None if names is None else range(max(self._front - 1, 0), self._front)
        self._reuse: Reuse | None = None
        self._valid = -1  # blocks before this one are known as they are without a perturbation
        self._first: dict[frozenset[str], int] = {}
        self._accelerators = sorted({p.device for p in model.parameters() if p.device.type != "cpu"}, key=str)
        self._draws = False

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around all forwards of a step: weights and batch stay the same."""
        with Reuse(self._modules, keep=self._keep) as self._reuse:
            try:
                yield
            finally:
                self._valid, self._reuse = -1, None

    @contextlib.contextmanager
    def forward(self, perturbed: Iterable[str]) -> Iterator[None]:
        """Around one forward that perturbs the parameters of these names."""
        names = frozenset(perturbed)
        if names not in self._first:
            self._first[names] = first_block(self.model, names, self._places)
        first = self._first[names]
        if self._reuse is None or first == 0 or first < self._front or self._draws:
            yield
        elif first <= self._valid:
            with self._reuse.from_block(first):
                yield
        else:
            start = RandomState.capture(self._accelerators)
            with self._reuse.recording():
                yield
            self._draws = not RandomState.capture(self._accelerators).same(start)
            self._valid = first

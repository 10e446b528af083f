"""Losses of what a model writes, a row each: what evolution strategies compare, and what a run notes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.errors import NotFinite
from gradless.forward.perturbed import copies_kept
from gradless.forward.populations import mean
from gradless.lm.batching import Prompts
from gradless.lm.encode import Encoded
from gradless.lm.generation import Call, Choose, Written, decodes_together, sampler, write, write_members
from gradless.lm.loading import LanguageModel
from gradless.lm.objectives import Objective


class Sampling(NamedTuple):
    """How texts are chosen."""

    temperature: float = 1.0
    """Logits are divided by it; 0 is greedy."""
    seed: int = 0
    """Of the run: with the names of the rows (`drawn`) it determines every number."""

    def of(self, prompts: Prompts) -> Choose:
        """Return what chooses the tokens behind some prompts."""
        return sampler(self.temperature, self.seed, [row.draw for row in prompts.rows], prompts.new_tokens)


def drawn(rows: Sequence[Encoded], name: str) -> list[Encoded]:
    """Return the rows of a batch with names for their random numbers: that of the batch and their place in it.

    So the numbers do not depend on how the batch is split into micro-batches, or over ranks.
    """
    return [row._replace(draw=f"{name}/{index}") for index, row in enumerate(rows)]


class Member(NamedTuple):
    """What was observed at one point: of one member of a population, or of half a pair."""

    reward: float
    """Mean over the rows that have one; NaN without any."""
    valid: float
    """Share of the rows that have one."""
    tokens: float
    """Mean number of new tokens."""


class RewardClosure:
    """A closure: losses of the texts that a model samples behind a batch of prompts; lower is better.

    Called again it draws the same numbers, so that the members of a population differ by their weights alone. Where the
    model can decode all members in one batch, it has the method ``side_by_side``
    (`gradless.forward.batched.BatchedForward.losses`).

    Args:
        lm: the model.
        objective: with losses of texts.
        batches: prompts, in the order of the rows.
        sampling: how texts are chosen.
        rows: whether each row has a loss, or the batch, which is the mean over the rows that have one.

    Attributes:
        members: what was observed at each point so far, in the order in which points were evaluated.

    Cost: a generation a point.
    """

    def __init__(
        self, lm: LanguageModel, objective: Objective, batches: Sequence[Prompts], sampling: Sampling, *, rows: bool
    ) -> None:
        assert objective.of_texts is not None
        self._lm, self._of_texts, self._rows = lm, objective.of_texts, rows
        self._batches = [(prompts, sampling.of(prompts)) for prompts in batches]
        self.members: list[Member] = []
        if rows and decodes_together(lm):
            self.side_by_side = self._side_by_side

    def __call__(self) -> Tensor:
        """Return the losses at the weights as they are: float64 ``[B]``, or their mean."""
        with copies_kept():
            try:
                texts = [[write(self._lm, *batch)] for batch in self._batches]
            except NotFinite:
                texts = None
        losses = self._losses(texts, 1)[0]
        return torch.from_numpy(losses) if self._rows else torch.tensor(mean(losses), dtype=torch.float64)

    def _side_by_side(self, call: Call) -> Tensor:
        """Return the losses of all copies of the weights: float64 ``[C, B]``."""
        copies = len(call(lambda: torch.zeros(())))
        try:
            texts = [write_members(self._lm, *batch, call) for batch in self._batches]
        except NotFinite:
            texts = None
        return torch.from_numpy(self._losses(texts, copies))

    def _losses(self, texts: list[list[list[Written]]] | None, members: int) -> np.ndarray:
        """Return losses ``[members, B]`` of what they wrote behind each batch; NaN where a model wrote nothing finite.

        The reward functions are asked once a batch for all members together.
        """
        if texts is None:
            return np.full((members, sum(len(prompts.rows) for prompts, _ in self._batches)), np.nan)
        parts = []
        for (prompts, _), written in zip(self._batches, texts, strict=True):
            several = prompts._replace(rows=prompts.rows * members)
            losses = self._of_texts(several, [one for member in written for one in member])
            parts.append(losses.reshape(members, -1))
        whole = np.concatenate(parts, axis=1)
        for member, losses in enumerate(whole):
            tokens = [one.tokens for written in texts for one in written[member]]
            self.members.append(Member(0.0 - mean(losses), 1 - float(np.isnan(losses).mean()), float(np.mean(tokens))))
        return whole

"""Who has which training rows, and in which order they are read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradless.collab.algorithms import ALGORITHMS
from gradless.collab.config import CollabConfig
from gradless.collab.data.splits import SPLITS, Batches, batches, split


class Shares(NamedTuple):
    """The rows of honest peers, as batches, and those of attackers with poisoned data."""

    parts: list[Tensor]
    streams: list[Batches]
    poison: Batches
    """Rows of any peer: attackers who flip labels know them all."""


def shares(config: CollabConfig, labels: Tensor, peers: int) -> Shares:
    """Divide training rows among the honest peers.

    The attackers' part of the data does not exist: runs with and without them learn from the same rows.

    Args:
        config: names the split, the batch size and the seed.
        labels: int64 [N].
        peers: H, honest peers.
    """
    row = SPLITS[config.split]
    parameter = {row.parameter: float(config.split_parameter or 0.0)} if row.parameter else {}
    parts = split(config.split, labels, peers, seed=config.seed, **parameter)
    growing = ALGORITHMS[config.algorithm].growing
    size, growth = (1, 1) if growing else (config.batch_size, 0)
    streams = [batches(part, size, config.seed, peer, growth=growth) for peer, part in enumerate(parts)]
    together = config.attackers or 1  # the attackers' batches are averaged, so one larger batch stands for them
    everything = torch.cat(parts).unique()
    poison = batches(everything, size * together, config.seed, peers, growth=growth * together)
    return Shares(parts, streams, poison)

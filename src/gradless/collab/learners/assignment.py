"""Who has which training rows, and in which order they are read."""

from __future__ import annotations

from collections.abc import Sequence
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


def shares(config: CollabConfig, labels: Tensor, peers: int, mine: Sequence[int] | None = None) -> Shares:
    """Divide training rows among the honest peers.

    The attackers' part of the data does not exist: runs with and without them learn from the same rows.

    Args:
        config: names the split, the batch size and the seed.
        labels: int64 [N].
        peers: H, honest peers.
        mine: the peers of this process, whose batches are wanted; None: all.
    """
    row = SPLITS[config.split]
    parameter = {row.parameter: float(config.split_parameter or 0.0)} if row.parameter else {}
    parts = split(config.split, labels, peers, seed=config.seed, **parameter)
    size, growth = _batch(config)
    here = range(peers) if mine is None else mine
    streams = [batches(parts[peer], size, config.seed, peer, growth=growth) for peer in here]
    together = config.attackers or 1  # the attackers' batches are averaged, so one larger batch stands for them
    everything = torch.cat(parts).unique()
    poison = batches(everything, size * together, config.seed, peers, growth=growth * together)
    return Shares(parts, streams, poison)


def own_share(config: CollabConfig, rows: int, me: int) -> Shares:
    """Return all rows of one peer as its own: batches in the order of seed and peer, as those of `shares`.

    Args:
        config: names the batch size and the seed.
        rows: how many training rows the peer has.
        me: its number.

    Raises:
        BadInput: no rows.
    """
    size, growth = _batch(config)
    part = torch.arange(rows)
    return Shares([part], [batches(part, size, config.seed, me, growth=growth)], batches(part, size, config.seed, me))


def _batch(config: CollabConfig) -> tuple[int, int]:
    """Return the rows of the first batch, and how many more each further one has."""
    return (1, 1) if ALGORITHMS[config.algorithm].growing else (config.batch_size, 0)

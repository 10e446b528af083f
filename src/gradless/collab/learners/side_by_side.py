"""Peers that were built one by one, in one process: a simulation with the arithmetic of a network's peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradless.collab.learners.parameters import Peer


class SideBySide:
    """Several one-peer learners as one `gradless.collab.learners.parameters.Peer`.

    Gradients that are computed together for all peers may have other last bits than those of a peer alone; here each
    computes by itself.

    Args:
        peers: each with one row.
    """

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = list(peers)

    def exchanges(self, step: int) -> tuple[str, ...]:
        """See `gradless.collab.learners.parameters.Peer`."""
        return self.peers[0].exchanges(step)

    def propose(self, step: int, tag: str) -> Tensor:
        """See `gradless.collab.learners.parameters.Peer`."""
        return torch.cat([peer.propose(step, tag) for peer in self.peers])

    def accept(self, step: int, tag: str, mixed: Tensor) -> None:
        """See `gradless.collab.learners.parameters.Peer`."""
        for peer, row in zip(self.peers, mixed, strict=True):
            peer.accept(step, tag, row[None])

    def state(self) -> dict[str, Any]:
        """See `gradless.collab.learners.parameters.Peer`."""
        return {"peers": [peer.state() for peer in self.peers]}

    def load(self, state: dict[str, Any]) -> None:
        """See `gradless.collab.learners.parameters.Peer`."""
        for peer, own in zip(self.peers, state["peers"], strict=True):
            peer.load(own)

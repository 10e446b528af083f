"""Who hears whom on a graph: each peer its neighbours, in every exchange the same, and how much each row weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradless.collab.aggregation.receivers import Received
from gradless.collab.network.topology import Topology, metropolis


class Neighbourhood(NamedTuple):
    """Whose rows one honest peer gets."""

    honest: Tensor
    """int64: itself first, then its honest neighbours, ascending."""
    attackers: Tensor
    """int64: the attackers among its neighbours, from 0, ascending."""
    mixing: Tensor
    """float64, sum 1: the Metropolis-Hastings weights of these rows, in this order."""


class GraphRound(NamedTuple):
    """One exchange on a graph; like `gradless.collab.network.simulated.Round`, with attackers heard by some peers."""

    neighbourhoods: tuple[Neighbourhood, ...]

    @property
    def reached(self) -> tuple[int, ...]:
        """All honest peers: every message arrives."""
        return tuple(range(len(self.neighbourhoods)))

    def senders(self) -> tuple[tuple[int, ...], ...]:
        """Return the honest peers that each one heard, ascending."""
        return tuple(tuple(sorted(one.honest.tolist())) for one in self.neighbourhoods)

    def received(self, honest: Tensor, extras: Tensor, sent: Tensor) -> Received:
        """Return what the honest peers got, each its own row first.

        Args:
            honest: [H, D] rows of honest peers.
            extras: [E, D] other directions that attackers use.
            sent: float64 [R, b, H + E], what the attackers would send to each peer as combinations of both; R is 1 if
                everybody is sent the same, else H. Only neighbours get it.
        """
        unit = torch.eye(len(honest), len(honest) + len(extras), dtype=torch.float64)
        views = tuple(
            torch.cat([unit[one.honest], sent[peer if len(sent) > 1 else 0][one.attackers]])
            for peer, one in enumerate(self.neighbourhoods)
        )
        mixing = tuple(one.mixing for one in self.neighbourhoods)
        return Received((honest, extras) if len(extras) else (honest,), views, (0,) * len(views), mixing)


class GraphNetwork:
    """A synchronous network on a graph, in place of `gradless.collab.network.simulated.SimulatedNetwork`.

    Args:
        topology: who hears whom.
        byzantine: f, what the rule is told: attackers among a peer's neighbours.
        seed: of the run.
    """

    def __init__(self, topology: Topology, *, byzantine: int, seed: int) -> None:
        self.topology, self.byzantine, self.seed = topology, byzantine, seed
        self.attackers = topology.attackers
        self.round = GraphRound(neighbourhoods(topology))
        self.leverage = leverage(self.round.neighbourhoods)
        """See `gradless.collab.adversary.base.AttackContext`."""

    @property
    def messages(self) -> float:
        """Mean number of peers to whom an honest one sends its row."""
        heard = [len(one.mixing) - 1 for one in self.round.neighbourhoods]
        return sum(heard) / len(heard)

    def meet(self, step: int, tag: str, rows: Tensor) -> GraphRound:
        """Return who hears whom: the same in every exchange."""
        return self.round


def leverage(around: Sequence[Neighbourhood]) -> Tensor:
    """Return what honest peers give their honest neighbours over what they give attackers, float64 [H, H]."""
    weights = torch.zeros(len(around), len(around), dtype=torch.float64)
    for peer, one in enumerate(around):
        believed = one.mixing[len(one.honest) :].sum()
        if len(one.attackers):
            weights[peer, one.honest[1:]] = one.mixing[1 : len(one.honest)] / believed
    return weights


def neighbourhoods(topology: Topology) -> tuple[Neighbourhood, ...]:
    """Return the neighbourhood of every honest peer."""
    count = topology.honest
    weights = {edge: weight for edge, weight in zip(topology.edges, metropolis(topology), strict=True)}
    result = []
    for peer, ears in enumerate(topology.neighbours()[:count]):
        heard = [weights[min(peer, ear), max(peer, ear)] for ear in ears]
        honest = [ear for ear in ears if ear < count]
        result.append(
            Neighbourhood(
                torch.tensor([peer, *honest]),
                torch.tensor([ear - count for ear in ears if ear >= count], dtype=torch.int64),
                torch.tensor([1.0 - sum(heard), *heard], dtype=torch.float64),
            )
        )
    return tuple(result)

"""Who hears whom in a round: an in-process network with late, lost and chosen messages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.aggregation.gram import CentredGram, measure
from gradless.collab.aggregation.receivers import Received
from gradless.collab.network.delivery import ADVERSARIAL, ALL, Delivery


class Round(NamedTuple):
    """One exchange: which peers got enough rows to mix, and whose."""

    heard: tuple[Tensor, ...]
    """For each peer of ``reached`` the honest peers whose rows it has, ascending, itself among them."""
    reached: tuple[int, ...]
    pivots: tuple[int, ...]
    """For each peer of ``reached`` the place of its own row among those it heard."""
    alike: bool
    """Whether all peers heard the same honest ones."""

    def received(self, honest: Tensor, extras: Tensor, sent: Tensor) -> Received:
        """Return what the peers of ``reached`` got.

        Args:
            honest: [H, D] rows of honest peers.
            extras: [E, D] other directions that attackers use.
            sent: float64 [R, b, H + E], what the attackers send as combinations of both; R is 1 if everybody gets the
                same, else H.
        """
        total = len(honest) + len(extras)
        unit = torch.eye(len(honest), total, dtype=torch.float64)
        reached = torch.tensor(self.reached)
        if self.alike and len(sent) == 1:
            views: tuple[Tensor, ...] = (torch.cat([unit[self.heard[0]], sent[0]]),)
        elif len({len(ears) for ears in self.heard}) == 1:
            lies = sent.expand(len(reached), -1, -1) if len(sent) == 1 else sent[reached]
            views = torch.cat([unit[torch.stack(self.heard)], lies], 1).unbind()
        else:
            views = tuple(
                torch.cat([unit[ears], sent[0 if len(sent) == 1 else peer]])
                for ears, peer in zip(self.heard, self.reached, strict=True)
            )
        return Received((honest, extras) if len(extras) else (honest,), views, self.pivots)


def meet(
    delivery: Delivery, *, peers: int, byzantine: int, attackers: int, key: tuple[int | str, ...], honest: Tensor
) -> Round:
    """Decide who hears whom in one exchange.

    Attackers are always heard. A peer with fewer than n - f rows, its own included, cannot mix and is not in
    ``reached``: more messages are missing than the declared attackers could withhold.

    Args:
        delivery: the network.
        peers: n.
        byzantine: f, declared.
        attackers: b, actual.
        key: names the exchange, for the random latencies: seed, step, tag.
        honest: [H, D] rows, which an adversary who chooses the ears has seen.
    """
    count = peers - attackers
    if delivery.mode == ALL and not delivery.drop and delivery.deadline is None:
        everybody = torch.arange(count)
        return Round((everybody,) * count, tuple(range(count)), tuple(range(count)), alike=True)
    need = peers - byzantine
    wait_for = peers if delivery.mode == ALL else (delivery.wait_for or need)
    latency = _latencies(delivery, count, key)
    order = _chosen(measure([honest]), latency) if delivery.mode == ADVERSARIAL else latency
    order = order.clone().fill_diagonal_(-1.0)  # before its equals: nobody goes on without its own row
    latest = torch.inf if delivery.deadline is None else delivery.deadline
    heard, reached, pivots = [], [], []
    for peer in range(count):
        in_time = (torch.isfinite(latency[peer]) & (latency[peer] <= latest)).nonzero().flatten()
        first = in_time[order[peer, in_time].argsort(stable=True)][: max(1, wait_for - attackers)]
        if len(first) + attackers >= min(need, wait_for):
            heard.append(first.sort().values)
            reached.append(peer)
            pivots.append(int((first < peer).sum()))
    return Round(tuple(heard), tuple(reached), tuple(pivots), alike=False)


def _latencies(delivery: Delivery, count: int, key: tuple[int | str, ...]) -> Tensor:
    """Arrival times [receiver, sender] of honest messages: exponential, a peer's own at once, lost ones never."""
    uniform = rng.uniform(0, "/".join(("delivery", *map(str, key))), (2, count, count))
    latency = -torch.log1p(-uniform[0])
    latency[:, max(0, count - delivery.slow) :] *= delivery.slowness
    latency[uniform[1] < delivery.drop] = torch.inf
    return latency.fill_diagonal_(0.0)


def _chosen(gram: CentredGram, latency: Tensor) -> Tensor:
    """Order in which an adversary lets messages through: the nearest along the direction in which rows differ most.

    It keeps the two ends of the group apart. What is lost stays lost.
    """
    count = len(latency)
    inner = gram.points().inner[:count, :count]
    centred = inner - inner.mean(0) - inner.mean(1, keepdim=True) + inner.mean()
    position: Tensor = torch.linalg.eigh(centred).eigenvectors[:, -1]
    order = (position[:, None] - position[None]).abs()
    return order.masked_fill(torch.isinf(latency), torch.inf)

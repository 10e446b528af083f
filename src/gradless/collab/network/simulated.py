"""Who hears whom in a round: an in-process network with late, lost and chosen messages, or one that was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.aggregation.gram import CentredGram, measure
from gradless.collab.aggregation.receivers import Received
from gradless.collab.network.delivery import ADVERSARIAL, ALL, Delivery
from gradless.collab.network.exchange import Arrivals
from gradless.errors import BadInput


class Round(NamedTuple):
    """One exchange: which peers got enough rows to mix, and whose."""

    heard: tuple[Tensor, ...]
    """For each peer of ``reached`` the honest peers whose rows it has, ascending, itself among them."""
    reached: tuple[int, ...]
    pivots: tuple[int, ...]
    """For each peer of ``reached`` the place of its own row among those it heard."""
    alike: bool
    """Whether all peers heard the same honest ones."""

    def senders(self) -> tuple[tuple[int, ...], ...]:
        """Return whom each peer of ``reached`` heard."""
        if self.alike:
            return (tuple(self.heard[0].tolist()),) * len(self.reached)
        return tuple(tuple(ears.tolist()) for ears in self.heard)

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


class SimulatedNetwork:
    """The `gradless.collab.network.exchange.Transport` of a simulation, whose peers all live in this process.

    Args:
        delivery: what it does with messages.
        peers: n.
        byzantine: f, declared.
        attackers: b, actual; what they send is for `gradless.collab.network.omniscient.Omniscient`.
        seed: of the run.
    """

    def __init__(self, delivery: Delivery, *, peers: int, byzantine: int, attackers: int, seed: int) -> None:
        self.delivery, self.peers, self.byzantine, self.attackers = delivery, peers, byzantine, attackers
        self.seed = seed
        self.messages: float = peers - 1
        """Which an honest peer sends in an exchange."""

    def meet(self, step: int, tag: str, rows: Tensor) -> Round:
        """Decide who hears whom; ``rows`` [H, D] are what honest peers send."""
        return meet(
            self.delivery,
            peers=self.peers,
            byzantine=self.byzantine,
            attackers=self.attackers,
            key=(self.seed, step, tag),
            honest=rows,
        )

    def known(self, step: int, tag: str) -> None:
        """See `gradless.collab.network.exchange.Transport`: nothing is over before peers have spoken."""

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """Deliver the rows [H, D] of honest peers; attackers are silent."""
        return heard_only(self.meet(step, tag, rows), rows)


class ReplayedNetwork:
    """The transport of a simulation that repeats who heard whom on another network.

    Args:
        heard: for every exchange, (step, tag), and each of H peers the peers whose rows it mixed, ascending; () for one
            that mixed nothing.
    """

    def __init__(self, heard: Mapping[tuple[int, str], Sequence[Sequence[int]]]) -> None:
        self.heard = heard

    def known(self, step: int, tag: str) -> None:
        """See `gradless.collab.network.exchange.Transport`: nothing is over before peers have spoken."""

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """Deliver the rows [H, D] to those who heard them then.

        Raises:
            BadInput: an exchange that was not recorded, or rows of peers that do not take part.
        """
        ears = self.heard.get((step, tag))
        if ears is None or len(ears) != len(rows) or any(not 0 <= one < len(rows) for own in ears for one in own):
            raise BadInput(
                f"step {step} ({tag}) of {len(rows)} peers was not recorded: give the arrivals of all exchanges"
            )
        reached = tuple(peer for peer, own in enumerate(ears) if len(own))
        heard = tuple(torch.tensor(ears[peer]) for peer in reached)
        pivots = tuple(ears[peer].index(peer) if peer in ears[peer] else 0 for peer in reached)
        alike = len({tuple(ears[peer]) for peer in reached}) == 1
        return heard_only(Round(heard, reached, pivots, alike), rows)


def heard_only(delivered: Round, rows: Tensor) -> Arrivals:
    """Return what came of a round in which nobody but the honest peers spoke, who sent ``rows`` [H, D]."""
    if not delivered.reached:
        return Arrivals(None, ())
    received = delivered.received(rows, rows[:0], torch.zeros(1, 0, len(rows), dtype=torch.float64))
    return Arrivals(received, delivered.reached, delivered.senders())


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

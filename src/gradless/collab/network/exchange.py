"""How peers exchange rows, and what they make of those that came: the same for a simulation and for a network.

A `Transport` sends the rows of the peers that live in this process and returns what each of them got, `Arrivals`. In a
simulation (`gradless.collab.network.simulated`) these are all honest peers; on a network (`gradless.peers`) it is one.

Shapes: P peers of this process, n' rows that arrived, D columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gradless.collab.aggregation import exact, passes
from gradless.collab.aggregation.base import Aggregator, aggregate
from gradless.collab.aggregation.gram import CentredGram
from gradless.collab.aggregation.receivers import Received, seen_by_all
from gradless.errors import BadInput


class Arrivals(NamedTuple):
    """What the peers of this process got in one exchange."""

    received: Received | None
    """What each peer of ``reached`` got; None: nobody got enough."""
    reached: tuple[int, ...]
    """Which peers of this process got enough rows to mix, ascending, from 0."""
    heard: tuple[tuple[int, ...], ...] = ()
    """For each peer of ``reached`` the numbers of the peers whose rows it got, ascending, as far as they are known."""
    gram: CentredGram | None = None
    """That of the basis of ``received``, if it had to be measured."""
    strength: float | None = None
    """Of the attack, if one was simulated."""
    banned: frozenset[int] = frozenset()
    """Peers that were convicted before this exchange: the rule has so many liars fewer to stand."""
    step: int | None = None
    """The step that the rows belong to, where the group has left this peer behind; None: the one asked for."""


class Transport(Protocol):
    """How the peers of one process exchange rows with all others. No peer can make it raise."""

    def known(self, step: int, tag: str) -> Arrivals | None:
        """Return what came of an exchange that is over already, so that no row is asked for; None: it is not."""

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """Send rows [P, D], one of each peer of this process, and return what these peers got."""


class Recorded:
    """A transport that notes who was heard, as `gradless.collab.network.simulated.ReplayedNetwork` wants it.

    Args:
        transport: of one peer.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.heard: dict[tuple[int, str], tuple[int, ...]] = {}
        """By step and tag the peers whose rows were mixed, ascending; () if none was."""

    def known(self, step: int, tag: str) -> Arrivals | None:
        """See `Transport`."""
        arrivals = self.transport.known(step, tag)
        return None if arrivals is None else self._noted(step, tag, arrivals)

    def exchange(self, step: int, tag: str, rows: Tensor) -> Arrivals:
        """See `Transport`."""
        return self._noted(step, tag, self.transport.exchange(step, tag, rows))

    def _noted(self, step: int, tag: str, arrivals: Arrivals) -> Arrivals:
        self.heard[step, tag] = arrivals.heard[0] if arrivals.heard else ()
        return arrivals


def gather(messages: Mapping[int, Tensor], own: Tensor, me: int) -> Received:
    """Return what one peer got: its own row and those of others that are like it.

    What is no dense tensor with numbers in it, or of another shape or dtype, is left out as if it had not come. Too few
    rows may be left for a rule: `mixed` then keeps the peer's own.

    Args:
        messages: rows by sender; what claims to be from this peer itself is ignored.
        own: [D].
        me: this peer.
    """
    fits = {sender: row for sender, row in messages.items() if isinstance(sender, int) and _like(row, own)}
    rows = {**fits, me: own}
    order = sorted(rows)
    return seen_by_all(torch.stack([rows[sender].detach().to(own.device) for sender in order]), (order.index(me),))


def _like(row: object, own: Tensor) -> bool:
    """Whether a message can be mixed with one's own row. The kind comes first: of some, not even the shape is known."""
    if not isinstance(row, Tensor) or type(row) not in (Tensor, torch.nn.Parameter):
        return False
    if row.layout != torch.strided or row.is_nested or row.device.type == "meta":
        return False
    return bool(row.shape == own.shape and row.dtype == own.dtype)


def settle(rule: Aggregator, arrivals: Arrivals, rows: Tensor, *, key: int = 0, out: Tensor | None = None) -> Tensor:
    """Return what every peer of this process makes of an exchange of models, [P, D].

    A peer that got too few rows keeps its own.

    Args:
        rule: the aggregation rule.
        arrivals: of the exchange.
        rows: [P, D] what these peers sent.
        key: seed of pre-aggregators that shuffle.
        out: memory that the result may lie in; see `gradless.collab.aggregation.base.aggregate`.

    Cost: that of `gradless.collab.aggregation.base.aggregate`.
    """
    if arrivals.received is None:
        return rows.clone()
    result = mixed(rule, arrivals.received, key=key, gram=arrivals.gram, out=out)
    if len(arrivals.reached) == len(rows):
        return result
    everybody = rows.clone()
    everybody[list(arrivals.reached)] = result
    return everybody


def settle_alone(rule: Aggregator, arrivals: Arrivals, rows: Tensor, *, key: int = 0) -> Tensor:
    """Return what `settle` does, with the bits that every peer has as the only one of its process.

    The order of sums, so their last bits, may depend on rows that a receiver did not get but another one did. For
    replays of networks, where each receiver got rows as they were sent.
    """
    result = rows.clone()
    for index, peer in enumerate(arrivals.reached):
        assert arrivals.received is not None
        picks = arrivals.received.view(index).argmax(1).tolist()
        own = torch.stack([passes.row(arrivals.received.basis, pick) for pick in picks])
        result[peer] = mixed(rule, seen_by_all(own, (arrivals.received.pivots[index],)), key=key)[0]
    return result


def mixed(
    rule: Aggregator,
    received: Received,
    *,
    key: int = 0,
    gram: CentredGram | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return every receiver's aggregate, [P, D]; one that got fewer rows than the rule can take keeps its own row.

    Args:
        rule: the aggregation rule.
        received: who got what; every receiver's own row is a row of the basis, as in that of `gather`.
        key: seed of pre-aggregators that shuffle.
        gram: that of the basis, if it is known already.
        out: memory that the result may lie in; see `gradless.collab.aggregation.base.aggregate`.

    Cost: that of `gradless.collab.aggregation.base.aggregate`.
    """
    able = [p for p in range(len(received.pivots)) if enough(rule, len(received.view(p)))]
    if len(able) == len(received.pivots):
        return aggregate(rule, received, key=key, gram=gram, out=out)
    own = [int(received.view(p)[pivot].argmax()) for p, pivot in enumerate(received.pivots)]
    result = torch.stack([passes.row(received.basis, index) for index in own])
    if able:
        result[able] = aggregate(rule, received.some(able), key=key, gram=gram)
    return result


def agreed(rule: Aggregator, rows: Tensor) -> Tensor:
    """Return what everybody makes of rows that all have agreed on, float32 [D]: the same bits at every peer.

    No peer's own row counts more than another's, and none is put back where it was left out. Of fewer rows than the
    rule can take nothing comes: all NaN, which every peer passes over.

    Args:
        rule: an exact one (`gradless.collab.aggregation.exact.named`).
        rows: float32 [n', D], in the order of their senders, on any device.

    Cost: that of the rule; the rows are copied to the CPU.
    """
    assert rule.exact, f"{rule.name} may differ in its last bits between processors, or between receivers"
    rows = rows.detach().to("cpu", torch.float32)
    if not enough(rule, len(rows)):
        return torch.full(rows.shape[1:], torch.nan)
    return exact.apply(rule, rows)


def enough(rule: Aggregator, rows: int) -> bool:
    """Return whether a rule can take so many rows."""
    try:
        rule.check(rows)
    except BadInput:
        return False
    return rows > 0

"""How one peer exchanges rows with the others, and what it does with the messages that came.

A simulation decides who hears whom in `gradless.collab.network.simulated`; a peer of a real network has a `Transport`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from gradless.collab.aggregation import passes
from gradless.collab.aggregation.base import Aggregator, aggregate
from gradless.collab.aggregation.receivers import Received, seen_by_all
from gradless.errors import BadInput


class Transport(Protocol):
    """How one peer exchanges a row with the others; no peer can make it raise."""

    me: int

    def exchange(self, step: int, tag: str, row: Tensor, *, need: int, deadline: float) -> Mapping[int, Tensor]:
        """Send a row to all peers; return what came by the deadline in seconds, early once ``need`` rows are there."""


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


def mixed(rule: Aggregator, received: Received, *, key: int = 0) -> Tensor:
    """Return every receiver's aggregate, [P, D]; one that got fewer rows than the rule can take keeps its own row.

    Args:
        rule: the aggregation rule.
        received: who got what; every receiver's own row is a row of the basis, as in that of `gather`.
        key: seed of pre-aggregators that shuffle.

    Cost: that of `gradless.collab.aggregation.base.aggregate`.
    """
    able = [p for p in range(len(received.pivots)) if _enough(rule, len(received.view(p)))]
    if len(able) == len(received.pivots):
        return aggregate(rule, received, key=key)
    own = [int(received.view(p)[pivot].argmax()) for p, pivot in enumerate(received.pivots)]
    out = torch.stack([passes.row(received.basis, index) for index in own])
    if able:
        out[able] = aggregate(rule, received.some(able), key=key)
    return out


def _enough(rule: Aggregator, rows: int) -> bool:
    try:
        rule.check(rows)
    except BadInput:
        return False
    return True

"""The one loop of collaborative training: propose, exchange, accept; the same in a simulation and on a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradless.collab.learners.parameters import Peer
from gradless.collab.network.exchange import Arrivals, Transport

Settle = Callable[[Arrivals, Tensor | None, int], Tensor]
"""(what arrived, rows [P, D] sent, step) -> the mixed rows [P, D]. No rows: the exchange was over before they were."""
Watch = Callable[[str, Tensor | None, Arrivals, Tensor], bool]
"""(tag, rows sent, what arrived, mixed rows), before they are accepted -> whether to go on after that."""


@torch.no_grad()
def take_step(
    peer: Peer, transport: Transport, settle: Settle, step: int, watch: Watch | None = None
) -> tuple[int, bool]:
    """Run all exchanges of one step of the peers of this process.

    Args:
        peer: the peers of this process.
        transport: how they exchange rows.
        settle: what they make of rows.
        step: from 0.
        watch: sees every exchange.

    Returns:
        The next step, and whether to go on. It is later than ``step + 1`` where the group had left this peer behind.
    """
    for tag in peer.exchanges(step):
        arrivals, rows = transport.known(step, tag), None
        if arrivals is None:
            rows = peer.propose(step, tag)
            arrivals = transport.exchange(step, tag, rows)
        mixed = settle(arrivals, rows, step)
        go_on = watch is None or watch(tag, rows, arrivals, mixed)
        peer.accept(step, tag, mixed)
        if not go_on:
            return step + 1, False
        if arrivals.step is not None and arrivals.step > step:
            return arrivals.step + 1, True
    return step + 1, True


def take_steps(
    peer: Peer, transport: Transport, settle: Settle, steps: int, *, start: int = 0, watch: Watch | None = None
) -> int:
    """Take steps ``start`` to ``steps``, or until ``watch`` stops; returns the number of the next step."""
    step, go_on = start, True
    while step < steps and go_on:
        step, go_on = take_step(peer, transport, settle, step, watch)
    return step

"""The option *memory* of a simulated group with coefficients; see `gradless.collab.aggregation.pair_scores`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gradless.collab.aggregation import passes
from gradless.collab.aggregation.base import Aggregator
from gradless.collab.aggregation.pair_scores import Memory
from gradless.collab.config import CollabConfig
from gradless.collab.network.exchange import Arrivals
from gradless.collab.simulation.build import Simulation, mixing_rule


def remembering(simulation: Simulation, memory: Memory, arrivals: Arrivals, rows: Tensor, *, key: int = 0) -> Tensor:
    """Return the mixed rows [H, K] of an exchange without those of peers who disagreed with the others so far.

    The rule expects one liar fewer for each of them. All rows are remembered, those that were left out too.

    Args:
        simulation: of the run; every peer hears all others.
        memory: of the steps before.
        arrivals: of the exchange.
        rows: float32 [H, K] of the honest peers.
        key: seed of pre-aggregators that shuffle.
    """
    assert arrivals.received is not None, "everything arrives"
    rule, kept = narrowed(simulation.config, memory)
    basis = [block.double() for block in arrivals.received.basis]
    lies = passes.product(arrivals.received.view(0)[len(rows) :], basis)  # a NaN stays one
    sent = torch.cat([rows.double(), lies]).float().cpu()  # attackers are the last peers
    memory.append(sent.numpy())
    mixed: Tensor = rule(sent[kept], key=key)
    return mixed.to(rows).expand(len(rows), -1)


def narrowed(config: CollabConfig, memory: Memory) -> tuple[Aggregator, list[int]]:
    """Return the rule of the next exchange, and the peers whose rows it takes, ascending: the same for all receivers.

    Cost: that of `gradless.collab.aggregation.pair_scores.pair_scores`.
    """
    gone = memory.left_out(config.byzantine)
    kept = [peer for peer in range(config.peers) if peer not in gone]
    return mixing_rule(dataclasses.replace(config, byzantine=config.byzantine - len(gone))), kept

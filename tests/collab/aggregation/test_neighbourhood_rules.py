"""Algorithms on sparse graphs against hand-written twins, with attackers who tell each neighbour something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graph_twins as twins
from gradless.collab.aggregation.base import aggregate, compose
from gradless.collab.aggregation.neighbourhood_rules import least_neighbours, on_neighbourhoods
from gradless.collab.aggregators import (
    geometric_median,
    krum,
    mean,
    nna,
    nnm,
    self_centred_clipping,
    trimmed_mean,
)
from gradless.collab.network.neighbours import GraphNetwork
from gradless.collab.network.topology import Topology, ordered
from gradless.collab.network.topology import named as graph
from gradless.errors import BadInput

# Degrees from 4 to 6; 8 and 9 attack: peer 0 hears both, 4 and 5 none.
WHOM = ("1237", "245", "35", "46", "56", "67", "7")  # each honest peer before those after it
LIARS = ((0, 8), (0, 9), (1, 8), (2, 8), (3, 9), (6, 9), (7, 8), (8, 9))
EDGES = ordered([*((peer, int(other)) for peer, others in enumerate(WHOM) for other in others), *LIARS])
IRREGULAR = Topology("by hand", 10, 2, EDGES)
SCALES = (0.3, 1.0, 2.5)


def exchange(topology: Topology, seed: int, scale: float = 3.0):
    """An exchange with honest rows and an extra direction, and the rows that each honest peer holds, by sender."""
    stream = torch.Generator().manual_seed(seed)
    count = topology.honest
    honest = torch.randn(count, 7, generator=stream, dtype=torch.float64)
    extras = torch.randn(1, 7, generator=stream, dtype=torch.float64)
    sent = scale * torch.randn(count, topology.attackers, count + 1, generator=stream, dtype=torch.float64)
    received = GraphNetwork(topology, byzantine=1, seed=0).meet(0, "", honest).received(honest, extras, sent)
    basis = torch.cat([honest, extras])
    held = []
    for receiver in range(count):
        rows = {peer: honest[peer].numpy() for peer in range(count)}
        rows |= {count + a: (sent[receiver, a] @ basis).numpy() for a in range(topology.attackers)}
        held.append(rows)
    return received, held


def check(topology: Topology, rule, twin, seed: int = 0, scale: float = 3.0) -> None:
    received, held = exchange(topology, seed, scale)
    mixed = aggregate(rule, received).numpy()
    neighbours = topology.neighbours()
    for peer in range(topology.honest):
        np.testing.assert_allclose(mixed[peer], twin(neighbours, peer, held[peer]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_d_sgd_mixes_by_the_weights_of_metropolis_and_hastings(seed):
    check(IRREGULAR, on_neighbourhoods(mean(), 1), twins.d_sgd, seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("f", [0, 1])
def test_bridge_trims_neighbours_and_never_the_own_row(seed, f):
    check(IRREGULAR, on_neighbourhoods(trimmed_mean(f=f), f), lambda n, i, rows: twins.bridge(n, i, rows, f), seed)


def test_bridge_keeps_an_own_row_that_is_farthest_out():
    star = Topology("star", 5, 0, ordered([(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (1, 4)]))
    honest = torch.tensor([[100.0], [1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    received = (
        GraphNetwork(star, byzantine=1, seed=0)
        .meet(0, "", honest)
        .received(honest, honest[:0], torch.zeros(1, 0, 5, dtype=torch.float64))
    )
    mixed = aggregate(on_neighbourhoods(trimmed_mean(f=1), 1), received)
    assert mixed[0].item() == pytest.approx((100 + 2 + 3) / 3)
    assert trimmed_mean(f=1)(honest).item() == pytest.approx(3.0)  # of all peers' rows the own one is trimmed as well


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("f", [1, 2])
def test_clipped_gossip_finds_its_radius_from_the_weights(scale, f):
    def twin(neighbours, peer, rows):
        return twins.clipped_gossip(neighbours, peer, rows, twins.radius_of(neighbours, peer, rows, f))

    check(IRREGULAR, on_neighbourhoods(self_centred_clipping(f=f), f), twin, scale=scale)


@pytest.mark.parametrize("scale", SCALES)
def test_self_centred_clipping_with_a_fixed_radius_repeats_on_the_same_rows(scale):
    rule = on_neighbourhoods(self_centred_clipping(f=1, radius=1.5, iterations=3), 1)
    check(IRREGULAR, rule, lambda n, i, rows: twins.scc(n, i, rows, 1.5, 3), scale=scale)


@pytest.mark.parametrize("f", [0, 1, 2])
def test_nearest_neighbours_are_averaged_among_the_rows_held(f):
    check(IRREGULAR, on_neighbourhoods(nna(f=f), f), lambda n, i, rows: twins.nna(n, i, rows, f))


@pytest.mark.parametrize("topology", ["ring", "k-ring", "torus", "random"])
def test_twins_agree_on_named_graphs(topology):
    some = graph(topology, peers=16, attackers=1, degree=4 if topology in ("k-ring", "random") else None, seed=5)
    check(some, on_neighbourhoods(mean(), 1), twins.d_sgd)
    check(some, on_neighbourhoods(nna(f=1), 1), lambda n, i, rows: twins.nna(n, i, rows, 1))
    if topology != "ring":
        check(some, on_neighbourhoods(trimmed_mean(f=1), 1), lambda n, i, rows: twins.bridge(n, i, rows, 1))


@pytest.mark.parametrize("make", [lambda: mean(), lambda: nna(f=2), lambda: self_centred_clipping(f=2)])
def test_on_a_complete_graph_they_are_what_they_are_without_one(make):
    complete = graph("complete", peers=9, attackers=2)
    received, held = exchange(complete, 1)
    mixed = aggregate(on_neighbourhoods(make(), 2), received)
    for peer in range(7):
        order = sorted(held[peer])
        rows = torch.tensor(np.stack([held[peer][sender] for sender in order]))
        assert torch.allclose(mixed[peer], make()(rows, pivot=order.index(peer)), rtol=1e-9, atol=1e-9)


def test_broken_rows_reach_no_robust_result_and_ruin_the_mean():
    honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    extras = torch.full((1, 5), float("nan"))
    sent = torch.zeros(1, 2, 9, dtype=torch.float64)
    sent[..., 8] = 1.0
    received = GraphNetwork(IRREGULAR, byzantine=2, seed=0).meet(0, "", honest).received(honest, extras, sent)
    for rule in (nna(f=2), self_centred_clipping(f=2), self_centred_clipping(f=2, radius=1.0, iterations=3)):
        assert aggregate(on_neighbourhoods(rule, 2), received).isfinite().all()
    hears = [peer for peer in range(8) if {8, 9} & set(IRREGULAR.neighbours()[peer])]
    broken = ~aggregate(on_neighbourhoods(mean(), 0), received).isfinite().all(1)
    assert broken.nonzero().flatten().tolist() == hears


@pytest.mark.parametrize(
    "rule", [krum(f=1), geometric_median(f=1), compose(nnm(f=1), trimmed_mean(f=1))], ids=lambda rule: rule.name
)
def test_rules_of_all_rows_are_refused(rule):
    with pytest.raises(BadInput, match="needs the rows of all peers: leave --topology at complete"):
        on_neighbourhoods(rule, 1)


def test_each_rule_says_how_many_neighbours_it_needs():
    rules = (mean(), nna(f=2), trimmed_mean(f=2), self_centred_clipping(f=2))
    needed = {rule.name: least_neighbours(on_neighbourhoods(rule, 2), 2) for rule in rules}
    assert needed == {"mean": 0, "nna": 4, "self-centred-clipping": 4, "trimmed-mean": 5}

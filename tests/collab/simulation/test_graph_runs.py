"""Whole runs on sparse graphs: what is recorded, what is refused, and what connectivity is good for."""

from __future__ import annotations

import dataclasses
import json

import networkx
import pytest
import torch

import graph_twins
from gradless.collab.adversary.base import AttackContext
from gradless.collab.attacks import named as attack_named
from gradless.collab.config import GRAPH_FIELDS, CollabConfig, from_json
from gradless.collab.network.delivery import Delivery
from gradless.collab.network.neighbours import GraphNetwork
from gradless.collab.network.topology import named, ordered
from gradless.collab.recipes import RECIPES, compared
from gradless.collab.simulation import study
from gradless.collab.simulation.build import build, check_used, mixing_rule
from gradless.collab.simulation.build import network as network_of
from gradless.collab.simulation.simulate import simulate
from gradless.errors import BadInput
from gradless.report import report, tables
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
SMALL = CollabConfig(
    dataset="digits", peers=12, byzantine=1, steps=6, batch_size=8, lr=0.5, momentum=0.9, eval_every=3, seed=3
)
ON_GRAPHS = ("d-sgd", "bridge", "mocwtm", "clipped-gossip", "scc", "nna", "monna")


def of(**changes) -> CollabConfig:
    return dataclasses.replace(SMALL, **changes)


def run(folder, **changes):
    return simulate(of(**changes), folder, reporter=QUIET)


@pytest.mark.few(2)
@pytest.mark.parametrize("algorithm", ON_GRAPHS)
def test_a_run_on_a_graph_says_on_which(tmp_path, algorithm):
    momentum = {"momentum": 0.0, "lr": 0.1} if algorithm in ("bridge", "nna") else {}
    first = run(tmp_path / "a", algorithm=algorithm, topology="k-ring", attack="alie", **momentum)
    again = run(tmp_path / "b", algorithm=algorithm, topology="k-ring", degree=4, attack="alie", **momentum)
    graph = named("k-ring", peers=12, attackers=1, degree=4)
    assert first["graph"] == graph.facts()
    assert first["weights_sha256"] == again["weights_sha256"]
    assert first["bytes_per_peer_step"] == 4810 * 4 * 4  # four neighbours instead of eleven
    assert first["status"] == "done"
    held = from_json(json.loads((tmp_path / "a" / "config.json").read_text()))
    assert (held.topology, held.degree, held.graph) == ("k-ring", 4, None)
    assert held.id() == of(algorithm=algorithm, topology="k-ring", attack="alie", **momentum).resolved().id()


def test_without_a_graph_nothing_is_recorded_and_names_of_runs_stay():
    plain = SMALL.resolved()
    assert not set(GRAPH_FIELDS) & set(plain.to_json())
    assert from_json(plain.to_json()) == plain
    ids = {of(topology=name).resolved().id() for name in ("complete", "ring", "k-ring", "random")}
    ids |= {of(topology="k-ring", degree=degree).resolved().id() for degree in (4, 6)}
    assert len(ids) == 5
    assert plain.id() in ids


def test_a_file_counts_by_its_edges(tmp_path):
    graph = networkx.circulant_graph(12, [1, 2])
    first, second = tmp_path / "a.txt", tmp_path / "b.graphml"
    networkx.write_edgelist(graph, first, data=False)
    networkx.write_graphml(graph, second)
    one, other = (of(topology=str(path), attack="alie").resolved() for path in (first, second))
    assert one.id() == other.id()
    result = simulate(one, tmp_path / "run", reporter=QUIET)
    assert result["graph"]["topology"] == "a.txt"
    assert simulate(other, tmp_path / "run", reporter=QUIET) == result  # the same run, finished
    networkx.write_edgelist(networkx.circulant_graph(12, [1, 3]), first, data=False)
    with pytest.raises(BadInput, match="another graph than when the run began"):
        one.resolved()
    first.unlink()
    lines = study.table(tmp_path / "run")  # results are read without the file
    assert (lines[0]["topology"], lines[0]["graph"]["sha256"]) == ("a.txt", result["graph"]["sha256"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"algorithm": "mogm"}, "geometric-median needs the rows of all peers"),
        ({"algorithm": "learn"}, "learn exchanges gradients with all peers"),
        ({"rule": "krum"}, "krum needs the rows of all peers"),
        ({"rule": "nnm+trimmed-mean"}, r"nnm\+trimmed-mean needs the rows of all peers"),
        ({"algorithm": "bridge"}, "trimmed-mean with f = 1 needs 3 neighbours, and peer 0 has 2 on the topology ring"),
        ({"byzantine": 2, "attackers": 1}, "nna with f = 2 needs 4 neighbours"),
        ({"byzantine": 2}, "falls into 2 parts"),
        ({"degree": 4}, "the topology ring has no degree to choose"),
        ({"delivery": Delivery(mode="first")}, "simulated with all messages in time"),
        ({"delivery": Delivery(drop=0.1)}, "simulated with all messages in time"),
        ({"rule": "nna", "rule_options": {"keep": 5}}, "nna is to average 5 rows, but only 3 were received"),
        ({"topology": "rink"}, "unknown topology 'rink': did you mean 'ring'"),
    ],
)
def test_what_a_graph_cannot_have_is_refused(changes, match):
    config = of(**{"topology": "ring", "attack": "sign-flip", **changes})
    with pytest.raises(BadInput, match=match) as error:
        mixing_rule(config.resolved())
    assert "\n" not in str(error.value)


def test_coefficients_need_a_complete_group():
    config = of(
        dataset=None,
        model="tiny-llama",
        task="sst2",
        payload="coefficients",
        momentum=0.0,
        algorithm="bridge",
        topology="torus",
    )
    with pytest.raises(BadInput, match="which only a complete group's are"):
        config.resolved()


def test_more_attackers_than_the_rule_is_told_are_noted():
    near = of(peers=12, attackers=3, topology="k-ring", degree=4, attack="alie").resolved()
    assert study.remarks([near]) == [
        "an honest peer on the topology k-ring of degree 4 hears 2 attackers, more than the 1 that the rule is told to "
        "withstand (--byzantine)"
    ]
    far = of(peers=16, attackers=2, topology="k-ring", degree=4, attack="alie").resolved()
    assert study.remarks([far]) == []
    with pytest.raises(BadInput, match="--degree is for --topology k-ring or random"):
        check_used([of(topology="ring").resolved()], ["degree"])


def test_only_neighbours_hear_a_liar():
    simulation = build(of(algorithm="d-sgd", topology="ring", attack="nan", attackers=1))
    graph = named("ring", peers=12, attackers=1)
    honest = torch.ones(11, 3)
    sent = torch.full((1, 1, 11), float("nan"), dtype=torch.float64)
    received = network_of(simulation).network.meet(0, "", honest).received(honest, honest[:0], sent)
    ears = [peer for peer, view in enumerate(received.views) if not view.isfinite().all()]
    assert ears == graph.neighbours()[11] == [0, 10]


def test_dissensus_on_a_graph_is_that_of_the_paper():
    graph = named("random", peers=10, attackers=2, degree=4, seed=1)
    network = GraphNetwork(graph, byzantine=2, seed=1)
    honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    context = AttackContext(honest, None, 2, 2, 0, 0, leverage=network.leverage)
    sent = attack_named("dissensus", strength=0.7).send(context, 0.7, None)
    ears = graph.neighbours()
    for peer in range(8):
        liars = sum(graph_twins.weight(ears, peer, ear) for ear in ears[peer] if ear >= 8)
        pull = sum(graph_twins.weight(ears, peer, ear) * (honest[ear] - honest[peer]) for ear in ears[peer] if ear < 8)
        twin = honest[peer] - 0.7 * pull / liars if liars else honest[peer]
        for attacker in range(2):
            assert torch.allclose(sent[peer, attacker] @ honest, twin)


def test_a_study_takes_graphs_as_an_axis_and_reports_them(tmp_path):
    base = of(steps=4, eval_every=2, byzantine=1, attack="alie")
    configs = [
        dataclasses.replace(base, topology=topology, degree=degree, algorithm=algorithm)
        for topology, degree in (("complete", None), ("k-ring", 4), ("k-ring", 6), ("random", 4))
        for algorithm in ("monna", "d-sgd")
    ]
    results = study.run_all(configs, tmp_path, reporter=QUIET)
    assert len(results) == 8
    (connectivity,) = [table for table in tables(tmp_path) if table.name == "connectivity"]
    assert [row[1].text for row in connectivity.rows][-1] == "complete"
    connectivities = [record["connectivity"] for record in connectivity.records]
    assert connectivities == sorted(connectivities)
    assert all(record["seeds"] == 1 for record in connectivity.records)
    assert len(connectivity.records) == 8
    names = {path.name for path in report(tmp_path, say=lambda line: None)}
    assert {"connectivity.svg", "connectivity.png", "connectivity.md"} <= names
    assert "algebraic connectivity" in (tmp_path / "report.html").read_text()


@pytest.mark.sweep
def test_the_recipe_for_graphs_can_run():
    configs = [config.resolved() for config in compared(RECIPES["graphs-digits"], {"seed": (1,)})]
    for config in configs:
        mixing_rule(config)
    assert len({config.id() for config in configs}) == len(configs)
    free = [config for config in configs if config.algorithm == "d-sgd" and config.topology == "complete"]
    assert {(config.peers, config.attackers) for config in free} == {(24, 0), (22, 0)}


@pytest.mark.sweep
def test_better_connected_peers_agree_better(tmp_path):
    distances = [
        run(tmp_path / name, algorithm="d-sgd", topology=name, steps=60, split_parameter=0.5)["consensus_distance"]
        for name in ("ring", "k-ring", "complete")
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.2 * distances[0]


def test_edges_are_held_once_and_in_order():
    assert ordered([(2, 1), (1, 2), (0, 2)]) == ((0, 2), (1, 2))

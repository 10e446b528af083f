"""Graphs by name and from files: what they are, and one sentence for each that a group cannot have."""

from __future__ import annotations

import json
import math

import networkx
import numpy as np
import pytest

import graph_twins
from gradless.collab.network.neighbours import GraphNetwork, neighbourhoods
from gradless.collab.network.topology import (
    TOPOLOGIES,
    Topology,
    connected,
    fingerprint,
    honest_parts,
    metropolis,
    named,
    ordered,
    parts,
)
from gradless.collab.network.topology_files import read
from gradless.errors import BadInput

SPARSE = [name for name in TOPOLOGIES if name != "complete"]


def of(name: str, peers: int = 16, attackers: int = 2, **more) -> Topology:
    return named(name, peers=peers, attackers=attackers, **more)


def graph_of(topology: Topology) -> networkx.Graph:
    graph = networkx.Graph()
    graph.add_nodes_from(range(topology.peers))
    graph.add_edges_from(topology.edges)
    return graph


@pytest.mark.parametrize(
    ("name", "degree", "edges"), [("complete", None, 120), ("ring", None, 16), ("k-ring", 6, 48), ("torus", None, 32)]
)
def test_named_graphs_are_those_of_networkx(name, degree, edges):
    topology = of(name, attackers=0, degree=degree)
    twins = {
        "complete": networkx.complete_graph(16),
        "ring": networkx.cycle_graph(16),
        "k-ring": networkx.circulant_graph(16, [1, 2, 3]),
        "torus": networkx.grid_2d_graph(4, 4, periodic=True),
    }
    assert len(topology.edges) == edges
    assert networkx.is_isomorphic(graph_of(topology), twins[name])


def test_attackers_stand_at_even_distances_and_are_the_last_peers():
    ring = of("ring", peers=12, attackers=1)
    assert ring.neighbours()[11] == [0, 10]
    wide = of("k-ring", peers=12, attackers=3, degree=4)
    assert wide.exposed() == 2  # a peer in the middle of two
    apart = [[peer for peer in ears if peer >= 9] for ears in wide.neighbours()[9:]]
    assert apart == [[], [], []]  # no attacker wastes an edge on another


def test_random_graphs_are_regular_and_follow_from_the_seed():
    first, again, other = (of("random", degree=5, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert {len(ears) for ears in first.neighbours()} == {5}
    for seed in range(30):
        thin = of("random", peers=10, attackers=2, degree=3, seed=seed)
        assert len(honest_parts(thin)) == 1


@pytest.mark.parametrize("name", SPARSE)
def test_weights_are_symmetric_and_doubly_stochastic_and_those_of_the_paper(name):
    topology = of(name, attackers=1)
    ears, matrix = topology.neighbours(), np.zeros((16, 16))
    for (first, second), weight in zip(topology.edges, metropolis(topology), strict=True):
        matrix[first, second] = matrix[second, first] = weight
    for peer, own in enumerate(neighbourhoods(topology)):
        heard = [*own.honest.tolist(), *(15 + own.attackers).tolist()]
        assert heard[0] == peer
        assert sorted(heard[1:]) == ears[peer]
        assert float(own.mixing.sum()) == pytest.approx(1.0)
        assert all(float(w) > 0 for w in own.mixing)
        for ear, weight in zip(heard, own.mixing.tolist(), strict=True):
            assert weight == pytest.approx(graph_twins.weight(ears, peer, ear))
            if ear != peer:
                assert weight == matrix[peer, ear]


@pytest.mark.parametrize("name", SPARSE)
def test_facts_are_those_of_networkx(name):
    topology = of(name, attackers=1)
    facts = topology.facts()
    honest = graph_of(topology).subgraph(range(15))
    eigenvalues = np.linalg.eigvalsh(networkx.laplacian_matrix(honest).toarray().astype(float))
    assert facts["algebraic_connectivity"] == pytest.approx(eigenvalues[1], abs=1e-9)
    assert facts["edges"] == len(topology.edges)
    assert facts["attackers_heard"] == 1
    assert 0.0 < facts["spectral_gap"] < 1.0
    assert json.loads(json.dumps(facts)) == facts


def test_better_connected_graphs_have_a_larger_gap():
    facts = [
        of(name, attackers=0, degree=degree).facts()
        for name, degree in (
            ("ring", None),
            ("k-ring", 4),
            ("k-ring", 8),
            ("complete", None),
        )
    ]
    for fact in ("algebraic_connectivity", "spectral_gap"):
        values = [one[fact] for one in facts]
        assert values == sorted(values)
    assert facts[-1]["algebraic_connectivity"] == pytest.approx(16)
    assert facts[-1]["spectral_gap"] == pytest.approx(1)
    ring = 2 - 2 * math.cos(2 * math.pi / 16)  # the textbook's
    assert facts[0]["algebraic_connectivity"] == pytest.approx(ring)


def test_the_number_of_messages_is_the_mean_degree_of_honest_peers():
    assert GraphNetwork(of("torus"), byzantine=2, seed=0).messages == 4.0
    star = Topology("star", 4, 0, ((0, 1), (0, 2), (0, 3)))
    assert GraphNetwork(star, byzantine=0, seed=0).messages == 1.5


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("ring", {"peers": 2, "attackers": 0}, "give --peers 3 or more"),
        ("torus", {"peers": 10}, "a torus of 10 peers is none"),
        ("torus", {"peers": 13}, "a torus of 13 peers is none"),
        ("k-ring", {"degree": 5}, "give an even number"),
        ("k-ring", {"degree": 16}, "has 2 to 15 neighbours"),
        ("random", {"degree": 1}, "has 2 to 15 neighbours"),
        ("random", {"peers": 15, "degree": 3}, "give an even number"),
        ("ring", {"peers": 2001}, "at most 2000"),
        ("ring", {}, "without its 2 attackers the topology ring falls into 2 parts"),
        ("rng", {}, "unknown topology 'rng': did you mean 'ring'"),
        ("nowhere/graph.txt", {}, "there is no nowhere/graph.txt"),
    ],
)
def test_graphs_that_cannot_be_are_refused(name, more, match):
    with pytest.raises(BadInput, match=match):
        of(name, **more)


def test_a_random_graph_that_falls_apart_every_time_is_refused():
    with pytest.raises(BadInput, match="none connects the honest peers: give a larger --degree"):
        of("random", peers=40, attackers=12, degree=2)


def test_an_honest_peer_with_too_few_neighbours_is_named():
    ring = of("ring", peers=9, attackers=1)
    ring.require(2, "nna", 1)
    with pytest.raises(BadInput, match="trimmed-mean with f = 1 needs 3 neighbours, and peer 0 has 2 on the topology"):
        ring.require(3, "trimmed-mean", 1)
    lonely = Topology("tail", 5, 1, ordered([(0, 1), (1, 2), (0, 2), (2, 3), (0, 4)]))
    with pytest.raises(BadInput, match="peer 3 has 1"):
        lonely.require(2, "nna", 1)
    lonely._replace(attackers=2).require(2, "nna", 1)  # what an attacker hears is its own affair


def test_parts_are_found():
    assert parts(6, [(0, 1), (4, 5), (1, 2)]) == [[0, 1, 2], [3], [4, 5]]
    with pytest.raises(BadInput, match=r"in 3 parts \(0, 1, 2; 3; 4, 5\)"):
        connected(Topology("pieces", 6, 0, ((0, 1), (1, 2), (4, 5))))


# ---------------------------------------------------------------------------------------------------------------------
# files

OFFICE = networkx.circulant_graph(12, [1, 2])


def write(folder, suffix: str, graph: networkx.Graph) -> str:
    path = folder / f"office{suffix}"
    if suffix == ".graphml":
        networkx.write_graphml(graph, path)
    elif suffix == ".json":
        path.write_text(json.dumps(networkx.adjacency_data(graph)))
    elif suffix == ".links.json":
        path.write_text(json.dumps(networkx.node_link_data(graph, edges="edges")))
    else:
        networkx.write_edgelist(graph, path, data=False)
    return str(path)


@pytest.mark.parametrize("suffix", [".txt", ".edges", ".edgelist", ".graphml", ".json", ".links.json"])
def test_a_graph_is_the_same_in_every_file(tmp_path, suffix):
    path = write(tmp_path, suffix, OFFICE)
    topology = named(path, peers=12, attackers=2)
    assert topology.edges == ordered(OFFICE.edges)
    assert topology.name == f"office{suffix}"
    assert topology.facts()["sha256"] == fingerprint(12, OFFICE.edges)


def test_names_count_in_natural_order_and_comments_are_passed_over(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("# who hears whom\np10 p9\np9 p2  # next door\n\np2 p10\np2 p9\n")
    assert read(str(path), 3) == ((0, 1), (0, 2), (1, 2))  # p2, p9, p10
    path.write_text("p2 p9\np9 p10\n")
    assert read(str(path), 3) == ((0, 1), (1, 2))


def test_a_file_that_changed_since_the_run_began_is_refused(tmp_path):
    path = write(tmp_path, ".txt", OFFICE)
    sha256 = fingerprint(12, OFFICE.edges)
    named(path, peers=12, attackers=1, sha256=sha256)
    write(tmp_path, ".txt", networkx.circulant_graph(12, [1, 3]))
    with pytest.raises(BadInput, match="holds another graph than when the run began"):
        named(path, peers=12, attackers=1, sha256=sha256)


def directed() -> networkx.Graph:
    return networkx.DiGraph([(0, 1), (1, 2), (2, 0)])


def with_loop() -> networkx.Graph:
    return networkx.Graph([(0, 1), (1, 2), (2, 0), (1, 1)])


def doubled() -> networkx.Graph:
    return networkx.MultiGraph([(0, 1), (0, 1), (1, 2), (2, 0)])


def weighted() -> networkx.Graph:
    graph = networkx.Graph([(0, 1), (1, 2), (2, 0)])
    graph.edges[0, 1]["weight"] = 0.5
    return graph


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".links.json"])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (directed, "is a directed graph"),
        (with_loop, "has an edge from .* to itself"),
        (doubled, "has several edges between two peers"),
        (weighted, "has weights, which nothing reads"),
        (lambda: networkx.path_graph(4), r"number of peers in .* is 4, and --peers is 3"),
        (lambda: networkx.Graph([(0, 1)]), r"number of peers in .* is 2"),
    ],
)
def test_graphs_of_files_that_a_group_cannot_have_are_refused(tmp_path, suffix, make, match):
    with pytest.raises(BadInput, match=match):
        named(write(tmp_path, suffix, make()), peers=3, attackers=0)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.txt", "0 1 0.5\n", "line 1 of .* has 3 words"),
        ("a.txt", "0 1\n2\n", "line 2 of .* has 1 words"),
        ("a.txt", "0 0\n0 1\n1 2\n", "to itself"),
        ("a.txt", "", r"number of peers in .* is 0"),
        ("a.txt", "0 1\n", r"number of peers in .* is 2"),
        ("a.txt", "0 1\n1 2\n2 3\n", r"number of peers in .* is 4"),
        ("a.csv", "0,1\n", "no kind of file that is read"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "holds no graph"),
        ("a.json", '{"nodes": 3}', "holds no graph"),
        ("a.json", '{"nodes": [{"id": {}}], "links": []}', "is not a graph of networkx"),
        ("a.json", '{"nodes": [{"id": 0}], "adjacency": [[{"id": 9}]]}', r"number of peers in .* is 2|is not a graph"),
        ("a.json", '{"nodes": [{}], "adjacency": [[]]}', "is not a graph of networkx"),
        ("a.json", '{"nodes": [{"id": 0}], "adjacency": 3}', "is not a graph of networkx"),
        ("a.graphml", "<graphml", "is not GraphML"),
        ("a.graphml", "<a/>", "is not GraphML"),
        ("a.graphml", '<!DOCTYPE g [<!ENTITY a "b">]><graphml/>', "declares entities"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, name, text, match):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadInput, match=match) as error:
        named(str(path), peers=3, attackers=0)
    assert "\n" not in str(error.value)


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(BadInput, match=r"is no text|number of peers|words"):
        named(str(path), peers=3, attackers=0)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BadInput, match="there is no"):
        named(str(tmp_path / "folder.txt"), peers=3, attackers=0)
    path.write_bytes(b"0 1\n" * (17 * 2**20))
    with pytest.raises(BadInput, match="has more than 64 MB"):
        named(str(path), peers=3, attackers=0)

"""Two offices of eight peers, joined by a few edges, and one liar: python examples/two_offices.py.

A graph of networkx goes into a file, and a simulation lets peers hear their neighbours on it alone. With more edges
between the offices the peers' models come closer together. The command line does the same: gradless collab simulate
--topology FILE.
"""

import tempfile
from pathlib import Path

import networkx

from gradless.collab.config import CollabConfig
from gradless.collab.simulation.simulate import simulate
from gradless.system.progress import Reporter

OFFICE = 8


def offices(bridges: int) -> networkx.Graph:
    """Two complete graphs of eight, and so many edges between them."""
    graph = networkx.disjoint_union(networkx.complete_graph(OFFICE), networkx.complete_graph(OFFICE))
    graph.add_edges_from((peer, OFFICE + peer) for peer in range(bridges))
    return graph


with tempfile.TemporaryDirectory() as folder:
    for bridges in (1, 2, 4):
        path = Path(folder) / f"offices-{bridges}.txt"
        networkx.write_edgelist(offices(bridges), path, data=False)
        config = CollabConfig(
            topology=str(path),
            peers=2 * OFFICE,
            byzantine=1,  # the last peer of the second office
            algorithm="clipped-gossip",
            attack="dissensus",
            momentum=0.9,
            steps=60,
            split="dirichlet-classes",
            split_parameter=1.0,
        )
        result = simulate(config, Path(folder) / f"run-{bridges}", reporter=Reporter(quiet=True))
        print(
            f"{bridges} bridges: connectivity {result['graph']['algebraic_connectivity']:.2f}, worst accuracy "
            f"{result['worst_accuracy']:.3f}, distance of the models {result['consensus_distance']:.3f}"
        )

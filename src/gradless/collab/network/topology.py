"""Communication graphs of a simulated group: by name or from a file, and what is wrong with one.

Peers on an undirected edge hear each other in every exchange, and nobody else. networkx makes the graphs and reads the
files; it is imported when a graph is made. Nothing here imports torch.

The honest peers are 0 .. n - b - 1, as everywhere in a simulation, and the attackers the last b. In a graph of a name
attackers stand at even distances; in a file the last b nodes in natural order are the attackers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gradless.collab.network.topology_files import load_networkx, ordered, read
from gradless.errors import BadInput

if TYPE_CHECKING:
    from networkx import Graph

TOPOLOGIES: Final = {
    "complete": "everybody hears everybody",
    "ring": "each peer hears its two neighbours on a circle",
    "k-ring": "each peer hears the nearest on a circle, half of --degree on either side",
    "torus": "each peer hears four: a grid as square as n allows, whose borders meet",
    "random": "each peer hears --degree others: a random regular graph, drawn from --seed",
}
COMPLETE, RING, K_RING, TORUS, RANDOM = TOPOLOGIES
OF_DEGREE: Final = (K_RING, RANDOM)
DEGREE: Final = 4
"""Neighbours of a peer on a k-ring or a random graph, unless something else is asked for."""
MOST_PEERS: Final = 2000
"""Larger graphs are refused: the group's rows and who holds which of them are matrices of n^2 numbers and more."""
ATTEMPTS: Final = 100
"""Random graphs that are drawn in search of one whose honest peers are connected."""


class Topology(NamedTuple):
    """Who hears whom: a connected undirected graph of n peers, the b attackers last."""

    name: str
    """Of the graph, with its degree, or of its file."""
    peers: int
    attackers: int
    edges: tuple[tuple[int, int], ...]
    """Pairs of peers, the smaller first, ascending."""

    @property
    def honest(self) -> int:
        """H = n - b."""
        return self.peers - self.attackers

    def neighbours(self) -> list[list[int]]:
        """Return whom each peer hears, ascending; itself is not among them."""
        heard: list[list[int]] = [[] for _ in range(self.peers)]
        for first, second in self.edges:
            heard[first].append(second)
            heard[second].append(first)
        return [sorted(ears) for ears in heard]

    def exposed(self) -> int:
        """Return the largest number of attackers among the neighbours of an honest peer."""
        return max(sum(peer >= self.honest for peer in ears) for ears in self.neighbours()[: self.honest])

    def require(self, least: int, rule: str, byzantine: int) -> None:
        """Refuse a graph in which an honest peer has fewer than ``least`` neighbours.

        Args:
            least: what the rule needs.
            rule: its name, for the sentence.
            byzantine: f, what the rule is told.

        Raises:
            BadInput: with the first such peer.
        """
        for peer, ears in enumerate(self.neighbours()[: self.honest]):
            if len(ears) < least:
                raise BadInput(
                    f"{rule} with f = {byzantine} needs {least} neighbours, and peer {peer} has {len(ears)} on the "
                    f"topology {self.name}: take one with more neighbours, or lower --byzantine"
                )

    def facts(self) -> dict[str, Any]:
        """Return what a result says of the graph.

        ``algebraic_connectivity`` is the second smallest eigenvalue of the Laplacian of the honest peers' subgraph
        (Fiedler 1973), ``spectral_gap`` one minus the second largest absolute eigenvalue of the Metropolis-Hastings
        weights among them, where what attackers would get stays with the receiver.

        Cost: two eigenvalue problems of H x H numbers.
        """
        degrees = [len(ears) for ears in self.neighbours()[: self.honest]]
        return {
            "topology": self.name,
            "edges": len(self.edges),
            "least_degree": min(degrees),
            "mean_degree": sum(degrees) / len(degrees),
            "largest_degree": max(degrees),
            "attackers_heard": self.exposed(),
            **self._spectra(),
            "sha256": fingerprint(self.peers, self.edges),
        }

    def _spectra(self) -> dict[str, float | None]:
        import numpy as np

        count = self.honest
        if count < 2:
            return {"algebraic_connectivity": None, "spectral_gap": None}
        inside = np.zeros((count, count))
        mixing = np.zeros((count, count))
        for (first, second), weight in zip(self.edges, metropolis(self), strict=True):
            if second < count:
                inside[first, second] = inside[second, first] = 1.0
                mixing[first, second] = mixing[second, first] = weight
        laplacian = np.diag(inside.sum(1)) - inside
        mixing += np.diag(1.0 - mixing.sum(1))
        second_largest = np.sort(np.abs(np.linalg.eigvalsh(mixing)))[-2]
        return {
            "algebraic_connectivity": round(float(np.linalg.eigvalsh(laplacian)[1]), 12),
            "spectral_gap": round(float(1.0 - second_largest), 12),
        }


def title(name: str, degree: int | None = None) -> str:
    """Return what results call a topology: its name, with its degree, or that of its file without the folder.

    Example:
        >>> title("k-ring", 6), title("graphs/office.graphml")
        ('k-ring of degree 6', 'office.graphml')
    """
    if name in OF_DEGREE:
        return f"{name} of degree {degree or DEGREE}"
    return name if name in TOPOLOGIES else name.replace("\\", "/").rsplit("/", 1)[-1]


def metropolis(topology: Topology) -> list[float]:
    """Return the Metropolis-Hastings weight of every edge, 1 / (1 + the larger degree of its two peers).

    With what is left to one as every peer's own weight they are a symmetric, doubly stochastic matrix (Xiao, Boyd, Kim
    2007). Degrees are those of the graph, attackers counted: everybody knows it, so nobody can lie about its own. On a
    complete graph all weights are 1 / n.
    """
    degree = [len(ears) for ears in topology.neighbours()]
    return [1.0 / (1 + max(degree[first], degree[second])) for first, second in topology.edges]


def named(
    name: str, *, peers: int, attackers: int, degree: int | None = None, seed: int = 0, sha256: str | None = None
) -> Topology:
    """Return the graph of a name, or that of a file.

    Args:
        name: a key of `TOPOLOGIES`, or the path of a file (`gradless.collab.network.topology_files.read`).
        peers: n.
        attackers: b.
        degree: neighbours of a peer, for a k-ring or a random graph.
        seed: of a random graph.
        sha256: `fingerprint` that the graph of a file must have; None: any.

    Raises:
        BadInput: a graph that cannot be, or whose honest peers are not connected with each other.
    """
    if name != COMPLETE and peers > MOST_PEERS:
        raise BadInput(f"peers is {peers}: a topology other than complete has at most {MOST_PEERS}")
    if name not in TOPOLOGIES:
        return _from_file(name, peers, attackers, sha256)
    places, degree = _places(peers, attackers), degree or DEGREE
    for attempt in range(ATTEMPTS if name == RANDOM else 1):
        graph = _graph(name, peers, degree, seed, attempt)
        edges = ordered((places[first], places[second]) for first, second in graph.edges)
        topology = Topology(title(name, degree), peers, attackers, edges)
        if len(honest_parts(topology)) == len(parts(peers, edges)) == 1:
            return topology
    if name == RANDOM:
        raise BadInput(
            f"of {ATTEMPTS} random graphs of degree {degree} none connects the honest peers: give a larger --degree"
        )
    return connected(topology)


def connected(topology: Topology) -> Topology:
    """Return a graph in which all honest peers reach each other without the help of attackers.

    Two honest parts that meet at attackers alone can be told anything about each other, so that no rule lets them
    agree; the accuracy of such a group would say nothing about the rule. So it is refused, not simulated with a
    warning.

    Raises:
        BadInput: with the parts.
    """
    whole = parts(topology.peers, topology.edges)
    if len(whole) > 1:
        raise BadInput(
            f"the topology {topology.name} is in {len(whole)} parts ({_some(whole)}): add edges that join them"
        )
    honest = honest_parts(topology)
    if len(honest) > 1:
        raise BadInput(
            f"without its {topology.attackers} attackers the topology {topology.name} falls into {len(honest)} parts "
            f"({_some(honest)}), which can never agree: add edges between honest peers, or lower --attackers"
        )
    return topology


def parts(peers: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the connected parts of a graph, each ascending."""
    part = list(range(peers))

    def root(peer: int) -> int:
        while part[peer] != peer:
            part[peer] = part[part[peer]]
            peer = part[peer]
        return peer

    for first, second in edges:
        part[max(root(first), root(second))] = min(root(first), root(second))
    members: dict[int, list[int]] = {}
    for peer in range(peers):
        members.setdefault(root(peer), []).append(peer)
    return list(members.values())


def honest_parts(topology: Topology) -> list[list[int]]:
    """Return the connected parts that are left of a graph without its attackers."""
    count = topology.honest
    return parts(count, ((first, second) for first, second in topology.edges if second < count))


def fingerprint(peers: int, edges: Iterable[tuple[int, int]]) -> str:
    """Return the SHA-256 of a graph, whatever file or release of networkx it came from."""
    import hashlib  # late: help needs none

    lines = [str(peers), *(f"{first} {second}" for first, second in ordered(edges))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _from_file(name: str, peers: int, attackers: int, sha256: str | None) -> Topology:
    edges = read(name, peers, known=TOPOLOGIES)
    if sha256 is not None and fingerprint(peers, edges) != sha256:
        raise BadInput(f"{name} holds another graph than when the run began: restore it, or choose another --out")
    return connected(Topology(title(name), peers, attackers, edges))


def _places(peers: int, attackers: int) -> dict[int, int]:
    """Return the peer at each place of a named graph: attackers at even distances."""
    bad = {(k + 1) * peers // attackers - 1 for k in range(attackers)}
    honest = itertools.count()
    last = itertools.count(peers - attackers)
    return {index: next(last if index in bad else honest) for index in range(peers)}


def _graph(name: str, peers: int, degree: int, seed: int, attempt: int) -> Graph:
    """Return a graph whose nodes are the places 0 .. n - 1.

    Raises:
        BadInput: a number of peers or a degree for which there is none.
    """
    networkx = load_networkx()
    if name == COMPLETE:
        return networkx.complete_graph(peers)
    if name == RING:
        if peers < 3:
            raise BadInput(f"a ring of {peers} peers is none: give --peers 3 or more")
        return networkx.cycle_graph(peers)
    if name == TORUS:
        rows = next(rows for rows in range(math.isqrt(peers), 0, -1) if peers % rows == 0)
        if rows < 3:
            raise BadInput(
                f"a torus of {peers} peers is none: give --peers as a product of two numbers from 3 on, such as 16"
            )
        grid = networkx.grid_2d_graph(rows, peers // rows, periodic=True)
        return networkx.relabel_nodes(grid, {(row, column): row * (peers // rows) + column for row, column in grid})
    if not 2 <= degree < peers:
        raise BadInput(f"degree is {degree}: a peer on the topology {name} has 2 to {peers - 1} neighbours here")
    if name == K_RING:
        if degree % 2:
            raise BadInput(f"degree is {degree}: give an even number, for a k-ring has as many peers on either side")
        return networkx.circulant_graph(peers, range(1, degree // 2 + 1))
    if degree * peers % 2:
        raise BadInput(
            f"degree is {degree}: with {peers} peers give an even number, for every edge of a random graph has two ends"
        )
    from gradless import rng

    return networkx.random_regular_graph(degree, peers, seed=rng.fold(seed, rng.leaf_id("topology"), attempt) % 2**32)


def _some(groups: list[list[int]]) -> str:
    """Return parts of a graph in a few words."""
    texts = [", ".join(map(str, group[:4])) + (", ..." if len(group) > 4 else "") for group in groups[:3]]
    return "; ".join(texts) + ("; ..." if len(groups) > 3 else "")

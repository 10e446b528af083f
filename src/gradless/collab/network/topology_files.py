"""Graphs from text files: an edge list, GraphML, or JSON as networkx writes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gradless.errors import BadInput, unknown
from gradless.system import typed

if TYPE_CHECKING:
    from networkx import Graph

LARGEST: Final = 64 * 2**20
"""Bytes of a file: 2,000 peers who all hear each other are 20 MB of edges."""


def ordered(edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return edges as a `gradless.collab.network.topology.Topology` holds them."""
    return tuple(sorted({(min(edge), max(edge)) for edge in edges}))


def load_networkx() -> Any:
    """Return the module networkx.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import networkx
    except ImportError as error:
        raise BadInput("graphs of a group need networkx: pip install 'gradless[collab]'") from error
    return networkx


def read(name: str, peers: int, *, known: Iterable[str] = ()) -> tuple[tuple[int, int], ...]:
    """Return the edges of the graph in a file; its nodes are numbered in natural order ("p2" before "p10").

    Args:
        name: path of the file. ``.graphml`` is GraphML, ``.json`` the adjacency or node-link data of networkx, and
            ``.txt``, ``.edges`` and ``.edgelist`` hold two peers a line, with comments after ``#``.
        peers: n, which the graph must have.
        known: names of topologies, of which one that is no file may be meant.

    Raises:
        BadInput: no such file, or a graph that a group cannot have: directed, with edges from a peer to itself, several
            between two peers or with weights, or with another number of peers.
    """
    path = Path(name)
    kind = FORMATS.get(path.suffix.lower())
    if not path.is_file():
        if kind is None and path.parent == Path():  # rather a name than a path
            raise BadInput(f"{unknown('topology', name, known)}; or give a file ({', '.join(FORMATS)})")
        raise BadInput(f"there is no {name}: give --topology a name or the file of a graph")
    if kind is None:
        raise BadInput(f"{name} is no kind of file that is read: give one that ends in {', '.join(FORMATS)}")
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"{name} has more than {LARGEST // 2**20} MB: give a smaller graph")
        graph = kind(typed.read_text(path), name)
    except OSError as error:
        raise BadInput(f"{name} cannot be read ({error.strerror or error}): give a file that exists") from None
    except UnicodeError:
        raise BadInput(f"{name} is no text in UTF-8: write the graph as text") from None
    _check(graph, name, peers)
    number = {node: index for index, node in enumerate(sorted(graph, key=_natural))}
    return ordered((number[first], number[second]) for first, second in graph.edges())


def _check(graph: Graph, name: str, peers: int) -> None:
    """Raise BadInput for a graph that a group cannot have."""
    if graph.is_directed():
        raise BadInput(f"{name} is a directed graph: give an undirected one, in which peers hear each other")
    pairs = [frozenset(edge) for edge in graph.edges()]
    alone = next((node for pair in pairs if len(pair) == 1 for node in pair), None)
    if alone is not None:
        raise BadInput(f"{name} has an edge from {typed.shown(alone)} to itself: leave it out, own rows always count")
    if len(set(pairs)) < len(pairs):
        raise BadInput(f"{name} has several edges between two peers: give each pair one at most")
    if any("weight" in data for _, _, data in graph.edges(data=True)):
        raise BadInput(f"{name} has weights, which nothing reads: leave them out (weights follow from the degrees)")
    if len(graph) != peers:
        raise BadInput(f"the number of peers in {name} is {len(graph)}, and --peers is {peers}: give the same number")


def _edge_list(text: str, name: str) -> Graph:
    lines = [line.split("#", 1)[0].split() for line in text.splitlines()]
    for number, words in enumerate(lines, start=1):
        if words and len(words) != 2:
            raise BadInput(f"line {number} of {name} has {len(words)} words: write the two peers of an edge, no more")
    graph: Graph = load_networkx().Graph()
    graph.add_edges_from(words for words in lines if words)
    return graph


def _graphml(text: str, name: str) -> Graph:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can make a small file large
        raise BadInput(f"{name} declares entities: write plain GraphML, as networkx does")
    return _parsed(lambda networkx: networkx.parse_graphml(text), name, "GraphML")


def _json(text: str, name: str) -> Graph:
    try:
        content = typed.parse_json(text)
    except ValueError as error:
        raise BadInput(f"{name} is not JSON ({error}): correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("nodes"), list):
        raise BadInput(f"{name} holds no graph: write it with networkx.adjacency_data or networkx.node_link_data")

    def make(networkx: Any) -> Any:
        if "adjacency" in content:
            return networkx.adjacency_graph(content)
        return networkx.node_link_graph(content, edges="edges" if "edges" in content else "links")

    return _parsed(make, name, "a graph of networkx")


def _parsed(make: Callable[[Any], Any], name: str, kind: str) -> Graph:
    """Return what networkx reads; its errors are those of the file."""
    networkx = load_networkx()
    from xml.etree.ElementTree import ParseError

    try:
        graph: Graph = make(networkx)
    except (networkx.NetworkXException, ParseError, ArithmeticError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{name} is not {kind} ({reason[:120]}): correct it") from None
    except (AttributeError, RecursionError):
        raise BadInput(f"{name} is not {kind}: write it with networkx") from None
    return graph


def _natural(node: object) -> tuple[list[tuple[int, int | str]], str]:
    """Return a sort key in which numbers in a name count as such."""
    words = re.split(r"(\d{1,18})", str(node))
    return [(0, int(word)) if word.isdecimal() else (1, word) for word in words if word], str(node)


FORMATS: Final[dict[str, Callable[[str, str], Graph]]] = {
    ".txt": _edge_list,
    ".edges": _edge_list,
    ".edgelist": _edge_list,
    ".graphml": _graphml,
    ".json": _json,
}
"""How the text of a file is read, by the ending of its name."""

"""Rules on neighbourhoods of a sparse graph, as their papers define them: D-SGD, BRIDGE, ClippedGossip and NNA.

Receiver i holds its own row, which comes first, and those of its m_i neighbours; W are the weights that the graph gives
them (`gradless.collab.network.topology.metropolis`, carried by `gradless.collab.aggregation.receivers.Received`).

- D-SGD (Lian et al. 2017, arXiv 1705.09056): sum_j W_ij x_j.
- BRIDGE (Yang, Bajwa 2019, arXiv 1908.08098): in every column the mean of the own value and the neighbours' without the
  f lowest and the f highest; the own value is never trimmed. m_i >= 2 f + 1.
- ClippedGossip, self-centred clipping (He, Karimireddy, Jaggi 2022, arXiv 2202.01545):
  x_i + sum_j W_ij clip(x_j - x_i, tau_i). Its practical radius takes the f heaviest neighbours for Byzantine:
  tau_i^2 = (1 / w) sum W_ij |x_j - x_i|^2 over the nearest rows of weight 1 - w in all, w what these f weigh.
- NNA (Farhadkhani et al. 2023, arXiv 2209.10931): the mean of the m_i + 1 - f rows nearest to the own one. The paper's
  theorem is about complete graphs.

Peers take their local step first and mix what comes of it, as in the papers of ClippedGossip and MoNNA; those of D-SGD
and BRIDGE mix the models before it and step along the gradient at the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from gradless.collab.aggregation import coordinate_rules, span_rules
from gradless.collab.aggregation.base import Aggregator, together
from gradless.collab.option_checks import any_number, count, more_than
from gradless.errors import BadInput


def gossip() -> Aggregator:
    """The mean by the graph's weights: what robust rules are compared with. Cost: G, for who is not finite."""
    return together("mean", span_rules.by_graph, any_number)


def screened_mean(*, f: int) -> Aggregator:
    """The mean of the own row and, in every column, the neighbours' values without the f lowest and the f highest.

    Yang, Bajwa 2019 (BRIDGE, arXiv 1908.08098). The own row comes first. f = 0 is the mean. Cost: as
    `gradless.collab.aggregation.rules.trimmed_mean`, for every receiver.
    """
    count("trimmed-mean", f)

    def column(x: Tensor) -> Tensor:
        others = len(x) - 1
        kept = others - 2 * f
        return (x[0] + kept * coordinate_rules.middle(x[1:], f, others - f)) / (kept + 1)

    return Aggregator("trimmed-mean", None, column, more_than("trimmed-mean", 2, f, 1))


def on_neighbourhoods(rule: Aggregator, byzantine: int) -> Aggregator:
    """Return what a rule is on the neighbourhoods of a sparse graph.

    Args:
        rule: of `gradless.collab.aggregation.rules`.
        byzantine: f.

    Raises:
        BadInput: a rule that is defined for all peers' rows alone.
    """
    make = RULES.get(rule.name) if not rule.stages else None
    if make is None:
        raise BadInput(
            f"{rule.name} needs the rows of all peers: leave --topology at complete, or take a rule that is defined on "
            f"neighbourhoods ({', '.join(RULES)}; algorithms d-sgd, bridge, mocwtm, scc, clipped-gossip, nna, monna)"
        )
    return make(rule, byzantine)


def least_neighbours(rule: Aggregator, byzantine: int) -> int:
    """Return how many neighbours a peer needs: 0 for the mean, 2 f + 1 for BRIDGE, 2 f for the others."""
    return {"mean": 0, "trimmed-mean": 2 * byzantine + 1}.get(rule.name, 2 * byzantine)


RULES: Final[dict[str, Callable[[Aggregator, int], Aggregator]]] = {
    "mean": lambda rule, f: gossip(),
    "trimmed-mean": lambda rule, f: screened_mean(f=f),
    "self-centred-clipping": lambda rule, f: rule,  # takes the weights of the graph where there are any
    "nna": lambda rule, f: rule,
}
"""By the name of a rule for complete graphs."""

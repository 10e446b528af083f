"""Attackers who tell every receiver something else, which a signed echo broadcast would not let them do.

Their aim is to hold honest peers apart: each receiver gets a vector near its own, where its rule keeps it, a little
farther out. Against nearest-neighbour averaging that raises the contraction factor alpha several times.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from gradless.collab.adversary.base import (
    SPREAD,
    Attack,
    AttackContext,
    Bounds,
    State,
    leading,
    mean_of_honest,
    no_extras,
    rows_of_honest,
    to_each,
)
from gradless.collab.option_checks import finite_or_none, interval, one_of

ALTERNATE: Final = "alternate"
PROJECTION: Final = "projection"
SIDES: Final = {
    ALTERNATE: "every second receiver",
    PROJECTION: "by the side on which the receiver lies along the direction in which honest rows differ most",
}


def dissensus(*, strength: float | None = None, bounds: Bounds | None = None) -> Attack:
    """Push receiver r along its own deviation from the honest mean: x_r + s (x_r - mean).

    The attack of He et al. 2022 (arXiv 2202.01545) on a complete graph; on a sparse one it is theirs as well,
    x_r + s sum_j W_rj (x_r - x_j) over the honest neighbours, divided by the weight of the attackers that r hears. The
    search also tries to pull receivers through the mean, s < 0. A receiver whose own row is not finite gets the mean.
    Cost: none, or the search's.

    Args:
        strength: s; None: the one that holds peers farthest apart, found in every exchange.
        bounds: where to search.
    """

    def send(context: AttackContext, s: float, state: State) -> Tensor:
        own = rows_of_honest(context)
        if context.leverage is None:
            away = own - mean_of_honest(context)
        else:
            away = context.leverage.sum(1, keepdim=True) * own - context.leverage @ own
        return to_each(context, own + s * away)

    fixed, where = finite_or_none("dissensus", strength), interval("dissensus", bounds)
    return Attack("dissensus", no_extras, send, fixed, where, signed=True, equivocates=True, goal=SPREAD)


def spectral(*, strength: float | None = None, bounds: Bounds | None = None) -> Attack:
    """Push receiver r along the direction in which honest rows differ most: x_r + s P (x_r - mean).

    P projects on the leading eigenvector of the honest Gram matrix, so all pushes are along one line, which is what a
    contraction removes last. After the spectral heuristic of Gaucher et al. 2025 (arXiv 2410.10418), whose direction
    comes from the graph and is not defined for a complete one. Cost: one Gram matrix, shared with the search.

    Args:
        strength: s; None: the one that holds peers farthest apart, found in every exchange.
        bounds: where to search.
    """

    def send(context: AttackContext, s: float, state: State) -> Tensor:
        u = leading(context)
        # The place of x_r - mean on the unit vector sum_k u_k (x_k - mean) / sqrt(l) is sqrt(l) u_r.
        direction = u - u.sum() * mean_of_honest(context)
        return to_each(context, rows_of_honest(context) + s * torch.outer(u, direction))

    fixed, where = finite_or_none("spectral", strength), interval("spectral", bounds)
    return Attack("spectral", no_extras, send, fixed, where, signed=True, equivocates=True, looks=True, goal=SPREAD)


def two_faced(attack: Attack, *, sides: str = ALTERNATE, name: str | None = None) -> Attack:
    """Show some receivers what ``attack`` sends, and the others its mirror image in the honest mean.

    Args:
        attack: any attack.
        sides: who sees what, one of `SIDES`.
        name: None: the attack's, with a prefix.
    """
    one_of("kind of sides", sides, SIDES)

    def send(context: AttackContext, strength: float, state: State) -> Tensor:
        sent = attack.send(context, strength, state)
        mean = mean_of_honest(context, sent.shape[-1] - len(context.honest))
        faces = _faces(context, sides)
        return mean + faces[:, None, None] * (sent - mean)

    return attack._replace(
        name=name or f"two-faced-{attack.name}",
        send=send,
        signed=False,  # the other sign shows the same faces to the other sides
        equivocates=True,
        looks=attack.looks or sides == PROJECTION,
        goal=SPREAD,
    )


def _faces(context: AttackContext, sides: str) -> Tensor:
    """+1 or -1 for every receiver, float64 [H]."""
    if sides == PROJECTION:
        return torch.where(leading(context) < 0, -1.0, 1.0).double()
    return 1.0 - 2.0 * (torch.arange(len(context.honest)) % 2).double()

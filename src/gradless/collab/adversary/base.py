"""What attackers know and what they say: messages as combinations of the honest rows and a few other directions.

An attack never builds [n, D] rows. It names E extra directions, [E, D], and gives every receiver and every attacker
float64 coefficients over the H honest rows and those directions, [R, b, H + E]: R is 1 if all receivers get the same
and H if each gets its own (equivocation). So the distances between all rows of all views follow from one Gram matrix,
and the strength of an attack can be searched without touching D numbers again
(`gradless.collab.adversary.line_search`).

Means, deviations and damage are over the honest rows that are finite: the model of a peer that has diverged tells
attackers nothing, and must not spoil what they tell others.

H honest peers, b attackers, f declared attackers, n = H + b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradless.collab.aggregation.gram import CentredGram, measure

TILE: Final = 1 << 16
SHIFT: Final = "shift"
SPREAD: Final = "spread"
GOALS: Final = {
    SHIFT: "carry the group away: |mean of outputs - mean of honest rows|^2",
    SPREAD: "drive peers apart: the mean of |output - mean of honest rows|^2",
}

Bounds: TypeAlias = tuple[float, float]
State: TypeAlias = Any  # what an attack remembers from exchange to exchange; each knows its own, most keep None
Strength: TypeAlias = "float | Callable[[AttackContext], float] | None"


class AttackContext(NamedTuple):
    """All that an omniscient attacker knows of one exchange."""

    honest: Tensor
    """[H, D] what honest peers send."""
    flipped: Tensor | None
    """[1, D] what a peer with flipped labels would send; only for attacks that ask (``flips``)."""
    attackers: int
    """b, how many there are."""
    declared: int
    """f, how many the rule is prepared for."""
    step: int
    seed: int
    gram: CentredGram | None = None
    """Where the honest rows lie (the first H rows of it), if somebody has measured it already."""
    finite: Tensor | None = None
    """bool [H] on the CPU: which honest rows are finite, if somebody has looked already."""
    leverage: Tensor | None = None
    """float64 [H, H]: on a sparse graph the weight that each honest peer gives its honest neighbours, over that of the
    attackers it hears; 0 where it hears none. None: everybody hears everybody."""

    @property
    def peers(self) -> int:
        """n, honest ones and attackers."""
        return len(self.honest) + self.attackers


def nothing() -> State:
    """Return what most attacks remember."""
    return None


def no_extras(context: AttackContext, state: State) -> tuple[Tensor, State]:
    """Only combinations of the honest rows: [0, D]."""
    return context.honest[:0], state


def any_group(honest: int, attackers: int) -> None:
    """The check of most attacks: they work in any group."""


class Attack(NamedTuple):
    """What attackers send. A new one is a function that returns this, and a row of `gradless.collab.attacks.ATTACKS`.

    ``send`` must be affine in the strength if the strength is to be searched; at strength ``harmless`` it should do no
    harm.
    """

    name: str
    extras: Callable[[AttackContext, State], tuple[Tensor, State]]
    """Directions beside the honest rows, [E, D] of their dtype (E may be 0), and what the attack remembers now."""
    send: Callable[[AttackContext, float, State], Tensor]
    """(context, strength, state after ``extras``) -> float64 [R, b, H + E], on the CPU."""
    strength: Strength = None
    """A number, a formula, or None: found anew in every exchange by a line search over ``bounds``."""
    bounds: Bounds | None = None
    """Least and greatest strength of the search; None: up to where the honest rows lie far behind."""
    signed: bool = False
    """Whether a search without bounds tries strengths below ``harmless`` too."""
    harmless: float = 0.0
    """The strength at which it sends the honest mean, or each its own row: where a search begins."""
    start: Callable[[], State] = nothing
    """What it remembers before the first exchange."""
    flips: bool = False
    """Whether it wants `AttackContext.flipped`."""
    equivocates: bool = False
    """Whether receivers get different rows."""
    looks: bool = False
    """Whether ``send`` reads where the honest rows lie: with `AttackContext.gram` given, that costs nothing."""
    goal: str = SHIFT
    """What a search maximises, one of `GOALS`."""
    check: Callable[[int, int], None] = any_group
    """(H, b) -> raises `BadInput` if the attack cannot work in such a group; for callers to ask before they begin."""


def sound(context: AttackContext) -> Tensor:
    """Return which honest rows are finite and can be squared, bool [H]. Cost: one read of the rows unless known."""
    if context.finite is not None:
        return context.finite
    if context.gram is not None:
        return context.gram.finite[: len(context.honest)]
    finite = torch.ones(len(context.honest), dtype=torch.bool, device=context.honest.device)
    kind = torch.float64 if context.honest.dtype == torch.float64 else torch.float32
    for start in range(0, context.honest.shape[1], TILE):
        tile = context.honest.detach()[:, start : start + TILE]
        # A length is finite exactly if the sum of squares is; no copy of float32 rows is made.
        finite &= torch.linalg.vector_norm(tile, dim=1, dtype=kind).square().isfinite()
    return finite.cpu()


def mean_of_honest(context: AttackContext, extras: int = 0) -> Tensor:
    """Return coefficients of the mean of the honest rows that are finite, float64 [H + E]; all 0 if there are none."""
    finite = sound(context).double()
    return torch.cat([finite / finite.sum().clamp_min(1.0), finite.new_zeros(extras)])


def rows_of_honest(context: AttackContext) -> Tensor:
    """Return coefficients of every honest row, float64 [H, H]; of the finite ones' mean where a row is not finite."""
    own = torch.eye(len(context.honest), dtype=torch.float64)
    return torch.where(sound(context)[:, None], own, mean_of_honest(context))


def unit(context: AttackContext, index: int, extras: int = 0) -> Tensor:
    """Return coefficients of one row of the basis, float64 [H + E]."""
    row = torch.zeros(len(context.honest) + extras, dtype=torch.float64)
    row[index] = 1.0
    return row


def to_all(context: AttackContext, row: Tensor) -> Tensor:
    """All attackers send ``row`` [M] to everybody: [1, b, M]."""
    return row.expand(1, context.attackers, -1)


def to_each(context: AttackContext, rows: Tensor) -> Tensor:
    """All attackers send receiver r the row r of ``rows`` [H, M]: [H, b, M]."""
    return rows[:, None].expand(-1, context.attackers, -1)


def gram_of(context: AttackContext) -> CentredGram:
    """Where the honest rows lie, measured now unless the context says so; later rows may belong to extra directions."""
    return context.gram if context.gram is not None else measure([context.honest])


def products(gram: CentredGram, rows: Tensor) -> Tensor:
    """Return inner products of linear combinations of the measured rows, [m, M] -> float64 [m, m].

    The origin is a row of the gram too, so no combination needs to sum to 1. Rows that are not finite count as 0.
    """
    full = torch.cat([rows, -(rows * gram.near).sum(1, keepdim=True)], 1)
    inner = full @ gram.inner @ full.T
    return (inner + inner.T) / 2


def deviations(context: AttackContext) -> Tensor:
    """Inner products of the honest rows' deviations from their mean, float64 [H, H]; 0 of rows that are not finite."""
    gram = gram_of(context)
    known = context._replace(gram=gram, finite=sound(context) & gram.finite[: len(context.honest)])
    away = rows_of_honest(known) - mean_of_honest(known)
    return products(gram, torch.cat([away, away.new_zeros(len(away), gram.rows - len(away))], 1))


def leading(context: AttackContext) -> Tensor:
    """Return where honest rows lie along the direction in which they differ most: a unit vector, float64 [H].

    The leading eigenvector of the centred Gram matrix; its largest element (by absolute value) is positive, so that
    the sign does not depend on the library. Rows that are not finite are at 0.
    """
    vector: Tensor = torch.linalg.eigh(deviations(context)).eigenvectors[:, -1] * sound(context)
    return vector * vector[vector.abs().argmax()].sign()

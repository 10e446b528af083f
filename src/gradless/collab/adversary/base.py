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

import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradless.collab.aggregation.gram import CentredGram, measure
from gradless.errors import BadInput, unknown

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
    geometry: CentredGram | None = None
    """Where the honest rows lie (the first H rows of it), if somebody has measured it already."""
    finite: Tensor | None = None
    """bool [H] on the CPU: which honest rows are finite, if somebody has looked already."""

    @property
    def peers(self) -> int:
        """n, honest ones and attackers."""
        return len(self.honest) + self.attackers


def nothing() -> State:
    """What most attacks remember."""
    return None


def no_extras(scene: AttackContext, state: State) -> tuple[Tensor, State]:
    """Only combinations of the honest rows: [0, D]."""
    return scene.honest[:0], state


def any_group(honest: int, attackers: int) -> None:
    """The check of most attacks: they work in any group."""


class Attack(NamedTuple):
    """What attackers send. A new one is a function that returns this, and a row of `gradless.collab.attacks.ATTACKS`.

    ``send`` must be affine in the strength if the strength is to be searched; at strength 0 it should do no harm.
    """

    name: str
    extras: Callable[[AttackContext, State], tuple[Tensor, State]]
    """Directions beside the honest rows, [E, D] of their dtype (E may be 0), and what the attack remembers now."""
    send: Callable[[AttackContext, float, State], Tensor]
    """(scene, strength, state after ``extras``) -> float64 [R, b, H + E], on the CPU."""
    strength: Strength = None
    """A number, a formula, or None: found anew in every exchange by a line search over ``bounds``."""
    bounds: Bounds | None = None
    """Least and greatest strength of the search; None: up to where the honest rows lie far behind."""
    signed: bool = False
    """Whether a search without bounds tries negative strengths too."""
    start: Callable[[], State] = nothing
    """What it remembers before the first exchange."""
    flips: bool = False
    """Whether it wants `AttackContext.flipped`."""
    equivocates: bool = False
    """Whether receivers get different rows."""
    looks: bool = False
    """Whether ``send`` reads where the honest rows lie: with `AttackContext.geometry` given, that costs nothing."""
    goal: str = SHIFT
    """What a search maximises, one of `GOALS`."""
    check: Callable[[int, int], None] = any_group
    """(H, b) -> raises `BadInput` if the attack cannot work in such a group; for callers to ask before they begin."""


def sound(scene: AttackContext) -> Tensor:
    """Which honest rows are finite and can be squared: bool [H]. Cost: one read of the rows, unless the scene says."""
    if scene.finite is not None:
        return scene.finite
    if scene.geometry is not None:
        return scene.geometry.finite[: len(scene.honest)]
    found = torch.ones(len(scene.honest), dtype=torch.bool, device=scene.honest.device)
    kind = torch.float64 if scene.honest.dtype == torch.float64 else torch.float32
    for start in range(0, scene.honest.shape[1], TILE):
        tile = scene.honest.detach()[:, start : start + TILE]
        # A length is finite exactly if the sum of squares is; no copy of float32 rows is made.
        found &= torch.linalg.vector_norm(tile, dim=1, dtype=kind).square().isfinite()
    return found.cpu()


def mean_of_honest(scene: AttackContext, extras: int = 0) -> Tensor:
    """Coefficients of the mean of the honest rows that are finite, float64 [H + E]; all 0 if there are none."""
    finite = sound(scene).double()
    return torch.cat([finite / finite.sum().clamp_min(1.0), finite.new_zeros(extras)])


def rows_of_honest(scene: AttackContext) -> Tensor:
    """Coefficients of every honest row, float64 [H, H]; of the finite ones' mean where a row is not finite."""
    own = torch.eye(len(scene.honest), dtype=torch.float64)
    return torch.where(sound(scene)[:, None], own, mean_of_honest(scene))


def unit(scene: AttackContext, index: int, extras: int = 0) -> Tensor:
    """Coefficients of one row of the basis, float64 [H + E]."""
    row = torch.zeros(len(scene.honest) + extras, dtype=torch.float64)
    row[index] = 1.0
    return row


def to_all(scene: AttackContext, row: Tensor) -> Tensor:
    """All attackers send ``row`` [M] to everybody: [1, b, M]."""
    return row.expand(1, scene.attackers, -1)


def to_each(scene: AttackContext, rows: Tensor) -> Tensor:
    """All attackers send receiver r the row r of ``rows`` [H, M]: [H, b, M]."""
    return rows[:, None].expand(-1, scene.attackers, -1)


def geometry_of(scene: AttackContext) -> CentredGram:
    """Where the honest rows lie, measured now unless the scene says so; later rows may belong to extra directions."""
    return scene.geometry if scene.geometry is not None else measure([scene.honest])


def products(geometry: CentredGram, rows: Tensor) -> Tensor:
    """Inner products of linear combinations of the measured rows, [m, M] -> float64 [m, m].

    The origin is a row of the geometry too, so no combination needs to sum to 1. Rows that are not finite count as 0.
    """
    full = torch.cat([rows, -(rows * geometry.near).sum(1, keepdim=True)], 1)
    found = full @ geometry.inner @ full.T
    return (found + found.T) / 2


def deviations(scene: AttackContext) -> Tensor:
    """Inner products of the honest rows' deviations from their mean, float64 [H, H]; 0 of rows that are not finite."""
    geometry = geometry_of(scene)
    known = scene._replace(geometry=geometry, finite=sound(scene) & geometry.finite[: len(scene.honest)])
    away = rows_of_honest(known) - mean_of_honest(known)
    return products(geometry, torch.cat([away, away.new_zeros(len(away), geometry.rows - len(away))], 1))


def leading(scene: AttackContext) -> Tensor:
    """Where honest rows lie along the direction in which they differ most: a unit vector, float64 [H].

    The leading eigenvector of the centred Gram matrix; its largest element (by absolute value) is positive, so that
    the sign does not depend on the library. Rows that are not finite are at 0.
    """
    vector: Tensor = torch.linalg.eigh(deviations(scene)).eigenvectors[:, -1] * sound(scene)
    return vector * vector[vector.abs().argmax()].sign()


def checked(name: str, strength: float | str | None, also: str = "") -> float | None:
    """A strength that is a finite number, or None.

    Raises:
        BadInput: for anything else.
    """
    if strength is None:
        return None
    if not finite_number(strength):
        raise BadInput(f"the strength of {name} is {strength!r}: give a finite number{also}")
    return float(strength)


def finite_number(value: object) -> bool:
    """Whether something is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def whole(name: str, what: str, value: int) -> int:
    """An option that is a whole number, not negative.

    Raises:
        BadInput: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadInput(f"{what} of {name} is {value!r}: give a whole number of at least 0")
    return value


def word(kind: str, value: str, known: Iterable[str]) -> str:
    """An option that is one of some words.

    Raises:
        BadInput: for anything else, with the nearest word.
    """
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise BadInput(unknown(kind, str(value), names))
    return value


def interval(name: str, bounds: Bounds | None) -> Bounds | None:
    """Bounds of a search, finite and in order.

    Raises:
        BadInput: for anything else.
    """
    if bounds is None:
        return None
    pair = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(finite_number(bound) for bound in bounds)
    if not pair or not bounds[0] < bounds[1]:
        raise BadInput(f"the bounds of {name} are {bounds!r}: give the least and the greatest strength, e.g. [0, 10]")
    return float(bounds[0]), float(bounds[1])

"""Mimic: attackers who copy one honest peer, and learn first whom it is best to copy.

Nobody can tell a copy from an honest row, so no rule filters it; but the data of the peer that is copied count b + 1
times. Karimireddy et al. 2022 (arXiv 2006.09365) choose the peer that lies farthest out along the direction z in which
honest rows differ most, and learn z in a first phase by Oja's rule.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import (
    TILE,
    Attack,
    AttackContext,
    State,
    mean_of_honest,
    no_extras,
    sound,
    to_all,
    unit,
)
from gradless.collab.option_checks import count
from gradless.errors import BadInput


class Learnt(NamedTuple):
    """What mimic knows after some exchanges."""

    exchanges: int = 0
    direction: Tensor | None = None
    """[D] unit vector, the estimate of the direction in which honest rows differ most."""
    places: Tensor | None = None
    """float64 [H], sums over exchanges of each peer's place along the direction, the honest mean being at 0."""

    @property
    def target(self) -> int:
        """The honest peer to copy: farthest out so far; the first before anything is known."""
        return 0 if self.places is None else int(self.places.abs().argmax())

    def among(self, finite: Tensor) -> int:
        """The same among peers whose rows are finite now, bool [H]; at least one must be."""
        places = torch.zeros(len(finite), dtype=torch.float64) if self.places is None else self.places.abs()
        return int(places.masked_fill(~finite, -1.0).argmax())


def mimic(*, learn: int = 100, target: int | None = None) -> Attack:
    """Copy the honest peer that lies farthest out along the direction in which honest rows differ most.

    The direction z is learnt in the first ``learn`` exchanges, one iteration of Oja's rule in each: z becomes
    t / (1 + t) z + 1 / (1 + t) p, made a unit vector, where p is sum_i d_i <d_i, z>, made a unit vector, and d_i the
    deviation of row i from the mean of the honest rows of this exchange. (The paper scales p by nothing and subtracts
    a running mean, which suits gradients; models move on, and closer together, while they train.) Until then
    attackers copy the peer that is ahead. Karimireddy et al. 2022 (arXiv 2006.09365).

    Cost: two passes over the rows while it learns, none after. Memory: z, one row; no D x D matrix.

    Args:
        learn: exchanges of the learning phase.
        target: copy this honest peer from the start, and learn nothing. While its row is not finite, the mean of those
            that are is sent.
    """
    count("mimic", learn, "learn")
    if target is not None:
        count("mimic", target, "target")

    def check(honest: int, attackers: int) -> None:
        if target is not None and target >= honest:
            raise BadInput(f"mimic has target {target}: there are {honest} honest peers, the first is 0")

    def extras(context: AttackContext, state: State) -> tuple[Tensor, State]:
        known: Learnt = state
        if target is None and known.exchanges < learn:
            known = watch(context, known)
        return no_extras(context, known)

    def send(context: AttackContext, strength: float, state: State) -> Tensor:
        check(len(context.honest), context.attackers)
        finite = sound(context)
        if not bool(finite.any() if target is None else finite[target]):
            return to_all(context, mean_of_honest(context))
        return to_all(context, unit(context, state.among(finite) if target is None else target))

    return Attack("mimic", extras, send, 0.0, start=Learnt, check=check)


def watch(context: AttackContext, known: Learnt) -> Learnt:
    """One step of Oja's rule on the rows of an exchange that are finite; the places of other peers stay as they are."""
    rows, finite = context.honest, sound(context)
    if not bool(finite.any()):
        return known
    lost = (~finite).to(rows.device)
    count, size = rows.shape
    kind = torch.float64 if rows.dtype == torch.float64 else torch.float32
    z = known.direction
    if z is None:
        draw = rng.normal(context.seed, "mimic", (size,)).to(kind)
        z = draw / draw.norm()
    z = z.to(rows.device)
    places = torch.zeros(count, dtype=torch.float64, device=rows.device)
    for start in range(0, size, TILE):
        places += (_around_mean(rows, lost, start, kind) @ z[start : start + TILE]).double()
    if not bool(places.isfinite().all()):
        return known
    push = torch.empty_like(z)
    for start in range(0, size, TILE):
        push[start : start + TILE] = places.to(kind) @ _around_mean(rows, lost, start, kind)
    length = float(push.norm())
    if length > 0.0:
        old = known.exchanges / (1.0 + known.exchanges)
        z = old * z + (1.0 - old) / length * push
        z = z / z.norm()
    total = places.cpu() if known.places is None else known.places + places.cpu()
    return Learnt(known.exchanges + 1, z, total)


def _around_mean(rows: Tensor, lost: Tensor, start: int, kind: torch.dtype) -> Tensor:
    """Deviations from the mean of rows that are not ``lost`` in a tile of columns, 0 of the others.

    Around one of the rows first, which keeps the digits.
    """
    tile = rows[:, start : start + TILE].to(kind)
    tile = (tile - tile[int((~lost).nonzero()[0])]).masked_fill_(lost[:, None], 0.0)
    return tile.sub_(tile.sum(0) / (~lost).sum()).masked_fill_(lost[:, None], 0.0)

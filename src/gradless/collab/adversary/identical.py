"""Attacks that tell all receivers the same. See `gradless.collab.adversary.equivocating` for those that do not.

Also the oldest ones: a flipped sign, flipped labels, noise, numbers that are none.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final, Literal

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import (
    TILE,
    Attack,
    AttackContext,
    Bounds,
    State,
    Strength,
    gram_of,
    mean_of_honest,
    no_extras,
    products,
    sound,
    to_all,
    unit,
)
from gradless.collab.option_checks import finite_or_none, flag, interval, one_of
from gradless.errors import BadInput
from gradless.system import typed
from gradless.system.typed import NotNegative

PAPER: Final = "paper"
ALIE: Final = float | Literal["paper"] | None


def none() -> Attack:
    """No attack: Byzantine peers send the mean of the honest rows. Cost: none."""
    return Attack("none", no_extras, lambda context, strength, state: to_all(context, mean_of_honest(context)), 0.0)


def sign_flip(*, scaled: bool = False, strength: float | None = None) -> Attack:
    """-mean of the honest rows; of models, that is far from everybody.

    Allen-Zhu et al. 2021 (arXiv 2012.14368). Cost: none.

    Args:
        scaled: -((n - f) / f) mean, which brings a plain average to about 0.
        strength: the factor s of -s mean, instead of both.
    """
    if flag("sign-flip", scaled, "scaled") and strength is not None:
        raise BadInput(f"sign-flip has scaled and strength {strength}: give one of them")

    def factor(context: AttackContext) -> float:
        declared = max(1, context.declared)
        return (context.peers - declared) / declared

    fixed: Strength = factor if scaled else 1.0 if strength is None else finite_or_none("sign-flip", strength)
    return Attack("sign-flip", no_extras, lambda s, factor, _: to_all(s, -factor * mean_of_honest(s)), fixed)


def ipm(*, strength: float | None = None, bounds: Bounds | None = None) -> Attack:
    """Inner product manipulation: -tau mean of the honest rows (Xie et al. 2020, arXiv 1903.03936).

    Strength 0 is the zero vector and -1 the honest mean, where a search begins: with the strength left open it sends
    what `foe` may. Cost: none, or the search's.

    Args:
        strength: tau; None: the one that does most harm, found in every exchange.
        bounds: where to search.
    """

    def send(context: AttackContext, tau: float, state: State) -> Tensor:
        return to_all(context, -tau * mean_of_honest(context))

    fixed, where = finite_or_none("ipm", strength), interval("ipm", bounds)
    return Attack("ipm", no_extras, send, fixed, where, signed=True, harmless=-1.0)


def foe(*, strength: float | None = None, bounds: Bounds | None = None) -> Attack:
    """Fall of empires: (1 - eps) mean of the honest rows.

    The direction of Xie et al. 2020 (arXiv 1903.03936), from the mean on, as the code of MoNNA has it (Farhadkhani et
    al. 2023, arXiv 2209.10931). Cost: none, or the search's.

    Args:
        strength: eps; None: the one that does most harm, found in every exchange.
        bounds: where to search.
    """

    def send(context: AttackContext, eps: float, state: State) -> Tensor:
        return to_all(context, (1.0 - eps) * mean_of_honest(context))

    return Attack("foe", no_extras, send, finite_or_none("foe", strength), interval("foe", bounds), signed=True)


def alie(*, strength: float | str | None = None, bounds: Bounds | None = None, against: bool = False) -> Attack:
    """A little is enough: mean - z sigma, with sigma the standard deviation of the honest rows in each coordinate.

    sigma has H - 1 in the denominator. Baruch et al. 2019 (arXiv 1902.06156). Cost: one pass over the rows in tiles of
    columns, and the search's; memory: sigma, one row.

    Args:
        strength: z; "paper": the quantile of the paper, see `quantile`; None: the z that does most harm, found in every
            exchange, of either sign.
        bounds: where to search.
        against: sigma gets the sign of the mean in each coordinate: a positive z then pushes against what honest peers
            agree on. Signs of coefficients are as random as their directions, so without it the pushes cancel out.
    """

    def send(context: AttackContext, z: float, state: State) -> Tensor:
        return to_all(context, mean_of_honest(context, 1) - z * unit(context, -1, 1))

    fixed: Strength = quantile if strength == PAPER else finite_or_none("alie", strength, ALIE)
    signed = flag("alie", against, "against")

    def extras(context: AttackContext, state: State) -> tuple[Tensor, State]:
        sigma = deviation(context.honest, sound(context))
        if signed:
            sigma *= context.honest[sound(context)].mean(0).nan_to_num().sign()
        return sigma, state

    def check(honest: int, attackers: int) -> None:
        if strength == PAPER:
            supporters_of(honest, attackers)

    return Attack("alie", extras, send, fixed, interval("alie", bounds), signed=True, check=check)


def quantile(context: AttackContext) -> float:
    """The z of the paper: Phi^-1((n - f - s) / (n - f)) with s = floor(n / 2 + 1) - f supporters for a majority.

    f are the attackers that there are. Negative where the paper's is: with few peers the formula finds no room.
    """
    honest = len(context.honest)
    return NormalDist().inv_cdf((honest - supporters_of(honest, context.attackers)) / honest)


def supporters_of(honest: int, attackers: int) -> int:
    """How many honest peers attackers of the paper must win over for a majority.

    Raises:
        BadInput: if they need none, or all.
    """
    n = honest + attackers
    supporters = n // 2 + 1 - attackers
    if not 0 < supporters < honest:
        raise BadInput(
            f"alie has no z for {attackers} attackers among {n} peers: give a strength, or leave it to the search"
        )
    return supporters


def deviation(rows: Tensor, finite: Tensor | None = None) -> Tensor:
    """Standard deviation of every coordinate, [H, D] -> [1, D], unbiased variance; 0 of a single row.

    16-bit rows are summed in float32. Memory: the result and two tiles.

    Args:
        rows: of honest peers.
        finite: bool [H], rows that count; None: all.
    """
    result = torch.zeros_like(rows[:1])
    kept = None if finite is None or bool(finite.all()) else finite.nonzero().flatten().to(rows.device)
    count = len(rows) if kept is None else len(kept)
    if count < 2:
        return result
    for start in range(0, rows.shape[1], TILE):
        tile = rows[:, start : start + TILE]
        tile = tile if kept is None else tile[kept]
        tile = tile.float() if tile.dtype in (torch.float16, torch.bfloat16) else tile
        # Around the first row: the mean of near-equal numbers keeps its digits.
        tile = tile - tile[0]
        tile = tile.sub_(tile.mean(0))
        result[0, start : start + TILE] = (tile.square_().sum(0) / (count - 1)).sqrt_()
    return result


def label_flip() -> Attack:
    """What a peer with flipped labels would send, i.e. an honest one with poisoned data. Cost: its local step.

    Allen-Zhu et al. 2021 (arXiv 2012.14368).
    """

    def extras(context: AttackContext, state: State) -> tuple[Tensor, State]:
        if context.flipped is None:
            raise BadInput("label-flip needs what a peer with flipped labels would send: give AttackContext.flipped")
        return context.flipped.to(context.honest), state

    return Attack("label-flip", extras, lambda context, _s, _: to_all(context, unit(context, -1, 1)), 0.0, flips=True)


def gaussian(*, strength: float = 1.0, around: str = "zero") -> Attack:
    """Noise of N(0, strength^2), each attacker its own. Cost: b rows of random numbers.

    Drawn from streams named after seed, step and attacker, so that all devices see the same.

    Args:
        strength: standard deviation of every coordinate, at least 0.
        around: "zero", or "mean": the noise is added to the honest mean.
    """
    one_of("centre of gaussian", around, ("zero", "mean"))
    sigma: float = typed.value("strength of gaussian", strength, NotNegative)

    def extras(context: AttackContext, state: State) -> tuple[Tensor, State]:
        noise = torch.empty(context.attackers, context.honest.shape[1], dtype=context.honest.dtype)
        for attacker, row in enumerate(noise):
            row.copy_(rng.normal(context.seed, f"gaussian/{context.step}/{attacker}", row.shape))
        return noise.to(context.honest.device), state

    def send(context: AttackContext, sigma: float, state: State) -> Tensor:
        count = len(context.honest)
        sent = torch.zeros(1, context.attackers, count + context.attackers, dtype=torch.float64)
        sent[0, :, count:] = sigma * torch.eye(context.attackers, dtype=torch.float64)
        return sent + mean_of_honest(context, context.attackers) if around == "mean" else sent

    return Attack("gaussian", extras, send, sigma)


def nan() -> Attack:
    """Not a number in every coordinate. Cost: none."""
    return _constant("nan", math.nan)


def inf() -> Attack:
    """Infinity in every coordinate. Cost: none."""
    return _constant("inf", math.inf)


def _constant(name: str, value: float) -> Attack:
    def extras(context: AttackContext, state: State) -> tuple[Tensor, State]:
        return context.honest.new_full((1, 1), value).expand(1, context.honest.shape[1]), state  # no memory

    return Attack(name, extras, lambda context, _s, _: to_all(context, unit(context, -1, 1)), 0.0)


def anticge(*, strength: float = 1.0) -> Attack:
    """Against the mean of the rows of small norm, just short enough to be taken for one of them.

    With as many attackers as declared, comparative gradient elimination keeps all of them and H - f honest rows. As in
    the code of MoNNA (Rouault 2021). Cost: one Gram matrix, shared with the search of others.

    Args:
        strength: share of the greatest length that goes through.
    """

    def send(context: AttackContext, share: float, state: State) -> Tensor:
        count = len(context.honest)
        gram = gram_of(context)
        finite = sound(context) & gram.finite[:count]
        norms = gram.norms()[:count].masked_fill(~finite, math.inf)
        order = norms.argsort(stable=True)  # rows that are not finite are the longest
        row, last = torch.zeros(count, dtype=torch.float64), int(finite.sum()) - 1
        if last < 0:
            return to_all(context, row)
        kept = min(max(1, count - context.declared), last + 1)
        row[order[:kept]] = 1.0 / kept
        length = math.sqrt(max(0.0, products(gram, row[None]).item()))
        # One part in a million: enough for the order to be the same in float32.
        longest = (1.0 - 1e-6) * float(norms[order[min(kept, last)]])
        return to_all(context, -share * (longest / length if length > 0 else 1.0) * row)

    if strength is None:
        raise BadInput("the strength of anticge is None: give a finite number")
    return Attack("anticge", no_extras, send, finite_or_none("anticge", strength), looks=True)

"""What attacks promise: well-formed messages that depend on the context alone, and on as much of it as they may see."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.adversary.base import GOALS, Attack, AttackContext
from gradless.collab.aggregation.gram import measure
from gradless.testing.checks import Check, demand, generators_untouched, run, suite

HONEST: Final = 7
ATTACKERS: Final = 3
WIDTH: Final = 40


class Claims(NamedTuple):
    """What an attack says of itself."""

    sees: bool
    finite: bool
    width: int


def attack_checks(*, sees: bool = True, finite: bool = True, width: int = WIDTH) -> tuple[Check, ...]:
    """Checks of an `Attack`, each called with it.

    Args:
        sees: whether it may look at the honest rows.
        finite: whether it sends numbers that are finite.
        width: D.
    """
    return suite("attack", CHECKS, Claims(sees, finite, width))


def check_attack(attack: Attack, *, sees: bool = True, finite: bool = True, width: int = WIDTH) -> None:
    """Run all checks of `attack_checks`.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless.collab.attacks import alie
        >>> check_attack(alie())
    """
    run(attack_checks(sees=sees, finite=finite, width=width), attack)


class Sent(NamedTuple):
    """A message and what is left behind."""

    extras: Tensor
    coefficients: Tensor
    rows: Tensor  # float64 [R, b, D]
    state: Any


def well_formed(attack: Attack, claims: Claims) -> None:
    """`extras` are [E, D] of the rows' dtype, `send` float64 [R, b, H + E] with R = 1 or H."""
    for dtype, attackers in ((torch.float64, 3), (torch.float32, 1), (torch.bfloat16, 3), (torch.float32, 0)):
        context = _context(claims, dtype=dtype, attackers=attackers)
        sent = play(attack, context)
        shape = [*sent.extras.shape]
        good = sent.extras.ndim == 2 and shape[1] == claims.width and sent.extras.dtype == dtype
        demand(good, f"extras are {sent.extras.dtype} {shape} for {dtype} rows [{HONEST}, {claims.width}]")
        want, rows = f"[1 or {HONEST}, {attackers}, {HONEST + shape[0]}]", sent.coefficients
        good = rows.shape[1:] == (attackers, HONEST + shape[0]) and len(rows) in (1, HONEST)
        told = f"send gives {rows.dtype} {[*rows.shape]}, not float64 {want}"
        demand(good and rows.dtype == torch.float64, told)


def says_what_it_is(attack: Attack, claims: Claims) -> None:
    """`goal`, `strength` and `bounds` can be used, and `equivocates` is set exactly if receivers get different rows."""
    demand(attack.goal in GOALS, f"its goal is {attack.goal!r}: one of {', '.join(GOALS)} is needed")
    context = _context(claims)
    strength = attack.strength(context) if callable(attack.strength) else attack.strength
    demand(strength is None or math.isfinite(strength), f"its strength is {strength!r}")
    ordered = attack.bounds is None or attack.bounds[0] < attack.bounds[1]
    demand(ordered, f"its bounds are {attack.bounds}: give the least and the greatest strength")
    receivers = len(play(attack, context).coefficients)
    demand(attack.equivocates == (receivers > 1), f"equivocates is {attack.equivocates}, but R is {receivers}")


def deterministic(attack: Attack, claims: Claims) -> None:
    """The same context and state give the same rows, and another seed or step gives them too."""
    for seed, step in ((0, 0), (5, 9)):
        one, other = (play(attack, _context(claims, seed=seed, step=step)) for _ in range(2))
        same = torch.equal(_bits(one.rows), _bits(other.rows))
        demand(
            same, f"the rows differ when asked again (honest rows [{HONEST}, {claims.width}], seed {seed}, step {step})"
        )


def state_is_a_value(attack: Attack, claims: Claims) -> None:
    """What it remembers is in the state that it returns: an old state can be played again."""
    state = play(attack, _context(claims)).state
    context = _context(claims, step=1)
    first = play(attack, context, state=state)
    play(attack, _context(claims, step=2, seed=8), state=state)
    again = play(attack, context, state=state)
    same = torch.equal(_bits(first.rows), _bits(again.rows))
    demand(same, "the second exchange gives other rows when it is played again from the same state (seed 0, step 1)")


def leaves_rows_alone(attack: Attack, claims: Claims) -> None:
    """The honest rows are not written to."""
    context = _context(claims)
    given_rows = [context.honest] + ([] if context.flipped is None else [context.flipped])
    originals = [rows.clone() for rows in given_rows]
    play(attack, context)
    same = all(map(torch.equal, originals, given_rows))
    demand(same, f"honest rows [{HONEST}, {claims.width}] of seed 0 were changed")


def sends_finite_rows(attack: Attack, claims: Claims) -> None:
    """What it sends is finite, unless that is the attack."""
    if claims.finite:
        for strength in (None, 0.0, 5.0):
            sound = bool(play(attack, _context(claims), strength=strength).rows.isfinite().all())
            demand(
                sound, f"rows are not finite (honest rows [{HONEST}, {claims.width}] of seed 0, strength {strength})"
            )


def affine_in_the_strength(attack: Attack, claims: Claims) -> None:
    """If its strength is searched, what it sends is affine in it."""
    if attack.strength is not None:
        return
    zero, one, three = (play(attack, _context(claims), strength=s).rows for s in (0.0, 1.0, 3.0))
    same = torch.allclose(three, zero + 3 * (one - zero), rtol=1e-9, atol=1e-9)
    demand(same, "rows at strength 3 are not those at 0 plus three times the way to those at 1 (seed 0)")


def sees_only_what_it_may(attack: Attack, claims: Claims) -> None:
    """Flipped labels change nothing unless it asks for them, and honest rows nothing if it may not see them."""
    if not attack.flips:
        one, other = (play(attack, _context(claims, flipped=flipped)) for flipped in (True, False))
        same = torch.equal(_bits(one.rows), _bits(other.rows))
        demand(same, "it looks at AttackContext.flipped, but `flips` is not set")
    if not claims.sees:
        one, other = (play(attack, _context(claims, rows=rows)) for rows in (0, 1))
        same = torch.equal(_bits(one.rows), _bits(other.rows))
        demand(same, "other honest rows change what it sends, though it may not see them (rows of seeds 0 and 1)")


def known_gram_changes_nothing(attack: Attack, claims: Claims) -> None:
    """Measured beforehand or not, the same rows are sent."""
    context = _context(claims)
    known = context._replace(gram=measure((context.honest,)), finite=torch.ones(HONEST, dtype=torch.bool))
    one, other = play(attack, context).rows, play(attack, known).rows
    same = torch.allclose(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
    demand(same, "the rows differ when AttackContext.gram and AttackContext.finite are known (seed 0)")


def passes_over_diverged_peers(attack: Attack, claims: Claims) -> None:
    """Honest rows that are not finite are not made use of."""
    if not claims.finite:
        return
    for bad in (math.nan, math.inf):
        context = _context(claims)
        context.honest[2, 5] = bad
        sent = play(attack, context, clean=True)
        demand(
            bool((sent.coefficients[..., 2] == 0).all()), f"honest row 2 holds {bad} and has weight in what it sends"
        )
        demand(bool(sent.rows.isfinite().all()), f"rows are not finite when honest row 2 holds {bad} (seed 0)")


def no_global_generator(attack: Attack, claims: Claims) -> None:
    """Attacking does not move the global generators of torch, numpy and random."""
    with generators_untouched():
        play(attack, _context(claims))


CHECKS = (
    *(well_formed, says_what_it_is, deterministic, state_is_a_value, leaves_rows_alone, sends_finite_rows),
    *(affine_in_the_strength, sees_only_what_it_may, known_gram_changes_nothing, passes_over_diverged_peers),
    no_global_generator,
)


def play(
    attack: Attack, context: AttackContext, *, strength: float | None = None, state: Any = None, clean: bool = False
) -> Sent:
    """One exchange: what is sent, at 0.7 if the strength is searched and none is given.

    Args:
        attack: whose.
        context: what it knows.
        strength: another strength than the attack's own.
        state: what it remembers; by default what it starts with.
        clean: leave rows that are not finite out of the sums.
    """
    extras, state = attack.extras(context, attack.start() if state is None else state)
    own = attack.strength(context) if callable(attack.strength) else attack.strength
    used = strength if strength is not None else 0.7 if own is None else own
    coefficients = attack.send(context, used, state)
    basis = torch.cat([context.honest, extras]).double()
    rows = coefficients.double() @ (torch.where(basis.isfinite(), basis, 0.0) if clean else basis)
    return Sent(extras, coefficients, rows, state)


def _context(
    claims: Claims,
    *,
    dtype: torch.dtype = torch.float64,
    attackers: int = ATTACKERS,
    seed: int = 0,
    step: int = 0,
    rows: int = 0,
    flipped: bool = True,
) -> AttackContext:
    honest = rng.normal(rows, "honest", (HONEST, claims.width)).to(dtype)
    lies = rng.normal(rows, "flipped", (1, claims.width)).to(dtype) if flipped else None
    return AttackContext(honest, lies, attackers, ATTACKERS, step, seed)


def _bits(rows: Tensor) -> Tensor:
    """Comparable although nan differs from itself."""
    return rows.nan_to_num(nan=7.0)

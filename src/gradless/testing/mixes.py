"""What pre-aggregators promise: rows to rows, so that liars do not reach the others' and a rule can follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from gradless import rng
from gradless.collab.aggregators import PreAggregator, compose, mean
from gradless.testing.aggregators import SEEDS, SMALL, rows_of
from gradless.testing.checks import Check, demand, generators_untouched, run, suite, title

MakeMix = Callable[[int], PreAggregator]


class Claims(NamedTuple):
    """What a pre-aggregator says of itself."""

    n: int
    f: int
    translation: bool
    clean: bool


def mix_checks(*, n: int = 11, f: int = 2, translation: bool = True, clean: bool = True) -> tuple[Check, ...]:
    """Checks of a pre-aggregator, each called with ``make``, which gives the `PreAggregator` for an f: ``make(f)``.

    Args:
        n: rows received, N.
        f: of which so many may be anything.
        translation: it moves along when all rows are moved.
        clean: finite rows become finite rows although f others are not.
    """
    return suite("mix", CHECKS, Claims(n, f, translation, clean), lambda make: title(make(f)))


def check_mix(make: MakeMix, *, n: int = 11, f: int = 2, translation: bool = True, clean: bool = True) -> None:
    """Run all checks of `mix_checks`.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless.collab.aggregators import nnm
        >>> check_mix(lambda f: nnm(f=f))
    """
    run(mix_checks(n=n, f=f, translation=translation, clean=clean), make)


def deterministic(make: MakeMix, claims: Claims) -> None:
    """The same rows and key give the same bits."""
    x = rows_of(claims.n, 60).float()
    for key in (0, 7):
        same = torch.equal(make(claims.f)(x, key=key), make(claims.f)(x.clone(), key=key))
        demand(same, f"the result differs when asked again (rows {[*x.shape]} of seed 0, key {key})")


def keeps_shape_and_dtype(make: MakeMix, claims: Claims) -> None:
    """The result has `rows(N)` rows of the same width and dtype, N of them if `keeps_rows` is set."""
    mix = make(claims.f)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = rows_of(claims.n, 60).to(dtype)
        result = mix(x)
        want = (mix.rows(claims.n), 60)
        sound = result.dtype == dtype and result.shape == want and (not mix.keeps_rows or want[0] == claims.n)
        demand(
            sound, f"{dtype} rows {[*x.shape]} give {result.dtype} {[*result.shape]}, and rows({claims.n}) is {want[0]}"
        )


def leaves_rows_alone(make: MakeMix, claims: Claims) -> None:
    """The rows are not written to, whatever is in them."""
    for bad in (0.0, math.nan, math.inf, 1e200):
        x = rows_of(claims.n, 20)
        x[: claims.f] += bad
        original = x.clone()
        make(claims.f)(x)
        same = torch.equal(x.view(torch.int64), original.view(torch.int64))
        demand(same, f"rows were changed (rows {[*x.shape]} of seed 0, {bad} added to the first {claims.f})")


def permutation_moves_along(make: MakeMix, claims: Claims) -> None:
    """If rows keep their peers, another order of the rows is the same order of the results."""
    mix = make(claims.f)
    for seed in SEEDS if mix.keeps_rows else ():
        x = rows_of(claims.n, 4 + seed, seed=seed)
        order = torch.from_numpy(rng.permutation(claims.n, seed, "order"))
        same = torch.allclose(mix(x[order]), mix(x)[order], rtol=1e-9, atol=1e-9)
        demand(same, f"order {order.tolist()} gives other rows (rows {[*x.shape]} of seed {seed})")


def translation_moves_along(make: MakeMix, claims: Claims) -> None:
    """If all rows are moved, the results move along."""
    for seed in SEEDS if claims.translation else ():
        x, shift = rows_of(claims.n, 8, seed=seed), 100 * rows_of(1, 8, seed=seed + 50)
        same = torch.allclose(make(claims.f)(x + shift), make(claims.f)(x) + shift, rtol=1e-6, atol=1e-6)
        demand(same, f"results do not move along with all rows (rows {[*x.shape]} of seed {seed})")


def equal_rows(make: MakeMix, claims: Claims) -> None:
    """Rows that are all equal stay as they are."""
    x = SMALL * rows_of(1, 30).repeat(claims.n, 1)
    result = make(claims.f)(x)
    demand(torch.allclose(result, x[: len(result)]), f"{claims.n} copies of a row [30] (seed 0, times {SMALL}) change")


def garbage(make: MakeMix, claims: Claims) -> None:
    """Up to f rows that are not finite do not reach the others."""
    for bad in (math.nan, math.inf, -math.inf) if claims.clean else ():
        x = rows_of(claims.n, 20)
        x[: claims.f] = bad
        result = make(claims.f)(x)[claims.f :]
        demand(bool(result.isfinite().all()), f"{bad} in the first {claims.f} of rows {[*x.shape]} of seed 0 spreads")


def composes(make: MakeMix, claims: Claims) -> None:
    """With a rule after it, it gives what that rule makes of its rows."""
    for key in (0, 5):
        x = rows_of(claims.n, 40)
        one, other = compose(make(claims.f), mean())(x, key=key), make(claims.f)(x, key=key).mean(0)
        same = torch.allclose(one, other, rtol=1e-7, atol=1e-7)
        demand(same, f"the mean after it is another one in a composition (rows {[*x.shape]} of seed 0, key {key})")


def no_global_generator(make: MakeMix, claims: Claims) -> None:
    """Mixing does not move the global generators of torch, numpy and random."""
    with generators_untouched():
        make(claims.f)(rows_of(claims.n, 10))


CHECKS = (
    *(deterministic, keeps_shape_and_dtype, leaves_rows_alone, permutation_moves_along, translation_moves_along),
    *(equal_rows, garbage, composes, no_global_generator),
)

"""What aggregation rules promise: symmetric, exact, calm about ties and garbage, and near the honest rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from gradless import rng
from gradless.collab.aggregation.base import aggregate
from gradless.collab.aggregation.receivers import Received
from gradless.collab.aggregators import Aggregator
from gradless.testing.checks import Check, demand, generators_untouched, refused, run, suite, title

MakeRule = Callable[[int], Aggregator]
SEEDS: Final = range(12)
SMALL: Final = 0.05  # of equal rows: shorter than any radius, so that clipping leaves them
GARBAGE: Final = (math.nan, math.inf, -math.inf, 1e25)


class Claims(NamedTuple):
    """What a rule says of itself."""

    n: int
    f: int
    translation: bool
    permutation: bool
    mean: bool
    bound: float | None
    box: bool


def aggregator_checks(
    *,
    n: int = 11,
    f: int = 2,
    translation: bool = True,
    permutation: bool = True,
    mean: bool = False,
    bound: float | None = 3.0,
    box: bool = False,
) -> tuple[Check, ...]:
    """Checks of an aggregation rule, each called with ``make``, which gives the `Aggregator` for an f: ``make(f)``.

    Args:
        n: rows received, N.
        f: of which so many may be anything.
        translation: it moves along when all rows are moved; false for rules that look at the origin.
        permutation: the order of the rows does not matter; false for rules that shuffle, and for those whose ties are
            common, so that rounding may decide.
        mean: with f = 0 it is the mean of all rows.
        bound: with f liars it stays within so many diameters of the honest rows from their mean; None: no promise.
        box: with f liars every column stays within its honest values.
    """
    claims = Claims(n, f, translation, permutation, mean, bound, box)
    return suite("aggregator", CHECKS, claims, lambda make: title(make(f)))


def check_aggregator(
    make: MakeRule,
    *,
    n: int = 11,
    f: int = 2,
    translation: bool = True,
    permutation: bool = True,
    mean: bool = False,
    bound: float | None = 3.0,
    box: bool = False,
) -> None:
    """Run all checks of `aggregator_checks`.

    Raises:
        AssertionError: for the first broken promise, in one sentence.

    Example:
        >>> from gradless.collab.aggregators import krum
        >>> check_aggregator(lambda f: krum(f=f), n=11, f=2)
    """
    run(
        aggregator_checks(n=n, f=f, translation=translation, permutation=permutation, mean=mean, bound=bound, box=box),
        make,
    )


def deterministic(make: MakeRule, claims: Claims) -> None:
    """The same rows give the same bits, also of a rule that is made again."""
    x = rows_of(claims.n, 700).float()
    rule = make(claims.f)
    first = rule(x, pivot=1)
    for again in (rule, make(claims.f)):
        demand(torch.equal(again(x.clone(), pivot=1), first), f"the result differs when asked again ({_about(x, 0)})")


def keeps_dtype(make: MakeRule, claims: Claims) -> None:
    """The result is a vector of the rows' dtype, what float64 rows would give and rounded once."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = (rows_of(claims.n, 700) + 2 * rows_of(1, 700, seed=1)).to(dtype)
        result, true = make(claims.f)(x, pivot=3), make(claims.f)(x.double(), pivot=3)
        shaped = result.dtype == dtype and result.shape == (700,)
        demand(shaped, f"{dtype} rows [{claims.n}, 700] give {result.dtype} {[*result.shape]}")
        error = float((result.double() - true).abs().max() / true.abs().max())
        allowed = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps / 2 * 1.01)
        fair = error <= allowed or not claims.permutation
        demand(fair, f"{dtype} rows have an error of {error:.1e}, more than {allowed:.1e} ({_about(x, 0)})")


def leaves_rows_alone(make: MakeRule, claims: Claims) -> None:
    """The rows are not written to, whatever is in them."""
    for bad in (0.0, *GARBAGE):
        x = rows_of(claims.n, 50)
        if bad:
            x[: claims.f] = bad
        original = x.clone()
        make(claims.f)(x, pivot=claims.n - 1)
        same = torch.equal(x.view(torch.int64), original.view(torch.int64))
        demand(same, f"rows were changed ({_about(x, 0)}, first {claims.f} rows of {bad})")


def permutation_moves_nothing(make: MakeRule, claims: Claims) -> None:
    """The order of the rows does not matter, if the pivot moves along."""
    if not claims.permutation:
        return
    rule = make(claims.f)
    for seed in SEEDS:
        x = rows_of(claims.n, 4 + seed, seed=seed)
        order = torch.from_numpy(rng.permutation(claims.n, seed, "order"))
        pivot = seed % claims.n
        result, moved = rule(x, pivot=pivot), rule(x[order], pivot=int((order == pivot).nonzero()))
        same = torch.allclose(moved, result, rtol=1e-6, atol=1e-6 * float(x.abs().max()))
        demand(same, f"another order gives another result ({_about(x, seed)}, pivot {pivot}, order {order.tolist()})")


def translation_moves_along(make: MakeRule, claims: Claims) -> None:
    """If all rows are moved, the result moves along."""
    if not claims.translation:
        return
    rule = make(claims.f)
    for seed, distance in itertools.product(SEEDS, (1.0, 100.0)):
        x = rows_of(claims.n, 4 + seed, seed=seed)
        shift = distance * rows_of(1, 4 + seed, seed=seed + 50)[0]
        result, moved = rule(x, pivot=seed % claims.n), rule(x + shift, pivot=seed % claims.n)
        same = torch.allclose(moved, result + shift, rtol=1e-6, atol=1e-6 * distance)
        demand(same, f"the result does not move along with all rows, by about {distance:g} ({_about(x, seed)})")


def without_liars(make: MakeRule, claims: Claims) -> None:
    """With f = 0 it works, and is the mean of all rows if it claims that."""
    x = rows_of(claims.n, 40)
    result = make(0)(x, pivot=claims.n - 1)
    demand(bool(result.isfinite().all()), f"f = 0 gives numbers that are not finite ({_about(x, 0)})")
    same = not claims.mean or torch.allclose(result, x.mean(0))
    demand(same, f"f = 0 is not the mean of all rows ({_about(x, 0)})")


def equal_rows(make: MakeRule, claims: Claims) -> None:
    """Rows that are all equal give that row."""
    for dtype in (torch.float64, torch.float32, torch.float16):
        one = (SMALL * rows_of(1, 300)[0]).to(dtype)
        result = make(claims.f)(one.repeat(claims.n, 1), pivot=claims.n // 2)
        close = torch.allclose(result, one, rtol={torch.float16: 1e-3}.get(dtype, 1e-6))
        demand(close, f"{claims.n} copies of one {dtype} row [300] (seed 0, times {SMALL}) give another row")


def ties(make: MakeRule, claims: Claims) -> None:
    """Rows that repeat are no trouble: the same bits every time, within the values of every column."""
    for seed, copies in itertools.product(SEEDS, (2, 3, claims.n - 1)):
        x = SMALL * rows_of(claims.n, 5, seed=seed)
        x[:copies] = x[0]
        x[-1] = x[-2]
        result = make(claims.f)(x, pivot=seed % claims.n)
        about = f"{_about(x, seed)}, times {SMALL}, the first {copies} rows and the last two alike"
        demand(torch.equal(result, make(claims.f)(x.clone(), pivot=seed % claims.n)), f"ties give other bits ({about})")
        slack = 1e-9
        inside = (result >= x.min(0).values - slack) & (result <= x.max(0).values + slack)
        demand(bool(inside.all()), f"the result lies outside the values of a column ({about})")


def no_columns(make: MakeRule, claims: Claims) -> None:
    """One column, and none, are nothing special."""
    for width in (0, 1):
        result = make(claims.f)(rows_of(claims.n, width))
        told = f"rows [{claims.n}, {width}] of seed 0 give {result.tolist()}"
        demand(result.shape == (width,) and bool(result.isfinite().all()), told)


def garbage(make: MakeRule, claims: Claims) -> None:
    """Up to f rows of nan, infinity or huge numbers do not reach the result."""
    for dtype in (torch.float32, torch.float64):
        for bad, places in itertools.product((*GARBAGE, torch.finfo(dtype).max), _places(claims)):
            x = rows_of(claims.n, 60).to(dtype)
            x[list(places)] = bad
            x[places[0], 5:] = 0.0  # fine elsewhere
            _near(make, claims, x, places, f"rows {list(places)} hold {bad}")


def liars(make: MakeRule, claims: Claims) -> None:
    """Up to f rows made to deceive do not carry the result away."""
    for seed in range(3):
        for places in _places(claims):
            for case, lie in _lies(_honest(rows_of(claims.n, 20, seed=seed), places)):
                x = rows_of(claims.n, 20, seed=seed)
                x[list(places)] = lie
                _near(make, claims, x, places, f"rows {list(places)} are {case}, the others of seed {seed}")


def refuses_what_it_cannot_stand(make: MakeRule, claims: Claims) -> None:
    """An f that is no whole number of at least 0, and too few rows for f, are refused with a sentence."""
    if claims.bound is None:
        return
    for f in (-1, 1.5, True):
        refused(lambda f=f: make(f), f"f = {f!r}")  # type: ignore[misc]
    x = rows_of(2 * claims.f, 3)
    if claims.f:
        refused(lambda: make(claims.f)(x), f"f = {claims.f} with {len(x)} rows, of which half may lie,")


def receivers_together_are_receivers_alone(make: MakeRule, claims: Claims) -> None:
    """Receivers who see different rows get together what each would get alone."""
    x = rows_of(claims.n, 30, seed=3).float()
    basis = torch.eye(claims.n, dtype=torch.float64)
    turned = torch.arange(claims.n).roll(1)
    received = Received((x,), (basis, basis[turned], basis), (0, claims.n - 1, claims.n // 2))
    rule = make(claims.f)
    together = aggregate(rule, received)
    for receiver, (view, pivot) in enumerate(zip(received.views, received.pivots, strict=True)):
        alone = rule((view @ x.double()).float(), pivot=pivot)
        same = torch.allclose(together[receiver], alone, rtol=1e-5, atol=1e-5)
        demand(same, f"receiver {receiver} (pivot {pivot}) gets something else among 3 than alone ({_about(x, 3)})")


def all_receivers_get_the_same_bits(make: MakeRule, claims: Claims) -> None:
    """`for_all` gives every receiver the bits that it gets alone."""
    x = rows_of(claims.n, 700, seed=4).float()
    rule, pivots = make(claims.f), range(0, claims.n, 2)
    for result, pivot in zip(rule.for_all(x, pivots), pivots, strict=True):
        demand(torch.equal(result, rule(x, pivot=pivot)), f"the receiver with pivot {pivot} differs ({_about(x, 4)})")


def no_global_generator(make: MakeRule, claims: Claims) -> None:
    """Aggregating does not move the global generators of torch, numpy and random."""
    with generators_untouched():
        make(claims.f)(rows_of(claims.n, 10))


CHECKS = (
    *(deterministic, keeps_dtype, leaves_rows_alone, permutation_moves_nothing, translation_moves_along),
    *(without_liars, equal_rows, ties, no_columns, garbage, liars, refuses_what_it_cannot_stand),
    *(receivers_together_are_receivers_alone, all_receivers_get_the_same_bits, no_global_generator),
)


def rows_of(n: int, width: int, *, seed: int = 0) -> Tensor:
    """Normal rows of a seed: float64 [n, width]."""
    return rng.normal(seed, "rows", (n, width)).double()


def _about(x: Tensor, seed: int) -> str:
    return f"rows {[*x.shape]} of seed {seed}"


def _places(claims: Claims) -> tuple[tuple[int, ...], ...]:
    """Where f rows may lie: first ones, last ones, scattered ones."""
    if not claims.f:
        return ()
    step = claims.n // claims.f
    return tuple(
        {tuple(range(claims.f)), tuple(range(claims.n - claims.f, claims.n)), tuple(range(0, step * claims.f, step))}
    )


def _honest(x: Tensor, places: tuple[int, ...]) -> Tensor:
    return x[[i for i in range(len(x)) if i not in places]]


def _lies(honest: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What liars may send who know the honest rows."""
    mean, sigma = honest.mean(0), honest.std(0)
    yield "the mean times -1", -mean
    yield "zero", torch.zeros_like(mean)
    for size in (10.0, 1e3, 1e8):
        yield f"the mean times {size:g}", mean * size
    for z in (0.5, 1.0, 1.5, 3.0):
        yield f"the mean minus {z} deviations", mean - z * sigma
    yield "copies of the honest row that is farthest out", honest[(honest - mean).norm(dim=1).argmax()]
    yield "1e4 in one column", torch.nn.functional.one_hot(torch.tensor(0), len(mean)).double() * 1e4


def _near(make: MakeRule, claims: Claims, x: Tensor, places: tuple[int, ...], case: str) -> None:
    """Demand that the result is near the honest rows, as far as that is claimed."""
    honest = _honest(x, places)
    pivot = next(i for i in range(len(x)) if i not in places)
    if claims.bound is None and not claims.box:
        return
    result = make(claims.f)(x, pivot=pivot)
    about = f"{_about(x, 0)} in {x.dtype}, {case}, pivot {pivot}"
    demand(bool(result.isfinite().all()), f"the result is not finite ({about})")
    if claims.box:
        inside = (result >= honest.min(0).values) & (result <= honest.max(0).values)
        demand(bool(inside.all()), f"the result lies outside the honest values of a column ({about})")
    if claims.bound is not None:
        wide = honest.double()
        diameter = float((wide[:, None] - wide).norm(dim=2).max())
        away = float((result.double() - wide.mean(0)).norm()) / diameter
        demand(
            away <= claims.bound,
            f"the result is {away:.2f} honest diameters from the honest mean, not within {claims.bound:g} ({about})",
        )

"""Robust aggregation rules: many vectors, some of them sent by liars, to one.

Symbols: n rows received, f of them perhaps Byzantine, x_i row i, D columns, G the centred Gram matrix of the rows,
which costs n^2 D / 2 and one read. Composed rules share one G. All are deterministic, break ties between rows by their
index, never write to their input and keep its dtype; all move along when the rows are moved, unless they say otherwise.
Rows with a NaN, an infinity or a value too large to square are infinitely far from all others: no robust rule averages
them as long as they are at most f. For coordinate rules a NaN is plus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gradless.collab.aggregation import coordinate_rules, passes, pre_aggregators, span_rules
from gradless.collab.aggregation.base import Aggregator, compose, together
from gradless.collab.aggregation.row_kinds import Rows
from gradless.collab.option_checks import any_number, count, more_than, one_of, positive
from gradless.errors import BadInput
from gradless.system import typed
from gradless.system.typed import Few

SUBSETS, SUBSETS_ALL = 400_000_000, 100_000  # that SMEA searches at most, compiled, and one after the other
BRANCHES = 100_000  # that the search of MDA visits at most


def mean() -> Aggregator:
    """The mean of all rows: what robust rules are compared with.

    Breakdown: f = 0, one liar moves it anywhere. Cost: n D, without a Gram matrix.
    """
    return Aggregator("mean", span_rules.uniform, coordinate_rules.mean, any_number, blind=True, exact=True)


def nna(*, f: int, keep: Literal["received", "all"] | int = "received", n: int | None = None) -> Aggregator:
    """Nearest-neighbour averaging: the mean of the rows nearest to the receiver's own, which counts as one of them.

    The rule of MoNNA, by Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan 2023 (arXiv 2209.10931). Its mixing
    contracts the honest rows by alpha = 9.88 f / (n - f), proved for n >= 11 f. With n = 5 f + 1 it contracts normal
    rows, but not all: of m rows that are averaged, liars who tell each peer something else get f, and hold three camps
    of honest rows apart for ever unless m > 4.61 f (docs/reference/group-results.md).

    Args:
        f: Byzantine peers to stand.
        keep: how many rows are averaged. "received": N - f of the N rows received. In a synchronous exchange N = n, so
            n - f, as in ByzFL. When a peer waits for n - f rows only, N = n - f, so n - 2 f, as in the published
            experiments: all f liars may be among those who answered. "all": n - f, whatever N; for N = n - f it
            averages everything and is not robust. A number: that many.
        n: the number of all peers; for "all".

    Breakdown: N > 2 f. Cost: G, then n log n for every receiver.
    """
    count("nna", f)
    fixed = None if keep == "received" else keep
    if keep == "all":
        if n is None:
            raise BadInput("nna with keep = 'all' needs n, the number of all peers")
        more_than("nna", 2, f)(count("nna", n, "n", 1))
        fixed = n - f
    elif keep != "received":
        fixed = typed.value("keep of nna", keep, Few | Literal["received", "all"])

    def kept(rows: int) -> int:
        return rows - f if fixed is None else int(fixed)

    def check(rows: int) -> None:
        more_than("nna", 2, f)(rows)
        if kept(rows) > rows:
            raise BadInput(f"nna is to average {kept(rows)} rows, but only {rows} were received: lower keep")

    return together("nna", lambda grams: span_rules.near_pivot(grams, kept(grams.rows)), check, uses_pivot=True)


def trimmed_mean(*, f: int) -> Aggregator:
    """In every column the mean without the f lowest and the f highest values. f = 0 is the mean.

    Yin, Chen, Ramchandran, Bartlett 2018 (arXiv 1803.01498); BRIDGE is this rule among peers. Breakdown: n > 2 f; stays
    within the honest values of every column. Cost: n log^2 n D / 4 compare-exchanges.
    """
    count("trimmed-mean", f)
    check = more_than("trimmed-mean", 2, f)
    return Aggregator("trimmed-mean", None, lambda x: coordinate_rules.middle(x, f, len(x) - f), check, exact=True)


def median(*, f: int | None = None) -> Aggregator:
    """The median of every column; of an even number of rows, the mean of the two in the middle.

    Yin, Chen, Ramchandran, Bartlett 2018 (arXiv 1803.01498).

    Args:
        f: only for the check of n.

    Breakdown: n > 2 f. Cost: n log^2 n D / 4 compare-exchanges.
    """

    def column(tile: Tensor) -> Tensor:
        return coordinate_rules.middle(tile, (len(tile) - 1) // 2, len(tile) // 2 + 1)

    return Aggregator("median", None, column, _twice("median", f), exact=True)


def meamed(*, f: int) -> Aggregator:
    """Mean around the median: in every column the mean of the n - f values nearest to the median. f = 0 is the mean.

    Of two equally far values the smaller stays. Xie, Koyejo, Gupta 2018 (arXiv 1802.10116). Breakdown: n > 2 f. Cost: n
    log^2 n D / 2 compare-exchanges.
    """
    count("meamed", f)
    check = more_than("meamed", 2, f)
    return Aggregator("meamed", None, lambda x: coordinate_rules.around(x, f), check, exact=True)


def krum(*, f: int) -> Aggregator:
    """The row with the least sum of squared distances to its n - f - 1 nearest others: a copy of it.

    Blanchard, El Mhamdi, Guerraoui, Stainer 2017 (arXiv 1703.02757), who sum over n - f - 2 and ask for n > 2 f + 2;
    one more neighbour is what ByzFL and Allouah et al. 2023 (arXiv 2302.01772) use. Breakdown: n > 2 f. Cost: G.
    """
    count("krum", f)
    return Aggregator("krum", lambda g, p: span_rules.best_scores(g, p, f, 1), None, more_than("krum", 2, f))


def multi_krum(*, f: int, k: int | None = None) -> Aggregator:
    """The mean of the k rows with the least Krum scores, by default n - f. f = 0 is the mean.

    Blanchard, El Mhamdi, Guerraoui, Stainer 2017 (arXiv 1703.02757). Breakdown: n > 2 f and k <= n - f. Cost: G.
    """
    count("multi-krum", f)
    if k is not None:
        count("multi-krum", k, "k", 1)

    def check(rows: int) -> None:
        more_than("multi-krum", 2, f)(rows)
        if k is not None and k > rows - f:
            raise BadInput(f"multi-krum with f = {f} can average at most n - f = {rows - f} rows, not k = {k}: lower k")

    return Aggregator(
        "multi-krum", lambda g, p: span_rules.best_scores(g, p, f, g.rows - f if k is None else k), None, check
    )


def geometric_median(
    *,
    f: int | None = None,
    iterations: int = 100,
    nu: float | None = None,
    tolerance: float = 1e-8,
    start: Literal["rows", "origin"] = "rows",
) -> Aggregator:
    """The point with the least sum of distances to all rows, by Weiszfeld's reweighting on coefficients.

    z <- sum_i x_i / max(nu, |x_i - z|), normalised. Chen, Su, Xu 2017 (arXiv 1705.05491); smoothed: Pillutla, Kakade,
    Harchaoui 2019 (RFA, arXiv 1912.13445). The published setting (nu 0.1, 3 iterations, from the origin) is not
    translation equivariant and, for rows closer together than nu, is the plain mean.

    Args:
        f: only for the check of n.
        iterations: at most.
        nu: distances below it count as it; None: a millionth of the typical distance.
        tolerance: of a step, against the typical distance; enough to stop.
        start: "rows": near the rows in the midst of the others; "origin": as published.

    Breakdown: n > 2 f. Cost: G, then n^2 for every iteration; their number does not depend on D.
    """
    count("geometric-median", iterations, "iterations", 1)
    if nu is not None:
        positive("geometric-median", nu, "nu")
    if tolerance != 0:
        positive("geometric-median", tolerance, "tolerance")
    one_of("start of geometric-median", start, ("rows", "origin"))
    check = _twice("geometric-median", f)
    from_origin = start == "origin"
    return together(
        "geometric-median", lambda grams: span_rules.weiszfeld(grams, iterations, nu, tolerance, from_origin), check
    )


def centred_clipping(*, f: int | None = None, radius: float, iterations: int = 3) -> Aggregator:
    """Steps from the origin by the mean of differences cut to a radius: v <- v + mean_i clip(x_i - v, radius).

    Karimireddy, He, Jaggi 2021 (arXiv 2012.10333). The paper starts at the last aggregate: ``rule(rows, start=last)``,
    or `Remembering`. A row that is not finite counts as one that does not pull. Not translation equivariant.

    Args:
        f: only for the check of n.
        radius: of a cut difference.
        iterations: steps.

    Breakdown: n > 2 f; a liar moves it by at most iterations * radius / n, which is proved to be little for n > 10 f
    only. Cost: G, then n^2 for every iteration.
    """
    positive("centred-clipping", radius, "radius")
    count("centred-clipping", iterations, "iterations", 1)
    return together(
        "centred-clipping",
        lambda grams: span_rules.clipped(grams, False, None, radius, iterations),
        _twice("centred-clipping", f),
    )._replace(moves=True)


class Remembering:
    """A rule that moves (centred clipping, alone or behind pre-aggregators) and starts where it ended the last time.

    Karimireddy, He, Jaggi 2021 (arXiv 2012.10333). One for each receiver. A result that is not finite is not kept.

    Args:
        rule: `centred_clipping`, or a composition that ends with it.
        start: where the first round starts, a vector like a row; None: at the origin.

    Raises:
        BadInput: a rule that starts nowhere.

    Example:
        >>> import torch
        >>> rule = Remembering(centred_clipping(radius=1.0, iterations=1))
        >>> [float(rule(torch.full((3, 1), 5.0))) for _ in range(6)]
        [1.0, 2.0, 3.0, 4.0, 5.0, 5.0]
    """

    def __init__(self, rule: Aggregator, start: Any = None) -> None:
        if not rule.moves:
            raise BadInput(f"{rule.name} starts nowhere, so it has nothing to remember: use centred-clipping")
        self.rule, self.last = rule, start  # the whole state: keep ``last`` to go on later

    def __call__(self, rows: Rows, pivot: int = 0, key: int = 0) -> Any:
        """Return the aggregate of rows, in any form that an aggregator takes, from the last one on."""
        result = self.rule(rows, pivot, key, self.last)
        if math.isfinite(float(abs(result).sum())):
            self.last = result
        return result


def self_centred_clipping(*, f: int | None = None, radius: float | None = None, iterations: int = 1) -> Aggregator:
    """Steps from the receiver's own row by the mean of differences cut to a radius.

    v <- v + mean_i clip(x_i - v, tau): ClippedGossip on a complete graph with equal weights, by He, Karimireddy, Jaggi
    2022 (arXiv 2202.01545). Without a radius, its practical one: tau^2 = (1/f) sum of |x_i - v|^2 over the n - f
    nearest rows, found anew in every iteration; for f = 0 nothing is cut, so one iteration is the mean. A row that is
    not finite does not pull.

    Args:
        f: Byzantine peers to stand; where there is a radius, only for the check of n.
        radius: tau; the published runs of MoNNA's baseline use 2 (MNIST) and 5 (CIFAR-10) with 3 iterations.
        iterations: 1 is ClippedGossip.

    Breakdown: n > 2 f. Cost: G, then n^2 for every receiver and iteration.
    """
    name = "self-centred-clipping"
    count(name, iterations, "iterations", 1)
    if radius is not None:
        positive(name, radius, "radius")
    elif f is None:
        raise BadInput(f"{name} needs a radius, or f to find one")
    return together(
        name, lambda grams: span_rules.clipped(grams, True, f, radius, iterations), _twice(name, f), uses_pivot=True
    )


def mda(*, f: int) -> Aggregator:
    """Minimum diameter averaging: the mean of the n - f rows with the least largest distance. f = 0 is the mean.

    Rousseeuw 1985; El Mhamdi et al. 2021 (arXiv 2008.00742). Exact, by a search for vertex covers instead of
    through all C(n, f) subsets; of equally good ones the first in lexicographic order. Breakdown: n > 2 f. Cost: G,
    then at worst n 1.62^f steps of n; usually far fewer.
    """
    count("mda", f)

    def check(rows: int) -> None:
        more_than("mda", 2, f)(rows)
        if 1.62**f > BRANCHES:
            raise BadInput(
                f"mda chooses among {math.comb(rows, f):,} subsets for n = {rows} and f = {f} and may look at "
                f"{1.62**f:,.0f} of them, more than {BRANCHES:,}: lower f, or use nnm before another rule"
            )

    return Aggregator("mda", lambda g, p: span_rules.least_diameter(g, p, f), None, check)


def smea(*, f: int) -> Aggregator:
    """The mean of the n - f rows whose covariance has the least top eigenvalue. f = 0 is the mean.

    Allouah, Guerraoui, Gupta, Pinot, Stephan 2023 (arXiv 2302.04787). Exact: subsets grow row by row, with the Cholesky
    factor of what their scatter is below the bound by, and a beginning that exceeds it is left; of equally good ones
    the first in lexicographic order. Breakdown: n > 2 f. Cost: G, then at worst n^2 for each of C(n, f) subsets;
    usually for a small share of them. Without Numba all of them are decomposed, n^3 each.
    """
    count("smea", f)

    def check(rows: int) -> None:
        more_than("smea", 2, f)(rows)
        fast = passes.compiled(torch.device("cpu"))
        most, remedy = (SUBSETS, "") if fast else (SUBSETS_ALL, "install numba, ")
        if math.comb(rows, f) > most:
            raise BadInput(
                f"smea chooses among {math.comb(rows, f):,} subsets for n = {rows} and f = {f}, more than {most:,}: "
                f"{remedy}lower f, or use caf, which needs none"
            )

    return Aggregator("smea", lambda g, p: span_rules.least_eigenvalue(g, p, f), None, check)


def caf(*, f: int) -> Aggregator:
    """Covariance-bound agnostic filter: weights fall along the top principal direction until n - 2 f of them are left.

    c_i <- c_i (1 - <x_i - mu_c, v>^2 / max), v the top eigenvector of the weighted covariance and max over rows that
    have weight left; of all weighted means on the way the one with the least top eigenvalue. Exact eigenvectors, from
    G. Allouah, Guerraoui, Stephan 2025 (CafCor, arXiv 2505.01874). f = 0 is the mean.

    Breakdown: n > 2 f. Cost: G, then n^3 for at most n rounds.
    """
    count("caf", f)
    return Aggregator("caf", lambda g, p: span_rules.filtered(g, p, f), None, more_than("caf", 2, f))


def cge(*, f: int) -> Aggregator:
    """Comparative gradient elimination: the mean of the n - f shortest rows. f = 0 is the mean.

    Gupta, Liu, Vaidya 2020 (arXiv 2008.04699). For gradients; not translation equivariant. Breakdown: n > 2 f, and only
    with little heterogeneity. Cost: G.
    """
    count("cge", f)
    return Aggregator("cge", lambda g, p: span_rules.shortest(g, p, g.rows - f), None, more_than("cge", 2, f))


def bulyan(*, f: int) -> Aggregator:
    """Krum picks n - 2 f rows one by one; in every column the mean of the n - 4 f of them nearest to their median.

    El Mhamdi, Guerraoui, Rouault 2018 (arXiv 1802.07927). f = 0 is the mean. Breakdown: n > 4 f + 2. Cost: G, n^3
    log n, then n log^2 n D / 2 compare-exchanges.
    """
    rule = Aggregator("bulyan", None, lambda x: coordinate_rules.around(x, 2 * f), any_number)
    return compose(pre_aggregators.krum_selection(f=f), rule)._replace(name="bulyan")


def _twice(name: str, f: int | None) -> Callable[[int], None]:
    """The check of a rule that works without f, and withstands less than half of the rows."""
    return any_number if f is None else more_than(name, 2, count(name, f))

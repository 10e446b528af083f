"""Intervals of differences between methods from few seeds: variances that borrow strength from other cells.

Three seeds give a variance two degrees of freedom, and a t interval of four times its half-width from many. Variances
of cells of one scheme are alike, but not equal. So each is moved towards their common size, by as much as the spread
of the variances themselves says that they are alike (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, article 3).

Needs scipy (extra ``bench``).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

LEVEL = 0.95
FEWEST = 3
"""Cells from which a common size of variances is read off."""
NEGLIGIBLE = 1e-12
MANY = 1e6
SEEDS, ROWS = "seeds", "seeds and test rows"
K = TypeVar("K", bound=Hashable)


class Spread(NamedTuple):
    """Variance of one run of a cell, and its degrees of freedom."""

    variance: float
    freedom: float
    pooled: bool = False
    """Whether other cells have a part in it."""


class Interval(NamedTuple):
    """A difference of two means with its 95 % interval, and what it is paired over."""

    difference: float
    low: float
    high: float
    pairs: str

    @property
    def apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def available() -> bool:
    """Whether scipy, which all this needs, is installed."""
    try:
        import scipy.stats  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "scipy":
            raise
        return False
    return True


def residual_variances(values: Mapping[K, Sequence[float]]) -> dict[K, Spread]:
    """Return each row's variance about its mean and the columns' means: what pairing by seed leaves.

    Args:
        values: a row for each method, [S] results in the same order of seeds; at least two rows and two seeds.

    Returns:
        By row; the degrees of freedom of all rows add up to (methods - 1) (seeds - 1).
    """
    rows = list(values.values())
    seeds, methods = len(rows[0]), len(rows)
    whole = statistics.fmean(map(statistics.fmean, rows))
    columns = [statistics.fmean(row[seed] for row in rows) - whole for seed in range(seeds)]
    freedom = (seeds - 1) * (1 - 1 / methods)
    variances = {}
    for name, row in values.items():
        mean = statistics.fmean(row)
        squares = sum((value - mean - effect) ** 2 for value, effect in zip(row, columns, strict=True))
        variances[name] = Spread(squares / freedom, freedom)
    return variances


def moderated(variances: Mapping[K, Spread]) -> dict[K, Spread]:
    """Return variances moved towards their common size, with the degrees of freedom that this adds.

    Zeros (results that are equal by chance) say nothing of the common size. With less than `FEWEST` others the
    variances are returned as they are.
    """
    positive = [spread for spread in variances.values() if spread.variance > NEGLIGIBLE]
    if len(positive) < FEWEST:
        return dict(variances)
    from scipy.special import digamma, polygamma

    def centred(freedom: float) -> float:
        """Expected logarithm of a variance of size one."""
        return float(digamma(freedom / 2)) - math.log(freedom / 2)

    logs = [math.log(spread.variance) - centred(spread.freedom) for spread in positive]
    expected = statistics.fmean(float(polygamma(1, spread.freedom / 2)) for spread in positive)
    excess = statistics.variance(logs) - expected
    most = sum(spread.freedom for spread in positive)
    if excess <= 0:  # the variances differ no more than those of equal spreads do
        pooled = sum(spread.variance * spread.freedom for spread in positive) / most
        return dict.fromkeys(variances, Spread(pooled, most, pooled=True))
    prior = 2 * _inverse_trigamma(excess)
    common = math.exp(statistics.fmean(logs) + centred(prior))
    return {
        name: Spread((prior * common + freedom * value) / (prior + freedom), min(prior + freedom, most), pooled=True)
        for name, (value, freedom, _) in variances.items()
    }


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value > 0, by bisection on its logarithm: trigamma falls from infinity to zero."""
    from scipy.special import polygamma

    low, high = -12.0, 12.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if polygamma(1, math.exp(middle)) > value else (low, middle)
    return math.exp((low + high) / 2)


def interval(
    first: Sequence[float],
    second: Sequence[float],
    spreads: tuple[Spread, Spread],
    rows: tuple[Sequence[Mapping[str, bool]], Sequence[Mapping[str, bool]]] | None = None,
) -> Interval | None:
    """Return mean of ``first`` - mean of ``second`` with a t interval; None where nothing varies.

    Args:
        first: [S] results, in the order of seeds of ``second``.
        second: the same of the other method.
        spreads: of a run of either (`moderated`).
        rows: for each method and seed, whether a test row was answered rightly, by its text. What rows add to the
            variance is then counted too, so that the interval speaks of more rows of the kind.
    """
    from scipy import stats

    difference = statistics.fmean(first) - statistics.fmean(second)
    both = sum(spread.variance for spread in spreads)
    # What leans on the same cells has no more degrees of freedom together than the lesser of the two has; of a sum of
    # unlike variances: Satterthwaite 1946, here and below, where many rows have many.
    freedom = min(spread.freedom for spread in spreads)
    if not any(spread.pooled for spread in spreads):
        freedom = both**2 / max(sum(spread.variance**2 / spread.freedom for spread in spreads), NEGLIGIBLE**2)
    seeds = Spread(both / len(first), freedom)
    shared = row_variance(*rows) if rows is not None else 0.0
    variance = seeds.variance + shared
    if variance <= NEGLIGIBLE:
        return None
    freedom = min(variance**2 * seeds.freedom / max(seeds.variance**2, NEGLIGIBLE**2), MANY)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(difference, difference - half, difference + half, SEEDS if rows is None else ROWS)


def row_variance(first: Sequence[Mapping[str, bool]], second: Sequence[Mapping[str, bool]]) -> float:
    """Return what test rows that several seeds share add to the variance of a mean difference of correctness.

    The variance over seeds already counts rows that a seed has for itself. What is added is the covariance of seeds
    that rows in common make: products of deviations of the same row in two seeds; never less than zero. At least two
    seeds.
    """
    differences = [
        (text, float(right) - float(other[text]))
        for one, other in zip(first, second, strict=True)
        for text, right in one.items()
    ]
    mean = statistics.fmean(value for _, value in differences)
    sums: defaultdict[str, float] = defaultdict(float)
    for text, value in differences:
        sums[text] += value - mean
    by_row = sum(value**2 for value in sums.values())
    single = sum((value - mean) ** 2 for _, value in differences)
    seeds = len(first)
    return max(0.0, by_row - single) / len(differences) ** 2 * seeds / (seeds - 1)

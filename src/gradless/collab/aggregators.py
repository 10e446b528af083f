"""Aggregation rules and pre-aggregators by name, and all that a rule of your own needs.

A new rule is one function that returns an `Aggregator` (`Aggregator.dense` of a function on rows will do), and one row
of `AGGREGATORS`; a new pre-aggregator is one that returns a `PreAggregator`, and a row of `PRE_AGGREGATORS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from gradless.collab.aggregation.base import Aggregator, compose, together
from gradless.collab.aggregation.pre_aggregators import PreAggregator, arc, bucketing, clipping, nnm
from gradless.collab.aggregation.rules import (
    Remembering,
    bulyan,
    caf,
    centred_clipping,
    cge,
    geometric_median,
    krum,
    mda,
    meamed,
    mean,
    median,
    multi_krum,
    nna,
    self_centred_clipping,
    smea,
    trimmed_mean,
)
from gradless.collab.option_checks import any_number, checked_part, count, more_than
from gradless.errors import BadInput, pick, unknown

__all__ = ["AGGREGATORS", "PRE_AGGREGATORS", "Aggregator", "Entry", "PreAggregator", "Remembering", "any_number"]
__all__ += [
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centred_clipping",
    "cge",
    "clipping",
    "compose",
    "count",
    "geometric_median",
    "krum",
]
__all__ += ["mda", "meamed", "mean", "median", "more_than", "multi_krum", "named", "nna", "nnm", "options_of"]
__all__ += ["self_centred_clipping", "smea", "together", "trimmed_mean"]

GROUP = ("f", "n")  # facts about the group: given to every stage that asks, and to no other


class Entry(NamedTuple):
    """A rule or pre-aggregator of the catalogue."""

    make: Callable[..., Aggregator | PreAggregator]
    summary: str
    paper: str
    condition: str  # on n, the number of rows received
    cost: str  # G: one Gram matrix of the rows, n^2 D / 2

    def options(self) -> dict[str, inspect.Parameter]:
        """Return its keyword arguments."""
        return dict(inspect.signature(self.make).parameters)


AGGREGATORS: dict[str, Entry] = {
    "mean": Entry(mean, "the mean of all rows; not robust", "", "f = 0", "n D"),
    "nna": Entry(nna, "mean of the n-f rows nearest to one's own", "Farhadkhani et al. 2023", "n > 2 f", "G"),
    "trimmed-mean": Entry(
        trimmed_mean, "mean without the f extremes on each side", "Yin et al. 2018", "n > 2 f", "n log n D"
    ),
    "median": Entry(median, "median of every column", "Yin et al. 2018", "n > 2 f", "n log n D"),
    "meamed": Entry(meamed, "mean of the n-f values around the median", "Xie et al. 2018", "n > 2 f", "n log n D"),
    "krum": Entry(krum, "the row with the closest neighbours", "Blanchard et al. 2017", "n > 2 f", "G"),
    "multi-krum": Entry(
        multi_krum, "mean of the rows with the closest neighbours", "Blanchard et al. 2017", "n > 2 f", "G"
    ),
    "geometric-median": Entry(
        geometric_median, "the point with the least sum of distances", "Chen et al. 2017", "n > 2 f", "G"
    ),
    "centred-clipping": Entry(
        centred_clipping,
        "clipped steps from the origin, or the last aggregate",
        "Karimireddy et al. 2021",
        "n > 2 f",
        "G",
    ),
    "self-centred-clipping": Entry(
        self_centred_clipping, "clipped steps from one's own row", "He et al. 2022", "n > 2 f", "G"
    ),
    "mda": Entry(mda, "mean of the n-f rows of least diameter", "Rousseeuw 1985", "n > 2 f", "G + 1.62^f n^2"),
    "smea": Entry(
        smea,
        "mean of the n-f rows of least top eigenvalue",
        "Allouah et al. 2023",
        "n > 2 f",
        "G + at worst C(n, f) n^2",
    ),
    "caf": Entry(caf, "weights filtered along principal directions", "Allouah et al. 2025", "n > 2 f", "G + n^4"),
    "cge": Entry(cge, "mean of the n-f shortest rows", "Gupta et al. 2020", "n > 2 f", "G"),
    "bulyan": Entry(
        bulyan,
        "Krum's choice, then the mean around its median",
        "El Mhamdi et al. 2018",
        "n > 4 f + 2",
        "G + n log n D",
    ),
}
PRE_AGGREGATORS: dict[str, Entry] = {
    "nnm": Entry(nnm, "every row to the mean of its n-f nearest", "Allouah et al. 2023", "n > f", "G"),
    "bucketing": Entry(
        bucketing,
        "means of a few shuffled rows at a time",
        "Karimireddy et al. 2022",
        "of the next rule",
        "n D",
    ),
    "clipping": Entry(clipping, "rows cut to a fixed length", "", "of the next rule", "n D"),
    "arc": Entry(arc, "the longest rows cut to the next length", "Allouah et al. 2024", "n > 2 f", "n D"),
}


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Return what a user may tell a rule or a composition: the options of all its stages, without ``f`` and ``n``.

    Raises:
        BadInput: unknown names.

    Example:
        >>> sorted(options_of("bucketing+centred-clipping"))
        ['iterations', 'radius', 'size']
    """
    options = {option: value for _, entry in _stages(name) for option, value in entry.options().items()}
    return {option: value for option, value in options.items() if option not in GROUP}


def _stages(name: str) -> list[tuple[str, Entry]]:
    """Return the stages of a name in order; one may come more than once."""
    return [(part, pick("aggregator", part, {**AGGREGATORS, **PRE_AGGREGATORS})) for part in name.split("+")]


def named(name: str, /, *, f: int | None = None, n: int | None = None, **options: Any) -> Aggregator:
    """Return a rule, or a composition such as ``nnm+trimmed-mean``, by name.

    Args:
        name: stages joined by ``+``, pre-aggregators first.
        f: Byzantine peers to stand; given to every stage that takes it, and to no other.
        n: the number of all peers; likewise.
        options: as a user typed them, e.g. ``radius=2.0``; each must belong to a stage (see `options_of`), and goes to
            all that take it.

    Raises:
        BadInput: unknown names or options, a missing option, or a value that an option cannot take.

    Example:
        >>> named("nnm+trimmed-mean", f=2).name
        'nnm+trimmed-mean'
    """
    known = {option for _, entry in _stages(name) for option in entry.options()}
    for option in options:
        if option not in known:
            sentence = unknown(f"option of {name}", option, known)
            raise BadInput(sentence if known else f"{name} has no options: leave out {option}")
    options.update({fact: value for fact, value in zip(GROUP, (f, n), strict=True) if value is not None})
    stages = []
    for part, entry in _stages(name):
        own = entry.options()
        for option, parameter in own.items():
            if parameter.default is parameter.empty and option not in options:
                raise BadInput(f"{part} needs {option}: give it a value")
        stages.append(
            checked_part(part, entry.make, {option: value for option, value in options.items() if option in own})
        )
    return compose(*stages)

"""Aggregation rules and pre-aggregators by name, with what is worth knowing before one is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from gradless.collab.aggregation import pre_aggregators, rules
from gradless.collab.aggregation.base import Aggregator as Aggregator
from gradless.collab.aggregation.base import PreAggregator as PreAggregator
from gradless.collab.aggregation.base import compose as compose
from gradless.collab.aggregation.pre_aggregators import arc as arc
from gradless.collab.aggregation.pre_aggregators import bucketing as bucketing
from gradless.collab.aggregation.pre_aggregators import clipping as clipping
from gradless.collab.aggregation.pre_aggregators import nnm as nnm
from gradless.collab.aggregation.rules import bulyan as bulyan
from gradless.collab.aggregation.rules import caf as caf
from gradless.collab.aggregation.rules import centred_clipping as centred_clipping
from gradless.collab.aggregation.rules import cge as cge
from gradless.collab.aggregation.rules import geometric_median as geometric_median
from gradless.collab.aggregation.rules import krum as krum
from gradless.collab.aggregation.rules import mda as mda
from gradless.collab.aggregation.rules import meamed as meamed
from gradless.collab.aggregation.rules import mean as mean
from gradless.collab.aggregation.rules import median as median
from gradless.collab.aggregation.rules import multi_krum as multi_krum
from gradless.collab.aggregation.rules import nna as nna
from gradless.collab.aggregation.rules import self_centred_clipping as self_centred_clipping
from gradless.collab.aggregation.rules import smea as smea
from gradless.collab.aggregation.rules import trimmed_mean as trimmed_mean
from gradless.errors import BadInput, pick, unknown

GROUP = ("f", "n")  # facts about the group: given to every stage that asks, and to no other


class Entry(NamedTuple):
    """A rule or pre-aggregator of the catalogue."""

    make: Callable[..., Aggregator | PreAggregator]
    summary: str
    paper: str
    condition: str  # on n, the number of rows received
    cost: str  # G: one Gram matrix of the rows, n^2 D / 2

    def options(self) -> dict[str, inspect.Parameter]:
        """Its keyword arguments."""
        return dict(inspect.signature(self.make).parameters)


AGGREGATORS: dict[str, Entry] = {
    "mean": Entry(rules.mean, "the mean of all rows; not robust", "", "f = 0", "n D"),
    "nna": Entry(rules.nna, "mean of the n-f rows nearest to one's own", "Farhadkhani et al. 2023", "n > 2 f", "G"),
    "trimmed-mean": Entry(
        rules.trimmed_mean, "mean without the f extremes on each side", "Yin et al. 2018", "n > 2 f", "n log n D"
    ),
    "median": Entry(rules.median, "median of every column", "Yin et al. 2018", "n > 2 f", "n log n D"),
    "meamed": Entry(
        rules.meamed, "mean of the n-f values around the median", "Xie et al. 2018", "n > 2 f", "n log n D"
    ),
    "krum": Entry(rules.krum, "the row with the closest neighbours", "Blanchard et al. 2017", "n > 2 f", "G"),
    "multi-krum": Entry(
        rules.multi_krum, "mean of the rows with the closest neighbours", "Blanchard et al. 2017", "n > 2 f", "G"
    ),
    "geometric-median": Entry(
        rules.geometric_median, "the point with the least sum of distances", "Chen et al. 2017", "n > 2 f", "G"
    ),
    "centred-clipping": Entry(
        rules.centred_clipping, "clipped steps from the origin", "Karimireddy et al. 2021", "n > 2 f", "G"
    ),
    "self-centred-clipping": Entry(
        rules.self_centred_clipping, "clipped steps from one's own row", "He et al. 2022", "n > 2 f", "G"
    ),
    "mda": Entry(rules.mda, "mean of the n-f rows of least diameter", "Rousseeuw 1985", "n > 2 f", "G + 1.62^f n^2"),
    "smea": Entry(
        rules.smea,
        "mean of the n-f rows of least top eigenvalue",
        "Allouah et al. 2023",
        "n > 2 f",
        "G + C(n, f) n^3",
    ),
    "caf": Entry(rules.caf, "weights filtered along principal directions", "Allouah et al. 2025", "n > 2 f", "G + n^4"),
    "cge": Entry(rules.cge, "mean of the n-f shortest rows", "Gupta et al. 2020", "n > 2 f", "G"),
    "bulyan": Entry(
        rules.bulyan,
        "Krum's choice, then the mean around its median",
        "El Mhamdi et al. 2018",
        "n > 4 f + 2",
        "G + n log n D",
    ),
}
MIXES: dict[str, Entry] = {
    "nnm": Entry(pre_aggregators.nnm, "every row to the mean of its n-f nearest", "Allouah et al. 2023", "n > f", "G"),
    "bucketing": Entry(
        pre_aggregators.bucketing,
        "means of a few shuffled rows at a time",
        "Karimireddy et al. 2022",
        "of the next rule",
        "n D",
    ),
    "clipping": Entry(pre_aggregators.clipping, "rows cut to a fixed length", "", "of the next rule", "G"),
    "arc": Entry(pre_aggregators.arc, "the longest rows cut to the next length", "Allouah et al. 2024", "n > 2 f", "G"),
}


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """What a user may tell a rule or a composition by name: options of all its stages, without ``f`` and ``n``.

    Raises:
        BadInput: unknown names.

    Example:
        >>> sorted(options_of("bucketing+centred-clipping"))
        ['iterations', 'radius', 'size']
    """
    found = {option: value for _, entry in _stages(name) for option, value in entry.options().items()}
    return {option: value for option, value in found.items() if option not in GROUP}


def _stages(name: str) -> list[tuple[str, Entry]]:
    """Stages in order; one may come more than once."""
    return [(part, pick("aggregator", part, {**AGGREGATORS, **MIXES})) for part in name.split("+")]


def named(name: str, /, *, f: int | None = None, n: int | None = None, **options: Any) -> Aggregator:
    """A rule, or a composition such as ``nnm+trimmed-mean``, by name.

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
            has = unknown(f"option of {name}", option, known)
            raise BadInput(has if known else f"{name} has no options: leave out {option}")
    options.update({fact: value for fact, value in zip(GROUP, (f, n), strict=True) if value is not None})
    stages = []
    for part, entry in _stages(name):
        wanted = entry.options()
        for option, parameter in wanted.items():
            if parameter.default is parameter.empty and option not in options:
                raise BadInput(f"{part} needs {option}: give it a value")
        stages.append(entry.make(**{option: value for option, value in options.items() if option in wanted}))
    return compose(*stages)

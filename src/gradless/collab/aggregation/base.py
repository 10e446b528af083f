"""What an aggregation rule is made of: pre-aggregators that turn rows into rows, and one rule that ends them.

Both are values with a few functions. A rule in the span of its rows gives weights, given their geometry; a coordinate
rule gives a vector, given some columns. Weights of consecutive stages multiply, so a stack of them costs one look at
the rows and one product.

Shapes: N rows that a peer received, N' rows of a mix, D columns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradless.collab.aggregation import passes, receivers
from gradless.collab.aggregation.gram import CentredGram, measure, unknown
from gradless.collab.aggregation.span_rules import Crowd, Numbers, crowd
from gradless.errors import BadInput


class PreAggregator(NamedTuple):
    """A pre-aggregator: rows to rows, each a weighted sum of those before."""

    name: str
    weights: Callable[
        [CentredGram, int], Tensor
    ]  # (geometry, key) -> float64 [N', N]; the key seeds rules that shuffle
    check: Callable[[int], None]  # refuse a number of rows
    keeps_rows: bool = True  # whether row i of the result still belongs to peer i
    rows: Callable[[int], int] = lambda n: n  # N -> N'
    blind: bool = False  # whether weights do not depend on the geometry

    def __call__(self, rows: Tensor, key: int = 0) -> Tensor:
        """Mixed rows ``[N', D]`` of rows ``[N, D]``, which stay as they are; same dtype.

        Raises:
            BadInput: for a number of rows that it cannot take, with the condition.
        """
        shape = passes.shape_of((rows,))
        self.check(shape.rows)
        if self.blind:
            return passes.product(self.weights(unknown(shape.rows), key), (rows,))
        found = measure((rows,))
        return passes.product(self.weights(found.points(), key), (rows,), found.centre, found.near, found.finite)


class Aggregator(NamedTuple):
    """A rule that makes one vector of many; ``weights``, ``column`` or both are there."""

    name: str
    weights: Callable[[CentredGram, int], Tensor] | None  # (geometry, pivot) -> float64 [N]; the origin takes the rest
    column: Callable[[Tensor], Tensor] | None  # some columns [N, t] -> [t]
    check: Callable[[int], None]  # refuse a number of rows
    uses_pivot: bool = False  # whether it depends on which row is the receiver's own
    before: tuple[PreAggregator, ...] = ()
    blind: bool = False  # whether weights do not depend on the geometry
    together: Callable[[Crowd], Numbers] | None = None  # ``weights`` of all receivers at once, [P, N]; see `together`

    def __call__(self, rows: Tensor, pivot: int = 0, key: int = 0) -> Tensor:
        """The aggregate ``[D]`` of rows ``[N, D]``, which stay as they are; same dtype.

        Args:
            rows: one vector for each peer.
            pivot: the row that is the receiver's own, for rules that ask.
            key: seed of pre-aggregators that shuffle.

        Raises:
            BadInput: for a number of rows that it cannot take, with the condition.

        Example:
            >>> from gradless.collab.aggregators import median
            >>> median()(torch.tensor([[1.0], [2.0], [30.0]]))
            tensor([2.])
        """
        return receivers.aggregate(self, receivers.seen_by_all(rows, (pivot,)), key=key)[0]


def together(
    name: str, work: Callable[[Crowd], Numbers], check: Callable[[int], None], uses_pivot: bool = False
) -> Aggregator:
    """A rule in the span of its rows that is given for all receivers at once; one receiver is a crowd of one.

    Args:
        name: of the rule.
        work: from a crowd of P geometries of N rows to weights float64 ``[P, N]``.
        check: refuse a number of rows.
        uses_pivot: whether it depends on which row is the receiver's own.
    """

    def alone(geometry: CentredGram, pivot: int) -> Tensor:
        return torch.from_numpy(work(crowd([geometry], [pivot]))[0])

    return Aggregator(name, alone, None, check, uses_pivot=uses_pivot, together=work)


def compose(*stages: PreAggregator | Aggregator) -> Aggregator:
    """Pre-aggregators, in order, and a rule after them.

    Raises:
        BadInput: if the last stage is no rule, another one is, or a rule that needs the receiver's own row comes after
            a mix in which rows do not belong to peers any more.

    Example:
        >>> from gradless.collab.aggregators import nnm, trimmed_mean
        >>> compose(nnm(f=1), trimmed_mean(f=1)).name
        'nnm+trimmed-mean'
    """
    *mixes, rule = stages or (None,)
    if not isinstance(rule, Aggregator):
        raise BadInput("a composition must end with a rule that makes one vector, e.g. nnm then trimmed-mean")
    before = []
    for mix in mixes:
        if not isinstance(mix, PreAggregator):
            raise BadInput(f"{getattr(mix, 'name', mix)} makes one vector: only the last stage of a composition may")
        if not mix.keeps_rows and rule.uses_pivot:
            raise BadInput(f"{rule.name} needs the receiver's own row, which {mix.name} does not keep: leave one out")
        before.append(mix)
    name = "+".join([*(mix.name for mix in before), rule.name])
    check = _checked(tuple(before), rule.check)
    return rule._replace(name=name, before=(*before, *rule.before), check=check)


def _checked(mixes: tuple[PreAggregator, ...], last: Callable[[int], None]) -> Callable[[int], None]:
    """A check of a whole composition: every stage on the number of rows that it will see."""

    def check(rows: int) -> None:
        for mix in mixes:
            mix.check(rows)
            rows = mix.rows(rows)
        last(rows)

    return check


def count(name: str, value: int, what: str = "f", least: int = 0) -> int:
    """``value`` if it is a whole number of at least ``least``.

    Raises:
        BadInput: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{what} of {name} is {value!r}: give a whole number of at least {least}")
    return value


def positive(name: str, value: float, what: str) -> float:
    """``value`` if it is a positive finite number.

    Raises:
        BadInput: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise BadInput(f"{what} of {name} is {value!r}: it must be a positive number")
    return float(value)


def more_than(name: str, factor: int, f: int, extra: int = 0) -> Callable[[int], None]:
    """A check that N > factor * f + extra.

    Example:
        >>> more_than("krum", 2, 3)(6)
        Traceback (most recent call last):
        ...
        gradless.errors.BadInput: krum with f = 3 needs n > 2 f, that is 7 rows or more, and got 6: lower f or add peers
    """
    condition = f"n > {f'{factor} ' if factor != 1 else ''}f{f' + {extra}' if extra else ''}"

    def check(rows: int) -> None:
        least = factor * f + extra + 1
        if rows < least:
            raise BadInput(
                f"{name} with f = {f} needs {condition}, that is {least} rows or more, and got {rows}: "
                "lower f or add peers"
            )

    return check


def any_number(rows: int) -> None:
    """The check of a rule that takes any number of rows."""

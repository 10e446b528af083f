"""An aggregation rule: many vectors to one, for one receiver or for all at once, behind pre-aggregators or not.

A rule is a record with one of three functions. The simplest is *dense*: from rows ``[N, D]`` to a vector ``[D]``; that
is all a new rule needs. Two kinds of rules can say more and are computed faster. A rule in the *span* of its rows gives
weights, from the centred Gram matrix alone: weights of consecutive stages multiply, so a composition costs one look at
the rows and one product, for all receivers. A *coordinate* rule works on any columns by themselves, tile by tile.

Shapes: P receivers, M basis rows, N rows that a receiver got, N' rows behind pre-aggregators, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradless.collab.aggregation import passes
from gradless.collab.aggregation.gram import CentredGram, combine, combine_all, measure, measure_lengths, unmeasured
from gradless.collab.aggregation.pre_aggregators import PreAggregator
from gradless.collab.aggregation.receivers import Received, by_columns, is_identity, seen_by_all, spread_out
from gradless.collab.aggregation.row_kinds import Rows, matrix_of
from gradless.collab.aggregation.span_rules import GramBatch, Numbers, batch_of
from gradless.collab.option_checks import any_number
from gradless.errors import BadInput


class Aggregator(NamedTuple):
    """A rule that makes one vector of many, by ``weights``, ``column`` or ``function``; see `dense` and `together`."""

    name: str
    weights: Callable[[CentredGram, int], Tensor] | None  # (gram, pivot) -> float64 [N]; the origin takes the rest
    column: Callable[[Tensor], Tensor] | None  # some columns [N, t] -> [t]
    check: Callable[[int], None]  # refuse a number of rows
    uses_pivot: bool = False  # whether it depends on which row is the receiver's own
    stages: tuple[PreAggregator, ...] = ()  # pre-aggregators, in order
    blind: bool = False  # whether weights do not depend on the Gram matrix
    together: Callable[[GramBatch], Numbers] | None = None  # ``weights`` of all receivers at once, [P, N]
    function: Callable[[Tensor, int], Tensor] | None = None  # (rows [N, D], pivot) -> [D]
    moves: bool = False  # whether it goes from the origin towards the rows, and may start elsewhere
    exact: bool = False  # whether its bits depend on the rows alone: not on processor, libraries or threads

    @classmethod
    def dense(
        cls,
        name: str,
        function: Callable[[Tensor, int], Tensor],
        check: Callable[[int], None] = any_number,
        uses_pivot: bool = False,
    ) -> Aggregator:
        """Return the rule that a function computes.

        Attackers who search a strength evaluate it on a sample of the columns, scaled so that lengths are about those
        of whole rows.

        Args:
            name: of the rule.
            function: from rows ``[N, D]``, float32 or float64, and the index of the receiver's own row to ``[D]``. It
                must not write to the rows, which may hold NaN and infinities.
            check: raises `BadInput` for a number of rows that it cannot take.
            uses_pivot: whether the index matters.

        Example:
            >>> half_way = Aggregator.dense("half-way", lambda rows, pivot: (rows[pivot] + rows.mean(0)) / 2,
            ...                             uses_pivot=True)
            >>> half_way(torch.tensor([[0.0], [4.0]]), pivot=1)
            tensor([3.])
        """
        return cls(name, None, None, check, uses_pivot=uses_pivot, function=function)

    def __call__(self, rows: Rows, pivot: int = 0, key: int = 0, start: Any = None) -> Any:
        """Return the aggregate of rows, which stay as they are: of the kind, dtype and shape of one of them.

        Args:
            rows: one vector for each peer: a tensor or an array ``[N, ...]``, or a list of tensors, of arrays, or of
                lists of numbers (these give float64 arrays). No gradient flows through them.
            pivot: the row that is the receiver's own, for rules that ask.
            key: seed of pre-aggregators that shuffle.
            start: a vector like a row, from which a rule that moves (centred clipping) starts instead of the origin,
                e.g. the last aggregate.

        Raises:
            BadInput: for rows that are no such vectors, or a number of them that it cannot take, with the condition.

        Example:
            >>> from gradless.collab.aggregators import median
            >>> median()(torch.tensor([[1.0], [2.0], [30.0]]))
            tensor([2.])
            >>> median()([[1, 5], [2, 6], [30, 7]])
            array([2., 6.])
        """
        return self.for_all(rows, (pivot,), key, start)[0]

    def for_all(self, rows: Rows, pivots: Sequence[int], key: int = 0, start: Any = None) -> Any:
        """Return what all receivers make of the same rows: ``[P, ...]``, the bits of ``rule(rows, pivot=p)`` for each.

        Args:
            rows: one vector for each peer, in any form that a call takes; not written to.
            pivots: for each of P receivers the row that is its own.
            key: seed of pre-aggregators that shuffle.
            start: where all begin, as in a call.

        Returns:
            Vectors in the dtype of the rows. If the rule does not use the pivot, one vector expanded to P: copy it
            before writing.

        Raises:
            BadInput: for rows that are no such vectors, or a number of them that it cannot take, with the condition.

        Cost: distances, pre-aggregators and products of coordinates once for all P: of nna with n = 26 and D = 431,080
        a tenth of the time of 21 calls (benchmarks/aggregators.py --receivers). A dense rule that uses the pivot
        is called P times.

        Example:
            >>> from gradless.collab.aggregators import nna
            >>> nna(f=1).for_all(torch.tensor([[0.0], [1.0], [9.0]]), pivots=[0, 1, 2])
            tensor([[0.5000],
                    [0.5000],
                    [5.0000]])
        """
        matrix, restore = matrix_of(rows)
        rule = self if start is None else self._from(matrix, start)
        return restore(aggregate(rule, seen_by_all(matrix, pivots), key=key, alone=True))

    def _from(self, matrix: Tensor, start: Any) -> Aggregator:
        """Return the rule that starts at a point: the same among rows seen from there."""
        if not self.moves:
            raise BadInput(f"{self.name} starts nowhere: leave start out, or use centred-clipping")
        shape = passes.shape_of((matrix,))
        point = matrix_of([start])[0].to(shape.device, shape.working)
        if point.shape[1] != shape.width or not bool(point.isfinite().all()):
            raise BadInput(
                f"start has {point.shape[1]} numbers for rows of {shape.width}: give a finite vector like a row"
            )
        plain = self._replace(stages=(), check=any_number)
        return self._replace(
            weights=None, together=None, function=lambda rows, pivot: plain(rows - point, pivot) + point[0]
        )


def together(
    name: str, weights: Callable[[GramBatch], Numbers], check: Callable[[int], None], uses_pivot: bool = False
) -> Aggregator:
    """Return a rule in the span of its rows that is written for all receivers at once, of which one is a batch of one.

    Args:
        name: of the rule.
        weights: from P Gram matrices of N rows to float64 ``[P, N]``.
        check: raises `BadInput` for a number of rows that it cannot take.
        uses_pivot: whether it depends on which row is the receiver's own.
    """

    def alone(gram: CentredGram, pivot: int) -> Tensor:
        return torch.from_numpy(weights(batch_of([gram], [pivot]))[0])

    return Aggregator(name, alone, None, check, uses_pivot=uses_pivot, together=weights)


def compose(*stages: PreAggregator | Aggregator) -> Aggregator:
    """Return the rule that applies pre-aggregators, in order, and a rule after them.

    Raises:
        BadInput: if the last stage is no rule, another one is, or a rule that needs the receiver's own row comes after
            a pre-aggregator whose rows do not belong to peers any more.

    Example:
        >>> from gradless.collab.aggregators import nnm, trimmed_mean
        >>> compose(nnm(f=1), trimmed_mean(f=1)).name
        'nnm+trimmed-mean'
    """
    *first, rule = stages or (None,)
    if not isinstance(rule, Aggregator):
        raise BadInput("a composition must end with a rule that makes one vector, e.g. nnm then trimmed-mean")
    pre = []
    for stage in first:
        if not isinstance(stage, PreAggregator):
            name = getattr(stage, "name", stage)
            raise BadInput(f"{name} makes one vector: only the last stage of a composition may")
        if not stage.keeps_rows and rule.uses_pivot:
            raise BadInput(f"{rule.name} needs the receiver's own row, which {stage.name} does not keep: leave one out")
        pre.append(stage)

    def check(rows: int) -> None:
        for stage in pre:
            stage.check(rows)
            rows = stage.rows(rows)
        rule.check(rows)

    name = "+".join([*(stage.name for stage in pre), rule.name])
    exact = rule.exact and not pre  # pre-aggregators look at a Gram matrix
    return rule._replace(name=name, stages=(*pre, *rule.stages), check=check, exact=exact)


def aggregate(
    rule: Aggregator,
    received: Received,
    *,
    key: int = 0,
    gram: CentredGram | None = None,
    out: Tensor | None = None,
    alone: bool = False,
) -> Tensor:
    """Return what every receiver makes of what it got: ``[P, D]`` in the dtype of the basis.

    If the rule does not use the pivot and all see the same rows, it is one row expanded to P: copy it before writing.
    A receiver whose own row is not finite keeps that row, if the rule uses it.

    Args:
        rule: the aggregation rule.
        received: who got what; not modified.
        key: seed of pre-aggregators that shuffle.
        gram: that of the basis, if it is known already.
        out: rows of memory that the result may lie in, if they are contiguous, enough and of its kind; not a part of
            the basis. An earlier result that is not needed any more saves the time of asking for new memory.
        alone: give each receiver the bits that it would get without the others. If false, which rows others use may
            change the order of a sum, so its last bits.

    Raises:
        BadInput: for a number of rows that the rule cannot take, with the condition.

    Cost: of a rule in the span of its rows, one `gradless.collab.aggregation.gram.measure` of the basis, P N^2 M
    multiplications and one product; of others, `gradless.collab.aggregation.receivers.by_columns` or one call for each
    receiver with another result.
    """
    shape = received.check()
    for p, pivot in enumerate(received.pivots):
        rows = len(received.view(p))
        if rule.uses_pivot and not 0 <= pivot < rows:
            raise BadInput(f"the pivot is row {pivot}, but receiver {p} got {rows} rows: count from 0")
        if p < len(received.views):
            rule.check(rows)
    coordinates = rule.column is not None and (rule.weights is None or (not rule.stages and received.plain()))
    in_span = rule.weights is not None and not coordinates
    if gram is None:
        gram = _look(rule, received, in_span)
    groups = received.groups(rule.uses_pivot)
    distinct = received.some([members[0] for members in groups])
    if in_span:
        weights = weights_of(rule, gram, distinct, key)
        finite = gram.finite if gram.centre >= 0 else None
        out = passes.product(weights, received.basis, gram.centre, gram.near, finite, out, alone=alone)
        return spread_out(out, groups)
    out = passes.space(out, len(groups), shape)
    if rule.column is not None:
        views = [behind(rule, gram, view, key) for view in distinct.views]
        by_columns(rule.column, views, received.basis, gram, out)
    else:
        _by_rows(rule, distinct, gram, key, out)
    return spread_out(out, groups)


def _look(rule: Aggregator, received: Received, in_span: bool) -> CentredGram:
    """Return what a rule must know of the basis: nothing, lengths, or all inner products."""
    indifferent, cuts = rule.blind or not in_span, [stage.cuts for stage in rule.stages]
    if indifferent and all(stage.blind for stage in rule.stages):
        return unmeasured(passes.shape_of(received.basis).rows)
    if indifferent and all(cuts) and received.plain():
        return measure_lengths(received.basis)
    return measure(received.basis, long=any(cuts))


def _by_rows(rule: Aggregator, received: Received, gram: CentredGram, key: int, out: Tensor) -> None:
    """Write a dense rule's result for every receiver to ``out`` ``[P, D]``."""
    assert rule.function is not None, f"{rule.name} has neither weights, columns nor a function"
    shape = passes.shape_of(received.basis)
    basis = [block.detach().to(shape.working) for block in received.basis]
    finite = gram.finite if gram.centre >= 0 else None
    last, rows = None, basis[0]
    for p, pivot in enumerate(received.pivots):
        if (view := received.view(p)) is not last:
            last, mixed = view, behind(rule, gram, view, key)
            plain = len(basis) == 1 and is_identity(mixed)
            rows = basis[0] if plain else passes.product(mixed, basis, gram.centre, gram.near, finite)
        own = rows[pivot] if rule.uses_pivot else None
        if own is not None and not bool(own.isfinite().all()):  # a broken row of one's own matters: it stays
            out[p] = own
            continue
        result = rule.function(rows, pivot)
        if result.shape != out[p].shape:
            raise BadInput(f"{rule.name} gave {list(result.shape)} for rows {list(rows.shape)}: return one vector")
        out[p] = result


def weights_of(rule: Aggregator, gram: CentredGram, received: Received, key: int = 0) -> Tensor:
    """Return what every receiver's aggregate consists of: float64 ``[P, M]`` weights over the basis.

    Only the Gram matrix of the basis is looked at, so this is what attackers and theorists use.

    Args:
        rule: a rule in the span of its rows (``rule.weights`` is there).
        gram: of the basis, from `gradless.collab.aggregation.gram.measure`.
        received: who got what; ``basis`` is not looked at.
        key: seed of pre-aggregators that shuffle.

    Raises:
        BadInput: for another rule.
    """
    if rule.weights is None:
        raise BadInput(f"{rule.name} has no weights: its result is no fixed combination of the rows")
    groups = received.groups(by_pivot=False)
    stacks = _all_behind(rule, gram, [received.view(members[0]) for members in groups], key)
    out = torch.zeros(len(received.pivots), gram.rows, dtype=torch.float64)
    cases = []
    for members, (mixed, behind_gram) in zip(groups, stacks, strict=True):
        for share in [[p] for p in members] if rule.uses_pivot else [members]:
            pivot = received.pivots[share[0]]
            if rule.uses_pivot and not behind_gram.finite[pivot]:  # a broken row of one's own matters: it stays
                out[share] = mixed[pivot]
            else:
                mixing = received.mixing[share[0]] if received.mixing else None
                cases.append(_Case(share, pivot, mixed, behind_gram, mixing))
    for size in {case.gram.rows for case in cases}:
        some = [case for case in cases if case.gram.rows == size]
        alike = all(case.mixed is some[0].mixed for case in some)
        mixed = some[0].mixed if alike else torch.stack([case.mixed for case in some])
        for case, row in zip(some, _times(_weights(rule, some), mixed), strict=True):
            out[case.receivers] = row
    return out


class _Case(NamedTuple):
    """Receivers with the same result, their own row, and what they hold behind all pre-aggregators."""

    receivers: list[int]
    pivot: int
    mixed: Tensor
    gram: CentredGram
    mixing: Tensor | None
    """What a graph makes the rows weigh, float64 [N']; None without one."""


def _weights(rule: Aggregator, cases: Sequence[_Case]) -> Tensor:
    """Return the weights ``[C, N']`` over what each case holds."""
    assert rule.weights is not None
    if rule.together is None:
        return torch.stack([rule.weights(case.gram, case.pivot) for case in cases])
    batch = batch_of([case.gram for case in cases], [case.pivot for case in cases], [case.mixing for case in cases])
    return torch.from_numpy(rule.together(batch))


def _times(weights: Tensor, coefficients: Tensor) -> Tensor:
    """Return products ``[C, M]`` of rows ``[C, N']`` and one matrix ``[N', M]``, or each one's own ``[C, N', M]``.

    Rows of weight zero may have coefficients that are not finite.
    """
    if bool(coefficients.isfinite().all()):
        return (weights[:, None] @ coefficients)[:, 0]
    own = coefficients.expand(len(weights), -1, -1)
    return torch.stack([row[row != 0] @ matrix[row != 0] for row, matrix in zip(weights, own, strict=True)])


def behind(rule: Aggregator, gram: CentredGram, view: Tensor, key: int = 0) -> Tensor:
    """Return the coefficients over the basis of a view's rows after all pre-aggregators: float64 ``[N', M]``."""
    return _behind(rule, gram, view, key)[0] if rule.stages else view


def _all_behind(
    rule: Aggregator, gram: CentredGram, views: Sequence[Tensor], key: int
) -> list[tuple[Tensor, CentredGram]]:
    """`_behind` of several views; without pre-aggregators those of one size are combined in one product."""
    if rule.stages or len(views) == 1 or len({view.shape for view in views}) > 1:
        return [_behind(rule, gram, view, key) for view in views]
    return list(zip(views, combine_all(gram, torch.stack(list(views))), strict=True))


def _behind(rule: Aggregator, gram: CentredGram, view: Tensor, key: int) -> tuple[Tensor, CentredGram]:
    """Return a view's rows after all pre-aggregators, ``[N', M]`` over the basis, and their Gram matrix."""
    if not (gram.near.all() and is_identity(view)):
        gram = combine(gram, view)
    for stage in rule.stages:
        weights = stage.weights(gram, key)
        gram, view = combine(gram, weights), _times(weights, view)
    return view, gram

"""What each receiver got in one exchange, and the aggregates that all of them compute, together.

Every row that anybody received is a combination of a few basis rows: what honest peers sent, and directions that
attackers use. So a rule in the span of its rows turns each receiver's view into weights over the basis, and one product
gives all results; receivers who see the same rows share all work that does not depend on which one is their own.

Shapes: P receivers, M basis rows, N rows that a receiver got, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradless.collab.aggregation import passes
from gradless.collab.aggregation.gram import CentredGram, combine, combine_all, measure, unknown
from gradless.collab.aggregation.span_rules import crowd
from gradless.errors import BadInput

if TYPE_CHECKING:
    from gradless.collab.aggregation.base import Aggregator


PICKED = 4  # tiles of scratch in which rows of several receivers lie side by side: shorter ones cost more in calls


class Received(NamedTuple):
    """What each receiver got."""

    basis: tuple[Tensor, ...]  # row blocks [m_i, D], together M rows, never copied
    received: tuple[Tensor, ...]  # float64 [N_r, M] for each of P receivers, or one when all see the same rows
    pivots: tuple[int, ...]  # for each receiver the row of its view that is its own

    def view(self, receiver: int) -> Tensor:
        """What one receiver got: float64 ``[N, M]`` over the basis."""
        return self.received[receiver if len(self.received) > 1 else 0]


def seen_by_all(rows: Tensor, pivots: Sequence[int]) -> Received:
    """Views of receivers who all got the same rows ``[N, D]``; ``pivots[p]`` is the row of receiver p."""
    return Received((rows,), (torch.eye(passes.shape_of((rows,)).rows, dtype=torch.float64),), tuple(pivots))


def aggregate(
    rule: Aggregator, views: Received, *, key: int = 0, geometry: CentredGram | None = None, out: Tensor | None = None
) -> Tensor:
    """What every receiver makes of its view: ``[P, D]`` in the dtype of the basis.

    If the rule does not use the pivot and all see the same rows, it is one row expanded to P: copy it before writing.
    A receiver whose own row is not finite keeps that row, if the rule uses it.

    Args:
        rule: the aggregation rule.
        views: who got what; not modified.
        key: seed of pre-aggregators that shuffle.
        geometry: that of the basis, if it is known already.
        out: rows of memory that the result may lie in, if they are contiguous, enough and of its kind; not a part of
            the basis. An earlier result that is not needed any more saves the time of asking for new memory.

    Raises:
        BadInput: for views that the rule cannot take, with the condition.

    Cost: of a rule in the span of its rows, one `gradless.collab.aggregation.gram.measure` of the basis, P N^2 M
    multiplications and one product; of a coordinate rule, one read of the basis and the rule on the columns of each
    different view, with scratch of `PICKED` tiles.
    """
    shape = _check(rule, views)
    direct = rule.column is not None and (rule.weights is None or (not rule.before and _plain(views)))
    blind = all(mix.blind for mix in rule.before) and (direct or rule.blind)
    if geometry is None:
        geometry = unknown(shape.rows) if blind else measure(views.basis)
    if direct and rule.column is not None:
        return _by_columns(rule, rule.column, views, geometry, key, out)
    distinct, places = _distinct(rule, views)
    weights = weights_of(rule, geometry, views._replace(pivots=tuple(views.pivots[p] for p in distinct),
                         received=tuple(views.view(p) for p in distinct)), key)  # fmt: skip
    known = geometry.finite if geometry.centre >= 0 else None
    out = passes.product(weights, views.basis, geometry.centre, geometry.near, known, out)
    return _shared(out, places)


def weights_of(rule: Aggregator, geometry: CentredGram, views: Received, key: int = 0) -> Tensor:
    """What every receiver's aggregate is made of: float64 ``[P, M]`` weights over the basis.

    Only the geometry of the basis is looked at, so this is what attackers and theorists use.

    Args:
        rule: a rule in the span of its rows (``rule.weights`` is there).
        geometry: of the basis, as `gradless.collab.aggregation.gram.measure` gives it.
        views: who got what; ``basis`` is not looked at.
        key: seed of pre-aggregators that shuffle.

    Raises:
        BadInput: for a coordinate rule.
    """
    if rule.weights is None:
        raise BadInput(f"{rule.name} works on coordinates, so its result is no fixed combination of the rows")
    groups: dict[int, list[int]] = {}
    for p in range(len(views.pivots)):
        groups.setdefault(id(views.view(p)), []).append(p)
    distinct = [views.view(receivers[0]) for receivers in groups.values()]
    found = _all_mixed(rule, geometry, distinct, key)
    out = torch.zeros(len(views.pivots), geometry.rows, dtype=torch.float64)
    cases = []
    for receivers, (mixed, behind_mixes) in zip(groups.values(), found, strict=True):
        for share in [[p] for p in receivers] if rule.uses_pivot else [receivers]:
            pivot = views.pivots[share[0]]
            if rule.uses_pivot and not behind_mixes.finite[pivot]:  # a broken row of one's own matters: it stays
                out[share] = mixed[pivot]
            else:
                cases.append(_Case(share, pivot, mixed, behind_mixes))
    for size in {case.geometry.rows for case in cases}:
        some = [case for case in cases if case.geometry.rows == size]
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
    geometry: CentredGram


def _weights(rule: Aggregator, cases: Sequence[_Case]) -> Tensor:
    """Weights ``[C, N]`` over what each case holds."""
    assert rule.weights is not None
    if rule.together is None:
        return torch.stack([rule.weights(case.geometry, case.pivot) for case in cases])
    return torch.from_numpy(rule.together(crowd([case.geometry for case in cases], [case.pivot for case in cases])))


def _times(weights: Tensor, coefficients: Tensor) -> Tensor:
    """Products ``[C, M]`` of rows ``[C, N]`` and one matrix ``[N, M]``, or each one's own ``[C, N, M]``.

    Rows of weight zero may have coefficients that are no numbers.
    """
    if bool(coefficients.isfinite().all()):
        return (weights[:, None] @ coefficients)[:, 0]
    own = coefficients.expand(len(weights), -1, -1)
    return torch.stack([row[row != 0] @ matrix[row != 0] for row, matrix in zip(weights, own, strict=True)])


def behind(rule: Aggregator, geometry: CentredGram, view: Tensor, key: int = 0) -> Tensor:
    """What a view is behind all pre-aggregators: float64 ``[N', M]`` coefficients over the basis."""
    return _mixed(rule, geometry, view, key)[0] if rule.before else view


def _all_mixed(
    rule: Aggregator, geometry: CentredGram, views: Sequence[Tensor], key: int
) -> list[tuple[Tensor, CentredGram]]:
    """`_mixed` of several views; without pre-aggregators those of one size are measured together."""
    if rule.before or len(views) == 1 or len({view.shape for view in views}) > 1:
        return [_mixed(rule, geometry, view, key) for view in views]
    return list(zip(views, combine_all(geometry, torch.stack(list(views))), strict=True))


def _mixed(rule: Aggregator, geometry: CentredGram, view: Tensor, key: int) -> tuple[Tensor, CentredGram]:
    """A view behind all pre-aggregators: its coefficients over the basis, and its geometry."""
    known = geometry.near.all() and _identity(view)
    found = geometry if known else combine(geometry, view)
    for mix in rule.before:
        weights = mix.weights(found, key)
        found = combine(found, weights)
        view = _times(weights, view)
    return view, found


def _by_columns(
    rule: Aggregator, column: Callable[[Tensor], Tensor], views: Received, geometry: CentredGram, key: int,
    out: Tensor | None,
) -> Tensor:  # fmt: skip
    """A coordinate rule on every different view, some columns at a time."""
    shape = passes.shape_of(views.basis)
    distinct, places = _distinct(rule, views)
    stacks = [behind(rule, geometry, views.view(p), key) for p in distinct]
    out = passes.space(out, len(distinct), shape)
    if len(stacks) == 1 and _identity(stacks[0]):
        for part, tile in passes.tiles(views.basis):
            out[0, part] = column(tile)
        return _shared(out, places)
    known = geometry.finite if geometry.centre >= 0 else None
    others, picks = _rows_of(stacks)
    most = max(map(len, picks))
    width = passes.columns_of(max(shape.rows + len(others), most * len(picks) // PICKED), shape.width)
    together = max(1, PICKED * passes.TILE // (most * width))  # receivers whose rows fit the scratch
    scratch = torch.empty(min(together, len(picks)) * most * width, dtype=shape.working, device=shape.device)
    for part, tile in passes.tiles(views.basis, width):
        if len(others):
            tile = torch.cat((tile, passes.combined(others, tile, geometry.centre, geometry.near, known)))
        for first in range(0, len(picks), together):
            some = slice(first, first + together)
            out[some, part] = _side_by_side(column, tile, picks[some], scratch).to(out.dtype)
    return _shared(out, places)


def _rows_of(stacks: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Where to find the rows of some views: in the basis, or among combinations that are made once for all.

    Args:
        stacks: float64 ``[N_p, M]`` each.

    Returns:
        The combinations, float64 ``[U, M]``, and for every stack the places of its rows, int64 ``[N_p]``: below M in
        the basis, from M on among the combinations.
    """
    rows = torch.cat(list(stacks))
    single = ((rows != 0).sum(1) == 1) & (rows == 1).any(1)
    others, inverse = rows[~single].unique(dim=0, return_inverse=True)
    places = (rows == 1).int().argmax(1)
    places[~single] = rows.shape[1] + inverse
    return others, list(places.split([len(stack) for stack in stacks]))


def _side_by_side(column: Callable[[Tensor], Tensor], rows: Tensor, picks: Sequence[Tensor], scratch: Tensor) -> Tensor:
    """A coordinate rule on several picks of rows ``[R, t]``: ``[P, t]``; those of one size go through in one piece.

    Picked rows are copied to ``scratch``, which holds at least as many numbers: fresh memory would cost more than the
    rule does.
    """
    if len({len(pick) for pick in picks}) > 1:
        return torch.stack([_side_by_side(column, rows, [pick], scratch)[0] for pick in picks])
    index = torch.stack(list(picks), 1).flatten().to(rows.device)  # [N P]
    held = scratch[: len(index) * rows.shape[1]].view(len(index), -1)
    torch.index_select(rows, 0, index, out=held)
    return column(held.view(len(picks[0]), -1)).view(len(picks), -1)


def _distinct(rule: Aggregator, views: Received) -> tuple[list[int], list[int]]:
    """Receivers with different results, and for every receiver its place among them."""
    seen: dict[tuple[int, int], int] = {}
    receivers: list[int] = []
    places: list[int] = []
    for p, pivot in enumerate(views.pivots):
        mark = (id(views.view(p)), pivot if rule.uses_pivot else -1)
        if mark not in seen:
            seen[mark] = len(receivers)
            receivers.append(p)
        places.append(seen[mark])
    return receivers, places


def _shared(out: Tensor, places: list[int]) -> Tensor:
    """Results in the order of receivers, without a copy where there is one for all or one for each."""
    if len(out) == 1:
        return out.expand(len(places), -1)
    return out if places == list(range(len(out))) else out[places]


def _plain(views: Received) -> bool:
    return len(views.received) == 1 and _identity(views.received[0])


def _identity(view: Tensor) -> bool:
    return view.shape[0] == view.shape[1] and bool((view == torch.eye(len(view), dtype=view.dtype)).all())


def _check(rule: Aggregator, views: Received) -> passes.Shape:
    """The shape of the basis, if the rule can take these views."""
    shape = passes.shape_of(views.basis)
    if len(views.received) not in (1, len(views.pivots)) or not views.pivots:
        raise BadInput(
            f"there are {len(views.received)} views for {len(views.pivots)} receivers: give one, or one each"
        )
    for p, pivot in enumerate(views.pivots):
        rows, over = views.view(p).shape
        if over != shape.rows:
            raise BadInput(f"view {p} is over {over} rows, but the basis has {shape.rows}")
        if rule.uses_pivot and not 0 <= pivot < rows:
            raise BadInput(f"the pivot is row {pivot}, but receiver {p} got {rows} rows: count from 0")
        if p < len(views.received):
            rule.check(rows)
    return shape

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

from gradless.collab import sweeps
from gradless.collab.geometry import Geometry, combine, combine_all, measure, unknown
from gradless.errors import BadInput

if TYPE_CHECKING:
    from gradless.collab.stages import Aggregator


class Views(NamedTuple):
    """What each receiver got."""

    basis: tuple[Tensor, ...]  # row blocks [m_i, D], together M rows, never copied
    received: tuple[Tensor, ...]  # float64 [N_r, M] for each of P receivers, or one when all see the same rows
    pivots: tuple[int, ...]  # for each receiver the row of its view that is its own

    def view(self, receiver: int) -> Tensor:
        """What one receiver got: float64 ``[N, M]`` over the basis."""
        return self.received[receiver if len(self.received) > 1 else 0]


def seen_by_all(rows: Tensor, pivots: Sequence[int]) -> Views:
    """Views of receivers who all got the same rows ``[N, D]``; ``pivots[p]`` is the row of receiver p."""
    return Views((rows,), (torch.eye(sweeps.shape_of((rows,)).rows, dtype=torch.float64),), tuple(pivots))


def aggregate(rule: Aggregator, views: Views, *, key: int = 0, geometry: Geometry | None = None) -> Tensor:
    """What every receiver makes of its view: ``[P, D]`` in the dtype of the basis.

    If the rule does not use the pivot and all see the same rows, it is one row expanded to P: copy it before writing.
    A receiver whose own row is not finite keeps that row, if the rule uses it.

    Args:
        rule: the aggregation rule.
        views: who got what; not modified.
        key: seed of pre-aggregators that shuffle.
        geometry: that of the basis, if it is known already.

    Raises:
        BadInput: for views that the rule cannot take, with the condition.

    Cost: of a rule in the span of its rows, one `gradless.collab.geometry.measure` of the basis, P N^2 M
    multiplications and one product; of a coordinate rule, one pass over the columns for each different view.
    """
    shape = _check(rule, views)
    direct = rule.column is not None and (rule.weights is None or (not rule.before and _plain(views)))
    blind = all(mix.blind for mix in rule.before) and (direct or rule.blind)
    if geometry is None:
        geometry = unknown(shape.rows) if blind else measure(views.basis)
    if direct and rule.column is not None:
        return _by_columns(rule, rule.column, views, geometry, key)
    distinct, places = _distinct(rule, views)
    weights = weights_of(rule, geometry, views._replace(pivots=tuple(views.pivots[p] for p in distinct),
                         received=tuple(views.view(p) for p in distinct)), key)  # fmt: skip
    known = geometry.finite if geometry.centre >= 0 else None
    out = sweeps.product(weights, views.basis, geometry.centre, geometry.near, known)
    return _shared(out, places)


def weights_of(rule: Aggregator, geometry: Geometry, views: Views, key: int = 0) -> Tensor:
    """What every receiver's aggregate is made of: float64 ``[P, M]`` weights over the basis.

    Only the geometry of the basis is looked at, so this is what attackers and theorists use.

    Args:
        rule: a rule in the span of its rows (``rule.weights`` is there).
        geometry: of the basis, as `gradless.collab.geometry.measure` gives it.
        views: who got what; ``basis`` is not looked at.
        key: seed of pre-aggregators that shuffle.

    Raises:
        BadInput: for a coordinate rule.
    """
    if rule.weights is None:
        raise BadInput(f"{rule.name} works on coordinates, so its result is no fixed combination of the rows")
    out = torch.zeros(len(views.pivots), geometry.rows, dtype=torch.float64)
    groups: dict[int, list[int]] = {}
    for p in range(len(views.pivots)):
        groups.setdefault(id(views.view(p)), []).append(p)
    distinct = [views.view(receivers[0]) for receivers in groups.values()]
    for receivers, (mixed, found) in zip(groups.values(), _all_mixed(rule, geometry, distinct, key), strict=True):
        pivots = [views.pivots[p] for p in receivers] if rule.uses_pivot else [0]
        out[receivers] = _times(torch.stack([_own(rule.weights, rule.uses_pivot, found, p) for p in pivots]), mixed)
    return out


def _own(weights: Callable[[Geometry, int], Tensor], uses_pivot: bool, found: Geometry, pivot: int) -> Tensor:
    """The weights of one receiver; all for its own row if that is broken and matters."""
    if uses_pivot and not bool(found.finite[pivot]):
        return torch.eye(found.rows, dtype=torch.float64)[pivot]
    return weights(found, pivot)


def _times(weights: Tensor, coefficients: Tensor) -> Tensor:
    """Their product; rows of weight zero may have coefficients that are no numbers."""
    if bool(coefficients.isfinite().all()):
        return weights @ coefficients
    return torch.stack([row[row != 0] @ coefficients[row != 0] for row in weights])


def behind(rule: Aggregator, geometry: Geometry, view: Tensor, key: int = 0) -> Tensor:
    """What a view is behind all pre-aggregators: float64 ``[N', M]`` coefficients over the basis."""
    return _mixed(rule, geometry, view, key)[0] if rule.before else view


def _all_mixed(
    rule: Aggregator, geometry: Geometry, views: Sequence[Tensor], key: int
) -> list[tuple[Tensor, Geometry]]:
    """`_mixed` of several views; without pre-aggregators those of one size are measured together."""
    if rule.before or len(views) == 1 or len({view.shape for view in views}) > 1:
        return [_mixed(rule, geometry, view, key) for view in views]
    return list(zip(views, combine_all(geometry, torch.stack(list(views))), strict=True))


def _mixed(rule: Aggregator, geometry: Geometry, view: Tensor, key: int) -> tuple[Tensor, Geometry]:
    """A view behind all pre-aggregators: its coefficients over the basis, and its geometry."""
    known = geometry.near.all() and _identity(view)
    found = geometry if known else combine(geometry, view)
    for mix in rule.before:
        weights = mix.weights(found, key)
        found = combine(found, weights)
        view = _times(weights, view)
    return view, found


def _by_columns(
    rule: Aggregator, column: Callable[[Tensor], Tensor], views: Views, geometry: Geometry, key: int
) -> Tensor:
    """A coordinate rule on every different view, some columns at a time."""
    shape = sweeps.shape_of(views.basis)
    distinct, places = _distinct(rule, views)
    stacks = [behind(rule, geometry, views.view(p), key) for p in distinct]
    out = torch.empty(len(distinct), shape.width, dtype=shape.dtype, device=shape.device)
    whole = len(stacks) == 1 and _identity(stacks[0])
    known = geometry.finite if geometry.centre >= 0 else None
    widest = max(shape.rows, *(len(stack) for stack in stacks))
    for part, tile in sweeps.tiles(views.basis, None if whole else sweeps.columns_of(widest, shape.width)):
        for place, stack in enumerate(stacks):
            rows = tile if whole else sweeps.combined(stack, tile, geometry.centre, geometry.near, known)
            out[place, part] = column(rows)
    return _shared(out, places)


def _distinct(rule: Aggregator, views: Views) -> tuple[list[int], list[int]]:
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


def _plain(views: Views) -> bool:
    return len(views.received) == 1 and _identity(views.received[0])


def _identity(view: Tensor) -> bool:
    return view.shape[0] == view.shape[1] and bool((view == torch.eye(len(view), dtype=view.dtype)).all())


def _check(rule: Aggregator, views: Views) -> sweeps.Shape:
    """The shape of the basis, if the rule can take these views."""
    shape = sweeps.shape_of(views.basis)
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

"""What each receiver got in one exchange.

Every row that anybody received is a combination of a few basis rows: what honest peers sent, and directions that
attackers use. So a view is a small matrix of coefficients over the basis, and receivers who see the same rows share all
work that does not depend on which row is their own.

Shapes: P receivers, M basis rows, N rows that a receiver got, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradless.collab.aggregation import passes
from gradless.collab.aggregation.gram import CentredGram
from gradless.errors import BadInput

PICKED = 4  # tiles of scratch in which rows of several receivers lie side by side: shorter ones cost more in calls


class Received(NamedTuple):
    """What each receiver got."""

    basis: tuple[Tensor, ...]  # row blocks [m_i, D], together M rows, never copied
    views: tuple[Tensor, ...]  # float64 [N_r, M] for each of P receivers, or one when all see the same rows
    pivots: tuple[int, ...]  # for each receiver the row of its view that is its own
    mixing: tuple[Tensor, ...] = ()  # for each receiver what a sparse graph makes its rows weigh, float64 [N_r], sum 1

    def view(self, receiver: int) -> Tensor:
        """Return what one receiver got: float64 ``[N, M]`` over the basis."""
        return self.views[receiver if len(self.views) > 1 else 0]

    def some(self, receivers: Sequence[int]) -> Received:
        """Return the same for some of the receivers."""
        views = tuple(self.view(p) for p in receivers)
        mixing = tuple(self.mixing[p] for p in receivers) if self.mixing else ()
        return self._replace(views=views, pivots=tuple(self.pivots[p] for p in receivers), mixing=mixing)

    def plain(self) -> bool:
        """Whether every receiver got the basis as it is."""
        return len(self.views) == 1 and is_identity(self.views[0])

    def groups(self, by_pivot: bool) -> list[list[int]]:
        """Return the receivers with the same view, and the same pivot if ``by_pivot``; groups by first member."""
        groups: dict[tuple[int, int], list[int]] = {}
        for p, pivot in enumerate(self.pivots):
            groups.setdefault((id(self.view(p)), pivot if by_pivot else -1), []).append(p)
        return list(groups.values())

    def check(self) -> passes.Shape:
        """Return the shape of the basis.

        Raises:
            BadInput: views that do not fit the basis or the number of receivers.
        """
        shape = passes.shape_of(self.basis)
        if len(self.views) not in (1, len(self.pivots)) or not self.pivots:
            raise BadInput(f"there are {len(self.views)} views for {len(self.pivots)} receivers: give one, or one each")
        for p, view in enumerate(self.views):
            if view.shape[1] != shape.rows:
                raise BadInput(f"view {p} is over {view.shape[1]} rows, but the basis has {shape.rows}")
        return shape


def seen_by_all(rows: Tensor, pivots: Sequence[int]) -> Received:
    """Return what receivers got who all see the rows ``[N, D]``; ``pivots[p]`` is the row of receiver p."""
    return Received((rows,), (torch.eye(passes.shape_of((rows,)).rows, dtype=torch.float64),), tuple(pivots))


def is_identity(view: Tensor) -> bool:
    """Whether a view is the basis as it is."""
    return view.shape[0] == view.shape[1] and bool((view == torch.eye(len(view), dtype=view.dtype)).all())


def spread_out(results: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Give every receiver the result of its group, without a copy where there is one for all or one for each.

    Args:
        results: ``[G, D]``, one for each of G groups.
        groups: the receivers of each.

    Returns:
        ``[P, D]``; one result for all is expanded.
    """
    if len(groups) == 1:
        return results.expand(len(groups[0]), -1)
    order = {p: g for g, members in enumerate(groups) for p in members}
    return results if len(order) == len(groups) else results[[order[p] for p in range(len(order))]]


def by_columns(
    column: Callable[[Tensor], Tensor], views: Sequence[Tensor], basis: Sequence[Tensor], gram: CentredGram, out: Tensor
) -> None:
    """Write a coordinate rule's result on every view to ``out`` ``[P, D]``, some columns at a time.

    Args:
        column: from some columns ``[N, t]`` to ``[t]``.
        views: float64 ``[N_p, M]`` each.
        basis: row blocks, together M.
        gram: of the basis.
        out: of the dtype of the basis.

    Cost: one read of the basis, and the rule on the columns of each view; scratch of `PICKED` tiles.
    """
    if len(views) == 1 and is_identity(views[0]):
        for part, tile in passes.tiles(basis):
            out[0, part] = column(tile)
        return
    shape, finite = passes.shape_of(basis), gram.finite if gram.centre >= 0 else None
    combinations, picks = _rows_of(views)
    most = max(map(len, picks))
    width = passes.columns_of(max(shape.rows + len(combinations), most * len(picks) // PICKED), shape.width)
    at_once = max(1, PICKED * passes.TILE // (most * width))  # receivers whose rows fit the scratch
    scratch = torch.empty(min(at_once, len(picks)) * most * width, dtype=shape.working, device=shape.device)
    for part, tile in passes.tiles(basis, width):
        if len(combinations):
            tile = torch.cat((tile, passes.combined(combinations, tile, gram.centre, gram.near, finite)))
        for first in range(0, len(picks), at_once):
            some = slice(first, first + at_once)
            out[some, part] = _side_by_side(column, tile, picks[some], scratch).to(out.dtype)


def _rows_of(views: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Find the rows of some views in the basis, or among combinations that are computed once for all.

    Args:
        views: float64 ``[N_p, M]`` each.

    Returns:
        The combinations, float64 ``[U, M]``, and for every view the index of its rows, int64 ``[N_p]``: below M in the
        basis, from M on among the combinations.
    """
    rows = torch.cat(list(views))
    single = ((rows != 0).sum(1) == 1) & (rows == 1).any(1)
    combinations, inverse = rows[~single].unique(dim=0, return_inverse=True)
    index = (rows == 1).int().argmax(1)
    index[~single] = rows.shape[1] + inverse
    return combinations, list(index.split([len(view) for view in views]))


def _side_by_side(column: Callable[[Tensor], Tensor], rows: Tensor, picks: Sequence[Tensor], scratch: Tensor) -> Tensor:
    """Apply a coordinate rule to several picks of rows ``[R, t]``: ``[P, t]``; those of one size in one call.

    Picked rows are copied to ``scratch``, which holds at least as many numbers: fresh memory would cost more than the
    rule does.
    """
    if len({len(pick) for pick in picks}) > 1:
        return torch.stack([_side_by_side(column, rows, [pick], scratch)[0] for pick in picks])
    index = torch.stack(list(picks), 1).flatten().to(rows.device)  # [N P]
    held = scratch[: len(index) * rows.shape[1]].view(len(index), -1)
    torch.index_select(rows, 0, index, out=held)
    return column(held.view(len(picks[0]), -1)).view(len(picks), -1)

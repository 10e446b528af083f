"""Passes over the columns of row blocks: inner products, weighted sums and coordinate rules, tile by tile.

Rows may lie in several blocks, in 16 bits, on any device. On a CPU one block of float32 or float64 rows is read where
it lies by `gradless.collab.aggregation.numba_kernels`, everything else through a scratch tile in the precision of sums:
float32, or float64 for float64 rows. Shapes: M rows, D columns, P results, t columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless import kernels
from gradless.collab.aggregation import memory
from gradless.collab.aggregation.threads import spread
from gradless.errors import BadInput

TILE = 1 << 20  # elements of a scratch tile
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Shape(NamedTuple):
    """What the row blocks of one exchange have in common."""

    rows: int
    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def working(self) -> torch.dtype:
        """The precision that sums over columns are computed in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def shape_of(blocks: Sequence[Tensor]) -> Shape:
    """Return what row blocks have in common.

    Raises:
        BadInput: if they are not matrices of one width, dtype and device.
    """
    if not blocks or any(block.ndim != 2 for block in blocks):
        shapes = ", ".join(str(list(block.shape)) for block in blocks) or "nothing"
        raise BadInput(
            f"an aggregator takes a matrix with one row for each peer, not {shapes}: stack the vectors first"
        )
    first = blocks[0]
    for block in blocks:
        if block.shape[1] != first.shape[1] or block.dtype != first.dtype or block.device != first.device:
            raise BadInput(
                f"rows of {block.shape[1]} {block.dtype} on {block.device} cannot be mixed with rows of "
                f"{first.shape[1]} {first.dtype} on {first.device}: every peer must send the same kind of vector"
            )
    if first.dtype not in DTYPES:
        raise BadInput(f"rows are {first.dtype}: convert them to float16, bfloat16, float32 or float64")
    rows = sum(block.shape[0] for block in blocks)
    if rows == 0:
        raise BadInput("there are no rows to aggregate: at least one peer must have answered")
    return Shape(rows, first.shape[1], first.dtype, first.device)


def row(blocks: Sequence[Tensor], index: int) -> Tensor:
    """Row ``index`` of the blocks put below each other: a view."""
    for block in blocks:
        if index < block.shape[0]:
            return block[index]
        index -= block.shape[0]
    raise IndexError(index)


def tiles(blocks: Sequence[Tensor], width: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """All rows, some columns at a time, in the working precision: pairs of columns and rows ``[M, t]``.

    A tile must not be written to, and is valid until the next one: it may be scratch, and it may be the input.

    Args:
        blocks: rows ``[m_i, D]``.
        width: columns of a tile; None: as many as scratch may hold, and all where no scratch is needed.
    """
    shape = shape_of(blocks)
    whole = len(blocks) == 1 and shape.dtype == shape.working and (shape.width < 2 or blocks[0].stride(1) == 1)
    step = width or (max(1, shape.width) if whole and compiled(shape.device) else columns_of(shape.rows, shape.width))
    scratch = None if whole else torch.empty(shape.rows, step, dtype=shape.working, device=shape.device)
    for start in range(0, shape.width, step):
        part = slice(start, min(start + step, shape.width))
        if scratch is None:
            yield part, blocks[0].detach()[:, part]
            continue
        tile, top = scratch[:, : part.stop - part.start], 0
        for block in blocks:
            tile[top : top + block.shape[0]].copy_(block.detach()[:, part])
            top += block.shape[0]
        yield part, tile


def columns_of(rows: int, width: int) -> int:
    """Columns of a scratch tile of so many rows."""
    return max(1, min(width, max(512, TILE // max(1, rows))))


def gram(blocks: Sequence[Tensor], centre: int, near: Tensor) -> Tensor:
    """Return inner products of rows around a centre, with minus the centre as the last row: float64 ``[M+1, M+1]``.

    Args:
        blocks: rows ``[m_i, D]``.
        centre: the row that is subtracted.
        near: bool ``[M]``: from which rows it is subtracted; the others enter as they are.

    Cost: one read of the rows and M^2 D / 2 multiplications; products of up to 8192 columns are summed in the working
    precision, their sums in float64. The relative error of a squared distance from the centre is about 1e-7.
    """
    shape = shape_of(blocks)
    total = torch.zeros(shape.rows + 1, shape.rows + 1, dtype=torch.float64, device=shape.device)
    if compiled(shape.device):
        for _, tile in tiles(blocks):
            total += _compiled_gram(tile, centre, near)
        total = total.triu() + total.triu(1).T
        return total
    step, zero = min(8192, columns_of(shape.rows, shape.width)), torch.zeros(1, 1, device=shape.device)
    for _, tile in tiles(blocks, step):
        middle = tile[centre : centre + 1]
        around = torch.cat((torch.where(near.to(tile.device)[:, None], tile - middle, tile), zero - middle))
        total += (around @ around.T).double()
    return total.cpu()


def squared_lengths(blocks: Sequence[Tensor]) -> Tensor:
    """Return the squared length of every row: float64 ``[M]``.

    Cost: one read of the rows; up to 512 squares are summed in the working precision, their sums in float64.
    """
    shape = shape_of(blocks)
    total = torch.zeros(shape.rows, dtype=torch.float64, device=shape.device)
    for _, tile in tiles(blocks):
        if compiled(shape.device):
            total += _compiled_lengths(tile)
            continue
        whole = tile.shape[1] // 512 * 512
        parts = tile[:, :whole].unflatten(1, (-1, 512)) if whole else tile[:, None, :0]
        for piece in (parts, tile[:, None, whole:]):
            total += torch.linalg.vector_norm(piece, dim=2).double().square().sum(1)
    return total.cpu()


def product(
    weights: Tensor,
    blocks: Sequence[Tensor],
    centre: int = -1,
    near: Tensor | None = None,
    finite: Tensor | None = None,
    out: Tensor | None = None,
    *,
    alone: bool = False,
) -> Tensor:
    """``weights @ rows``: ``[P, D]`` in the dtype of the rows.

    Rows of weight zero are not looked at, so what is not finite in them does no harm. A result of one row is that row
    times its weight, with weight one a copy. The others are summed around the centre: as exact as the spread of the
    rows allows, and equal rows give that row.

    Args:
        weights: ``[P, M]`` float64.
        blocks: rows ``[m_i, D]``.
        centre: a finite row in the midst of the others, or -1 to sum the rows themselves.
        near: bool ``[M]``: which rows lie around it rather than around the origin.
        finite: bool ``[M]``: which rows are finite; None: found out where it matters.
        out: memory that the result may lie in, if it fits: what an operating system gives anew, page by page, costs as
            much as the product itself.
        alone: sum each result over the rows that it uses itself, as if it were the only one: the same bits, whatever
            the others use. If false, all are summed over the rows that any of them uses.

    Cost: one read of the rows that are used, one write of the result, P M D multiplications; scratch of a tile for
    16-bit rows and for rows in several blocks.
    """
    shape = shape_of(blocks)
    out = space(out, weights.shape[0], shape)
    if alone and len(out) > 1 and not compiled(shape.device):
        for p, row_weights in enumerate(weights.split(1)):
            product(row_weights, blocks, centre, near, finite, out[p : p + 1])
        return out
    multiples = _multiples(weights)
    _scale_all([(row(blocks, j), weight, out[p]) for p, (j, weight) in multiples.items()])
    rest = [p for p in range(len(out)) if p not in multiples]
    if not rest:
        return out
    direct = not multiples and shape.dtype == shape.working
    for part, tile in tiles(blocks, None if direct else columns_of(shape.rows, shape.width)):
        target = out[:, part] if direct else tile.new_empty(len(rest), tile.shape[1])
        _fill(target, weights[rest], tile, centre, near, finite, alone)
        if not direct:
            out[rest, part] = target.to(shape.dtype)
    return out


def space(out: Tensor | None, rows: int, shape: Shape) -> Tensor:
    """``[rows, D]`` to write to: the first rows of ``out`` where they fit, or memory of its own."""
    if (
        out is not None
        and len(out) >= rows
        and shape_of((out,)) == shape._replace(rows=len(out))
        and out.is_contiguous()
    ):
        return out[:rows]
    return memory.tensor((rows, shape.width), shape.dtype, shape.device)


def combined(weights: Tensor, tile: Tensor, centre: int, near: Tensor, finite: Tensor | None) -> Tensor:
    """``weights @ tile`` as `product` computes it: ``[N', t]``; the tile itself if weights are the identity."""
    n = weights.shape[0]
    if n == tile.shape[0] and bool((weights == torch.eye(n, dtype=weights.dtype)).all()):
        return tile
    return product(weights, (tile,), centre, near, finite)


def _multiples(weights: Tensor) -> dict[int, tuple[int, float]]:
    """Return which results are one row times a weight."""
    used = weights != 0
    index, single = used.int().argmax(1), (used.sum(1) == 1).nonzero().flatten().tolist()
    rows, factors = index.tolist(), weights.gather(1, index[:, None])[:, 0].tolist()
    return {p: (rows[p], factors[p]) for p in single}


def _scale_all(rows: Sequence[tuple[Tensor, float, Tensor]]) -> None:
    """Out = weight * row, for triples of row, weight and out."""

    def run(first: int, last: int) -> None:
        for one in rows[first:last]:
            _scale(*one)

    if rows and rows[0][0].device.type == "cpu":
        spread(len(rows), len(rows) * rows[0][0].numel() // 4, run)
    else:
        run(0, len(rows))


def _scale(row: Tensor, weight: float, out: Tensor) -> None:
    """Out = weight * row; in float64 where the weight is too small for the row's own precision."""
    row = row.detach()
    if weight == 1 and row.data_ptr() == out.data_ptr():
        return
    if abs(weight) < 1e-30:
        out.copy_(row.double() * weight)
    elif row.device.type != "cpu" or row.dtype not in (torch.float32, torch.float64):
        torch.mul(row, weight, out=out)
    elif weight == 1:
        np.copyto(out.numpy(), row.numpy())  # takes two thirds of PyTorch's time
    else:
        numbers = row.numpy()
        with np.errstate(all="ignore"):
            np.multiply(numbers, numbers.dtype.type(weight), out=out.numpy())


def _fill(
    target: Tensor,
    weights: Tensor,
    tile: Tensor,
    centre: int,
    near: Tensor | None,
    finite: Tensor | None,
    alone: bool,
) -> None:
    """Target = weights @ tile; rows that are not finite are added one by one to the results that use them."""
    used = (weights != 0).any(0)
    known = torch.ones_like(used) if finite is None else finite
    near = torch.ones_like(used) if near is None else near
    index = (used & known).nonzero().flatten()
    some, close = weights[:, index], near[index] if centre >= 0 else torch.zeros_like(index, dtype=torch.bool)
    if alone:
        orders = [line.nonzero().flatten() for line in some]
        share = torch.cat([(line * close)[None, own].sum(1) for line, own in zip(some, orders, strict=True)])
    else:
        orders, share = [torch.arange(len(index))] * len(some), (some * close).sum(1)
    share = torch.where((share - 1).abs() < 1e-9, 1.0, share)  # weights that sum to one up to rounding
    if compiled(tile.device):
        _compiled_product(target, some, tile, index, orders, centre, close, share)
    else:
        rows = tile[index.to(tile.device)]
        if centre >= 0:
            rows = torch.where(close.to(tile.device)[:, None], rows - tile[centre], rows)
        torch.matmul(some.to(tile), rows, out=target) if target.is_contiguous() else target.copy_(some.to(tile) @ rows)
        if centre >= 0:
            target += share.to(tile)[:, None] * tile[centre]
    if finite is None and not bool(target.sum().isfinite()):  # something was: weight zero times infinity is no number
        return _fill(target, weights, tile, centre, near, tile.isfinite().all(1).cpu(), alone)
    for j in (used & ~known).nonzero().flatten().tolist():
        for p in (weights[:, j] != 0).nonzero().flatten().tolist():  # a weight may be too small for their precision
            target[p] += (tile[j].double() * float(weights[p, j])).to(tile)
    return None


def compiled(device: torch.device) -> bool:
    """Whether the compiled kernels serve ``device``; ``GRADLESS_KERNELS=reference`` turns them off."""
    return device.type == "cpu" and kernels.backend(device) is not None


def flat(tile: Tensor) -> tuple[Any, Any]:
    """Return the memory under a matrix with unit column stride, and where each row starts in it: NumPy arrays."""
    starts = torch.arange(tile.shape[0]) * tile.stride(0)
    size = int(starts[-1]) + tile.shape[1] if len(starts) else 0
    return tile.detach().as_strided((size,), (1,)).numpy(), starts.numpy()


def _compiled_gram(tile: Tensor, centre: int, near: Tensor) -> Tensor:
    """Return the upper triangle of the inner products of one tile."""
    from gradless.collab.aggregation import numba_kernels as kernel

    (x, starts), n, width = flat(tile), tile.shape[0], tile.shape[1]
    zero = x.dtype.type(0)

    def run(first: int, last: int) -> Tensor:
        total = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        kernel.gram_blocks(first, last, x, starts, starts[centre], near.numpy(), width, total.numpy(), zero)
        return total

    count = -(-width // kernel.BLOCK)
    return torch.stack(spread(count, n * n * width // 8, run)).sum(0)


def _compiled_lengths(tile: Tensor) -> Tensor:
    """Return the squared length of every row of one tile."""
    from gradless.collab.aggregation import numba_kernels as kernel

    (x, starts), width = flat(tile), tile.shape[1]

    def run(first: int, last: int) -> Tensor:
        total = torch.zeros(len(starts), dtype=torch.float64)
        kernel.length_blocks(first, last, x, starts, width, total.numpy(), x.dtype.type(0))
        return total

    return torch.stack(spread(-(-width // kernel.BLOCK), len(starts) * width // 4, run)).sum(0)


def _compiled_product(
    target: Tensor,
    weights: Tensor,
    tile: Tensor,
    index: Tensor,
    orders: Sequence[Tensor],
    centre: int,
    near: Tensor,
    share: Tensor,
) -> None:
    from gradless.collab.aggregation import numba_kernels as kernel

    (x, starts), (out, targets), width = flat(tile), flat(target), tile.shape[1]
    rows = (starts[index.numpy()], int(starts[centre]) if centre >= 0 else -1, near.numpy(), width)
    order, counts = np.zeros((len(orders), len(index)), np.int64), np.array([len(own) for own in orders])
    for line, own in zip(order, orders, strict=True):
        line[: len(own)] = own.numpy()
    sums = (weights.to(tile.dtype).contiguous().numpy(), order, counts, share.to(tile.dtype).numpy())
    spread(
        -(-width // kernel.BLOCK),
        weights.numel() * width // 8,
        lambda first, last: kernel.product_blocks(first, last, x, *rows, *sums, out, targets),
    )

"""Rows as people have them: tensors, NumPy arrays, lists of either, lists of numbers; results come back in kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradless.collab.aggregation import memory
from gradless.errors import BadInput

Rows = Tensor | np.ndarray | Sequence[Any]
KINDS = (
    "give float16, bfloat16, float32 or float64, e.g. rows.float() of a tensor or rows.astype('float64') of an array"
)


def matrix_of(rows: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Return rows as a matrix ``[N, D]``, and what gives a result ``[..., D]`` the kind and shape of a row.

    Tensors, arrays and lists of them keep their dtype and shape (``[N, ...]``); lists of numbers are float64 arrays.
    The matrix shares memory with the rows where that is possible.

    Raises:
        BadInput: rows of different shapes or kinds, scalars, whole or complex numbers, or no rows.
    """
    if isinstance(rows, (list, tuple)):
        rows = _stacked(rows)
    if isinstance(rows, np.ndarray):
        matrix, restore = _flat(_tensor(rows))
        return matrix, lambda result: restore(result).numpy()
    if not isinstance(rows, Tensor):
        raise BadInput(f"rows are a {type(rows).__name__}: give a tensor or an array [N, ...], or a list of vectors")
    return _flat(rows.detach())


def shares_memory(matrix: Tensor, rows: Any) -> bool:
    """Whether a matrix that `matrix_of` returned is the memory of the rows itself, in order and free to be written."""
    if isinstance(rows, np.ndarray):
        return matrix.is_contiguous() and matrix.data_ptr() == rows.ctypes.data
    own = isinstance(rows, Tensor) and not rows.requires_grad
    return own and matrix.is_contiguous() and matrix.data_ptr() == rows.data_ptr()


def _flat(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    if rows.layout != torch.strided:
        raise BadInput("rows are a sparse tensor: make it dense with rows.to_dense()")
    if rows.ndim < 2:
        raise BadInput(f"rows are {list(rows.shape)}, and a row is a vector of numbers: give [N, D], one row a peer")
    if not rows.dtype.is_floating_point:
        raise BadInput(f"rows are {rows.dtype}: {KINDS}")
    if rows.ndim == 2:
        return rows, lambda result: result
    shape = rows.shape[1:]
    return rows.flatten(1), lambda result: result.unflatten(-1, shape)


def _stacked(rows: Sequence[Any]) -> Tensor | np.ndarray:
    """Return a list of vectors as one tensor or array."""
    if not rows:
        raise BadInput("there are no rows to aggregate: at least one peer must have answered")
    if all(isinstance(row, Tensor) for row in rows):
        kinds = {(tuple(row.shape), row.dtype, row.device) for row in rows}
        if len(kinds) > 1:
            raise BadInput(_unlike([f"{list(shape)} {dtype} on {device}" for shape, dtype, device in kinds]))
        first, own = rows[0], [row.detach() for row in rows]
        if first.layout != torch.strided:
            return torch.stack(own)
        return torch.stack(own, out=memory.tensor((len(own), *first.shape), first.dtype, first.device))
    arrays = []
    for i, row in enumerate(rows):
        array = row if isinstance(row, np.ndarray) else _numbers(row)
        if array is None:
            raise BadInput(f"row {i} is no vector of numbers: give lists, arrays or tensors, the same for every peer")
        arrays.append(array)
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise BadInput(_unlike(sorted({f"{list(array.shape)} {array.dtype}" for array in arrays})))
    first = arrays[0]
    out = memory.lend(len(arrays) * first.nbytes).view(first.dtype).reshape(len(arrays), *first.shape)
    return np.stack(arrays, out=out)


def _numbers(row: Any) -> np.ndarray | None:
    """Return lists of numbers as float64; None for anything else."""
    try:
        array = None if isinstance(row, Tensor) else np.array(row)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, or of tensors
        return None
    return array.astype(np.float64) if array is not None and array.dtype.kind in "iuf" else None


def _unlike(kinds: Sequence[str]) -> str:
    return f"rows differ ({', '.join(sorted(kinds)[:3])}): every peer must send the same kind of vector"


def _tensor(rows: np.ndarray) -> Tensor:
    """Return an array as a tensor, without a copy where torch can read its memory."""
    if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
        raise BadInput(f"rows are {rows.dtype}: {KINDS}")
    if isinstance(rows, np.ma.MaskedArray):
        raise BadInput("rows are a masked array: say what the masked numbers are, e.g. rows.filled(0.0)")
    return torch.from_numpy(np.require(rows, rows.dtype.newbyteorder("="), ["C", "A", "W"]))

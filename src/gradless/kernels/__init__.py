"""One fused operation on one leaf: run a *program* over it in a single sweep.

A program is a list of steps ``p <- round(decay_t * p + sum_j coeffs_j z(keys_j))``. One step with one key is a
perturbation, one step with K keys is an update, and twenty thousand steps are a replay: the same kernel serves all,
so they cannot disagree. Every element is read once and written once however long the program is.

Arithmetic, the same on every backend, bit for bit: the leaf is widened to float32, each product and each sum is
rounded once in the order of the program (no fused multiply-add), and after every step the value is rounded to the
leaf's dtype: to nearest even in a probe, stochastically from the counter stream in an update of 16-bit weights.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.kernels import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of the CPU kernel's kinds


class Program(NamedTuple):
    """T steps, J terms in all; a program knows no leaf."""

    decays: np.ndarray  # float32 [T]
    starts: np.ndarray  # int64 [T + 1]: terms starts[t] .. starts[t + 1] belong to step t
    keys: np.ndarray  # uint64 [J]
    coeffs: np.ndarray  # float64 [J], before the leaf's amplitude; rounded to float32 once that is multiplied in
    rounding: np.ndarray  # uint64 [T] keys of stochastic rounding, or empty: round to nearest
    gaussian: bool


def program(
    steps: Sequence[tuple[float, Sequence[int], Sequence[float]]],
    *,
    gaussian: bool = False,
    rounding: Sequence[int] = (),
) -> Program:
    """Build a program from steps ``(decay, keys, coeffs)``.

    Example:
        >>> nudge = program([(1.0, [7], [1e-3])])
        >>> p = torch.zeros(3)
        >>> sweep(p, p, nudge, leaf=rng.leaf_id("w")).abs().tolist() == [p.abs().max().item()] * 3
        True
    """
    starts = np.cumsum([0] + [len(keys) for _, keys, _ in steps])
    return Program(
        decays=np.array([decay for decay, _, _ in steps], dtype=np.float32),
        starts=starts.astype(np.int64),
        keys=np.array([key for _, keys, _ in steps for key in keys], dtype=np.uint64),
        coeffs=np.array([c for _, _, coeffs in steps for c in coeffs], dtype=np.float64),
        rounding=np.array(rounding, dtype=np.uint64),
        gaussian=gaussian,
    )


def sweep(
    out: Tensor,
    p: Tensor,
    program: Program,
    *,
    leaf: int,
    amplitude: float = 1.0,
    mask: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Run ``program`` over ``p`` into ``out``, which may be ``p``, and return ``out``.

    Args:
        out: where to write; the shape of ``p``, or ``[len(rows), ...]`` when ``rows`` is given.
        p: the leaf, float32, bfloat16 or float16, any strides. Elements count in row-major order.
        program: what to do.
        leaf: 64-bit id of the leaf (`gradless.rng.leaf_id` of its name).
        amplitude: factor of every coefficient on this leaf (layer-scaled directions).
        mask: bool, the shape of ``p``; elements outside keep their bits.
        rows: int64 indices along the first dimension; only these rows are computed.

    Cost: one read and one write of the leaf; no memory beyond cache-sized tiles on CPU (a strided leaf is copied).
    """
    if p.dtype not in DTYPES:
        raise ValueError(f"a leaf must be float32, bfloat16 or float16, not {p.dtype}: convert the model first")
    if p.numel() == 0 or (rows is not None and rows.numel() == 0):
        return out
    whole = rows is None
    width = p.numel() if whole else p[0].numel()
    source, flat_mask = p.detach().contiguous().view(-1), None if mask is None else mask.contiguous().view(-1)
    # A strided target is computed in a packed buffer and copied; a packed one is written directly.
    packed = out.detach() if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    index = torch.zeros(1, dtype=torch.int64) if rows is None else rows
    coeffs = (program.coeffs * amplitude).astype(np.float32)
    steps = (program.decays, program.starts, program.keys, coeffs)
    kernel = backend(p.device)
    if kernel is None:
        reference.sweep(
            packed.view(-1), source, index, width, leaf, steps, program.rounding, program.gaussian, flat_mask
        )
    else:
        table = _table() if program.gaussian else np.zeros(0, np.float32)
        bits = np.zeros(0, np.uint8) if flat_mask is None else flat_mask.view(torch.uint8).numpy()
        kernel.sweep(
            _bits(packed), _bits(source), index.cpu().numpy(), width, DTYPES.index(p.dtype), leaf, steps,
            program.rounding, table, bits, torch.get_num_threads(),
        )  # fmt: skip
    if packed.data_ptr() != out.data_ptr():
        out.detach().copy_(packed)
    return out


def backend(device: torch.device) -> Any | None:
    """The kernel module that serves ``device``, or None for the torch reference.

    ``GRADLESS_KERNELS=reference`` turns the kernels off.
    """
    if device.type != "cpu" or os.environ.get("GRADLESS_KERNELS") == "reference":
        return None
    return _numba()


@functools.cache
def _numba() -> Any | None:
    """The Numba kernels, when Numba is installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    from gradless.kernels import cpu

    return cpu


@functools.cache
def _table() -> np.ndarray:
    return rng.normal_table().numpy()


def _bits(flat: Tensor) -> np.ndarray:
    """A flat tensor's bits as unsigned integers, sharing its memory."""
    if flat.dtype == torch.float32:
        return flat.view(-1).view(torch.int32).numpy().view(np.uint32)
    return flat.view(-1).view(torch.int16).numpy().view(np.uint16)

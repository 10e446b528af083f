"""Fused operations on one leaf: run a *program* over it in a single sweep, or branch off it.

A program is a list of steps ``p <- round(decay_t * p + sum_j coeffs_j z(keys_j))``. One step with one key is a
perturbation, one step with K keys is an update, and twenty thousand steps are a replay: the same kernel serves all,
so they cannot disagree. Every element is read once and written once however long the program is. `fan` runs a program
and, in the same visit, makes several perturbed copies: one draw of z serves +eps and -eps.

Arithmetic, the same on every backend, bit for bit: the leaf is widened to float32, each product and each sum is
rounded once in the order of the program (no fused multiply-add), and after every step the value is rounded to the
leaf's dtype: to nearest even, or stochastically from the counter stream for 16-bit weights and codes. A leaf of codes
is uint8: whole numbers from 0 to ``highest``, where values outside end. `ARITHMETIC_VERSION` names this arithmetic;
ledgers record it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor

from gradless.kernels import reference
from gradless.kernels.program import NOTHING as NOTHING
from gradless.kernels.program import Fan as Fan
from gradless.kernels.program import FlatFan, Program, Region, is_wide, on
from gradless.kernels.program import join as join
from gradless.kernels.program import program as program
from gradless.rng import RADEMACHER, Stream

# Of rounding and of how a step becomes a program: other bits need another number. In version 1 roots and fused products
# of Adam's rules, and sums of layer scales, were the processor's (`gradless.ledger.header.check_release`).
ARITHMETIC_VERSION: Final = 2
WITHOUT_TRITON: Final = (
    "triton is not installed, so perturbing and updating weights on a GPU takes several times as long: pip install "
    "triton (triton-windows on Windows)"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of the kernels' kinds
CODES: Final = torch.uint8


def sweep(
    out: Tensor,
    p: Tensor,
    program: Program,
    *,
    leaf: int,
    stream: Stream = RADEMACHER,
    amplitude: float = 1.0,
    mask: Tensor | None = None,
    rows: Tensor | None = None,
    highest: int = 0,
) -> Tensor:
    """Run ``program`` over ``p`` into ``out``, which may be ``p``, and return ``out``.

    Args:
        out: where to write; the shape of ``p``, or ``[len(rows), ...]`` when ``rows`` is given.
        p: the leaf, float32, bfloat16, float16, or uint8 for codes, any strides. Elements count in row-major order.
        program: the steps to run.
        leaf: 64-bit id of the leaf (`gradless.rng.leaf_id` of its name).
        stream: how z is drawn on this leaf.
        amplitude: factor of every coefficient on this leaf (layer-scaled directions).
        mask: bool, the shape of ``p``; elements outside keep their bits.
        rows: int64 indices along the first dimension; only these rows are computed.
        highest: the largest code of a leaf of codes, 1 to 255.

    Cost: one read and one write of the leaf; no memory beyond cache-sized tiles on CPU (a strided leaf is copied).

    Example:
        >>> from gradless import rng
        >>> nudge = program([(1.0, [7], [1e-3])])
        >>> p = torch.zeros(3)
        >>> sweep(p, p, nudge, leaf=rng.leaf_id("w")).abs().tolist() == [p.abs().max().item()] * 3
        True
    """
    region = _region(p, leaf, rows, highest)
    if region is None:
        return out
    source, flat_mask = p.detach().contiguous().view(-1), None if mask is None else mask.contiguous().view(-1)
    # A strided target is computed in a packed buffer and copied; a packed one is written directly.
    packed = out.detach() if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    kernel = backend(p.device) or reference
    with _traced():
        kernel.sweep(packed.view(-1), source, region, on(program, stream, amplitude, highest), flat_mask)
        if packed.data_ptr() != out.data_ptr():
            out.detach().copy_(packed)
    return out


def fan(
    outs: Tensor,
    p: Tensor,
    update: Program,
    probes: Program,
    *,
    leaf: int,
    mirrored: bool,
    keep: bool,
    stream: Stream = RADEMACHER,
    amplitudes: tuple[float, float] = (1.0, 1.0),
    mask: Tensor | None = None,
    rows: Tensor | None = None,
    highest: int = 0,
) -> Tensor:
    """Run ``update`` over ``p`` and branch off the result: ``outs[b] = round(p + sum_j coeffs_j z(keys_j))``.

    Args:
        outs: where the branches go, ``[B, *shape]`` contiguous, or ``[B, len(rows), ...]`` when ``rows`` is given; of
            the leaf's dtype, or float32: then they are not rounded.
        p: the leaf, as in `sweep`.
        update: a program to run first, perhaps `NOTHING`.
        probes: its steps are the branches; their decays are not used.
        leaf: 64-bit id of the leaf.
        mirrored: every branch comes in two, ``outs[2 b]`` with plus and ``outs[2 b + 1]`` with minus the same terms,
            from one draw of z and of the rounding bits; several terms are summed before they are added.
        keep: write the updated leaf back to ``p``; else only the branches hold the update.
        stream: how z is drawn on this leaf.
        amplitudes: factors of the coefficients of the update and of the probes on this leaf.
        mask: bool, the shape of ``p``; elements outside keep their bits.
        rows: int64 indices along the first dimension; only these rows are visited, so ``keep`` must not be set.
        highest: the largest code of a leaf of codes.

    Cost: one read of the leaf, one write of each branch, and one of the leaf if it is kept.
    """
    region = _region(p, leaf, rows, highest)
    if region is None:
        return outs
    if keep and rows is not None:
        raise ValueError("rows of a leaf cannot be kept: the other rows would miss the update")
    target = p.detach()
    source, flat_mask = target.contiguous().view(-1), None if mask is None else mask.contiguous().view(-1)
    kernel = backend(p.device) or reference
    runs = on(update, stream, amplitudes[0], highest), on(probes, stream, amplitudes[1], highest)
    flat = FlatFan(outs.view(outs.shape[0], -1), source, region, *runs, flat_mask)
    with _traced():
        _fan(kernel, flat, mirrored, keep)
        if keep and not target.is_contiguous():
            target.copy_(source.view(target.shape))
    return outs


def fan_many(fans: Sequence[Fan], *, mirrored: bool) -> None:
    """`fan` for many leaves, which are visited whole; the bits are those of one call for each.

    A leaf of a thousand elements takes less than a call and a launch do: a kernel module that has a `fan_many` gets all
    leaves that are alike in device, dtype and range, stream (kind and rank), ``keep`` and whether there is a mask, in
    one call.

    Args:
        fans: the leaves, in any order and mixture; no two share memory, nor do their ``outs``. The shapes, strides,
            masks and programs are those of `fan`; an update may be `NOTHING` for some leaves and many steps for others.
            With `NOTHING` as probes, and empty ``outs``, there is just the update.
        mirrored: as for `fan`, of all leaves.

    Cost: as `fan`, in one call of the kernels for all leaves that are alike.
    """
    alike: dict[tuple[Any, ...], list[tuple[Fan, FlatFan]]] = {}
    for one in fans:
        region = _region(one.p, one.leaf, None, one.highest)
        if region is not None:
            stream, wide = (one.stream.kind, one.stream.rank), is_wide(one.outs, one.p)
            kind = (one.p.device, one.p.dtype, one.keep, wide, *stream, one.mask is None, one.highest)
            alike.setdefault(kind, []).append((one, _flat(one, region)))
    with _traced():
        for (device, _, keep, wide, *_), group in alike.items():
            kernel = backend(device) or reference
            if hasattr(kernel, "fan_many") and (not wide or _branches_wide(kernel)):
                kernel.fan_many([flat for _, flat in group], mirrored, keep)
            else:
                for _, flat in group:
                    _fan(kernel, flat, mirrored, keep)
            for one, flat in group:
                if keep and flat.p.data_ptr() != one.p.data_ptr():
                    one.p.detach().copy_(flat.p.view(one.p.shape))


def _fan(kernel: Any, flat: FlatFan, mirrored: bool, keep: bool) -> None:
    """One leaf; a kernel without float32 branches of 16-bit leaves gets the updated leaf in float32."""
    outs, p, region, update, probes, mask = flat
    if is_wide(outs, p) and not _branches_wide(kernel):
        whole = region._replace(rows=_WHOLE, width=p.numel())  # an update counts elements, not rows
        p = p if keep or not update.decays.size else p.clone()
        if update.decays.size:
            kernel.sweep(p, p, whole, update, mask)
        p, update, keep = p.float(), on(NOTHING, update.stream, 1.0), False
    kernel.fan(outs, p, region, update, probes, mirrored, keep, mask)


def _branches_wide(kernel: Any) -> bool:
    return bool(getattr(kernel, "BRANCHES_WIDE", False))


def _flat(one: Fan, region: Region) -> FlatFan:
    """A leaf as a kernel module takes it."""
    return FlatFan(
        one.outs.view(one.outs.shape[0], region.width),
        one.p.detach().contiguous().view(-1),
        region,
        on(one.update, one.stream, one.amplitudes[0], one.highest),
        on(one.probes, one.stream, one.amplitudes[1], one.highest),
        None if one.mask is None else one.mask.contiguous().view(-1),
    )


def _region(p: Tensor, leaf: int, rows: Tensor | None, highest: int) -> Region | None:
    """The region of a leaf that a kernel visits, or None if it has no elements."""
    if (p.dtype not in DTYPES) if not highest else (p.dtype != CODES or highest > 255):
        raise ValueError(
            f"a leaf must be float32, bfloat16 or float16, or uint8 codes with a highest one, not {p.dtype} and "
            f"{highest}: convert the model first"
        )
    if p.numel() == 0 or (rows is not None and rows.numel() == 0):
        return None
    columns = p.numel() // p.shape[0] if p.ndim else 1
    if rows is None:
        return Region(leaf, _WHOLE, p.numel(), columns, highest)
    return Region(leaf, rows.contiguous(), columns, columns, highest)


_WHOLE = torch.zeros(1, dtype=torch.int64)


def backend(device: torch.device) -> Any | None:
    """The kernel module that serves ``device``, or None for the torch reference.

    ``GRADLESS_KERNELS=reference`` turns the kernels off.
    """
    if device.type == "cpu" and not _off():
        return _module("numba", "cpu")
    if device.type == "cuda" and not _off():
        return _module("triton", "cuda")
    return None


def _traced() -> AbstractContextManager[Any]:
    """Around a visit, for profiles; entering a range costs 10 us, so only while there is one."""
    if torch._C._autograd._profiler_enabled():
        return torch.profiler.record_function("gradless.sweep")
    return contextlib.nullcontext()


def on_accelerator(device: torch.device) -> bool:
    """Whether reading a value waits for all that was launched before."""
    return device.type != "cpu"


def launched(device: torch.device) -> bool:
    """Whether kernels of `backend` are launched and not waited for."""
    return on_accelerator(device) and backend(device) is not None


def _off() -> bool:
    return os.environ.get("GRADLESS_KERNELS") == "reference"


@functools.cache
def _module(needs: str, name: str) -> Any | None:
    """A kernel module, when what it is written in is installed."""
    if importlib.util.find_spec(needs) is None:
        if name == "cuda":  # on a CPU the extra is optional, and the doctor says what it is worth
            warnings.warn(WITHOUT_TRITON, stacklevel=3)
        return None
    return importlib.import_module(f"gradless.kernels.{name}")

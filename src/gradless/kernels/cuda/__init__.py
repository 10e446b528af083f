"""Kernels for CUDA, written in Triton: one read and one write of the leaf, the bits of `gradless.kernels.reference`."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gradless import rng
from gradless.kernels.cuda import tiles
from gradless.kernels.cuda.launch import OPTIONS as OPTIONS
from gradless.kernels.cuda.launch import launch, stream
from gradless.kernels.cuda.vectors import Queue, Vector, table, vector
from gradless.kernels.cuda.vectors import recorded as recorded
from gradless.kernels.program import FlatFan, Program, Region
from gradless.rng import Stream

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
WHOLE, EVERY, LISTED = (rows.value for rows in (tiles.WHOLE, tiles.EVERY, tiles.LISTED))
SWEEP_WORDS, FAN_WORDS = 128, 64  # the longest tiles: 32 or 16 elements a thread
BLOCK = 256  # columns a program instance of `tiles.right` handles
KEPT = 1024  # sign words of V that are kept on the device
FEW = 4  # bases whose sign words are worth keeping


def sweep(out: Tensor, p: Tensor, region: Region, program: Program, mask: Tensor | None) -> None:
    """Run a program over flat tensors; see `gradless.kernels.sweep` for the meaning of the arguments."""
    _one(tiles.sweep, SWEEP_WORDS, out, p, region, (program,), mask, (_bits64(program.factor),), {})


def fan(
    outs: Tensor,
    p: Tensor,
    region: Region,
    update: Program,
    probes: Program,
    mirrored: bool,
    keep: bool,
    mask: Tensor | None,
) -> None:
    """Branch off a leaf, outs ``[B, n]``; see `gradless.kernels.fan` for the meaning of the arguments."""
    numbers = (_bits64(update.factor), _bits64(probes.factor), probes.decays.size, outs.shape[1])
    more = _how(p, update, probes, mirrored, keep)
    _one(tiles.fan, FAN_WORDS, outs, p, region, (update, probes), mask, numbers, more)


def fan_many(fans: Sequence[FlatFan], mirrored: bool, keep: bool) -> None:
    """Branch off many leaves; see `gradless.kernels.fan_many`. One launch for all that go through the same code."""
    alike: dict[tuple[Any, ...], list[FlatFan]] = {}
    for one in fans:
        how = (one.update.decays.size > 0, one.update.rounding.size > 0, one.probes.rounding.size > 0)
        mask = 0 if one.mask is None else one.mask.data_ptr()
        aligned = not (one.region.width | one.p.data_ptr() | one.outs.data_ptr() | mask) & 15
        alike.setdefault((how, one.probes.decays.size, aligned), []).append(one)
    for (_, _, aligned), group in alike.items():
        if len(group) == 1:
            one = group[0]
            fan(one.outs, one.p, one.region, one.update, one.probes, mirrored, keep, one.mask)
        else:
            _many(group, mirrored, keep, aligned)


def _many(fans: list[FlatFan], mirrored: bool, keep: bool, aligned: bool) -> None:
    """Launch the fan of leaves that are alike."""
    p, probes, device = fans[0].p, fans[0].probes, fans[0].p.device
    programs = tuple({one.identity: one for leaf in fans for one in (leaf.update, leaf.probes)}.values())
    order = {one.identity: number for number, one in enumerate(programs)}
    with _on(device):
        queue = Queue(device, stream(device))
        numbers = vector(programs, queue)
        rows = EVERY if probes.stream.kind == "low_rank" else WHOLE
        words = _tile_words(max(one.region.columns if rows else one.region.width for one in fans), rows, FAN_WORDS)
        records: list[int] = []
        tables, tile = [], 0
        for one in fans:
            width = one.region.columns if rows else one.region.width
            per_row = _cdiv(width + _slack(rows, width), 32 * words)
            tables.append(_table(probes.stream, numbers, programs, one.region, queue))
            records += (
                tile, one.p.data_ptr(), one.outs.data_ptr(), 0 if one.mask is None else one.mask.data_ptr(),
                tables[-1].data_ptr(), _signed(one.region.leaf), width, per_row, one.region.width,
                numbers.begins[order[one.update.identity]], one.update.decays.size,
                numbers.begins[order[one.probes.identity]], _bits64(one.update.factor), _bits64(one.probes.factor),
                0, 0,
            )  # fmt: skip
            tile += per_row * (one.region.width // width)
        constants = _how(p, fans[0].update, probes, mirrored, keep)
        constants |= {"ALIGNED": aligned and not any(width & 15 for width in records[6 :: tiles.RECORD.value])}
        constants |= _constants(p, probes, fans[0].mask, rows, words, fans[0].region.highest)
        normal = _normal(device) if probes.stream.kind == "gaussian" else numbers.words
        launch(
            tiles.fan_many,
            (tile,),
            (table(tuple(records), queue), numbers.words, normal),
            (len(fans), (len(fans) - 1).bit_length(), probes.decays.size),
            constants,
            queue.stream,
        )


def _one(
    kernel: Any,
    longest: int,
    out: Tensor,
    p: Tensor,
    region: Region,
    programs: tuple[Program, ...],
    mask: Tensor | None,
    numbers: tuple[int, ...],
    more: dict[str, int | bool],
) -> None:
    """Run a kernel over all tiles of a region of one leaf."""
    kind, device = programs[-1].stream, p.device
    width, count = region.width, region.rows.numel()
    rows = EVERY if kind.kind == "low_rank" else WHOLE
    if width != p.numel() or count != 1:
        rows = LISTED
    elif rows == EVERY:
        width, count = region.columns, p.numel() // region.columns
    words = _tile_words(width, rows, longest)
    per_row = _cdiv(width + _slack(rows, width), 32 * words)
    with _on(device):
        queue = Queue(device, stream(device))
        steps = vector(programs, queue)
        bits = _bits(p)
        launch(
            kernel,
            (count * per_row,),
            (
                _bits(out),
                bits,
                bits if mask is None else mask.view(torch.uint8),
                region.rows.to(device) if rows == LISTED else steps.words,
                steps.words,
                _table(kind, steps, programs, region, queue),
            ),
            (_signed(region.leaf), programs[0].decays.size, width, per_row, *numbers),
            {**more, **_constants(p, programs[-1], mask, rows, words, region.highest)},
            queue.stream,
        )


def _how(p: Tensor, update: Program, probes: Program, mirrored: bool, keep: bool) -> dict[str, int | bool]:
    """The constants of a fan that say what is rounded and written."""
    stochastic = _stochastic(p, update if update.decays.size else probes)
    return {"UPDATE_STOCHASTIC": stochastic, "MIRRORED": mirrored, "KEEP": keep and update.decays.size > 0}


def _constants(p: Tensor, program: Program, mask: Tensor | None, rows: int, words: int, highest: int) -> dict[str, Any]:
    """The constants that all kernels have."""
    return {
        "DTYPE": KINDS[p.dtype] + highest,
        "STOCHASTIC": _stochastic(p, program),
        "MASKED": mask is not None,
        "ROWS": rows,
        "KIND": rng.KINDS[program.stream.kind],
        "RANK": program.stream.rank,
        "WORDS": words,
    }


def _slack(rows: int, width: int) -> int:
    """How far before its row a tile may begin."""
    return 0 if rows == WHOLE or width % 128 == 0 else 127


def _tile_words(width: int, rows: int, longest: int) -> int:
    return max(16, min(longest, 1 << (_cdiv(width + _slack(rows, width), 32) - 1).bit_length()))


def _cdiv(number: int, by: int) -> int:
    return -(-number // by)  # Triton's own takes 3 us


def _stochastic(p: Tensor, program: Program) -> bool:
    return p.dtype != torch.float32 and program.rounding.size > 0


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, sharing its memory."""
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[tensor.dtype.itemsize]
    return tensor.view(kind)


@functools.lru_cache(maxsize=KEPT)
def _bits64(number: float) -> int:
    """The bits of a float64 as a signed integer."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits)


def _signed(leaf: int) -> int:
    """An unsigned number of 64 bits as the signed one with the same bits."""
    return leaf - ((leaf >> 63) << 64)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Around launches on a device."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _table(kind: Stream, steps: Vector, programs: tuple[Program, ...], region: Region, queue: Queue) -> Tensor:
    """What a stream looks up: quantiles, or the sign words of V for every basis; else anything."""
    if kind.kind == "gaussian":
        return _normal(queue.device)
    if kind.kind != "low_rank":
        return steps.words
    if not steps.bases:  # no terms: nothing is read, but the kernel is compiled for words of 32 bits
        return steps.words.view(torch.int32)
    bases = frozenset(int(basis) for one in programs for basis in one.bases)
    key = (bases, region.leaf, region.columns, queue)
    words = _rights.pop(key, None)
    if words is None:
        words = torch.empty(len(bases), region.columns, dtype=torch.int32, device=queue.device)
        numbers = (steps.first_basis, _signed(region.leaf), region.columns)
        grid = (len(bases), _cdiv(region.columns, BLOCK))
        launch(tiles.right, grid, (words, steps.words), numbers, {"BLOCK": BLOCK}, queue.stream)
    if len(bases) <= FEW:
        _rights[key] = words
        while len(_rights) > KEPT:
            del _rights[next(iter(_rights))]
    return words


_rights: dict[tuple[Any, ...], Tensor] = {}  # sign words of V, those used last at the end


@functools.cache
def _normal(device: torch.device) -> Tensor:
    return rng.normal_table().to(device)

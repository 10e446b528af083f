"""CPU kernels: all cores, vectorised, one read and one write of the leaf, and one call for a row of leaves.

They are compiled by Numba (`gradless.kernels.numba_tiles`). The threads are those of torch's own OpenMP team, which are
still awake after a matrix product and on whose processors they would otherwise spin while threads of ours wait for one.
Where torch has no such team to share (macOS, Windows), they are plain Python threads; Numba's layer is not used, since
it resizes torch's team.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.kernels import numba_arithmetic, numba_tiles
from gradless.kernels.numba_arithmetic import TILE
from gradless.kernels.program import NOTHING, FlatFan, Program, Region, is_wide

WORTHWHILE = 1 << 17  # elements and terms that are worth waking a thread for
TOGETHER = 16  # tiles that a thread takes at a time
BRANCHES_WIDE = True  # float32 branches of 16-bit leaves need no copy
KINDS = {
    torch.float32: numba_arithmetic.FLOAT32,
    torch.bfloat16: numba_arithmetic.BFLOAT16,
    torch.float16: numba_arithmetic.FLOAT16,
    torch.uint8: numba_arithmetic.CODES,
}
VISITS = {4: numba_tiles.visit_32, 2: numba_tiles.visit_16, 1: numba_tiles.visit_8}  # by bytes an element


def sweep(out: Tensor, p: Tensor, region: Region, program: Program, mask: Tensor | None) -> None:
    """Run a program over flat tensors; see `gradless.kernels.sweep` for the meaning of the arguments."""
    _visit([FlatFan(out, p, region, program, NOTHING, mask)], False, [out.data_ptr()])


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
    fan_many([FlatFan(outs, p, region, update, probes, mask)], mirrored, keep)


def fan_many(fans: Sequence[FlatFan], mirrored: bool, keep: bool) -> None:
    """`fan` for leaves of one dtype, and branches of one."""
    _visit(fans, mirrored, [one.p.data_ptr() if keep else 0 for one in fans])


def _visit(fans: Sequence[FlatFan], mirrored: bool, kept: Sequence[int]) -> None:
    """Visit leaves of one dtype; their updated values go to the addresses ``kept``, or nowhere if that is 0."""
    packed = _packed(tuple(_on_leaf(program, one.region) for one in fans for program in (one.update, one.probes)))
    rows, tiles, work = [], 0, 0
    for i, (one, address) in enumerate(zip(fans, kept, strict=True)):
        region, stream, count = one.region, one.update.stream, one.region.rows.numel()
        tiles += count * -(-region.width // TILE)
        work += count * region.width * max(1, one.update.keys.size + 2 * one.probes.keys.size)
        rows.append(
            (
                *(one.p.data_ptr(), address, one.outs.data_ptr(), 0 if one.mask is None else one.mask.data_ptr()),
                *(region.rows.data_ptr(), count, region.width, region.columns, _signed(region.leaf)),
                *(KINDS[one.p.dtype] + region.highest, rng.KINDS[stream.kind], stream.rank),
                *(*packed.spans[2 * i], *packed.spans[2 * i + 1]),
                *(one.update.rounding.size > 0, one.probes.rounding.size > 0, mirrored, tiles),
            )
        )
    table, threads = np.array(rows, np.int64), torch.get_num_threads()
    together = max(1, min(TOGETHER, tiles // (2 * threads)))
    call = np.array((0, tiles, together, table.ctypes.data, len(rows), *packed.addresses), np.int64)
    visit = _compiled(fans[0].p.dtype.itemsize, is_wide(fans[0].outs, fans[0].p))
    if threads == 1 or tiles == 1 or work < WORTHWHILE:
        visit.ctypes(call.ctypes.data)
    else:
        team()(visit, call.ctypes.data, threads)


class Packed(NamedTuple):
    """Programs one after the other in arrays."""

    spans: list[tuple[int, int]]  # first and last step of every program
    addresses: tuple[int, ...]  # the fields of a call from `numba_tiles.DECAYS` on
    arrays: tuple[Any, ...]  # what they are the addresses of


def _on_leaf(program: Program, region: Region) -> tuple[Program, int, int]:
    """A program, with the leaf and its columns if V depends on them."""
    return (program, region.leaf, region.columns) if program.stream.kind == "low_rank" else (program, 0, 0)


@functools.lru_cache(maxsize=64)  # all leaves of a step have the same few
def _packed(programs: tuple[tuple[Program, int, int], ...]) -> Packed:
    """Pack programs of leaves; those of a kernel's call are hundreds at most."""
    which = {key: i for i, key in enumerate(dict.fromkeys(programs))}
    each = [program for program, _, _ in which]
    steps = np.cumsum([0, *(len(program.decays) for program in each)])
    terms = np.cumsum([0, *(len(program.keys) for program in each)])
    rights = [
        _words(int(basis), leaf, columns) if columns else None
        for program, leaf, columns in which
        for basis in program.bases
    ]
    arrays = (
        np.concatenate([program.decays for program in each]),
        np.concatenate([program.starts[:-1] + first for program, first in zip(each, terms, strict=False)]),
        np.concatenate([program.starts[1:] + first for program, first in zip(each, terms, strict=False)]),
        np.concatenate([program.keys for program in each]),
        np.concatenate([program.coeffs for program in each]).astype(np.float32),
        np.concatenate(
            [program.rounding if program.rounding.size else program.starts[1:].astype(np.uint64) for program in each]
        ),
        np.array([0 if words is None else words.ctypes.data for words in rights], np.int64),
        _normal() if any(program.stream.kind == "gaussian" for program in each) else np.zeros(1, np.float32),
    )
    spans = [(int(steps[which[key]]), int(steps[which[key] + 1])) for key in programs]
    return Packed(spans, (*(a.ctypes.data for a in arrays), int(steps[-1]), int(terms[-1])), (arrays, rights))


def _signed(number: int) -> int:
    """An unsigned number of 64 bits, as the signed one of the same bits."""
    return number - (number >> 63 << 64)


@functools.cache
def _compiled(itemsize: int, wide: bool) -> Any:
    """The kernel for leaves of so many bytes an element, and branches of these or of float32."""
    return numba_tiles.compiled(numba_tiles.visit_16_wide if wide else VISITS[itemsize])


Team = Callable[[Any, int, int], None]  # runs a compiled function, of an address, in so many threads at once


@functools.cache
def team() -> Team:
    """The threads of torch's OpenMP team, entered as code compiled by GCC enters it; else Python's."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel  # of the very library that torch uses
    except (OSError, AttributeError):
        return _python_threads
    parallel.argtypes, parallel.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return lambda visit, address, threads: parallel(visit.address, address, threads, 0)


def _python_threads(visit: Any, address: int, threads: int) -> None:
    others = [_threads().submit(visit.ctypes, address) for _ in range(threads - 1)]
    visit.ctypes(address)
    for other in others:
        if not other.cancel():  # one that comes too late would find nothing left
            other.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="gradless-sweep")


@functools.lru_cache(maxsize=1024)
def _words(basis: int, leaf: int, columns: int) -> np.ndarray:
    """The sign words of V, uint32 ``[columns]``."""
    blocks = rng.philox_blocks(0, (columns + 3) // 4, leaf, basis)
    return blocks.view(-1)[:columns].numpy().astype(np.uint32)


@functools.cache
def _normal() -> np.ndarray:
    return rng.normal_table().numpy()

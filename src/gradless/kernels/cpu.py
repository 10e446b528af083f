"""CPU kernels: all cores, vectorised, one read and one write of the leaf.

They are compiled by Numba (`gradless.kernels.numba_tiles`). Work is spread over plain Python threads (the kernels
release the GIL) and not over Numba's OpenMP layer: that one resizes torch's thread pool, and two pools that spin while
they wait slow each other down many times over.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradless import rng
from gradless.kernels import numba_tiles
from gradless.kernels.numba_tiles import TILE
from gradless.kernels.program import Program, Region

WORTHWHILE = 1 << 17  # elements and terms that are worth waking a thread for
KINDS = {torch.float32: numba_tiles.FLOAT32, torch.bfloat16: numba_tiles.BFLOAT16, torch.float16: numba_tiles.FLOAT16}


def sweep(out: Tensor, p: Tensor, region: Region, program: Program, mask: Tensor | None) -> None:
    """Run a program over flat tensors; see `gradless.kernels.sweep` for the meaning of the arguments."""
    _spread(
        numba_tiles.sweep_tiles,
        region,
        program.keys.size,
        (
            _bits(out),
            _bits(p),
            region.rows.numpy(),
            region.width,
            KINDS[p.dtype],
            np.uint64(region.leaf),
            _arrays(program, region),
            _stream(program, region),
            _table(program),
            *_mask(mask),
        ),
    )


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
    _spread(
        numba_tiles.fan_tiles,
        region,
        update.keys.size + 2 * probes.keys.size,
        (
            _bits(outs).reshape(-1),
            _bits(p),
            region.rows.numpy(),
            region.width,
            KINDS[p.dtype],
            np.uint64(region.leaf),
            _arrays(update, region),
            _arrays(probes, region),
            mirrored,
            keep,
            _stream(probes, region),
            _table(probes),
            *_mask(mask),
        ),
    )


def _spread(kernel: Any, region: Region, terms: int, rest: tuple[Any, ...]) -> None:
    """Run all tiles of a kernel, on as many threads as are worth waking."""
    count = region.rows.numel() * ((region.width + TILE - 1) // TILE)
    work = count * max(1, terms) * min(TILE, region.width)
    parts = min(torch.get_num_threads(), max(1, work // WORTHWHILE))
    edges = [count * part // parts for part in range(parts + 1)]
    others = [_threads().submit(kernel, edges[i], edges[i + 1], *rest) for i in range(1, parts)]
    kernel(edges[0], edges[1], *rest)
    for other in others:
        other.result()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="gradless-sweep")


def _bits(tensor: Tensor) -> np.ndarray:
    """A tensor's bits as unsigned integers, sharing its memory."""
    if tensor.dtype == torch.float32:
        return tensor.view(torch.int32).numpy().view(np.uint32)
    return tensor.view(torch.int16).numpy().view(np.uint16)


def _arrays(program: Program, region: Region) -> tuple[np.ndarray, ...]:
    """A program as the kernels take it: decays, starts, keys, coeffs, rounding, sign words of V for every term."""
    rights = np.zeros((0, 0), np.uint32)
    if program.stream.kind == "low_rank":
        bases, which = np.unique(program.bases, return_inverse=True)
        rights = (
            np.stack([_words(int(basis), region.leaf, region.columns) for basis in bases])[which]
            if len(bases)
            else rights
        )
    return program.decays, program.starts, program.keys, program.coeffs, program.rounding, rights


@functools.lru_cache(maxsize=1024)
def _words(basis: int, leaf: int, columns: int) -> np.ndarray:
    """The sign words of V, uint32 ``[columns]``."""
    blocks = rng.philox_blocks(0, (columns + 3) // 4, leaf, basis)
    return blocks.view(-1)[:columns].numpy().astype(np.uint32)


def _stream(program: Program, region: Region) -> tuple[int, int, int]:
    return rng.KINDS[program.stream.kind], program.stream.rank, region.columns


def _table(program: Program) -> np.ndarray:
    return _normal() if program.stream.kind == "gaussian" else np.zeros(0, np.float32)


@functools.cache
def _normal() -> np.ndarray:
    return rng.normal_table().numpy()


def _mask(mask: Tensor | None) -> tuple[np.ndarray, bool]:
    return (np.zeros(0, np.uint8), False) if mask is None else (mask.view(torch.uint8).numpy(), True)

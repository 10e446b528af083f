"""How passes over columns use processors: pieces of a loop on threads, PyTorch on one core, no denormals."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

WORTHWHILE, PIECES = 1 << 18, 32  # operations that are worth handing out, and into how many pieces at most


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers below the smallest normal one are zero inside, in this thread and those that start in it.

    Where an attack has driven all models to zero, what is left of their weights makes a step thirty times slower.
    """
    smallest = torch.full((1,), torch.finfo(torch.float32).tiny)
    flushed = not bool(smallest / 4)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


_workers: int | None = None  # threads of `spread`; None: as many as PyTorch has


@contextlib.contextmanager
def small_operations() -> Iterator[None]:
    """PyTorch on one core inside, while the pieces of `spread` still have all of them.

    A round has hundreds of products of small matrices. PyTorch's threads wait for each other at the end of each, and on
    a machine that is not idle that costs up to fifty times the work.
    """
    global _workers
    previous = torch.get_num_threads(), _workers
    _workers = _workers or previous[0]
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous[0])
        _workers = previous[1]


def spread(count: int, work: int, run: Callable[[int, int], Any]) -> list[Any]:
    """``run(first, last)`` for all of ``count`` blocks, in pieces; the results in order.

    Threads fetch pieces as they go, so one that the machine keeps waiting delays the others by a piece at most. The
    pieces do not depend on the number of threads, so neither do sums over them.
    """
    pieces = max(1, min(PIECES, work // WORTHWHILE, count))
    edges = [count * piece // pieces for piece in range(pieces + 1)]
    results: list[Any] = [None] * pieces
    left = deque(range(pieces))

    def drain() -> None:
        while True:
            try:
                piece = left.popleft()
            except IndexError:
                return
            results[piece] = run(edges[piece], edges[piece + 1])

    others = [_threads().submit(drain) for _ in range(min(_workers or torch.get_num_threads(), pieces) - 1)]
    drain()
    for other in others:
        if not other.cancel():  # it has begun
            other.result()
    return results


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="gradless-collab")

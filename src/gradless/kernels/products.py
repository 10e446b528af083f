"""Products with float32 matrices on a processor, by the faster of the two libraries that torch brings.

torch multiplies float32 matrices with MKL, which has AVX-512 code for Intel's own processors alone; others get that for
AVX2. oneDNN, which torch brings for other types, uses what the processor has: on an EPYC with AVX-512 the products of a
language model take 0.48 of MKL's time (`benchmarks/float32_products.py`). Flags do not tell how wide a processor's
units are, so where MKL may fall short one product is timed both ways.

Inside `faster`, torch's own ``mm`` and ``addmm`` of a processor multiply with oneDNN. That is below autograd, vmap and
modes, so layers, their derivatives and subclasses of tensors have it as they are. Outside, and in other threads, they
do what they always do, by a kernel in Python that costs 2 us.

oneDNN makes code for every shape that it meets, in 1 ms, and keeps 0.6 MB of it; batches of text have hundreds of
numbers of rows. So rows go to it in blocks of sixteen sizes, the last of them filled up with rows of zeros.

``torch.backends.mkldnn.flags(enabled=False)`` turns oneDNN off, here as in torch.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from gradless.system.machine import is_intel

Name = TypeVar("Name")

ROWS, WIDTH, ROUNDS, FEWEST = 128, 512, 20, 3  # a fifth of a millisecond each: some escape whatever else runs
SLOW: Final = 4.0
"""Times of the first product's best after which no other round can make another fast."""
CLEAR: Final = 0.8
"""Of MKL's time, the most that oneDNN may take to be used: between 0.48 and what a processor of narrow units has."""
WORTH: Final = 1 << 21
"""Multiplications of a product below which oneDNN's start takes longer than it saves."""
SIZES: Final = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Rows of a block that oneDNN multiplies."""
FILLED: Final = 32
"""Rows of zeros in one block that cost less than the start of another: of the time of 10 to 70 rows."""
FILLED_SUM: Final = 128
"""The same where products of blocks are summed, which takes as long as a hundred rows."""
_frames: Any = torch._C._dynamo.eval_frame
_mm_out: Final = torch.ops.aten.mm.out
_addmm_out: Final = torch.ops.aten.addmm.out


class _Thread(threading.local):
    """How many blocks of `faster` this thread is in, one inside the other."""

    depth = 0


_thread = _Thread()


@contextlib.contextmanager
def faster() -> Iterator[None]:
    """Inside, this thread multiplies float32 matrices with oneDNN, where `is_faster`.

    The results are those of torch to rounding; the last bits of a row depend on where it stands in its batch.

    Cost: `is_faster` once in a process; then 3 us for each product. Memory: up to 10 MB of code for each kind of layer.
    """
    if not (torch.backends.mkldnn.enabled and is_faster()):
        yield
        return
    _install()
    _thread.depth += 1
    try:
        yield
    finally:
        _thread.depth -= 1


@functools.cache
def is_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices clearly faster than MKL; measured where that is open.

    Cost: 20 ms once in a process on a processor with AVX-512 that is not Intel's, none on others.
    """
    if is_intel() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    needed = ("_FrameExecStrategy", "_FrameAction", "set_code_exec_strategy")
    if not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and all(hasattr(_frames, name) for name in needed)):
        return False  # another torch
    x, weight, out = (torch.ones(size, dtype=torch.float32, device="cpu") for size in _TIMED)
    with torch.no_grad():
        best = best_times(
            {_mm_out: lambda: _mm_out(x, weight.mT, out=out), _by_onednn: lambda: _by_onednn(x, weight, None)}
        )
    return best[_by_onednn] < CLEAR * best[_mm_out]


_TIMED: Final = ((ROWS, WIDTH), (WIDTH, WIDTH), (ROWS, WIDTH))


def best_times(products: Mapping[Name, Callable[[], Any]]) -> dict[Name, float]:
    """Return the seconds of each product in its fastest round.

    They are taken in turns, so that a busy machine decides as an idle one, until one is `SLOW` times as slow as the
    first.
    """
    best = dict.fromkeys(products, math.inf)
    for done in range(ROUNDS + 1):
        for name, product in products.items():
            start = time.perf_counter()
            product()
            if done:  # the first product chooses its code
                best[name] = min(best[name], time.perf_counter() - start)
        if done >= FEWEST and max(best.values()) > SLOW * next(iter(best.values())):
            break
    return best


# ---------------------------------------------------------------------------------------------------------------
# products into memory that is there: torch has no kernel for these that can be replaced


def linear_into(out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Write ``input @ weight.T + bias`` to ``out``: ``[rows, in]``, ``[out, in]``, ``[out]`` and ``[rows, out]``."""
    if fits(input, weight.mT) and (bias is None or _is_bias(bias)):
        _write(out, input, weight.mT, bias)
    elif bias is None:
        _mm_out(input, weight.mT, out=out)
    else:
        _addmm_out(bias, input, weight.mT, out=out)


def add_linear(out: Tensor, input: Tensor, weight: Tensor) -> None:
    """Add ``input @ weight.T`` to ``out``: ``[rows, in]``, ``[out, in]`` and ``[rows, out]``."""
    recorded = torch.is_grad_enabled() and (out.requires_grad or input.requires_grad or weight.requires_grad)
    if out.dtype == torch.float32 and not recorded and fits(input, weight.mT):
        out += _product(input, weight.mT, None)
    else:
        out.addmm_(input, weight.mT)


def fits(left: Tensor, right: Tensor) -> bool:
    """Return whether ``left @ right`` is oneDNN's: inside of `faster`, large, float32, of matrices on a processor.

    Cost: 1 us.
    """
    return (
        _thread.depth > 0
        and left.dtype == right.dtype == torch.float32
        and left.ndim == right.ndim == 2
        and len(left) >= SIZES[0]
        and left.numel() * right.shape[1] >= WORTH
        and left.shape[1] == len(right)
        and left.device.type == right.device.type == "cpu"
        and left.layout == right.layout == torch.strided
        and _is_matrix(right)
    )


def _is_matrix(values: Tensor) -> bool:
    """Whether rows, or columns, follow each other in memory."""
    (rows, columns), (down, right) = values.shape, values.stride()
    return (right == 1 and down >= columns) or (down == 1 and right >= rows)


def _is_bias(bias: Tensor) -> bool:
    return bias.dtype == torch.float32 and bias.ndim == 1 and bias.is_contiguous()  # oneDNN ignores its stride


# ---------------------------------------------------------------------------------------------------------------
# kernels


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """``aten::mm`` of a processor."""
    if fits(left, right):
        return _product(left, right, None)
    out: Tensor = _mm_out(left, right, out=_room(left, right))
    return out


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``aten::addmm`` of a processor."""
    if beta == alpha == 1 and fits(left, right) and _is_bias(bias) and len(bias) == right.shape[1]:
        return _product(left, right, bias)
    out: Tensor = _addmm_out(bias, left, right, beta=beta, alpha=alpha, out=_room(left, right))
    return out


def _room(left: Tensor, right: Tensor) -> Tensor:
    """Room for a product; torch refuses what is none."""
    return left.new_empty((left.shape[0], right.shape[1]) if left.ndim == right.ndim == 2 else 0)


@functools.cache
def _install() -> torch.library.Library:
    """Give torch these kernels, until the process ends; only those of `mm` and `addmm` that return a new tensor."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verrid")
        library.impl("mm", _mm, "CPU")
        library.impl("addmm", _addmm, "CPU")
    # Below them there is nothing to compile, if the model is compiled in parts: neither these frames nor those inside.
    as_they_are = _frames._FrameExecStrategy(_frames._FrameAction.SKIP, _frames._FrameAction.SKIP)
    for kernel in (_mm, _addmm):
        _frames.set_code_exec_strategy(kernel.__code__, as_they_are)
    return library


def _product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """The product, split along the dimension in which batches differ.

    In a layer's derivative by its weight, ``gradient.T @ input``, that is the inner one, over which is summed.
    """
    if left.stride(0) == 1 and left.stride(1) >= len(left) and bias is None:
        return _over_rows(left.mT, right)
    rows = len(left)
    if (size := _size(rows, FILLED)) >= rows:
        return _by_onednn(_block(left, 0, size), right.mT, bias)[:rows]
    out = left.new_empty(rows, right.shape[1])
    _write(out, left, right, bias)
    return out


def _write(out: Tensor, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    """Write a product, blocks of rows by oneDNN and those that are left over by torch."""
    rest, least = 0, max(SIZES[0], math.ceil(WORTH / right.numel()))
    for start, size in _blocks(len(left), least, FILLED):
        rest = start + size
        part = out[start:rest]
        part.copy_(_by_onednn(_block(left, start, size), right.mT, bias)[: len(part)])
    if rest < len(left):
        more = {"out": out[rest:]}
        _mm_out(left[rest:], right, **more) if bias is None else _addmm_out(bias, left[rest:], right, **more)


def _over_rows(left: Tensor, right: Tensor) -> Tensor:
    """``left.T @ right``, a sum over the rows of both, of which each block is a product."""
    (_, rest), *others = _blocks(len(right), FILLED_SUM // 2, FILLED_SUM)
    total = _by_onednn(_block(left, 0, rest).mT, _block(right, 0, rest).mT, None)
    for start, size in others:
        total += _by_onednn(_block(left, start, size).mT, _block(right, start, size).mT, None)
        rest = start + size
    return total.addmm_(left[rest:].mT, right[rest:]) if rest < len(right) else total


def _blocks(rows: int, least: int, filled: int) -> Iterator[tuple[int, int]]:
    """Yield where blocks begin and their sizes; after the first, fewer rows than `least` are left over."""
    start = 0
    while start == 0 or rows - start >= least:
        size = _size(rows - start, filled)
        yield start, size
        start += size


def _size(rows: int, filled: int) -> int:
    """Return the rows of the first block of a product of so many, of which some may be zeros."""
    above = bisect.bisect_left(SIZES, rows)
    if above < len(SIZES) and SIZES[above] - rows <= filled:
        return SIZES[above]
    return SIZES[above - 1]


def _block(values: Tensor, start: int, size: int) -> Tensor:
    """So many rows of a matrix, of zeros after its last."""
    rows = values[start : start + size]
    return rows if len(rows) == size else torch.constant_pad_nd(rows, (0, 0, 0, size - len(rows)))


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight.T + bias``; the bias lies in one piece."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return out

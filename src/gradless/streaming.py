"""Serve perturbed weights to a forward pass without ever writing the weights.

While a `Serving` is active, every torch function that is handed a tuned parameter gets, in its place, a scratch
tensor ``p + scale * z`` made in one sweep just before and reused right after. The weights are only read: they are
bit-identical after a probe whatever their dtype, an interrupted forward cannot damage them, and the extra memory is
the largest leaf, not a copy of the model. It is a `torch.overrides.TorchFunctionMode`, so it needs no knowledge of
modules: tied weights, adapters and norms that read a weight in unusual ways are served like any other.

Two functions read few rows of a large parameter, so they are given only those: an embedding lookup, and indexing by a
vector of rows (``weight[rows]``, as the label head does).

What reaches a parameter below the level of torch functions (a scripted module, say) cannot be served. `Survey` finds
such reads during the first forward; those leaves are perturbed in place and restored from a copy, exact as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gradless.gradients import Leaf, Mixture, combine

# Functions that have read their weight completely when they return, and are worth a reused buffer.
CONSUMING = frozenset((F.linear, F.conv1d, F.layer_norm, F.rms_norm, torch.addmm, torch.mul, torch.Tensor.mul))
# Answers about a tensor that do not depend on its values.
METADATA = frozenset(
    (
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous"),
        *("element_size", "is_floating_point", "is_complex", "is_signed", "get_device", "data_ptr"),
        *("untyped_storage", "has_names", "is_inference", "requires_grad_", "register_hook", "retain_grad"),
        *("__len__", "__hash__", "__repr__", "__format__"),
    )
)


class Serving(TorchFunctionMode):
    """One point theta + scale * mixture of weight space, served to forwards inside a ``with`` block.

    Args:
        leaves: tuned leaves by ``id(parameter)``.
        in_place: ids of the leaves to perturb in place instead.
        mixture: directions to add.
        scale: factor, e.g. +eps or -eps; or one for each parameter group.
        rounding: key of the stochastic rounding of 16-bit leaves. To nearest, a weight whose spacing is above 2 eps
            would not be perturbed at all (the ones of a norm in bfloat16, say), and yet be updated: noise.
        pool: scratch buffers, kept by the caller between servings.
        update: use the update amplitudes of the leaves instead of the probe amplitudes.
    """

    def __init__(
        self,
        leaves: Mapping[int, Leaf],
        in_place: frozenset[int],
        mixture: Mixture,
        scale: float | tuple[float, ...],
        *,
        rounding: int,
        pool: Pool,
        update: bool = False,
    ) -> None:
        super().__init__()
        self.leaves = {key: leaf for key, leaf in leaves.items() if key not in in_place}
        self.exposed = [leaf for key, leaf in leaves.items() if key in in_place]
        self.mixture = mixture
        self.scale = scale
        self.rounding = rounding
        self.served: set[int] = set()
        self.update = update
        self.pool = pool
        self.survey: Survey | None = None

    def __enter__(self) -> Serving:
        self.backups = [leaf.param.detach().clone() for leaf in self.exposed]
        try:
            for leaf in self.exposed:
                self._perturb(leaf.param.detach(), leaf)
            self._drop_casts()
            super().__enter__()
        except BaseException:  # an interrupt between two leaves, too
            self._restore()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._restore()

    def _restore(self) -> None:
        """Put the leaves that were perturbed in place back."""
        for leaf, backup in zip(self.exposed, self.backups, strict=True):
            leaf.param.detach().copy_(backup)
        self._drop_casts()

    def _drop_casts(self) -> None:
        """Autocast keeps casts of weights, which do not follow a change in place."""
        if self.exposed:
            torch.clear_autocast_cache()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call ``func`` with every tuned parameter among its arguments replaced."""
        kwargs = kwargs or {}
        if not any(map(self._is_tuned, args)) and not any(map(self._is_tuned, kwargs.values())):
            return func(*args, **kwargs)
        if func.__name__ in METADATA:
            return func(*args, **kwargs)
        if func.__name__ == "__get__":  # an attribute: only .data, .T and the like depend on the values
            plain = func(*args, **kwargs)
            if not isinstance(plain, Tensor):
                return plain
        with self.survey.paused() if self.survey else contextlib.nullcontext():
            rows = self._rows(func, args, kwargs)
            if rows is None:
                taken: list[Tensor] | None = [] if func in CONSUMING else None
                args = tuple(self._serve(a, taken) for a in args)
                kwargs = {key: self._serve(a, taken) for key, a in kwargs.items()}
        if rows is not None:
            return rows
        try:
            return func(*args, **kwargs)
        finally:
            self.pool.give(taken or ())

    def _is_tuned(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(id(item) in self.leaves for item in value)
        return id(value) in self.leaves

    def _serve(self, value: Any, taken: list[Tensor] | None) -> Any:
        """The perturbed counterpart of an argument; from the pool when ``taken`` is there to note it."""
        if isinstance(value, (list, tuple)):
            served = [self._serve(item, taken) for item in value]
            return type(value)(served) if type(value) in (list, tuple) else value
        leaf = self.leaves.get(id(value))
        if leaf is None:
            return value
        if taken is None:
            return self._perturb(torch.empty_like(leaf.param.detach()), leaf)
        buffer = self.pool.take(leaf.param)
        taken.append(buffer)
        return self._perturb(buffer[: leaf.param.numel()].view(leaf.param.shape), leaf)

    def _rows(self, func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        """The result of ``func`` if it only reads some rows of a tuned parameter, else None."""
        if func is F.embedding and not kwargs.get("max_norm"):
            ids, weight = [*args, kwargs.get("input"), kwargs.get("weight")][:2]
        elif func is torch.embedding or (func is Tensor.__getitem__ and _is_index(args[1])):
            weight, ids = args[:2]
        else:
            return None
        leaf = self.leaves.get(id(weight))
        if leaf is None:
            return None
        rows, inverse = self._checked(func, *torch.unique(ids, return_inverse=True), size=leaf.param.shape[0])
        out = torch.empty((len(rows), *leaf.param.shape[1:]), dtype=leaf.param.dtype, device=leaf.param.device)
        return self._perturb(out, leaf, rows)[inverse]

    @staticmethod
    def _checked(func: Callable, rows: Tensor, inverse: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
        """Sorted rows within a leaf of ``size`` rows; the kernels trust them. Indexing may count from the end."""
        if func is Tensor.__getitem__:
            rows = torch.where(rows < 0, rows + size, rows)
        if rows.device.type == "cpu" and rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise IndexError(f"row {int(rows.max())} or {int(rows.min())} is out of range for a weight of {size} rows")
        return rows, inverse

    def _perturb(self, out: Tensor, leaf: Leaf, rows: Tensor | None = None) -> Tensor:
        """Write the served values of ``leaf`` (or of some of its rows) to ``out``."""
        self.served.add(id(leaf.param))
        amplitude = leaf.update if self.update else leaf.probe
        scale = self.scale[leaf.group] if isinstance(self.scale, tuple) else self.scale
        return combine(out, leaf, self.mixture, amplitude=amplitude, scale=scale, rounding=self.rounding, rows=rows)


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


class Pool:
    """Scratch buffers that outlive a forward; in use together are at most the parameters of one function call."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def take(self, like: Tensor) -> Tensor:
        """A flat buffer with room for ``like``, of its dtype and device."""
        same = [b for b in self.free if b.dtype == like.dtype and b.device == like.device]
        fits = [b for b in same if b.numel() >= like.numel()]
        if not fits:
            # A larger buffer replaces the smaller ones: the pool never holds more than was needed at once.
            self.free = [b for b in self.free if b.dtype != like.dtype or b.device != like.device]
            return torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        best = min(fits, key=Tensor.numel)
        self.free = [b for b in self.free if b is not best]
        return best

    def give(self, buffers: Iterable[Tensor]) -> None:
        """Return buffers."""
        self.free.extend(buffers)


class Survey(TorchDispatchMode):
    """Find tuned parameters that a forward reads below the level of torch functions."""

    def __init__(self, leaves: Mapping[int, Leaf]) -> None:
        super().__init__()
        self.owners: dict[int, set[int]] = {}  # several parameters may be views of one buffer
        for key, leaf in leaves.items():
            self.owners.setdefault(leaf.param.untyped_storage().data_ptr(), set()).add(key)
        self.direct: set[int] = set()
        self.quiet = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what gradless itself reads."""
        self.quiet += 1
        try:
            yield
        finally:
            self.quiet -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note every tensor argument that shares memory with a tuned parameter."""
        if not self.quiet:
            for value in torch.utils._pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.layout == torch.strided and value.numel():
                    self.direct |= self.owners.get(value.untyped_storage().data_ptr(), set())
        return func(*args, **(kwargs or {}))


def read_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """``weight[rows]``: named, because indexing by a vector is what a `Serving` answers row by row."""
    return weight[rows]

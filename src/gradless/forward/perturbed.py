"""Forwards at perturbed weights, without ever writing the weights.

While a `PerturbedWeights` is active, every torch function that is handed a tuned parameter gets, in its place, a
scratch tensor ``p + scale * z`` made in one sweep just before and reused right after. The weights are only read: they
are bit-identical after a probe whatever their dtype, an interrupted forward cannot damage them, and the extra memory is
the largest leaf, not a copy of the model. Torch functions tell of the tensors that they take
(`gradless.forward.interception`), so it needs no knowledge of modules: tied weights, adapters and norms that read a
weight in unusual ways are perturbed like any other, and functions that read no tuned weight run as ever.

Two functions read few rows of a large parameter, so they are given only those: an embedding lookup, and indexing by a
vector of rows (``weight[rows]``, as the label head does).

What reaches a parameter below the level of torch functions (a scripted module, say, or a kernel that is handed its
address) cannot be replaced. `ReadSurvey` finds such reads during the first forward; those leaves are perturbed in place
and restored from a copy, exact as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradless import kernels
from gradless.forward import transforms
from gradless.forward.autodiff import METADATA
from gradless.forward.batched import SMALL, BatchedForward
from gradless.forward.deferred import Deferred
from gradless.forward.interception import Interception, attention_through, own_reads
from gradless.forward.low_rank import LowRankLinear
from gradless.forward.points import Points, Visit, branch, branch_many, empty_copies
from gradless.forward.read_order import ReadOrder
from gradless.forward.read_survey import ADDRESSES, ReadSurvey
from gradless.forward.scratch import Buffer, Copies, Pool
from gradless.gradients import Leaf
from gradless.kernels import products
from gradless.storage.upcast import UpcastParameter, upcast, values_dtype, wide_parts

# Functions that have read their weight completely when they return, and are worth a reused buffer. While gradients are
# recorded (a closure may differentiate the model by its input) none has: autograd keeps the weight for the backward.
CONSUMING = frozenset((F.linear, F.conv1d, F.layer_norm, F.rms_norm, torch.addmm, torch.mul, torch.Tensor.mul))


class PerturbedWeights:
    """Inside a ``with`` block, torch functions read tuned parameters as they are at some points of weight space.

    Args:
        leaves: tuned leaves by ``id(parameter)``.
        points: where the weights are read; several points need ``batched``.
        batched: the hidden dimension of several points; None: a plain forward at a single point.
        in_place: ids of the leaves to perturb in place instead.
        pool: scratch buffers, kept by the caller between forwards.
        deferred: pending updates, written to the leaves that are visited whole.
        low_rank: factors of low-rank directions, kept by the caller between forwards.
        order: the order in which forwards read leaves, kept by the caller between forwards.

    Memory: the largest leaf at every point.
    """

    def __init__(
        self,
        leaves: Mapping[int, Leaf],
        points: Points,
        *,
        batched: BatchedForward | None = None,
        in_place: frozenset[int] = frozenset(),
        pool: Pool | None = None,
        deferred: Deferred | None = None,
        low_rank: LowRankLinear | None = None,
        order: ReadOrder | None = None,
    ) -> None:
        self.leaves = {key: leaf for key, leaf in leaves.items() if key not in in_place}
        self.in_place = in_place
        self.exposed = [leaf for key, leaf in leaves.items() if key in in_place]
        self.points = points
        self.batched = batched
        self.pool = pool or Pool()
        self.deferred = deferred or Deferred(())
        self.low_rank = low_rank or LowRankLinear(self.deferred)
        self.order = order or ReadOrder()
        self.ahead: dict[int, Copies] = {}  # made before the forward reads them
        self.served: set[int] = set()
        self.small: dict[int, Tensor] = {}  # the copies of small leaves
        self.lent: list[Tensor] = []  # buffers of the pool that hold these
        self.kept: dict[int, Copies] | None = None  # inside of `copies_kept`
        self.survey: ReadSurvey | None = None
        self.active = contextlib.ExitStack()

    def __enter__(self) -> PerturbedWeights:
        self.order.begin()
        self.deferred.flush(self.exposed)
        with torch.profiler.record_function("gradless.sweep"):
            self.backups = [leaf.param.detach().clone() for leaf in self.exposed]
        try:
            with self._unwatched():
                self._prefetch()
            for leaf in self.exposed:
                copy = torch.empty_like(leaf.param.detach(), memory_format=torch.contiguous_format)
                self._branch_many([(leaf, copy.unsqueeze(0))])
                leaf.param.detach().copy_(copy)
            self._drop_casts()
            self.active.enter_context(Interception((leaf.param for leaf in self.leaves.values()), self.serve))
            if self.batched is not None:
                self.active.enter_context(attention_through(self.batched.attention))
            self.active.callback(_active.reset, _active.set(self))
        except BaseException:  # an interrupt between two leaves, too
            self.active.close()
            self._restore()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.active.close()
        self.pool.give({id(copies.buffer): copies.buffer.flat for copies in self.ahead.values()}.values())
        self.ahead.clear()
        self.pool.give(self.lent)
        self.lent = []
        self._restore()

    def _prefetch(self) -> None:
        """Make the copies of small leaves and low-rank factors now, all in a row.

        Between two large matrix products every call starts with cold caches: 0.5 ms for a norm's weight, ten times what
        a call takes here, and all small leaves share one.
        """
        small = [(key, leaf) for key, leaf in self.leaves.items() if leaf.param.numel() <= SMALL]
        params = [leaf.param for _, leaf in small if kernels.launched(leaf.param.device)]
        self.lent, room = self.pool.take_many(len(self.points), params)  # in every forward at the same place
        self.small = {
            key: room[key] if key in room else empty_copies(len(self.points), leaf.param) for key, leaf in small
        }
        self._branch_many([(leaf, self.small[key]) for key, leaf in small])
        self.low_rank.prefetch(self.leaves.values(), self.points)

    def _restore(self) -> None:
        """Put the leaves that were perturbed in place back."""
        with torch.profiler.record_function("gradless.sweep"):
            for leaf, backup in zip(self.exposed, self.backups, strict=True):
                leaf.param.detach().copy_(backup)
        self._drop_casts()

    def _drop_casts(self) -> None:
        """Autocast keeps casts of weights, which do not follow a change in place."""
        if self.exposed:
            torch.clear_autocast_cache()

    def serve(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``func`` with every tuned parameter among its arguments replaced."""
        if func.__name__ in METADATA:
            if self.survey is not None and func.__name__ in ADDRESSES:
                self.survey.addressed(args[0])
            return func(*args, **kwargs)
        if func.__name__ == "__get__":  # an attribute: only .data, .T and the like depend on the values
            with self._unwatched():
                plain = func(*args, **kwargs)
            if not isinstance(plain, Tensor):
                return values_dtype(args[0]) if isinstance(plain, torch.dtype) else plain
        whole = transforms.beyond(self._level())  # the closure has entered a transform, for which nothing is short
        with self._unwatched():
            result = None if whole else self._rows(func, args, kwargs)
            result = self._linear(func, args, kwargs) if result is None and not whole else result
            if result is None:
                reused = func in CONSUMING and not (whole or self.batched or torch.is_grad_enabled())
                borrowed: list[Copies] | None = [] if reused else None
                args = tuple(self._serve(a, borrowed) for a in args)
                kwargs = {key: self._serve(a, borrowed) for key, a in kwargs.items()}
        if result is not None:
            return result
        try:
            return func(*args, **kwargs)
        finally:
            for copies in borrowed or ():
                self._return(copies)

    def _level(self) -> int:
        """Of the vmap over points; 0 without."""
        return 0 if self.batched is None else self.batched.level

    def _unwatched(self) -> AbstractContextManager[None]:
        """Inside, reads of parameters are gradless's own: not perturbed, and not counted in the survey."""
        return self.survey.paused() if self.survey else own_reads()

    def _serve(self, value: Any, borrowed: list[Copies] | None) -> Any:
        """The perturbed counterpart of an argument; from the pool, and added to ``borrowed``, if that is a list."""
        if isinstance(value, (list, tuple)):
            served = [self._serve(item, borrowed) for item in value]
            return type(value)(served) if type(value) in (list, tuple) else value
        leaf = self.leaves.get(id(value))
        if leaf is None:
            return value
        self.served.add(id(leaf.param))
        if borrowed is None or id(value) in self.small:
            return self._present(self._whole(leaf))
        borrowed.append(self._borrow(leaf))
        return self._present(borrowed[-1].values)

    def _present(self, copies: Tensor) -> Tensor:
        """``[C, ...]`` as the forward sees it: a value with a hidden dimension, or the single value."""
        return copies[0] if self.batched is None else self.batched.wrap(copies)

    def _linear(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The result of a linear layer whose copies can share work, else None."""
        if func is F.linear:
            x, weight, bias = _linear_arguments(*args, **kwargs)
        elif func is torch.addmm and len(args) == 3 and not kwargs:
            bias, x, weight = args
        else:
            return None
        leaf = self.leaves.get(id(weight))
        if leaf is None or (self.batched is None and leaf.stream.kind != "low_rank"):
            return None
        source = self.leaves.get(id(x))
        if source is not None:  # a tuned parameter goes into a tuned layer
            self.served.add(id(x))
            x = self._present(self._whole(source))
        if func is F.linear and leaf.stream.kind == "low_rank":
            factors = self.low_rank.factors(leaf, self.points)
            if factors is not None:
                return self._low_rank_linear(leaf, x, self._offset(bias), *factors)
        if self.batched is None:
            return None
        offset = self._offset(bias)
        self.served.add(id(weight))
        if id(weight) in self.small or torch.is_grad_enabled():
            copies = self._whole(leaf)
            return self.batched.linear(x, copies if func is F.linear else copies.mT, offset)
        borrowed = self._borrow(leaf)
        try:
            return self.batched.linear(x, borrowed.values if func is F.linear else borrowed.values.mT, offset)
        finally:
            self._return(borrowed)

    def _offset(self, bias: Tensor | None) -> Tensor | None:
        """A bias for every copy ``[C, out]``, or for all ``[out]``."""
        leaf = self.leaves.get(id(bias))
        if leaf is None:
            return bias if bias is None else upcast(bias)
        self.served.add(id(bias))
        return self._whole(leaf)

    def _low_rank_linear(self, leaf: Leaf, x: Tensor, offset: Tensor | None, right: Tensor, left: Tensor) -> Tensor:
        """X W^T + (x V) A_c^T + b_c; the large product adds to the thin one, so the output is written once."""
        self.served.add(id(leaf.param))
        rows, shape = (
            self.batched.rows(x) if self.batched else (x.reshape(1, x.shape[:-1].numel(), x.shape[-1]), x.shape[:-1])
        )
        out = torch.matmul(rows @ right.to(rows.dtype), left.mT.to(rows.dtype))  # [C, rows, out]
        if offset is not None:
            out += offset.unsqueeze(1) if offset.ndim == 2 else offset
        flat = out.view(-1, out.shape[-1])
        kind = out.dtype  # under autocast not that of the weights
        x = rows.reshape(-1, rows.shape[-1]).to(kind)
        if isinstance(leaf.param, UpcastParameter) and not torch.is_grad_enabled():  # their scratch is used again
            for start, values in wide_parts(leaf.param.detach()):
                products.add_linear(flat[:, start : start + len(values)], x, values)
        else:
            products.add_linear(flat, x, upcast(leaf.param).detach().to(kind))
        return self._present(out.view(len(out), *shape, out.shape[-1]))

    def _rows(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
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
        size = leaf.param.shape[0]
        if func is Tensor.__getitem__:  # indexing may count from the end
            ids = torch.where(ids < 0, ids + size, ids)
        self.served.add(id(weight))
        ids, each = (ids, False) if self.batched is None else self.batched.unwrap(ids)  # each copy has rows of its own
        if kernels.on_accelerator(ids.device):  # different rows cannot be counted without waiting for the device
            rows = ids.reshape(-1).long()
            rows.new_empty(1).expand(size).index_select(0, rows)  # torch's own check of the range, made on the device
            copies = self._branch(leaf, rows)
            copies = copies.view(len(copies), *ids.shape, *copies.shape[2:])
            return self._present(copies[range(len(copies)), range(len(copies))] if each else copies)
        rows, inverse = torch.unique(ids, return_inverse=True)
        if rows.numel() and not 0 <= int(rows[0]) <= int(rows[-1]) < size:
            raise IndexError(f"row {int(rows[-1])} or {int(rows[0])} is out of range for a weight of {size} rows")
        copies = self._branch(leaf, rows)
        own = torch.stack([copy[i] for copy, i in zip(copies, inverse, strict=True)]) if each else copies[:, inverse]
        return self._present(own)

    def _whole(self, leaf: Leaf) -> Tensor:
        """The leaf at every point, ``[C, *shape]``."""
        key = id(leaf.param)
        if key in self.small or self.kept is None or torch.is_grad_enabled():  # what is kept is used again in the end
            return self.small[key] if key in self.small else self._branch(leaf)
        if key not in self.kept:
            values = self._branch(leaf)
            self.kept[key] = Copies(values, Buffer(values.view(-1), 1))
        return self.kept[key].values

    def _borrow(self, leaf: Leaf) -> Copies:
        """The leaf at every point in a buffer of the pool, made together with the leaves that follow; see `_return`."""
        key, count = id(leaf.param), len(self.points)
        if self.kept is not None and key in self.kept:
            return self.kept[key]
        self.order.read(key)
        if key not in self.ahead:
            row = self.order.row(leaf, self.leaves, self.ahead)
            sizes = [count * one.param.numel() for one in row]
            kind = values_dtype(leaf.param)
            buffer = Buffer(self.pool.take(sum(sizes), kind, leaf.param.device), len(row))
            parts = buffer.flat[: sum(sizes)].split(sizes)
            values = [part.view(count, *one.param.shape) for one, part in zip(row, parts, strict=True)]
            self._branch_many(list(zip(row, values, strict=True)))
            self.ahead.update((id(one.param), Copies(copies, buffer)) for one, copies in zip(row, values, strict=True))
        copies = self.ahead.pop(key)
        if self.kept is not None:
            self.kept[key] = copies
        return copies

    def _return(self, copies: Copies) -> None:
        """The forward has read these; a buffer goes back to the pool when all in it are read."""
        if self.kept is not None:  # `copies_kept` returns them
            return
        copies.buffer.left -= 1
        if not copies.buffer.left:
            self.pool.give((copies.buffer.flat,))

    def _branch(self, leaf: Leaf, rows: Tensor | None = None) -> Tensor:
        """The leaf (or some of its rows) at every point, ``[C, ...]``; a whole one is brought up to date on the way."""
        with transforms.left(self._level()):
            into = empty_copies(len(self.points), leaf.param, None if rows is None else len(rows))
            if rows is None:
                self._branch_many([(leaf, into)])
            else:
                update = self.deferred.pending_rows(leaf, len(rows))
                branch(into, leaf, self.points, update=update, keep=False, rows=rows)
        return into

    def _branch_many(self, leaves: Sequence[tuple[Leaf, Tensor]]) -> None:
        """Leaves at every point, into ``[C, *shape]`` each; they are brought up to date on the way."""
        visits = [Visit(into, leaf, self.deferred.pending(leaf)) for leaf, into in leaves]
        with self.deferred.writing(*[visit.leaf for visit in visits if visit.update.decays.size]):
            branch_many(visits, self.points)


def _linear_arguments(input: Any, weight: Any, bias: Any = None) -> tuple[Any, Any, Any]:
    """The arguments of `torch.nn.functional.linear`, however they are passed."""
    return input, weight, bias


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


_active: ContextVar[PerturbedWeights | None] = ContextVar("_active", default=None)


@contextlib.contextmanager
def copies_kept() -> Iterator[None]:
    """Inside, a perturbed forward makes the copies of a weight once, however many functions read it.

    Without one, nothing changes. Memory: all that is read inside, at every point.
    """
    weights = _active.get()
    if weights is None or weights.kept is not None:
        yield
        return
    weights.kept = {}
    try:
        yield
    finally:
        kept, weights.kept = weights.kept, None
        for copies in kept.values():
            weights._return(copies)


def read_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """``weight[rows]``: named, because indexing by a vector is what a `PerturbedWeights` answers row by row."""
    return weight[rows]

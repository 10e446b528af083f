"""A frozen weight that is bytes and a decoder: torch functions get its values, nobody keeps them.

`StoredWeight` stands in a module where a float parameter would. A linear layer that takes it decodes it into a scratch
buffer which the next layer uses again; an embedding lookup and indexing by a vector of rows decode these rows only;
every other function gets a decoded copy of its own. So the memory of a model is that of its bytes, which may be pages
of a mapped file, and of its largest weight once.

Modules stay those of transformers, so adapters, batched forwards (`torch.func.vmap`) and hooks work as on float
weights, and a batched forward for several points decodes each weight once.
"""

from __future__ import annotations

import abc
import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor

SCRATCH_BYTES: Final = 1 << 28
"""Weights whose values take more are multiplied a part at a time."""


class Store(Protocol):
    """The bytes of a weight and how to read them. Rows are along the first dimension; values have ``dtype``."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    nbytes: int
    """What is stored, in bytes."""
    format: str
    """Name of the stored form, such as bfloat16 or Q4_K, for a hash: of a float type that of torch, so that a weight
    has one hash however it is kept."""

    def decode(self, out: Tensor, start: int = 0) -> None:
        """Write the rows from ``start`` on into ``out``, ``[rows, *shape[1:]]``, contiguous, of ``dtype``."""

    def decode_rows(self, out: Tensor, rows: Tensor) -> None:
        """Write some rows, by their numbers (int64, ``[rows]``, in any order, each at least 0), into ``out``."""

    def stored(self) -> Iterator[memoryview]:
        """Yield the bytes in their order, for a hash."""


class ChangingStore(abc.ABC):
    """A store some of whose numbers are tuned parameters (`gradless.storage.tuned`); it has what `Store` has, too."""

    @abc.abstractmethod
    def now(self, rows: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the parameters (rows of them) as functions see them: perhaps perturbed, with a dimension of vmap."""

    @abc.abstractmethod
    def at(self, fields: tuple[Tensor, ...], rows: Tensor | None = None) -> Store:
        """Return the store of the weight (of some rows of it) where the parameters have these values."""


class StoredWeight(Tensor):
    """A parameter whose values are decoded wherever a torch function takes it. It cannot be tuned or written.

    Args:
        store: its bytes.

    Cost: one decoding for each function that takes it; twice where a gradient flows through a linear layer.

    Memory: `SCRATCH_BYTES` a thread for all linear layers together; other functions get a copy of their own.
    """

    store: Store

    @staticmethod
    def __new__(cls, store: Store) -> StoredWeight:
        """Return the stand-in for a weight that is stored so."""
        make: Any = Tensor._make_wrapper_subclass
        weight: StoredWeight = make(cls, store.shape, dtype=store.dtype, device=store.device, requires_grad=False)
        weight.store = store
        return weight

    def __init__(self, store: Store) -> None:
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say what is stored; values are not read."""
        store = self.store
        return f"StoredWeight({type(store).__name__}, shape={tuple(store.shape)}, dtype={store.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer a torch function that takes such a weight."""
        kwargs = kwargs or {}
        if func in _ITSELF:
            return _again(args[0], func, args, kwargs)
        attribute = getattr(func, "__self__", None) if func.__name__ == "__get__" else None
        if func.__name__ in _FACTS or (attribute is not None and attribute not in _VALUES):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if attribute is not None:
            return args[0] if attribute is _DATA else func(decoded(args[0]))
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in (F.embedding, torch.embedding) and not kwargs.get("max_norm"):
            ids, weight = [*args, kwargs.get("input"), kwargs.get("weight")][:2]
            ids, weight = (ids, weight) if func is F.embedding else (weight, ids)
            if isinstance(weight, StoredWeight):
                return _rows(weight, ids)
        if func is Tensor.__getitem__ and isinstance(args[0], StoredWeight):
            if isinstance(args[1], Tensor) and args[1].dtype == torch.int64:
                return _rows(args[0], args[1], from_end=True)
            if isinstance(args[1], list) and all(isinstance(one, int) for one in args[1]):
                return _rows(args[0], torch.tensor(args[1], dtype=torch.int64), from_end=True)
        return func(*_with_values(args), **_with_values(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as the mode's
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer what reaches the weight below the level of torch functions."""
        if func is torch.ops.aten.detach.default:
            return StoredWeight(args[0].store)
        return func(*_with_values(args), **_with_values(kwargs or {}))


_DATA: Final = cast(Any, Tensor).data
_VALUES: Final = (_DATA, *(cast(Any, getattr(Tensor, name)) for name in ("T", "mT", "H", "mH", "real")))
_ITSELF: Final = frozenset(
    (Tensor.detach, Tensor.requires_grad_, Tensor.__deepcopy__, Tensor.contiguous, Tensor.to, Tensor.cpu, Tensor.float)
)
"""Functions that return the same weight, where they change neither its type nor its device."""
_FACTS: Final = frozenset(
    (
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous"),
        *("element_size", "is_floating_point", "is_complex", "is_signed", "get_device", "has_names", "is_inference"),
        *("__len__", "__hash__", "__repr__", "__format__", "__set__", "register_hook", "untyped_storage", "data_ptr"),
        "_has_compatible_shallow_copy_type",  # of modules that are moved or converted
    )
)


def decoded(weight: Tensor) -> Tensor:
    """Return the values of a weight in a tensor of their own; a float tensor itself, if it is one.

    Memory: the values.
    """
    if not isinstance(weight, StoredWeight):
        return weight
    store = weight.store
    if isinstance(store, ChangingStore):
        return _at_present(lambda then, _: _values(then), store, None)
    return _values(store)


def decode_parameters(model: nn.Module) -> int:
    """Put float parameters, which can be written and saved, where a model has stored weights; return how many.

    Shared parameters stay shared. Memory: the values.
    """
    values: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(weight, StoredWeight):
                if id(weight) not in values:
                    values[id(weight)] = nn.Parameter(decoded(weight), requires_grad=False)
                setattr(module, name, values[id(weight)])
    return len(values)


def _values(store: Store) -> Tensor:
    """All rows of a store, in a tensor of their own."""
    out = torch.empty(store.shape, dtype=store.dtype, device=store.device)
    store.decode(out)
    return out


def _again(weight: StoredWeight, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The weight itself, or what a function of `_ITSELF` makes of its values."""
    if func is Tensor.requires_grad_:
        if (args[1:] or (kwargs.get("requires_grad", True),))[0]:
            raise RuntimeError("a stored weight cannot be tuned: it has codes, not values")
        return weight
    if func is Tensor.float and weight.dtype != torch.float32:
        return decoded(weight).float()
    if func is Tensor.to:
        target = torch.empty(0, dtype=weight.dtype, device=weight.device).to(*args[1:], **kwargs)
        same = target.dtype == weight.dtype and target.device == weight.device
        return weight if same else decoded(weight).to(*args[1:], **kwargs)
    if func is Tensor.cpu and weight.device.type != "cpu":
        return decoded(weight).cpu()
    if func is Tensor.__deepcopy__ and isinstance(weight.store, ChangingStore):
        return StoredWeight(copy.deepcopy(weight.store, args[1]))
    return StoredWeight(weight.store) if func in (Tensor.detach, Tensor.__deepcopy__) else weight


def _with_values(value: Any) -> Any:
    """Arguments with values in place of stored weights."""
    if isinstance(value, StoredWeight):
        return decoded(value)
    if isinstance(value, dict):
        return {key: _with_values(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_values(one) for one in value)
    return value


def _rows(weight: StoredWeight, ids: Tensor, from_end: bool = False) -> Tensor:
    """``weight[ids]``, each row decoded once."""
    size, width = weight.shape[0], weight.shape[1:]
    if from_end:
        ids = torch.where(ids < 0, ids + size, ids)
    rows = torch.unique(_of_all_copies(ids))
    if rows.numel() and not 0 <= int(rows[0]) <= int(rows[-1]) < size:
        raise IndexError(f"row {int(rows[-1])} or {int(rows[0])} is out of range for a weight of {size} rows")
    positions = torch.searchsorted(rows, ids)
    if isinstance(weight.store, ChangingStore):
        return _at_present(lambda then, _: _values(then), weight.store, None, rows)[positions]
    out = torch.empty((len(rows), *width), dtype=weight.dtype, device=weight.device)
    weight.store.decode_rows(out, rows)
    return out[positions]


def _of_all_copies(ids: Tensor) -> Tensor:
    """The tensor behind one with hidden dimensions of `torch.func.vmap`: a population reads tokens of its own."""
    while is_batchedtensor(ids):
        ids = get_unwrapped(ids)
    return ids


# ---------------------------------------------------------------------------------------------------------------
# linear layers


class _Scratch(threading.local):
    """The buffers of a thread that weights are decoded into."""

    buffers: dict[tuple[torch.dtype, torch.device], Tensor]

    def __init__(self) -> None:
        self.buffers = {}


_scratch = _Scratch()


def take_scratch(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return room for values that are read before this thread takes the next ones; what it held is lost."""
    size, key, buffers = shape.numel(), (dtype, device), _scratch.buffers
    if key not in buffers or buffers[key].numel() < size:
        buffers.pop(key, None)  # before the larger one is made
        buffers[key] = torch.empty(size, dtype=dtype, device=device)
    return buffers[key][:size].view(shape)


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Tensor:
    """`torch.nn.functional.linear` with a stored weight."""
    if not isinstance(weight, StoredWeight):  # the input or the bias is one
        return F.linear(_with_values(input), weight, _with_values(bias))
    input, bias = _with_values(input), _with_values(bias)
    if isinstance(weight.store, ChangingStore):
        product = _at_present(lambda then, x: _product(x, then, None), weight.store, input)
        return product if bias is None else product + bias
    if torch.is_grad_enabled() and input.requires_grad:
        out: Tensor = _LinearOfStored.apply(input, weight.store)  # type: ignore[no-untyped-call]
        return out if bias is None else out + bias
    return _product(input, weight.store, bias)


def _product(input: Tensor, store: Store, bias: Tensor | None) -> Tensor:
    return product_of_parts(input, _parts(store), bias)


def product_of_parts(input: Tensor, parts: Iterable[tuple[int, Tensor]], bias: Tensor | None) -> Tensor:
    """``input @ weight.T + bias`` for a weight that comes as consecutive rows, each part with the row it begins at."""
    outs = [
        F.linear(input, values, None if bias is None else bias[start : start + len(values)]) for start, values in parts
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)


def _parts(store: Store) -> Iterator[tuple[int, Tensor]]:
    """The values of consecutive rows, each part until the next one is asked for, and where they begin."""
    total = store.shape[0]
    row = max(1, store.shape[1:].numel() * store.dtype.itemsize)
    count = max(1, min(total, SCRATCH_BYTES // row))
    for start in range(0, total, count):
        rows = torch.Size((min(count, total - start), *store.shape[1:]))
        values = take_scratch(rows, store.dtype, store.device)
        store.decode(values, start)
        yield start, values


class _LinearOfStored(torch.autograd.Function):
    """The product without a bias, whose backward pass decodes the weight again instead of keeping its values."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, store: Store) -> Tensor:
        ctx.store = store
        return _product(input, store, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        total = None
        for start, values in _parts(ctx.store):
            share = gradient[..., start : start + len(values)] @ values
            total = share if total is None else total + share
        return total, None


# ---------------------------------------------------------------------------------------------------------------
# weights whose parameters change


Compute = Callable[[Store, Any], Tensor]


def _at_present(compute: Compute, store: ChangingStore, other: Tensor | None, rows: Tensor | None = None) -> Tensor:
    """What is computed from a store, and from another tensor, where its parameters are as functions see them.

    In a batched forward that is done for one copy after the other, so that decoded values are in memory once.
    """
    outcome: Tensor = _AtPresent.apply(compute, store, rows, other, *store.now(rows))  # type: ignore[no-untyped-call]
    return outcome


class _AtPresent(torch.autograd.Function):
    """Not a function to differentiate, but one with a rule for `torch.func.vmap`."""

    @staticmethod
    def forward(
        compute: Compute, store: ChangingStore, rows: Tensor | None, other: Tensor | None, *fields: Tensor
    ) -> Tensor:
        return compute(store.at(fields, rows), other)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        compute: Compute,
        store: ChangingStore,
        rows: Tensor | None,
        other: Tensor | None,
        *fields: Tensor,
    ) -> tuple[Tensor, int]:
        def of(copy: int, values: Tensor | None, dim: int | None) -> Any:
            return values if dim is None or values is None else values.select(dim, copy)

        outs = []
        for number in range(info.batch_size):
            own = tuple(of(number, values, dim) for values, dim in zip(fields, in_dims[4:], strict=True))
            outs.append(compute(store.at(own, of(number, rows, in_dims[2])), of(number, other, in_dims[3])))
        return torch.stack(outs), 0

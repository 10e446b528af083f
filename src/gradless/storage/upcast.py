"""16-bit parameters that a model's forward reads in float32: half the memory, and none of the slow 16-bit products.

A processor without instructions for bfloat16 multiplies 16-bit matrices several times slower than float32 ones. An
`UpcastParameter` is a 16-bit parameter like any other, for optimizers, files and hashes. Only inside the forward of a
model that `prepare` was given do torch functions see it in float32: a linear layer through a scratch buffer which the
next layer uses again, an embedding lookup and indexing as the rows that they read, every other function as a cast copy.
Activations are therefore float32 as well. Outside of such a forward the model is the plain 16-bit one.

Pages of a mapped checkpoint stay pages of the file, since the parameter's own memory is only read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradless.storage.stored import SCRATCH_BYTES, product_of_parts, take_scratch

HALVES: Final = (torch.bfloat16, torch.float16)
WIDE: Final = torch.float32


class _Thread(threading.local):
    """How many forwards of prepared models this thread is in, one inside the other."""

    forwards = 0


_thread = _Thread()


class UpcastParameter(nn.Parameter):
    """A bfloat16 or float16 parameter that torch functions read in float32 inside a model's forward; see `prepare`.

    Cost: one cast for each function that reads it, 0.3 ns an element; twice where a gradient flows through a linear
    layer.

    Memory: `gradless.storage.stored.SCRATCH_BYTES` a thread for all linear layers together.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer a torch function that takes such a parameter."""
        kwargs = kwargs or {}
        name = func.__name__
        if not _thread.forwards or name in _RAW or (name.endswith("_") and not name.endswith("__")):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name == "__get__":
            return _attribute(func, args[0])
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func in _SELECTING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs).to(WIDE)
        return func(*_widened(args), **_widened(kwargs))


_RAW: Final = frozenset(
    (
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "data_ptr"),
        *("is_floating_point", "is_complex", "is_signed", "get_device", "has_names", "is_inference", "retain_grad"),
        *("__len__", "__hash__", "__repr__", "__format__", "__set__", "register_hook", "untyped_storage"),
    )
)
_VALUES: Final = tuple(cast(Any, getattr(Tensor, name)) for name in ("data", "T", "mT", "H", "mH", "real"))
_DTYPE: Final = cast(Any, Tensor).dtype
_SELECTING: Final = (F.embedding, torch.embedding, Tensor.__getitem__, torch.index_select, Tensor.index_select)
"""Functions that return some elements: these are cast."""


def values_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which a forward reads a parameter: float32 of an `UpcastParameter`, else its own."""
    return WIDE if isinstance(parameter, UpcastParameter) else parameter.dtype


def upcast(value: Tensor) -> Tensor:
    """Return an `UpcastParameter` in float32, a copy; any other tensor itself."""
    if not isinstance(value, UpcastParameter):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.to(WIDE)


def prepare(model: nn.Module) -> None:
    """Let a model's forward read its 16-bit parameters in float32; the model and its parameters are changed in place.

    Parameters stay the same objects, so tied ones stay tied. Preparing a model again, after adapters were added to it,
    takes the new parameters in.
    """
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.dtype in HALVES:
            parameter.__class__ = UpcastParameter
    for buffer in model.buffers():
        if buffer.dtype in HALVES:
            buffer.data = buffer.data.to(WIDE)
    if not isinstance(model.__dict__.get("forward"), _Forward):
        model.forward = _Forward(model)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Inside, torch functions of this thread read every `UpcastParameter` in float32."""
    _thread.forwards += 1
    try:
        # `torch.autograd.grad` takes parameters: a block that it runs again is inside of a torch function.
        with torch._C._EnableTorchFunction():
            yield
    finally:
        _thread.forwards -= 1


def is_reading() -> bool:
    """Return whether torch functions of this thread read 16-bit parameters in float32."""
    return _thread.forwards > 0


class _Forward:
    """The forward of a model, `reading` its parameters. It can be copied with the model, as a closure could not."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.earlier = model.__dict__.get("forward")  # accelerate puts one there, too
        self.__wrapped__ = self.earlier or type(model).forward.__get__(model)  # whose signature transformers reads

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with reading():
            return (self.earlier or type(self.model).forward.__get__(self.model))(*args, **kwargs)


def _attribute(func: Callable[..., Any], parameter: Tensor) -> Any:
    """An attribute of a parameter; a forward sees the dtype of the values."""
    attribute = getattr(func, "__self__", None)
    if attribute is _DTYPE:
        return values_dtype(parameter)
    if attribute in _VALUES:
        return func(upcast(parameter))
    with torch._C.DisableTorchFunctionSubclass():
        return cast(Any, func)(parameter)


def _widened(value: Any) -> Any:
    """Arguments with float32 copies in place of parameters."""
    if isinstance(value, UpcastParameter):
        return upcast(value)
    if isinstance(value, dict):
        return {key: _widened(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_widened(one) for one in value)
    return value


# ---------------------------------------------------------------------------------------------------------------
# linear layers


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, the weight cast into scratch."""
    input, bias = _widened(input), _widened(bias)
    if not isinstance(weight, UpcastParameter):
        return F.linear(input, weight, bias)
    with torch._C.DisableTorchFunctionSubclass():
        own = weight.detach()
        if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
            out: Tensor = _Linear.apply(input, weight)  # type: ignore[no-untyped-call]
            return out if bias is None else out + bias
    return product_of_parts(input, wide_parts(own), bias)


def wide_parts(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield a 16-bit matrix in float32, consecutive rows at a time, and where they begin.

    The values are scratch of this thread: each part is valid until the next one is asked for.
    """
    total = len(weight)
    count = max(1, min(total, SCRATCH_BYTES // max(1, WIDE.itemsize * weight[:1].numel())))
    for start in range(0, total, count):
        rows = weight[start : start + count]
        values = take_scratch(rows.shape, WIDE, weight.device)
        yield start, values.copy_(rows)


class _Linear(torch.autograd.Function):
    """The product without a bias, whose backward pass casts the weight again instead of keeping its values."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input if weight.requires_grad else None, weight)
        return product_of_parts(input, wide_parts(weight.detach()), None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        input, weight = ctx.saved_tensors  # which runs a checkpointed block again, whose functions read in float32
        with torch._C.DisableTorchFunctionSubclass():
            total, own = None, None
            if ctx.needs_input_grad[0]:
                for start, values in wide_parts(weight.detach()):
                    share = gradient[..., start : start + len(values)] @ values
                    total = share if total is None else total + share
            if ctx.needs_input_grad[1]:
                own = (gradient.flatten(0, -2).T @ input.flatten(0, -2)).to(weight.dtype)
            return total, own

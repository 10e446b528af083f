"""Torch functions that take certain tensors enter Python; all others run as if nothing were there.

A `TorchFunctionMode` sees every function of a forward, several thousand for a small language model, of which a tenth
take a tuned weight. Here the *tensors* tell: inside a ``with`` block, each is an instance of a subclass of its class
whose ``__torch_function__`` is the handler. Torch looks at the classes of a function's arguments in any case, so
functions without such a tensor cost what they always cost. Identity, ``isinstance``, names of classes and storage stay.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional

# Called with a function that takes an intercepted tensor, its arguments and its keyword arguments.
Handler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
own_reads: Any = torch._C.DisableTorchFunctionSubclass  # a block in which no function is intercepted by its arguments

_LOCK = threading.RLock()
_live: list[Interception] = []  # of all threads


class _Thread(threading.local):
    """What the functions of a thread meet first."""

    innermost: Interception | None = None
    attention: Callable[..., Tensor] | None = None


_thread = _Thread()


class Interception:
    """Inside a ``with`` block, functions of this thread that take one of the tensors go to the handler.

    The handler itself runs outside of the block: what it calls with such a tensor goes to the block around this one,
    then to torch. Functions of other threads go to torch. Blocks nest and overlap between threads.

    Args:
        tensors: parameters, or other strided tensors.
        handler: what is called in place of torch's function.

    Cost: 1.7 us a tensor to enter and leave; 3 us for each function that takes one (one thread of an Intel Xeon).
    """

    def __init__(self, tensors: Iterable[Tensor], handler: Handler) -> None:
        self.tensors = {id(tensor): tensor for tensor in tensors}
        self.handler = handler
        self.outer: Interception | None = None

    def __enter__(self) -> Interception:
        try:
            with _LOCK:
                _live.append(self)
                for tensor in self.tensors.values():
                    if not is_intercepted(tensor):
                        tensor.__class__ = _subclass(type(tensor))
            self.outer, _thread.innermost = _thread.innermost, self
        except BaseException:  # an interrupt between two tensors, too
            self._release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            _thread.innermost = self.outer
            self._release()
        except BaseException:  # an interrupt; releasing twice is releasing once
            _thread.innermost = self.outer
            self._release()
            raise

    def _release(self) -> None:
        """Give every tensor that no other block holds its class back."""
        with _LOCK:
            _live[:] = [other for other in _live if other is not self]
            for key, tensor in self.tensors.items():
                plain = getattr(type(tensor), "_intercepted_from", None)
                if plain is not None and not any(key in other.tensors for other in _live):
                    tensor.__class__ = plain


def is_intercepted(value: object) -> bool:
    """Whether torch functions that take this value go to a handler."""
    return hasattr(type(value), "_intercepted_from")


@functools.cache
def _subclass(plain: type[Tensor]) -> type[Tensor]:
    """A subclass that differs from a tensor's class in who answers torch functions."""

    def new(cls: type[Tensor], *args: Any, **kwargs: Any) -> Any:
        """A new tensor (a copy, say) is nobody's parameter."""
        return plain(*args, **kwargs)

    named_alike = {name: getattr(plain, name) for name in ("__qualname__", "__module__", "__doc__")}
    members = {"_intercepted_from": plain, "__new__": new, "__torch_function__": classmethod(_dispatch)}
    metaclass: Any = type(plain)
    subclass: type[Tensor] = metaclass(plain.__name__, (plain,), named_alike | members)
    return subclass


def _dispatch(
    cls: type[Tensor], func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
) -> Any:
    """The ``__torch_function__`` of intercepted tensors."""
    innermost = _thread.innermost
    if innermost is None:
        plain: Any = getattr(cls, "_intercepted_from", Parameter)
        if plain not in (Tensor, Parameter):  # a class with answers of its own
            return plain.__torch_function__(func, types, args, kwargs)
        with own_reads():
            return func(*args, **(kwargs or {}))
    _thread.innermost = innermost.outer
    try:
        return innermost.handler(func, args, kwargs or {})
    finally:
        _thread.innermost = innermost


_attending: list[object] = []  # blocks of all threads


@contextlib.contextmanager
def attention_through(handler: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, `torch.nn.functional.scaled_dot_product_attention` is the handler, for this thread.

    Where the handler itself attends, or an argument is intercepted, it is torch's own. So it is for code that imported
    torch's function by its name.
    """
    outer, block = _thread.attention, object()
    try:
        with _LOCK:
            _attending.append(block)
            if functional.scaled_dot_product_attention is not _attention:
                _attention.__wrapped__ = functional.scaled_dot_product_attention
                functional.scaled_dot_product_attention = _attention
        _thread.attention = handler
        yield
    finally:
        _thread.attention = outer
        with _LOCK:
            _attending[:] = [other for other in _attending if other is not block]
            if not _attending and functional.scaled_dot_product_attention is _attention:
                functional.scaled_dot_product_attention = _attention.__wrapped__


@functools.wraps(functional.scaled_dot_product_attention)
def _attention(*args: Any, **kwargs: Any) -> Tensor:
    handler, own = _thread.attention, _attention.__wrapped__
    if handler is None or any(map(is_intercepted, (*args, *kwargs.values()))):
        return own(*args, **kwargs)
    _thread.attention = None
    try:
        return handler(*args, **kwargs)
    finally:
        _thread.attention = handler

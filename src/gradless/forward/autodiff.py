"""Exact derivatives of a closure: gradients by backpropagation, slopes along random directions by forward mode.

Forward-only training needs neither; they are what it is compared with, and what its estimates converge to.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from gradless.errors import BadInput
from gradless.gradients import Leaf, Mixture, combine
from gradless.ranks import BATCH, Ranks
from gradless.storage.upcast import upcast

own_reads: Any = torch._C.DisableTorchFunctionSubclass

DATA: Any = Tensor.data
# Answers about a tensor that do not depend on its values.
METADATA = frozenset(
    (
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous"),
        *("element_size", "is_floating_point", "is_complex", "is_signed", "get_device", "data_ptr"),
        *("untyped_storage", "has_names", "is_inference", "requires_grad_", "register_hook", "retain_grad"),
        *("__len__", "__hash__", "__repr__", "__format__"),
    )
)


def gradients(
    closure: Callable[[], Any], leaves: Sequence[Leaf], frozen: Sequence[Leaf]
) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradient for each of ``leaves``, by name; ``frozen`` ones need none, which saves activations.

    Leaves that the closure does not read are left out; masked elements have gradient zero.

    Raises:
        BadInput: the closure's value does not depend on the leaves, or has no gradient.
    """
    with torch.enable_grad(), _without_grad(frozen):
        loss = closure()
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise BadInput(
                "the closure's loss has no gradient: return a differentiable tensor (no .item(), no torch.no_grad()), "
                "or use a forward-only method"
            )
        try:
            grads = torch.autograd.grad(loss, [leaf.param for leaf in leaves], allow_unused=True)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise BadInput("the closure calls .backward(): leave it out and return the loss") from None
    if all(g is None for g in grads):
        raise BadInput(
            "the closure's loss does not depend on the parameters: give the optimizer those of the model that the "
            "closure calls, after any .to() or wrapping"
        )
    masked = (
        g if g is None or leaf.mask is None else torch.where(leaf.mask, g, 0.0)
        for leaf, g in zip(leaves, grads, strict=True)
    )
    return float(loss.detach()), {leaf.name: g for leaf, g in zip(leaves, masked, strict=True) if g is not None}


def all_finite(tensors: Mapping[str, Tensor] | None) -> bool:
    """Whether stored gradients are finite; their sums tell, at a quarter of the cost of a look at each element."""
    return all(math.isfinite(float(g.sum(dtype=torch.float32))) for g in (tensors or {}).values())


@contextlib.contextmanager
def _without_grad(leaves: Sequence[Leaf]) -> Iterator[None]:
    for leaf in leaves:
        leaf.param.requires_grad_(False)
    try:
        yield
    finally:
        for leaf in leaves:
            leaf.param.requires_grad_(True)


def slopes(closure: Callable[[], Any], leaves: Sequence[Leaf], keys: Sequence[int]) -> tuple[list[float], list[float]]:
    """The loss at theta, found anew with every key, and its derivatives along z(key), scaled by the probe amplitude.

    Each key takes one forward with tangents. A tangent of a weight exists while it is read and not longer. What reads a
    weight below the level of torch functions (a scripted module) does not see its tangent.

    Raises:
        BadInput: something in the closure has no forward derivative.
    """
    with warnings.catch_warnings():  # torch's own, when it first loads its forward derivatives
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")
    losses, derivatives = [], []
    for key in keys:
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), Tangents(leaves, key):
            try:
                value = closure()
            except (NotImplementedError, RuntimeError) as error:
                if "forward" not in str(error):
                    raise
                reason = str(error).splitlines()[0]
                raise BadInput(f"the closure has no forward derivative ({reason}): use mezo instead") from None
            if not isinstance(value, Tensor):
                raise BadInput("the closure returns a number, which has no slope: return the loss as a tensor")
            primal, tangent = forward_ad.unpack_dual(value)
        losses.append(float(primal))
        derivatives.append(0.0 if tangent is None else float(tangent))
    return losses, derivatives


class Tangents(TorchFunctionMode):
    """Give every tuned parameter that a torch function reads the tangent z(key) while it does."""

    def __init__(self, leaves: Sequence[Leaf], key: int) -> None:
        super().__init__()
        self.leaves = {id(leaf.param): leaf for leaf in leaves if leaf.reached(key)}
        self.mixture = Mixture((key,), (1.0,))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` with every tuned parameter among its arguments made dual."""
        kwargs = kwargs or {}
        if func.__name__ in METADATA or not self._reads((args, kwargs)):
            return func(*args, **kwargs)
        if func.__name__ == "__get__":  # an attribute: only .data, .T and the like depend on the values
            plain = func(*args, **kwargs)
            if not isinstance(plain, Tensor):
                return plain
            if getattr(func, "__self__", None) is DATA:
                return self._dual(self.leaves[id(args[0])])
            return func(*self._served(args))
        rows = self._rows(func, args, kwargs)
        return func(*self._served(args), **self._served(kwargs)) if rows is None else rows

    def _rows(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The result of ``func`` if it only reads some rows of a tuned parameter, else None."""
        if func is F.embedding:
            ids, weight = [*args, kwargs.get("input"), kwargs.get("weight")][:2]
        elif func is Tensor.__getitem__:
            weight, ids = args
        else:
            return None
        leaf = self.leaves.get(id(weight))
        if leaf is None or not isinstance(ids, Tensor) or ids.dtype != torch.int64:
            return None
        rows, inverse = torch.unique(ids % len(weight), return_inverse=True)
        return self._dual(leaf, rows)[inverse]

    def _reads(self, value: Any) -> bool:
        return any(id(item) in self.leaves for item in torch.utils._pytree.tree_leaves(value))

    def _served(self, value: Any) -> Any:
        def one(item: Any) -> Any:
            leaf = self.leaves.get(id(item))
            return item if leaf is None else self._dual(leaf)

        return torch.utils._pytree.tree_map(one, value)

    def _dual(self, leaf: Leaf, rows: Tensor | None = None) -> Tensor:
        """A leaf, or some rows of it, with its tangent."""
        with own_reads():
            p = upcast(leaf.param).detach()
            z = torch.empty_like(p if rows is None else p[rows], memory_format=torch.contiguous_format)
            combine(z, leaf._replace(param=p, mask=None), self.mixture, amplitude=leaf.probe, decay=0.0, rows=rows)
        if leaf.mask is not None:
            z = torch.where(leaf.mask if rows is None else leaf.mask[rows], z, 0.0)
        dual: Tensor = forward_ad.make_dual(p if rows is None else p[rows], z)
        return dual


def over_ranks(
    ranks: Ranks | None, keys: Sequence[int], losses: list[float], slopes: list[float], *, every: bool
) -> tuple[float, list[float], list[float]]:
    """The loss at theta, losses there and slopes, of all ranks: means over shards, or each slope from one rank.

    Args:
        ranks: who computed; None: this process alone.
        keys: all directions.
        losses: the loss at theta, as this rank computed it along each of its directions.
        slopes: along these.
        every: whether the losses of all directions are wanted, to compare them.
    """
    loss = sum(value / len(losses) for value in losses)
    if ranks is not None and ranks.split == BATCH:
        loss, *slopes = ranks.mean([loss, *slopes])
        losses = ranks.mean(losses) if every else losses
    elif ranks is not None:
        slopes = ranks.spread(keys, lambda _: slopes)
        losses = ranks.spread(keys if every else keys[:1], lambda items: losses[: len(items)])
        loss = losses[0]
    return loss, losses, slopes

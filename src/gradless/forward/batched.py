"""One forward through the model for several copies of its weights.

The closure runs once under `torch.func.vmap`, over a dimension that its author does not see: values that depend on a
perturbed weight carry one slice for each copy, all others are shared. So every closure can be batched that uses
out-of-place torch functions, whatever its model, masks or loss; and what the copies share (all base weights under LoRA)
is read once for all of them.

How a value gets and loses the hidden dimension is the only thing here that torch does not document: `wrap` and
`unwrap` use what `vmap` itself is made of, unchanged since torch 2.0. The documented way, an autograd function with a
``vmap`` rule, costs 0.4 ms a call in a cold cache (126 calls a forward of Gemma 3 270M: 3 % of a step).
"""

from __future__ import annotations

import contextlib
import linecache
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradless.errors import BadInput
from gradless.forward.random_state import RandomState
from gradless.kernels import products

_add_batch_dim: Any = None  # in another torch, batched forwards are not available
with contextlib.suppress(ImportError):
    from torch._C._functorch import _add_batch_dim, get_unwrapped, is_batchedtensor, maybe_get_bdim, maybe_get_level

SMALL = 1 << 16  # elements of a weight that are not worth a call of torch's for every copy

LONGEST = 60  # characters of a call in a message


class CannotBatch(Exception):
    """The closure does something that torch cannot batch over copies of the weights."""


class BatchedForward:
    """One evaluation of a closure for ``copies`` of the weights, which it sees through a hidden dimension."""

    def __init__(self, copies: int) -> None:
        self.copies = copies
        self.level = 0

    def losses(self, closure: Callable[[], Any]) -> Tensor:
        """The closure's value for every copy: ``[copies]``, or ``[copies, B]`` if it has a loss for each row.

        A closure with a method ``side_by_side(call)`` is asked for the losses of all copies itself, ``[copies, B]``; it
        has `call` for its forwards. One that looks at what a forward gives (that generates text, say) needs this.

        Raises:
            CannotBatch: the closure returns no tensor, or torch is too old or too new.
            RuntimeError: from torch, for what cannot be batched.
        """
        together = getattr(closure, "side_by_side", None)
        if together is not None:
            losses: Tensor = together(self.call)
            return losses

        def one() -> Tensor:
            loss = closure()
            if not isinstance(loss, Tensor):
                raise CannotBatch(f"the closure returns a {type(loss).__name__}, not a tensor")
            return loss

        return torch.as_tensor(self.call(one))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns for every copy of the weights, copies along the first dimension.

        Args:
            function: takes and returns tensors, or lists, tuples and dictionaries of tensors.
            arguments: with a first dimension ``[copies, ...]``, of which the function sees one slice.

        Raises:
            CannotBatch: torch is too old or too new.
            RuntimeError: from torch, for what cannot be batched.
        """
        if _add_batch_dim is None:
            raise CannotBatch("this release of torch does not offer what batching needs")

        def one(index: Tensor, *own: Any) -> Any:
            self.level = maybe_get_level(index)
            return function(*own)

        # What is drawn is the same for all copies, as it is in forwards one after the other.
        return torch.func.vmap(one, randomness="same")(torch.arange(self.copies), *arguments)

    def wrap(self, physical: Tensor) -> Tensor:
        """``[copies, ...]`` as a value with a hidden dimension."""
        wrapped: Tensor = _add_batch_dim(physical, 0, self.level)
        return wrapped

    def unwrap(self, value: Tensor) -> tuple[Tensor, bool]:
        """The tensor behind a value, hidden dimension first, and whether it has one.

        Raises:
            CannotBatch: it has that of another, nested vmap.
        """
        if not is_batchedtensor(value):
            return value, False
        if maybe_get_level(value) != self.level:
            raise CannotBatch("a vmap inside the closure reads tuned weights")
        physical, dim = get_unwrapped(value), maybe_get_bdim(value)
        return (physical.movedim(dim, 0) if dim else physical), True

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        """`torch.nn.functional.scaled_dot_product_attention` with copies folded into the batch.

        vmap has no rule for its fast kernels and would call them once for each copy. With dropout that is what happens
        here, since all copies drop the same.
        """
        inputs = (query, key, value)
        if query.ndim != 4 or not any(is_batchedtensor(x) for x in (*inputs, attn_mask) if x is not None):
            return functional.scaled_dot_product_attention(*inputs, attn_mask, dropout_p, *rest, **more)
        (q, q_has), (k, k_has), (v, v_has) = map(self.unwrap, inputs)
        mask, mask_has = (None, False) if attn_mask is None else self.unwrap(attn_mask)
        batch = max(x.shape[1 if has else 0] for x, has in ((q, q_has), (k, k_has), (v, v_has)))

        def fold(x: Tensor, has: bool) -> Tensor:
            wide = x if has else x.expand(self.copies, *x.shape)
            return (wide if wide.shape[1] == batch else wide.expand(-1, batch, *wide.shape[2:])).flatten(0, 1)

        if mask is not None and (mask_has or (mask.ndim == q.ndim - q_has and mask.shape[0] > 1)):
            mask = fold(mask, mask_has)
        folded = (fold(q, q_has), fold(k, k_has), fold(v, v_has))
        if not dropout_p:
            out = functional.scaled_dot_product_attention(*folded, mask, 0.0, *rest, **more)
            return self.wrap(out.unflatten(0, (self.copies, batch)))
        start = RandomState.capture([] if q.device.type == "cpu" else [q.device])
        copies = []
        for copy in range(self.copies):
            rows = slice(copy * batch, (copy + 1) * batch)
            each = mask[rows] if mask is not None and mask.ndim == folded[0].ndim and len(mask) > 1 else mask
            start.restore()
            a, b, c = (x[rows] for x in folded)
            copies.append(functional.scaled_dot_product_attention(a, b, c, each, dropout_p, *rest, **more))
        return self.wrap(torch.stack(copies))

    def linear(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """X W_c^T + b_c for every copy: weights ``[copies, out, in]``, bias ``[copies, out]`` or ``[out]``."""
        flat, shape = self.rows(x)
        small = weights[0].numel() <= SMALL and not products.fits(flat[0], weights[0].mT)
        if small or torch.is_grad_enabled():  # autograd refuses out=
            out = torch.bmm(flat, weights.mT)
            out = out if bias is None else out.add_(bias.unsqueeze(1) if bias.ndim == 2 else bias)
            return self.wrap(out.view(self.copies, *shape, out.shape[-1]))
        out = flat.new_empty(self.copies, flat.shape[1], weights.shape[1])
        biases = bias.unbind() if bias is not None and bias.ndim == 2 else [bias] * self.copies
        # One call for all views of a kind.
        for into, rows, weight, own in zip(out.unbind(), flat.unbind(), weights.unbind(), biases, strict=True):
            products.linear_into(into, rows, weight, own)
        return self.wrap(out.view(self.copies, *shape, out.shape[-1]))

    def rows(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The input of a linear layer as rows, ``[copies, rows, in]``, and the logical shape without its last dim."""
        physical, has = self.unwrap(x)
        wide = physical if has else physical.expand(self.copies, *physical.shape)
        _, *shape, columns = wide.shape
        return wide.reshape(self.copies, math.prod(shape), columns), shape


def unbatchable(error: BaseException) -> str:
    """What a closure called that could not be batched, where, and what torch says of it.

    A `gradless.BadInput` is a sentence for those whose closure fails; what torch said comes before it.
    """
    if isinstance(error, BadInput) and error.__context__ is not None:
        error = error.__context__
    call = "" if isinstance(error, CannotBatch) else called_at(error)
    reason = first_line(error)
    return f"{call}, cannot be batched over copies of the weights: {reason}" if call else reason


def first_line(error: BaseException) -> str:
    """The first line of an error's text; the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def called_at(error: BaseException) -> str:
    """The call outside of torch and of these modules in which an error came, and its file and line; else empty."""
    outside = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parent}/")
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(outside)]
    if not frames:
        return ""
    last = frames[-1]
    lines = [linecache.getline(last.filename, number) for number in range(last.lineno or 0, (last.end_lineno or 0) + 1)]
    called = "".join(lines).encode()[last.colno or 0 :]
    if len(lines) == 1 and last.end_colno is not None:
        called = called[: last.end_colno - (last.colno or 0)]
    text = " ".join(called.decode(errors="replace").split()) or last.name
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return f"'{text}' in {Path(last.filename).name}, line {last.lineno}"

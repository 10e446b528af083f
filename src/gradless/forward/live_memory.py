"""Memory of tensors while code runs on shapes alone: every operation is seen, none is computed.

On torch's ``meta`` device a tensor has a shape and a type but no data. A `Live` mode notes when the storage of each new
tensor comes and goes, so the peak of a forward, or of a forward and its backward pass, can be read off a model of any
size in a second. The count is exact for what operations return; what a kernel needs inside (a workspace of a matrix
product, say) is not seen. On any other device the mode counts real tensors, by the same rule.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKED = ("aten::_local_scalar_dense", "aten::is_nonzero")


GROUPED = "aten::_grouped_mm"


class NeedsValues(RuntimeError):
    """The code asks for the value of a tensor that has none."""


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made inside a ``with`` block, as long as they are alive.

    The one question about values that is answered on the meta device is a truth: models ask whether a mask masks
    nothing, and in a batch without padding it does not.

    Args:
        known: tensors that are there already and do not count, with everything that shares their memory.

    Attributes:
        now: bytes alive.
        peak: most of them at any moment.

    Example:
        >>> x = torch.empty(1000, device="meta")
        >>> with Live([x]) as live:
        ...     y = (x + 1) * 2
        >>> live.now, live.peak
        (4000, 8000)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        # A reference keeps the address of a storage that is freed from being taken for known.
        self._known = {t.untyped_storage()._cdata: t for t in known}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` and note what it returns."""
        if func._schema.name in ASKED and isinstance(args[0], Tensor) and args[0].is_meta:
            if args[0].dtype is torch.bool:
                return True
            raise NeedsValues(func._schema.name)
        if func._schema.name == GROUPED and args[0].is_meta:
            func = _grouped
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self._note(value)
        return out

    def exclude(self, value: Tensor) -> None:
        """Do not count this tensor's memory, unless it was made inside the block."""
        storage = value.untyped_storage()
        if storage._cdata not in self._alive:
            self._known.setdefault(storage._cdata, value)

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _grouped(left: Tensor, right: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Return the shape of products of groups of rows (experts), for which torch's meta kernel takes bfloat16 alone."""
    groups = [] if offs is None or left.ndim + right.ndim != 4 else [len(offs)]
    batch = [*left.shape[:-2]] if left.ndim == right.ndim == 3 else groups
    return left.new_empty(*batch, left.shape[-2], right.shape[-1])


class FusedAttention(TorchFunctionMode):
    """`torch.nn.functional.scaled_dot_product_attention` with the memory of a fused kernel, on shapes.

    Such a kernel (FlashAttention, Dao et al. 2022, arXiv 2205.14135, and torch's own on CPU and CUDA) never holds the
    L x L scores: it keeps queries, keys, values, the output and one float32 log-sum a query for the backward pass. On
    the meta device torch takes the path that holds them, so this mode answers instead.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer attention, and call everything else."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **kwargs}
        return _Fused.apply(named["query"], named["key"], named["value"], named.get("attn_mask"))  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """Shapes of a fused attention kernel: ``[B, heads, L, D]``, the output laid out as ``[B, L, heads, D]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length = q.shape[:-1]
        out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
        sums = q.new_empty((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(q, k, v, mask, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None

"""What a closure returns: a scalar that says how good the weights are, or a sentence about what came instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from gradless.errors import BadInput

Closure = Callable[[], Tensor | float]
# Share of a loss by which two evaluations of one point may differ: sums in another order, in the parameters' dtype.
TOLERANCE: Final = {torch.float32: 1e-4}
COARSE: Final = 5e-3  # the same in 16 bits, about one spacing of bfloat16


def checked(closure: Callable[[], Any]) -> Closure:
    """The closure, whose result is a tensor of one element or a number.

    Raises:
        BadInput: (when it is called) it returns something else, or calls ``backward``.
    """

    def scalar() -> Tensor | float:
        loss = _called(closure)
        if isinstance(loss, Tensor):
            if loss.numel() != 1 or loss.is_complex():
                kind = "complex numbers" if loss.is_complex() else f"a tensor of shape {list(loss.shape)}"
                raise BadInput(f"the closure returns {kind}: return one real number, such as the mean of the losses")
            return loss.reshape(())
        if isinstance(loss, (int, float, np.generic, np.ndarray)) and np.size(loss) == 1 and np.isrealobj(loss):
            return float(loss)
        if loss is None:
            raise BadInput("the closure returns nothing: end it with 'return loss'")
        attribute = "return its .loss" if hasattr(loss, "loss") else "return the loss, a scalar"
        raise BadInput(f"the closure returns a {type(loss).__name__}: {attribute}")

    return scalar


def checked_rows(closure: Callable[[], Any]) -> Closure:
    """The closure, whose result is a tensor ``[B]`` of real numbers, a loss for every row, or one number ``[]``.

    Raises:
        BadInput: (when it is called) it returns something else, or calls ``backward``.
    """

    def rows() -> Tensor:
        losses = _called(closure)
        if losses is None:
            raise BadInput("the closure returns nothing: end it with 'return losses', one for each row of the batch")
        losses = losses if isinstance(losses, Tensor) else torch.as_tensor(np.asarray(losses, dtype=np.float64))
        if losses.ndim > 1 or not losses.numel() or losses.is_complex():
            kind = "complex numbers" if losses.is_complex() else f"a tensor of shape {list(losses.shape)}"
            raise BadInput(f"the closure returns {kind}: return one real number for each row of the batch, [B]")
        return losses

    return rows


def _called(closure: Callable[[], Any]) -> Any:
    """What the closure returns."""
    try:
        return closure()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise BadInput(
            "the closure calls .backward() or asks for gradients, but none are recorded here: leave that out and "
            "return the loss, or differentiate by an input inside 'with torch.enable_grad()'"
        ) from None


def same(losses: Sequence[float], dtypes: Collection[torch.dtype]) -> bool:
    """Whether losses at one point are equal, to rounding in these types; not if some are not finite.

    Raises:
        BadInput: they are finite and differ.
    """
    low, high = min(losses), max(losses)
    if not all(map(math.isfinite, losses)):
        return False
    tolerance = max(TOLERANCE.get(dtype, COARSE) for dtype in dtypes)
    if high - low > tolerance * max(abs(low), abs(high)):
        raise BadInput(
            f"the closure gives another loss when it is called again at the same weights ({losses[0]:.6g}, then "
            f"{losses[1]:.6g}), so differences of losses would measure that: draw the batch before the step "
            "(batch = next(batches); opt.step(lambda: loss(batch))) and let the closure keep no state or generator "
            "of its own, or pass check=False to train all the same"
        )
    return True


def unread(loss: Tensor | float) -> Tensor | float:
    """A loss to be read later: reading it waits for the device. A copy, since a closure may return its own buffer."""
    return loss.detach().clone() if isinstance(loss, Tensor) else loss


def numbers(losses: Sequence[Tensor | float]) -> list[Any]:
    """Read losses, or lists of losses, all at once where they are of one device."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    if len(tensors) == len(losses) and len({(loss.device, loss.dtype, loss.shape) for loss in tensors}) == 1:
        return list(torch.stack(tensors).tolist())
    return [loss.tolist() if isinstance(loss, Tensor) else float(loss) for loss in losses]

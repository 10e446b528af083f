"""What a closure returns: a scalar that says how good the weights are, or a sentence about what came instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from gradless.errors import BadInput

Closure = Callable[[], Tensor | float]


def checked(closure: Callable[[], Any]) -> Closure:
    """The closure, whose result is a tensor of one element or a number.

    Raises:
        BadInput: (when it is called) it returns something else, or calls ``backward``.
    """

    def scalar() -> Tensor | float:
        try:
            loss = closure()
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise BadInput(
                "the closure calls .backward(), but gradients are not recorded here: leave it out and return the loss"
            ) from None
        if isinstance(loss, Tensor):
            if loss.numel() != 1 or loss.is_complex():
                kind = "complex numbers" if loss.is_complex() else f"a tensor of shape {list(loss.shape)}"
                raise BadInput(f"the closure returns {kind}: return one real number, such as the mean of the losses")
            return loss
        if isinstance(loss, (int, float, np.generic, np.ndarray)) and np.size(loss) == 1 and np.isrealobj(loss):
            return float(loss)
        if loss is None:
            raise BadInput("the closure returns nothing: end it with 'return loss'")
        attribute = "return its .loss" if hasattr(loss, "loss") else "return the loss, a scalar"
        raise BadInput(f"the closure returns a {type(loss).__name__}: {attribute}")

    return scalar

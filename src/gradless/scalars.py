"""Numbers that callers give, in the types that the core computes with; whatever cannot be used has one sentence."""

from __future__ import annotations

import math
import reprlib
from typing import Any

import numpy as np
from torch import Tensor

from gradless.errors import BadInput

SHORT = reprlib.Repr()
SHORT.maxlong = SHORT.maxother = SHORT.maxstring = 40


def real(
    name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> float:
    """Return a finite number as a float; scalars of NumPy and torch are numbers too.

    Args:
        name: for the sentence.
        value: what was given.
        least: the smallest number that is allowed.
        above: a number that it must exceed.
        below: a number that it must not reach.

    Raises:
        BadInput: another type, NaN or infinity, or out of range.

    Example:
        >>> real("eps", np.float32(0.5), above=0)
        0.5
    """
    plain = _plain(value)
    try:
        number = float(plain) if isinstance(plain, (int, float)) and not isinstance(plain, bool) else math.nan
    except OverflowError:
        number = math.inf
    if math.isfinite(number) and least <= number < below and number > above:
        return number
    limits = (("of at least", least), ("above", above), ("below", below))
    bounds = " and ".join(f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit))
    raise BadInput(f"{name} is {_shown(plain)}: give a finite number {bounds}".rstrip())


def whole(name: str, value: Any, *, least: int, most: int) -> int:
    """Return a whole number as an int; ``8.0`` is one.

    Raises:
        BadInput: another type, a fraction, or out of range.

    Example:
        >>> whole("rank", 8.0, least=1, most=32), whole("seed", np.int64(3), least=0, most=9)
        (8, 3)
    """
    plain = _plain(value)
    if isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if isinstance(plain, int) and not isinstance(plain, bool) and least <= plain <= most:
        return plain
    raise BadInput(f"{name} is {_shown(plain)}: give a whole number from {least} to {most}")


def _plain(value: Any) -> Any:
    """Python's number in a scalar of NumPy or torch."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item() if value.size == 1 else value
    if isinstance(value, Tensor) and value.device.type != "meta":
        return value.item() if value.numel() == 1 else value
    return value


def _shown(value: Any) -> str:
    """A value in a sentence: one line, shortened."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    try:
        return " ".join(SHORT.repr(value).split())
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"

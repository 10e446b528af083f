"""Copies of batches: trainers take labels out of them and put arguments in, and every evaluation needs them all."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def fresh(batch: Any) -> Any:
    """Return a copy of a batch, of its own type, that may be changed; tensors and other values are shared.

    Args:
        batch: mappings, lists, tuples (named ones too) and dataclasses, in each other as well. All else is a value.
    """
    if isinstance(batch, tuple):
        values = [fresh(value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    if isinstance(batch, list):
        copied = copy.copy(batch)
        copied[:] = [fresh(value) for value in batch]
        return copied
    if isinstance(batch, Mapping) or (dataclasses.is_dataclass(batch) and not isinstance(batch, type)):
        return _object(batch)
    return batch


def _object(batch: Any) -> Any:
    """A copy of an object, of what it holds as attributes, and of what it holds as items."""
    copied = copy.copy(batch)
    for name, value in list(getattr(copied, "__dict__", {}).items()):
        if not isinstance(value, Tensor):
            copied.__dict__[name] = fresh(value)
    if isinstance(copied, dict):
        for name, value in batch.items():
            dict.__setitem__(copied, name, fresh(value))
    return copied

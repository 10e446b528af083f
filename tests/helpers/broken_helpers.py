"""What broken parts break promises with."""

from __future__ import annotations

import itertools
from typing import Any

import torch

SIZES = itertools.count()


def rolling(value: Any) -> Any:
    """The value, after a throw of the global dice."""
    torch.rand(1)
    return value


def rows(split: str, count: int = 12) -> list[dict[str, Any]]:
    return [{"sentence": f"{split} {i}", "label": i % 2} for i in range(count)]

"""Attributes of one object in place of its class's, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object an attribute of its own inside the block; one that it had of its own comes back afterwards."""
    held = name in vars(owner)
    earlier = vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if held:
            vars(owner)[name] = earlier
        else:
            vars(owner).pop(name, None)

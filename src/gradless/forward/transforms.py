"""Transforms of torch.func that a closure has entered: ``grad``, ``jvp``, ``vmap`` and what is made of them.

Inside of one every tensor that torch makes is a wrapper without memory, which a kernel cannot write. So what gradless
makes for itself is made outside (`left`), and wrapped by torch when the closure's functions take it.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch

_peek: Any = None  # in another torch, transforms of a closure are not known of
with contextlib.suppress(ImportError, AttributeError):
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    _peek = torch._C._functorch.peek_interpreter_stack


def beyond(own: int) -> bool:
    """Return whether a transform is active beyond gradless's own level (of `torch.func.vmap`; 0: none); in 0.1 us."""
    if _peek is None:
        return False
    innermost = _peek()
    return (0 if innermost is None else int(innermost.level())) != own


def left(own: int) -> AbstractContextManager[Any]:
    """Inside, no transform is active, where one was `beyond` gradless's own."""
    return temporarily_clear_interpreter_stack() if beyond(own) else contextlib.nullcontext()

"""What `torch.optim.Optimizer` does for every optimizer, where it needs help to do it for one that keeps more state."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from gradless.errors import BadInput

Hooks = tuple[list[Any], list[Any]]


@contextlib.contextmanager
def hooks_apart(optimizer: torch.optim.Optimizer, kind: str) -> Iterator[Hooks]:
    """Hold back the hooks of ``state_dict`` or ``load_state_dict``, for a caller that calls them around more of it.

    Yields:
        The hooks before and after, in their order.
    """
    names = [f"_optimizer_{kind}_{when}_hooks" for when in ("pre", "post")]
    registered = [getattr(optimizer, name) for name in names]
    for name in names:
        setattr(optimizer, name, OrderedDict())
    try:
        before, after = (list(hooks.values()) for hooks in registered)
        yield before, after
    finally:
        for name, hooks in zip(names, registered, strict=True):
            setattr(optimizer, name, hooks)


def after(optimizer: torch.optim.Optimizer, state: dict[str, Any], hooks: list[Any]) -> dict[str, Any]:
    """The state as hooks leave it: each may change it, or return another one."""
    for hook in hooks:
        changed = hook(optimizer, state)
        state = state if changed is None else changed
    return state


def no_pickle(optimizer: torch.optim.Optimizer) -> BadInput:
    """What to say to those who pickle an optimizer."""
    return BadInput(
        f"{type(optimizer).__name__} holds functions, which no file can: save optimizer.state_dict() and make the "
        "optimizer anew, or keep the run's ledger"
    )


def check_names(ours: list[dict[str, Any]], theirs: Any) -> None:
    """Refuse a state that belongs to other parameters, or to the same ones in another order or other groups.

    Raises:
        BadInput: with the first difference.
    """
    here = [list(group["param_names"]) for group in ours]
    there = [list(group.get("param_names", ())) for group in theirs]
    if here != there:
        known = {name for names in here for name in names}
        other = next((name for names in there for name in names if name not in known), None)
        what = f"'{other}' among them" if other is not None else "in another order or other groups"
        raise BadInput(
            f"this state is of other parameters, {what}: make the optimizer with the groups it was saved from"
        )

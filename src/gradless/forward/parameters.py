"""From named parameters to leaves: what an optimizer may tune, checked once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from gradless import kernels, rng
from gradless.directions import Directions, stream_for
from gradless.errors import BadInput
from gradless.gradients import Leaf


def freeze(
    param_groups: list[dict[str, Any]], directions: Directions, deep: Callable[[str], bool] | None = None
) -> list[Leaf]:
    """The leaves of torch's parameter groups, with the amplitudes and masks that the directions fix.

    Leaves that ``deep`` names have stored gradients: no direction reaches them.

    Raises:
        BadInput: nothing requires grad, or a parameter cannot be tuned.
    """
    named = {
        name: (p, index)
        for index, group in enumerate(param_groups)
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if p.requires_grad
    }
    if not named:
        raise BadInput("no parameter requires grad: there is nothing to tune")
    _check({name: p for name, (p, _) in named.items()})
    active = dict(directions.active(list(named))) if directions.active else {}
    active |= {name: _never for name in named if deep is not None and deep(name)}
    return [
        Leaf(
            name,
            named[name][0],
            rng.leaf_id(name),
            named[name][1],
            directions.draw,
            stream_for(directions, named[name][0]),
            *frozen,
            active=active.get(name),
        )
        for name, frozen in directions.freeze({name: p for name, (p, _) in named.items()}).items()
    ]


def named(params: Iterable[Any]) -> list[Any]:
    """Check that every parameter comes with a name."""
    items = list(params)
    if not items:
        raise BadInput("no parameters given: pass model.named_parameters()")
    for item in items:
        entries = item["params"] if isinstance(item, dict) else [item]
        if isinstance(entries, Tensor) or not all(isinstance(e, tuple) and len(e) == 2 for e in entries):
            raise BadInput(
                "parameters must be named, since names identify their random streams: pass model.named_parameters()"
            )
    return [{**item, "params": list(item["params"])} for item in items] if isinstance(items[0], dict) else items


def _check(params: dict[str, Tensor]) -> None:
    """Refuse leaves that the kernels cannot tune, or that two names would tune twice."""
    spans = []
    for name, p in params.items():
        if p.dtype not in kernels.DTYPES:
            raise BadInput(f"parameter '{name}' is {p.dtype}: convert it to float32, bfloat16 or float16, or freeze it")
        if p.numel() == 0:
            continue
        if p.device.type == "meta":
            raise BadInput(
                f"parameter '{name}' has no data here (it is offloaded, or on the meta device): load the model whole, "
                "on more devices or in 16 bits, or freeze it"
            )
        reach = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True)) + 1
        spans.append((p.data_ptr(), p.data_ptr() + reach * p.element_size(), name))
    spans.sort()
    for (_, end, one), (start, _, other) in itertools.pairwise(spans):
        if start < end:
            raise BadInput(f"'{one}' and '{other}' share memory: tie them as one Parameter, or freeze one")


def _never(key: int) -> bool:
    return False

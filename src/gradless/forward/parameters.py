"""From named parameters to leaves: what an optimizer may tune, checked wherever groups come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradless import kernels, rng
from gradless.directions import Directions, stream_for
from gradless.errors import BadInput, real, unknown
from gradless.gradients import Leaf
from gradless.storage import quantised
from gradless.storage.codes import Codes, is_tuned

Group = dict[str, Any]
KEYS: Final = ("params", "lr", "lr_scale", "weight_decay", "initial_lr", "name", "param_names")
"""What a parameter group may hold; ``initial_lr`` is of torch's schedulers, ``name`` is for the user's own use."""

READS_NONE = (
    "the closure reads none of the tuned parameters: give the optimizer the parameters of the model that the closure "
    "calls, after any .to() or wrapping, and call the model in this thread"
)


def groups(params: Iterable[Any], *, beside: Sequence[Group] = ()) -> list[Group]:
    """Parameter groups, each with its named parameters in a list; what comes without groups is one of them.

    Args:
        params: as `gradless.ZerothOrder` takes them.
        beside: groups of the optimizer that has these names already.

    Raises:
        BadInput: no parameters, parameters without names, names that are no texts or occur twice, an unknown option of
            a group or an impossible value, or all parameters of a quantised model.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> [sorted(group) for group in groups([{"params": layer.named_parameters(), "lr": 0.1}])]
        [['lr', 'param_names', 'params']]
    """
    if isinstance(params, (Tensor, nn.Module, Mapping, str)) or not isinstance(params, Iterable):
        raise BadInput(f"parameters are given as a {type(params).__name__}: pass model.named_parameters()")
    items = list(params)
    if not items:
        raise BadInput("no parameters given: pass model.named_parameters()")
    if not isinstance(items[0], dict):
        items = [{"params": items}]
    checked: list[Group] = []
    for item in items:
        if not isinstance(item, dict):
            raise BadInput("parameter groups and parameters are mixed: put all parameters into groups")
        checked.append(_group(item))
    quantised.check_choice(entry for group in checked for entry in group["params"])
    check_names([name for group in (*beside, *checked) for name in group["param_names"]])
    return checked


def _group(item: Mapping[str, Any]) -> Group:
    """One group, checked by itself."""
    for key in item:
        if key not in KEYS:
            raise BadInput(unknown("option of a parameter group", str(key), KEYS[:4]))
    if "params" not in item:
        raise BadInput("a parameter group has no 'params': give it named parameters")
    entries = item["params"]
    if "param_names" in item and isinstance(entries, list) and all(isinstance(entry, Tensor) for entry in entries):
        entries = list(zip(item["param_names"], entries, strict=False))  # a group of another optimizer
    if isinstance(entries, tuple) and len(entries) == 2 and isinstance(entries[0], str):
        entries = [entries]  # one parameter, as torch takes one tensor
    plain = isinstance(entries, (Tensor, nn.Module, Mapping, set)) or not isinstance(entries, Iterable)
    entries = [] if plain else list(entries)
    if plain or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in entries):
        raise BadInput(
            "parameters must be named, since names identify their random streams: pass model.named_parameters()"
        )
    for name, p in entries:
        if not isinstance(name, str) or not isinstance(p, Tensor):
            raise BadInput(
                f"a parameter is given as ({type(name).__name__}, {type(p).__name__}): give a name and a tensor, as "
                "model.named_parameters() does"
            )
        if not (p.is_leaf or p.retains_grad):
            raise BadInput(f"parameter '{name}' was computed from other tensors: tune those, or a detached copy of it")
    values = {key: value(item[key], key) for key in ("lr", "lr_scale", "weight_decay") if key in item}
    return {**item, **values, "params": entries, "param_names": [name for name, _ in entries]}


def value(number: Any, key: str) -> Any:
    """An option of a group as it is kept: a learning rate in a tensor stays there, for whoever changes it in place.

    Raises:
        BadInput: it is no finite number of at least 0.
    """
    plain = real("the learning rate" if key == "lr" else key, number, least=0.0)
    return number if isinstance(number, Tensor) else plain


def check_names(names: Sequence[str]) -> None:
    """Refuse names that occur twice: both parameters would move along one random stream.

    Raises:
        BadInput: with the way to tell them apart.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(
            f"two parameters are named '{twice}', and names identify random streams: tell models apart by a prefix, as "
            "in [(f'first.{name}', p) for name, p in first.named_parameters()], and give each parameter once"
        )


def signature(param_groups: Sequence[Group]) -> tuple[Any, ...]:
    """What leaves are made of: where it changes, they are made anew. Cost: half a microsecond a parameter."""
    if any(len(group["param_names"]) != len(group["params"]) for group in param_groups):
        raise BadInput("the parameters of a group were changed by hand, without names: use add_param_group")
    return tuple(
        (index, name, id(p), is_tuned(p), p.dtype, p.device, p.numel())
        for index, group in enumerate(param_groups)
        for name, p in zip(group["param_names"], group["params"], strict=True)
    )


class Probes(Protocol):
    """What leaves have to know of an estimator (`gradless.estimators.Estimator`)."""

    @property
    def eps(self) -> float:
        """How far points are from the weights; 0 for derivatives."""

    @property
    def deep(self) -> Callable[[str], bool] | None:
        """Which leaves, by name, have stored gradients."""


def freeze(
    param_groups: Sequence[Group],
    directions: Directions,
    estimator: Probes,
    earlier: Sequence[Leaf] = (),
) -> list[Leaf]:
    """The leaves of torch's parameter groups, with the amplitudes and masks that the directions fix.

    Leaves that are ``deep`` to the estimator have stored gradients: no direction reaches them. ``earlier`` ones keep
    their masks.

    Raises:
        BadInput: nothing requires grad, or a parameter cannot be tuned.
    """
    named = {
        name: (p, index)
        for index, group in enumerate(param_groups)
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if is_tuned(p)
    }
    if not named:
        raise BadInput("no parameter requires grad: there is nothing to tune")
    _check({name: p for name, (p, _) in named.items()})
    active = dict(directions.active(list(named))) if directions.active else {}
    deep = {name for name in named if estimator.deep is not None and estimator.deep(name)}
    active |= dict.fromkeys(deep, _never)
    masks = {leaf.name: leaf.mask for leaf in earlier if leaf.mask is not None}
    leaves = [
        Leaf(
            name,
            named[name][0],
            rng.leaf_id(name),
            named[name][1],
            directions.draw,
            stream_for(directions, named[name][0]),
            *frozen,
            active=active.get(name),
            highest=_highest(named[name][0]),
        )
        for name, frozen in directions.freeze({name: p for name, (p, _) in named.items()}).items()
    ]
    for leaf in leaves:
        if leaf.highest:
            _check_codes(leaf, 0.0 if leaf.name in deep else estimator.eps, param_groups[leaf.group]["weight_decay"])
    return [
        leaf._replace(mask=masks[leaf.name].to(leaf.param.device)) if leaf.name in masks else leaf for leaf in leaves
    ]


def _check(params: dict[str, Tensor]) -> None:
    """Refuse leaves that the kernels cannot tune, or that two names would tune twice."""
    spans = []
    for name, p in params.items():
        wraps: bool = is_traceable_wrapper_subclass(p)
        if p.layout != torch.strided or wraps:
            kind = type(p).__name__ if wraps else str(p.layout)
            raise BadInput(f"parameter '{name}' is no plain tensor ({kind}): convert it to a dense one, or freeze it")
        if p.dtype not in kernels.DTYPES and not isinstance(p, Codes):
            raise BadInput(f"parameter '{name}' is {p.dtype}: convert it to float32, bfloat16 or float16, or freeze it")
        if p.numel() == 0:
            continue
        if p.device.type == "meta":
            raise BadInput(
                f"parameter '{name}' has no data here (it is offloaded, or on the meta device): load the model whole, "
                "on more devices or in 16 bits, or freeze it"
            )
        reach = sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True)) + 1
        if p.numel() > reach:
            raise BadInput(
                f"elements of parameter '{name}' share memory (it is expanded): tune p.clone() instead of it"
            )
        spans.append((p.data_ptr(), p.data_ptr() + reach * p.element_size(), name))
    spans.sort()
    for (_, end, one), (start, _, other) in itertools.pairwise(spans):
        if start < end:
            raise BadInput(f"'{one}' and '{other}' share memory: tie them as one Parameter, or freeze one")


def _check_codes(leaf: Leaf, eps: float, weight_decay: float) -> None:
    """Refuse steps of codes that would have to be rounded to codes, or derivatives by them.

    A dense step of a small ``eps`` has a noise of rounding of about the number of codes over eps times its signal.
    """
    about = f"'{leaf.name}' holds whole codes"
    if not eps:
        raise BadInput(f"{about}, and there are no derivatives by them: use an estimator of losses alone, such as spsa")
    if leaf.draw is None and leaf.stream.kind != "ternary":
        raise BadInput(
            f"{about}, and rounding a step of {leaf.stream.kind} directions to codes would drown it in noise: use "
            "gl.ZerothOrder with directions=gl.ternary(0.02), estimator=gl.spsa(eps=1.0) and a rule"
        )
    if eps % 1:
        raise BadInput(f"{about}, and eps is a number of them, not {eps:g}: choose a whole one, such as 1")
    if weight_decay:
        raise BadInput(f"{about}, which do not decay towards 0: leave out weight_decay")


def _highest(p: Tensor) -> int:
    """The largest code of a leaf of codes, 0 for floats."""
    return p.highest if isinstance(p, Codes) else 0


def _never(key: int) -> bool:
    return False


def some(leaves: Mapping[int, Leaf], ids: Collection[int]) -> str:
    """How many of the leaves, the names of a few, and the verb: the beginning of a warning."""
    names = [leaf.name for key, leaf in leaves.items() if key in ids]
    return f"{len(names)} parameter(s) ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) are"

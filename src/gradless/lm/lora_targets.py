"""Which layers LoRA adapts, from what a model is made of.

MeZO's choice (arXiv 2305.17333) comes first: the query and value projections, where an architecture has them as layers
of their own. Where it has not, what PEFT adapts by default in this architecture; where PEFT knows none, every linear
layer of the attention; and in a model without attention, every linear layer of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from torch import nn

from gradless.errors import BadInput
from gradless.lm.loading import LanguageModel

QUERY_AND_VALUE: Final = (
    *(("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("query_proj", "value_proj"), ("q", "v")),
)
"""Query and value projections by the names that architectures give them; the first pair that exists is used."""

READ_BY_KERNELS: Final = frozenset(("out_proj", "dt_proj"))
"""Layers of a state-space mixer whose weights fused kernels read themselves: an adapter around them goes unread."""


class Targets(NamedTuple):
    """What PEFT's configuration is told."""

    modules: tuple[str, ...]  # names of linear layers, or their last parts
    transposed: bool  # whether their weights are [in, out], as in GPT-2


def choose(lm: LanguageModel, wanted: Sequence[str] | None) -> Targets:
    """Return the layers that LoRA adapts, all of which exist.

    Args:
        lm: the model.
        wanted: last parts of the names of linear layers; None: by the rule of this module.

    Raises:
        BadInput: a name that is no linear layer, or a model without any.
    """
    linear = _linear(lm.model)
    if wanted is None:
        wanted = _default(lm, linear)
        if not wanted:
            raise BadInput(f"{lm.name} has no linear layer in its blocks to put LoRA on: use the scheme full")
    missing = [name for name in wanted if not _matching(name, linear)]
    if missing or not wanted:
        stacked = _matching(missing[0], [name for name, _ in lm.model.named_parameters()]) if missing else []
        why = "a weight, such as those of experts, and no linear module" if stacked else "no linear module"
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        what = f"{missing[0]} is {why}" if stacked else f"{why} named {', '.join(missing) or '(none given)'}"
        raise BadInput(f"{what} to put LoRA on: choose targets from {known}")
    adapted = [linear[name] for target in wanted for name in _matching(target, linear)]
    return Targets(tuple(wanted), not any(isinstance(one, nn.Linear) for one in adapted))


def _default(lm: LanguageModel, linear: Mapping[str, nn.Module]) -> tuple[str, ...]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    present = {name.rpartition(".")[2] for name in linear}
    for pair in QUERY_AND_VALUE:
        if present.issuperset(pair):
            return pair
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(lm.config.model_type, ())
    if not isinstance(known, str) and present.intersection(known):
        return tuple(name for name in known if name in present)
    inside = [
        name for name, module in linear.items() if module is not lm.head and any(map(str.isdigit, name.split(".")))
    ]
    chosen = [name for name in inside if _in_attention(name)]
    chosen = chosen or [name for name in inside if not _read_by_kernel(lm.model, name)]
    last = dict.fromkeys(name.rpartition(".")[2] for name in chosen)
    return tuple(last if all(name in chosen for part in last for name in _matching(part, linear)) else chosen)


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def _matching(target: str, names: Iterable[str]) -> list[str]:
    """Return the names that PEFT takes for a target: itself, or those that end with it."""
    return [name for name in names if name == target or name.endswith(f".{target}")]


def _in_attention(name: str) -> bool:
    """Return whether a layer lies in a module called attention, attn, self_attn, temporal attention or the like."""
    return any("att" in part.lower() for part in name.split(".")[:-1])


def _read_by_kernel(model: nn.Module, name: str) -> bool:
    holder, _, last = name.rpartition(".")
    return last in READ_BY_KERNELS and hasattr(model.get_submodule(holder), "A_log")

"""Tuning what was loaded with an adapter.

A LoRA, prefix or prompt adapter under the scheme of its name is tuned itself, from where it stands, in the shape that
it has. Under the schemes full and head it is merged into the base, where its kind can be. Everything else would need a
base that exists nowhere, since an adapter is saved beside its base and not with it, and is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from gradless.errors import BadInput
from gradless.lm import virtual_tokens
from gradless.lm.adapters import LORA, VIRTUAL
from gradless.lm.checkpoint_files import first_line
from gradless.lm.loading import LanguageModel
from gradless.storage.stored import decode_parameters

MERGING: Final = ("full", "head")
CONTINUED: Final = {LORA: "lora", **VIRTUAL}
SETTINGS: Final = {
    "lora": (("rank", "r"), ("alpha", "lora_alpha")),
    "prefix": (("num_prefix", "num_virtual_tokens"),),
    "prompt": (("num_prompt", "num_virtual_tokens"),),
}
"""Options of a scheme that an adapter has settled, by its name and by PEFT's."""


class Wanted(NamedTuple):
    """An option, its value, and the default, which asks for nothing."""

    name: str
    value: Any
    default: Any


def start(lm: LanguageModel, scheme: str, wanted: Sequence[Wanted], targets: tuple[str, ...] | None) -> LanguageModel:
    """Return a model with an adapter as a scheme takes it: with the adapter to be tuned, or merged into its base.

    Raises:
        BadInput: the scheme does not go with the adapter, or an option contradicts it.
    """
    assert lm.origin is not None
    if scheme in MERGING:
        return _merged(lm, scheme)
    own = CONTINUED.get(lm.origin.kind)
    if scheme != own:
        ways = [f"use the scheme {own} to go on tuning it"] if own else []
        if not lm.adapters[0].is_prompt_learning:
            ways.append("merge it into its base (merge_and_unload in PEFT), save that, and give the new folder")
        raise BadInput(
            f"{lm.source} has an adapter of the kind {lm.origin.kind}, and a new adapter of the scheme {scheme} would "
            f"be of no use without it: {', or '.join([*ways, f'begin with --model {lm.origin.base}'])}"
        )
    _check_settings(lm, scheme, wanted, targets)
    return lm


def sentence(lm: LanguageModel, scheme: str) -> str:
    """Return a line about what a scheme does with the adapter that a model was loaded with; nothing without one."""
    if lm.origin is None or not lm.adapters:
        return ""
    if scheme in MERGING:
        own = CONTINUED.get(lm.origin.kind)
        other = f" (to go on tuning the adapter itself: --scheme {own})" if own else ""
        what = "all of them are tuned" if scheme == "full" else "its label rows are tuned"
        return f"the adapter {lm.source} is merged into the weights of {lm.origin.base}, and {what}{other}"
    config = lm.adapters[0]
    if lm.origin.kind in VIRTUAL:
        shape = f"{config.num_virtual_tokens} virtual tokens"
    else:
        shape = f"rank {config.r}, alpha {config.lora_alpha:g}, on {', '.join(_targets(config))}"
    return f"the adapter {lm.source} of {lm.origin.base} is tuned further: {shape}"


def _targets(config: Any) -> list[str]:
    modules = config.target_modules
    return [modules] if isinstance(modules, str) else sorted(modules or ())


def _check_settings(lm: LanguageModel, scheme: str, wanted: Sequence[Wanted], targets: tuple[str, ...] | None) -> None:
    """Refuse options that ask for another shape than the adapter has."""
    config = lm.adapters[0]
    asked = {one.name: one.value for one in wanted if one.value != one.default}
    for name, theirs in SETTINGS[scheme]:
        own = getattr(config, theirs)
        if asked.get(name, own) != own:
            flag = name.replace("_", "-")
            raise BadInput(f"the adapter {lm.source} has {name} {own}, and --{flag} is {asked[name]}: leave it out")
    if scheme == "lora" and targets is not None and sorted(targets) != _targets(config):
        raise BadInput(f"the adapter {lm.source} is on {', '.join(_targets(config))}: leave out --target")


@torch.no_grad()
def _merged(lm: LanguageModel, scheme: str) -> LanguageModel:
    """Return the model with its adapter merged into the weights.

    Cost: two forwards of a few tokens, which must say the same before and after.
    """
    assert lm.origin is not None
    own = CONTINUED.get(lm.origin.kind)
    ways = f"use the scheme {own} to tune it" if own else f"tune its base, --model {lm.origin.base}"
    if lm.adapters[0].is_prompt_learning:
        raise BadInput(f"{lm.source} has virtual tokens, which the scheme {scheme} has no place for: {ways}")
    decode_parameters(lm.model)  # what an adapter is added to is written
    expected = _logits(lm)
    try:
        model: Any = cast(Any, lm.model).merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError, TypeError) as error:  # each kind of adapter its own
        raise BadInput(f"the adapter {lm.source} cannot be merged into weights ({first_line(error)}): {ways}") from None
    if hasattr(model, "peft_config"):
        del model.peft_config
    merged = dataclasses.replace(lm, model=model)
    if merged.head.weight is not model.get_input_embeddings().weight:
        for settings in (model.config, model.config.get_text_config()):
            settings.tie_word_embeddings = False
    logits = _logits(merged)
    if expected is not None and logits is not None:
        difference = float((logits - expected).norm() / expected.norm())
        if not difference < virtual_tokens.DIFFERENCE.get(lm.dtype, virtual_tokens.COARSE):
            raise BadInput(
                f"the adapter {lm.source} cannot be merged into weights: the model then says something else (it may be "
                f"on one of two tied layers); {ways}"
            )
    return merged


def _logits(lm: LanguageModel) -> Tensor | None:
    return None if lm.head.weight.is_meta else virtual_tokens.read_logits(lm)

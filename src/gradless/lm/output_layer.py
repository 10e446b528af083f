"""What can be done with a model's output layer in place of all its logits.

Most models call it as a linear layer and add nothing of the vocabulary's size behind it. Not all: ESM adds a bias
outside of the layer, and MobileBERT multiplies by its weight without calling it.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradless.lm.loading import LanguageModel

_reads_rows: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def reads_rows(lm: LanguageModel) -> bool:
    """Return whether the logits of some tokens come from their rows of the output layer alone.

    Not in adapters and quantised layers, nor where a bias for the whole vocabulary is added behind the layer (ESM).
    """
    head = lm.head
    plain = (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward
        and head.weight.is_floating_point()
        and not head.weight.is_meta
    )
    if plain and head not in _reads_rows:
        _reads_rows[head] = outer_bias(lm) is None
    return plain and _reads_rows[head]


def outer_bias(lm: LanguageModel) -> Tensor | None:
    """Return the bias ``[V]`` that a module around the output layer adds to what the layer returns, if there is one."""
    head = lm.head
    around = [module for module in lm.model.modules() if any(child is head for child in module.children())]
    vectors = [p for module in around for p in module.parameters(recurse=False) if p is not head.bias]
    return next((p for p in vectors if p.shape == head.weight.shape[:1]), None)


@torch.no_grad()
def is_called(lm: LanguageModel) -> bool:
    """Return whether a forward calls the output layer, instead of reading its weight. Cost: one short forward."""
    calls: list[bool] = []
    hook = lm.head.register_forward_pre_hook(lambda *_: calls.append(True))
    try:
        cast(Any, lm.model)(input_ids=torch.tensor([[3, 4]], device=lm.device))
    finally:
        hook.remove()
    return bool(calls)

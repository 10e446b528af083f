"""Tuning the numbers of a GGUF file themselves: the factors of its blocks, or its codes.

* Factors (``scales``): the float16 that the codes of a block are multiplied by. QZO (2025, arXiv 2505.13430).
* Codes (``codes``): whole numbers of 4 to 8 bits. QES (2026, arXiv 2602.03120).

Both are ordinary named parameters beside the weight that they belong to, such as ``...q_proj.weight_codes``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import nn

from gradless.errors import BadInput
from gradless.lm.gguf_layout import Layout, tensor_names
from gradless.lm.loading import LanguageModel
from gradless.storage.codes import Codes
from gradless.storage.stored import StoredWeight
from gradless.storage.tuned import TunedStore, tunable

FIELDS: Final = {"scales": ("scales",), "codes": ("codes",)}
"""What is tuned of each block, by scheme."""


def prepare(lm: LanguageModel, scheme: str) -> nn.Module:
    """Return the model with parameters in the blocks of its quantised weights; all others are frozen.

    Memory: a byte a weight for codes; 2 bytes a block for factors.

    Raises:
        BadInput: no weight lies in such blocks.
    """
    model, seen = lm.model, set()
    model.requires_grad_(False)
    if lm.layout is not None:
        return _planned(lm, lm.layout, scheme)
    for module, name, weight in list(_stored(model)):
        if id(weight) in seen or not tunable(weight.store):
            continue
        seen.add(id(weight))
        store = TunedStore(weight.store, FIELDS[scheme])  # type: ignore[arg-type]
        weight.store = store
        for field, parameter in store.fields.items():
            module.register_parameter(f"{name}_{field}", parameter)
    if not seen:
        raise BadInput(
            f"the scheme {scheme} tunes the blocks of a GGUF file, and {lm.source} has none here: give a quantised "
            ".gguf as --model, without --dtype, or use --scheme lora"
        )
    return model


def _planned(lm: LanguageModel, layout: Layout, scheme: str) -> nn.Module:
    """`prepare` for a model without data: parameters of the same shapes, by the formats of its file."""
    names, seen = tensor_names(layout.architecture, lm.config.num_hidden_layers), set()
    for path, module in list(lm.model.named_modules()):
        weight, form = cast(Any, module)._parameters.get("weight"), layout.of(names, path)
        if weight is None or form.split is None or id(weight) in seen:
            continue
        seen.add(id(weight))
        if scheme == "codes":
            codes = torch.empty(weight.shape, dtype=torch.uint8, device="meta")
            module.register_parameter("weight_codes", Codes(codes, highest=form.codes[1] - form.codes[0]))
        else:
            blocks = (weight.shape[0], weight.shape[1] // form.weights)
            scales = torch.empty(blocks, dtype=torch.float16, device="meta")
            module.register_parameter("weight_scales", nn.Parameter(scales))
    return lm.model


def stores(lm: LanguageModel) -> list[TunedStore]:
    """Return the stores of the weights that `prepare` has put parameters into, each once."""
    by_id = {id(weight.store): weight.store for _, _, weight in _stored(lm.model)}
    return [store for store in by_id.values() if isinstance(store, TunedStore)]


def _stored(model: nn.Module) -> Iterator[tuple[nn.Module, str, StoredWeight]]:
    """Yield stored weights, each with its module and its name there; tied ones more than once."""
    for module in model.modules():
        for name, weight in cast(Any, module)._parameters.items():
            if isinstance(weight, StoredWeight):
                yield module, name, weight

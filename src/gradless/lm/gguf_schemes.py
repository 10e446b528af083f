"""Tuning the numbers of a GGUF file themselves: the factors of its blocks, or its codes.

* Factors (``scales``): the float16 that the codes of a block are multiplied by. QZO (2025, arXiv 2505.13430).
* Codes (``codes``): whole numbers of 4 to 8 bits. QES (2026, arXiv 2602.03120).

Both are ordinary named parameters beside the weight that they belong to, such as ``...q_proj.weight_codes``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from torch import nn

from gradless.errors import BadInput
from gradless.lm.loading import LanguageModel
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

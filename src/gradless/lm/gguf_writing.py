"""Writing GGUF files: a base file with tuned numbers in its blocks, or a LoRA adapter as llama.cpp reads it.

A tuned model is the base file with other bytes in some blocks; header, metadata and all other tensors stay. An adapter
is a file of its own (``general.type`` adapter) with two matrices for every adapted one, ``NAME.lora_a`` and
``NAME.lora_b``, in the order of rows that the base file has.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradless.errors import BadInput
from gradless.lm import gguf_file, gguf_schemes
from gradless.lm.gguf_layout import tensor_names
from gradless.lm.loading import LanguageModel
from gradless.storage.mapped import GgufStore
from gradless.storage.stored import StoredWeight
from gradless.system.atomic import replacing

SUFFIX: Final = ".gguf"


def write(lm: LanguageModel, target: Path) -> None:
    """Write a tuned model, or its LoRA adapter, to a GGUF file, whole or not at all.

    Args:
        lm: a model of a GGUF file in place, under the scheme scales, codes or lora.
        target: the file; one of that name is replaced.

    Disk: a copy of the base file for a tuned model; the adapter in float32.

    Raises:
        BadInput: another model or scheme, a split base file, an adapter of a kind that llama.cpp has none of.
        OSError: it cannot be written.
    """
    if not lm.files:
        raise BadInput(
            f"{lm.source} was not read from a GGUF file in place, so no GGUF file can be written of it: give --save a "
            "folder, or begin with a .gguf without --dtype"
        )
    if gguf_schemes.stores(lm):
        _write_model(lm, target)
    elif lm.adapters:
        _write_adapter(lm, target)
    else:
        raise BadInput("neither blocks nor an adapter are tuned here: give --save a folder")


def _write_model(lm: LanguageModel, target: Path) -> None:
    """Copy the base file and put tuned blocks where they belong."""
    if len(lm.files) > 1:
        raise BadInput(
            f"{lm.files[0].name} is one of {len(lm.files)} parts, and --save writes one file: join them first "
            "(llama-gguf-split --merge), and tune the joined file"
        )
    reader = gguf_file.read(lm.files[0])
    places = {str(tensor.name): int(tensor.data_offset) for tensor in reader.tensors}
    with replacing(target) as temporary:
        shutil.copyfile(lm.files[0], temporary)
        with temporary.open("r+b") as file:
            for store in gguf_schemes.stores(lm):
                file.seek(places[store.base.tensor])
                for part in store.stored():
                    file.write(part)


def _inner(lm: LanguageModel) -> nn.Module:
    """The model of transformers inside of PEFT's."""
    model: Any = lm.model
    inner: nn.Module = model.get_base_model() if lm.adapters else model
    return inner


# ---------------------------------------------------------------------------------------------------------------
# adapters


def _write_adapter(lm: LanguageModel, target: Path) -> None:
    """Write PEFT's LoRA matrices; the factor of each layer is alpha over its rank, as llama.cpp has it."""
    import gguf

    config = lm.adapters[0]
    if config.peft_type != "LORA" or getattr(config, "use_dora", False):
        raise BadInput("llama.cpp reads adapters of the kind LoRA alone: give --save a folder for this one")
    reader = gguf_file.read(lm.files[0])
    architecture = gguf_file.field(reader, "general.architecture")
    pairs = _pairs(lm, tensor_names(architecture, lm.config.num_hidden_layers))
    with replacing(target) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config.lora_alpha))
        for name, (a, b) in pairs.items():
            writer.add_tensor(f"{name}.lora_a", a.numpy())
            writer.add_tensor(f"{name}.lora_b", b.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@torch.no_grad()
def _pairs(lm: LanguageModel, names: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A ``[rank, in]`` and B ``[out, rank]`` by the name of the adapted tensor, B with the rows of the file."""
    alpha, pairs = float(lm.adapters[0].lora_alpha), {}
    for path, module in _inner(lm).named_modules():
        layer: Any = module
        factors = getattr(layer, "scaling", None)
        if not isinstance(factors, dict) or not hasattr(layer, "lora_A"):
            continue
        (adapter, factor), *_ = factors.items()
        base, name = layer.get_base_layer().weight, names.get_name(path)
        if adapter not in layer.lora_A or name is None:
            raise BadInput(f"llama.cpp has no LoRA on {path}: give --save a folder")
        a, b = (one[adapter].weight.detach().float().cpu() for one in (layer.lora_A, layer.lora_B))
        scale = factor * len(a) / alpha  # 1 but for adapters with factors of their own, such as rank-stabilised ones
        pairs[f"{name}.weight"] = (a.contiguous(), _as_in_file(base, b if scale == 1.0 else b * scale))
    return pairs


def _as_in_file(base: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix in the order of the file of the adapted weight."""
    store = base.store if isinstance(base, StoredWeight) else None
    if not isinstance(store, GgufStore) or store.order is None:
        return rows.contiguous()
    out = torch.empty_like(rows)
    out[store.order.cpu()] = rows
    return out

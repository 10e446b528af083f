"""Writing GGUF files: a base file with tuned numbers in its blocks, or a LoRA adapter as llama.cpp reads it.

A tuned model is the base file with other bytes in some blocks; header, metadata and all other tensors stay. Of a split
base the parts become one file. An adapter is a file of its own (``general.type`` adapter) with two matrices for every
adapted one, ``NAME.lora_a`` and ``NAME.lora_b``, in the order of rows that the base file has.
"""

from __future__ import annotations

import filecmp
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from gradless.errors import BadInput
from gradless.lm import gguf_file, gguf_schemes
from gradless.lm.gguf_layout import tensor_names
from gradless.lm.loading import LanguageModel
from gradless.storage.mapped import CHUNK_BYTES, GgufStore
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
        BadInput: another model or scheme, an adapter of a kind that llama.cpp has none of.
        OSError: it cannot be written.
    """
    if not lm.files:
        raise BadInput(
            f"{lm.source} was not read from a GGUF file in place, so no GGUF file can be written of it: give --save a "
            "folder, or begin with a .gguf without --dtype"
        )
    if gguf_schemes.stores(lm):
        with replacing(target) as temporary, temporary.open("wb") as file:
            for part in _contents(lm):
                file.write(part)
    elif lm.adapters:
        _write_adapter(lm, target)
    else:
        raise BadInput("neither blocks nor an adapter are tuned here: give --save a folder")


def holds(lm: LanguageModel, target: Path) -> bool:
    """Return whether a file has the bytes that `write` would write.

    Args:
        lm: as `write` takes it.
        target: the file.

    Cost: one pass over the file and the weights. Disk: an adapter is written to the system's folder for a while.
    """
    if gguf_schemes.stores(lm):
        with target.open("rb") as file:
            same = all(file.read(len(part)) == bytes(part) for part in _contents(lm))
            return same and not file.read(1)
    with tempfile.TemporaryDirectory() as folder:
        write(lm, Path(folder) / target.name)
        return filecmp.cmp(Path(folder) / target.name, target, shallow=False)


# ---------------------------------------------------------------------------------------------------------------
# tuned models


def _contents(lm: LanguageModel) -> Iterator[memoryview]:
    """Yield the bytes of the base file, all parts of a split one as one file, with tuned blocks where they belong."""
    reader = gguf_file.read(lm.files[0])
    maps = [np.memmap(file, np.uint8, mode="r").view(np.ndarray) for file in lm.files]
    whole, tensors = len(maps) == 1, list(zip(reader.tensors, reader.owners, strict=True))
    tuned = {store.base.tensor: store for store in gguf_schemes.stores(lm)}
    yield maps[0][: int(reader.tensors[0].data_offset)].data if whole else memoryview(_joined_header(reader, maps[0]))
    for number, (tensor, owner) in enumerate(tensors):
        start, size = int(tensor.data_offset), int(tensor.n_bytes)
        if str(tensor.name) in tuned:
            yield from tuned[str(tensor.name)].stored()
        else:
            for begin in range(start, start + size, CHUNK_BYTES):
                yield maps[owner][begin : min(begin + CHUNK_BYTES, start + size)].data
        if not whole:
            yield memoryview(bytes(-size % reader.alignment))
        elif number + 1 < len(tensors):
            yield maps[0][start + size : int(tensors[number + 1][0].data_offset)].data
        else:
            yield maps[0][start + size :].data


def _joined_header(reader: Any, first: Any) -> bytes:
    """The header of one file that holds the tensors of all parts: the fields of the first part, but for its split."""
    fields = []
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "split.")):
            continue
        value = int(field.offset) + 8 + len(name.encode()) + 4  # behind its name, with its length, and its type
        size, *_ = reader._get_field_parts(value, int(field.types[0]))
        fields.append(first[int(field.offset) : value + int(size)].tobytes())
    infos, end = [], 0
    for tensor in reader.tensors:
        name, shape = str(tensor.name).encode(), [int(size) for size in tensor.shape]
        numbers = (len(shape), *shape, int(tensor.tensor_type), end)
        infos.append(struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}QIQ", *numbers))
        end += -(-int(tensor.n_bytes) // reader.alignment) * reader.alignment
    counts = struct.pack("<QQ", len(infos), len(fields))
    header: bytes = first[:8].tobytes() + counts + b"".join(fields) + b"".join(infos)
    return header + bytes(-len(header) % reader.alignment)


# ---------------------------------------------------------------------------------------------------------------
# adapters


def _inner(lm: LanguageModel) -> nn.Module:
    """The model of transformers inside of PEFT's."""
    model: Any = lm.model
    inner: nn.Module = model.get_base_model() if lm.adapters else model
    return inner


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

"""GGUF models in place: transformers' modules over the blocks of the mapped file, which are decoded as they are used.

The names of tensors are those of the package `gguf`; how the rows of a matrix and the values of a norm differ from
transformers' is a row of `ARCHITECTURES` (facts of llama.cpp's converter). Nothing of a model is ever random: a tensor
that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from gradless.errors import BadInput
from gradless.lm import checkpoint_config, checkpoint_files, gguf_config, gguf_file, gguf_tokenizer
from gradless.lm.gguf_file import Unusable
from gradless.lm.gguf_layout import Layout, format_of, of_file, tensor_names
from gradless.storage.gguf_blocks import BlockFormat
from gradless.storage.mapped import GgufStore
from gradless.storage.stored import StoredWeight, decoded

FIX: Final = "choose the model in safetensors"


def _as_it_is(name: str, config: Any, rows: int) -> Tensor | None:
    return None


def _halves_apart(name: str, config: Any, rows: int) -> Tensor | None:
    """Rows of queries and keys: llama.cpp keeps the two numbers that rotate together side by side."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return None
    heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class Architecture:
    """How weights of a file differ from transformers'.

    Attributes:
        order: of a tensor's name, the configuration and the number of rows, the file's row for each row, or None.
        norm: what is added to the weights of norms; llama.cpp keeps one plus those of Gemma.
    """

    order: Callable[[str, Any, int], Tensor | None] = _as_it_is
    norm: float = 0.0


ARCHITECTURES: Final = {
    "llama": Architecture(order=_halves_apart),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "phi3": Architecture(),
    "gemma2": Architecture(norm=-1.0),
    "gemma3": Architecture(norm=-1.0),
}
"""Architectures by their name in files. Models of others are converted (`gradless.lm.conversion`)."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file of which the header has been read and is that of a whole model of a known architecture.

    Attributes:
        reader: see `gradless.lm.gguf_file.read`.
        architecture: the name in the file.
    """

    reader: Any
    architecture: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or all parts of a split one."""
        return tuple(self.reader.files)


def open_file(path: Path) -> Opened | None:
    """Return a file whose model can be used in place, or None for an architecture that is not known here.

    Raises:
        BadInput: no GGUF file, or not one of a whole language model.
    """
    try:
        reader = gguf_file.read(path)
        gguf_file.check_kind(reader)
        architecture = str(gguf_file.field(reader, "general.architecture"))
    except Exception as error:  # gguf raises whatever a broken header makes of NumPy
        raise _refusal(path, error) from error
    return Opened(reader, architecture) if architecture in ARCHITECTURES else None


def load(path: Path, opened: Opened, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """Return the model of a file.

    Args:
        path: what errors name.
        opened: the file.
        dtype: type of decoded weights in memory; None leaves them in the file.
        device: of the weights; blocks are copied there.

    Memory: with ``dtype`` the weights, and the largest in float32 once more; without, pages of the file on a CPU.

    Raises:
        BadInput: it does not hold exactly the weights of the model that its metadata describe.
    """
    try:
        config = gguf_config.read(opened.reader)
        model: nn.Module = _empty(config)
        with torch.no_grad():
            _fill(model, opened, dtype, device)
        return model
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError | BadInput):
            raise
        raise _refusal(path, error) from error


def described(path: Path, opened: Opened) -> tuple[Any, Layout]:
    """Return the configuration of a file's model, and the formats of its weights.

    Args:
        path: what errors name.
        opened: the file.

    Raises:
        BadInput: transformers builds no such model, or nothing decodes its weights.
    """
    try:
        config = gguf_config.read(opened.reader)
        checkpoint_config.check_class(config, masked=False)
        return config, of_file(opened.reader)
    except Exception as error:
        raise _refusal(path, error) from error


def tokenizer(path: Path, opened: Opened, root: Path) -> Any:
    """Return the tokenizer of a file, with its chat template.

    Args:
        path: what errors name.
        opened: the file.
        root: of the cache.

    Raises:
        BadInput: transformers cannot build it.
    """
    try:
        return gguf_tokenizer.load(opened.reader, root)
    except Exception as error:
        if isinstance(error, BadInput | MemoryError):
            raise
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> BadInput:
    """One sentence about what reading a file raised."""
    if isinstance(error, BadInput):
        return error
    if isinstance(error, Unusable):
        return BadInput(f"{path} {error}")
    if isinstance(error, OSError):
        return BadInput(f"{path} cannot be read: {error.strerror or error}")
    if isinstance(error, ImportError):
        return BadInput(f"reading {path} needs more packages ({error}): pip install 'gradless[lm]'")
    text = str(error)
    if isinstance(error, ValueError) and text.endswith(("again", "convert it", "beside it", "that one")):
        return BadInput(f"{path} {text}")
    return BadInput(f"{path} is broken or truncated ({checkpoint_files.first_line(error)}): download it again")


def _empty(config: Any) -> Any:
    """The model with parameters on the meta device and buffers, such as rotary frequencies, as they should be."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    checkpoint_config.check_class(config, masked=False)
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.tie_weights()  # parameters were replaced one by one
        model.config.architectures = [type(model).__name__]
        return model
    except (ValueError, TypeError, RuntimeError, KeyError, ZeroDivisionError) as error:
        reason = checkpoint_files.first_line(error)
        raise Unusable(f"describes a model that transformers does not build ({reason}): {FIX}") from None


def _fill(model: Any, opened: Opened, dtype: torch.dtype | None, device: torch.device) -> None:
    """Put the file's weights where the model's parameters are."""
    tensors = _tensors(opened)
    names = _names(model, opened.architecture)
    _check_names(model, names, tensors)
    for key, parameter in list(model.named_parameters()):
        name = names[key]
        form, raw = tensors[name]
        value = _value(name, form, raw, parameter.shape, opened.architecture, model.config)
        if dtype is not None:
            value = decoded(value).to(dtype)
        elif isinstance(value, StoredWeight) and device.type != "cpu":
            value = StoredWeight(value.store.to(device))  # type: ignore[attr-defined]
        module, _, leaf = key.rpartition(".")
        plain = not isinstance(value, StoredWeight)
        setattr(model.get_submodule(module), leaf, nn.Parameter(value.to(device), requires_grad=plain))
    model.tie_weights()
    for module in model.modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            setattr(module, leaf, buffer.to(device))
    if left := [key for key, one in model.named_parameters(remove_duplicate=False) if one.is_meta]:
        raise Unusable(f"lacks {len(left)} weights of {type(model).__name__} (such as {left[0]}): {FIX}")


def _tensors(opened: Opened) -> dict[str, tuple[BlockFormat, Tensor]]:
    """Formats and rows of blocks, uint8 ``[..., bytes]``, mapped, by the names of tensors."""
    reader = opened.reader
    # A private map: a write would change this process's copy of a page, and the file never.
    maps = [np.memmap(file, np.uint8, mode="c").view(np.ndarray) for file in reader.files]
    tensors: dict[str, tuple[BlockFormat, Tensor]] = {}
    for tensor, owner in zip(reader.tensors, reader.owners, strict=True):
        form = format_of(tensor)
        *rows, width = (int(size) for size in reversed(tensor.shape))
        start, size = int(tensor.data_offset), int(tensor.n_bytes)
        data = maps[owner][start : start + size]
        if len(data) < size or width % form.weights:
            raise ValueError(f"{tensor.name} ends after {len(data)} of {size} bytes")
        tensors[str(tensor.name)] = form, torch.from_numpy(data).view(*rows, width // form.weights * form.nbytes)
    return tensors


def _names(model: Any, architecture: str) -> dict[str, str]:
    """The names of tensors in files by those of parameters; of one without a name, its own."""
    names = tensor_names(architecture, model.config.num_hidden_layers)
    by_key: dict[str, str] = {}
    for key, _ in model.named_parameters():
        stem, _, suffix = key.rpartition(".")
        name = names.get_name(stem)
        by_key[key] = key if name is None else f"{name}.{suffix}"
    return by_key


def _check_names(model: Any, names: dict[str, str], tensors: dict[str, Any]) -> None:
    """Refuse a file that lacks a parameter, or has a tensor that is in no model."""
    kind = type(model).__name__
    if missing := sorted(key for key, name in names.items() if name not in tensors):
        raise Unusable(f"lacks {len(missing)} weights of {kind} (such as {missing[0]}): {FIX}")
    if unused := sorted({*tensors} - {*names.values()} - {*gguf_config.ROPE_TENSORS}):
        raise Unusable(f"has {len(unused)} weights that {kind} does not use (such as {unused[0]}): {FIX}")


def _value(name: str, form: BlockFormat, raw: Tensor, shape: torch.Size, architecture: str, config: Any) -> Tensor:
    """A weight as transformers has it: a stored one, or float32 if it is small or a matrix of float32."""
    own = (*raw.shape[:-1], raw.shape[-1] // form.nbytes * form.weights)
    if own != tuple(shape):
        raise Unusable(f"has {name} of shape {list(own)}, and its metadata say {list(shape)}: {FIX}")
    how = ARCHITECTURES[architecture]
    order = how.order(name, config, shape[0])
    if len(shape) == 1:
        values = form.decode(raw.view(-1, form.nbytes)).view(-1).clone()
        values = values if order is None else values[order]
        return values + how.norm if how.norm and name.endswith("norm.weight") else values
    if form.dtype == torch.float32 and order is None:
        return raw.view(torch.float32)
    return StoredWeight(GgufStore(raw.reshape(-1, raw.shape[-1]), form, order, name))

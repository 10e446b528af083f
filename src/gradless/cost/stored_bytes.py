"""What weights take that are kept otherwise than in the type of the computation: quantised, or outside of memory."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn

from gradless.lm import LanguageModel, quantisation
from gradless.lm.gguf_layout import Layout, tensor_names
from gradless.storage.codes import is_tuned
from gradless.storage.stored import SCRATCH_BYTES

BITS: Final = {"nf4": (4.0, 64), "fp4": (4.0, 64), "int8": (8.0, 0)}
"""Bits of a code, and weights that share a float32; 0: a row of them."""
FLOAT: Final = 4


class Stored(NamedTuple):
    """Bytes of all weights, and of the buffer that the largest of them is decoded into."""

    weights: int
    buffer: int


def of_model(lm: LanguageModel, quantise: str | None, offload: str | None) -> Stored:
    """Return what the weights of a model take on the device that computes.

    Args:
        lm: without data, in the type of the computation; its configuration says whether its checkpoint is quantised.
        quantise: what linear layers are quantised to; None for as they are.
        offload: where matrices stay; None for on the device.
    """
    parameters = list(lm.model.parameters())
    whole = sum(p.numel() * p.itemsize for p in parameters)
    if lm.layout is not None:
        return _of_blocks(lm, lm.layout)
    kind = _kind(lm, quantise)
    frozen = [p for p in parameters if not p.requires_grad and p.ndim > 1]
    if offload is not None:
        elsewhere = frozen
        held = 0
    elif kind is not None:
        elsewhere = _linear(lm)
        held = sum(_bytes(p, *kind) for p in elsewhere)
    else:
        return Stored(whole, 0)
    out = sum(p.numel() * p.itemsize for p in elsewhere)
    buffer = min(SCRATCH_BYTES, max((p.numel() * p.itemsize for p in elsewhere), default=0))
    return Stored(whole - out + held, buffer)


def _of_blocks(lm: LanguageModel, layout: Layout) -> Stored:
    """Return what blocks of GGUF files take, and what is tuned beside them."""
    model: Any = lm.model
    names = tensor_names(layout.architecture, lm.config.num_hidden_layers)
    total = sum(p.numel() * p.itemsize for p in model.parameters() if is_tuned(p))
    largest = 0
    for name, p in (model.get_base_model() if lm.adapters else model).named_parameters():
        if is_tuned(p):
            continue
        form = layout.of(names, name.removesuffix(".weight").removesuffix(".base_layer"))
        total += p.numel() // form.weights * form.nbytes
        if p.ndim > 1 and form.dtype != torch.float32:
            largest = max(largest, p.numel())
    return Stored(total, min(SCRATCH_BYTES, FLOAT * largest))


def _linear(lm: LanguageModel) -> list[nn.Parameter]:
    """Return the frozen weights of linear layers but for the output layer, each once."""
    output = lm.head.weight
    layers = (m for m in lm.model.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D")
    weights: list[Any] = [layer.weight for layer in layers]
    return list({id(p): p for p in weights if p is not output and not p.requires_grad}.values())


def _kind(lm: LanguageModel, quantise: str | None) -> tuple[float, int] | None:
    """Return bits and block of the codes; None if weights are floats."""
    if quantise is not None:
        return BITS[quantise]
    settings = getattr(lm.config, "quantization_config", None)
    if not settings:
        return None
    values = settings if isinstance(settings, dict) else settings.to_dict()
    if quantisation.method_of(values) in ("bitsandbytes", "torchao"):
        return BITS["nf4" if values.get("load_in_4bit") else "int8"]
    return float(values.get("bits") or 4), int(values.get("group_size") or 128)


def _bytes(p: nn.Parameter, bits: float, block: int) -> int:
    groups = -(-p.numel() // block) if block > 0 else len(p)
    return round(p.numel() * bits / 8) + FLOAT * groups


def of_codes(count: int, codes: str) -> int:
    """Return the bytes of a matrix of so many weights in ``nf4``, ``fp4`` or ``int8``; scales of rows are left out."""
    bits, block = BITS[codes]
    return round(count * bits / 8) + (FLOAT * -(-count // block) if block else 0)

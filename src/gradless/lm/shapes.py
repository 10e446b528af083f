"""Models of published sizes with random weights, for measuring costs, which do not depend on what a model has learnt.

Nothing is downloaded. Sizes are those of the published configurations. Weights are created on their device and in
their type, so that a model of 13 billion weights never exists in float32 or in the main memory. They are a tile of
normals repeated over every matrix: cheap, and to a device as irregular as trained weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradless import rng
from gradless.errors import pick
from gradless.lm.devices import device_of
from gradless.lm.loading import DTYPES, LanguageModel
from gradless.lm.quiet import quiet_transformers

PREFIX: Final = "shape:"
SCALE: Final = 0.02  # standard deviation of matrices, that of GPT-2's initialisation
TILE: Final = 1_000_003  # a prime, so that the rows of no matrix repeat


class Shape(NamedTuple):
    """One published configuration."""

    config: str  # its class in transformers
    options: dict[str, Any]
    masked: bool = False


def _opt(hidden: int, layers: int, heads: int) -> Shape:
    """OPT (Zhang et al. 2022, arXiv 2205.01068)."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    rest = {"vocab_size": 50272, "max_position_embeddings": 2048, "tie_word_embeddings": True, "dropout": 0.0}
    return Shape("OPTConfig", {**sizes, "ffn_dim": 4 * hidden, "word_embed_proj_dim": hidden, **rest})


def _llama(hidden: int, layers: int, inner: int, head: int, tied: bool, factor: float) -> Shape:
    """Llama 3 (Grattafiori et al. 2024, arXiv 2407.21783): 32 heads that share 8 keys and values."""
    stretched = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **stretched}
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner, "head_dim": head}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5}
    rest = {"max_position_embeddings": 131072, "tie_word_embeddings": tied, "rope_parameters": rope}
    return Shape("LlamaConfig", {**sizes, **heads, **rest})


def _llama2(hidden: int, layers: int, heads: int, inner: int) -> Shape:
    """Llama 2 (Touvron et al. 2023, arXiv 2307.09288), the shape of Vicuna 1.5 too."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner, "vocab_size": 32000}
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads, "rms_norm_eps": 1e-5}
    return Shape("LlamaConfig", {**sizes, **attention, "max_position_embeddings": 4096, "tie_word_embeddings": False})


SHAPES: Final[dict[str, Shape]] = {
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "llama-2-7b": _llama2(4096, 32, 32, 11008),
    "llama-2-13b": _llama2(5120, 40, 40, 13824),
    # Jiang et al. 2023 (arXiv 2310.06825): Llama's layers, a window of 4,096 tokens.
    "mistral-7b": Shape(
        "MistralConfig",
        {
            **{"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 32000},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": 4096},
            **{"max_position_embeddings": 32768, "tie_word_embeddings": False},
        },
    ),
    "llama-3.2-1b": _llama(2048, 16, 8192, 64, True, 32.0),
    "llama-3.1-8b": _llama(4096, 32, 14336, 128, False, 8.0),
    # Yang et al. 2025 (arXiv 2505.09388): heads wider than hidden / heads.
    "qwen3-0.6b": Shape(
        "Qwen3Config",
        {
            **{"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072, "head_dim": 128},
            **{"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "rms_norm_eps": 1e-6},
            **{"max_position_embeddings": 40960, "tie_word_embeddings": True},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    # Liu et al. 2019 (arXiv 1907.11692), the model of MeZO's first experiments.
    "roberta-large": Shape(
        "RobertaConfig",
        {
            **{"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16},
            **{"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
            "tie_word_embeddings": True,
        },
        masked=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Stands in for a tokenizer where there is no text: the number of tokens and the special ones."""

    size: int
    model_max_length: int
    pad_token_id: int | None
    eos_token_id: int | None = None
    all_special_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.size


def load(name: str, *, dtype: str | None = None, device: str = "cpu") -> LanguageModel:
    """Return a model of a known shape with random weights, the same on every call and every device.

    Args:
        name: a key of `SHAPES`, perhaps with `PREFIX` in front.
        dtype: a key of `gradless.lm.loading.DTYPES`; default float32 on the CPU, bfloat16 elsewhere.
        device: device of the weights, ``cpu`` or ``cuda`` for instance; ``meta`` allocates none.

    Memory: the weights.

    Raises:
        BadInput: unknown shape, dtype or device.
    """
    short = name.removeprefix(PREFIX)
    shape = pick("shape", short, SHAPES)
    target = torch.device(device) if device == "meta" else device_of(device)
    usual = torch.float32 if target.type == "cpu" else torch.bfloat16
    with quiet_transformers():
        model = _empty(shape, usual if dtype is None else pick("dtype", dtype, DTYPES), target)
    _fill(model)
    model.eval()
    config = model.config
    config.use_cache = False
    vocabulary = Vocabulary(
        size=config.vocab_size,
        model_max_length=config.max_position_embeddings - (2 if shape.masked else 0),
        pad_token_id=config.pad_token_id,
    )
    return LanguageModel(model, vocabulary, shape.masked, source=f"{PREFIX}{short}", name=f"{PREFIX}{short}")


class _NoDraws(TorchFunctionMode):
    """Skip random initialisation, which takes longer than all the rest and would move the global generator."""

    SKIPPED = frozenset(("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call everything but the draws."""
        kwargs = kwargs or {}
        if func.__name__ in self.SKIPPED:  # of tensors, or of torch.nn.init, which names its arguments
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _empty(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the model with uninitialised weights; buffers, such as rotary frequencies, are computed."""
    import transformers

    config = getattr(transformers, shape.config)(**shape.options)
    head = transformers.AutoModelForMaskedLM if shape.masked else transformers.AutoModelForCausalLM
    with device, _NoDraws():
        return head.from_config(config, dtype=dtype)


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Fill matrices with the tile, rotated further for each one, scales with one and biases with zero."""
    first = next(model.parameters())
    if first.is_meta:
        return
    tile = (rng.normal(0, "tile", (TILE,)) * SCALE).to(first.device, first.dtype)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.ndim > 1:
            _repeat(parameter.view(-1), tile.roll(index * 7919))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _repeat(flat: Tensor, tile: Tensor) -> None:
    """Fill a vector with copies of the tile."""
    whole = flat.numel() // len(tile) * len(tile)
    flat[:whole].view(-1, len(tile)).copy_(tile)
    flat[whole:].copy_(tile[: flat.numel() - whole])

"""The configuration of a GGUF file's model: transformers' own reading of the metadata, and what it leaves out.

transformers does not read a scaling of rotary frequencies; here it is written into the configuration, or refused.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, Final

from gradless.lm import checkpoint_config, gguf_file
from gradless.lm.gguf_file import Unusable, field

_TOKENS: Final = "tokenizer.ggml.tokens"
_VOCABULARY: Final = (_TOKENS, "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
ROPE_TENSORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ROPE_FIELDS: Final = ("type", "factor", "original_context_length", "finetuned")
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(reader: Any) -> Any:
    """Return the configuration of a file's model as transformers reads it, with its scaling of rotary frequencies.

    Cost: milliseconds; the vocabulary is counted and not read.

    Raises:
        BadInput: sizes that no machine has memory for.
        Unusable: a scaling that cannot be said in the configuration, or an architecture that transformers cannot read.
    """
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    fields = {key: entry for key, entry in reader.fields.items() if not key.startswith(_VOCABULARY)}
    header = SimpleNamespace(fields=fields, tensors=reader.tensors, get_field=fields.get)
    with gguf_file.given_to_transformers(header):
        try:
            values = load_gguf_checkpoint(str(reader.files[0]), return_tensors=False)["config"]
        except ValueError as error:
            raise Unusable(f"cannot be used ({str(error).rstrip('.')}): choose a model in safetensors") from None
    if "vocab_size" not in values:
        values["vocab_size"] = len(reader.fields[_TOKENS].data)
    if values["model_type"] == "qwen3" and (width := field(reader, "qwen3.attention.key_length")):
        values["head_dim"] = int(width)  # which transformers does not read
    checkpoint_config.check_sizes(values)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    scale_rope(config, reader)
    return config


def scale_rope(config: Any, reader: Any) -> None:
    """Write the scaling of rotary frequencies, which transformers does not read, into the configuration.

    Raises:
        Unusable: a scaling that cannot be said there exactly.
    """
    tensors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name in ROPE_TENSORS}
    prefix = f"{field(reader, 'general.architecture')}.rope.scaling."
    settings = {key.removeprefix(prefix): field(reader, key) for key in reader.fields if key.startswith(prefix)}
    kind, factor = settings.get("type", "linear"), float(settings.get("factor") or 1.0)
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_freqs.weight" in tensors and len(tensors) == 1 and kind in ("none", "linear") and factor == 1.0:
        scaling = _llama3(tensors["rope_freqs.weight"], parameters, config, settings)
    elif not tensors and (kind == "none" or factor == 1.0):
        return
    elif not tensors and {*settings} <= {*_ROPE_FIELDS} and kind == "linear":
        scaling = {"rope_type": "linear", "factor": factor}
    elif not tensors and {*settings} <= {*_ROPE_FIELDS} and kind == "yarn" and "original_context_length" in settings:
        original = int(settings["original_context_length"])
        scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    else:
        scaling = None
    if parameters.get("rope_type") not in (None, "default"):
        return  # transformers has read it
    # Gemma 3 scales the layers that see everything, in llama.cpp too.
    target = parameters.get("full_attention", parameters if "rope_theta" in parameters else None)
    if scaling is None or target is None:
        how = kind if kind not in ("none", "linear") else "a table"
        raise Unusable(f"scales rotary frequencies ({how}) in a way that is not converted: choose it in safetensors")
    target.update(scaling)


def _llama3(factors: Any, parameters: dict[str, Any], config: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of Llama 3 whose divisors of the frequencies are ``factors``, or None if they are others."""
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if "rope_theta" not in parameters or len(factors) != heads // 2:
        return None
    original = int(settings.get("original_context_length") or _LLAMA3["original_max_position_embeddings"])
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = [original * parameters["rope_theta"] ** (-2 * i / heads) / (2 * math.pi) for i in range(len(factors))]
    smooth = [min(1.0, max(0.0, (turn - low) / (high - low))) for turn in turns]
    shares = [1 / float(divisor) for divisor in factors]  # of the frequency that is left
    rest = shares[-1] - smooth[-1]
    factor = (1 - smooth[-1]) / rest if rest > 0 else 1.0
    if any(abs(((1 - s) / factor + s) / share - 1) > 1e-3 for s, share in zip(smooth, shares, strict=True)):
        return None
    scaling = {"rope_type": "llama3", "factor": round(factor, 3), **_LLAMA3}
    return scaling | {"original_max_position_embeddings": original}

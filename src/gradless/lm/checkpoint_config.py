"""Configurations of saved models: whether a model can be tuned, and as what, from ``config.json`` alone."""

from __future__ import annotations

import re
from typing import Any, Final

from gradless.errors import BadInput
from gradless.lm import quantisation

OWN_CODE: Final[dict[str, Any]] = {"trust_remote_code": False}
"""Option of every ``from_pretrained``: a model's own code is not run, and nobody is asked on the terminal."""
_CAUSAL: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_MASKED: Final = ("ForMaskedLM", "ForPreTraining")
LIMITS: Final = {r"(layers?|blocks?|heads?)$": 10**4, r"experts$": 10**5, r"(size|dim|d_model|embd|inner|ff)$": 10**8}
"""The largest numbers that names of this kind may have: transformers makes a module for each layer that is promised."""


def read(source: str, options: dict[str, Any]) -> tuple[Any, bool]:
    """Return the configuration of a model, and whether the model is a masked one.

    Args:
        source: folder or hub id.
        options: keyword arguments of ``from_pretrained``.

    Raises:
        BadInput: code of its own, quantised weights that cannot be used, no language-model head, an encoder with a
            decoder, or sizes that no machine has memory for.
        Exception: what transformers and the hub raise if there is no configuration, or an unknown one.
    """
    from transformers import AutoConfig, PretrainedConfig

    check_sizes(PretrainedConfig.get_config_dict(source, **options)[0])
    try:
        config = AutoConfig.from_pretrained(source, **options, **OWN_CODE)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise BadInput(
            "it brings its own code, which is not run: choose a model that transformers itself implements"
        ) from None
    quantisation.check(getattr(config, "quantization_config", None))
    masked = is_masked(config)
    check_class(config, masked)
    return config, masked


def check_class(config: Any, masked: bool) -> None:
    """Refuse what transformers builds neither as a causal nor as a masked language model."""
    from transformers.models.auto import modeling_auto as auto

    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        count = getattr(config, name, 1)
        if isinstance(count, int) and count < 1:
            raise BadInput(f"{name} is {count} in its config.json: restore the file that belongs to the weights")
    names = tuple(config.architectures or ())
    what = names[0] if names else config.model_type
    if getattr(config, "is_encoder_decoder", False) and not what.endswith("ForCausalLM"):
        raise BadInput(f"{what} is an encoder and a decoder: choose a causal or masked language model")
    table = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES if masked else auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.model_type not in table:
        raise BadInput(
            f"{what} is not built as a causal or masked language model (it may read images or sound): choose a model "
            "of text"
        )


def check_sizes(values: dict[str, Any]) -> None:
    """Refuse a configuration of sizes that no machine has memory for.

    Raises:
        BadInput: with the first such number.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            check_sizes(value)
        limit = next((limit for pattern, limit in LIMITS.items() if re.search(pattern, name)), None)
        if isinstance(value, int) and limit is not None and value > limit:
            raise BadInput(f"its config.json asks for {name} beyond {limit}: restore that file from a copy")


def is_masked(config: Any) -> bool:
    """Return whether a configuration is that of a masked model, by its ``architectures``.

    Raises:
        BadInput: the model has no language-model head of either kind.
    """
    from transformers.models.auto import modeling_auto as auto

    names = tuple(config.architectures or ())
    masked = {*auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()}.intersection(names)
    causal = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}.intersection(names)
    if masked or causal:  # XLM has one class for both
        return bool(masked) and not (causal and getattr(config, "causal", False))
    if any(name.endswith(_MASKED) for name in names):
        return True
    if any(name.endswith(_CAUSAL) for name in names):
        return False
    if not names:
        if config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return True
        if config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return False
    what = names[0] if names else config.model_type
    raise BadInput(f"{what} has no language-model head: choose a causal or masked language model")

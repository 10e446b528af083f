"""The configuration of a saved model: what can be tuned, from ``config.json`` alone."""

from __future__ import annotations

from typing import Any, Final

from gradless.errors import BadInput

OWN_CODE: Final[dict[str, Any]] = {"trust_remote_code": False}
"""For every from_pretrained: code that comes with a model is not run, nor is the user asked on the terminal."""
_CAUSAL: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_MASKED: Final = ("ForMaskedLM", "ForPreTraining")


def read(place: str, where: dict[str, Any]) -> tuple[Any, bool]:
    """The configuration, and whether it is that of a masked model.

    Args:
        place: folder or hub id.
        where: keywords of ``from_pretrained``.

    Raises:
        BadInput: code of its own, quantised weights, no language-model head.
        Exception: what transformers and the hub raise if there is none, or an unknown one.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(place, **where, **OWN_CODE)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise BadInput(
            "it brings its own code, which is not run: choose a model that transformers itself implements"
        ) from None
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
        said = f" ({getattr(how, 'value', how)})" if how else ""
        raise BadInput(f"its weights are quantised{said}, and only float weights are tuned: choose the original model")
    return config, is_masked(config)


def is_masked(config: Any) -> bool:
    """Whether a configuration is that of a masked model, by its ``architectures``.

    Raises:
        BadInput: it has no language-model head of either kind.
    """
    from transformers.models.auto import modeling_auto as auto

    names = tuple(config.architectures or ())
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

"""Language models: loading, tuning schemes, prompts to tokens, losses and predictions.

This page offers the names that other packages use as ``lm.NAME``; all others live in their modules.
"""

from gradless.lm.loading import (
    DTYPES,
    LanguageModel,
    device_of,
    is_gguf,
    load,
    preload,
    quiet_transformers,
    sources,
    tiny,
)

__all__ = [
    "DTYPES",
    "LanguageModel",
    "device_of",
    "is_gguf",
    "load",
    "preload",
    "quiet_transformers",
    "sources",
    "tiny",
]

"""Language models: loading, tuning schemes, prompts to tokens, losses and predictions.

This page offers the names that other packages use as ``lm.NAME``; all others live in their modules.
"""

from gradless.lm.devices import device_of
from gradless.lm.loading import DTYPES, LanguageModel, load, preload, tiny
from gradless.lm.model_names import is_gguf, sources
from gradless.lm.quiet import quiet_transformers

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

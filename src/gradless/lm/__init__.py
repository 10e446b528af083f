"""Language models: loading, adapters, prompts to tokens, losses and predictions.

The names of this page load `gradless.lm.loading` and `gradless.lm.tiny_models`; all others live in their modules.
"""

from gradless.lm.loading import (
    DTYPES,
    LanguageModel,
    device_of,
    keep,
    load,
    quiet_transformers,
    sources,
    tiny,
)

__all__ = ["DTYPES", "LanguageModel", "device_of", "keep", "load", "quiet_transformers", "sources", "tiny"]

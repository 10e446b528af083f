"""Nothing of transformers' warnings, log lines and bars where this package says what matters itself."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress warnings, log lines and progress bars of transformers; afterwards its settings are as before."""
    from transformers.utils import logging as hf

    verbosity, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            hf.enable_progress_bar()

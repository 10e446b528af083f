"""gradless: fine-tune language models with forward passes only.

The optimizer is a `torch.optim.Optimizer` whose step needs a loss, not a gradient::

    import gradless as gl

    opt = gl.mezo(model.named_parameters(), lr=3e-6, eps=1e-3, seed=0)
    loss = opt.step(lambda: model(**batch).loss)
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and "gradless" in sys.orig_argv and not sys.flags.safe_path:
    del sys.path[0]  # python -m gradless puts the current folder first, whose torch.py is not the one that is meant

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from gradless.system import moved

if TYPE_CHECKING:
    from gradless.accept import *
    from gradless.directions import *
    from gradless.errors import *
    from gradless.estimators import *
    from gradless.forward.model_blocks import *
    from gradless.gradients import *
    from gradless.integrations.tuned_run import *
    from gradless.methods.baselines import *
    from gradless.methods.layer_scales import *
    from gradless.methods.mezo import *
    from gradless.methods.recent import *
    from gradless.methods.zobench import *
    from gradless.optimizer import *
    from gradless.rules import *
    from gradless.runs.load_classifier import *

__version__ = "0.1.0"

moved.install()
if "ipykernel" in sys.modules:  # of tqdm, which transformers imports; gradless needs no widgets
    warnings.filterwarnings("ignore", message="IProgress not found")

# A public name stands in ``__all__`` of one of these modules. They are searched in this order when a name is first
# used, so that the command line answers before torch is imported.
_HOMES = (
    "errors",
    "accept",
    "gradients",
    "directions",
    "estimators",
    "rules",
    "optimizer",
    "forward.model_blocks",
    "methods.mezo",
    "methods.zobench",
    "methods.recent",
    "methods.baselines",
    "methods.layer_scales",
    "runs.load_classifier",
    "integrations.tuned_run",
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Return a public name from the module that declares it; ModuleNotFoundError for a module that has moved."""
        # A submodule is not searched for: the import system finds it after an AttributeError.
        if not name.startswith("_") and importlib.util.find_spec(f"gradless.{name}") is None:
            for home in _HOMES:
                module = importlib.import_module(f"gradless.{home}")
                if name in module.__all__:
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module 'gradless' has no attribute '{name}'")

    def __dir__() -> list[str]:
        homes = (importlib.import_module(f"gradless.{home}") for home in _HOMES)
        return sorted({*globals(), *(name for module in homes for name in module.__all__)})

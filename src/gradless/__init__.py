"""gradless: fine-tune language models with forward passes only.

The optimizer is a `torch.optim.Optimizer` whose step needs a loss, not a gradient::

    import gradless as gl

    opt = gl.mezo(model.named_parameters(), lr=3e-6, eps=1e-3, seed=0)
    loss = opt.step(lambda: model(**batch).loss)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradless.directions import gaussian as gaussian
    from gradless.directions import low_rank as low_rank
    from gradless.directions import rademacher as rademacher
    from gradless.directions import scaled as scaled
    from gradless.errors import BadInput as BadInput
    from gradless.errors import Diverged as Diverged
    from gradless.estimators import linear_queries as linear_queries
    from gradless.estimators import one_sided as one_sided
    from gradless.estimators import spsa as spsa
    from gradless.gradients import Mixture as Mixture
    from gradless.gradients import Sketch as Sketch
    from gradless.methods import lozo as lozo
    from gradless.methods import mezo as mezo
    from gradless.methods import mezo_adam as mezo_adam
    from gradless.methods import mezo_gaussian as mezo_gaussian
    from gradless.methods import mezo_momentum as mezo_momentum
    from gradless.methods import mezo_one_sided as mezo_one_sided
    from gradless.optimizer import ZerothOrder as ZerothOrder
    from gradless.optimizer import always as always
    from gradless.rules import adam as adam
    from gradless.rules import chain as chain
    from gradless.rules import constant as constant
    from gradless.rules import cosine as cosine
    from gradless.rules import linear as linear
    from gradless.rules import momentum as momentum
    from gradless.rules import scale as scale
    from gradless.scales import gradient_norm_scales as gradient_norm_scales
    from gradless.scales import parameter_norm_scales as parameter_norm_scales

__version__ = "0.1.0"

# Names load their module when they are first used, so that the command line answers before torch is imported.
_HOMES = {
    name: module
    for module, names in {
        "gradless.directions": ("gaussian", "low_rank", "rademacher", "scaled"),
        "gradless.errors": ("BadInput", "Diverged"),
        "gradless.estimators": ("linear_queries", "one_sided", "spsa"),
        "gradless.gradients": ("Mixture", "Sketch"),
        "gradless.methods": ("lozo", "mezo", "mezo_adam", "mezo_gaussian", "mezo_momentum", "mezo_one_sided"),
        "gradless.optimizer": ("ZerothOrder", "always"),
        "gradless.scales": ("gradient_norm_scales", "parameter_norm_scales"),
        "gradless.rules": ("adam", "chain", "constant", "cosine", "linear", "momentum", "scale"),
    }.items()
    for name in names
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The public name from the module that defines it."""
        if name not in _HOMES:
            raise AttributeError(f"module 'gradless' has no attribute '{name}'")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})

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
    from gradless.accept import always as always
    from gradless.accept import conservative as conservative
    from gradless.directions import gaussian as gaussian
    from gradless.directions import low_rank as low_rank
    from gradless.directions import rademacher as rademacher
    from gradless.directions import scaled as scaled
    from gradless.errors import BadInput as BadInput
    from gradless.errors import Diverged as Diverged
    from gradless.estimators import backprop as backprop
    from gradless.estimators import forward_grad as forward_grad
    from gradless.estimators import hybrid as hybrid
    from gradless.estimators import linear_queries as linear_queries
    from gradless.estimators import one_sided as one_sided
    from gradless.estimators import spsa as spsa
    from gradless.gradients import Dense as Dense
    from gradless.gradients import Mixture as Mixture
    from gradless.gradients import Sketch as Sketch
    from gradless.layers import blocks as blocks
    from gradless.layers import checkpointing as checkpointing
    from gradless.masks import input_norms as input_norms
    from gradless.masks import masked as masked
    from gradless.masks import sparse as sparse
    from gradless.methods.baselines import fo_adam as fo_adam
    from gradless.methods.baselines import fo_sgd as fo_sgd
    from gradless.methods.baselines import forward_gradient as forward_gradient
    from gradless.methods.baselines import hybrid_zo_fo as hybrid_zo_fo
    from gradless.methods.frontier import fzoo as fzoo
    from gradless.methods.frontier import lezo as lezo
    from gradless.methods.frontier import mezo_rms as mezo_rms
    from gradless.methods.frontier import sparse_mezo as sparse_mezo
    from gradless.methods.frontier import zo_muon as zo_muon
    from gradless.methods.mezo import lozo as lozo
    from gradless.methods.mezo import mezo as mezo
    from gradless.methods.mezo import mezo_adam as mezo_adam
    from gradless.methods.mezo import mezo_gaussian as mezo_gaussian
    from gradless.methods.mezo import mezo_momentum as mezo_momentum
    from gradless.methods.mezo import mezo_one_sided as mezo_one_sided
    from gradless.methods.zobench import zo_adam as zo_adam
    from gradless.methods.zobench import zo_block as zo_block
    from gradless.methods.zobench import zo_blockwise as zo_blockwise
    from gradless.methods.zobench import zo_cons as zo_cons
    from gradless.methods.zobench import zo_momentum as zo_momentum
    from gradless.methods.zobench import zo_scalar_sign as zo_scalar_sign
    from gradless.methods.zobench import zo_sign as zo_sign
    from gradless.methods.zobench import zo_sparse as zo_sparse
    from gradless.moments import clip as clip
    from gradless.moments import heavy_ball as heavy_ball
    from gradless.moments import stored_adam as stored_adam
    from gradless.muon import orthogonalise as orthogonalise
    from gradless.optimizer import ZerothOrder as ZerothOrder
    from gradless.rules import adam as adam
    from gradless.rules import chain as chain
    from gradless.rules import constant as constant
    from gradless.rules import cosine as cosine
    from gradless.rules import linear as linear
    from gradless.rules import momentum as momentum
    from gradless.rules import on_stored as on_stored
    from gradless.rules import scale as scale
    from gradless.scales import gradient_norm_scales as gradient_norm_scales
    from gradless.scales import parameter_norm_scales as parameter_norm_scales
    from gradless.signs import rms_normalised as rms_normalised
    from gradless.signs import scalar_sign as scalar_sign
    from gradless.signs import sign as sign
    from gradless.signs import std_normalised as std_normalised
    from gradless.subsets import one_by_one as one_by_one
    from gradless.subsets import random_blocks as random_blocks

__version__ = "0.1.0"

# Names load their module when they are first used, so that the command line answers before torch is imported.
_HOMES = {
    name: module
    for module, names in {
        "gradless.accept": (
            "always",
            "conservative",
        ),
        "gradless.directions": (
            "gaussian",
            "low_rank",
            "rademacher",
            "scaled",
        ),
        "gradless.errors": (
            "BadInput",
            "Diverged",
        ),
        "gradless.estimators": (
            "backprop",
            "forward_grad",
            "hybrid",
            "linear_queries",
            "one_sided",
            "spsa",
        ),
        "gradless.gradients": (
            "Dense",
            "Mixture",
            "Sketch",
        ),
        "gradless.layers": (
            "blocks",
            "checkpointing",
        ),
        "gradless.masks": (
            "input_norms",
            "masked",
            "sparse",
        ),
        "gradless.methods.baselines": (
            "fo_adam",
            "fo_sgd",
            "forward_gradient",
            "hybrid_zo_fo",
        ),
        "gradless.methods.frontier": (
            "fzoo",
            "lezo",
            "mezo_rms",
            "sparse_mezo",
            "zo_muon",
        ),
        "gradless.methods.mezo": (
            "lozo",
            "mezo",
            "mezo_adam",
            "mezo_gaussian",
            "mezo_momentum",
            "mezo_one_sided",
        ),
        "gradless.methods.zobench": (
            "zo_adam",
            "zo_block",
            "zo_blockwise",
            "zo_cons",
            "zo_momentum",
            "zo_scalar_sign",
            "zo_sign",
            "zo_sparse",
        ),
        "gradless.moments": (
            "clip",
            "heavy_ball",
            "stored_adam",
        ),
        "gradless.muon": ("orthogonalise",),
        "gradless.optimizer": ("ZerothOrder",),
        "gradless.rules": (
            "adam",
            "chain",
            "constant",
            "cosine",
            "linear",
            "momentum",
            "on_stored",
            "scale",
        ),
        "gradless.scales": (
            "gradient_norm_scales",
            "parameter_norm_scales",
        ),
        "gradless.signs": (
            "rms_normalised",
            "scalar_sign",
            "sign",
            "std_normalised",
        ),
        "gradless.subsets": (
            "one_by_one",
            "random_blocks",
        ),
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

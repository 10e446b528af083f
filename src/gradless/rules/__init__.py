"""Update rules: functions from gradients to gradients that are chained by composition, and learning-rate schedules."""

from gradless.rules.base import (
    Rule as Rule,
)
from gradless.rules.base import (
    Window as Window,
)
from gradless.rules.base import (
    adam,
    chain,
    momentum,
    on_stored,
    scale,
)
from gradless.rules.base import (
    like as like,
)
from gradless.rules.base import (
    plain as plain,
)
from gradless.rules.muon import orthogonalise
from gradless.rules.normalise import rms_normalised, scalar_sign, sign, std_normalised
from gradless.rules.schedules import SCHEDULES as SCHEDULES
from gradless.rules.schedules import Schedule as Schedule
from gradless.rules.schedules import constant, cosine, linear
from gradless.rules.stored import clip, heavy_ball, stored_adam

__all__ = [
    "adam",
    "chain",
    "clip",
    "constant",
    "cosine",
    "heavy_ball",
    "linear",
    "momentum",
    "on_stored",
    "orthogonalise",
    "rms_normalised",
    "scalar_sign",
    "scale",
    "sign",
    "std_normalised",
    "stored_adam",
]

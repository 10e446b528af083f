"""Update rules: functions from gradients to gradients that are chained by composition, and learning-rate schedules."""

from typing import Final

from gradless.gradients import Part
from gradless.rules import base, muon, normalise, stored
from gradless.rules.base import Rule as Rule
from gradless.rules.base import Window as Window
from gradless.rules.base import adam, chain, momentum, on_stored, scale
from gradless.rules.base import like as like
from gradless.rules.base import plain as plain
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

RULES: Final[dict[str, Part[Rule]]] = {
    "scale": Part(base.scale, "the learning rate, or its schedule", "", "none"),
    "chain": Part(base.chain, "rules in order", "", "that of its rules", "that of its rules"),
    "momentum": Part(
        base.momentum,
        "heavy ball, recomputed from past scalars",
        "Malladi et al. 2023, arXiv 2305.17333",
        "directions of 66 steps a step at beta = 0.9",
        "scalars of these steps",
    ),
    "adam": Part(
        base.adam,
        "Adam, recomputed from past scalars",
        "Malladi et al. 2023, arXiv 2305.17333; Kingma and Ba 2015, arXiv 1412.6980",
        "directions of 64 steps a step, twice unless K = 1",
        "scalars of these steps; three float32 copies of a leaf for a moment",
    ),
    "heavy_ball": Part(
        stored.heavy_ball,
        "heavy ball with a buffer",
        "Zhang et al. 2024, arXiv 2402.11592",
        "one pass",
        "4 bytes a weight",
    ),
    "stored_adam": Part(
        stored.stored_adam,
        "Adam with stored moments, as torch.optim.Adam",
        "Kingma and Ba 2015, arXiv 1412.6980",
        "one pass",
        "8 bytes a weight",
    ),
    "clip": Part(stored.clip, "a largest norm for stored gradients", "", "one pass over the stored gradient"),
    "sign": Part(
        normalise.sign, "the sign of every element", "Liu et al. 2019", "one float32 copy of a leaf for a moment"
    ),
    "scalar_sign": Part(
        normalise.scalar_sign,
        "the sign of every projected gradient",
        "Zhang et al. 2024, arXiv 2402.11592",
        "none",
    ),
    "std_normalised": Part(
        normalise.std_normalised,
        "coefficients over their standard deviation in a step",
        "Dang et al. 2025, arXiv 2506.09034",
        "none; needs several queries",
    ),
    "rms_normalised": Part(
        normalise.rms_normalised,
        "coefficients over their running root mean square",
        "Dbouk et al. 2026, arXiv 2605.03869",
        "none",
        "two numbers",
    ),
    "orthogonalise": Part(
        muon.orthogonalise,
        "the polar factor of every matrix of low-rank directions",
        "Lang et al. 2026, arXiv 2602.17155",
        "(rows + columns) rank^2 operations a matrix",
    ),
    "on_stored": Part(
        base.on_stored, "another rule on stored gradients only", "", "that of the rule", "that of the rule"
    ),
}
"""Update rules by the name of their function."""

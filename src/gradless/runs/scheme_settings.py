"""What the settings of a run have to do with its scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gradless.errors import BadInput

if TYPE_CHECKING:
    from gradless.methods import Method

# First guesses by scheme, from the MeZO authors (princeton-nlp/MeZO#7) where they give one: (lr, eps).
DEFAULTS: Final = {
    "full": (1e-6, 1e-3),
    "lora": (1e-4, 1e-2),
    "prefix": (1e-2, 1e-1),
    "prompt": (1e-3, 1e-2),
    "head": (1e-3, 1e-2),
    "scales": (1e-8, 1e-4),
    "codes": (1.0, 1.0),  # eps is a number of codes
}
STORED: Final = ("scales", "codes")
"""Schemes that tune the numbers of a GGUF file, and end in one."""


def check(config: Any, method: Method) -> None:
    """Refuse what the numbers of a GGUF file cannot have: derivatives, decay, amplitudes of their own.

    Args:
        config: the `gradless.runs.config.TuneConfig`.
        method: the method that it names.

    Raises:
        BadInput: with the setting.
    """
    if config.scheme not in STORED:
        return
    if method.differentiates:
        raise BadInput(
            f"the scheme {config.scheme} has no derivatives, which the method {config.method} needs: use a method of "
            "losses alone, such as mezo"
        )
    if config.scheme == "codes" and config.eps is not None and config.eps % 1:
        raise BadInput(f"--eps is a number of codes, not {config.eps:g}: give a whole one, such as 1")
    if config.scheme == "codes" and (config.weight_decay or config.layer_scale != "none"):
        what = "--weight-decay" if config.weight_decay else "--layer-scale"
        raise BadInput(f"{what} is for weights of any value, and codes are whole numbers: leave it out")

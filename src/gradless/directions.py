"""Random directions z: what a query perturbs along.

A direction is a record of two facts: how one leaf's z is drawn from (key, name), and what is frozen before the first
step (amplitudes, masks), so that nothing about z can change while weights are being nudged. The two built-in streams,
`rademacher` and `gaussian`, are fused into the kernels; any other direction is one function with a ``draw``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from gradless.errors import BadInput


class Frozen(NamedTuple):
    """What the directions fix for one leaf before the first step."""

    probe: float = 1.0  # amplitude of z in the probe
    update: float = 1.0  # amplitude of z in the update
    mask: Tensor | None = None  # bool, like the parameter; None: every element


def no_freeze(params: Mapping[str, Tensor]) -> Mapping[str, Frozen]:
    """Unit amplitude, every element."""
    return {name: Frozen() for name in params}


class Directions(NamedTuple):
    """How z is drawn.

    ``draw(key, name, p)`` must be a function of its arguments' key, name and shape alone (float32, like ``p``); None
    means the fused stream chosen by ``gaussian``. ``freeze`` maps parameters to `Frozen` once, before the first step;
    a leaf that it leaves out is not tuned.
    """

    name: str
    gaussian: bool = False
    draw: Callable[[int, str, Tensor], Tensor] | None = None
    freeze: Callable[[Mapping[str, Tensor]], Mapping[str, Frozen]] = no_freeze


def rademacher() -> Directions:
    """+1 or -1 for every element with probability 1/2: one bit a weight, exact in every float format.

    Same mean and covariance as the Gaussian, smaller fourth moment. Spall 1992 uses it for SPSA.
    """
    return Directions("rademacher")


def gaussian() -> Directions:
    """Standard normal through a table of 65,536 quantiles with exact unit variance: the same bits everywhere.

    The direction of MeZO (Malladi et al. 2023, arXiv 2305.17333).
    """
    return Directions("gaussian", gaussian=True)


def scaled(
    base: Directions, scales: Mapping[str, float], *, mode: Literal["variance", "expectation"] = "variance"
) -> Directions:
    """Per-layer perturbation scales (MeZO appendix B.3 and B.4).

    ``variance`` perturbs along z / d and updates along d z: still unbiased, with another variance (definition 6).
    ``expectation`` perturbs along z / d and updates along z: the gradient divided by d, biased on purpose
    (definition 7), a normalised update when d is the layer's gradient norm.

    Args:
        base: directions to scale.
        scales: d of every leaf by name; positive and finite. `gradless.scales` computes usual ones.
        mode: which of the two.

    Example:
        >>> import torch
        >>> scaled(rademacher(), {"w": 2.0}).freeze({"w": torch.zeros(3)})["w"]
        Frozen(probe=0.5, update=2.0, mask=None)
    """
    if mode not in ("variance", "expectation"):
        raise BadInput(f"unknown scaling mode '{mode}': use 'variance' or 'expectation'")
    for name, d in scales.items():
        if not 0 < d < float("inf"):
            raise BadInput(f"the scale of '{name}' is {d}: scales must be positive and finite")

    def freeze(params: Mapping[str, Tensor]) -> Mapping[str, Frozen]:
        missing = [name for name in params if name not in scales]
        if missing:
            raise BadInput(f"no scale for parameter '{missing[0]}': give one for every tuned parameter")
        frozen = base.freeze(params)
        return {
            name: old._replace(
                probe=old.probe / scales[name],
                update=old.update * (scales[name] if mode == "variance" else 1.0),
            )
            for name, old in frozen.items()
        }

    return base._replace(name=f"{base.name}-{mode}", freeze=freeze)

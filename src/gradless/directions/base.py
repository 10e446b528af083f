"""Random directions z: what a query perturbs along.

A direction is a record of two facts: how one leaf's z is drawn from (key, name), and what is frozen before the first
step (amplitudes, masks), so that nothing about z can change while weights are being nudged. The two built-in streams,
`rademacher` and `gaussian`, are fused into the kernels; any other direction is one function with a ``draw``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from gradless.errors import BadInput
from gradless.rng import GAUSSIAN, MAX_RANK, RADEMACHER, TERNARY, Stream, basis_key, direction_key


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
    means the fused ``stream``. ``freeze`` maps parameters to `Frozen` once, before the first step;
    a leaf that it leaves out is not tuned.
    """

    name: str
    stream: Stream = RADEMACHER
    draw: Callable[[int, str, Tensor], Tensor] | None = None
    freeze: Callable[[Mapping[str, Tensor]], Mapping[str, Frozen]] = no_freeze
    key: Callable[[int, int, int], int] = direction_key  # (seed, step, query) -> key
    # (names) -> for names of leaves that not every z(key) reaches, which keys do (`gradless.directions.blocks`)
    active: Callable[[Sequence[str]], Mapping[str, Callable[[int], bool]]] | None = None


def stream_for(directions: Directions, p: Tensor) -> Stream:
    """How z is drawn on one parameter: a factorisation that would not be smaller than z gives way to full signs."""
    stream = directions.stream
    full = stream.kind != "low_rank" or (
        p.ndim > 1 and p.numel() > 0 and min(p.shape[0], p.numel() // p.shape[0]) > stream.rank
    )
    return stream if full else RADEMACHER


def rademacher() -> Directions:
    """+1 or -1 for every element with probability 1/2: one bit a weight, exact in every float format.

    Same mean and covariance as the Gaussian, smaller fourth moment. Spall 1992 uses it for SPSA.
    """
    return Directions("rademacher")


def gaussian() -> Directions:
    """Standard normal through a table of 65,536 quantiles with exact unit variance: the same bits everywhere.

    The direction of MeZO (Malladi et al. 2023, arXiv 2305.17333).
    """
    return Directions("gaussian", GAUSSIAN)


def ternary(density: float = 0.02) -> Directions:
    """+1, -1 or, for most elements, 0: what moves whole codes of quantised weights by one.

    A dense direction would have to be rounded to codes, and the noise of that drowns its signal. Amplitudes are such
    that the elements are whole: eps and learning rates count codes, and the estimate is ``density`` times the gradient.
    Integer moves of quantised weights: QES 2026 (arXiv 2602.03120).

    Args:
        density: share of elements that are not 0, at least 2**-15; rounded to a multiple of that.

    Raises:
        BadInput: a share that is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise BadInput(f"density is {density}: the share of elements that move is above 0 and at most 1")
    stream = Stream("ternary", max(1, round(density * TERNARY)))

    def freeze(params: Mapping[str, Tensor]) -> Mapping[str, Frozen]:
        return {name: Frozen(1 / stream.unit, 1 / stream.unit) for name in params}

    return Directions(f"ternary-{stream.rank}", stream, freeze=freeze)


def low_rank(rank: int = 8, *, refresh: int = 50) -> Directions:
    """Z = U V^T / sqrt(rank) for every matrix, with factors of +1/-1; full signs for vectors.

    U is new in every query, V only every ``refresh`` steps. So a forward needs no perturbed weights: x z is two thin
    products beside x W, and the updates of up to ``refresh`` steps are one small matrix times V^T until they are
    written. Elements have mean 0, variance 1 and no correlation, as those of `rademacher`: unbiased all the same.

    Lazy V: Chen et al. 2024 (LOZO, arXiv 2410.07698). Low-rank members of a batch through one product: Sarkar et al.
    2025 (EGGROLL, arXiv 2511.16652). Both draw Gaussian factors; signs make every element exact on any hardware.

    Args:
        rank: columns of U and V, 1 to 32. Matrices with no more rows or columns get full signs, too.
        refresh: steps that share V.

    Raises:
        BadInput: a number out of range.
    """
    if not 1 <= rank <= MAX_RANK:
        raise BadInput(f"rank is {rank}: low-rank directions take 1 to {MAX_RANK}")
    if refresh < 1:
        raise BadInput(f"refresh is {refresh}: V must serve at least one step")

    def key(seed: int, step: int, query: int) -> int:
        return basis_key(seed, step // refresh) << 64 | direction_key(seed, step, query)

    return Directions(f"low_rank-{rank}-{refresh}", Stream("low_rank", rank), key=key)


def scaled(
    base: Directions, scales: Mapping[str, float], *, mode: Literal["variance", "expectation"] = "variance"
) -> Directions:
    """Per-layer perturbation scales (MeZO appendix B.3 and B.4).

    ``variance`` perturbs along z / d and updates along d z: still unbiased, with another variance (definition 6).
    ``expectation`` perturbs along z / d and updates along z: the gradient divided by d, biased on purpose
    (definition 7), a normalised update when d is the layer's gradient norm.

    Args:
        base: directions to scale.
        scales: d of every leaf by name; positive and finite. `gradless.methods.layer_scales` computes usual ones.
        mode: which of the two.

    Raises:
        BadInput: an unknown mode or a scale that is not positive; later, a parameter without a scale.

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

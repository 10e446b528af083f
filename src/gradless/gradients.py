"""The values that flow between the axes: a gradient that costs K floats, and its forms after the rules.

`Sketch` is the estimate, the log entry and the message of a peer: K keys and K coefficients. Linear rules turn it
into a `Mixture` (any linear combination of directions, still only scalars); rules that need each element turn it into
a `Lazy` gradient, made leaf by leaf; what backpropagation finds is `Dense`. All have the same verb, ``leaf()``, so
rules, acceptance and the optimizer do not care which one they hold.

Shapes: K queries of one step, J terms of a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from gradless import kernels
from gradless.kernels import reference
from gradless.kernels.program import Program, restrict
from gradless.rng import Stream

__all__ = ["Dense", "Mixture", "Sketch"]


class Leaf(NamedTuple):
    """One tuned parameter and how the directions treat it."""

    name: str
    param: Tensor
    id: int  # counter half, from the name
    group: int  # index of its parameter group
    draw: Callable[[int, str, Tensor], Tensor] | None  # custom direction, or None for the fused streams
    stream: Stream
    probe: float  # amplitude of z when the loss is probed
    update: float  # amplitude of z in the update
    mask: Tensor | None  # bool, like param; None: every element
    active: Callable[[int], bool] | None = None  # whether z(key) reaches this leaf; None: always
    highest: int = 0  # of `gradless.storage.codes.Codes`; 0: floats

    def terms(self, program: Program) -> Program:
        """What a program does to this leaf."""
        return program if self.active is None else restrict(program, self.active)

    def reached(self, key: int) -> bool:
        """Whether z(key) reaches this leaf."""
        return self.active is None or self.active(key)


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float64: on its device, or on the CPU if that is an Apple GPU, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def length(x: Tensor) -> float:
    """The L2 norm of a tensor, summed in float64."""
    return float(torch.linalg.vector_norm(x if x.device.type != "mps" else wide(x), dtype=torch.float64))


Made = TypeVar("Made")


class Part(NamedTuple, Generic[Made]):
    """A row of `DIRECTIONS`, `ESTIMATORS` or `RULES`: the function that makes the part, and facts for choosing it."""

    make: Callable[..., Made]
    summary: str
    source: str  # author and year, arXiv id; empty where there is none
    cost: str  # forwards, passes or draws; K: queries of a step
    state: str = "none"  # what is kept beside the weights

    @property
    def about(self) -> str:
        """The row in one line, without its name."""
        facts = [*([self.source] if self.source else []), f"cost: {self.cost}", f"state: {self.state}"]
        return f"{self.summary} ({'; '.join(facts)})"


class Gradient(Protocol):
    """Anything with a float32 share for each leaf."""

    def leaf(self, leaf: Leaf) -> Tensor:
        """This gradient's share of ``leaf``: float32, the parameter's shape."""


class Sketch(NamedTuple):
    """g = 1/K sum_k coeffs_k z(keys_k), never stored."""

    keys: tuple[int, ...]
    coeffs: tuple[float, ...]  # projected gradients, each representable in float32

    def mixture(self) -> Mixture:
        """The estimate as a linear combination of directions."""
        return Mixture(self.keys, tuple(c / len(self.coeffs) for c in self.coeffs))

    def leaf(self, leaf: Leaf) -> Tensor:
        """This gradient's share of ``leaf``: float32, the parameter's shape."""
        return self.mixture().leaf(leaf)


class Mixture(NamedTuple):
    """g = sum_j weights_j z(keys_j)."""

    keys: tuple[int, ...]
    weights: tuple[float, ...]

    def leaf(self, leaf: Leaf) -> Tensor:
        """This gradient's share of ``leaf``: float32, the parameter's shape."""
        zero = torch.zeros(leaf.param.shape, dtype=torch.float32, device=leaf.param.device)
        return combine(zero, leaf._replace(param=zero, highest=0), self, amplitude=leaf.update)


class Dense(NamedTuple):
    """Tensors for some leaves, as backpropagation makes them, and a mixture for all others."""

    tensors: Mapping[str, Tensor]  # by leaf name, each of its parameter's shape
    rest: Mixture

    def leaf(self, leaf: Leaf) -> Tensor:
        """This gradient's share of ``leaf``: float32, the parameter's shape."""
        stored = self.tensors.get(leaf.name)
        return self.rest.leaf(leaf) if stored is None else stored.float()


class Lazy(NamedTuple):
    """A gradient that is made leaf by leaf, on demand."""

    make: Callable[[Leaf], Tensor]

    def leaf(self, leaf: Leaf) -> Tensor:
        """This gradient's share of ``leaf``: float32, the parameter's shape."""
        return self.make(leaf)


def combine(
    out: Tensor,
    leaf: Leaf,
    mixture: Mixture,
    *,
    amplitude: float,
    scale: float = 1.0,
    decay: float = 1.0,
    rounding: int | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Out = round(decay * p + scale * amplitude * mixture) for one leaf, in one sweep.

    Args:
        out: target; may be the parameter itself.
        leaf: source and direction.
        mixture: the directions to add.
        amplitude: `Leaf.probe` or `Leaf.update`.
        scale: factor of the mixture, e.g. eps or minus the learning rate.
        decay: factor of the parameter.
        rounding: key of stochastic rounding for 16-bit leaves; None rounds to nearest.
        rows: only these rows of the leaf, into consecutive rows of ``out``.
    """
    weights = [scale * w for w in mixture.weights]
    if leaf.draw is None:
        run = kernels.program([(decay, mixture.keys, weights)], rounding=() if rounding is None else (rounding,))
        return kernels.sweep(
            out,
            leaf.param,
            leaf.terms(run),
            leaf=leaf.id,
            stream=leaf.stream,
            amplitude=amplitude,
            mask=leaf.mask,
            rows=rows,
            highest=leaf.highest,
        )
    source = leaf.param.detach()
    change = torch.zeros(source.shape, dtype=torch.float32, device=source.device)
    for key, weight in zip(mixture.keys, weights, strict=True):
        if not leaf.reached(key):
            continue
        change += leaf.draw(key, leaf.name, source) * (weight * amplitude)
    if rows is not None:  # rounded as the whole leaf is, since the bits that decide go by element
        return out.copy_(finish(torch.empty_like(source), leaf, change, decay=decay, rounding=rounding)[rows])
    return finish(out, leaf, change, decay=decay, rounding=rounding)


def finish(out: Tensor, leaf: Leaf, change: Tensor, *, decay: float, rounding: int | None) -> Tensor:
    """Out = round(decay * p + change) for a float32 ``change`` that is already made."""
    value = leaf.param.detach().float() * decay + change
    if leaf.mask is not None:
        value = torch.where(leaf.mask, value, leaf.param.detach().float())
    return out.copy_(reference.round_to(value, leaf.param.dtype, rounding, leaf.id, leaf.highest))


class Probe(NamedTuple):
    """The result of one probe; the weights are unchanged."""

    step: int
    loss: float  # mean of the evaluated losses
    sketch: Sketch
    forwards: int
    finite: bool
    tensors: Mapping[str, Tensor] | None = None  # stored gradients by leaf name, of estimators that make some
    random: Any = None  # the `gradless.forward.random_state.RandomState` that all its evaluations started from


class Update(NamedTuple):
    """One update, as a record of a ledger holds it."""

    step: int
    coeffs: tuple[float, ...]
    lrs: tuple[float, ...]  # per parameter group, times the factor of the acceptance policy
    skipped: bool

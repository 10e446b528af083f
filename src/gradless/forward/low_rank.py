"""Linear layers under low-rank directions: thin products beside the product with the base weights.

x (W + A V^T)^T = x W^T + (x V) A^T, where A gathers the pending updates of up to ``refresh`` steps and, for each point,
the perturbation. The weight is neither copied nor written; V and A take ``rank`` columns each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from gradless import kernels
from gradless.forward.deferred import Deferred
from gradless.forward.points import Points
from gradless.gradients import Leaf
from gradless.rng import MASK64, Stream


class Factors(NamedTuple):
    """What is known of one leaf while its pending updates share V."""

    basis: int  # second key
    right: Tensor  # V [columns, rank]
    left: Tensor  # A [rows, rank]: the pending updates
    written: int  # steps that the parameter held when A was zero
    seen: int  # steps that A and the parameter hold together


class LowRankLinear:
    """Low-rank factors of the leaves that are read by linear layers."""

    def __init__(self, deferred: Deferred) -> None:
        self._deferred = deferred
        self._known: dict[int, Factors] = {}
        self._ready: dict[int, tuple[Points, Tensor]] = {}  # A at the points of one forward

    def prefetch(self, leaves: Iterable[Leaf], points: Points) -> None:
        """Make the factors of all leaves that were asked for before, in a row: see `PerturbedWeights._prefetch`."""
        self._ready.clear()
        for leaf in leaves:
            if id(leaf.param) in self._known:
                factors = self.factors(leaf, points)
                if factors is not None:
                    self._ready[id(leaf.param)] = (points, factors[1])

    def factors(self, leaf: Leaf, points: Points) -> tuple[Tensor, Tensor] | None:
        """V ``[columns, rank]`` and A ``[C, rows, rank]`` at every point, or None where the leaf must be made whole.

        An update that is tried out is, since it is decayed and rounded as the weights will be. Pending updates along
        another V, or with weight decay, are written first.
        """
        ready = self._ready.get(id(leaf.param))
        if ready is not None and ready[0] is points:
            return self._known[id(leaf.param)].right, ready[1]
        program = points.program(leaf)
        bases = {int(basis) for basis in program.bases}
        if (
            points.update
            or leaf.stream.kind != "low_rank"
            or leaf.mask is not None
            or leaf.param.ndim != 2
            or len(bases) != 1
        ):
            return None
        (basis,) = bases
        known = self._current(leaf, basis)
        self._known.pop(id(leaf.param), None)  # an interrupt below leaves A between two states: it is made anew then
        pending = self._deferred.since(leaf, known.seen)
        outs = torch.empty((len(points), *known.left.shape), device=known.left.device)
        stream = Stream("factor", leaf.stream.rank)
        unit = leaf.stream.unit
        update, probe = points.amplitudes(leaf)
        kernels.fan(
            outs,
            known.left,
            pending,
            program,
            leaf=leaf.id,
            mirrored=points.mirrored,
            keep=True,
            stream=stream,
            amplitudes=(update * unit, probe * unit),
        )
        self._known[id(leaf.param)] = known._replace(seen=known.seen + pending.decays.size)
        return known.right, outs

    def _current(self, leaf: Leaf, basis: int) -> Factors:
        """The factors of a leaf along this V, made anew when they are out of date."""
        pending = self._deferred.pending(leaf)
        if pending.decays.size and not ((pending.bases == basis).all() and (pending.decays == 1.0).all()):
            self._deferred.flush([leaf])
        known = self._known.get(id(leaf.param))
        written = self._deferred.written(leaf)
        if known is not None and (known.basis, known.written) == (basis, written):
            return known
        p, rank = leaf.param, leaf.stream.rank
        if known is not None and known.basis == basis:
            right = known.right
        else:
            right = torch.zeros(p.shape[1], rank, device=p.device)
            signs = kernels.program([(1.0, [basis & MASK64], [1.0])])
            kernels.sweep(right, right, signs, leaf=leaf.id, stream=Stream("factor", rank))
        return Factors(basis, right, torch.zeros(p.shape[0], rank, device=p.device), written, written)

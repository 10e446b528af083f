"""Points near theta where losses are wanted, and the copies of one leaf there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradless import kernels, rng
from gradless.gradients import Leaf, Mixture, combine
from gradless.kernels.program import NOTHING, Program, is_wide
from gradless.storage.upcast import values_dtype

Scale = float | tuple[float, ...]  # one factor, or one for every parameter group


class Point(NamedTuple):
    """The point decay * theta + scale * mixture; the empty mixture is theta itself.

    ``rounding`` is the key of the stochastic rounding of 16-bit leaves. To nearest, a weight whose spacing is above
    2 eps would not be perturbed at all (the ones of a norm in bfloat16, say), and yet be updated: noise.
    """

    mixture: Mixture
    scale: Scale
    rounding: int
    decay: Scale = 1.0


def probe_point(key: int | None, scale: float) -> Point:
    """Theta + scale * z(key), or theta; +eps and -eps share the bits of their rounding."""
    if key is None:
        return Point(Mixture((), ()), 0.0, 0)
    return Point(Mixture((key,), (1.0,)), scale, rng.probe_rounding_key(key))


class Points:
    """Several points at once, as the kernels take them.

    Args:
        points: which; consecutive ones that differ only in the sign of their scale share one draw of z.
        update: scale leaves by their update amplitude instead of their probe amplitude.
    """

    def __init__(self, points: Sequence[Point], *, update: bool = False) -> None:
        self.points = tuple(points)
        self.update = update
        pairs = zip(self.points[::2], self.points[1::2], strict=False)
        self.mirrored = len(self.points) % 2 == 0 and all(_opposite(a, b) for a, b in pairs)
        self.decayed = any(factor != 1.0 for p in self.points for factor in _factors(p.decay))
        self._programs: dict[int, Program] = {}

    def __len__(self) -> int:
        return len(self.points)

    def program(self, leaf: Leaf) -> Program:
        """One step for each branch of a leaf; every second point is a mirror image."""
        group = leaf.group
        if group not in self._programs:
            drawn = self.points[::2] if self.mirrored else self.points
            self._programs[group] = kernels.program(
                [(1.0, p.mixture.keys, [factor_of(p.scale, group) * w for w in p.mixture.weights]) for p in drawn],
                rounding=[p.rounding for p in drawn],
            )
        return leaf.terms(self._programs[group])

    def untouched(self, leaves: Iterable[Leaf]) -> list[Leaf]:
        """The leaves that no point moves."""
        keys = [key for point in self.points for key in point.mixture.keys]
        return [leaf for leaf in leaves if leaf.active and not any(map(leaf.active, keys))]

    def amplitudes(self, leaf: Leaf) -> tuple[float, float]:
        """Factors of a pending update and of these points on one leaf."""
        return leaf.update, leaf.update if self.update else leaf.probe


def factor_of(scale: Scale, group: int) -> float:
    """The factor of one parameter group."""
    return scale[group] if isinstance(scale, tuple) else scale


def _factors(scale: Scale) -> tuple[float, ...]:
    return scale if isinstance(scale, tuple) else (scale,)


def _opposite(a: Point, b: Point) -> bool:
    if isinstance(a.scale, tuple) or isinstance(b.scale, tuple) or not a.mixture.keys:
        return False
    return a.scale == -b.scale and (a.mixture, a.rounding) == (b.mixture, b.rounding)


def branch(
    outs: Tensor, leaf: Leaf, points: Points, *, update: Program = NOTHING, keep: bool, rows: Tensor | None = None
) -> Tensor:
    """Write the leaf's values at every point to ``outs`` ``[C, *shape]`` in one visit.

    Float32 copies of a 16-bit leaf are not rounded, but where they stand for weights that will be: an update that is
    tried out, decayed points and custom directions.

    Args:
        outs: contiguous, of the leaf's dtype or float32; ``[C, len(rows), ...]`` when ``rows`` is given.
        leaf: source and direction.
        points: where.
        update: pending steps to run first.
        keep: write the leaf with these steps done back to the parameter.
        rows: only these rows of the leaf.
    """
    if is_wide(outs, leaf.param) and points.update | points.decayed | (leaf.draw is not None):
        rounded = torch.empty_like(outs, dtype=leaf.param.dtype)
        return outs.copy_(branch(rounded, leaf, points, update=update, keep=keep, rows=rows))
    if leaf.draw is None and not points.decayed:
        return kernels.fan(
            outs,
            leaf.param,
            update,
            points.program(leaf),
            leaf=leaf.id,
            mirrored=points.mirrored,
            keep=keep,
            stream=leaf.stream,
            amplitudes=points.amplitudes(leaf),
            mask=leaf.mask,
            rows=rows,
            highest=leaf.highest,
        )
    # Nothing is pending here: custom directions are not deferred, and a decayed point is asked for after a flush.
    for out, point in zip(outs, points.points, strict=True):
        combine(
            out,
            leaf,
            point.mixture,
            amplitude=points.amplitudes(leaf)[1],
            scale=factor_of(point.scale, leaf.group),
            decay=factor_of(point.decay, leaf.group),
            rounding=point.rounding,
            rows=rows,
        )
    return outs


class Visit(NamedTuple):
    """One leaf that is visited whole: where its copies go, and what is pending."""

    outs: Tensor  # [C, *shape], contiguous
    leaf: Leaf
    update: Program


def branch_many(visits: Sequence[Visit], points: Points) -> None:
    """`branch` for many leaves, as few launches as possible."""
    fans = []
    for outs, leaf, update in visits:
        keep = update.decays.size > 0
        if leaf.draw is not None or points.decayed or (points.update and is_wide(outs, leaf.param)):
            branch(outs, leaf, points, update=update, keep=keep)
            continue
        amplitudes, probes = points.amplitudes(leaf), points.program(leaf)
        more = (amplitudes, leaf.mask, leaf.highest)
        fans.append(kernels.Fan(outs, leaf.param, update, probes, leaf.id, keep, leaf.stream, *more))
    kernels.fan_many(fans, mirrored=points.mirrored)


def empty_copies(count: int, like: Tensor, rows: int | None = None) -> Tensor:
    """Room for ``count`` copies of a leaf, or of so many of its rows, in the type in which a forward reads it."""
    shape = like.shape if rows is None else (rows, *like.shape[1:])
    return torch.empty((count, *shape), dtype=values_dtype(like), device=like.device)

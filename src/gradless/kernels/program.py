"""The arguments of a kernel: a program of steps, and the region of a leaf that it visits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from torch import Tensor

from gradless import rng
from gradless.rng import RADEMACHER, Stream


class Identity:
    """What a program has in common with all that `on` makes of it, and with nothing else; may be referred to weakly."""


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """T steps ``p <- round(decay_t * p + sum_j coeffs_j z(keys_j))``, J terms in all; a program knows no leaf."""

    decays: np.ndarray  # float32 [T]
    starts: np.ndarray  # int64 [T + 1]: terms starts[t] .. starts[t + 1] belong to step t
    keys: np.ndarray  # uint64 [J]
    bases: np.ndarray  # uint64 [J] second keys, of low-rank streams
    coeffs: np.ndarray  # float32 [J] on one leaf, or float64 [J] before `on`
    rounding: np.ndarray  # uint64 [T] keys of stochastic rounding, or empty: round to nearest
    stream: Stream
    exact: np.ndarray  # float64 [J]; times `factor`, and rounded, these are the coefficients on one leaf
    factor: float = 1.0
    identity: Identity = field(default_factory=Identity, init=False)
    # What `on` and `restrict` made of this program, as long as it is in use: hundreds of leaves share it.
    derived: dict[Hashable, Program | None] = field(default_factory=dict, init=False)

    def to_nearest(self) -> Program:
        """This program without stochastic rounding."""
        return dataclasses.replace(self, rounding=self.rounding[:0]) if self.rounding.size else self


def on(program: Program, stream: Stream, amplitude: float, highest: int = 0) -> Program:
    """A program for a leaf of that stream and amplitude; its coefficients are rounded to float32 here.

    On a leaf of codes (``highest`` is not 0) steps of whole codes need no dice: they end in whole codes as they are.
    """
    known = program.derived.get((stream, amplitude, highest > 0))
    if known is None:
        factor = amplitude * stream.unit
        with np.errstate(over="ignore"):  # a rate beyond float32 gives weights that are not finite, which is told later
            coeffs = (program.coeffs * factor).astype(np.float32)
        whole = highest > 0 and stream.kind in WHOLE and (coeffs % 1 == 0).all() and (program.decays == 1).all()
        rounding = program.rounding[:0] if whole else program.rounding
        known = dataclasses.replace(program, coeffs=coeffs, stream=stream, factor=factor, rounding=rounding)
        if not whole:  # which kernels with dice must not share
            object.__setattr__(known, "identity", program.identity)
        program.derived[stream, amplitude, highest > 0] = known
    return known


WHOLE: Final = ("rademacher", "ternary")
"""Streams of whole numbers, before `Stream.unit`."""


class Region(NamedTuple):
    """The elements of a leaf that a kernel visits."""

    leaf: int  # 64-bit id
    rows: Tensor  # int64 indices; [0] when the whole leaf is one row
    width: int  # elements of such a row
    columns: int  # elements along all dimensions of the leaf but the first
    highest: int = 0  # of the codes of an integer leaf, whose values are 0 .. highest


class Fan(NamedTuple):
    """One leaf that `gradless.kernels.fan_many` visits whole: the arguments that `gradless.kernels.fan` has for it."""

    outs: Tensor  # [B, *shape] contiguous
    p: Tensor
    update: Program
    probes: Program
    leaf: int  # 64-bit id
    keep: bool
    stream: Stream = RADEMACHER
    amplitudes: tuple[float, float] = (1.0, 1.0)
    mask: Tensor | None = None
    highest: int = 0


class FlatFan(NamedTuple):
    """The same as a kernel module takes it."""

    outs: Tensor  # [B, n]
    p: Tensor  # [n], contiguous; a copy where the leaf is strided
    region: Region
    update: Program  # on the leaf's stream and amplitudes, as `probes`
    probes: Program
    mask: Tensor | None  # bool [n], contiguous


def is_wide(outs: Tensor, p: Tensor) -> bool:
    """Whether branches of a 16-bit leaf are float32, and so not rounded."""
    return outs.numel() > 0 and p.dtype.itemsize == 2 and outs.dtype != p.dtype


def program(steps: Sequence[tuple[float, Sequence[int], Sequence[float]]], *, rounding: Sequence[int] = ()) -> Program:
    """Build a program from steps ``(decay, keys, coeffs)``; its coefficients stay float64 until `on`.

    Args:
        steps: factor of the leaf, keys of directions, and their factors.
        rounding: a key of stochastic rounding for every step, or none to round to nearest.
    """
    keys = [key for _, keys, _ in steps for key in keys]
    with np.errstate(over="ignore"):  # as in `on`
        decays = np.array([decay for decay, _, _ in steps], dtype=np.float32)
    exact = np.array([c for _, _, coeffs in steps for c in coeffs], dtype=np.float64)
    return Program(
        decays=decays,
        starts=np.cumsum([0] + [len(keys) for _, keys, _ in steps]).astype(np.int64),
        keys=np.array([key & rng.MASK64 for key in keys], dtype=np.uint64),
        bases=np.array([key >> 64 for key in keys], dtype=np.uint64),
        coeffs=exact,
        exact=exact,
        rounding=np.array(rounding, dtype=np.uint64),
        stream=RADEMACHER,
    )


NOTHING = program(())


def restrict(program: Program, active: Callable[[int], bool]) -> Program:
    """A program without the terms whose keys are not active; its steps stay, if need be empty."""
    if active not in program.derived:
        program.derived[active] = _without(program, active)
    return program.derived[active] or program


def _without(program: Program, active: Callable[[int], bool]) -> Program | None:
    """`restrict`, or None where all terms stay."""
    keys = [int(basis) << 64 | int(key) for basis, key in zip(program.bases, program.keys, strict=True)]
    kept = np.array([active(key) for key in keys], dtype=bool)
    if kept.all():
        return None
    columns: dict[str, Any] = {name: getattr(program, name)[kept] for name in ("keys", "bases", "coeffs", "exact")}
    return dataclasses.replace(program, starts=np.concatenate(([0], np.cumsum(kept)))[program.starts], **columns)


def idle(program: Program) -> bool:
    """Whether a program leaves the bits of every weight alone."""
    return not program.keys.size and bool((program.decays == 1.0).all())


def join(programs: Sequence[Program]) -> Program:
    """The programs one after the other, as one; all must round in the same way."""
    if len(programs) == 1:
        return programs[0]
    lengths = np.concatenate([np.diff(one.starts) for one in programs])
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in programs])
        for name in ("decays", "keys", "bases", "coeffs", "exact", "rounding")
    }
    return dataclasses.replace(programs[0], starts=starts, **columns)

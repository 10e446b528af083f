"""Programs on a device: one small vector a step, whose place does not change from step to step.

The numbers of a step (keys, coefficients, decays) are data of the kernels and no arguments, so two steps launch the
same kernels with the same arguments. A vector belongs to its programs as long as something refers to them, and is then
written anew for the next ones with as many steps and terms.
"""

from __future__ import annotations

import itertools
import weakref
from typing import NamedTuple

import numpy as np
import torch

from gradless.kernels.program import Identity, Program

STEP, TERM = 4, 3  # words of a step and of a term
SPARE = 8  # vectors of a layout that are kept while no program is in them


class Queue(NamedTuple):
    """Where kernels are launched: another queue of the device could be ahead of the copy of a vector."""

    device: torch.device
    stream: int


class Layout(NamedTuple):
    """How long the parts of a vector are."""

    steps: tuple[int, ...]  # of every program
    terms: tuple[int, ...]
    bases: int


class Vector:
    """Some programs, one after the other, in the memory of a device."""

    def __init__(self, number: int, queue: Queue, layout: Layout) -> None:
        words = STEP * sum(layout.steps) + TERM * sum(layout.terms) + layout.bases
        self.number = number
        self.bases = layout.bases
        self.first_basis = words - layout.bases
        self.begins = [STEP * steps for steps in itertools.accumulate(layout.steps, initial=0)]  # of every program
        self.words = torch.empty(words, dtype=torch.int64, device=queue.device)
        self.owners: tuple[weakref.ref[Identity], ...] = ()

    def write(self, programs: tuple[Program, ...]) -> None:
        """Put programs of the same layout in place of those that are there, behind all kernels launched so far."""
        host = torch.from_numpy(_words(programs, self.bases))
        if self.words.device.type == "cuda":
            host = host.pin_memory()  # a copy of pageable memory would wait for all kernels before it
        self.words.copy_(host, non_blocking=True)


_numbers = itertools.count()
_written: dict[tuple[Queue, tuple[int, ...]], Vector] = {}  # by the identities of the programs
_spare: dict[tuple[Queue, Layout], list[Vector]] = {}


def vector(programs: tuple[Program, ...], queue: Queue) -> Vector:
    """The vector that holds these programs, whatever leaf they are on; written where there is none."""
    key = (queue, tuple([id(one.identity) for one in programs]))
    return _written.get(key) or _write(programs, queue, key)


def _write(programs: tuple[Program, ...], queue: Queue, key: tuple[Queue, tuple[int, ...]]) -> Vector:
    bases = len(np.unique(np.concatenate([one.bases for one in programs])))
    layout = Layout(tuple(one.decays.size for one in programs), tuple(one.keys.size for one in programs), bases)
    spare = _spare.setdefault((queue, layout), [])
    new = min(spare, key=lambda one: one.number) if spare else Vector(next(_numbers), queue, layout)
    if spare:
        spare.remove(new)

    def left(_: object) -> None:  # one of the programs is not in use any more
        if _written.pop(key, None) is new and len(spare) < SPARE:
            spare.append(new)

    new.write(programs)
    new.owners = tuple(weakref.ref(identity, left) for identity in {one.identity for one in programs})
    _written[key] = new
    return new


def _words(programs: tuple[Program, ...], bases_count: int) -> np.ndarray:
    """The content of a vector: int64."""
    decays, keys, exact = (
        np.concatenate([getattr(one, name) for one in programs]) for name in ("decays", "keys", "exact")
    )
    bases, which = np.unique(np.concatenate([one.bases for one in programs]), return_inverse=True)
    assert len(bases) == bases_count
    words = np.empty(STEP * len(decays) + TERM * len(keys) + len(bases), np.int64)
    head, body, tail = np.split(words, (STEP * len(decays), len(words) - len(bases)))
    edges = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(one.starts) for one in programs]))])
    terms = len(head) + TERM * edges
    dice = [one.rounding if one.rounding.size else np.zeros_like(one.decays, np.uint64) for one in programs]
    columns = (decays.view(np.uint32), np.concatenate(dice).view(np.int64), terms[:-1], terms[1:])
    head.reshape(-1, STEP)[:] = np.stack(columns, axis=1)
    body.reshape(-1, TERM)[:] = np.stack((keys.view(np.int64), which, exact.view(np.int64)), axis=1)
    tail[:] = bases.view(np.int64)
    return words

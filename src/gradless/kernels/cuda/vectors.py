"""Programs on a device: one small vector a step, whose place does not change from step to step.

The numbers of a step (keys, coefficients, decays) are data of the kernels and no arguments, so two steps launch the
same kernels with the same arguments. A vector belongs to its programs as long as something refers to them, and is then
written anew for the next ones with as many steps and terms.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.kernels.program import Identity, Program

STEP, TERM = 4, 3  # words of a step and of a term
KEPT = 1024  # tables of leaves that are kept on the device
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
        self.layout = layout
        self.bases = layout.bases
        self.first_basis = words - layout.bases
        self.begins = [STEP * steps for steps in itertools.accumulate(layout.steps, initial=0)]  # of every program
        self.words = torch.empty(words, dtype=torch.int64, device=queue.device)
        self.owners: tuple[weakref.ref[Identity], ...] = ()

    def fits(self, programs: tuple[Program, ...]) -> bool:
        """Whether programs have the layout of those that are there."""
        return layout_of(programs) == self.layout

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
    if _recordings:
        return _recordings[-1].vector(programs, key)
    return _written.get(key) or _write(programs, queue, key)


def layout_of(programs: tuple[Program, ...]) -> Layout:
    """How long the parts of the vector of some programs are."""
    bases = len(np.unique(np.concatenate([one.bases for one in programs])))
    return Layout(tuple(one.decays.size for one in programs), tuple(one.keys.size for one in programs), bases)


class Recording:
    """Launches that are recorded and not run, with vectors and tables of their own, which are not written yet."""

    def __init__(self) -> None:
        self._vectors: dict[tuple[Queue, tuple[int, ...]], tuple[Vector, tuple[Program, ...]]] = {}
        self._tables: list[tuple[Tensor, Tensor]] = []

    @property
    def vectors(self) -> list[tuple[Vector, tuple[Program, ...]]]:
        """All vectors, and the programs that the launches were recorded with."""
        return list(self._vectors.values())

    def vector(self, programs: tuple[Program, ...], key: tuple[Queue, tuple[int, ...]]) -> Vector:
        """A vector of these launches."""
        if key not in self._vectors:
            self._vectors[key] = (Vector(next(_numbers), key[0], layout_of(programs)), programs)
        return self._vectors[key][0]

    def table(self, host: Tensor, device: torch.device) -> Tensor:
        """Room for a table that `copy_tables` copies to the device."""
        self._tables.append((torch.empty_like(host, device=device), host))
        return self._tables[-1][0]

    def copy_tables(self) -> None:
        """Write all tables, once; nothing is recorded any more."""
        for table, host in self._tables:
            table.copy_(host)


_recordings: list[Recording] = []


@contextlib.contextmanager
def recorded() -> Iterator[Recording]:
    """Inside, launches are recorded."""
    _recordings.append(Recording())
    try:
        yield _recordings[-1]
    finally:
        _recordings.pop()


def table(records: tuple[int, ...], queue: Queue) -> Tensor:
    """A table of `tiles.fan_many` on the device."""
    if _recordings:
        return _recordings[-1].table(torch.tensor(records, dtype=torch.int64), queue.device)
    return known_table(records, queue)


@functools.lru_cache(maxsize=KEPT)
def known_table(records: tuple[int, ...], queue: Queue) -> Tensor:
    """The same, which stays as long as leaves and copies keep their places."""
    host = torch.tensor(records, dtype=torch.int64)
    return host.pin_memory().to(queue.device, non_blocking=True) if queue.device.type == "cuda" else host


def _write(programs: tuple[Program, ...], queue: Queue, key: tuple[Queue, tuple[int, ...]]) -> Vector:
    layout = layout_of(programs)
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

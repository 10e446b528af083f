"""Deferred updates: written when the next forward visits their leaf.

A step's update can be written in the visit that perturbs the leaf for the next step: one pass over memory less. Rows
of an embedding that no batch reads wait longer, and are then updated for many steps in one sweep. Rows that are read
run in every read what they wait for. So a leaf is written once its reads have cost as much as that would have, which
costs at most twice what is best. The bits are those of updates written at once, since the same program runs, only
later; until then the parameter holds older weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from gradless import kernels
from gradless.forward.updates import run
from gradless.gradients import Leaf
from gradless.kernels.program import NOTHING, Program, idle

LIMIT = 64  # steps that may wait
PASS = 3  # cost of reading and writing one element of a leaf, in terms of one element: 0.17 ns and 0.055 ns
ROW = 1000  # cost of one term of a row beside those of its elements: the first blocks of its stream


class Deferred:
    """The pending updates of some leaves."""

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        self._leaves = list(leaves)
        self._steps: list[tuple[Program, ...]] = []  # for each step, the program of every parameter group
        self._first = 0  # number of the first step in the list
        self._done = {id(leaf.param): 0 for leaf in self._leaves}
        self._joined: dict[tuple[int, int], Program] = {}  # of (group, first pending step)
        self._reads: dict[int, int] = {}  # of leaves read by rows since they were written: what that cost, in terms
        self.torn = False  # an interrupt came while a leaf was written: its weights are undefined

    def copied(self, leaves: Sequence[Leaf]) -> Deferred:
        """The same pending updates, of copies of the leaves."""
        twin = Deferred(leaves)
        twin._steps, twin._first = list(self._steps), self._first
        twin._done = {id(new.param): self._done[id(old.param)] for new, old in zip(leaves, self._leaves, strict=True)}
        return twin

    def push(self, programs: Sequence[Program]) -> None:
        """Add one step, a program for each parameter group; leaves that have waited for long enough are written.

        On an accelerator with kernels that is one step, so that every step launches the same.
        """
        late = [leaf for leaf in self._leaves if self._done[id(leaf.param)] < self._total]
        if late:
            self.flush(leaf for leaf in late if kernels.launched(leaf.param.device))
        self._steps.append(tuple(programs))
        self._joined.clear()
        self.flush(leaf for leaf in self._leaves if self._waited(leaf))

    def _waited(self, leaf: Leaf) -> bool:
        """Whether to write a leaf before a forward visits it whole."""
        if self._total - self._done[id(leaf.param)] >= LIMIT:
            return True
        reads = self._reads.get(id(leaf.param), 0)
        return reads > 0 and reads >= PASS * leaf.param.numel()

    @property
    def _total(self) -> int:
        return self._first + len(self._steps)

    def written(self, leaf: Leaf) -> int:
        """How many steps the parameter holds, of all that were ever pushed."""
        return self._done[id(leaf.param)]

    def waiting(self) -> tuple[int, ...]:
        """How many steps every leaf waits for."""
        total = self._total
        return tuple([total - done for done in self._done.values()])

    def pending(self, leaf: Leaf) -> Program:
        """The steps that the parameter does not hold yet, as one program; empty if they leave the leaf alone."""
        program = self.since(leaf, self._done.get(id(leaf.param), self._total))
        return NOTHING if idle(program) else program

    def pending_rows(self, leaf: Leaf, rows: int) -> Program:
        """`pending`, for a visit of so many rows, which leaves the parameter as it is."""
        program = self.pending(leaf)
        width = leaf.param.numel() // max(leaf.param.shape[0], 1)
        work = rows * (width + ROW) * program.keys.size
        self._reads[id(leaf.param)] = self._reads.get(id(leaf.param), 0) + work
        return program

    def since(self, leaf: Leaf, first: int) -> Program:
        """The steps from number ``first`` on, with what they do to this leaf."""
        if first == self._total:
            return NOTHING
        known = self._joined.get((leaf.group, first))
        if known is None:
            known = kernels.join([programs[leaf.group] for programs in self._steps[first - self._first :]])
            self._joined[leaf.group, first] = known
        return leaf.terms(known)

    @contextlib.contextmanager
    def writing(self, *leaves: Leaf) -> Iterator[None]:
        """Around the kernel that writes all pending steps of some leaves."""
        self.torn = self.torn or bool(leaves)
        yield
        for leaf in leaves:
            self._hold(leaf)
        self.torn = self.torn and not leaves

    def _hold(self, leaf: Leaf) -> None:
        """The parameter holds all steps."""
        self._done[id(leaf.param)] = self._total
        self._reads.pop(id(leaf.param), None)

    def flush(self, leaves: Iterable[Leaf] | None = None) -> None:
        """Write what is pending, of all leaves or of some."""
        for leaf in list(self._leaves if leaves is None else leaves):
            pending = self.pending(leaf)
            if pending.decays.size:
                with self.writing(leaf):
                    run(leaf, pending)
            elif id(leaf.param) in self._done:
                self._hold(leaf)
        self._forget()

    def drop(self) -> None:
        """Forget what is pending: the parameters hold other weights now."""
        self._done = dict.fromkeys(self._done, self._total)
        self._reads.clear()
        self._forget()

    def _forget(self) -> None:
        """Drop the steps that every leaf holds."""
        held = min(self._done.values(), default=self._total)
        if held > self._first:
            del self._steps[: held - self._first]
            self._first = held
            self._joined.clear()

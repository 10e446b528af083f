"""Evaluations recorded as CUDA graphs: the host replays an update, the copies and the forward as one launch.

A GPU runs the kernels of a small model faster than Python asks for them. Two steps ask for the same ones with the same
arguments: what changes are the numbers of their programs, which lie in vectors on the device
(`gradless.kernels.cuda.vectors`), and the batch. So an evaluation is recorded once for each shape of the batch; before
it is replayed, the vectors are written and the batch is copied to where the graph reads it.

Asked for with ``GRADLESS_CUDA_GRAPH=1``, since no GPU has run this yet. What the closure does in Python happens only
when it is recorded; tensors that it holds (`gradless.forward.held`) are inputs, everything else stays as it was. The
first replays are compared with direct evaluations. What cannot be recorded is evaluated directly, after one sentence.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from gradless import kernels
from gradless.forward.batched import BatchedForward, called_at, first_line
from gradless.forward.deferred import Deferred
from gradless.forward.held import Held, NotRecordable, held
from gradless.forward.interception import Interception
from gradless.forward.losses import COARSE, TOLERANCE, Closure, checked, unread
from gradless.forward.perturbed import PerturbedWeights
from gradless.forward.points import Points
from gradless.forward.random_state import RandomState
from gradless.forward.read_order import ReadOrder
from gradless.forward.scratch import Pool
from gradless.gradients import Leaf
from gradless.kernels.program import Program

WARM: Final = 3  # direct evaluations before one is recorded: kernels are compiled, the order of reads is known
CHECKS: Final = 2  # replays that are compared with direct evaluations
SHAPES: Final = 8  # graphs that are kept; each has memory for the activations of its batch
LOOKS: Final = 64  # kinds of evaluations without a graph, after which there will be none

Role = tuple[Literal["update", "probes"], Leaf] | Program  # where a program comes from; itself: always the same
Fill = tuple[Any, tuple[Role, ...]]  # a vector on the device, and what is in it


def cuda_graph(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record what a function launches, without running it: what replays it, and where its result lies then."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders of data may pin memory meanwhile
        result = function()
    return graph.replay, result


@dataclass
class Graph:
    """One evaluation that was recorded."""

    replay: Callable[[], None]
    losses: Tensor  # where a replay puts them
    inputs: list[Tensor]  # where it reads the batch
    fills: list[Fill]
    written: list[Leaf]  # leaves whose pending updates it writes
    holds: tuple[Any, ...]  # what must live as long
    unchecked: int = CHECKS


class Graphs:
    """The graphs of one optimizer.

    Args:
        leaves: tuned leaves by ``id(parameter)``.
        deferred: their pending updates.
        order: in which forwards read them.

    Attributes:
        refusal: why there are no graphs any more; empty: there may be.

    Memory: for each shape of a batch, what a direct evaluation takes beside the weights.
    """

    def __init__(self, leaves: Mapping[int, Leaf], deferred: Deferred, order: ReadOrder) -> None:
        self._leaves, self._deferred, self._order = leaves, deferred, order
        self._device = next(iter(leaves.values())).param.device
        self._graphs: dict[Hashable, Graph] = {}
        self._seen: Counter[Hashable] = Counter()
        self.closure: Closure | None = None  # of the present step
        self.refusal = self._unfit()

    def evaluate(self, points: Points, batched: bool, direct: Callable[[], Any]) -> Any:
        """What ``direct`` returns, from a graph where there is one.

        Args:
            points: where the weights are read.
            batched: whether all points are evaluated side by side.
            direct: evaluates the closure of this step, bringing leaves up to date on the way.
        """
        if self.refusal or self.closure is None or points.decayed or not any(p.mixture.keys for p in points.points):
            return direct()
        try:
            holds = held(self.closure, self._leaves)
            places = tuple([leaf.param.data_ptr() for leaf in self._leaves.values()])
            key = (holds.key, places, batched, len(points), points.mirrored, self._deferred.waiting())
            graph = self._graphs.get(key) or self._record(key, holds, points, batched)
        except Exception as error:
            self._refuse(_reason(error))
            return direct()
        if graph is None:
            return self._watched(key, direct)
        programs = [tuple(self._program(role, points) for role in roles) for _, roles in graph.fills]
        if not all(vector.fits(own) for (vector, _), own in zip(graph.fills, programs, strict=True)):
            return direct()
        self._replay(graph, holds.tensors, programs)
        losses = graph.losses.clone()
        return self._compared(graph, losses, direct) if graph.unchecked else losses

    def _unfit(self) -> str:
        """Why these leaves cannot be evaluated by graphs."""
        leaves = list(self._leaves.values())
        if any(leaf.param.device != self._device for leaf in leaves):
            return self._told("the tuned parameters are on several devices")
        if not kernels.launched(self._device):
            return self._told("the kernels for CUDA do not serve the tuned parameters")
        if any(leaf.draw or leaf.active or leaf.stream.kind == "low_rank" for leaf in leaves):
            return self._told("directions are custom, low-rank, or reach some parameters only")
        return ""

    def _refuse(self, reason: str) -> None:
        self.refusal = self._told(reason)
        self._graphs.clear()

    def _told(self, reason: str) -> str:
        warnings.warn(f"CUDA graphs are not used here ({reason}): kernels are launched one by one", stacklevel=5)
        return reason

    def _watched(self, key: Hashable, direct: Callable[[], Any]) -> Any:
        """A direct evaluation, in which a closure that draws random numbers shows."""
        self._seen[key] += 1
        devices = [] if self._device.type == "cpu" else [self._device]
        state = RandomState.capture(devices)
        loss = direct()
        if not isinstance(loss, Tensor):
            self._refuse("the closure returns a number, not a tensor")
        elif not state.same(RandomState.capture(devices)):
            self._refuse("the closure draws random numbers, as dropout does: call model.eval()")
        elif len(self._seen) > LOOKS:
            self._refuse("what the closure holds, or its shape, differs from step to step")
        return loss

    def _record(self, key: Hashable, holds: Held, points: Points, batched: bool) -> Graph | None:
        """The evaluation as a graph; None where it was not seen often enough, or there are too many."""
        if self._seen[key] < WARM or len(self._graphs) >= SHAPES:
            return None
        del self._seen[key]
        deferred = self._deferred.copied(list(self._leaves.values()))  # recording runs nothing: all stays pending
        roles: dict[int, Role] = {id(kernels.NOTHING.identity): kernels.NOTHING}
        for leaf in self._leaves.values():
            roles.setdefault(id(deferred.pending(leaf).identity), ("update", leaf))
            roles.setdefault(id(points.program(leaf).identity), ("probes", leaf))
        inputs = [torch.empty_like(one).copy_(one) for one in holds.tensors]
        closure = checked(_reading(self.closure, holds.tensors, inputs))

        def evaluation() -> Tensor:
            together = BatchedForward(len(points)) if batched else None
            with PerturbedWeights(
                self._leaves, points, batched=together, pool=Pool(), deferred=deferred, order=self._order
            ):
                return torch.as_tensor(together.losses(closure) if together else unread(closure()))

        with self._on_device(), kernels.backend(self._device).recorded() as recording:  # type: ignore[union-attr]
            replay, losses = cuda_graph(evaluation)
        recording.copy_tables()
        fills: list[Fill] = []
        for vector, programs in recording.vectors:
            if any(id(one.identity) not in roles for one in programs):
                raise NotRecordable("a kernel reads numbers that are not those of the step")
            fills.append((vector, tuple(roles[id(one.identity)] for one in programs)))
        written = [leaf for leaf in self._leaves.values() if deferred.written(leaf) > self._deferred.written(leaf)]
        self._graphs[key] = Graph(replay, losses, inputs, fills, written, (recording, holds.objects))
        return self._graphs[key]

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()

    def _program(self, role: Role, points: Points) -> Program:
        if isinstance(role, Program):
            return role
        kind, leaf = role
        return self._deferred.pending(leaf) if kind == "update" else points.program(leaf)

    def _replay(self, graph: Graph, tensors: Sequence[Tensor], programs: Iterable[tuple[Program, ...]]) -> None:
        for own, tensor in zip(graph.inputs, tensors, strict=True):
            own.copy_(tensor, non_blocking=True)
        for (vector, _), own_programs in zip(graph.fills, programs, strict=True):
            vector.write(own_programs)
        with self._deferred.writing(*graph.written), self._on_device():
            graph.replay()

    def _compared(self, graph: Graph, losses: Tensor, direct: Callable[[], Any]) -> Any:
        """The losses of a direct evaluation at the same points, behind the update that the replay has written."""
        graph.unchecked -= 1
        expected = torch.as_tensor(direct(), device=losses.device)
        tolerance = max(TOLERANCE.get(leaf.param.dtype, COARSE) for leaf in self._leaves.values())
        if not torch.allclose(losses.float(), expected.float(), rtol=tolerance, atol=0.0, equal_nan=True):
            self._refuse("a replay gave another loss: the closure reads data that it does not hold itself")
        return expected


def _reading(closure: Closure | None, tensors: Sequence[Tensor], inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """The closure, for which some tensors are others."""
    assert closure is not None
    other = {id(old): new for old, new in zip(tensors, inputs, strict=True)}

    def served(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = torch.utils._pytree.tree_map(lambda value: other.get(id(value), value), (args, kwargs))
        return func(*args, **kwargs)

    def reading() -> Any:
        with Interception(tensors, served):
            return closure()

    return reading


def _reason(error: Exception) -> str:
    """What could not be recorded, where it was called, and what torch says of it."""
    sentence = first_line(error)
    if isinstance(error, NotRecordable):
        return sentence
    call = called_at(error)
    return f"{call}{' ' * bool(call)}cannot be recorded, as what waits for the device or depends on values: {sentence}"


def asked_for(leaves: Mapping[int, Leaf], deferred: Deferred, order: ReadOrder) -> Graphs | None:
    """`Graphs`, if the environment asks for them."""
    return Graphs(leaves, deferred, order) if os.environ.get("GRADLESS_CUDA_GRAPH", "0") not in ("", "0") else None

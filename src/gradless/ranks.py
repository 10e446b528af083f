"""Several processes of one owner that tune one model together, over `torch.distributed`: only scalars travel.

Every rank holds the whole model and ends every step with the same bits of it, since all of them see the same losses,
in the same order. What is split is the work of finding these losses:

- ``batch``: each rank evaluates its shard of the batch at all points; a loss is the weighted mean over the ranks.
- ``directions``: each rank evaluates the whole batch at some of the points. A loss is then computed by one rank alone,
  so that its bits, and with them the run, do not depend on the number of ranks.

The scalars always go through gloo, also where the model is on GPUs and the job's own group is NCCL: they are on the
host anyway, and a rank that dies is an exception there, while NCCL's watchdog ends the whole process. As
`torch.distributed` itself, this is for machines that trust each other: nothing is encrypted or signed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from gradless.errors import BadInput, BrokenRanks, ReportedElsewhere, pick

BATCH, DIRECTIONS = SPLITS = ("batch", "directions")
NUMBER: Final = 8  # bytes of a float64
T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Ranks:
    """One process's view of its group. All methods are collective: every rank calls them, in the same order.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        split: ``batch`` or ``directions``.
        group: a group of `torch.distributed` that carries CPU tensors; None: the default one.
        weight: of this rank's losses in `mean`: examples or tokens of its shard. Set it before every step; a rank
            without a shard has weight 0, and its losses are not looked at.
        sent: payload bytes that this rank has sent so far, counted once for each rank that they are for.

    Raises:
        BrokenRanks: (all methods) a rank ended, or did not answer within the group's timeout.
    """

    rank: int
    size: int
    split: str = BATCH
    group: Any = None
    weight: float = 1.0
    sent: int = 0

    def gather(self, values: Sequence[float]) -> list[tuple[float, ...]]:
        """The values of every rank, in rank order, as float64: the same bits on all ranks.

        Every rank gives equally many. Cost: one all-gather of 8 bytes a value.
        """
        mine = torch.tensor(list(values), dtype=torch.float64)
        return [tuple(theirs.tolist()) for theirs in self._gathered(mine)]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of every value over the ranks, weighted by `weight`, summed in rank order.

        A value that is not finite on one rank is so on all.

        Raises:
            BadInput: no rank has a weight.
        """
        rows = [row for row in self.gather((self.weight, *values)) if row[0]]
        total = sum(row[0] for row in rows)
        if not total:
            raise BadInput("every rank's weight is 0: set ranks.weight to the examples or tokens of its shard")
        # w / total first: the mean of equal losses under equal weights of 2, 4, ... ranks is then that very loss.
        return [sum(row[0] / total * row[column] for row in rows) for column in range(1, len(values) + 1)]

    def spread(self, items: Sequence[T], evaluate: Callable[[Sequence[T]], Sequence[float]]) -> list[float]:
        """One value for each item; rank r evaluates ``items[r::size]``. The same bits on all ranks."""
        most = -(-len(items) // self.size)
        values = evaluate(self.own(items))
        rows = self.gather((*values, *[float("nan")] * (most - len(values))))
        return [rows[index % self.size][index // self.size] for index in range(len(items))]

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``size``-th item, from number ``rank`` on."""
        return items[self.rank :: self.size]

    def exchange(self, payload: bytes) -> list[bytes]:
        """The bytes of every rank, in rank order. Cost: two all-gathers; all wait for the longest."""
        sizes = [int(size) for (size,) in self.gather((len(payload),))]
        padded = payload.ljust(max(sizes), b"\0")
        if not padded:
            return [b""] * self.size
        rows = self._gathered(torch.frombuffer(bytearray(padded), dtype=torch.uint8))
        return [row.numpy().tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, payload: bytes = b"") -> bytes:
        """The bytes of rank 0; what other ranks give is ignored."""
        size = int(self.gather((len(payload),))[0][0])
        if not size:
            return b""
        data = torch.empty(size, dtype=torch.uint8)
        if self.rank == 0:
            data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            self.sent += size * (self.size - 1)
        self._call(lambda: dist.broadcast(data, src=0, group=self.group))
        return data.numpy().tobytes()

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Around work without collectives: an error of one rank is raised on all, with the first one's sentence.

        Raises:
            BadInput: the refusal; on ranks that need not repeat it, the subclass `gradless.errors.ReportedElsewhere`.
        """
        refusal = ""
        try:
            yield
        except BadInput as error:
            refusal = str(error) or type(error).__name__
        refusals = [text.decode() for text in self.exchange(refusal.encode())]
        first = next((rank for rank, text in enumerate(refusals) if text), None)
        if first is not None:
            text = refusals[first] if not first else f"{refusals[first]} (on rank {first})"
            raise ReportedElsewhere(text) if self.rank else BadInput(text)

    def check_equal(self, digest: str, what: str) -> None:
        """Compare a digest, of the weights for instance, over the ranks.

        Raises:
            BrokenRanks: one differs from that of rank 0; ``what`` begins the sentence.
        """
        digests = self.exchange(digest.encode())
        other = next((rank for rank, text in enumerate(digests) if text != digests[0]), None)
        if other is not None:
            raise BrokenRanks(
                f"{what} of rank {other} differ from those of rank 0: a machine computes wrongly, or runs other "
                "versions; the ledger is intact: repair or leave out that machine and continue with --resume"
            )

    def _gathered(self, mine: torch.Tensor) -> list[torch.Tensor]:
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        self._call(lambda: dist.all_gather(rows, mine, group=self.group))
        self.sent += mine.numel() * mine.element_size() * (self.size - 1)
        return rows

    def _call(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise BrokenRanks(
                f"rank {self.rank} of {self.size} lost another one, which ended or did not answer in time "
                f"({_reason(error)}); what the ledger holds is safe: continue with --resume, on any number of ranks"
            ) from error


def group(split: str = BATCH, *, timeout: float | None = None) -> Ranks | None:
    """The ranks of the running job, or None where `torch.distributed` is not initialised or has one rank.

    Collective. Where the job's group carries no CPU tensors (NCCL), a gloo group is made beside it.

    Args:
        split: ``batch`` or ``directions``.
        timeout: seconds that a new gloo group waits for a rank; default torch's.

    Raises:
        BadInput: an unknown split.
    """
    pick("split", split, {name: name for name in SPLITS})
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    channel = None
    if "cpu:" not in dist.get_backend_config():
        channel = dist.new_group(backend="gloo", timeout=None if timeout is None else timedelta(seconds=timeout))
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size(), split=split, group=channel)


def unshared(ranks: Ranks | None) -> str:
    """Return a warning if the job has several processes of which an optimizer was not told, else ``""``."""
    if ranks is not None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ""
    return (
        f"torch.distributed has {dist.get_world_size()} processes, and this optimizer evaluates for itself: copies of "
        "a model drift apart, since no gradient is averaged; give it ranks=gradless.ranks.group()"
    )


def agreed(ranks: Ranks | None) -> contextlib.AbstractContextManager[None]:
    """`Ranks.agreed`, or nothing where there is one process."""
    return contextlib.nullcontext() if ranks is None else ranks.agreed()


def _reason(error: RuntimeError) -> str:
    """The last part of the first line of what gloo said: file names and addresses come before it."""
    first = str(error).strip().split("\n")[0].split(". ")[0]
    return first.rsplit("] ", 1)[-1].rstrip(". ")[:120] or type(error).__name__

"""Steps timed side by side: candidates take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gradless.kernels import products
from gradless.optimizer import ZerothOrder

resource: Any = None  # Windows does not count
with contextlib.suppress(ImportError):
    import resource

WARMUP = 2  # rounds: compilation, allocators and caches


class Candidate(NamedTuple):
    """Something that takes a step."""

    name: str
    step: Callable[[], Any]
    optimizer: ZerothOrder | None  # None: no updates that wait


class Times(NamedTuple):
    """Seconds by candidate."""

    steps: dict[str, list[float]]
    flushes: dict[str, float]  # writing the deferred updates of all timed steps; 0.0 without an optimizer
    events: dict[str, list[tuple[int, int]]]  # fresh pages (minor faults) and context switches of each timed step


def two_forwards(closure: Callable[[], Any]) -> Callable[[], None]:
    """Return the floor of all steps: two losses without gradients, with the products that steps have."""

    @torch.no_grad()
    def step() -> None:
        with products.faster():
            closure()
            closure()

    return step


def take_turns(
    candidates: Sequence[Candidate],
    repeats: int,
    device: torch.device,
    *,
    prepare: Callable[[int], None] = lambda turn: None,
    done: Callable[[int, dict[str, list[float]]], None] = lambda turns, seconds: None,
) -> Times:
    """Time ``repeats`` steps of each candidate after `WARMUP` rounds.

    Args:
        candidates: what takes steps.
        repeats: timed rounds.
        device: where they compute.
        prepare: called before each round with its number.
        done: called after each round with the number of rounds and all seconds so far.
    """
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    events: dict[str, list[tuple[int, int]]] = {candidate.name: [] for candidate in candidates}
    for turn in range(WARMUP + repeats):
        prepare(turn)
        if turn == WARMUP:
            _flush(candidates, device)
        first = turn % len(candidates)  # nobody always runs behind the same neighbour
        for candidate in (*candidates[first:], *candidates[:first]):
            before = counted()
            spent = seconds_of(candidate.step, device)
            if turn >= WARMUP:
                seconds[candidate.name].append(spent)
                after = counted()
                events[candidate.name].append((after[0] - before[0], after[1] - before[1]))
        done(turn + 1, seconds)
    return Times(seconds, dict.fromkeys(seconds, 0.0) | _flush(candidates, device), events)


def counted() -> tuple[int, int]:
    """Return minor page faults and context switches of this process so far; zeros where the system does not count."""
    if resource is None:
        return 0, 0
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_minflt, now.ru_nvcsw + now.ru_nivcsw


def _flush(candidates: Sequence[Candidate], device: torch.device) -> dict[str, float]:
    """Write all deferred updates; returns the seconds of each."""
    return {c.name: seconds_of(c.optimizer.flush, device) for c in candidates if c.optimizer is not None}


def seconds_of(step: Callable[[], Any], device: torch.device) -> float:
    """Return how long a step takes, until the device has finished it."""
    synchronise(device)
    begun = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""What the engine ``auto`` stands for: the faster one of ``stream`` and ``dual``, timed on the closure of a step.

Before its first estimate an optimizer evaluates some points with either engine, in turns. These evaluations are extra
(`LossEvaluator.trial_forwards`): so the first step already has the engine that was chosen, and a run is bit for bit the
one that names this engine, whether the machine was slow or fast, alone or busy, measured now or earlier. Taking the
engines in turns in the real steps would cost nothing, but compare batches of different lengths, and the last bits of
the first coefficients would depend on how long that took.

``in-place`` writes the weights twice and takes no part. ``dual`` has the activations of all points in memory together:
it is tried only where they fit twice into the memory that is free, and an allocation that fails all the same is no
error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradless import __version__
from gradless.errors import pick
from gradless.estimators import BACKPROP, Estimator
from gradless.forward import engine_memory, populations
from gradless.forward.engines import (
    DUAL,
    ENGINES,
    MEASURED,
    MOST_COPIES,
    REMEMBERED,
    STREAM,
    TIE,
    VARIABLE,
    EngineChoice,
    faster,
)
from gradless.forward.evaluator import LossEvaluator
from gradless.forward.live_memory import Live
from gradless.forward.losses import Closure, checked
from gradless.forward.points import Point, probe_point
from gradless.ranks import Ranks
from gradless.storage.upcast import values_dtype
from gradless.system.machine import device_name, free_memory

ROUNDS: Final = 7
"""Most evaluations with either engine that are timed."""
CLEAR: Final = 0.3
"""After n rounds the difference is clear if one engine was 1 + `CLEAR` / n times as fast in each of them."""
LONGEST: Final = 60.0
"""Seconds after which no other round begins."""
FREE: Final = 0.5
"""Share of the free memory that the activations of ``dual`` may take; later batches may be larger."""

clock = time.perf_counter


class Settled(NamedTuple):
    """What can be said before anything is timed."""

    choice: EngineChoice | None
    key: dict[str, Any]
    """Of the measurement, where there is no choice yet."""


def settle(
    evaluator: LossEvaluator, closure: Closure, estimator: Estimator, keys: Sequence[int], step: int, check: bool
) -> None:
    """Replace the engine ``auto`` of an evaluator, on all ranks by that of rank 0.

    Args:
        evaluator: its weights stay as they are; updates that are due are written.
        closure: the loss, as `gradless.ZerothOrder.step` takes it.
        estimator: tells how many points a step has.
        keys: directions of the step.
        step: its number.
        check: whether the closure may be evaluated more often than the step needs.

    Raises:
        BadInput: from the closure, or for an unknown engine in ``GRADLESS_ENGINE``.

    Cost: where nothing is remembered one plain evaluation, one step's with either engine to prepare them, and two to
    seven that are timed; else the plain one alone, which tells the size of a step.
    """
    if estimator.rows:
        choice = populations.choice(evaluator.leaves, closure, estimator.forwards(len(keys)))
        evaluator.settle(choice._replace(step=step))
        return
    points, ranks, start = _points(estimator, keys), evaluator.ranks, evaluator.random_state()
    closure = checked(start.pinned(closure))
    with start.revisited():
        settled = Settled(_only(points, check), {}) if _only(points, check) else _recalled(evaluator, closure, points)
        chosen = _of_rank_0(ranks, lambda: settled.choice)
        chosen = chosen or _of_rank_0(ranks, lambda: _timed(evaluator, closure, points, settled.key))
    assert chosen is not None
    evaluator.settle(chosen._replace(step=step))


def _of_rank_0(ranks: Ranks | None, decide: Callable[[], EngineChoice | None]) -> EngineChoice | None:
    """What rank 0 decides; all of them do the work, so that it is timed as in a step."""
    if ranks is None:
        return decide()
    with ranks.agreed():
        own = decide()
    return EngineChoice.from_json(json.loads(ranks.broadcast(json.dumps(own and own.to_json()).encode())))


def _points(estimator: Estimator, keys: Sequence[int]) -> list[Point]:
    """As many points as the estimator asks for, but no more than are evaluated at once."""
    count = estimator.forwards(len(keys)) - (BACKPROP if estimator.deep is not None else 0)
    if not estimator.eps or not keys:  # it asks for slopes or gradients
        return []
    signs = ((key, size) for key in keys for size in (estimator.eps, -estimator.eps))
    return [probe_point(key, size) for key, size in signs][: min(count, MOST_COPIES)]


def _only(points: Sequence[Point], check: bool) -> EngineChoice | None:
    """The choice where there is nothing to compare."""
    if asked := os.environ.get(VARIABLE):
        engine = pick(f"engine in {VARIABLE}", asked, {name: name for name in ENGINES})
        return EngineChoice(engine, reason=f"set by {VARIABLE}")
    if len(points) < 2:
        return EngineChoice(STREAM, reason="a step has no points to evaluate together")
    if not check:
        return EngineChoice(STREAM, reason="with check=False nothing is evaluated twice, so nothing was measured")
    return None


def _recalled(evaluator: LossEvaluator, closure: Closure, points: Sequence[Point]) -> Settled:
    """The choice that is remembered, or that the memory leaves."""
    device = evaluator.leaves[0].param.device
    activations = _activations(closure)
    evaluator.trial_forwards += 1
    largest = max(leaf.param.numel() * values_dtype(leaf.param).itemsize for leaf in evaluator.leaves)
    needed, free = len(points) * (activations + largest), free_memory(device)
    if free is not None and needed > FREE * free:
        sizes = f"about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        return Settled(EngineChoice(STREAM, reason=f"{DUAL} would take {sizes}"), {})
    key = {
        "device": device_name(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "gradless": __version__,
        "leaves": _shape(evaluator),
        "points": len(points),
        "activations": activations.bit_length(),  # powers of two of bytes stand for the batch
    }
    ratio = engine_memory.recall(key)
    return Settled(None if ratio is None else EngineChoice(faster(ratio), REMEMBERED, ratio), key)


def _shape(evaluator: LossEvaluator) -> str:
    """What is tuned, and along which kind of directions, as a hash."""
    leaves = [
        [list(p.shape), *_types(p), leaf.stream.kind, leaf.stream.rank, leaf.mask is None, leaf.active is None]
        for leaf in evaluator.leaves
        for p in [leaf.param]
    ]
    return hashlib.sha256(json.dumps(sorted(leaves)).encode()).hexdigest()[:24]


def _types(p: Tensor) -> list[str]:
    """How a leaf is stored, and how a forward reads it where that is another type."""
    return [str(one) for one in dict.fromkeys((p.dtype, values_dtype(p)))]


class _Made(Live):
    """Counts tensors that were made in the block, and not those that it was handed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.exclude(value)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _activations(closure: Closure) -> int:
    """Most bytes of activations at any moment of a plain evaluation; 0 where they cannot be seen."""
    live = _Made()
    with contextlib.suppress(RuntimeError, TypeError, NotImplementedError), live:
        closure()
    return live.peak


def _timed(evaluator: LossEvaluator, closure: Closure, points: Sequence[Point], key: dict[str, Any]) -> EngineChoice:
    """The faster engine, measured now and remembered."""
    racers = [LossEvaluator(evaluator.leaves, engine=engine, check=False) for engine in (STREAM, DUAL)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the step will warn of the same
        for racer in racers:  # kernels are compiled, buffers made, reads looked at
            racer.values(closure, points)
        ratios = _ratios(racers, closure, points) if racers[1].engine == DUAL else []
    evaluator.trial_forwards += sum(racer.forwards for racer in racers)
    if racers[1].engine != DUAL:
        return EngineChoice(STREAM, reason=f"{DUAL} cannot be used here: {racers[1].refusal}")
    ratio = statistics.median(ratios)
    engine_memory.remember(key, ratio, len(ratios))
    return EngineChoice(faster(ratio), MEASURED, ratio)


def _ratios(racers: Sequence[LossEvaluator], closure: Closure, points: Sequence[Point]) -> list[float]:
    """Time of the first racer over that of the second, once for every round; they take turns in who begins."""
    ratios: list[float] = []
    begun = clock()
    while len(ratios) < ROUNDS and not _clear(ratios) and (not ratios or clock() - begun < LONGEST):
        seconds = {}
        for number in (0, 1) if len(ratios) % 2 == 0 else (1, 0):
            start = clock()
            racers[number].values(closure, points)
            seconds[number] = clock() - start
        if racers[1].engine != DUAL:  # the memory ran out
            break
        ratios.append(seconds[0] / max(seconds[1], 1e-9))
    return ratios


def _clear(ratios: Sequence[float]) -> bool:
    """Whether all rounds agree on the faster engine, the more clearly the fewer they are."""
    margin = max(TIE, 1 + CLEAR / max(len(ratios), 1))
    return len(ratios) > 1 and (min(ratios) > margin or max(ratios) < 1 / margin)

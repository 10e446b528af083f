"""Where the time of a step goes: matrix products, attention, sweeps over the weights, interception, everything else.

Read off torch's profiler, in steps of their own that no other figure comes from. Interception is Python of gradless
around reads of tuned weights: the time inside of `PerturbedWeights` that no torch function and no kernel takes. What is
left of the wall clock (the model's Python, launches, small operations, and the profiler itself) is "everything else",
so small models look worse than they are. How much longer a step takes under the profiler is part of the result.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from gradless.cost.eager_mezo import SWEEP
from gradless.forward.perturbed import PerturbedWeights

PRODUCTS, ATTENTION, SWEEPS, REST = "matrix products", "attention", "sweeps", "everything else"
INTERCEPTION = "interception"
STEPS = 2
_RANGE = "gradless.interception"

_PRODUCT_OPS = frozenset(
    f"aten::{name}" for name in ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "einsum")
)
_PRODUCT_KERNEL = re.compile(r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk", re.IGNORECASE)
_ATTENTION_KERNEL = re.compile(r"flash|fmha|attention|softmax", re.IGNORECASE)
_SWEEP_KERNEL = re.compile(r"gradless|sweep|fan_kernel", re.IGNORECASE)


class Shares(NamedTuple):
    """Where the time of a step goes."""

    of: dict[str, float]  # share of each kind of work; they add up to one
    seconds: float  # of a step under the profiler


def measure(step: Callable[[], Any], synchronise: Callable[[], None], *, on_cuda: bool = False) -> Shares:
    """Return the share of a step's time that each kind of work takes.

    Args:
        step: takes one step.
        synchronise: waits until the device has finished.
        on_cuda: whether the work is on a CUDA device; its kernels count then, not who launched them.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    synchronise()
    with _silence(), _ranges(), torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        synchronise()
        wall = time.perf_counter() - begun
    seconds = of_kernels(profiler.events()) if on_cuda else of_operations(profiler.events())
    # Kernels of several streams can overlap, and clocks differ: never more than all of it.
    whole = max(wall, sum(seconds.values()))
    shares = {name: value / whole for name, value in seconds.items()}
    return Shares(shares | {REST: max(0.0, 1.0 - sum(shares.values()))}, wall / STEPS)


@contextlib.contextmanager
def _ranges() -> Iterator[None]:
    """Inside, profilers see what watches over reads of weights as ranges."""
    own = {name: getattr(PerturbedWeights, name) for name in ("__enter__", "__exit__", "serve")}

    def ranged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(_RANGE):
                return function(*args, **kwargs)

        return call

    for name, function in own.items():
        setattr(PerturbedWeights, name, ranged(function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(PerturbedWeights, name, function)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the profiler from announcing itself on stderr; it asks the environment when it starts."""
    level = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = level or "99"
    try:
        yield
    finally:
        if level is None:
            del os.environ["KINETO_LOG_LEVEL"]


def of_operations(events: Iterable[Any]) -> dict[str, float]:
    """Return seconds of a processor's operations by kind, from the events of torch's profiler.

    An operation counts by the outermost one around it that is of a kind: what a sweep or a linear layer calls is
    its own. Of interception, what torch functions and kernels take inside is theirs.
    """
    seconds = dict.fromkeys((PRODUCTS, ATTENTION, SWEEPS, INTERCEPTION), 0.0)
    for event in events:
        kind, outer = INTERCEPTION if event.name == _RANGE else None, event
        while outer is not None:
            kind = _kind(outer.name) or kind
            outer = outer.cpu_parent
        if kind is not None:
            seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def _kind(name: str) -> str | None:
    if name == SWEEP:
        return SWEEPS
    if "attention" in name:
        return ATTENTION
    return PRODUCTS if name in _PRODUCT_OPS else None


def of_kernels(events: Iterable[Any]) -> dict[str, float]:
    """Return seconds of a CUDA device's kernels by kind, from the events of torch's profiler.

    A kernel is a sweep if it ran inside a range of that name on the device; else its own name tells.
    """
    seconds = dict.fromkeys((PRODUCTS, ATTENTION, SWEEPS, INTERCEPTION), 0.0)  # the last is the host's, unseen here
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    ranges = sorted((e.time_range.start, e.time_range.end) for e in on_device if e.name == SWEEP)
    kernels = [e for e in on_device if not getattr(e, "is_user_annotation", False) and e.name != SWEEP]
    following = 0  # index of the first range that has not ended before the kernel
    for event in sorted(kernels, key=lambda e: e.time_range.start):
        start, end = event.time_range.start, event.time_range.end
        while following < len(ranges) and ranges[following][1] <= start:
            following += 1
        swept = following < len(ranges) and ranges[following][0] <= start
        kind = SWEEPS if swept or _SWEEP_KERNEL.search(event.name) else _kernel_kind(event.name)
        if kind is not None:
            seconds[kind] += (end - start) / 1e6
    return seconds


def _kernel_kind(name: str) -> str | None:
    if _ATTENTION_KERNEL.search(name):
        return ATTENTION
    return PRODUCTS if _PRODUCT_KERNEL.search(name) else None

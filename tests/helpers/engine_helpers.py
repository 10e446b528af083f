"""Races of engines that a made-up clock decides."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradless.forward import engine_memory, engine_trial
from gradless.forward.evaluator import LossEvaluator


class Race:
    """What the engines cost, in seconds a step, and how often each was raced."""

    def __init__(self, stream: float, dual: float) -> None:
        self.costs = {"stream": stream, "dual": dual}
        self.now = 0.0
        self.calls: list[str] = []

    def restart(self) -> None:
        """As in another process on the same machine."""
        engine_memory.forget()
        self.calls.clear()


@contextlib.contextmanager
def race(cache: Path, *, stream: float = 2.0, dual: float = 1.0) -> Iterator[Race]:
    """Inside, ``auto`` is measured by a clock that these numbers move, and remembered in this folder alone."""
    trial = Race(stream, dual)

    class Timed(LossEvaluator):
        def values(self, *args: Any) -> list[float]:
            trial.calls.append(self.engine)
            trial.now += trial.costs[self.engine]
            return super().values(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GRADLESS_ENGINE", raising=False)
        patch.setenv("GRADLESS_CACHE", str(cache))
        patch.setattr(engine_trial, "clock", lambda: trial.now)
        patch.setattr(engine_trial, "LossEvaluator", Timed)
        engine_memory.forget()
        yield trial
        engine_memory.forget()

"""What the parts of the check share: where they run, what they return, what was forecast, and files of results."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradless.system.atomic import write_json

Result = dict[str, Any]


class Context(NamedTuple):
    """Where a part runs, and how much of it."""

    device: torch.device
    dry: bool  # at toy size, on a CPU: shows that the code runs, measures nothing
    folder: Path  # for files of this run
    deadline: float  # of `time.monotonic`; what has not begun by then is left out

    def late(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() > self.deadline

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Part(NamedTuple):
    """One part of the check."""

    run: Callable[[Context], Result]  # ``passed``, ``figures`` by name, and whatever else is worth a look
    seconds: float  # its share of eight minutes
    about: str
    criterion: str  # when it is passed
    forecast: dict[str, str]  # what `figures` should be, by name, calculated without a GPU


def verdict(passed: bool, figures: Result, **more: Any) -> Result:
    """Return a part's result."""
    return {"passed": passed, "figures": figures, **more}


def seconds_of(call: Callable[[], Any], context: Context, *, calls: int = 10, repeats: int = 9) -> float:
    """Return the median over ``repeats`` of the time of a call, measured over several of them; fewer if slow."""
    call()
    context.wait()
    begun = time.perf_counter()
    call()
    context.wait()
    if context.dry or time.perf_counter() - begun > 0.05:
        calls, repeats = 1, 3
    samples = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        context.wait()
        samples.append((time.perf_counter() - begun) / calls)
    return statistics.median(samples)


def record(target: Path, name: str, result: Result, facts: Result) -> None:
    """Append a part's result to the JSON lines beside ``target``, and put it into ``target``."""
    line = json.dumps({"part": name, **result}) + "\n"
    with target.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    write_json(target, read(target) | facts | {name: result})


def read(target: Path) -> Result:
    """Return what earlier runs have found; parts that do not run again keep it."""
    known: Result = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    return known


def shown(result: Result, forecast: dict[str, str]) -> list[str]:
    """Return lines that put every figure beside its forecast."""
    lines = []
    for name, value in result.get("figures", {}).items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"  {name:<44}{text:>12}   forecast {forecast.get(name, 'none')}")
    return lines

"""``metrics.jsonl`` and the other text files of a run directory: what a run observed, apart from its weights."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gradless import __version__
from gradless.lm.evaluate import Evaluation
from gradless.system.atomic import write_text
from gradless.system.peak_memory import PeakMeter

DONE, DIVERGED, INTERRUPTED = "done", "diverged", "interrupted"
"""How a run ended: ``status`` in its ``result.json``."""


class RunLog:
    """``metrics.jsonl``: one JSON line an event. Lines after step ``keep`` (of a torn end) are dropped on resume.

    ``observers`` are called with every line that is written; trackers hang there.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path = path
        self.observers: list[Callable[[dict[str, Any]], None]] = []
        self.lines = _intact(path, keep)
        self._meter: PeakMeter | None = None
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_text(path, text)

    def write(self, **line: Any) -> None:
        """Append one line; a full disk raises OSError and leaves whole lines."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        for observer in self.observers:
            observer(line)

    def of(self, event: str) -> list[dict[str, Any]]:
        """All lines of one kind."""
        return [line for line in self.lines if line["event"] == event]

    def evaluated(self, split: str, step: int, found: Evaluation) -> None:
        """Note an evaluation; a loss that is not finite is no JSON number and becomes null."""
        loss = found.loss if found.loss is not None and math.isfinite(found.loss) else None
        self.write(
            event="eval", split=split, step=step, loss=loss, **found.metrics, forwards=found.forwards,
            seconds=found.seconds, predictions=found.predictions, correct=[int(c) for c in found.correct],
            probabilities=[round(p, 4) if math.isfinite(p) else None for p in found.probabilities],
        )  # fmt: skip

    def evaluation(self, split: str, step: int) -> dict[str, Any] | None:
        """The last evaluation of a split at a step."""
        found = [line for line in self.of("eval") if (line["split"], line["step"]) == (split, step)]
        return found[-1] if found else None

    def memory(self, device: torch.device) -> PeakMeter:
        """The meter of all training steps."""
        self._meter = self._meter or PeakMeter(device)
        return self._meter

    @property
    def inference(self) -> int | None:
        """Peak bytes of evaluating a training batch, once that is measured."""
        return max((line["bytes"] for line in self.of("inference")), default=None)

    def peak(self) -> int:
        """Peak bytes of all training steps, those before a crash included."""
        return max((line["peak_memory_bytes"] for line in self.of("step")), default=0)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ``metrics.jsonl``."""
    return _intact(path, math.inf)


def _intact(path: Path, keep: float) -> list[dict[str, Any]]:
    """Whole lines of steps that the ledger holds too."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # the line that a crash tore
        if line["step"] < keep or (line["event"] == "eval" and line["step"] == keep):
            lines.append(line)
    return lines


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    found = {"gradless": __version__, "torch": torch.__version__}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["transformers"] = metadata.version("transformers")
    return {
        **found,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
    }

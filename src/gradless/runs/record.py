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
    """``metrics.jsonl``: one JSON line an event.

    Args:
        path: the file.
        keep: steps that the ledger holds; lines of later ones, which a crash has left, are dropped.

    Attributes:
        lines: all lines.
        observers: functions that are called with every line that is written.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path = path
        self.observers: list[Callable[[dict[str, Any]], None]] = []
        self.lines = _intact(path, keep)
        self._meter: PeakMeter | None = None
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def write(self, **line: Any) -> None:
        """Append one line; a full disk raises OSError and leaves whole lines."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        for observer in self.observers:
            observer(line)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return all lines of one kind."""
        return [line for line in self.lines if line["event"] == event]

    def evaluated(self, split: str, step: int, evaluation: Evaluation) -> None:
        """Write an evaluation; numbers that are not finite are no JSON numbers and become null."""
        finite = evaluation.loss is not None and math.isfinite(evaluation.loss)
        self.write(
            event="eval",
            split=split,
            step=step,
            loss=evaluation.loss if finite else None,
            **evaluation.metrics,
            forwards=evaluation.forwards,
            seconds=evaluation.seconds,
            predictions=evaluation.predictions,
            correct=[int(right) for right in evaluation.correct],
            probabilities=[round(p, 4) if math.isfinite(p) else None for p in evaluation.probabilities],
            **({"truncated": evaluation.cut} if evaluation.cut else {}),
        )

    def evaluation(self, split: str, step: int) -> dict[str, Any] | None:
        """Return the last evaluation of a split at a step."""
        lines = [line for line in self.of("eval") if (line["split"], line["step"]) == (split, step)]
        return lines[-1] if lines else None

    def truncated(self, split: str) -> int:
        """Return the number of rows of a split that were cut in its evaluations."""
        return max((line.get("truncated", 0) for line in self.of("eval") if line["split"] == split), default=0)

    def memory(self, device: torch.device) -> PeakMeter:
        """Return the meter of all training steps."""
        self._meter = self._meter or PeakMeter(device)
        return self._meter

    @property
    def inference(self) -> int | None:
        """Peak bytes of evaluating a training batch, once that is measured."""
        return max((line["bytes"] for line in self.of("inference")), default=None)

    def peak(self) -> int:
        """Return the peak bytes of all training steps, those before a crash included."""
        return max((line["peak_memory_bytes"] for line in self.of("step")), default=0)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a ``metrics.jsonl``."""
    return _intact(path, math.inf)


def _intact(path: Path, keep: float) -> list[dict[str, Any]]:
    """Return whole lines of steps that the ledger holds too."""
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
    """Return the versions of what computes a result, and the machine."""
    libraries = {"gradless": __version__, "torch": torch.__version__}
    with contextlib.suppress(metadata.PackageNotFoundError):
        libraries["transformers"] = metadata.version("transformers")
    return {
        **libraries,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
    }

"""``metrics.jsonl`` and the other text files of a run directory: what a run observed, apart from its weights."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import torch

from gradless import __version__, plugins
from gradless.lm.evaluate import Evaluation
from gradless.lm.metrics import METRICS, REWARDS
from gradless.system.atomic import write_text
from gradless.system.machine import processor_name
from gradless.system.peak_memory import PeakMeter
from gradless.system.side_files import read_jsonl, read_table
from gradless.system.typed import NotNegative

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**62)]  # counted, not asked for: memory is more than `Amount` allows
DONE, DIVERGED, INTERRUPTED = "done", "diverged", "interrupted"
"""How a run ended: ``status`` in its ``result.json``."""
NUMBERS: Final = (*METRICS, *REWARDS)
"""Names of the metrics that a line about an evaluation may have."""


class StepLine(msgspec.Struct, tag_field="event", tag="step"):
    """A line of ``metrics.jsonl`` about a training step."""

    step: Whole
    """Number of the step, from 0."""
    loss: float | None
    """Mean of the losses at the perturbed weights; null if it was not finite, and the step was skipped."""
    coeffs: list[float] | None
    """Projected gradients, one a direction; null if the step was skipped."""
    lr: float
    """Learning rate of the step."""
    forwards: Whole
    """Forward passes of the step, a backward pass counted as two."""
    seconds: NotNegative
    """Wall time of the step."""
    peak_memory_bytes: Whole
    """Highest memory of the process (on CUDA: of the allocator) up to this step."""
    bytes: Whole = 0
    """Bytes that a process sent to the others, under torchrun."""
    reward: float | None = None
    """Mean reward of the members' texts; null where none has one."""
    reward_members: list[float | None] = []
    """Mean reward of each member that this process evaluated."""
    valid: float = 0.0
    """Share of the texts that have a reward."""
    completion_tokens: float | None = None
    """Mean number of new tokens of a text."""


class EvaluationLine(msgspec.Struct, tag_field="event", tag="eval"):
    """A line of ``metrics.jsonl`` about an evaluation; metrics stand beside these fields."""

    step: Whole
    """Steps that were taken before; 0: the untouched model."""
    split: str
    """dev or test."""
    loss: float | None
    """Mean loss of the rows; null if it was not finite."""
    forwards: Whole
    """Forward passes that it took."""
    seconds: NotNegative
    """Wall time that it took."""
    predictions: list[int | str]
    """Label (by number) or text for each row, in the order of the rows."""
    correct: list[Literal[0, 1]]
    """Whether each is right."""
    probabilities: list[float | None] = []
    """Probability of each predicted label."""
    rewards: list[float | None] = []
    """Reward of each text; null where it has none."""
    completion_tokens: float | None = None
    """Mean number of new tokens of a text."""


class SamplesLine(msgspec.Struct, tag_field="event", tag="samples"):
    """A line of ``metrics.jsonl`` about texts that were sampled behind the test rows, for pass@k."""

    step: Whole
    """Steps that were taken before; 0: the untouched model."""
    rewards: list[list[float | None]]
    """Reward of each text, by row."""


class InferenceLine(msgspec.Struct, tag_field="event", tag="inference"):
    """A line of ``metrics.jsonl`` about evaluating a training batch."""

    step: Whole
    """Steps that were taken before."""
    bytes: Whole
    """Peak memory of the evaluation."""
    seconds: NotNegative
    """Wall time that it took."""
    steps: Whole | None = None
    """Whose batches were compared to find the largest."""


class Result(msgspec.Struct):
    """What others read of a tuning run's ``result.json``."""

    status: Literal["done", "diverged", "interrupted"]
    """How the run ended."""
    steps: Whole
    """Steps that were taken."""
    selected_step: Whole
    """The step whose weights were best on dev rows; all figures below are of these weights."""
    weights_sha256: str | None
    """Hash of the tuned weights; null if an interruption tore them and no ledger rebuilds them."""
    data_sha256: str
    """Hash of the rows of all splits."""
    zero_shot: dict[str, float]
    """Metrics of the untouched model on test rows."""
    test: dict[str, float]
    """Metrics of the tuned model on test rows."""
    interval: dict[str, tuple[float, float]]
    """95 % intervals of the share of right answers: zero_shot, test, and their paired difference."""
    seconds_per_step: NotNegative
    """Median wall time of a step."""
    ledger_bytes: Whole
    """Size of the ledger."""
    forwards: Whole = 0
    """Forward passes, a backward pass counted as two."""
    train_seconds: NotNegative = 0.0
    """Of all steps."""
    peak_memory_bytes: Whole | None = None
    """Peak memory of training; null where it was not measured."""
    inference_memory_bytes: Whole | None = None
    """The same of a forward pass of such a batch."""
    rows: dict[str, Whole] = {}
    """Rows of each split."""
    versions: dict[str, str] = {}
    """Releases, the machine and its threads."""


class RunLog:
    """``metrics.jsonl``: one JSON line an event.

    Args:
        path: the file.
        keep: steps that the ledger holds; lines of later ones, which a crash has left, are dropped.
        rows: of each split; evaluations of other rows are dropped.
        due: whether dev is evaluated after so many steps; lines of other evaluations, as at the end that a run had
            before it got more steps, are dropped.
        say: receives one line if the file has lines that no run wrote.

    Attributes:
        lines: all lines.
        observers: functions that are called with every line that is written.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep: int,
        rows: Mapping[str, int],
        due: Callable[[int], bool] = lambda step: True,
        say: Callable[[str], None],
    ) -> None:
        self.path = path
        self.observers: list[Callable[[dict[str, Any]], None]] = []
        tables, damaged = read_jsonl(path)
        whole = [table for table in tables if _is_line(table, rows)]
        damaged += len(tables) - len(whole)
        if damaged:
            say(f"{path} has {damaged} lines that cannot be read: they are left out")
        kept = [line for line in whole if line["step"] < keep + (line["event"] in ("eval", "samples"))]
        self.lines = [line for line in kept if line.get("split") != "dev" or not line["step"] or due(line["step"])]
        self._meter: PeakMeter | None = None
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def write(self, **line: Any) -> None:
        """Append one line; a full disk raises OSError and leaves whole lines."""
        with self.path.open("a", encoding="utf-8") as file:
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
            **({"rewards": [_number(reward) for reward in evaluation.rewards]} if evaluation.rewards else {}),
            **({"completion_tokens": evaluation.tokens} if evaluation.tokens is not None else {}),
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

    @property
    def compared(self) -> float:
        """Steps whose batches were compared for that; older files do not say how many, and count as all."""
        return max((line.get("steps") or math.inf for line in self.of("inference")), default=0)

    def peak(self) -> int:
        """Return the peak bytes of all training steps, those before a crash included."""
        return max((line["peak_memory_bytes"] for line in self.of("step")), default=0)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a ``metrics.jsonl`` that a run wrote."""
    return [table for table in read_events(path) if _is_line(table, {})]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a ``metrics.jsonl`` that name an event and a step, also those of other releases."""
    named = (table for table in read_jsonl(path)[0] if isinstance(table.get("event"), str))
    return [table for table in named if isinstance(table.get("step"), int)]


def _is_line(table: dict[str, Any], rows: Mapping[str, int]) -> bool:
    """Return whether a run wrote this line."""
    try:
        line = msgspec.convert(table, StepLine | EvaluationLine | InferenceLine | SamplesLine)
        evaluated = isinstance(line, EvaluationLine)
        msgspec.convert({name: table[name] for name in NUMBERS if evaluated and name in table}, dict[str, float])
    except (msgspec.ValidationError, OverflowError):
        return False
    return not isinstance(line, EvaluationLine) or all(
        len(values) in (0, rows.get(line.split, len(line.correct))) for values in (line.correct, line.predictions)
    )


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the ``result.json`` of a tuning run, or None where there is none that can be read."""
    return read_table(folder / "result.json", Result)


def versions(used: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the versions of what computes a result, the plugins that a configuration records, and the machine."""
    libraries = {"gradless": __version__, "torch": torch.__version__}
    with contextlib.suppress(metadata.PackageNotFoundError):
        libraries["transformers"] = metadata.version("transformers")
    return {
        **libraries,
        "python": platform.python_version(),
        "machine": f"{processor_name()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        **plugins.versions(used or {}),
    }

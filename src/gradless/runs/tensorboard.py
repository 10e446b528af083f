"""TensorBoard events of a run: what ``metrics.jsonl`` says, for the viewer that many have open already.

Events are a function of the lines of ``metrics.jsonl`` and of nothing else. A run that goes on after a crash writes
those of its earlier lines anew, so none is there twice, and a finished run can be given events later.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradless.errors import BadInput
from gradless.lm import metrics
from gradless.runs.config import read_config
from gradless.runs.config_io import tune_command
from gradless.runs.record import RunLog, read_lines

Say = Callable[[str], None]
Watch = Callable[[RunLog], None]
HISTOGRAMS = 20  # so many in a run
OF_TEXTS = ("reward", "valid", "completion_tokens")  # of a run on a reward, in training and in evaluations
FLUSH_SECONDS = 10  # what a killed process loses is written again on --resume


class Event(NamedTuple):
    """One point of a curve, or one histogram."""

    tag: str
    step: int
    seconds: float  # of work since the run began; time between two parts of a run does not count
    value: float | tuple[float, ...]


class Reader:
    """Turns lines into events, one line at a time.

    Args:
        every: steps whose coefficients share a histogram.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.seconds = 0.0
        self._step = 0
        self._coeffs: list[float] = []

    def read(self, line: dict[str, Any]) -> list[Event]:
        """Return the events of one line."""
        self.seconds += line.get("seconds", 0.0)
        values: dict[str, float | None] = {}
        histogram: list[Event] = []
        match line["event"]:
            case "step":
                values = {
                    "train/loss": line["loss"],
                    "train/lr": line["lr"],
                    **{f"train/{name}": line.get(name) for name in OF_TEXTS},
                    "train/forwards_per_second": line["forwards"] / line["seconds"] if line["seconds"] else None,
                    "memory/peak_bytes": line["peak_memory_bytes"],
                }
                self._step = line["step"]
                self._coeffs += line["coeffs"] or ()
                histogram = self.rest() if (self._step + 1) % self.every == 0 else []
            case "eval":
                values = {
                    f"{line['split']}/{name}": line.get(name)
                    for name in ("loss", *OF_TEXTS, "passed", *metrics.METRICS)
                }
            case "inference":
                values = {"memory/inference_bytes": line["bytes"]}
        scalars = [Event(tag, line["step"], self.seconds, value) for tag, value in values.items() if value is not None]
        return scalars + histogram

    def rest(self) -> list[Event]:
        """Return the histogram of the coefficients that are in none yet."""
        values, self._coeffs = tuple(self._coeffs), []
        return [Event("train/coefficients", self._step, self.seconds, values)] if values else []


def events(lines: Iterable[dict[str, Any]], *, every: int) -> list[Event]:
    """Return all events of a run's lines.

    Example:
        >>> events([{"event": "eval", "split": "dev", "step": 5, "loss": 0.7, "seconds": 2.0}], every=1)
        [Event(tag='dev/loss', step=5, seconds=2.0, value=0.7)]
    """
    reader = Reader(every)
    return [event for line in lines for event in reader.read(line)] + reader.rest()


@contextlib.contextmanager
def tensorboard(folder: Path, target: Path, *, say: Say = print) -> Iterator[Watch]:
    """Write the events of the run in ``folder`` while the block goes on.

    Yields the function for ``watch`` of `gradless.runs.train.tune`. Where nobody calls it, because the run is finished
    already, the events are made from the file.

    Args:
        folder: run directory.
        target: where events go. Only what was written there for this run is replaced.
        say: receives one line if events cannot be written; the run does not end for them.

    Raises:
        BadInput: TensorBoard is not installed, or ``target`` is a file.
    """
    try:
        import tensorboard as _  # noqa: F401
    except ModuleNotFoundError:
        raise BadInput("TensorBoard is not installed: pip install 'gradless[tensorboard]'") from None
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file, not a folder: choose another --tensorboard")
    opened: list[_Writer] = []

    def watch(log: RunLog) -> None:
        opened.append(_Writer(folder, target, log.lines, say))
        log.observers.append(opened[0])

    try:
        yield watch
        if not opened and (folder / "metrics.jsonl").exists():
            opened.append(_Writer(folder, target, read_lines(folder / "metrics.jsonl"), say))
    finally:
        for writer in opened:
            writer.close()


class _Writer:
    """Writes the events of lines; a full disk ends the events and not the run."""

    def __init__(self, folder: Path, target: Path, lines: Iterable[dict[str, Any]], say: Say) -> None:
        from torch.utils.tensorboard import SummaryWriter

        config = read_config(folder)
        self._say, self._target = say, target
        self._reader: Reader | None = Reader(max(1, config.steps // HISTOGRAMS))
        self._out: Any = None
        self._began = (folder / "config.json").stat().st_mtime
        mine = f".gradless-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
        with self._harmless():
            for path in target.glob(f"events.out.tfevents.*{mine}"):
                path.unlink()
            self._out = SummaryWriter(str(target), filename_suffix=mine, flush_secs=FLUSH_SECONDS)
            self._out.add_text("command", f"    {tune_command(config, folder)}", 0, walltime=self._began)
        for line in lines:
            self(line)

    def __call__(self, line: dict[str, Any]) -> None:
        """Write the events of one more line."""
        if self._reader is not None:
            self._add(self._reader.read(line))

    def _add(self, events: Iterable[Event]) -> None:
        with self._harmless():
            for event in events:
                add = self._out.add_histogram if isinstance(event.value, tuple) else self._out.add_scalar
                value = np.array(event.value)  # of an empty shape for one number
                add(event.tag, value, event.step, walltime=self._began + event.seconds)

    def close(self) -> None:
        """Write the last histogram and end the file."""
        if self._reader is not None:
            self._add(self._reader.rest())
        if self._out is not None:
            with self._harmless():
                self._out.close()

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Say that there will be no more events if the disk refuses them."""
        try:
            yield
        except OSError as error:
            if self._reader is not None:
                self._say(f"no more TensorBoard events: {self._target} cannot be written ({error.strerror or error})")
            self._reader = None

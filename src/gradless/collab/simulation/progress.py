"""The state of a simulated run between two steps: counters, attack state, ``metrics.jsonl`` and the checkpoint."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from gradless import __version__
from gradless.collab.aggregation.pair_scores import Memory
from gradless.collab.algorithms import PARAMETERS
from gradless.collab.contraction import Mixing
from gradless.collab.network.exchange import Arrivals
from gradless.collab.simulation.build import Simulation, network
from gradless.collab.simulation.memory_rule import narrowed
from gradless.rules import like, plain
from gradless.system import tensor_state
from gradless.system.peak_memory import PeakMeter
from gradless.system.progress import Reporter

CHECKPOINT: Final = "checkpoint.safetensors"
SAVE_EVERY: Final = 300.0  # seconds between two checkpoints; runs that are shorter write none
COUNTED: Final = ("step", "spent", "bytes", "exchanges", "mixed_exchanges")  # what a checkpoint takes as it is


class SimulationState:
    """State between two steps: counters, attack state, metrics.jsonl, checkpoint.

    Args:
        simulation: the parts of the run; if the folder has a checkpoint, the learner is restored from it.
        folder: run directory.
    """

    def __init__(self, simulation: Simulation, folder: Path) -> None:
        self.simulation, self.folder = simulation, folder
        self.step = 0
        """Steps taken."""
        self.spent = 0.0
        """Seconds of them."""
        self.bytes = 0.0
        """Sent by each honest peer."""
        self.exchanges = 0
        """Of honest peers: each counts those that it took part in."""
        self.mixed_exchanges = 0
        """Those in which it had a row of another honest peer in time."""
        self.consensus = math.nan
        """Distance of the models at the last evaluation; the run ends with one."""
        self.memory = None if simulation.config.memory is None else Memory(simulation.config.memory)
        """Rows of the last steps, where the rule looks back at them."""
        kept = None if self.memory is None else partial(narrowed, simulation.config, self.memory)
        self.network = network(simulation, kept)
        """Who hears whom, and what attackers remember of each kind of exchange."""
        self.mixed: Tensor | None = None
        """[1 or H, D] the mixed rows, whose memory the next ones may take."""
        self.meter = PeakMeter(torch.device(simulation.config.device))
        self._mixings: list[tuple[str, Mixing]] = []
        self._saved = time.monotonic()
        path = folder / "metrics.jsonl"
        written = self._resume(path)
        self._file = path.open("r+" if written else "w", encoding="utf-8")
        self._file.truncate(written)
        self._file.seek(written)

    def close(self) -> None:
        """Flush and close ``metrics.jsonl``, before a result says that all of it is there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    # -----------------------------------------------------------------------------------------------------------
    # what is measured

    def arrived(self, arrivals: Arrivals, peers: int) -> None:
        """Count what arrived in an exchange of so many honest peers."""
        self.exchanges += peers
        self.mixed_exchanges += sum(len(senders) > 1 for senders in arrivals.heard)

    def exchanged(self, tag: str, measured: Mixing, strength: float | None) -> None:
        """Write what mixing did in an exchange of the present step."""
        self._mixings.append((tag, measured))
        self._write(
            event="step",
            step=self.step,
            exchange=tag,
            loss=float(self.simulation.learner.losses.mean()),
            alpha=measured.alpha,
            **{"lambda": measured.lam},
            consensus_distance=measured.consensus if _of_models(tag) else None,
            strength=strength,
            **({} if (texts := self.simulation.learner.texts) is None else texts.of_step(self.step)),
        )

    def evaluated(self, rows: int | None) -> list[float]:
        """Evaluate all honest peers on ``rows`` test rows, None: all; write and return their accuracies."""
        accuracy = self.simulation.learner.accuracy(rows)
        self.consensus = self.simulation.learner.consensus()
        self._write(
            event="eval",
            step=self.step,
            accuracy=accuracy,
            worst_accuracy=min(accuracy),
            mean_accuracy=statistics.fmean(accuracy),
            consensus_distance=self.consensus,
            **({} if (texts := self.simulation.learner.texts) is None else texts.of_evaluation()),
        )
        return accuracy

    def mixings(self, which: str) -> list[float]:
        """Return "alpha" or "lam" of all exchanges of models, or, where none are exchanged, of all."""
        models = [one for tag, one in self._mixings if _of_models(tag)]
        values = [getattr(one, which) for one in models or [one for _, one in self._mixings]]
        return [value for value in values if math.isfinite(value)]

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps({name: finite_or_null(value) for name, value in line.items()}) + "\n")
        self._file.flush()

    # -----------------------------------------------------------------------------------------------------------
    # the checkpoint

    def save(self, reporter: Reporter) -> None:
        """Write a checkpoint if the last one is older than `SAVE_EVERY`. If the disk is full, warn and go on."""
        if time.monotonic() - self._saved < SAVE_EVERY:
            return
        os.fsync(self._file.fileno())
        self.meter.note()
        state = {name: getattr(self, name) for name in COUNTED} | {
            "run": self._name(),
            "peak": self.meter.peak,
            "written": os.fstat(self._file.fileno()).st_size,
            "learner": self.simulation.learner.state(),
            **({"memory": [torch.from_numpy(rows) for rows in self.memory.rows]} if self.memory is not None else {}),
            "attack": {tag: plain(state) for tag, state in self.network.states.items()},
        }
        try:
            tensor_state.write(self.folder / CHECKPOINT, state)
        except OSError as error:
            reporter.warn(f"no checkpoint: {error}")
        self._saved = time.monotonic()

    def _name(self) -> list[str]:
        """Return what identifies the run that a checkpoint belongs to."""
        return [self.simulation.config.id(), __version__, torch.__version__]

    def _resume(self, metrics: Path) -> int:
        """Restore the checkpoint, if there is one; return how many bytes of ``metrics.jsonl`` belong to it."""
        state = tensor_state.read(self.folder / CHECKPOINT)
        try:
            if state is None or state["run"] != self._name():
                return 0
            lines = metrics.read_bytes()[: state["written"]]
            mixings = _read_back(lines.decode().splitlines())
            counted = {name: state[name] for name in COUNTED}
        except (OSError, ValueError, LookupError, TypeError):  # damaged: the run starts over
            return 0
        if len(lines) < state["written"]:  # a crash of the machine took the rest
            return 0
        self.simulation.learner.load(state["learner"])
        start = self.simulation.attack.start
        self.network.states = {tag: like(start(), held) for tag, held in state["attack"].items()}
        if self.memory is not None:
            self.memory.rows = [rows.numpy() for rows in state["memory"]]
        for name, value in counted.items():
            setattr(self, name, value)
        self.meter.peak = state["peak"]
        self._mixings = mixings
        return len(lines)


def forget(folder: Path) -> None:
    """Remove the checkpoint of a run that has ended, and the rest of one that was being written."""
    for name in (CHECKPOINT, CHECKPOINT + tensor_state.NEW):
        (folder / name).unlink(missing_ok=True)


def finite_or_null(value: Any) -> Any:
    """Return None for NaN and infinities, which JSON does not have, and anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_models(tag: str) -> bool:
    return tag.startswith(PARAMETERS)


def _read_back(lines: Sequence[str]) -> list[tuple[str, Mixing]]:
    """Parse what `SimulationState.exchanged` wrote."""
    events = [event for line in lines if (event := json.loads(line))["event"] == "step"]
    names = ("alpha", "lambda", "consensus_distance")
    numbers = [[math.nan if event[name] is None else event[name] for name in names] for event in events]
    return [(event["exchange"], Mixing(*values)) for event, values in zip(events, numbers, strict=True)]

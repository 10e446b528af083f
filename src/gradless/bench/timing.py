"""How long a step of each method takes, side by side: what the cost table and the view at equal seconds rest on.

Runs of a benchmark are made one after the other, for hours, beside whatever else the machine does; their seconds are
not comparable. Here all methods of one model, scheme and task take turns on one model and the same training batches,
as in `gradless profile`, with learning rates so small that the model stays what it is. What counts are medians.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradless import plugins
from gradless.bench import results
from gradless.bench.grid import FINAL, cell_name
from gradless.cost import workload
from gradless.cost.turns import Candidate, take_turns, two_forwards
from gradless.errors import BadInput
from gradless.forward import model_blocks
from gradless.lm import LanguageModel, objectives, schemes
from gradless.methods import METHODS
from gradless.runs import build
from gradless.runs.config import TuneConfig
from gradless.runs.record import versions
from gradless.runs.shared_front import share_front
from gradless.system.atomic import write_json
from gradless.system.progress import Reporter
from gradless.system.typed import parse_json
from gradless.tasks import Row, Task

FILE = "timings.json"
FLOOR = "two forwards"
TIMED = "side_by_side"  # key of lines whose seconds were measured here
LR = 1e-12
NOWHERE = Path("nowhere")  # there is no run directory
# What tells methods apart, beside their names: the rest of a configuration is shared by those that are compared.
OWN = (
    "method",
    "plugins",
    "options",
    "lr",
    "eps",
    "queries",
    "seed",
    "steps",
    "eval_every",
    "engine",
    "num_test",
    "weight_decay",
)


class Timings(NamedTuple):
    """Seconds of a step by cell name, and the threads that they were measured with; None: not known."""

    seconds: dict[str, float]
    threads: int | None


def timings(
    out: Path, *, repeats: int = 7, threads: int | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Measure a step of every cell that has a finished final run, and write ``timings.json``.

    Args:
        out: bench directory.
        repeats: timed rounds.
        threads: of torch; None: as it is set.
        reporter: where progress goes.

    Returns:
        ``cells``: by cell name, ``step_seconds``, ``ratio`` to the floor (two forwards of the same batches without
        gradients), ``floor_seconds`` and ``samples``; ``versions`` and ``threads``.

    Raises:
        BadInput: no final run is finished.
    """
    reporter = reporter or Reporter()
    groups: dict[str, dict[str, TuneConfig]] = {}
    for line in results.read(out):
        if line["phase"] == FINAL and line["status"] == "done":
            asked = parse_json(results.request_file(out, line["id"]).read_text(encoding="utf-8"))
            config = TuneConfig.from_json(asked["config"])
            plugins.check(config.parts(), config.plugins)
            shared = {name: value for name, value in config.to_json().items() if name not in OWN}
            group = groups.setdefault(json.dumps(shared, sort_keys=True), {})
            group.setdefault(cell_name(line["cell"]), config)
    if not groups:
        raise BadInput(f"{out} has no finished final run to time: run the benchmark first")
    cells: dict[str, Any] = {}
    with workload.threads(threads), reporter.job("timings", len(groups)) as show:
        for done, group in enumerate(groups.values(), 1):
            cells |= _together(group, repeats)
            show(done, next(iter(group)))
        result = {"cells": cells, "threads": torch.get_num_threads(), "repeats": repeats, "versions": versions()}
    write_json(out / FILE, result)
    return result


def read(path: Path) -> Timings:
    """Return what a file of timings holds; nothing where there is none."""
    if not path.exists():
        return Timings({}, None)
    try:
        whole = parse_json(path.read_text(encoding="utf-8"))
        return Timings({name: float(row["step_seconds"]) for name, row in whole["cells"].items()}, whole.get("threads"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{path} cannot be read: measure again with --timings, or remove it") from None


def side_by_side(line: dict[str, Any], timed: Timings) -> dict[str, Any]:
    """Return a line of ``results.jsonl`` with the seconds of its cell where they were measured, in place of its own."""
    each = timed.seconds.get(cell_name(line["cell"]))
    if each is None:
        return line
    curve = [{**point, "seconds": point["step"] * each} for point in line.get("curve", ())]
    measured = {"seconds_per_step": each, "train_seconds": each * line.get("steps", 0), "curve": curve}
    return {**line, TIMED: True, "threads": timed.threads, **measured}


def _together(group: dict[str, TuneConfig], repeats: int) -> dict[str, Any]:
    """Time methods that share model, scheme and data."""
    base = next(iter(group.values()))
    task, splits = build.load_task(dataclasses.replace(base, num_test=0))
    plain = dataclasses.replace(base, method="mezo", options={}, queries=None, lr=LR)
    model, _ = build.build_for(plain, NOWHERE, task, splits.train, say=lambda line: None)
    encoded = build.encode_rows(model.lm, task, splits.train, base.max_length)
    objective = objectives.choose(task, base.objective, max_length=base.max_length)
    batches: list[Any] = []

    def draw(turn: int) -> None:
        rows = [encoded[i] for i in build.batch_indices(len(encoded), base.batch_size, base.seed, turn)]
        batches[:] = objectives.prepare(model.lm, objective, rows, base.micro_batch_size)

    def closure() -> Tensor:
        return objectives.loss_over(model.lm, objective, batches)

    candidates = [Candidate(FLOOR, two_forwards(closure), None)]
    candidates += [_candidate(name, config, model.lm, task, splits.train, closure) for name, config in group.items()]
    times = take_turns(candidates, repeats, model.lm.device, prepare=draw)
    floor = statistics.median(times.steps.pop(FLOOR))
    return {
        name: {
            "step_seconds": (seconds := statistics.median(samples) + times.flushes[name] / repeats),
            "ratio": seconds / floor,
            "floor_seconds": floor,
            "samples": samples,
        }
        for name, samples in times.steps.items()
    }


def _candidate(
    name: str,
    config: TuneConfig,
    lm: LanguageModel,
    task: Task,
    rows: Sequence[Row],
    closure: Callable[[], Tensor],
) -> Candidate:
    """Return the method of a cell on the shared model."""
    method = METHODS[config.method]
    slow = dataclasses.replace(config, lr=LR)
    opt = build.optimizer(slow, schemes.trainable(lm), build.measured_norms(slow, lm, task, rows))
    share_front(opt, config, lm.model)
    blocks = [block for _, block in model_blocks.blocks(lm.model)] if method.checkpoint else []

    def step() -> None:
        with model_blocks.checkpointing(blocks):
            opt.step(closure)

    return Candidate(name, step, opt)

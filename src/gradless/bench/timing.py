"""How long a step of each method takes, side by side: what the cost table and the view at equal seconds rest on.

Runs of a benchmark are made one after the other, for hours, beside whatever else the machine does; their seconds are
not comparable. Here all methods of one model, scheme and task take turns on one model and the same training batches,
as in `gradless profile`, with learning rates so small that the model stays what it is. What counts are medians.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradless.bench import results
from gradless.bench.grid import FINAL, cell_name
from gradless.cost.profile import seconds_of
from gradless.errors import BadInput
from gradless.forward import model_blocks
from gradless.lm import objectives, schemes
from gradless.methods import METHODS
from gradless.optimizer import ZerothOrder
from gradless.runs import build
from gradless.runs.config import TuneConfig
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.progress import Reporter

FILE = "timings.json"
FLOOR = "two forwards"
LR = 1e-12
WARMUP = 2
NOWHERE = Path("nowhere")  # there is no run directory
# What tells methods apart, beside their names: the rest of a configuration is shared by those that are compared.
OWN = ("method", "options", "lr", "eps", "queries", "seed", "steps", "eval_every", "engine", "num_test", "weight_decay")


class Timed(NamedTuple):
    """Something that takes a step on a batch."""

    name: str
    step: Callable[[Callable[[], Any]], Any]
    optimizer: ZerothOrder | None


def timings(out: Path, *, repeats: int = 7, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure a step of every cell that has a finished final run, and write ``timings.json``.

    Args:
        out: bench directory.
        repeats: timed rounds.
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
            asked = json.loads(results.request_file(out, line["id"]).read_text())
            config = TuneConfig.from_json(asked["config"])
            shared = {name: value for name, value in config.to_json().items() if name not in OWN}
            group = groups.setdefault(json.dumps(shared, sort_keys=True), {})
            group.setdefault(cell_name(line["cell"]), config)
    if not groups:
        raise BadInput(f"{out} has no finished final run to time: run the benchmark first")
    found: dict[str, Any] = {}
    with reporter.job("timings", len(groups)) as show:
        for done, group in enumerate(groups.values(), 1):
            found |= _together(group, repeats)
            show(done, next(iter(group)))
    whole = {"cells": found, "threads": torch.get_num_threads(), "repeats": repeats, "versions": versions()}
    write_json(out / FILE, whole)
    return whole


def read(out: Path) -> dict[str, float]:
    """Seconds of a step by cell name, as far as they were measured side by side."""
    path = out / FILE
    if not path.exists():
        return {}
    try:
        return {name: float(row["step_seconds"]) for name, row in json.loads(path.read_text())["cells"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{path} cannot be read: measure again with --timings, or remove it") from None


def side_by_side(line: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """A line of ``results.jsonl`` with the seconds of its cell where they were measured, in place of its own."""
    each = seconds.get(cell_name(line["cell"]))
    if each is None:
        return line
    curve = [{**point, "seconds": point["step"] * each} for point in line.get("curve", ())]
    return {**line, "seconds_per_step": each, "train_seconds": each * line.get("steps", 0), "curve": curve}


def _together(group: dict[str, TuneConfig], repeats: int) -> dict[str, Any]:
    """Methods that share model, scheme and data, taking turns."""
    base = next(iter(group.values()))
    task, splits = build.load_task(dataclasses.replace(base, num_test=0))
    plain = dataclasses.replace(base, method="mezo", options={}, queries=None, lr=LR)
    model, _ = build.build_for(plain, NOWHERE, task, splits.train, say=lambda line: None)
    encoded = build.encode_rows(model.lm, task, splits.train, base.max_length)
    objective = objectives.choose(task, base.objective)
    running = [Timed(FLOOR, _two_forwards, None)]
    running += [_candidate(name, config, model.lm, task, splits.train) for name, config in group.items()]
    samples: dict[str, list[float]] = {one.name: [] for one in running}
    for turn in range(WARMUP + repeats):
        chosen = [encoded[i] for i in build.batch_indices(len(encoded), base.batch_size, base.seed, turn)]
        batches = objectives.prepare(model.lm, objective, chosen, base.micro_batch_size)

        def closure(batches: list[Any] = batches) -> Any:
            return objectives.loss_over(model.lm, objective, batches)

        if turn == WARMUP:
            _flush(running, model.lm.device)
        for place in range(len(running)):
            one = running[(place + turn) % len(running)]  # nobody always runs behind the same neighbour
            seconds = seconds_of(lambda one=one, closure=closure: one.step(closure), model.lm.device)  # type: ignore[misc]
            if turn >= WARMUP:
                samples[one.name].append(seconds)
    flushes = _flush(running, model.lm.device)
    floor = statistics.median(samples.pop(FLOOR))
    return {
        name: {
            "step_seconds": (seconds := statistics.median(rows) + flushes[name] / repeats),
            "ratio": seconds / floor,
            "floor_seconds": floor,
            "samples": rows,
        }
        for name, rows in samples.items()
    }


@torch.no_grad()
def _two_forwards(closure: Callable[[], Any]) -> None:
    closure()
    closure()


def _candidate(name: str, config: TuneConfig, lm: Any, task: Any, rows: list[Any]) -> Timed:
    """The method of a cell on the shared model."""
    method = METHODS[config.method]
    quiet = dataclasses.replace(config, lr=LR)
    opt = build.optimizer(quiet, schemes.trainable(lm), build.measured_norms(quiet, lm, task, rows))
    if method.blocks:
        opt.reuse_prefixes(lm.model)
    blocks = [block for _, block in model_blocks.blocks(lm.model)] if method.checkpoint else []

    def step(closure: Callable[[], Any]) -> None:
        with model_blocks.checkpointing(blocks):
            opt.step(closure)

    return Timed(name, step, opt)


def _flush(running: list[Timed], device: torch.device) -> dict[str, float]:
    """Write all deferred updates; the seconds that takes each method."""
    return {one.name: seconds_of(one.optimizer.flush, device) for one in running if one.optimizer is not None}

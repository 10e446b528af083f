"""The end of a run: go to the step that dev chose, evaluate on test, write ``result.json``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from gradless.lm import evaluate, metrics, schemes, scoring
from gradless import ledger
from gradless.runs import build, predictions
from gradless.lm.batching import collate_ends
from gradless.runs.config import TuneConfig
from gradless.errors import BadInput
from gradless.lm.evaluate import Evaluation
from gradless.methods import METHODS
from gradless.runs.record import DONE, INTERRUPTED, RunLog, versions
from gradless.system.atomic import write_json
from gradless.lm.objectives import Objective
from gradless.optimizer import Update
from gradless.runs.predictions import Prediction
from gradless.system.progress import Reporter
from gradless.ranks import Ranks
from gradless.runs.build import BEST, Model
from gradless.tasks import Splits, Task


class RunContext(NamedTuple):
    """What a run works with."""

    config: TuneConfig
    folder: Path
    task: Task
    splits: Splits
    objective: Objective
    model: Model
    reporter: Reporter
    ranks: Ranks | None = None


def evaluate_rows(parts: RunContext, rows: list[Any], title: str, *, predict: bool = True) -> Evaluation:
    """Evaluate rows without touching the run's progress bar."""
    found = evaluate.evaluate(
        parts.model.lm,
        parts.task,
        rows,
        max_length=parts.config.max_length,
        objective=parts.objective,
        predict=predict,
        ranks=parts.ranks,
    )
    shown = [*list(found.metrics.items())[:1], *([("loss", found.loss)] if found.loss is not None else [])]
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown)
    parts.reporter.say(f"{title}: {numbers}  ({len(rows)} rows, {found.seconds:.0f} s)")
    return found


def finish(
    parts: RunContext,
    notes: RunLog,
    zero_shot: dict[str, Any],
    status: str,
    advice: str,
    label_tokens: tuple[int, ...],
) -> dict[str, Any]:
    """Go to the selected step, evaluate on test, and write ``result.json``."""
    config, opt = parts.config, parts.model.optimizer
    moves = ledger.read(parts.folder / "ledger").moves
    trained = len(moves)
    # An unfinished run has selected nothing: its result describes the weights that it stopped at.
    chosen = trained if status == INTERRUPTED else selected(parts, notes, trained)
    if chosen != trained:
        parts.reporter.say(f"step {chosen} was best on dev: back to it")
    _say_if_worse(parts, notes, chosen)
    replays = METHODS[config.method].replays
    if status == INTERRUPTED and not replays:
        chosen = opt.t  # such a run starts over; these are the weights that it leaves
    elif chosen != opt.t or opt.torn:  # also where Ctrl-C came after a step was logged and before it was applied
        _back_to(parts, moves[:chosen], label_tokens)
    else:
        opt.flush()
    if status == DONE and not replays and not (parts.folder / BEST).exists():
        build.keep_tensors(parts.folder / BEST, build.tuned_tensors(parts.model))
    test: dict[str, Any] = {}
    if status != INTERRUPTED and parts.splits.test:
        if notes.evaluation("test", chosen) is None:  # a crash may have come between this and the result
            notes.evaluated("test", chosen, evaluate_rows(parts, parts.splits.test, "tuned test"))
        test = notes.evaluation("test", chosen) or {}
    steps = notes.of("step")
    noted = {line["step"]: line["forwards"] for line in steps}  # a crash may have lost a line, but no move
    result = {
        "status": status,
        "zero_shot": _numbers(zero_shot),
        "dev": _numbers(notes.evaluation("dev", chosen) or {}),
        "test": _numbers(test),
        "interval": _intervals(zero_shot, test),
        "steps": trained,
        "selected_step": chosen,
        "skipped_steps": sum(move.skipped for move in moves),
        "forwards": sum(noted.get(m.step, opt.cost(m.step)) for m in moves),
        "train_seconds": sum(line["seconds"] for line in steps),
        "seconds_per_step": _median([line["seconds"] for line in steps]),
        "peak_memory_bytes": notes.peak(),
        "inference_memory_bytes": notes.inference or 0,
        "engine": opt.engine,
        "weights_sha256": None if opt.torn and not replays else _sha256(parts, status),
        "base_sha256": parts.model.base_sha256,
        "data_sha256": parts.splits.fingerprint,
        "rows": {split: len(getattr(parts.splits, split)) for split in ("train", "dev", "test")},
        "tuned_parameters": sum(leaf.param.numel() for leaf in parts.model.optimizer.leaves),
        "ledger_bytes": (parts.folder / "ledger").stat().st_size,
        "examples": predictions.examples(_predictions(parts, zero_shot, test)),
        "versions": versions(),
    }
    if parts.ranks is not None:
        result["ranks"] = {
            "size": parts.ranks.size,
            "split": parts.ranks.split,
            "bytes_per_step": _median([line["bytes"] for line in steps if "bytes" in line]),
        }
    if config.scheme == "head" and status == DONE:
        result["baseline_logistic_regression"] = _linear_probe(parts)
    write_json(parts.folder / "result.json", result)
    if advice:
        parts.reporter.say(f"{status}: {advice}")
    return result


def _sha256(parts: RunContext, status: str) -> str:
    """Hash of the tuned weights, which all ranks have if nothing interrupted them."""
    found = build.tuned_sha256(parts.model)
    if parts.ranks is not None and status != INTERRUPTED:
        parts.ranks.check_equal(found, "the weights in the end")
    return found


def selected(parts: RunContext, notes: RunLog, trained: int) -> int:
    """The step whose dev loss was lowest (or dev metric highest); the last one if dev was never evaluated."""
    key = "loss" if parts.config.select == "loss" else parts.task.metrics[0]
    sign = 1 if key == "loss" else -1
    seen = [line for line in notes.of("eval") if line["split"] == "dev" and 0 < line["step"] <= trained]
    finite = [line for line in seen if line.get(key) is not None and math.isfinite(line[key])]
    if not finite:
        return trained
    best = min(finite, key=lambda line: (sign * line[key], line["step"]))
    return best["step"]


def _say_if_worse(parts: RunContext, notes: RunLog, chosen: int) -> None:
    """A word where tuning made the model worse on dev."""
    key = "loss" if parts.config.select == "loss" else parts.task.metrics[0]
    sign = 1 if key == "loss" else -1
    before, after = (notes.evaluation("dev", step) or {} for step in (0, chosen))
    if before.get(key) is not None and after.get(key) is not None and sign * before[key] < sign * after[key]:
        parts.reporter.say(f"on dev the untouched model has the better {key}: lower --lr, or take more --steps")


def _back_to(parts: RunContext, moves: list[Update], label_tokens: tuple[int, ...]) -> None:
    """Rebuild the weights after some moves in the live model: base weights from disk, then the ledger.

    Methods that no ledger rebuilds have kept the weights of the best step instead.
    """
    if not METHODS[parts.config.method].replays:
        if (parts.folder / BEST).exists():
            kept = load_file(parts.folder / BEST)
            with torch.no_grad():
                for leaf in parts.model.optimizer.leaves:
                    leaf.param.copy_(kept[leaf.name])
        return
    # On the CPU, where the file's pages are mapped and not copied: a second model may not fit on the device.
    dtype = str(parts.model.lm.dtype).removeprefix("torch.")
    config = dataclasses.replace(parts.config, device="cpu", dtype=dtype)
    fresh = build.build(
        config, parts.folder, label_token_ids=label_tokens, twin=parts.model, say=parts.reporter.say
    )  # fmt: skip
    with torch.no_grad():
        for here, there in zip(parts.model.optimizer.leaves, fresh.optimizer.leaves, strict=True):
            here.param.copy_(there.param)
    del fresh
    build.optimizer(parts.config, schemes.trainable(parts.model.lm), parts.model.norms).replay(moves)


def _predictions(parts: RunContext, zero_shot: dict[str, Any], test: dict[str, Any]) -> list[Prediction]:
    """What was predicted for the test rows; kept in a file for `gradless report`."""
    if not test:
        return []
    rows = evaluate.render(parts.model.lm, parts.task, parts.splits.test)
    found = predictions.collect(rows, zero_shot, test)
    predictions.write(parts.folder / predictions.FILE, found)
    return found


def _intervals(zero_shot: dict[str, Any], test: dict[str, Any]) -> dict[str, list[float]]:
    """95 % intervals of the share of right answers before, after, and of their paired difference."""
    if not test:
        return {}
    after = test["correct"]
    if not zero_shot:
        return {"test": list(metrics.wilson(sum(after), len(after)))}
    before = zero_shot["correct"]
    return {
        "zero_shot": list(metrics.wilson(sum(before), len(before))),
        "test": list(metrics.wilson(sum(after), len(after))),
        "difference": list(metrics.difference_interval(before, after)),
    }


@torch.no_grad()
def _linear_probe(parts: RunContext) -> dict[str, float] | None:
    """The baseline of head tuning: logistic regression on the same frozen features, C chosen on dev.

    None without dev or test rows, or where it cannot be fitted; a finished run does not fail for its baseline.
    """

    def features(rows: list[Any]) -> tuple[Any, Any]:
        encoded = build.encode_rows(parts.model.lm, parts.task, rows, parts.config.max_length)
        chunks = [encoded[i : i + 16] for i in range(0, len(encoded), 16)]
        found = [scoring.features(parts.model.lm, collate_ends(parts.model.lm, chunk)) for chunk in chunks]
        return torch.cat(found).cpu().numpy(), [row.gold for row in encoded]

    if not (parts.splits.dev and parts.splits.test):
        return None
    train, dev, test = (features(rows) for rows in parts.splits[:3])
    try:
        return schemes.logistic_regression_baseline(*train, *dev, *test)
    except BadInput as error:
        parts.reporter.say(f"no baseline: {error}")
        return None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The metrics in an evaluation line."""
    return {name: line[name] for name in ("loss", *metrics.METRICS) if line.get(name) is not None}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0

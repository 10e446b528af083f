"""One fine-tuning run: evaluate, step, select on dev, evaluate again; interruptible at any moment.

A run directory holds ``config.json``, ``ledger`` (the checkpoint), ``metrics.jsonl`` and, last of all and atomically,
``result.json``. Only the ledger and the configuration matter for the weights: everything else can be lost.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradless import evaluate, ledger, metrics, objectives, run, schemes, scoring
from gradless.batching import collate_ends
from gradless.config import TuneConfig, difference, read_config
from gradless.encode import Encoded
from gradless.errors import BadInput, Diverged
from gradless.evaluate import Evaluation
from gradless.memory import PeakMeter
from gradless.notes import Notes, versions, write_json
from gradless.objectives import Objective
from gradless.optimizer import Move
from gradless.progress import Reporter
from gradless.run import Model
from gradless.tasks import Splits, Task

DONE, DIVERGED, INTERRUPTED = "done", "diverged", "interrupted"


class Parts(NamedTuple):
    """What a run works with."""

    config: TuneConfig
    folder: Path
    task: Task
    splits: Splits
    objective: Objective
    model: Model
    reporter: Reporter


def tune(config: TuneConfig, folder: Path, *, resume: bool = False, reporter: Reporter | None = None) -> dict[str, Any]:
    """Fine-tune a model and return the contents of ``result.json``.

    Args:
        config: what to run.
        folder: run directory; created, and refused if it already holds a run, unless ``resume`` is set.
        resume: continue an interrupted run of the same configuration (or start it, if there is none).
        reporter: where progress goes.

    Raises:
        BadInput: anything wrong with the configuration, the data, the model or the directory.
    """
    reporter = reporter or Reporter()
    config = config.resolved()
    finished = _claim(config, folder, resume)
    if finished is not None:
        reporter.say(f"{folder} is finished; nothing to do")
        return finished
    task, splits = run.load_task(config)
    if not splits.train:
        raise BadInput("there are no training rows: raise --num-train, or use 'gradless eval' for zero-shot")
    objective = objectives.choose(task, config.objective)
    model, label_tokens = run.build_for(config, folder, task, splits.train[0], say=reporter.say)
    parts = Parts(config, folder, task, splits, objective, model, reporter)
    # What cannot be encoded or batched is refused here, before anything is written.
    encoded = run.encode_rows(model.lm, task, splits.train, config.max_length)
    objectives.prepare(model.lm, objective, encoded[:1])
    header = run.header(config, model, splits, label_tokens)
    path = folder / "ledger"
    contents = ledger.read(path) if path.exists() else None
    if contents is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.to_json())
        run.keep_initial(config, folder, model)
    else:
        run.check_header(contents.header, model)
        run.check_config(contents.header, config)
        if contents.header["data_sha256"] != splits.fingerprint:
            raise BadInput("the data differ from those that this run began with: restore them, or start a new run")
    notes = Notes(folder / "metrics.jsonl", keep=len(contents.moves) if contents else 0)
    zero_shot = _zero_shot(parts, notes)
    book = ledger.Ledger(path, header, contents=contents)
    try:
        if contents is not None and contents.moves:
            reporter.say(f"replaying {len(contents.moves)} steps from the ledger")
            model.optimizer.replay(contents.moves)
        status, advice = _loop(parts, encoded, book, notes)
    finally:
        book.close()
    return _finish(parts, notes, zero_shot, status, advice, label_tokens)


def _claim(config: TuneConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """Make sure that ``folder`` is free or holds this very run; the result if it is finished."""
    first = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if first.exists() and not first.is_dir():
        raise BadInput(f"{first} is a file, not a folder: choose another --out")
    if (folder / "config.json").exists():
        if not resume:
            raise BadInput(f"{folder} already holds a run: add --resume to continue it, or choose another --out")
        changed = difference(read_config(folder), config)
        if changed:
            raise BadInput(f"{folder} holds a run with other settings ({changed}): choose another --out")
        if (folder / "result.json").exists():
            result: dict[str, Any] = json.loads((folder / "result.json").read_text())
            return None if result["status"] == INTERRUPTED else result
    elif (folder / "ledger").exists():
        raise BadInput(f"{folder} holds a ledger without its config.json: restore that file, or choose another --out")
    return None


# ---------------------------------------------------------------------------------------------------------------
# the loop


def _loop(parts: Parts, encoded: list[Encoded], book: ledger.Ledger, notes: Notes) -> tuple[str, str]:
    """Take the steps that are left; returns the status and, if it diverged, advice."""
    config, opt = parts.config, parts.model.optimizer
    assert config.eval_every is not None
    spent, before = 0.0, opt.forwards
    with parts.reporter.job("tune", config.steps, done=opt.t) as show:
        try:
            if notes.inference is None and opt.t < config.steps:
                _note_inference(parts, encoded, notes)
            while opt.t < config.steps:
                _dev_if_due(parts, notes)
                begun = time.perf_counter()
                loss = _step(parts, encoded, book, notes)
                spent += time.perf_counter() - begun
                speed = (opt.forwards - before) / spent
                show(opt.t, f"loss {loss:.4f}  {speed:.1f} forwards/s")
            _dev_if_due(parts, notes)
        except Diverged as error:
            return DIVERGED, str(error)
        except KeyboardInterrupt:
            return INTERRUPTED, "continue with --resume"
    return DONE, ""


def _step(parts: Parts, encoded: list[Encoded], book: ledger.Ledger, notes: Notes) -> float:
    """One step and its loss, logged before it is applied: a crash in between replays the same update."""
    config, opt, lm = parts.config, parts.model.optimizer, parts.model.lm
    begun = time.perf_counter()
    chosen = [encoded[i] for i in run.batch_indices(len(encoded), config.batch_size, config.seed, opt.t)]
    if config.micro_batch_size:
        chosen.sort(key=lambda row: row.longest)  # like lengths share a micro-batch: less padding
    batches = objectives.prepare(lm, parts.objective, chosen, config.micro_batch_size)
    moves: list[Move] = []

    def log(move: Move) -> None:
        book.append(move)
        moves.append(move)

    loss, diverged, forwards = math.nan, None, opt.forwards
    meter = notes.memory(lm.device)
    with meter.measured():
        try:
            loss = opt.step_with(lambda: objectives.loss_over(lm, parts.objective, batches), log)[0].loss
        except Diverged as error:  # the step that ends a run is noted like all others
            diverged = error
    for move in moves:  # none if the run had diverged before a crash already
        notes.write(
            event="step",
            step=move.step,
            loss=loss if math.isfinite(loss) else None,
            coeffs=None if move.skipped else move.coeffs,
            lr=move.lrs[0],
            forwards=opt.forwards - forwards,
            skipped=move.skipped,
            seconds=time.perf_counter() - begun,
            peak_memory_bytes=meter.peak,
        )
    if diverged is not None:
        raise diverged
    return loss


@torch.no_grad()
def _note_inference(parts: Parts, encoded: list[Encoded], notes: Notes) -> None:
    """Peak memory of evaluating, without any tuning, the largest batch that training will draw."""
    config, lm = parts.config, parts.model.lm
    draws = (run.batch_indices(len(encoded), config.batch_size, config.seed, t) for t in range(config.steps))
    largest = max(draws, key=lambda rows: max(encoded[i].longest for i in rows))
    batches = objectives.prepare(lm, parts.objective, [encoded[i] for i in largest], config.micro_batch_size)
    meter = PeakMeter(lm.device)
    objectives.loss_over(lm, parts.objective, batches)  # allocator and caches warm up outside
    with meter.measured():
        objectives.loss_over(lm, parts.objective, batches)
    notes.write(event="inference", step=parts.model.optimizer.t, bytes=meter.peak)


def _dev_if_due(parts: Parts, notes: Notes) -> None:
    """Evaluate on dev every ``eval_every`` steps and at the end, unless that is already noted."""
    config, step = parts.config, parts.model.optimizer.t
    assert config.eval_every is not None
    due = step > 0 and (step % config.eval_every == 0 or step == config.steps)
    if due and parts.splits.dev and notes.evaluation("dev", step) is None:
        parts.model.optimizer.flush()
        found = _evaluate(parts, parts.splits.dev, f"dev at {step}", predict=config.select == "metric")
        notes.evaluated("dev", step, found)


def _evaluate(parts: Parts, rows: list[Any], title: str, *, predict: bool = True) -> Evaluation:
    """Evaluate rows without touching the run's progress bar."""
    found = evaluate.evaluate(
        parts.model.lm,
        parts.task,
        rows,
        max_length=parts.config.max_length,
        objective=parts.objective,
        predict=predict,
    )
    shown = [*list(found.metrics.items())[:1], *([("loss", found.loss)] if found.loss is not None else [])]
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in shown)
    parts.reporter.say(f"{title}: {numbers}  ({len(rows)} rows, {found.seconds:.0f} s)")
    return found


def _zero_shot(parts: Parts, notes: Notes) -> dict[str, Any]:
    """Evaluate the untouched model on test and dev, once in the life of a run.

    Virtual tokens change what a model says before any of them is tuned, so the model below them is evaluated. (PEFT's
    ``disable_adapter`` does not work for masked models.) The other schemes start at the base model's output.
    """
    lm: Any = parts.model.lm
    if parts.config.scheme in ("prefix", "prompt"):
        parts = parts._replace(model=parts.model._replace(lm=dataclasses.replace(lm, model=lm.model.base_model)))
    for split in ("test", "dev"):
        rows = getattr(parts.splits, split)
        if rows and notes.evaluation(split, 0) is None:
            notes.evaluated(split, 0, _evaluate(parts, rows, f"zero-shot {split}"))
    return notes.evaluation("test", 0) or {}


# ---------------------------------------------------------------------------------------------------------------
# the end


def _finish(
    parts: Parts,
    notes: Notes,
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
    selected = trained if status == INTERRUPTED else _selected(parts, notes, trained)
    if selected != trained:
        parts.reporter.say(f"step {selected} was best on dev; rebuilding it from the ledger")
    if selected != opt.t or opt.torn:  # also where Ctrl-C came after a step was logged and before it was applied
        _back_to(parts, moves[:selected], label_tokens)
    else:
        opt.flush()
    test: dict[str, Any] = {}
    if status != INTERRUPTED and parts.splits.test:
        notes.evaluated("test", selected, _evaluate(parts, parts.splits.test, "tuned test"))
        test = notes.evaluation("test", selected) or {}
    steps = notes.of("step")
    noted = {line["step"]: line["forwards"] for line in steps}  # a crash may have lost a line, but no move
    result = {
        "status": status,
        "zero_shot": _numbers(zero_shot),
        "dev": _numbers(notes.evaluation("dev", selected) or {}),
        "test": _numbers(test),
        "interval": _intervals(zero_shot, test),
        "steps": trained,
        "selected_step": selected,
        "skipped_steps": sum(move.skipped for move in moves),
        "forwards": sum(noted.get(m.step, opt.estimator.forwards(opt.estimator.queries(m.step))) for m in moves),
        "train_seconds": sum(line["seconds"] for line in steps),
        "seconds_per_step": _median([line["seconds"] for line in steps]),
        "peak_memory_bytes": notes.peak(),
        "inference_memory_bytes": notes.inference or 0,
        "engine": opt.engine,
        "weights_sha256": run.tuned_sha256(parts.model),
        "base_sha256": parts.model.base_sha256,
        "data_sha256": parts.splits.fingerprint,
        "tuned_parameters": sum(leaf.param.numel() for leaf in parts.model.optimizer.leaves),
        "ledger_bytes": (parts.folder / "ledger").stat().st_size,
        "examples": _examples(parts, zero_shot, test),
        "versions": versions(),
    }
    if config.scheme == "head" and status == DONE:
        result["baseline_logistic_regression"] = _linear_probe(parts)
    write_json(parts.folder / "result.json", result)
    if advice:
        parts.reporter.say(f"{status}: {advice}")
    return result


def _selected(parts: Parts, notes: Notes, trained: int) -> int:
    """The step whose dev loss was lowest (or dev metric highest); the last one if dev was never evaluated."""
    key = "loss" if parts.config.select == "loss" else parts.task.metrics[0]
    sign = 1 if key == "loss" else -1
    seen = [line for line in notes.of("eval") if line["split"] == "dev" and 0 < line["step"] <= trained]
    finite = [line for line in seen if line.get(key) is not None and math.isfinite(line[key])]
    if not finite:
        return trained
    best = min(finite, key=lambda line: (sign * line[key], line["step"]))
    untouched = notes.evaluation("dev", 0) or {}
    if sign * (untouched.get(key) or 0.0) < sign * best[key] and untouched.get(key) is not None:
        parts.reporter.say(f"on dev the untouched model has the better {key}: lower --lr, or take more --steps")
    return best["step"]


def _back_to(parts: Parts, moves: list[Move], label_tokens: tuple[int, ...]) -> None:
    """Rebuild the weights after some moves in the live model: base weights from disk, then the ledger."""
    # On the CPU, where the file's pages are mapped and not copied: a second model may not fit on the device.
    dtype = str(parts.model.lm.dtype).removeprefix("torch.")
    config = dataclasses.replace(parts.config, device="cpu", dtype=dtype)
    fresh = run.build(config, parts.folder, label_token_ids=label_tokens, say=parts.reporter.say)
    with torch.no_grad():
        for here, there in zip(parts.model.optimizer.leaves, fresh.optimizer.leaves, strict=True):
            here.param.copy_(there.param)
    del fresh
    run.optimizer(parts.config, schemes.trainable(parts.model.lm)).replay(moves)


def _examples(parts: Parts, zero_shot: dict[str, Any], test: dict[str, Any]) -> list[dict[str, str]]:
    """Three test rows with what the model said before and after: the first ones whose prediction changed."""
    if not test:
        return []
    before, after = zero_shot["predictions"], test["predictions"]
    order = sorted(range(len(after)), key=lambda i: before[i] == after[i])
    shown = []
    for i in order[:3]:
        (example,) = evaluate.render(parts.model.lm, parts.task, [parts.splits.test[i]])

        def word(guess: Any, options: tuple[str, ...] = example.options) -> str:
            return options[guess].strip() if options else str(guess)

        gold = word(example.correct[0]) if example.options else example.answers[0]
        shown.append({"prompt": example.prompt, "gold": gold, "before": word(before[i]), "after": word(after[i])})
    return shown


def _intervals(zero_shot: dict[str, Any], test: dict[str, Any]) -> dict[str, list[float]]:
    """95 % intervals of the share of right answers before, after, and of their paired difference."""
    if not test:
        return {}
    before, after = zero_shot["correct"], test["correct"]
    return {
        "zero_shot": list(metrics.wilson(sum(before), len(before))),
        "test": list(metrics.wilson(sum(after), len(after))),
        "difference": list(metrics.difference_interval(before, after)),
    }


@torch.no_grad()
def _linear_probe(parts: Parts) -> dict[str, float] | None:
    """The baseline of head tuning: logistic regression on the same frozen features, C chosen on dev.

    None without dev or test rows, or where it cannot be fitted; a finished run does not fail for its baseline.
    """
    from gradless.schemes import logistic_regression_baseline

    def features(rows: list[Any]) -> tuple[Any, Any]:
        encoded = run.encode_rows(parts.model.lm, parts.task, rows, parts.config.max_length)
        chunks = [encoded[i : i + 16] for i in range(0, len(encoded), 16)]
        found = [scoring.features(parts.model.lm, collate_ends(parts.model.lm, chunk)) for chunk in chunks]
        return torch.cat(found).cpu().numpy(), [row.gold for row in encoded]

    if not (parts.splits.dev and parts.splits.test):
        return None
    train, dev, test = (features(rows) for rows in parts.splits[:3])
    try:
        return logistic_regression_baseline(*train, *dev, *test)
    except BadInput as error:
        parts.reporter.say(f"no baseline: {error}")
        return None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The metrics in an evaluation line."""
    return {name: line[name] for name in ("loss", *metrics.METRICS) if line.get(name) is not None}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0

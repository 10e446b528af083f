"""One fine-tuning run: evaluate, step, select on dev, evaluate again; interruptible at any moment.

A run directory holds ``config.json``, ``ledger`` (the checkpoint), ``metrics.jsonl`` and, last of all and atomically,
``result.json``. Only the ledger and the configuration matter for the weights: everything else can be lost.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradless import __version__, evaluate, ledger, metrics, objectives, run, scoring
from gradless.batching import collate_ends
from gradless.config import TuneConfig, difference, read_config
from gradless.encode import Encoded
from gradless.errors import BadInput, Diverged
from gradless.evaluate import Evaluation
from gradless.memory import PeakMeter
from gradless.objectives import Objective
from gradless.optimizer import Move, Probe
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
    model, label_tokens = run.build_for(config, task, splits.train[0], say=reporter.say)
    parts = Parts(config, folder, task, splits, objective, model, reporter)
    header = run.header(config, model, splits, label_tokens)
    path = folder / "ledger"
    contents = ledger.read(path) if path.exists() else None
    if contents is None:
        write_json(folder / "config.json", config.to_json())
    else:
        run.check_header(contents.header, model)
        if contents.header["data_sha256"] != splits.fingerprint:
            raise BadInput("the data differ from those that this run began with: restore them, or start a new run")
    notes = Notes(folder / "metrics.jsonl", keep=len(contents.moves) if contents else 0)
    zero_shot = _zero_shot(parts, notes)
    book = ledger.Ledger(path, header, contents=contents)
    try:
        if contents is not None and contents.moves:
            reporter.say(f"replaying {len(contents.moves)} steps from the ledger")
            model.optimizer.replay(contents.moves)
        status, advice = _loop(parts, book, notes)
    finally:
        book.close()
    return _finish(parts, notes, zero_shot, status, advice, label_tokens)


def _claim(config: TuneConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """Make sure that ``folder`` is free or holds this very run; the result if it is finished."""
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
    folder.mkdir(parents=True, exist_ok=True)
    return None


# ---------------------------------------------------------------------------------------------------------------
# the loop


def _loop(parts: Parts, book: ledger.Ledger, notes: Notes) -> tuple[str, str]:
    """Take the steps that are left; returns the status and, if it diverged, advice."""
    config, opt = parts.config, parts.model.optimizer
    encoded = run.encode_rows(parts.model.lm, parts.task, parts.splits.train, config.max_length)
    assert config.eval_every is not None
    begun, before = time.perf_counter(), opt.forwards
    with parts.reporter.job("tune", config.steps, done=opt.t) as show:
        try:
            while opt.t < config.steps:
                _dev_if_due(parts, notes)
                probe = _step(parts, encoded, book, notes)
                speed = (opt.forwards - before) / (time.perf_counter() - begun)
                show(opt.t, f"loss {probe.loss:.4f}  {speed:.1f} forwards/s")
            _dev_if_due(parts, notes)
        except Diverged as error:
            return DIVERGED, str(error)
        except KeyboardInterrupt:
            return INTERRUPTED, "continue with --resume"
    return DONE, ""


def _step(parts: Parts, encoded: list[Encoded], book: ledger.Ledger, notes: Notes) -> Probe:
    """One step, logged before it is applied: a crash in between replays the same update."""
    config, opt, lm = parts.config, parts.model.optimizer, parts.model.lm
    begun = time.perf_counter()
    chosen = [encoded[i] for i in run.batch_indices(len(encoded), config.batch_size, config.seed, opt.t)]
    batches = objectives.prepare(lm, parts.objective, chosen, config.micro_batch_size)
    if notes.inference is None:
        notes.inference = _inference_memory(parts, batches)
        begun = time.perf_counter()

    def log(probe: Probe) -> None:
        coeffs = probe.sketch.coeffs if probe.finite else ()
        book.append(Move(probe.step, coeffs, opt.learning_rates(), not probe.finite))

    with notes.memory(lm.device).measured():
        probe, applied = opt.step_with(lambda: objectives.loss_over(lm, parts.objective, batches), log)
    notes.write(
        event="step",
        step=probe.step,
        loss=probe.loss if math.isfinite(probe.loss) else None,
        coeffs=probe.sketch.coeffs if probe.finite else None,
        lr=opt.param_groups[0]["lr"],
        forwards=probe.forwards,
        skipped=not applied,
        seconds=time.perf_counter() - begun,
    )
    return probe


@torch.no_grad()
def _inference_memory(parts: Parts, batches: list[Any]) -> int:
    """Peak memory of evaluating the training batch once, without any tuning."""
    meter = PeakMeter(parts.model.lm.device)
    objectives.loss_over(parts.model.lm, parts.objective, batches)  # allocator and caches warm up outside
    with meter.measured():
        objectives.loss_over(parts.model.lm, parts.objective, batches)
    return meter.peak


def _dev_if_due(parts: Parts, notes: Notes) -> None:
    """Evaluate on dev every ``eval_every`` steps and at the end, unless that is already noted."""
    config, step = parts.config, parts.model.optimizer.t
    assert config.eval_every is not None
    due = step > 0 and (step % config.eval_every == 0 or step == config.steps)
    if due and parts.splits.dev and notes.evaluation("dev", step) is None:
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
    main = next(iter(found.metrics.items()), ("loss", found.loss or 0.0))
    loss = f"  loss {found.loss:.4f}" if found.loss is not None else ""
    parts.reporter.say(f"{title}: {main[0]} {main[1]:.4f}{loss}  ({len(rows)} rows, {found.seconds:.0f} s)")
    return found


def _zero_shot(parts: Parts, notes: Notes) -> dict[str, Any]:
    """Evaluate the untouched model on test and dev, once in the life of a run."""
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
    config, trained = parts.config, parts.model.optimizer.t
    selected = _selected(parts, notes, trained)
    test: dict[str, Any] = {}
    if status != INTERRUPTED:
        if selected != trained:
            parts.reporter.say(f"step {selected} was best on dev; rebuilding it from the ledger")
            _back_to(parts, selected, label_tokens)
        found = _evaluate(parts, parts.splits.test, "tuned test")
        notes.evaluated("test", selected, found)
        test = notes.evaluation("test", selected) or {}
    steps = notes.of("step")
    result = {
        "status": status,
        "zero_shot": _numbers(zero_shot),
        "dev": _numbers(notes.evaluation("dev", selected) or {}),
        "test": _numbers(test),
        "interval": _intervals(zero_shot, test),
        "steps": trained,
        "selected_step": selected,
        "skipped_steps": sum(line["skipped"] for line in steps),
        "forwards": sum(line["forwards"] for line in steps),
        "train_seconds": sum(line["seconds"] for line in steps),
        "seconds_per_step": _median([line["seconds"] for line in steps]),
        "peak_memory_bytes": notes.peak(),
        "inference_memory_bytes": notes.inference or 0,
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
    return min(finite, key=lambda line: (sign * line[key], line["step"]))["step"] if finite else trained


def _back_to(parts: Parts, step: int, label_tokens: tuple[int, ...]) -> None:
    """Rebuild the weights of an earlier step in the live model: base weights from disk, then the ledger."""
    fresh = run.build(parts.config, label_token_ids=label_tokens, say=parts.reporter.say)
    fresh.optimizer.replay(ledger.read(parts.folder / "ledger").moves[:step])
    with torch.no_grad():
        for here, there in zip(parts.model.optimizer.leaves, fresh.optimizer.leaves, strict=True):
            here.param.copy_(there.param)


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
def _linear_probe(parts: Parts) -> dict[str, float]:
    """The baseline of head tuning: logistic regression on the same frozen features, C chosen on dev."""
    from gradless.schemes import logistic_regression_baseline

    def features(rows: list[Any]) -> tuple[Any, Any]:
        encoded = run.encode_rows(parts.model.lm, parts.task, rows, parts.config.max_length)
        chunks = [encoded[i : i + 16] for i in range(0, len(encoded), 16)]
        found = [scoring.features(parts.model.lm, collate_ends(parts.model.lm, chunk)) for chunk in chunks]
        return torch.cat(found).cpu().numpy(), [row.gold for row in encoded]

    train, dev, test = (features(rows) for rows in parts.splits[:3])
    return logistic_regression_baseline(*train, *dev, *test)


# ---------------------------------------------------------------------------------------------------------------
# metrics.jsonl


class Notes:
    """``metrics.jsonl``: one JSON line an event. Lines after step ``keep`` (of a torn end) are dropped on resume."""

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path = path
        self.lines = _intact(path, keep)
        self.inference: int | None = None
        self._meter: PeakMeter | None = None
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        _write_text(path, text)

    def write(self, **line: Any) -> None:
        """Append one line; a full disk raises OSError and leaves whole lines."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)

    def of(self, event: str) -> list[dict[str, Any]]:
        """All lines of one kind."""
        return [line for line in self.lines if line["event"] == event]

    def evaluated(self, split: str, step: int, found: Evaluation) -> None:
        """Note an evaluation."""
        self.write(
            event="eval", split=split, step=step, loss=found.loss, **found.metrics, forwards=found.forwards,
            seconds=found.seconds, predictions=found.predictions, correct=[int(c) for c in found.correct],
        )  # fmt: skip

    def evaluation(self, split: str, step: int) -> dict[str, Any] | None:
        """The last evaluation of a split at a step."""
        found = [line for line in self.of("eval") if (line["split"], line["step"]) == (split, step)]
        return found[-1] if found else None

    def memory(self, device: torch.device) -> PeakMeter:
        """The meter of all training steps."""
        self._meter = self._meter or PeakMeter(device)
        return self._meter

    def peak(self) -> int:
        """Peak bytes of all training steps of this process."""
        return self._meter.peak if self._meter else 0


def _intact(path: Path, keep: int) -> list[dict[str, Any]]:
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


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The metrics in an evaluation line."""
    return {name: line[name] for name in ("loss", *metrics.METRICS) if line.get(name) is not None}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    import transformers

    return {
        "gradless": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    _write_text(path, json.dumps(values, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

"""The end of a run: go to the step that dev chose, evaluate on test, write ``result.json``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gradless import ledger
from gradless.errors import BadInput, NotFinite
from gradless.lm import encode, evaluate, metrics, probe, schemes
from gradless.lm.loading import IN_PLACE
from gradless.methods import METHODS
from gradless.optimizer import Update
from gradless.runs import build, predictions, reward_runs
from gradless.runs.build import BEST
from gradless.runs.config import RECORDED
from gradless.runs.context import RunContext, evaluate_split, selected_step, selection_key
from gradless.runs.facts import DataFacts, baseline
from gradless.runs.predictions import Prediction
from gradless.runs.record import DIVERGED, DONE, INTERRUPTED, NUMBERS, RunLog, versions
from gradless.system.atomic import write_json
from gradless.system.tensor_state import write_tensors

Line = dict[str, Any]  # of metrics.jsonl


def finish(
    run: RunContext,
    log: RunLog,
    zero_shot: Line,
    status: str,
    advice: str,
    label_tokens: tuple[int, ...],
    facts: DataFacts,
) -> dict[str, Any]:
    """Go to the selected step, evaluate on test, and write ``result.json``; returns its contents.

    ``facts`` are of the data, as they were shown.
    """
    moves = ledger.read(run.folder / "ledger").moves
    step = _selected_weights(run, log, moves, status, label_tokens)
    test: Line = {}
    if status != INTERRUPTED:
        try:
            _check_weights(run, moves)
            test = _tested(run, log, step)
        except NotFinite as error:
            status, advice = DIVERGED, advice or str(error)
    result = {
        "status": status,
        "zero_shot": _numbers(zero_shot),
        "dev": _numbers(log.evaluation("dev", step) or {}),
        "test": _numbers(test),
        "interval": _intervals(zero_shot, test),
        "share_right": _shares(zero_shot, test),
        **facts.of_result(),
        **reward_runs.of_result(run, log, step),
        **_training(run, log, moves, step),
        "weights_sha256": _sha256(run, status),
        "base_sha256": run.model.base_sha256,
        "data_sha256": run.splits.fingerprint,
        "truncated": {
            "train": facts.cut.rows["train"] if facts.cut is not None else 0,
            **{split: log.truncated(split) for split in ("dev", "test")},
            "side": encode.cut_side(run.model.lm),
        },
        "rows": {split: len(getattr(run.splits, split)) for split in ("train", "dev", "test")},
        "tuned_parameters": sum(leaf.param.numel() for leaf in run.model.optimizer.leaves),
        "ledger_bytes": (run.folder / "ledger").stat().st_size,
        "examples": predictions.examples(_predictions(run, zero_shot, test)),
        "versions": versions(run.config.plugins),
    }
    if run.ranks is not None:
        sent = [line["bytes"] for line in log.of("step") if "bytes" in line]
        result["ranks"] = {"size": run.ranks.size, "split": run.ranks.split, "bytes_per_step": _median(sent)}
    if run.config.scheme == "head" and status == DONE:
        result["baseline_logistic_regression"] = _linear_probe(run)
    write_json(run.folder / "result.json", result)
    if (compared := baseline(result)) is not None and not compared.beaten:
        run.reporter.say(compared.sentence)
    if advice:
        run.reporter.say(f"{status}: {advice}")
    return result


def _selected_weights(
    run: RunContext, log: RunLog, moves: list[Update], status: str, label_tokens: tuple[int, ...]
) -> int:
    """Bring the model to the weights that the result describes; returns their step."""
    opt, trained, replays = run.model.optimizer, len(moves), METHODS[run.config.method].replays
    # An unfinished run has selected nothing: its result describes the weights that it stopped at.
    step = trained if status == INTERRUPTED else selected_step(run, log, trained)
    if step != trained:
        run.reporter.say(f"step {step} was best on dev: back to it")
    _say_if_worse(run, log, step)
    if status == INTERRUPTED and not replays:
        step = opt.t  # such a run starts over; these are the weights that it leaves
    elif step != opt.t or opt.torn:  # also where Ctrl-C came after a step was logged and before it was applied
        _back_to(run, moves[:step], label_tokens)
    else:
        opt.flush()
    if status == DONE and not replays and not (run.folder / BEST).exists():
        write_tensors(run.folder / BEST, build.tuned_tensors(run.model))
    return step


def _check_weights(run: RunContext, moves: list[Update]) -> None:
    """Refuse weights that no step has moved, or moved to NaN or infinity; they are no result of a run.

    Raises:
        NotFinite: with what to change.
    """
    advice = "lower --lr or --eps, or use float32 weights"
    if moves and all(move.skipped for move in moves):
        raise NotFinite(f"the losses of all {len(moves)} steps were not finite: {advice}")
    if not build.finite(run.model):
        raise NotFinite(f"the weights of step {run.model.optimizer.t} are not finite: {advice}")


def _tested(run: RunContext, log: RunLog, step: int) -> Line:
    """Return the evaluation of the present weights on test, and make it unless the log has it already."""
    if not run.splits.test:
        return {}
    if log.evaluation("test", step) is None:  # a crash may have come between this and the result
        log.evaluated("test", step, evaluate_split(run, "test", "tuned test"))
    reward_runs.sample(run, log, step)
    return log.evaluation("test", step) or {}


def _training(run: RunContext, log: RunLog, moves: list[Update], step: int) -> dict[str, Any]:
    """Return what training took up to its end, beside the selected step."""
    opt, lines = run.model.optimizer, log.of("step")
    forwards = {line["step"]: line["forwards"] for line in lines}  # a crash may have lost a line, but no move
    seconds = [line["seconds"] for line in lines]
    return {
        "steps": len(moves),
        "selected_step": step,
        "skipped_steps": sum(move.skipped for move in moves),
        "forwards": sum(forwards.get(move.step, opt.cost(move.step)) for move in moves),
        "train_seconds": sum(seconds),
        "seconds_per_step": _median(seconds),
        "peak_memory_bytes": log.peak(),
        "inference_memory_bytes": log.inference or 0,
        "engine": opt.engine,
        **({RECORDED: choice.to_json()} if (choice := opt.evaluator.choice) else {}),
    }


def _sha256(run: RunContext, status: str) -> str | None:
    """Return the hash of the tuned weights, or None if an interruption tore them and no ledger rebuilds them."""
    if run.model.optimizer.torn and not METHODS[run.config.method].replays:
        return None
    digest = build.tuned_sha256(run.model)
    if run.ranks is not None and status != INTERRUPTED:
        run.ranks.check_equal(digest, "the weights in the end")
    return digest


def _say_if_worse(run: RunContext, log: RunLog, step: int) -> None:
    """Say so if tuning made the model worse on dev."""
    key, sign = selection_key(run)
    untouched, tuned = ((log.evaluation("dev", at) or {}).get(key) for at in (0, step))
    if untouched is not None and tuned is not None and sign * untouched < sign * tuned:
        run.reporter.say(f"on dev the untouched model has the better {key}: lower --lr, or take more --steps")


def _back_to(run: RunContext, moves: list[Update], label_tokens: tuple[int, ...]) -> None:
    """Rebuild the weights after some moves in the live model: base weights from disk, then the ledger.

    Methods that no ledger rebuilds have kept the weights of the best step instead.
    """
    leaves = run.model.optimizer.leaves
    if not METHODS[run.config.method].replays:
        if (run.folder / BEST).exists():
            build.load_tuned(run.folder / BEST, {leaf.name: leaf.param for leaf in leaves})
        return
    # On the CPU, where the file's pages are mapped and not copied: a second model may not fit on the device.
    dtype = run.model.lm.dtype_name
    config = dataclasses.replace(run.config, device="cpu", dtype=None if dtype == IN_PLACE else dtype)
    fresh = build.build(config, run.folder, label_token_ids=label_tokens, twin=run.model, say=run.reporter.say)
    with torch.no_grad():
        for here, there in zip(leaves, fresh.optimizer.leaves, strict=True):
            here.param.copy_(there.param)
    del fresh
    build.optimizer(run.config, schemes.trainable(run.model.lm), run.model.norms).replay(moves)


def _predictions(run: RunContext, zero_shot: Line, test: Line) -> list[Prediction]:
    """Return what was predicted for the test rows, and keep it in a file for `gradless report`."""
    if not test:
        return []
    examples = evaluate.render(run.model.lm, run.task, run.splits.test)
    rows = predictions.collect(examples, zero_shot, test)
    predictions.write(run.folder / predictions.FILE, rows)
    return rows


def _shares(zero_shot: Line, test: Line) -> dict[str, float]:
    """Return the share of right answers before and after."""
    correct = {name: line["correct"] for name, line in (("zero_shot", zero_shot), ("test", test)) if line}
    return {name: sum(right) / len(right) for name, right in correct.items() if right}


def _intervals(zero_shot: Line, test: Line) -> dict[str, list[float]]:
    """Return 95 % intervals of the share of right answers before, after, and of their paired difference."""
    correct = {name: line["correct"] for name, line in (("zero_shot", zero_shot), ("test", test)) if test and line}
    intervals = {name: list(metrics.wilson(sum(right), len(right))) for name, right in correct.items()}
    if len(correct) == 2:
        intervals["difference"] = list(metrics.difference_interval(correct["zero_shot"], correct["test"]))
    if test.get("rewards"):
        intervals |= reward_runs.intervals(zero_shot.get("rewards") or (), test["rewards"])
    return intervals


@torch.no_grad()
def _linear_probe(run: RunContext) -> dict[str, float] | None:
    """Return the scores of head tuning's baseline: logistic regression on the same frozen features, C chosen on dev.

    None without dev or test rows, or where it cannot be fitted; a finished run does not fail for its baseline.
    """
    train, dev, test = (
        build.encode_rows(run.model.lm, run.task, rows, run.config.max_length) for rows in run.splits[:3]
    )
    if not (dev and test):
        return None
    try:
        measured, chosen = probe.evaluate(run.model.lm, run.task, train, dev, test)
    except BadInput as error:
        run.reporter.say(f"no baseline: {error}")
        return None
    return {"accuracy": measured.metrics["accuracy"], "dev_accuracy": chosen.dev_accuracy, "C": chosen.C}


def _numbers(line: Line) -> dict[str, float]:
    """Return the loss and the metrics of an evaluation."""
    return {name: line[name] for name in ("loss", *NUMBERS) if line.get(name) is not None}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0

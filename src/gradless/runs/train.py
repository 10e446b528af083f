"""One fine-tuning run: evaluate, step, select on dev, evaluate again; interruptible at any moment.

A run directory holds ``config.json``, ``ledger`` (the checkpoint), ``metrics.jsonl`` and, last of all and atomically,
``result.json``. Only the ledger and the configuration matter for the weights: everything else can be lost.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradless.runs import build, finish, torchrun
from gradless.forward import model_blocks
from gradless import ledger
from gradless.lm import objectives
from gradless.runs.config import TuneConfig, difference, read_config
from gradless.lm.encode import Encoded
from gradless.errors import BadInput, Diverged
from gradless.system.peak_memory import PeakMeter
from gradless.methods import METHODS
from gradless.runs.record import DIVERGED, DONE, INTERRUPTED, RunLog
from gradless.system.atomic import write_json
from gradless.optimizer import Update
from gradless.runs.finish import RunContext
from gradless.system.progress import Reporter
from gradless.ranks import BATCH, Ranks, agreed
from gradless.runs.build import BEST


def tune(
    config: TuneConfig,
    folder: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    watch: Callable[[RunLog], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Fine-tune a model and return the contents of ``result.json``.

    Args:
        config: what to run.
        folder: run directory; created, and refused if it already holds a run, unless ``resume`` is set.
        resume: continue an interrupted run of the same configuration (or start it, if there is none).
        reporter: where progress goes.
        watch: is given the notes of the run before its first step, to follow them (`gradless.runs.tensorboard`).
        ranks: processes that make the run together (`gradless.runs.torchrun.joined`); rank 0 alone writes to ``folder``.

    Raises:
        BadInput: anything wrong with the configuration, the data, the model or the directory.
    """
    reporter = reporter or Reporter()
    if ranks is not None and ranks.rank:  # rank 0 speaks and writes for all
        reporter, watch = Reporter(quiet=True), None
    with torchrun.mirrored(folder, ranks) as place:
        return _tune(config, place, resume, reporter, watch, ranks)


def _tune(
    config: TuneConfig,
    folder: Path,
    resume: bool,
    reporter: Reporter,
    watch: Callable[[RunLog], None] | None,
    ranks: Ranks | None,
) -> dict[str, Any]:
    """`tune` in a folder that is this rank's own."""
    with agreed(ranks):
        config = _settled(config, folder, resume)
        torchrun.check(config, ranks)
        finished = _finished(config, folder, resume)
    if finished is not None:
        reporter.say(f"{folder} is finished; nothing to do")
        return finished
    with agreed(ranks):
        parts, label_tokens = _assembled(config, folder, reporter, ranks)
    model = torchrun.adopt_initial(config, parts.model, ranks)
    model.optimizer.landscape.share(ranks)
    if word := torchrun.idle(config, model, ranks):
        reporter.say(word)
    parts = parts._replace(model=model)
    header = build.header(config, model, parts.splits, label_tokens)
    torchrun.check_same(header, ranks)
    with agreed(ranks):
        encoded = _encoded(parts)
        contents = _continued(parts, header)
    if contents is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.to_json())
        build.keep_initial(config, folder, model)
    notes = RunLog(folder / "metrics.jsonl", keep=len(contents.moves) if contents else 0)
    if watch is not None:
        watch(notes)
    zero_shot = _zero_shot(parts, notes) if config.zero_shot else {}
    with agreed(ranks):
        book = ledger.Ledger(folder / "ledger", header, contents=contents)
    try:
        if contents is not None and contents.moves:
            reporter.say(f"replaying {len(contents.moves)} steps from the ledger")
            model.optimizer.replay(contents.moves)
            _check_equal(parts)
        status, advice = _loop(parts, encoded, book, notes)
    finally:
        book.close()
    return finish.finish(parts, notes, zero_shot, status, advice, label_tokens)


def _settled(config: TuneConfig, folder: Path, resume: bool) -> TuneConfig:
    """The configuration with nothing left open; a resumed run keeps its engine unless another one is asked for."""
    if resume and config.engine is None and (folder / "config.json").exists():
        config = dataclasses.replace(config, engine=read_config(folder).engine)
    return config.resolved()


def _finished(config: TuneConfig, folder: Path, resume: bool) -> dict[str, Any] | None:
    """The result of a run that has come to its end, if that is what ``folder`` holds."""
    finished = _claim(config, folder, resume)
    if finished is not None:
        moved = read_config(folder).data != config.data
        if moved and build.load_task(config)[1].fingerprint != finished["data_sha256"]:
            raise BadInput(f"{folder} holds a run on other data: restore them, or choose another --out")
    return finished


def _assembled(
    config: TuneConfig, folder: Path, reporter: Reporter, ranks: Ranks | None
) -> tuple[RunContext, tuple[int, ...]]:
    """Data, model and optimizer, and the tokens of the labels if the scheme needs them."""
    task, splits = build.load_task(config)
    if not splits.train:
        raise BadInput("there are no training rows: raise --num-train, or use 'gradless eval' for zero-shot")
    objective = objectives.choose(task, config.objective, backprop=METHODS[config.method].differentiates)
    model, label_tokens = build.build_for(config, folder, task, splits.train, say=reporter.say)
    return RunContext(config, folder, task, splits, objective, model, reporter, ranks), label_tokens


def _encoded(parts: RunContext) -> list[Encoded]:
    """Training rows as tokens. What cannot be encoded or batched is refused here, before anything is written."""
    encoded = build.encode_rows(parts.model.lm, parts.task, parts.splits.train, parts.config.max_length)
    objectives.prepare(parts.model.lm, parts.objective, encoded[:1])
    return encoded


def _continued(parts: RunContext, header: dict[str, Any]) -> ledger.Contents | None:
    """The ledger to go on from, if there is one; it must be that of this very run."""
    config, folder = parts.config, parts.folder
    if not (folder / "ledger").exists():
        return None
    contents = ledger.read(folder / "ledger")
    build.check_header(contents.header, parts.model)
    build.check_config(contents.header, config)
    if contents.header["data_sha256"] != header["data_sha256"]:
        raise BadInput("the data differ from those that this run began with: restore them, or start a new run")
    if METHODS[config.method].replays:
        return contents
    parts.reporter.say(f"a run of {config.method} cannot be continued: its steps are in no ledger, so it starts over")
    for name in ("ledger", "metrics.jsonl", BEST):
        (folder / name).unlink(missing_ok=True)
    return None


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


def _loop(parts: RunContext, encoded: list[Encoded], book: ledger.Ledger, notes: RunLog) -> tuple[str, str]:
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


def _step(parts: RunContext, encoded: list[Encoded], book: ledger.Ledger, notes: RunLog) -> float:
    """One step and its loss, logged before it is applied: a crash in between replays the same update."""
    config, opt, lm = parts.config, parts.model.optimizer, parts.model.lm
    begun = time.perf_counter()
    chosen = [encoded[i] for i in build.batch_indices(len(encoded), config.batch_size, config.seed, opt.t)]
    if config.micro_batch_size:
        chosen.sort(key=lambda row: row.longest)  # like lengths share a micro-batch: less padding
    batches = objectives.prepare(lm, parts.objective, _shard(chosen, parts.ranks), config.micro_batch_size)
    if parts.ranks is not None:
        parts.ranks.weight = sum(batch.weight for batch in batches)
    moves: list[Update] = []

    def log(move: Update) -> None:
        book.append(move)
        moves.append(move)

    loss, diverged, forwards, sent = math.nan, None, opt.forwards, parts.ranks.sent if parts.ranks else 0
    meter = notes.memory(lm.device)
    saving = METHODS[config.method].checkpoint
    blocks = [block for _, block in model_blocks.blocks(lm.model)] if saving else []
    with meter.measured(), model_blocks.checkpointing(blocks):
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
            **({"bytes": parts.ranks.sent - sent} if parts.ranks else {}),
        )
    if diverged is not None:
        raise diverged
    return loss


def _shard(rows: list[Encoded], ranks: Ranks | None) -> list[Encoded]:
    """This rank's part of a batch."""
    return rows if ranks is None or ranks.split != BATCH else list(ranks.own(rows))


def _check_equal(parts: RunContext) -> None:
    """See that all ranks hold the same weights. Cost: one hash of the tuned weights."""
    opt = parts.model.optimizer
    if parts.ranks is not None:
        opt.flush()
        parts.ranks.check_equal(build.tuned_sha256(parts.model), f"the weights at step {opt.t}")


@torch.no_grad()
def _note_inference(parts: RunContext, encoded: list[Encoded], notes: RunLog) -> None:
    """Peak memory of evaluating, without any tuning, the largest batch that training will draw."""
    config, lm = parts.config, parts.model.lm
    draws = (build.batch_indices(len(encoded), config.batch_size, config.seed, t) for t in range(config.steps))
    largest = max(draws, key=lambda rows: max(encoded[i].longest for i in rows))
    rows = _shard([encoded[i] for i in largest], parts.ranks)
    batches = objectives.prepare(lm, parts.objective, rows, config.micro_batch_size)
    meter, start = PeakMeter(lm.device), time.perf_counter()
    objectives.loss_over(lm, parts.objective, batches)  # allocator and caches warm up outside
    with meter.measured():
        objectives.loss_over(lm, parts.objective, batches)
    spent = time.perf_counter() - start
    notes.write(event="inference", step=parts.model.optimizer.t, bytes=meter.peak, seconds=spent)


def _dev_if_due(parts: RunContext, notes: RunLog) -> None:
    """Evaluate on dev every ``eval_every`` steps and at the end, unless that is already noted."""
    config, step = parts.config, parts.model.optimizer.t
    assert config.eval_every is not None
    due = step > 0 and (step % config.eval_every == 0 or step == config.steps)
    if due:
        _check_equal(parts)
    if due and parts.splits.dev and notes.evaluation("dev", step) is None:
        parts.model.optimizer.flush()
        found = finish.evaluate_rows(parts, parts.splits.dev, f"dev at {step}", predict=config.select == "metric")
        notes.evaluated("dev", step, found)
        if not METHODS[config.method].replays and finish.selected(parts, notes, step) == step:
            build.keep_tensors(parts.folder / BEST, build.tuned_tensors(parts.model))


def _zero_shot(parts: RunContext, notes: RunLog) -> dict[str, Any]:
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
            notes.evaluated(split, 0, finish.evaluate_rows(parts, rows, f"zero-shot {split}"))
    return notes.evaluation("test", 0) or {}

"""One fine-tuning run: evaluate, step, select on dev, evaluate again; interruptible at any moment.

A run directory holds ``config.json``, ``ledger`` (the checkpoint), ``metrics.jsonl`` and, last of all and atomically,
``result.json``. Only the ledger and the configuration matter for the weights: everything else can be lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from gradless import ledger
from gradless.errors import BadInput, Diverged, NotFinite
from gradless.forward import model_blocks
from gradless.lm import objectives
from gradless.methods import METHODS
from gradless.optimizer import Update
from gradless.ranks import Ranks, agreed
from gradless.runs import (
    build,
    describe,
    expected_time,
    extend,
    finish,
    measured,
    predictions,
    replay,
    resumed,
    reward_runs,
    torchrun,
    trackers,
)
from gradless.runs.build import BEST
from gradless.runs.config import TuneConfig, difference, read_config
from gradless.runs.context import RunContext, closure_of, evaluate_split, selected_step, shard
from gradless.runs.facts import FILE as FACTS
from gradless.runs.facts import DataFacts, lines
from gradless.runs.record import DIVERGED, DONE, INTERRUPTED, RunLog
from gradless.system import locks, side_files
from gradless.system.atomic import write_json
from gradless.system.peak_memory import PeakMeter
from gradless.system.progress import Reporter
from gradless.system.tensor_state import write_tensors

LOSABLE: Final = ("metrics.jsonl", "result.json", predictions.FILE, FACTS, BEST, trackers.FILE)
"""Files of a run that may be lost, or hold anything, without harm to its weights."""
LOOKED_AT: Final = 10_000
"""Steps whose batches are drawn beforehand, to find the largest."""
FEW_ROWS: Final = 16
"""The default batch size, with which data of any size may be tried."""


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
        watch: receives the run's log before the first step, to follow it (`gradless.runs.tensorboard`).
        ranks: processes that make the run together (`gradless.runs.torchrun.joined`); rank 0 alone writes.

    Raises:
        BadInput: anything wrong with the configuration, the data, the model or the directory.
    """
    reporter = reporter or Reporter()
    if ranks is not None and ranks.rank:  # rank 0 speaks and writes for all
        reporter, watch = Reporter(quiet=True), None
    with torchrun.mirrored(folder, ranks) as own_folder, contextlib.ExitStack() as stack:
        with agreed(ranks):
            stack.enter_context(locks.claimed(own_folder, say=reporter.warn))
        return _tune(config, own_folder, resume, reporter, watch, ranks, stack)


def _tune(
    config: TuneConfig,
    folder: Path,
    resume: bool,
    reporter: Reporter,
    watch: Callable[[RunLog], None] | None,
    ranks: Ranks | None,
    closing: contextlib.ExitStack,
) -> dict[str, Any]:
    """`tune` in a folder that is this rank's own, and claimed; ``closing`` ends what the run opens."""
    with agreed(ranks):
        if resume:
            side_files.make_room(folder, LOSABLE, reporter.say)
        config = extend.settled(config, folder, resume)
        torchrun.check(config, ranks)
        finished = resumed.finished(config, folder, resume, reporter)
    if finished is not None:
        reporter.say(f"{folder} is finished; nothing to do")
        return finished
    with agreed(ranks):
        config = build.pinned(config)
        run, label_tokens = _assembled(config, folder, reporter, ranks, closing)
    model = torchrun.adopt_initial(config, run.model, ranks)
    model.optimizer.evaluator.share(ranks)
    if warning := torchrun.idle(config, model, ranks):
        reporter.say(warning)
    run = run._replace(model=model)
    header = replay.header(config, model, run.splits, label_tokens)
    torchrun.check_same(header, ranks)
    with agreed(ranks):
        run, facts = _described(run)
        contents = resumed.continued(run, header)
        if contents is not None:
            extend.begin(config, folder, len(contents.moves), reporter.say)
    run, header, records = measured.settled(run, header, fresh=contents is None)
    config, model = run.config, run.model
    if contents is None:
        write_json(folder / "config.json", config.to_json() | records | reward_runs.sources(run.rewards))
        build.keep_initial(config, folder, model)
    log = _log(run, -1 if contents is None else len(contents.moves))
    facts = _shown(run, log, facts, len(contents.moves) if contents else 0)
    ledger_file = _ledger(run, header, contents)  # before an evaluation, whose rows and model its header tells
    try:
        zero_shot = _begun(run, log, watch, fresh=contents is None)
        if contents is not None and contents.moves:
            reporter.say(f"replaying {len(contents.moves)} steps from the ledger")
            model.optimizer.replay(contents.moves)
            _check_equal(run)
        status, advice = _loop(run, ledger_file, log)
    finally:
        ledger_file.close()
    return finish.finish(run, log, zero_shot, status, advice, label_tokens, facts)


def _ledger(run: RunContext, header: dict[str, Any], contents: ledger.Contents | None) -> ledger.Ledger:
    """Open the ledger to append to: a new one, or the one that the run goes on from."""
    path = run.folder / "ledger"
    with agreed(run.ranks):
        if contents is not None:
            contents = extend.relabel(run.config, path, contents)
        return ledger.Ledger(path, header, contents=contents)


def _begun(run: RunContext, log: RunLog, watch: Callable[[RunLog], None] | None, *, fresh: bool) -> dict[str, Any]:
    """Let ``watch`` follow the log, and evaluate the untouched model; returns the line of test.

    Raises:
        BadInput: nothing is left of a run that is refused before its first step.
    """
    try:
        with agreed(run.ranks):
            if watch is not None:
                watch(log)
        return _zero_shot(run, log) if run.config.zero_shot else {}
    except BadInput:
        if fresh:  # nothing has begun: there is nothing to continue
            resumed.forget(run.folder)
        raise


def _log(run: RunContext, keep: int) -> RunLog:
    """Return the log of a run whose ledger holds so many steps; -1: there is none, and so no line that is the run's."""
    rows = {split: len(getattr(run.splits, split)) for split in ("train", "dev", "test")}
    due = functools.partial(_dev_due, run.config)
    return RunLog(run.folder / "metrics.jsonl", keep=keep, rows=rows, due=due, say=run.reporter.say)


def is_run(config: TuneConfig, folder: Path) -> bool:
    """Return whether a folder holds a run of a configuration."""
    try:
        return difference(read_config(folder), extend.settled(config, folder, resume=True)) is None
    except BadInput:
        return False


def _assembled(
    config: TuneConfig, folder: Path, reporter: Reporter, ranks: Ranks | None, closing: contextlib.ExitStack
) -> tuple[RunContext, tuple[int, ...]]:
    """Load data and model and make the optimizer; returns the tokens of the labels, too, if the scheme needs them."""
    task, splits = build.load_task(config, reporter.say)
    if not splits.train:
        raise BadInput("there are no training rows: raise --num-train, or use 'gradless eval' for zero-shot")
    if config.batch_size > max(len(splits.train), FEW_ROWS):
        raise BadInput(f"batch_size is {config.batch_size}, and there are {len(splits.train)} training rows: lower it")
    rewards = reward_runs.load(config, task, splits, reporter.say)
    if rewards is not None:
        closing.enter_context(rewards)
        reward_runs.note_changes(rewards, folder, reporter.warn)
    objective = reward_runs.objective(config, task, rewards)
    model, label_tokens = build.build_for(config, folder, task, splits.train, say=reporter.say)
    if rewards is not None and not model.optimizer.estimator.rows:
        reporter.say(f"{config.method} compares few texts a step; --method es compares a population, row by row")
    run = RunContext(config, folder, task, splits, objective, model, reporter, ranks, rewards=rewards)
    return run, label_tokens


def _described(run: RunContext) -> tuple[RunContext, DataFacts]:
    """Add the rows as tokens, and return the facts about them; refuses what cannot be encoded, or batched."""
    config, lm = run.config, run.model.lm
    facts, encoded = describe.described(lm, run.task, run.splits, run.objective, config.own, config.max_length)
    objectives.prepare(lm, run.objective, encoded["train"][:1])
    return run._replace(encoded=encoded), facts


def _shown(run: RunContext, log: RunLog, facts: DataFacts, done: int) -> DataFacts:
    """Say what will be trained on and how long that is expected to take, and keep it in the run's folder."""
    if run.ranks is not None and run.ranks.rank:
        return facts
    facts = msgspec.structs.replace(facts, time=expected_time.of_run(run, log, done))
    chosen = run.model.optimizer.evaluator.choice
    for line in (*lines(facts), *([f"engine: {chosen}"] if chosen else [])):
        run.reporter.say(line)
    write_json(run.folder / FACTS, facts.to_json())
    return facts


# ---------------------------------------------------------------------------------------------------------------
# the loop


def _loop(run: RunContext, ledger_file: ledger.Ledger, log: RunLog) -> tuple[str, str]:
    """Take the steps that are left; returns the status and, unless it is "done", advice."""
    config, opt = run.config, run.model.optimizer
    comparisons = None if run.rewards is None else reward_runs.Comparisons(run, log)
    with run.reporter.job("tune", config.steps, done=opt.t, part="step") as show:
        try:
            if log.compared < min(config.steps, LOOKED_AT) and opt.t < config.steps:
                _log_inference(run, log)
            while opt.t < config.steps:
                _dev_if_due(run, log)
                loss = _step(run, ledger_file, log, comparisons)
                show(opt.t, f"loss {loss:.4f}" if run.rewards is None else f"reward {0.0 - loss:.4f}")
            _dev_if_due(run, log)
        except (Diverged, NotFinite) as error:
            return DIVERGED, str(error)
        except KeyboardInterrupt:
            return INTERRUPTED, "continue with --resume"
    return DONE, ""


def _step(
    run: RunContext, ledger_file: ledger.Ledger, log: RunLog, comparisons: reward_runs.Comparisons | None
) -> float:
    """Take a step and return its loss; the ledger gets it first: a crash in between replays the same update."""
    config, opt, lm = run.config, run.model.optimizer, run.model.lm
    begun = time.perf_counter()
    closure = closure_of(run, opt.t)
    moves: list[Update] = []

    def append(move: Update) -> None:
        ledger_file.append(move)
        moves.append(move)

    loss, diverged, forwards, sent = math.nan, None, opt.forwards, run.ranks.sent if run.ranks else 0
    meter = log.memory(lm.device)
    blocks = [block for _, block in model_blocks.blocks(lm.model)] if METHODS[config.method].checkpoint else []
    with meter.measured(), model_blocks.checkpointing(blocks):
        try:
            loss = opt.step_with(closure, append)[0].loss
        except Diverged as error:  # the step that ends a run is noted like all others
            diverged = error
    observed = reward_runs.of_step(closure, opt.estimator, moves[0].step, loss) if moves and run.rewards else {}
    for move in moves:  # none if the run had diverged before a crash already
        log.write(
            event="step",
            step=move.step,
            loss=loss if math.isfinite(loss) else None,
            coeffs=None if move.skipped else move.coeffs,
            lr=move.lrs[0],
            forwards=opt.forwards - forwards,
            skipped=move.skipped,
            seconds=time.perf_counter() - begun,
            peak_memory_bytes=meter.peak,
            **({"bytes": run.ranks.sent - sent} if run.ranks else {}),
            **observed,
        )
    if comparisons is not None and moves:
        comparisons.check(log.lines[-1])
    if diverged is not None:
        raise diverged
    return loss


def _check_equal(run: RunContext) -> None:
    """Check that all ranks hold the same weights. Cost: one hash of the tuned weights."""
    opt = run.model.optimizer
    if run.ranks is not None:
        opt.flush()
        run.ranks.check_equal(build.tuned_sha256(run.model), f"the weights at step {opt.t}")


@torch.no_grad()
def _log_inference(run: RunContext, log: RunLog) -> None:
    """Log the peak memory of evaluating, without any tuning, the largest batch of the first `LOOKED_AT` steps."""
    config, lm, encoded = run.config, run.model.lm, run.encoded["train"]
    steps = range(min(config.steps, LOOKED_AT))
    draws = (build.batch_indices(len(encoded), config.batch_size, config.seed, t) for t in steps)
    largest = max(draws, key=lambda rows: max(encoded[i].longest for i in rows))
    rows = shard([encoded[i] for i in largest], run.ranks)
    batches = objectives.prepare(lm, run.objective, rows, config.micro_batch_size)
    meter, start = PeakMeter(lm.device), time.perf_counter()
    if run.objective.of_texts is None:  # a generation is many forwards, and warm after the first one
        objectives.loss_over(lm, run.objective, batches)  # allocator and caches warm up outside
    with meter.measured():
        objectives.loss_over(lm, run.objective, batches)
    seconds = time.perf_counter() - start
    log.write(event="inference", step=run.model.optimizer.t, bytes=meter.peak, seconds=seconds, steps=len(steps))


def _dev_if_due(run: RunContext, log: RunLog) -> None:
    """Evaluate on dev every ``eval_every`` steps and at the end, unless the log has that already."""
    step = run.model.optimizer.t
    due = _dev_due(run.config, step)
    if due:
        _check_equal(run)
    if due and run.splits.dev and log.evaluation("dev", step) is None:
        run.model.optimizer.flush()
        evaluation = evaluate_split(
            run, "dev", f"dev at {step}", predict=run.config.select == "metric" or run.objective.of_texts is not None
        )
        log.evaluated("dev", step, evaluation)
        if not METHODS[run.config.method].replays and selected_step(run, log, step) == step:
            write_tensors(run.folder / BEST, build.tuned_tensors(run.model))


def _dev_due(config: TuneConfig, step: int) -> bool:
    """Return whether dev is evaluated after so many steps."""
    assert config.eval_every is not None
    return step > 0 and (step % config.eval_every == 0 or step == config.steps)


def _zero_shot(run: RunContext, log: RunLog) -> dict[str, Any]:
    """Evaluate the untouched model on test and dev, once in the life of a run; returns the line of test.

    New virtual tokens change what a model says before any of them is tuned, so the model below them is evaluated.
    (PEFT's ``disable_adapter`` does not work for masked models.) The other schemes start at the base model's output, or
    at that of the adapter that is tuned further.
    """
    lm: Any = run.model.lm
    if run.config.scheme in ("prefix", "prompt") and not lm.origin:
        run = run._replace(model=run.model._replace(lm=dataclasses.replace(lm, model=lm.model.base_model)), encoded={})
    for split in ("test", "dev"):
        if getattr(run.splits, split) and log.evaluation(split, 0) is None:
            log.evaluated(split, 0, evaluate_split(run, split, f"zero-shot {split}"))
    reward_runs.sample(run, log, 0)
    return log.evaluation("test", 0) or {}

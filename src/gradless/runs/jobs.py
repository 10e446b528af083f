"""The jobs of the command line: tune with all that goes with it, evaluate, replay, list."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gradless import ledger, lm, methods, rewards, tasks
from gradless.directions import DIRECTIONS
from gradless.errors import BadInput, pick
from gradless.estimators import ESTIMATORS
from gradless.lm import encode, metrics, objectives, schemes
from gradless.lm import evaluate as evaluation
from gradless.lm import probe as probing
from gradless.lm.rewarded import Sampling
from gradless.ranks import Ranks, agreed
from gradless.rules import RULES
from gradless.runs import build, describe, expected_time, reward_runs, trackers, train
from gradless.runs import replay as rebuilding
from gradless.runs import save as saving
from gradless.runs import tensorboard as tensorboard_events
from gradless.runs.config import TuneConfig
from gradless.runs.facts import DataFacts, baseline, lines
from gradless.runs.record import DONE, INTERRUPTED, RunLog, read_result, versions
from gradless.runs.tuned_words import saved_spec
from gradless.system import locks
from gradless.system.atomic import write_json
from gradless.system.progress import Reporter
from gradless.system.side_files import read_json
from gradless.tasks import Splits

TUNED: Final = "tuned"
PROBE: Final = "probe"
MODES: Final = {**evaluation.MODES, PROBE: "a logistic regression on features of the frozen model"}
"""How `evaluate` may read a model."""
"""The mode of an evaluation of a saved model by its prompt alone."""


def tune(
    config: TuneConfig,
    out: Path,
    *,
    resume: bool = False,
    save: Path | None = None,
    push: str | None = None,
    public: bool = False,
    tensorboard: Path | None = None,
    report_to: str | Sequence[str] = (),
    reporter: Reporter | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Tune as `gradless.runs.train.tune` does; save, push and show the run as asked. Returns the result.

    Args:
        config: what to run.
        out: run directory.
        resume: continue a run.
        save: folder for the tuned model or adapter. It is rebuilt from the ledger, and compared with what was measured.
        push: name on the Hugging Face hub to upload it to.
        public: make that repository public.
        tensorboard: folder for TensorBoard events.
        report_to: trackers that get the metrics (`gradless.runs.trackers`); TensorBoard writes to ``out/tensorboard``.
        reporter: where progress goes.
        ranks: as `gradless.runs.train.tune` takes them; rank 0 alone saves, pushes and reports.

    Raises:
        BadInput: as `gradless.runs.train.tune` and `replay`, before anything is computed where that can be known.
    """
    reporter = reporter or Reporter()
    if ranks is not None and ranks.rank:
        save, push, public, tensorboard, report_to = None, None, False, None, ()
    with contextlib.ExitStack() as stack:
        watching: list[tensorboard_events.Watch] = []
        with agreed(ranks):
            names = trackers.check(report_to)
            if trackers.TENSORBOARD in names:
                tensorboard = tensorboard or out / "tensorboard"
            if resume and save is not None and train.is_run(config, out) and _is_saved(save, out):
                reporter.say(f"{save} holds the model of {out} already")  # a scheduler that tries again
                save = None
            _check_save(config, out, save, push, resume=resume, public=public, tensorboard=tensorboard)
            if tensorboard is not None:
                watching.append(stack.enter_context(tensorboard_events.tensorboard(out, tensorboard, say=reporter.say)))
            followers = stack.enter_context(trackers.following(names, out, reporter.warn))
            watching.append(followers.watch)

        def watch(log: RunLog) -> None:
            for one in watching:
                one(log)

        result = train.tune(config, out, resume=resume, reporter=reporter, watch=watch, ranks=ranks)
        followers.summarise(result)
    if save is not None or push is not None:
        if result["status"] == DONE:
            replay(out, save=save, push=push, public=public, device=config.device, reporter=reporter)
        else:
            reporter.say(f"the run is {result['status']}, so nothing is saved: see 'gradless replay {out} --save DIR'")
    return result


def _check_save(
    config: TuneConfig,
    out: Path,
    save: Path | None,
    push: str | None,
    *,
    resume: bool,
    public: bool,
    tensorboard: Path | None,
) -> None:
    """Refuse a place for the tuned model that cannot take it, before anything is computed."""
    beside = [path for path in (out, tensorboard) if path is not None]
    saving.check_scheme(save, push, config.scheme)
    kept = resume and _is_written(save, out)  # perhaps by this run: looked at when it has been rebuilt
    saving.check(None if kept else save, push, public=public, beside=beside)


def _is_written(save: Path | None, run: Path) -> bool:
    """Return whether a finished run is to be saved as a GGUF file that is there."""
    if save is None or not saving.is_gguf(save) or not saving.is_saved(save):
        return False
    result = read_result(run)
    return result is not None and result["weights_sha256"] is not None


def _is_saved(folder: Path, run: Path) -> bool:
    """Return whether a folder holds the model of a finished run."""
    result = read_result(run)
    if result is None or result["weights_sha256"] is None or not saving.is_saved(folder):
        return False
    return not saving.is_gguf(folder) and saving.holds(folder, ledger.read(run / "ledger"), result["weights_sha256"])


def evaluate(
    config: TuneConfig,
    *,
    mode: str,
    num_demonstrations: int,
    out: Path | None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Return the result of an untuned model on the test rows of a task; ``out`` is a folder for ``result.json``.

    A folder that holds the result of the same evaluation is left as it is.

    Raises:
        BadInput: anything wrong with configuration, data or model; ``out`` holds something else or is being worked on.
    """
    reporter = reporter or Reporter()
    pick("mode", mode, MODES)
    if out is None:
        return _evaluated(config, mode, num_demonstrations, reporter)
    with locks.claimed(out, say=reporter.warn):
        if any((out / name).exists() for name in ("config.json", "ledger", "result.json")):
            held = _held_evaluation(config, mode, num_demonstrations, out)
            if held is None:
                raise BadInput(f"{out} already holds a run or another result: choose another --out")
            reporter.say(f"{out} is finished; nothing to do")
            return held
        result = _evaluated(config, mode, num_demonstrations, reporter)
        write_json(out / "result.json", result)
    return result


def _held_evaluation(config: TuneConfig, mode: str, num_demonstrations: int, out: Path) -> dict[str, Any] | None:
    """Return the result in a folder if it is of the same model, settings and rows, else None."""
    held = read_json(out / "result.json")
    if (out / "config.json").exists() or not isinstance(held, dict) or not {"config", "test", "interval"} <= set(held):
        return None
    needed = num_demonstrations if mode == "icl" else 0
    config = _eval_config(config, mode)
    same = (held.get("num_demonstrations"), held["config"]) == (needed, config.to_json())
    same = same and held.get("mode") in (mode, _named(mode, config.model))  # earlier releases wrote the first one
    return held if same and held.get("data_sha256") == build.load_task(config)[1].fingerprint else None


def _named(mode: str, model: str) -> str:
    """Return what results call a mode."""
    return TUNED if mode == "zero-shot" and saved_spec(model) is not None else mode


def _eval_config(config: TuneConfig, mode: str) -> TuneConfig:
    """Return the configuration with nothing left open, and without rows that the mode does not read."""
    if not config.own and mode != PROBE:
        config = dataclasses.replace(config, num_train=config.num_train if mode == "icl" else 0, num_dev=0)
    return build.pinned(config.resolved(), tunes=False)


def _evaluated(config: TuneConfig, mode: str, num_demonstrations: int, reporter: Reporter) -> dict[str, Any]:
    with contextlib.ExitStack() as closing:
        return _measured(config, mode, num_demonstrations, reporter, closing)


def _measured(
    config: TuneConfig, mode: str, num_demonstrations: int, reporter: Reporter, closing: contextlib.ExitStack
) -> dict[str, Any]:
    needed = num_demonstrations if mode == "icl" else 0
    config = _eval_config(config, mode)
    task, splits = build.load_task(config, reporter.say)
    if not splits.test:
        raise BadInput("there are no test rows: give --test or --num-test")
    functions = reward_runs.load(config, task, splits, reporter.say)
    if functions is not None:
        closing.enter_context(functions)
    model = build.base_model(config, say=reporter.say)
    if mode != PROBE:
        splits = splits._replace(train=splits.train if needed else [], dev=[])
    prompts = "zero-shot" if mode == PROBE else mode
    shown = evaluation.Shown(prompts, splits.train, num_demonstrations, seed=config.seed, max_length=config.max_length)
    encoded = {"test": evaluation.encode_shown(model, task, splits.test, shown)}
    if mode == PROBE:
        rows = {name: getattr(splits, name) for name in ("train", "dev")}
        encoded |= {name: build.encode_rows(model, task, rows[name], config.max_length) for name in rows}
    objective = objectives.default_for(task) if functions is None else reward_runs.objective(config, task, functions)
    facts, _ = describe.described(model, task, splits, objective, config.own, config.max_length, encoded=encoded)
    every = [row for rows in encoded.values() for row in rows]
    facts = msgspec.structs.replace(facts, time=expected_time.of_evaluation(model, objective, task, every))
    for line in lines(facts):
        reporter.say(line)
    named = _named(mode, config.model)
    with reporter.job(named, len(every)) as show:

        def progress(done: int, total: int) -> None:
            show(done, "")

        if mode == PROBE:
            scores, probe = probing.evaluate(model, task, **encoded, progress=progress)
            chosen = {"probe": {"C": probe.C, "dev_accuracy": probe.dev_accuracy}}
        else:
            judged = None if functions is None else objective
            how = {**shown._asdict(), "objective": judged, "encoded": encoded["test"], "progress": progress}
            scores, chosen = evaluation.evaluate(model, task, splits.test, **how), {}
    result = _result(config, named, needed, splits, scores, facts) | chosen
    result["truncated"] = {"test": scores.cut, "side": encode.cut_side(model)}
    if functions is not None:
        result["rewards"] = dataclasses.asdict(functions.counts)
        result |= _samples(model, objective, encoded["test"], config)
    if (compared := baseline(result)) is not None and not compared.beaten:
        reporter.say(compared.sentence)
    return result


def _result(
    config: TuneConfig, mode: str, shown: int, splits: Splits, scores: evaluation.Evaluation, facts: DataFacts
) -> dict[str, Any]:
    """Return what ``result.json`` of every evaluation has."""
    return {
        "status": DONE,
        "mode": mode,
        "num_demonstrations": shown,
        "config": config.to_json(),
        "test": scores.metrics,
        "interval": {
            "test": list(metrics.wilson(sum(scores.correct), len(scores.correct))),
            **reward_runs.intervals((), scores.rewards),
        },
        "share_right": {"test": sum(scores.correct) / len(scores.correct)},
        **facts.of_result(),
        "forwards": scores.forwards,
        "seconds": scores.seconds,
        "data_sha256": splits.fingerprint,
        "versions": versions(config.plugins),
    }


def _samples(
    model: lm.LanguageModel, objective: objectives.Objective, encoded: Sequence[encode.Encoded], config: TuneConfig
) -> dict[str, Any]:
    """Return pass@k of a model, if the configuration asks for samples."""
    if not config.samples:
        return {}
    sampling = Sampling(config.temperature, config.seed)
    values = reward_runs.sampled(model, objective, encoded, config.samples, sampling)
    return {"pass_at": {"test": reward_runs.pass_at(values, config.pass_reward)}}


class Replayed(NamedTuple):
    """Weights rebuilt from a ledger."""

    step: int
    sha256: str
    agrees: bool | None  # with result.json, if that was asked


def replay(
    run: Path,
    *,
    until: int | None = None,
    save: Path | None = None,
    push: str | None = None,
    public: bool = False,
    verify: bool = False,
    model: str | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Replayed:
    """Rebuild a run's weights, and optionally compare, save and push them.

    Args:
        run: its directory, or a ledger without one.
        until: step to go to; by default the selected one, and of a ledger alone the last one.
        save: folder for the model or adapter, or a .gguf file (`gradless.runs.save`).
        push: name on the Hugging Face hub to upload it to.
        public: make that repository public.
        verify: compare with ``result.json``.
        model: where the base model is now, if not where the run found it.
        device: where to compute, if not where the run was.
        reporter: where progress goes.

    Raises:
        BadInput: no run, a damaged ledger, another base model, no result to compare with, ``save`` is taken.
    """
    reporter = reporter or Reporter()
    compared = save is not None and saving.is_saved(save)  # it may be this very model
    saving.check(None if compared else save, push, public=public)
    recorded = _recorded(run)
    if verify and recorded is None:
        raise BadInput(f"{run} has no result.json to verify against: finish the run with --resume")
    if verify and until is not None and recorded is not None and until != recorded["selected_step"]:
        raise BadInput(f"result.json holds the weights of step {recorded['selected_step']}: verify without --until")
    if until is None and recorded is not None:
        until = recorded["selected_step"]
    saving.check_scheme(save, push, str(rebuilding.recorded_scheme(run)))
    if not rebuilding.replays(run):
        _check_kept(run, recorded, until)
    built, contents = rebuilding.rebuild(run, until=until, model=model, device=device, anew=verify, say=reporter.say)
    if contents.torn_bytes:
        reporter.say(f"the ledger ends in {contents.torn_bytes} bytes that are no record of a step: they are left out")
    step, sha256 = built.optimizer.t, build.tuned_sha256(built)
    agrees = recorded["weights_sha256"] == sha256 if verify and recorded is not None else None
    measured = recorded if recorded is not None and recorded["selected_step"] == step else None
    if save is not None and compared and _holds(save, built, contents, sha256):
        reporter.say(f"{save} holds the weights of step {step} already")
        save = None
    if save is not None or push is not None:
        if not build.finite(built):
            raise BadInput(
                f"the weights of step {step} are not finite, so they are not saved: choose an earlier --until"
            )
        if measured is not None and measured["weights_sha256"] != sha256:
            raise BadInput(f"the rebuilt weights are not those in {run}/result.json, so they are not saved: verify it")
        saving.deliver(built, contents, run, save_to=save, result=measured, push=push, public=public, say=reporter.say)
    return Replayed(step, sha256, agrees)


def _holds(save: Path, built: build.Model, contents: ledger.Contents, sha256: str) -> bool:
    """Return whether what is there already is this model."""
    return saving.holds_gguf(save, built) if saving.is_gguf(save) else saving.holds(save, contents, sha256)


def _check_kept(run: Path, recorded: dict[str, Any] | None, until: int | None) -> None:
    """Refuse another step than the one that is kept of a method that no ledger rebuilds.

    Which one that is, only the end of the run tells.
    """
    if recorded is None or recorded["status"] == INTERRUPTED:
        raise BadInput(f"{run} does not tell which step's weights {build.BEST} holds: finish the run with --resume")
    step = recorded["selected_step"]
    if until != step:
        raise BadInput(f"of this method's steps only step {step} is kept, in {build.BEST}: leave out --until")


def _recorded(run: Path) -> dict[str, Any] | None:
    """Return ``result.json`` of a run directory, if there is one; a ledger by another name than there stands alone."""
    path = rebuilding.ledger_path(run).with_name("result.json")
    if not path.exists() or rebuilding.ledger_path(run).name != "ledger":
        return None
    result = read_result(path.parent)
    raw = read_json(path)
    if result is None and isinstance(raw, dict) and "mode" in raw:
        raise BadInput(f"{run} holds an evaluation, which has nothing to replay: give the directory of a tuning run")
    if result is None:
        raise BadInput(f"{path} cannot be read: restore it from a copy, or finish the run again with --resume")
    return result


TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "directions": lambda: {name: part.about for name, part in DIRECTIONS.items()},
    "estimators": lambda: {name: part.about for name, part in ESTIMATORS.items()},
    "rules": lambda: {name: part.about for name, part in RULES.items()},
    "methods": lambda: {name: f"{m.summary} ({m.paper})" for name, m in methods.METHODS.items()},
    "schemes": lambda: {name: scheme.about for name, scheme in schemes.SCHEMES.items()},
    "tasks": lambda: {name: f"{tasks.get(name).title}: {tasks.get(name).kind}" for name in tasks.names()},
    "models": lm.sources,
    "rewards": lambda: {name: row.about for name, row in rewards.BUILTIN.items()},
    "objectives": lambda: {name: objective.doc for name, objective in objectives.OBJECTIVES.items()},
}

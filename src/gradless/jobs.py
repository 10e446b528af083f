"""The shorter jobs: evaluate, replay, list."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gradless import evaluate as evaluation
from gradless import lm, methods, metrics, objectives, outcome, run, schemes, tasks
from gradless.batching import has_label_head
from gradless.cache import ensure
from gradless.config import TuneConfig
from gradless.errors import BadInput, pick
from gradless.notes import versions, write_json
from gradless.progress import Reporter


def evaluate(
    config: TuneConfig,
    *,
    mode: str,
    num_demonstrations: int,
    out: Path | None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the test rows of a task; returns (and with ``out`` writes) a result like that of `tune`."""
    reporter = reporter or Reporter()
    pick("mode", mode, evaluation.MODES)
    if out is not None and any((out / name).exists() for name in ("config.json", "ledger", "result.json")):
        raise BadInput(f"{out} already holds a run or a result: choose another --out")
    needed = num_demonstrations if mode == "icl" else 0
    if not config.own:
        config = dataclasses.replace(config, num_train=config.num_train if needed else 0, num_dev=0)
    config = config.resolved()
    task, splits = run.load_task(config)
    if not splits.test:
        raise BadInput("there are no test rows: give --test or --num-test")
    model = lm.load(config.model, dtype=config.dtype, device=config.device, say=reporter.say)
    with reporter.job(mode, len(splits.test)) as show:
        found = evaluation.evaluate(
            model,
            task,
            splits.test,
            mode=mode,
            demonstrations=splits.train if needed else (),
            num_demonstrations=num_demonstrations,
            seed=config.seed,
            max_length=config.max_length,
            progress=lambda done, total: show(done, ""),
        )
    result = {
        "status": outcome.DONE,
        "mode": mode,
        "config": config.to_json(),
        "test": found.metrics,
        "interval": {"test": list(metrics.wilson(sum(found.correct), len(found.correct)))},
        "forwards": found.forwards,
        "seconds": found.seconds,
        "data_sha256": splits.fingerprint,
        "versions": versions(),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "result.json", result)
    return result


class Replayed(NamedTuple):
    """Weights rebuilt from a ledger."""

    step: int
    sha256: str
    agrees: bool | None  # with result.json, if that was asked


def replay(
    folder: Path,
    *,
    until: int | None = None,
    save: Path | None = None,
    verify: bool = False,
    model: str | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Replayed:
    """Rebuild a run's weights, and optionally compare and save them.

    Args:
        folder: run directory.
        until: step to go to; by default the selected one.
        save: folder for the model or adapter.
        verify: compare with ``result.json``.
        model: where the base model is now, if not where the run found it.
        device: where to compute, if not where the run was.
        reporter: where progress goes.

    Raises:
        BadInput: no run, a damaged ledger, another base model, no result to compare with, ``save`` exists.
    """
    reporter = reporter or Reporter()
    recorded = _recorded(folder)
    if verify and recorded is None:
        raise BadInput(f"{folder} has no result.json to verify against: finish the run with --resume")
    if verify and until is not None and recorded is not None and until != recorded["selected_step"]:
        raise BadInput(f"result.json holds the weights of step {recorded['selected_step']}: verify without --until")
    if save is not None and save.exists():
        raise BadInput(f"{save} exists already: choose a new folder for --save")
    if until is None and recorded is not None:
        until = recorded["selected_step"]
    if recorded is not None and until != recorded["selected_step"] and not run.replays(folder):
        step = recorded["selected_step"]
        raise BadInput(f"of this method's steps only step {step} is kept, in {folder / run.BEST}: leave out --until")
    built, contents = run.rebuild(folder, until=until, model=model, device=device, say=reporter.say)
    if contents.torn_bytes:
        reporter.say(f"the ledger ends in {contents.torn_bytes} bytes of an unfinished step, which are left out")
    sha256 = run.tuned_sha256(built)
    if save is not None:
        _save(built.lm, save)
    agrees = recorded["weights_sha256"] == sha256 if verify and recorded is not None else None
    return Replayed(built.optimizer.t, sha256, agrees)


def _recorded(folder: Path) -> dict[str, Any] | None:
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} cannot be read ({error}): restore it from a copy") from None
    if "selected_step" not in found:
        raise BadInput(f"{folder} holds an evaluation, which has nothing to replay: give the directory of a tuning run")
    return found


def _save(model: lm.LanguageModel, target: Path) -> None:
    """Write a model or adapter as transformers and peft do, whole or not at all."""
    if has_label_head(model):
        raise BadInput("a tuned label head has no place in a saved language model: the run directory is its checkpoint")

    def build(folder: Path) -> None:
        config: Any = model.model.config
        config.use_cache = not model.masked  # off for training only; whoever generates wants it
        with lm.quiet_transformers():
            model.model.save_pretrained(folder)  # type: ignore[operator]
            model.tokenizer.save_pretrained(folder)

    try:
        ensure(target, build)
    except BadInput as error:  # which speaks of the cache
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "methods": lambda: {name: f"{m.summary} ({m.paper})" for name, m in methods.METHODS.items()},
    "schemes": lambda: {name: scheme.about for name, scheme in schemes.SCHEMES.items()},
    "tasks": lambda: {name: f"{tasks.get(name).title}: {tasks.get(name).kind}" for name in tasks.names()},
    "models": lm.sources,
    "objectives": lambda: {name: objective.doc for name, objective in objectives.OBJECTIVES.items()},
}

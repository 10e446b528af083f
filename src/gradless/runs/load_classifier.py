"""From what a user names to a classifier: a run, its ledger, an evaluation, a saved model or adapter, or any model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless import ledger, lm
from gradless.errors import BadInput, pick
from gradless.lm import hub_ids
from gradless.lm.checkpoint_files import ADAPTER, checked_folder
from gradless.lm.loading import DTYPES, LanguageModel
from gradless.runs import build
from gradless.runs import replay as rebuilding
from gradless.runs.card import RECORD
from gradless.runs.classifier import FILE, Classifier, Spec, read_spec, spec_of
from gradless.runs.config import TuneConfig, as_recorded, read_config
from gradless.runs.record import INTERRUPTED, read_result
from gradless.system import typed
from gradless.system.cache import Say
from gradless.system.cache import quiet as silent
from gradless.system.keywords import keywords
from gradless.system.side_files import read_json
from gradless.tasks.own import checked_labels

__all__ = ["load_classifier"]

NO_PROMPT: Final = (
    'has no prompt of its own: give --template "{text} ..." and --labels "VALUE=WORD,VALUE=WORD", or --task'
)


@keywords()
def load_classifier(
    source: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    labels: str | Mapping[str, str] | None = None,
    label_column: str | None = None,
    task: str | None = None,
    calibrated: bool | None = None,
    chat: bool | None = None,
    max_length: int | None = None,
    model: str | None = None,
    say: Say = silent,
) -> Classifier:
    """Return a classifier: a model with the prompt and the labels that it was tuned on.

    Args:
        source: a run directory or a ledger (its weights are rebuilt), a folder of ``--save``, with the adapter's or all
            weights, the ``--out`` folder of ``gradless eval``, or any model that `gradless.lm.load` takes.
        device: ``cpu``, ``cuda``, ...; by default where the run was, else the CPU.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default as the run was, else as `gradless.lm.load`.
        template: the prompt, such as ``"{text} It was"``, for a model without its own; it replaces one that is there.
        labels: words of the labels, ``"0=terrible,1=great"`` or a mapping; they replace those that are there.
        label_column: where rows may have their right label.
        task: a built-in task instead of template and labels.
        calibrated: subtract what options score after a prompt without content; by default as the model was evaluated.
        chat: prompts are messages of a chat, by the tokenizer's own template; by default as the model was tuned.
        max_length: most tokens of a sequence.
        model: where the base model of a run or adapter is now, if not where it was.
        say: receives lines about slow steps, and about which weights these are.

    Raises:
        BadInput: no such model or run, a damaged one, no prompt or labels for it, or they do not fit it.

    Memory: the weights. Cost: loading them; of a run also its replay, without data or forward passes.
    """
    unloaded = find(
        source,
        device=device,
        dtype=dtype,
        template=template,
        labels=labels,
        label_column=label_column,
        task=task,
        calibrated=calibrated,
        chat=chat,
        max_length=max_length,
        model=model,
        say=say,
    )
    return unloaded.load()


class Unloaded(NamedTuple):
    """A classifier before its weights are read, so that rows can be checked first."""

    spec: Spec
    weights: Callable[[], LanguageModel]

    def load(self) -> Classifier:
        """Read or rebuild the weights."""
        return Classifier(self.weights(), self.spec)


def find(
    source: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str | None = None,
    model: str | None = None,
    labels: str | Mapping[str, str] | None = None,
    say: Say = silent,
    **named: Any,
) -> Unloaded:
    """Return what `load_classifier` loads, with the same arguments, before it reads the weights.

    Raises:
        BadInput: as `load_classifier`, for all that can be known without the weights.
    """
    if named.get("task") is not None and (named.get("template") is not None or labels is not None):
        raise BadInput("name a --task or give --template and --labels, not both")
    if dtype is not None:
        pick("dtype", dtype, DTYPES)
    changes = {name: value for name, value in named.items() if value is not None}
    if labels is not None:
        changes["labels"] = checked_labels(labels)
    spec, weights = _opened(os.fspath(source), model, device, dtype, say)
    return Unloaded(_changed(os.fspath(source), spec, changes, say), weights)


def _changed(source: str, spec: Spec | None, changes: dict[str, Any], say: Say) -> Spec:
    """Return the spec of a model with what was given in place of it or added to it.

    Raises:
        BadInput: there is no prompt.
    """
    if spec is None:
        own = {"template", "labels"} & changes.keys()
        if "task" not in changes and len(own) < 2:
            missing = "template" if own == {"labels"} else "labels"
            raise BadInput(f"{source} {NO_PROMPT}" if not own else f"{source} has no {missing}: give --{missing} too")
        spec = Spec()
    elif {"template", "labels", "task"} & changes.keys():
        if "task" not in changes and spec.template is None and not {"template", "labels"} <= changes.keys():
            raise BadInput(f"{source} was tuned on the task {spec.task}: give --template and --labels, or neither")
        say(f"{source} has a prompt of its own, and what was given replaces it")
    if "task" in changes:
        changes |= {"template": None, "labels": {}, "columns": (), "words": ()}
    elif {"template", "labels"} & changes.keys():
        changes |= {"task": None, "columns": (), "words": ()}
    changed = dataclasses.replace(spec, **changes)
    changed.reader()  # which looks at template, labels and task
    return changed


def _opened(
    source: str, model: str | None, device: str | None, dtype: str | None, say: Say
) -> tuple[Spec | None, Callable[[], LanguageModel]]:
    """Return the spec that lies beside a model, if there is one, and a function that loads the model."""
    path = Path(source).expanduser()
    if (path / "ledger").exists() or (path.is_file() and path.suffix.lower() != ".gguf"):
        return _run(path, model, device, dtype, say)
    settings, result = read_json(path / "config.json"), read_json(path / "result.json")
    if isinstance(settings, dict) and "method" in settings:
        raise BadInput(
            f"{source} is a run without a ledger, so its weights are unknown: finish it with gradless tune --resume"
        )
    if not isinstance(settings, dict) and isinstance(result, dict) and "mode" in result:
        return _evaluation(source, result, model, device, dtype, say)
    spec = _saved_spec(path) if path.is_dir() else _hub_spec(source)
    if model is not None:
        if not (path / "adapter_config.json").exists() or not (path / RECORD / "ledger").exists():
            raise BadInput(f"{source} is no run and no adapter of one, so it has no base model: leave out --model")
        return spec, _run(path / RECORD, model, device, dtype, say)[1]
    return spec, lambda: lm.load(source, dtype=dtype, device=device or "cpu", say=say)


def _saved_spec(folder: Path) -> Spec | None:
    """Return the spec in a saved model; one of an earlier release has the configuration of its run alone.

    Raises:
        BadInput: it is no model, or its spec cannot be read.
    """
    record = folder / RECORD
    if not (folder / ADAPTER).exists():
        checked_folder(folder)
    if (record / FILE).exists():
        spec = read_spec(record / FILE)
        try:
            spec.make_task()
        except BadInput:
            if (record / "config.json").exists():
                read_config(record)  # says which plugin defines the task
            raise
        return spec
    return spec_of(read_config(record)) if (record / "config.json").exists() else None


def _hub_spec(source: str) -> Spec | None:
    """Return the spec in a model on the hub; None for another name, or a model of somebody else.

    Raises:
        BadInput: there is nothing of that name.
    """
    if source in lm.sources() or Path(source).expanduser().exists():
        return None
    name, revision = hub_ids.checked(source, lm.sources())
    path = hub_ids.fetched(name, revision, f"{RECORD}/{FILE}")
    return None if path is None else read_spec(path)


def _evaluation(
    source: str, result: dict[str, Any], model: str | None, device: str | None, dtype: str | None, say: Say
) -> tuple[Spec, Callable[[], LanguageModel]]:
    """Return what `gradless eval` measured: an untuned model with a prompt, calibrated or not."""
    with typed.within(f"{source}/result.json"):
        config = as_recorded(TuneConfig.from_json(result.get("config") or {}))
    if result["mode"] == "icl":
        raise BadInput(
            f"{source} evaluated with solved examples in the prompt, which predict has not: tune, or give "
            "the model with --template and --labels"
        )
    if result["mode"] == "probe":
        raise BadInput(f"{source} evaluated a linear probe, which is not kept and cannot predict: tune")
    spec = spec_of(config, calibrated=result["mode"] == "calibrated")
    kinds: dict[str, Any] = {"dtype": dtype or config.dtype, "compute_dtype": None if dtype else config.compute_dtype}
    return spec, lambda: lm.load(model or config.model, **kinds, device=device or config.device, say=say)


def _run(
    source: Path, model: str | None, device: str | None, dtype: str | None, say: Say
) -> tuple[Spec, Callable[[], LanguageModel]]:
    """Return the model of a run at the step that it selected, or where it is if it is not finished."""
    contents = ledger.read(rebuilding.ledger_path(source))
    config = TuneConfig.from_json(contents.config)
    beside = rebuilding.ledger_path(source).name == "ledger"
    result = read_result(rebuilding.ledger_path(source).parent) if beside else None
    finished = result is not None and result["status"] != INTERRUPTED
    step = int(result["selected_step"]) if result is not None and finished else len(contents.moves)
    if not finished and not rebuilding.replays(source):
        raise BadInput(
            f"{source} is not finished, and {config.method} keeps the weights of its end alone: "
            "finish it with gradless tune --resume"
        )
    if not finished and beside:
        say(f"{source} is not finished: these are the weights after step {step} of {config.steps}")

    def load() -> LanguageModel:
        built, _ = rebuilding.rebuild(source, until=step, model=model, device=device, say=say)
        if not build.finite(built):
            raise BadInput(f"the weights of step {step} are not finite, so they predict nothing: lower --lr")
        if result is not None and finished and result["weights_sha256"] != build.tuned_sha256(built):
            raise BadInput(f"the rebuilt weights are not those in {source}/result.json: see gradless replay --verify")
        return _converted(built.lm, dtype)

    return spec_of(config), load


def _converted(model: LanguageModel, dtype: str | None) -> LanguageModel:
    """Return a model with weights of another type; what is no weight keeps its own, as when a model is loaded."""
    if dtype is not None:
        for parameter in model.model.parameters():
            parameter.data = parameter.data.to(DTYPES[dtype])
    return model

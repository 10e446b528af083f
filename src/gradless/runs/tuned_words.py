"""An evaluation of a saved model: prompt and labels are those of its tuning, or it is said that they are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput
from gradless.runs.card import RECORD
from gradless.runs.classifier import FILE, Spec, read_spec
from gradless.tasks.own import checked_labels, parse_template
from gradless.tasks.text_rows import Wanted
from gradless.tasks.written_before import as_before

WORDS: Final = ("template", "label_column", "labels")
Say = Callable[[str], None]


def saved_spec(model: str) -> Spec | None:
    """Return what a folder of ``--save`` was tuned with; None for any other model."""
    path = Path(model).expanduser() / RECORD / FILE
    return read_spec(path) if path.is_file() else None


def completed(own: Mapping[str, Any], model: str, say: Say) -> dict[str, Any]:
    """Return a user's own files with the prompt and the labels of the saved model that reads them, if they have none.

    Args:
        own: fields of `gradless.runs.config.OwnFiles`; none: another task is evaluated.
        model: what ``--model`` names.
        say: receives one line about what was taken, and one about what differs.

    Raises:
        BadInput: what the model was tuned with cannot be read.
    """
    spec = saved_spec(model) if own else None
    if spec is None or spec.template is None:
        return dict(own)
    tuned = {"template": spec.template, "label_column": spec.label_column, "labels": spec.labels or None}
    adopted = [name for name in WORDS if name not in own and tuned[name] is not None]
    if adopted:
        shown = ", ".join(f"{name.replace('_', ' ')} {_shown(tuned[name])}" for name in adopted)
        say(f"{model} was tuned with these, which are taken: {shown}")
    own = {**own, **{name: tuned[name] for name in adopted}}
    other = [name for name in ("template", "labels") if name in own and _differs(name, own[name], tuned[name])]
    if other:
        shown = " and ".join(f"{name} {_shown(tuned[name])}" for name in other)
        say(f"{model} was tuned with other words than these, so its figures may be low: {shown}")
    return _written(own, spec, say)


def limits(model: str, own: bool, chosen: Collection[str], settings: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Return settings of a saved model's tuning for an evaluation that leaves them open.

    These are the built-in task, whether its prompt is aligned or a chat, and the most tokens that are read.

    Args:
        model: what ``--model`` names.
        own: whether a user's own files are evaluated.
        chosen: names of settings that the user chose.
        settings: all of them, with defaults.
        say: receives one line about what was taken.
    """
    spec = saved_spec(model)
    if spec is None:
        return {}
    task = None if own else spec.task
    tuned = {"task": task, "aligned": spec.aligned, "chat": spec.chat, "max_length": spec.max_length}
    adopted = {
        name: value for name, value in tuned.items() if name not in chosen and value not in (None, settings[name])
    }
    if adopted:
        shown = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in adopted.items())
        say(f"{model} was tuned with these, which are taken: {shown}")
    return adopted


def _plain(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    words = ",".join(f"{label}={word}" for label, word in value.items()) if isinstance(value, dict) else value
    return json.dumps(words, ensure_ascii=False)


def _differs(name: str, value: Any, tuned: Any) -> bool:
    try:
        return bool((checked_labels(value) if name == "labels" else value) != tuned)
    except BadInput:  # which the task tells
        return False


def _written(own: dict[str, Any], spec: Spec, say: Say) -> dict[str, Any]:
    """Return own files with encoding and delimiter of the tuning, if a file cannot be read without them."""
    if "encoding" in own and "delimiter" in own:
        return own
    try:
        columns = parse_template(own["template"]).columns
    except BadInput:  # which the task tells
        return own
    for split in ("train", "dev", "test"):
        wanted = Wanted(columns, own.get("label_column") or "", (), own.get("delimiter"), own.get("encoding"))
        wanted = as_before(Path(own.get(split, "")), wanted, spec.encoding, spec.delimiter, say)
        more = {"encoding": wanted.encoding, "delimiter": wanted.delimiter}
        own = {**own, **{name: value for name, value in more.items() if value is not None}}
    return own

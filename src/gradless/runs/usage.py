"""The model card's "Use": a dozen lines of transformers and PEFT that compute what ``gradless predict`` does.

The lines are for one row. They read its prompt as `gradless.lm.encode` does, score its labels as `gradless.lm.scoring`
does, in float32, and leave one thing out: a text that is too long is not shortened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gradless.lm.encode import completions_of
from gradless.lm.generation import end_tokens
from gradless.lm.loading import LanguageModel
from gradless.lm.model_names import is_gguf
from gradless.lm.predict import reading_limit
from gradless.runs.classifier import Spec
from gradless.tasks import MASK, Example, Task
from gradless.tasks.own import parse_template

SAMPLE: Final[dict[str, Any]] = {
    "label": 0,
    "entities": ["one", "another"],
    "answers": ["an answer"],
    "nums": [2, 3, 4],
    "query": "the query about @placeholder",
}
"""Fields of built-in tasks that are no plain text."""
PROBE: Final = "\x00{}\x00"
FOLDER: Final = "base"
"""Folder that the base model of an adapter is saved to if transformers cannot load it by its name."""


class Base(NamedTuple):
    """The base model of an adapter."""

    name: str
    """As `gradless.lm.load` takes it."""
    revision: str | None
    """On the hub."""
    by_name: bool
    """Whether transformers loads it by this name."""


class Usage(NamedTuple):
    """What a card says of using a model."""

    base_command: str
    """Makes the folder of the base model; empty if none is needed."""
    code: str
    """Python."""
    limit: int
    """Tokens that are read at most."""


class Prompt(NamedTuple):
    """How a prompt is written in Python."""

    row: dict[str, str]
    """A row to show; empty if the prompt stands there as one text."""
    expression: str
    words: dict[str, str]
    """Label -> the text that is scored; empty for generated text."""


def usage(model: LanguageModel, spec: Spec, *, location: str, adapter: bool, base: Base) -> Usage:
    """Return how a saved model is used.

    Args:
        model: the model, whose tokenizer and limits count.
        spec: prompt and labels.
        location: of the saved model: ``./NAME`` or a hub id.
        adapter: whether it is an adapter, which needs its base.
        base: of the adapter.
    """
    prompt = _prompt(model, spec)
    auto = "AutoModelForMaskedLM" if model.masked else "AutoModelForCausalLM"
    lines = ["import torch", *(["from peft import PeftModel"] if adapter else [])]
    task = spec.make_task()
    generation = ", GenerationConfig" if task.kind == "generation" else ""
    lines += [f"from transformers import {auto}, AutoTokenizer{generation}", ""]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({_text(location)})"]
    if adapter:
        at = f', revision="{base.revision}"' if base.revision else ""
        name = base.name if base.by_name else FOLDER
        lines += [f'base = {auto}.from_pretrained({_text(name)}{at}, dtype="float32")']
        lines += [f"model = PeftModel.from_pretrained(base, {_text(location)}, autocast_adapter_dtype=False).eval()"]
    else:
        lines += [f'model = {auto}.from_pretrained({_text(location)}, dtype="float32").eval()']
    lines += [f"row = {_table(prompt.row)}"] if prompt.row else []
    lines += [f"prompt = {prompt.expression}"]
    if task.kind == "generation":
        lines += _generating(model, task, adapter=adapter)
    elif model.masked:
        lines += _filling(prompt)
    else:
        lines += _scoring(model, prompt)
    command = "" if base.by_name or not adapter else _saving(base.name)
    return Usage(command, "\n".join(lines), reading_limit(model, task, spec.max_length))


def _saving(base: str) -> str:
    """Return the command that makes a folder of a base model which transformers cannot load by its name."""
    kind = ", dtype='float32'" if is_gguf(base) else ""
    load = f"from gradless import lm; base = lm.load({base!r}{kind})"
    return f'python -c "{load}; base.model.save_pretrained({FOLDER!r}); base.tokenizer.save_pretrained({FOLDER!r})"'


def _scoring(model: LanguageModel, prompt: Prompt) -> list[str]:
    """Return lines that score words behind a prompt: the mean log-probability of their tokens."""
    special = ", add_special_tokens=False" if model.chat is not None else ""
    end = "[:-1]" if not special and _ends(model.tokenizer) else ""
    return [
        f"words = {_table(prompt.words)}  # label: what stands behind the prompt",
        f"begin, scores = len(tokenizer(prompt{special}).input_ids{end}), []",
        "for word in words.values():",
        f"    ids = torch.tensor([tokenizer(prompt + word{special}).input_ids{end}])",
        "    with torch.no_grad():",
        "        shares = model(ids).logits.log_softmax(-1)[0, begin - 1 - ids.shape[1] : -1]",
        "    scores.append(shares.gather(-1, ids[0, begin:, None]).mean())",
        "probabilities = dict(zip(words, torch.stack(scores).softmax(0).tolist()))",
        "print(probabilities)",
    ]


def _filling(prompt: Prompt) -> list[str]:
    """Return lines that compare words at a mask."""
    return [
        f"words = {_table(prompt.words)}  # label: what stands at the mask",
        'ids = tokenizer(prompt, return_tensors="pt").input_ids',
        "behind = ids[0].tolist().index(tokenizer.mask_token_id) - ids.shape[1]  # virtual tokens may stand in front",
        "with torch.no_grad():",
        "    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, behind]",
        "tokens = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words.values()]",
        "probabilities = dict(zip(words, logits[tokens].softmax(0).tolist()))",
        "print(probabilities)",
    ]


def _generating(model: LanguageModel, task: Task, *, adapter: bool) -> list[str]:
    """Return lines that generate an answer greedily, without penalties and the like of the model's own settings."""
    special = ", add_special_tokens=False" if model.chat is not None else ""
    settings = f"do_sample=False, max_new_tokens={task.max_new_tokens}, eos_token_id={end_tokens(model, ()) or None}"
    return [
        f"{'base' if adapter else 'model'}.generation_config = GenerationConfig({settings})",
        f'ids = tokenizer(prompt{special}, return_tensors="pt").input_ids',
        "with torch.no_grad():",
        "    tokens = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]",
        "text = tokenizer.decode(tokens, skip_special_tokens=True)",
        *(f"text = text.partition({_text(stop)})[0]" for stop in task.stops),
        "print(text.strip())",
    ]


def _ends(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts its end-of-sequence token behind a text, which is to be continued here."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


# ------------------------------------------------------------------------------------------------------------
# prompts


def _prompt(model: LanguageModel, spec: Spec) -> Prompt:
    """Return the prompt of a spec: of a row, where its columns stand in it as they are, else as one text."""
    task = spec.make_task()
    if spec.template is not None:
        row = {column: f"the {column} of a row" for column in spec.columns_shown}
        example = _example(task, {"columns": row, "label": 0}, model)
        pieces = [one for text, name in parse_template(spec.template).pieces for one in (text, name and (name,)) if one]
    else:
        row, pieces, example = _built_in(task, model)
    parts = _parts(pieces)
    texts = [(text if isinstance(text, str) else MASK if text[0] == "mask" else row[text[0]]) for text in parts]
    if not row or "".join(texts).strip(" ") != example.prompt.strip(" "):
        row, parts = {}, _parts([example.prompt])
    return Prompt(row, _expression(parts, model), _words(model, task, example))


def _example(task: Task, row: dict[str, Any], model: LanguageModel) -> Example:
    render = task.render_masked if model.masked else task.render
    assert render is not None
    return render(row)


def _built_in(task: Task, model: LanguageModel) -> tuple[dict[str, str], list[Any], Example]:
    """Return a row of a built-in task, the pieces of its prompt if fields stand in it as they are, and the example."""

    class Fields(dict[str, Any]):
        def __init__(self, form: str, **values: Any) -> None:
            super().__init__(values)
            self.form, self.read = form, dict[str, str]()

        def __missing__(self, name: str) -> str:
            self.read[name] = self.form.format(name)
            return self.read[name]

    sample = {**SAMPLE, **({"sentence": "it was _ again"} if task.kind == "choice" else {})}
    shown = Fields("the {} of a row", **sample)
    example = _example(task, shown, model)
    try:
        probe = _example(task, Fields(PROBE, **sample), model).prompt
    except (ValueError, IndexError, KeyError):
        probe = ""
    texts = probe.split("\x00")  # text, name, text, name, ..., text
    pieces = [(text,) if i % 2 else text for i, text in enumerate(texts)]
    return (shown.read if len(texts) > 1 else {}), pieces, example


def _parts(pieces: Sequence[Any]) -> list[Any]:
    """Return pieces with the mask as one, and without the space in front of it, which belongs to the word."""
    parts: list[Any] = []
    for piece in pieces:
        split = piece.split(MASK) if isinstance(piece, str) else [piece]
        for i, part in enumerate(split):
            parts += [("mask",)] if i else []
            parts += [part] if part else []
    for i, part in enumerate(parts[1:], start=1):
        if part == ("mask",) and isinstance(parts[i - 1], str):
            parts[i - 1] = parts[i - 1].rstrip(" ")
    return [part for part in parts if part]


def _expression(parts: Sequence[Any], model: LanguageModel) -> str:
    """Return a prompt in Python."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(_text(part))
        else:
            texts.append("tokenizer.mask_token" if part[0] == "mask" else f"row[{_text(part[0])}]")
    whole = " + ".join(texts)
    if model.chat is None:
        return whole if parts and isinstance(parts[0], tuple) and _tight(parts[-1]) else f'({whole}).strip(" ")'
    return f"{_text(model.chat.head)} + ({whole}).strip() + {_text(model.chat.tail)}"


def _tight(part: Any) -> bool:
    return isinstance(part, tuple) or not part.endswith(" ")


def _words(model: LanguageModel, task: Task, example: Example) -> dict[str, str]:
    if not example.options:
        return {}
    words = example.options if model.masked else completions_of(model, example)
    labels = (
        task.labels if task.kind == "classification" and task.labels else [text.strip() for text in example.options]
    )
    return {label: text.rstrip(" ") for label, text in zip(labels, words, strict=True)}


def _text(text: str) -> str:
    """Return a text as Python writes it, in double quotes, and letters of all scripts as they are."""
    return json.dumps(text, ensure_ascii=False)


def _table(texts: dict[str, str]) -> str:
    return "{" + ", ".join(f"{_text(name)}: {_text(text)}" for name, text in texts.items()) + "}"

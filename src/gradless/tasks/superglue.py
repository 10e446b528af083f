"""SuperGLUE classification (Wang et al. 2019, arXiv 1905.00537) with MeZO's prompts (arXiv 2305.17333).

CB, BoolQ, WSC, WiC and MultiRC; RTE is with the other pairs. MeZO scores MultiRC per question-answer pair and
CB by accuracy, where SuperGLUE's official metrics are F1a/EM and accuracy with macro F1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from gradless.tasks.base import Example, Render, Task, by_label
from gradless.tasks.files import Folder, Part, Row, class_index, field, jsonl, layout

CB_LABELS: Final = ("entailment", "contradiction", "neutral")
FALSE_TRUE: Final = ("false", "true")
NO_YES: Final = ("No", "Yes")
HUB: Final = "aps/super_glue"


def folder(name: str, tidy: Callable[[Row], Iterator[Row]], *more: Part) -> Folder:
    """Return the reader of ``<name>/train.jsonl`` and ``<name>/val.jsonl``, or of ``more`` where these are absent."""
    files = (*layout(jsonl, train="train.jsonl", test="val.jsonl"), *more)
    return Folder(subfolders=(name, f"superglue/{name}"), layouts=(files,), tidy=tidy)


def _pick(row: Row, label: Any, *fields: str) -> Row:
    return {name: str(field(row, name)) for name in fields} | {"label": label}


def tidy_cb(row: Row) -> Iterator[Row]:
    """Yield the canonical row; local files name the label, the hub numbers it."""
    yield _pick(row, class_index(field(row, "label"), CB_LABELS), "premise", "hypothesis")


def render_boolq(row: Row) -> Example:
    """Return MeZO's newline form; the question gets a capital letter and its question mark. Yes stands first."""
    question = row["question"]
    question = question if question.endswith("?") else f"{question}?"
    prompt = f"{row['passage']} {question[:1].upper()}{question[1:]}\n"
    return Example(prompt, ("Yes", "No"), (row["label"],))


def tidy_boolq(row: Row) -> Iterator[Row]:
    """Yield the canonical row; its label 0 means yes, so that it indexes the options."""
    answer = class_index(field(row, "label", "answer"), FALSE_TRUE)
    yield _pick(row, 1 - answer, "passage", "question")


def render_wsc(row: Row) -> Example:
    """Return the prompt in which the pronoun (span 2) is lower-cased and the candidate (span 1) is not."""
    question = f'does the pronoun "{row["span2_text"].lower()}" refer to {row["span1_text"]}? Yes or No?'
    return Example(f"{row['text']}\nIn the previous sentence, {question}\n", NO_YES, (row["label"],))


def tidy_wsc(row: Row) -> Iterator[Row]:
    """Yield the canonical row; local files nest the spans under ``target``."""
    flat = row | row.get("target", {})
    yield _pick(flat, class_index(field(row, "label"), FALSE_TRUE), "text", "span1_text", "span2_text")


def tidy_wic(row: Row) -> Iterator[Row]:
    """Yield the canonical row; local files and the hub have the same fields."""
    yield _pick(row, class_index(field(row, "label"), FALSE_TRUE), "word", "sentence1", "sentence2")


def tidy_multirc(row: Row) -> Iterator[Row]:
    """Yield one row per answer: local files nest passages, questions and answers, the hub is flat."""
    if not isinstance(row.get("passage"), dict):
        yield _pick(row, class_index(field(row, "label"), FALSE_TRUE), "paragraph", "question", "answer")
        return
    passage = row["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": class_index(field(answer, "label"), FALSE_TRUE),
            }


def _task(
    name: str,
    title: str,
    render: Render | str,
    read: Folder,
    *,
    paper: str,
    hub: tuple[str, str | None],
    labels: tuple[str, ...] = FALSE_TRUE,
    words: tuple[str, ...] = NO_YES,
    metrics: tuple[str, ...] = ("accuracy",),
) -> Task:
    return Task(
        name=name,
        title=title,
        kind="classification",
        metrics=metrics,
        render=by_label(render, words) if isinstance(render, str) else render,
        read=read,
        hub=hub,
        source=f"{paper}, SuperGLUE; prompt: MeZO (arXiv 2305.17333)",
        labels=labels,
        label_words=words,
    )


TASKS: Final = (
    _task(
        "cb",
        "CB",
        'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
        folder("CB", tidy_cb),
        paper="de Marneffe et al. 2019",
        hub=(HUB, "cb"),
        labels=CB_LABELS,
        words=("Yes", "No", "Maybe"),
        metrics=("accuracy", "macro_f1"),
    ),
    _task(
        "boolq",
        "BoolQ",
        render_boolq,
        folder("BoolQ", tidy_boolq, *layout(jsonl, train="fewglue_train.jsonl", dev="fewglue_dev32.jsonl")),
        paper="Clark et al. 2019 (arXiv 1905.10044)",
        hub=("google/boolq", None),
        labels=("true", "false"),
        words=("Yes", "No"),
    ),
    _task(
        "wsc",
        "WSC",
        render_wsc,
        folder("WSC", tidy_wsc),
        paper="Levesque et al. 2012",
        hub=(HUB, "wsc.fixed"),
    ),
    _task(
        "wic",
        "WiC",
        'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
        folder("WiC", tidy_wic),
        paper="Pilehvar and Camacho-Collados 2019 (arXiv 1808.09121)",
        hub=(HUB, "wic"),
    ),
    _task(
        "multirc",
        "MultiRC",
        '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
        folder("MultiRC", tidy_multirc),
        paper="Khashabi et al. 2018",
        hub=(HUB, "multirc"),
        metrics=("accuracy", "f1"),
    ),
)

"""SuperGLUE classification (Wang et al. 2019, arXiv 1905.00537) with MeZO's prompts (arXiv 2305.17333).

CB, BoolQ, WSC, WiC and MultiRC; RTE is with the other pairs. MeZO scores MultiRC per question-answer pair and
CB by accuracy, where SuperGLUE's official metrics are F1a/EM and accuracy with macro F1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from gradless.tasks.base import Example, Task
from gradless.tasks.files import Folder, Layout, Part, Row, class_index, field, jsonl

CB_LABELS: Final = ("entailment", "contradiction", "neutral")
CB_WORDS: Final = ("Yes", "No", "Maybe")
FALSE_TRUE: Final = ("false", "true")
NO_YES: Final = ("No", "Yes")
HUB: Final = "aps/super_glue"

FILES: Final[Layout] = (Part("train", "train.jsonl", jsonl), Part("test", "val.jsonl", jsonl))


def folder(name: str, tidy: Callable[[Row], Iterator[Row]], *more: Part) -> Folder:
    """SuperGLUE's layout: ``<name>/train.jsonl`` and ``<name>/val.jsonl``, or ``more`` where absent."""
    return Folder(subfolders=(name, f"superglue/{name}"), layouts=((*FILES, *more),), tidy=tidy)


def _by_label(prompt: str, options: tuple[str, ...]) -> Callable[[Row], Example]:
    def render(row: Row) -> Example:
        return Example(prompt.format_map(row), options, (row["label"],))

    return render


def _pick(row: Row, label: Any, *fields: str) -> Row:
    return {name: str(field(row, name)) for name in fields} | {"label": label}


def tidy_cb(row: Row) -> Iterator[Row]:
    """Local files name the label, the hub numbers it."""
    yield _pick(row, class_index(field(row, "label"), CB_LABELS), "premise", "hypothesis")


def render_boolq(row: Row) -> Example:
    """MeZO's newline form; the question gets a capital letter and its question mark. Yes stands first."""
    question = row["question"]
    question = question if question.endswith("?") else f"{question}?"
    prompt = f"{row['passage']} {question[:1].upper()}{question[1:]}\n"
    return Example(prompt, ("Yes", "No"), (row["label"],))


def tidy_boolq(row: Row) -> Iterator[Row]:
    """``label`` 0 means yes, so that it indexes the options."""
    answer = class_index(field(row, "label", "answer"), FALSE_TRUE)
    yield _pick(row, 1 - answer, "passage", "question")


def render_wsc(row: Row) -> Example:
    """The pronoun (span 2) is lower-cased, the candidate (span 1) is not."""
    question = f'does the pronoun "{row["span2_text"].lower()}" refer to {row["span1_text"]}? Yes or No?'
    return Example(f"{row['text']}\nIn the previous sentence, {question}\n", NO_YES, (row["label"],))


def tidy_wsc(row: Row) -> Iterator[Row]:
    """Local files nest the spans under ``target``."""
    flat = row | row.get("target", {})
    yield _pick(flat, class_index(field(row, "label"), FALSE_TRUE), "text", "span1_text", "span2_text")


def tidy_wic(row: Row) -> Iterator[Row]:
    """The same fields locally and on the hub."""
    yield _pick(row, class_index(field(row, "label"), FALSE_TRUE), "word", "sentence1", "sentence2")


def tidy_multirc(row: Row) -> Iterator[Row]:
    """One row per answer: local files nest passages, questions and answers, the hub is flat."""
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
    render: Callable[[Row], Example],
    read: Folder,
    *,
    hub: tuple[str, str | None],
    paper: str,
    labels: tuple[str, ...],
    words: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
) -> Task:
    return Task(
        name=name,
        title=title,
        kind="classification",
        metrics=metrics,
        render=render,
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
        _by_label('Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n', CB_WORDS),
        folder("CB", tidy_cb),
        hub=(HUB, "cb"),
        paper="de Marneffe et al. 2019",
        labels=CB_LABELS,
        words=CB_WORDS,
        metrics=("accuracy", "macro_f1"),
    ),
    _task(
        "boolq",
        "BoolQ",
        render_boolq,
        folder(
            "BoolQ",
            tidy_boolq,
            Part("train", "fewglue_train.jsonl", jsonl),
            Part("dev", "fewglue_dev32.jsonl", jsonl),
        ),
        hub=("google/boolq", None),
        paper="Clark et al. 2019 (arXiv 1905.10044)",
        labels=("true", "false"),
        words=("Yes", "No"),
    ),
    _task(
        "wsc",
        "WSC",
        render_wsc,
        folder("WSC", tidy_wsc),
        hub=(HUB, "wsc.fixed"),
        paper="Levesque et al. 2012",
        labels=FALSE_TRUE,
        words=NO_YES,
    ),
    _task(
        "wic",
        "WiC",
        _by_label(
            'Does the word "{word}" have the same meaning in these two sentences? Yes, No?\n{sentence1}\n{sentence2}\n',
            NO_YES,
        ),
        folder("WiC", tidy_wic),
        hub=(HUB, "wic"),
        paper="Pilehvar and Camacho-Collados 2019 (arXiv 1808.09121)",
        labels=FALSE_TRUE,
        words=NO_YES,
    ),
    _task(
        "multirc",
        "MultiRC",
        _by_label(
            '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
            NO_YES,
        ),
        folder("MultiRC", tidy_multirc),
        hub=(HUB, "multirc"),
        paper="Khashabi et al. 2018",
        labels=FALSE_TRUE,
        words=NO_YES,
        metrics=("accuracy", "f1"),
    ),
)

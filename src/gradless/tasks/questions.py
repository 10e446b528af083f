"""Tasks answered in free text: SQuAD v1.1 and DROP, with MeZO's prompts (arXiv 2305.17333).

Both are scored by SQuAD's token F1 (MeZO's choice for DROP too, whose official F1 aligns several spans), as
the best over the accepted answers. Rows without a title, as in some SQuAD subsets, lose the prompt's first
line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput
from gradless.tasks.base import Example, Task
from gradless.tasks.files import Folder, Numbered, Row, field, json_list, json_value, layout


def render_squad(row: Row) -> Example:
    """Return title, context and question on a line each, then ``Answer:``; as in MeZO the question is stripped."""
    title = f"Title: {row['title']}\n" if row["title"] else ""
    prompt = f"{title}Context: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:"
    return Example(prompt, (), (), answers=tuple(row["answers"]))


def tidy_squad(row: Row) -> Iterator[Row]:
    """Yield the canonical row, each answer once: the hub has ``{"text": [...]}``, subsets one ``answer``."""
    answers: Any = row["answers"] if row.get("answers") is not None else [field(row, "answer")]
    texts = answers["text"] if isinstance(answers, dict) else answers
    if not texts:
        raise ValueError("a question without an answer")
    yield {
        "title": str(row.get("title") or ""),
        "context": str(field(row, "context")),
        "question": str(field(row, "question")),
        "answers": list(dict.fromkeys(str(text) for text in texts)),
    }


def squad_json(path: Path) -> Numbered:
    """Yield the questions of SQuAD v1.1's JSON, which nests articles, paragraphs and questions."""
    value = json_value(path)
    if not isinstance(value, dict) or "data" not in value:
        raise BadInput(f"{path} has no 'data': is this another task's data?")
    rows = (
        {
            "title": article.get("title", ""),
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": [answer["text"] for answer in qa["answers"]],
        }
        for article in value["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    )
    yield from enumerate(rows, start=1)


def render_drop(row: Row) -> Example:
    """Return passage and question on a line each, then ``Answer:``; as in MeZO the question is stripped."""
    prompt = f"Passage: {row['passage']}\nQuestion: {row['question'].strip()}\nAnswer:"
    return Example(prompt, (), (), answers=tuple(row["answers"]))


def tidy_drop(row: Row) -> Iterator[Row]:
    """Yield the canonical row; answers are ``answers_spans`` on the hub, number, spans or date in the original JSON."""
    if "answers_spans" in row:
        texts = [str(text) for text in row["answers_spans"]["spans"]]
    else:
        accepted = [field(row, "answer"), *row.get("validated_answers", ())]
        texts = [text for answer in accepted for text in _drop_texts(answer)]
    if not texts:
        raise ValueError("a question without an answer")
    yield {
        "passage": str(field(row, "passage")),
        "question": str(field(row, "question")),
        "answers": list(dict.fromkeys(texts)),
    }


def _drop_texts(answer: Row) -> list[str]:
    """Return the texts of an answer, which is a number, else spans, else a date."""
    if str(answer.get("number", "")):
        return [str(answer["number"])]
    if answer.get("spans"):
        return [str(text) for text in answer["spans"]]
    date = answer.get("date") or {}
    text = " ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))
    return [text] if text else []


def drop_json(path: Path) -> Numbered:
    """Yield the questions of DROP's JSON, which maps passage ids to passages and questions."""
    value = json_value(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not DROP's JSON: is this another task's data?")
    rows = (qa | {"passage": item["passage"]} for item in value.values() for qa in item["qa_pairs"])
    yield from enumerate(rows, start=1)


SQUAD: Final = Task(
    name="squad",
    title="SQuAD",
    version=2,
    kind="generation",
    metrics=("token_f1", "exact_match"),
    render=render_squad,
    read=Folder(
        subfolders=("squad",),
        layouts=(
            layout(squad_json, train="train-v1.1.json", test="dev-v1.1.json"),
            # Two subsets with no question or context in common.
            (*layout(json_list, train="routerlens_dev.json"), *layout(squad_json, test="xquad.en.json")),
        ),
        tidy=tidy_squad,
    ),
    hub=("rajpurkar/squad", None),
    source="Rajpurkar et al. 2016 (arXiv 1606.05250); prompt: MeZO (arXiv 2305.17333)",
)

DROP: Final = Task(
    name="drop",
    title="DROP",
    version=2,
    kind="generation",
    metrics=("token_f1", "exact_match"),
    render=render_drop,
    read=Folder(
        subfolders=("drop",),
        layouts=(
            layout(drop_json, train="drop_dataset_train.json", test="drop_dataset_dev.json"),
            # Expert perturbations of test items (arXiv 2004.02709), not the original split.
            layout(drop_json, test="drop_contrast_sets_test.json"),
        ),
        tidy=tidy_drop,
    ),
    hub=("ucinlp/drop", None),
    source="Dua et al. 2019 (arXiv 1903.00161); prompt: MeZO (arXiv 2305.17333)",
)

TASKS: Final = (SQUAD, DROP)

"""Answering in free text: SQuAD v1.1 and DROP, with MeZO's prompts (arXiv 2305.17333).

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
from gradless.tasks.choices import json_list
from gradless.tasks.files import Folder, Numbered, Part, Row, field, json_value


def render_squad(row: Row) -> Example:
    """Title, context and question on a line each, then ``Answer:``."""
    title = f"Title: {row['title']}\n" if row["title"] else ""
    prompt = f"{title}Context: {row['context']}\nQuestion: {row['question']}\nAnswer:"
    return Example(prompt, (), (), answers=tuple(row["answers"]))


def tidy_squad(row: Row) -> Iterator[Row]:
    """Answers as a list of texts, each once: the hub has ``{"text": [...]}``, subsets one ``answer``."""
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
    """SQuAD v1.1 JSON: articles, paragraphs, questions."""
    number = 0
    for article in _value(path, "data"):
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                number += 1
                texts = [answer["text"] for answer in qa["answers"]]
                yield (
                    number,
                    {
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": qa["question"],
                        "answers": texts,
                    },
                )


def _value(path: Path, key: str) -> Any:
    value = json_value(path)
    if not isinstance(value, dict) or key not in value:
        raise BadInput(f"{path} has no '{key}': is this another task's data?")
    return value[key]


def render_drop(row: Row) -> Example:
    """Passage and question on a line each, then ``Answer:``."""
    prompt = f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:"
    return Example(prompt, (), (), answers=tuple(row["answers"]))


def tidy_drop(row: Row) -> Iterator[Row]:
    """Accepted answers as texts: ``answers_spans`` on the hub, number, spans or date in the original JSON."""
    if "answers_spans" in row:
        texts = [str(text) for text in row["answers_spans"]["spans"]]
    else:
        given = [field(row, "answer"), *row.get("validated_answers", ())]
        texts = [text for answer in given for text in _drop_texts(answer)]
    if not texts:
        raise ValueError("a question without an answer")
    yield {
        "passage": str(field(row, "passage")),
        "question": str(field(row, "question")),
        "answers": list(dict.fromkeys(texts)),
    }


def _drop_texts(answer: Row) -> list[str]:
    """An answer is a number, else spans, else a date."""
    if str(answer.get("number", "")):
        return [str(answer["number"])]
    if answer.get("spans"):
        return [str(text) for text in answer["spans"]]
    date = answer.get("date") or {}
    text = " ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))
    return [text] if text else []


def drop_json(path: Path) -> Numbered:
    """DROP JSON: passage id -> passage and questions."""
    value = json_value(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not DROP's JSON: is this another task's data?")
    number = 0
    for item in value.values():
        for qa in item["qa_pairs"]:
            number += 1
            yield number, qa | {"passage": item["passage"]}


SQUAD: Final = Task(
    name="squad",
    title="SQuAD",
    kind="generation",
    metrics=("token_f1", "exact_match"),
    render=render_squad,
    read=Folder(
        subfolders=("squad",),
        layouts=(
            (Part("train", "train-v1.1.json", squad_json), Part("test", "dev-v1.1.json", squad_json)),
            # Two subsets with no question or context in common.
            (Part("train", "routerlens_dev.json", json_list), Part("test", "xquad.en.json", squad_json)),
        ),
        tidy=tidy_squad,
    ),
    hub=("rajpurkar/squad", None),
    source="Rajpurkar et al. 2016 (arXiv 1606.05250); prompt: MeZO (arXiv 2305.17333)",
)

DROP: Final = Task(
    name="drop",
    title="DROP",
    kind="generation",
    metrics=("token_f1", "exact_match"),
    render=render_drop,
    read=Folder(
        subfolders=("drop",),
        layouts=(
            (
                Part("train", "drop_dataset_train.json", drop_json),
                Part("test", "drop_dataset_dev.json", drop_json),
            ),
            # Expert perturbations of test items (arXiv 2004.02709), not the original split.
            (Part("test", "drop_contrast_sets_test.json", drop_json),),
        ),
        tidy=tidy_drop,
    ),
    hub=("ucinlp/drop", None),
    source="Dua et al. 2019 (arXiv 1903.00161); prompt: MeZO (arXiv 2305.17333)",
)

TASKS: Final = (SQUAD, DROP)

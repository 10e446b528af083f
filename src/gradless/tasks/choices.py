"""Tasks whose options differ from row to row: COPA, ReCoRD and WinoGrande.

COPA and ReCoRD have MeZO's prompts (arXiv 2305.17333); WinoGrande's, and COPA's without alignment (also as
``copa-bare``), are ZO-Bench's (arXiv 2402.11592). Training is teacher forcing on the gold option; prediction takes
the option with the highest mean token log-probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput
from gradless.tasks.base import Example, Task
from gradless.tasks.files import Folder, Numbered, Part, Row, class_index, field, json_value, jsonl
from gradless.tasks.superglue import HUB, folder

PLACEHOLDER: Final = "@placeholder"
INSTRUCTION: Final = re.compile(r"given sentence: (.*?)\s*Option1: (.*) Option2: (.*?)\s*Answer format", re.DOTALL)


def _begin_small(text: str) -> str:
    """The first word in lower case unless it is "I": the choice continues a sentence."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def render_copa(row: Row, *, aligned: bool = True) -> Example:
    """``{premise without full stop} so`` / ``because`` + choice; without alignment premise + choice.

    Calibration then compares with the choice alone.
    """
    word = "because" if row["question"] == "cause" else "so"
    premise = row["premise"].rstrip().removesuffix(".")
    options = tuple(f" {_begin_small(row[name])}" for name in ("choice1", "choice2"))
    if not aligned:
        return Example(premise, options, (row["label"],))
    return Example(f"{premise} {word}", options, (row["label"],), content_free=word)


def tidy_copa(row: Row) -> Iterator[Row]:
    """``question`` is "cause" or "effect"."""
    if field(row, "question") not in ("cause", "effect"):
        raise ValueError(f"question {row['question']!r} is neither 'cause' nor 'effect'")
    texts = {name: str(field(row, name)) for name in ("premise", "choice1", "choice2", "question")}
    yield texts | {"label": class_index(field(row, "label"), ("choice1", "choice2"))}


def render_record(row: Row) -> Example:
    """The query is one more bullet of the passage's summary, with each entity in turn in the gap."""
    passage = row["passage"].replace("@highlight\n", "- ")
    options = tuple(f" {row['query'].replace(PLACEHOLDER, entity)}" for entity in row["entities"])
    # answers[0] first, because training uses the first correct option.
    correct = tuple(row["entities"].index(answer) for answer in row["answers"])
    return Example(f"{passage}\n-", options, correct, content_free="-")


def tidy_record(row: Row) -> Iterator[Row]:
    """One row per query: local files nest them and give entities as character spans, end included.

    Entities and answers keep the order of their first appearance; texts that appear twice are one entity.
    """
    if not isinstance(field(row, "passage"), dict):
        yield _record(row["passage"], row["entities"], field(row, "query"), row["answers"])
        return
    text = row["passage"]["text"]
    spans = sorted(row["passage"]["entities"], key=lambda span: span["start"])
    entities = [text[span["start"] : span["end"] + 1] for span in spans]
    for qa in row["qas"]:
        yield _record(text, entities, qa["query"], [answer["text"] for answer in qa["answers"]])


def _record(passage: str, entities: list[str], query: str, answers: list[str]) -> Row:
    entities, answers = list(dict.fromkeys(entities)), list(dict.fromkeys(answers))
    answers = [answer for answer in answers if answer in entities]
    if PLACEHOLDER not in query or not answers:
        raise ValueError(f"the query lacks {PLACEHOLDER} or no answer is among the entities")
    return {"passage": passage, "query": query, "entities": entities, "answers": answers}


def render_winogrande(row: Row) -> Example:
    """The prompt ends at the gap; an option is the candidate and the whole remainder, all of it scored."""
    before, _, after = row["sentence"].partition("_")
    prompt = before.rstrip(" ")
    space = before[len(prompt) :]
    options = tuple(f"{space}{row[name]}{after}" for name in ("option1", "option2"))
    return Example(prompt, options, (row["label"],))


def tidy_winogrande(row: Row) -> Iterator[Row]:
    """The original fields, or the instruction form of LLM-Adapters (arXiv 2304.01933)."""
    if "instruction" in row:
        match = INSTRUCTION.search(row["instruction"])
        if match is None:
            raise ValueError("the instruction does not hold a sentence and two options")
        row = dict(zip(("sentence", "option1", "option2"), match.groups(), strict=True)) | {"answer": row["answer"]}
    sentence = str(field(row, "sentence"))
    if "_" not in sentence:
        raise ValueError("the sentence has no gap '_'")
    answer = str(field(row, "answer")).removeprefix("option")
    if answer not in ("1", "2"):
        raise ValueError(f"answer {row['answer']!r} is neither option 1 nor option 2")
    options = {name: str(field(row, name)) for name in ("option1", "option2")}
    yield {"sentence": sentence} | options | {"label": int(answer) - 1}


def json_list(path: Path) -> Numbered:
    """A JSON list of records."""
    value: Any = json_value(path)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadInput(f"{path} is not a JSON list of records: fetch it again")
    yield from enumerate(value, start=1)


COPA_FILES: Final = folder("COPA", tidy_copa)

COPA: Final = Task(
    name="copa",
    title="COPA",
    kind="choice",
    metrics=("accuracy",),
    render=render_copa,
    render_unaligned=partial(render_copa, aligned=False),
    read=COPA_FILES,
    hub=(HUB, "copa"),
    source="Roemmele et al. 2011, SuperGLUE; prompt: MeZO (arXiv 2305.17333), unaligned: ZO-Bench (arXiv 2402.11592)",
)

COPA_BARE: Final = Task(
    name="copa-bare",
    title="COPA without the aligning prompt",
    kind="choice",
    metrics=("accuracy",),
    render=partial(render_copa, aligned=False),
    read=COPA_FILES,
    hub=(HUB, "copa"),
    source="Roemmele et al. 2011, SuperGLUE; no-alignment prompt of ZO-Bench (arXiv 2402.11592)",
)

RECORD: Final = Task(
    name="record",
    title="ReCoRD",
    kind="choice",
    metrics=("accuracy",),
    render=render_record,
    read=folder("ReCoRD", tidy_record, Part("test", "dev32.jsonl", jsonl)),
    hub=(HUB, "record"),
    source="Zhang et al. 2018 (arXiv 1810.12885), SuperGLUE; prompt: MeZO (arXiv 2305.17333)",
)

WINOGRANDE: Final = Task(
    name="winogrande",
    title="WinoGrande",
    kind="choice",
    metrics=("accuracy",),
    render=render_winogrande,
    read=Folder(
        subfolders=("winogrande",),
        layouts=(
            (Part("train", "train_m.jsonl", jsonl), Part("test", "dev.jsonl", jsonl)),
            (Part("test", "llm_adapters_test.json", json_list),),
        ),
        tidy=tidy_winogrande,
    ),
    hub=("allenai/winogrande", "winogrande_m"),
    source="Sakaguchi et al. 2020 (arXiv 1907.10641); prompt: ZO-Bench (arXiv 2402.11592)",
)

TASKS: Final = (COPA, RECORD, WINOGRANDE, COPA_BARE)

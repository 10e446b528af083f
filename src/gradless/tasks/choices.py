"""Tasks whose options differ from row to row: COPA, ReCoRD and WinoGrande.

COPA and ReCoRD have MeZO's prompts (arXiv 2305.17333); WinoGrande's, and COPA's without alignment (also as
``copa-bare``), are ZO-Bench's (arXiv 2402.11592). Training is teacher forcing on the gold option; prediction takes
the option with the highest mean token log-probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from gradless.tasks.base import Example, Task, bare
from gradless.tasks.files import BLANK, Folder, Part, Row, class_index, field, json_list, jsonl, layout
from gradless.tasks.superglue import HUB, folder

PLACEHOLDER: Final = "@placeholder"
INSTRUCTION: Final = re.compile(r"given sentence: (.*?)\s*Option1: (.*) Option2: (.*?)\s*Answer format", re.DOTALL)


def _uncapitalised(text: str) -> str:
    """Return the text with its first word in lower case unless it is "I": the choice continues a sentence."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def _check_differ(first: str, second: str) -> None:
    if first == second:
        raise ValueError(f"both choices are {first!r} (correct or remove the record)")


def render_copa(row: Row, *, aligned: bool = True) -> Example:
    """Return ``{premise without full stop} so`` / ``because`` + choice; without alignment premise + choice.

    Without alignment calibration compares with the choice alone.
    """
    conjunction = "because" if row["question"] == "cause" else "so"
    premise = row["premise"].rstrip().removesuffix(".")
    options = tuple(f" {_uncapitalised(row[name])}" for name in ("choice1", "choice2"))
    if not aligned:
        return Example(premise, options, (row["label"],))
    return Example(f"{premise} {conjunction}", options, (row["label"],), content_free=conjunction)


def tidy_copa(row: Row) -> Iterator[Row]:
    """Yield the canonical row; its ``question`` is "cause" or "effect"."""
    if field(row, "question") not in ("cause", "effect"):
        raise ValueError(f"question {row['question']!r} is neither 'cause' nor 'effect'")
    texts = {name: str(field(row, name)) for name in ("premise", "choice1", "choice2", "question")}
    _check_differ(*(_uncapitalised(texts[name].strip(BLANK)) for name in ("choice1", "choice2")))
    yield texts | {"label": class_index(field(row, "label"), ("choice1", "choice2"))}


def render_record(row: Row) -> Example:
    """Return the prompt whose options are one more bullet of the passage's summary, one for each entity."""
    passage = row["passage"].replace("@highlight\n", "- ")
    options = tuple(f" {row['query'].replace(PLACEHOLDER, entity)}" for entity in row["entities"])
    # answers[0] first, because training uses the first correct option.
    correct = tuple(row["entities"].index(answer) for answer in row["answers"])
    return Example(f"{passage}\n-", options, correct, content_free="-")


def tidy_record(row: Row) -> Iterator[Row]:
    """Yield one row per query: local files nest them and give entities as character spans, end included.

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
    """Return the prompt that ends at the gap; an option is the candidate and the whole remainder, all of it scored."""
    beginning, _, after = row["sentence"].partition("_")
    prompt = beginning.rstrip(" ")
    space = beginning[len(prompt) :]
    options = tuple(f"{space}{row[name]}{after}" for name in ("option1", "option2"))
    return Example(prompt, options, (row["label"],))


def tidy_winogrande(row: Row) -> Iterator[Row]:
    """Yield the canonical row of the original fields, or of the instruction form of LLM-Adapters (arXiv 2304.01933)."""
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
    _check_differ(*(text.strip(BLANK) for text in options.values()))
    yield {"sentence": sentence} | options | {"label": int(answer) - 1}


COPA: Final = Task(
    name="copa",
    title="COPA",
    kind="choice",
    render=render_copa,
    render_unaligned=partial(render_copa, aligned=False),
    read=folder("COPA", tidy_copa),
    hub=(HUB, "copa"),
    source="Roemmele et al. 2011, SuperGLUE; prompt: MeZO (arXiv 2305.17333), unaligned: ZO-Bench (arXiv 2402.11592)",
)

RECORD: Final = Task(
    name="record",
    title="ReCoRD",
    kind="choice",
    render=render_record,
    read=folder("ReCoRD", tidy_record, Part("test", "dev32.jsonl", jsonl)),
    hub=(HUB, "record"),
    source="Zhang et al. 2018 (arXiv 1810.12885), SuperGLUE; prompt: MeZO (arXiv 2305.17333)",
)

WINOGRANDE: Final = Task(
    name="winogrande",
    title="WinoGrande",
    kind="choice",
    render=render_winogrande,
    read=Folder(
        subfolders=("winogrande",),
        layouts=(
            layout(jsonl, train="train_m.jsonl", test="dev.jsonl"),
            layout(json_list, test="llm_adapters_test.json"),
        ),
        tidy=tidy_winogrande,
    ),
    hub=("allenai/winogrande", "winogrande_m"),
    source="Sakaguchi et al. 2020 (arXiv 1907.10641); prompt: ZO-Bench (arXiv 2402.11592)",
)

TASKS: Final = (COPA, RECORD, WINOGRANDE, bare(COPA))

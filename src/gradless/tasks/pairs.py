"""Tasks about two sentences: inference and paraphrase.

Masked prompts are LM-BFF's (Gao et al. 2021, arXiv 2012.15723), as MeZO (arXiv 2305.17333) uses them: the
first sentence loses its last character (its full stop) before the question mark, and the second one starts in
lower case. RTE's causal prompt is MeZO's; the one without alignment (also as ``rte-bare``) is ZO-Bench's (arXiv
2402.11592). **The causal prompts of MNLI, SNLI, QNLI, QQP and MRPC are ours**, written after RTE's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, TypeAlias

from gradless.tasks.base import MASK, Example, Render, Task, bare, by_label
from gradless.tasks.files import Folder, Layout, Part, Row, class_index, field, jsonl, layout, plain_table, table

Fields: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""For each of the two texts: its canonical name, then its names in files."""

ENTAILED: Final = ("entailment", "not_entailment")
THREE_WAY: Final = ("entailment", "neutral", "contradiction")
SAME: Final = ("not_equivalent", "equivalent")
YES_NO: Final = ("Yes", "No")
NO_YES: Final = ("No", "Yes")
YES_MAYBE_NO: Final = ("Yes", "Maybe", "No")
LMBFF_SOURCE: Final = "masked prompt: LM-BFF (arXiv 2012.15723) as in MeZO (arXiv 2305.17333)"
NLI_FIELDS: Final[Fields] = (("premise", "sentence1"), ("hypothesis", "sentence2"))
NLI_PROMPT: Final = '{premise}\nDoes this mean that "{hypothesis}" is true? Yes, No, or Maybe?\n'
GLUE_TSV: Final = layout(plain_table, train="train.tsv", test="dev.tsv")


def masked(words: tuple[str, ...], first: str, second: str, *, question: bool = True) -> Render:
    """Return the prompt ``"{first without last character}?<mask>, {second}"``, or ``"{first}<mask>, {second}"``.

    Args:
        words: The options, each with the space before it.
        first: Name of the field that stands before the mask.
        second: Name of the field after it.
        question: Whether the first text becomes a question.
    """
    mark = "?" if question else ""

    def render(row: Row) -> Example:
        head, tail = row[first], row[second]
        head = head[:-1] if question else head
        prompt = f"{head}{mark}{MASK}, {tail[:1].lower()}{tail[1:]}"
        blank = f"{mark}{MASK},"
        return Example(prompt, words, (row["label"],), content_free=blank, first=(0, len(head)))

    return render


def tidy(fields: Fields, labels: tuple[str, ...], row: Row) -> Iterator[Row]:
    """Yield the canonical row: each field under its first name, the label as an index.

    Pairs on which the annotators did not agree (label "-" or -1 in SNLI) are no examples and are left out.
    """
    value = field(row, "label", "gold_label", "is_duplicate", "Quality")
    if value in ("-", -1):
        return
    texts = {names[0]: str(field(row, *names)) for names in fields}
    yield texts | {"label": class_index(value, labels)}


def _task(
    name: str,
    title: str,
    prompt: str,
    *,
    source: str,
    fields: Fields,
    subfolders: tuple[str, ...],
    layouts: tuple[Layout, ...],
    hub: tuple[str, str | None],
    hub_splits: tuple[str, str] = ("train", "validation"),
    labels: tuple[str, ...],
    words: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    question: bool = True,
    unaligned: str | None = None,
    first_limit: int | None = None,
    max_length: int = 128,
) -> Task:
    """Return a task with a causal prompt and the `masked` one; words stand bare after a newline."""
    spaced = tuple(f" {option}" for option in words)
    (first, *_), (second, *_) = fields
    return Task(
        name=name,
        title=title,
        kind="classification",
        metrics=metrics,
        render=by_label(prompt, words),
        render_unaligned=by_label(unaligned, words) if unaligned else None,
        render_masked=masked(spaced, first, second, question=question),
        read=Folder(subfolders=subfolders, layouts=layouts, tidy=partial(tidy, fields, labels)),
        hub=hub,
        hub_splits=hub_splits,
        source=source,
        labels=labels,
        label_words=words,
        masked_words=spaced,
        first_limit=first_limit,
        max_length=max_length,
    )


RTE: Final = _task(
    "rte",
    "RTE",
    '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
    source=f"Dagan et al. 2005 and successors, SuperGLUE; causal prompt: MeZO, unaligned: ZO-Bench; {LMBFF_SOURCE}",
    unaligned='{premise}\n"{hypothesis}"\n',
    fields=NLI_FIELDS,
    subfolders=("RTE", "rte", "superglue/RTE"),
    layouts=(layout(jsonl, train="train.jsonl", test="val.jsonl"), GLUE_TSV),
    hub=("aps/super_glue", "rte"),
    labels=ENTAILED,
    words=YES_NO,
    first_limit=240,
    max_length=256,
)

TASKS: Final = (
    RTE,
    _task(
        "mnli",
        "MNLI",
        NLI_PROMPT,
        source=f"Williams et al. 2018 (arXiv 1704.05426), matched; {LMBFF_SOURCE}; causal prompt ours",
        fields=NLI_FIELDS,
        subfolders=("nli", "mnli", "MNLI"),
        layouts=(
            layout(jsonl, train="mnli_train.jsonl", test="mnli_dev.jsonl"),
            layout(plain_table, train="train.tsv", test="dev_matched.tsv"),
        ),
        hub=("nyu-mll/glue", "mnli"),
        hub_splits=("train", "validation_matched"),
        labels=THREE_WAY,
        words=YES_MAYBE_NO,
        first_limit=240,
        max_length=256,
    ),
    _task(
        "snli",
        "SNLI",
        NLI_PROMPT,
        source=f"Bowman et al. 2015 (arXiv 1508.05326); {LMBFF_SOURCE}; causal prompt ours",
        fields=NLI_FIELDS,
        subfolders=("nli", "snli", "SNLI"),
        layouts=(
            # CAD's train pairs are SNLI pairs, none of them in snli_dev; its dev pairs all are.
            (
                Part("train", "snli_train.jsonl", jsonl),
                Part("train", "snli_cad_original_train.tsv", table),
                Part("test", "snli_dev.jsonl", jsonl),
            ),
            layout(jsonl, train="snli_1.0_train.jsonl", test="snli_1.0_dev.jsonl"),
            GLUE_TSV,
        ),
        hub=("stanfordnlp/snli", None),
        labels=THREE_WAY,
        words=YES_MAYBE_NO,
        max_length=256,
    ),
    _task(
        "qnli",
        "QNLI",
        '{sentence}\nDoes this answer the question "{question}"? Yes or No?\n',
        source=f"Rajpurkar et al. 2016 (arXiv 1606.05250), GLUE; {LMBFF_SOURCE}; causal prompt ours",
        fields=(("question",), ("sentence",)),
        subfolders=("qnli", "QNLI"),
        layouts=(GLUE_TSV,),
        hub=("nyu-mll/glue", "qnli"),
        labels=ENTAILED,
        words=YES_NO,
    ),
    _task(
        "qqp",
        "QQP",
        '{question1}\nDoes "{question2}" ask the same question? Yes or No?\n',
        source=f"Iyer et al. 2017, GLUE; {LMBFF_SOURCE}; causal prompt ours",
        fields=(("question1",), ("question2",)),
        question=False,
        subfolders=("qqp", "QQP"),
        # GLUE's own QQP files hold a few broken lines, which every reader of them leaves out.
        layouts=(layout(partial(plain_table, skip_short=True), train="train.tsv", test="dev.tsv"),),
        hub=("nyu-mll/glue", "qqp"),
        labels=SAME,
        words=NO_YES,
        metrics=("accuracy", "f1"),
    ),
    _task(
        "mrpc",
        "MRPC",
        '{sentence1}\nDoes "{sentence2}" mean the same? Yes or No?\n',
        source=f"Dolan and Brockett 2005, GLUE; {LMBFF_SOURCE}; causal prompt ours",
        fields=(("sentence1", "#1 String"), ("sentence2", "#2 String")),
        question=False,
        subfolders=("mrpc", "MRPC"),
        layouts=(GLUE_TSV,),
        hub=("nyu-mll/glue", "mrpc"),
        labels=SAME,
        words=NO_YES,
        metrics=("accuracy", "f1"),
    ),
    bare(RTE),
)

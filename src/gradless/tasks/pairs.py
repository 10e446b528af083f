"""Tasks about two sentences: inference and paraphrase.

Masked prompts are LM-BFF's (Gao et al. 2021, arXiv 2012.15723), as MeZO (arXiv 2305.17333) uses them: the
first sentence loses its last character (its full stop) before the question mark, and the second one starts in
lower case. RTE's causal prompt is MeZO's; the one without alignment (also as ``rte-bare``) is ZO-Bench's (arXiv
2402.11592). **The causal prompts of MNLI, SNLI, QNLI, QQP and MRPC are ours**, written after RTE's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeAlias

from gradless.tasks.base import MASK, Example, Task
from gradless.tasks.files import Folder, Part, Row, class_index, field, jsonl, plain_table, table

Render: TypeAlias = Callable[[Row], Example]

ENTAILED: Final = ("entailment", "not_entailment")
THREE_WAY: Final = ("entailment", "neutral", "contradiction")
SAME: Final = ("not_equivalent", "equivalent")
YES_NO: Final = ("Yes", "No")
NO_YES: Final = ("No", "Yes")
YES_MAYBE_NO: Final = ("Yes", "Maybe", "No")
LMBFF_SOURCE: Final = "masked prompt: LM-BFF (arXiv 2012.15723) as in MeZO (arXiv 2305.17333)"


def _spaced(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words after a newline stand bare; at the mask they carry the space before them."""
    return tuple(f" {word}" for word in words)


def causal(words: tuple[str, ...], prompt: str) -> Render:
    """``prompt`` with the row's fields in braces, then a word; the calibration prompt is empty, as MeZO's."""

    def render(row: Row) -> Example:
        return Example(prompt.format_map(row), words, (row["label"],))

    return render


def masked(words: tuple[str, ...], first: str, second: str, *, question: bool = True) -> Render:
    """``"{first without last character}?<mask>, {second}"``, or ``"{first}<mask>, {second}"``."""
    options = _spaced(words)
    mark = "?" if question else ""

    def render(row: Row) -> Example:
        head, tail = row[first], row[second]
        head = head[:-1] if question else head
        prompt = f"{head}{mark}{MASK}, {tail[:1].lower()}{tail[1:]}"
        blank = f"{mark}{MASK},"
        return Example(prompt, options, (row["label"],), content_free=blank, first=(0, len(head)))

    return render


def tidy(fields: tuple[tuple[str, ...], ...], labels: tuple[str, ...], row: Row) -> Iterator[Row]:
    """Canonical row: each field under its first name, the label as an index.

    Pairs on which the annotators did not agree (label "-" or -1 in SNLI) are no examples and are left out.
    """
    value = field(row, "label", "gold_label", "is_duplicate", "Quality")
    if value in ("-", -1):
        return
    texts = {names[0]: str(field(row, *names)) for names in fields}
    yield texts | {"label": class_index(value, labels)}


NLI_FIELDS: Final = (("premise", "sentence1"), ("hypothesis", "sentence2"))
RTE_PROMPT: Final = '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'
RTE_UNALIGNED: Final = '{premise}\n"{hypothesis}"\n'
NLI_PROMPT: Final = '{premise}\nDoes this mean that "{hypothesis}" is true? Yes, No, or Maybe?\n'

_tsv = (Part("train", "train.tsv", plain_table), Part("test", "dev.tsv", plain_table))
_cad = partial(table, delimiter="\t")
_skip = partial(plain_table, skip_short=True)

RTE_FILES: Final = Folder(
    subfolders=("RTE", "rte", "superglue/RTE"),
    layouts=((Part("train", "train.jsonl", jsonl), Part("test", "val.jsonl", jsonl)), _tsv),
    tidy=partial(tidy, NLI_FIELDS, ENTAILED),
)

RTE: Final = Task(
    name="rte",
    title="RTE",
    kind="classification",
    metrics=("accuracy",),
    render=causal(YES_NO, RTE_PROMPT),
    render_unaligned=causal(YES_NO, RTE_UNALIGNED),
    render_masked=masked(YES_NO, "premise", "hypothesis"),
    read=RTE_FILES,
    hub=("aps/super_glue", "rte"),
    source=f"Dagan et al. 2005 and successors, SuperGLUE; causal prompt: MeZO, unaligned: ZO-Bench; {LMBFF_SOURCE}",
    labels=ENTAILED,
    label_words=YES_NO,
    masked_words=_spaced(YES_NO),
    first_limit=240,
    max_length=256,
)

RTE_BARE: Final = Task(
    name="rte-bare",
    title="RTE without the aligning prompt",
    kind="classification",
    metrics=("accuracy",),
    render=causal(YES_NO, RTE_UNALIGNED),
    read=RTE_FILES,
    hub=("aps/super_glue", "rte"),
    source="Dagan et al. 2005 and successors, SuperGLUE; no-alignment prompt of ZO-Bench (arXiv 2402.11592)",
    labels=ENTAILED,
    label_words=YES_NO,
)

MNLI: Final = Task(
    name="mnli",
    title="MNLI",
    kind="classification",
    metrics=("accuracy",),
    render=causal(YES_MAYBE_NO, NLI_PROMPT),
    render_masked=masked(YES_MAYBE_NO, "premise", "hypothesis"),
    read=Folder(
        subfolders=("nli", "mnli", "MNLI"),
        layouts=(
            (Part("train", "mnli_train.jsonl", jsonl), Part("test", "mnli_dev.jsonl", jsonl)),
            (Part("train", "train.tsv", plain_table), Part("test", "dev_matched.tsv", plain_table)),
        ),
        tidy=partial(tidy, NLI_FIELDS, THREE_WAY),
    ),
    hub=("nyu-mll/glue", "mnli"),
    hub_splits=("train", "validation_matched"),
    source=f"Williams et al. 2018 (arXiv 1704.05426), matched; {LMBFF_SOURCE}; causal prompt ours",
    labels=THREE_WAY,
    label_words=YES_MAYBE_NO,
    masked_words=_spaced(YES_MAYBE_NO),
    first_limit=240,
    max_length=256,
)

SNLI: Final = Task(
    name="snli",
    title="SNLI",
    kind="classification",
    metrics=("accuracy",),
    render=causal(YES_MAYBE_NO, NLI_PROMPT),
    render_masked=masked(YES_MAYBE_NO, "premise", "hypothesis"),
    read=Folder(
        subfolders=("nli", "snli", "SNLI"),
        layouts=(
            # CAD's train pairs are SNLI pairs, none of them in snli_dev; its dev pairs all are.
            (
                Part("train", "snli_train.jsonl", jsonl),
                Part("train", "snli_cad_original_train.tsv", _cad),
                Part("test", "snli_dev.jsonl", jsonl),
            ),
            (Part("train", "snli_1.0_train.jsonl", jsonl), Part("test", "snli_1.0_dev.jsonl", jsonl)),
            _tsv,
        ),
        tidy=partial(tidy, NLI_FIELDS, THREE_WAY),
    ),
    hub=("stanfordnlp/snli", None),
    source=f"Bowman et al. 2015 (arXiv 1508.05326); {LMBFF_SOURCE}; causal prompt ours",
    labels=THREE_WAY,
    label_words=YES_MAYBE_NO,
    masked_words=_spaced(YES_MAYBE_NO),
    max_length=256,
)

QNLI: Final = Task(
    name="qnli",
    title="QNLI",
    kind="classification",
    metrics=("accuracy",),
    render=causal(YES_NO, '{sentence}\nDoes this answer the question "{question}"? Yes or No?\n'),
    render_masked=masked(YES_NO, "question", "sentence"),
    read=Folder(
        subfolders=("qnli", "QNLI"),
        layouts=(_tsv,),
        tidy=partial(tidy, (("question",), ("sentence",)), ENTAILED),
    ),
    hub=("nyu-mll/glue", "qnli"),
    source=f"Rajpurkar et al. 2016 (arXiv 1606.05250), GLUE; {LMBFF_SOURCE}; causal prompt ours",
    labels=ENTAILED,
    label_words=YES_NO,
    masked_words=_spaced(YES_NO),
)

QQP: Final = Task(
    name="qqp",
    title="QQP",
    kind="classification",
    metrics=("accuracy", "f1"),
    render=causal(NO_YES, '{question1}\nDoes "{question2}" ask the same question? Yes or No?\n'),
    render_masked=masked(NO_YES, "question1", "question2", question=False),
    read=Folder(
        subfolders=("qqp", "QQP"),
        # GLUE's own QQP files hold a few broken lines, which every reader of them leaves out.
        layouts=((Part("train", "train.tsv", _skip), Part("test", "dev.tsv", _skip)),),
        tidy=partial(tidy, (("question1",), ("question2",)), SAME),
    ),
    hub=("nyu-mll/glue", "qqp"),
    source=f"Iyer et al. 2017, GLUE; {LMBFF_SOURCE}; causal prompt ours",
    labels=SAME,
    label_words=NO_YES,
    masked_words=_spaced(NO_YES),
)

MRPC: Final = Task(
    name="mrpc",
    title="MRPC",
    kind="classification",
    metrics=("accuracy", "f1"),
    render=causal(NO_YES, '{sentence1}\nDoes "{sentence2}" mean the same? Yes or No?\n'),
    render_masked=masked(NO_YES, "sentence1", "sentence2", question=False),
    read=Folder(
        subfolders=("mrpc", "MRPC"),
        layouts=(_tsv,),
        tidy=partial(tidy, (("sentence1", "#1 String"), ("sentence2", "#2 String")), SAME),
    ),
    hub=("nyu-mll/glue", "mrpc"),
    source=f"Dolan and Brockett 2005, GLUE; {LMBFF_SOURCE}; causal prompt ours",
    labels=SAME,
    label_words=NO_YES,
    masked_words=_spaced(NO_YES),
)

TASKS: Final = (RTE, MNLI, SNLI, QNLI, QQP, MRPC, RTE_BARE)

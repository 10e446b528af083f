"""Tasks about one sentence: sentiment, subjectivity, question type, acceptability, topic.

Masked prompts are LM-BFF's (Gao et al. 2021, arXiv 2012.15723), as MeZO (arXiv 2305.17333) uses them. The
causal prompt of SST-2 is MeZO's. **All other causal prompts here are ours**: the text before the mask where
that reads well (so SST-5, MR, CR, MPQA and IMDb share SST-2's), and for TREC "{text} Type:". IMDb and AG News
are in neither paper; both of their prompts are ours.

MR shares most of its sentences with SST-2 and SST-5: never train on one and test on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from gradless.tasks.base import MASK, Example, Task
from gradless.tasks.files import (
    BLANK,
    Folder,
    Layout,
    Numbered,
    Part,
    Row,
    class_index,
    field,
    jsonl,
    one_class,
    plain_table,
    rated_lines,
    table,
)

Render: TypeAlias = Callable[[Row], Example]

POLARITY: Final = ("negative", "positive")
GRADES: Final = ("very negative", "negative", "neutral", "positive", "very positive")
GOOD_BAD: Final = (" terrible", " great")
FIVE_STEPS: Final = (" terrible", " bad", " okay", " good", " great")
COLA_WORDS: Final = (" incorrect", " correct")
SUBJ_WORDS: Final = (" subjective", " objective")
TREC_WORDS: Final = (" Description", " Entity", " Expression", " Human", " Location", " Number")
TREC_CODES: Final = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
TREC_HUB: Final = (2, 1, 0, 3, 4, 5)
"""Hub label (ABBR, ENTY, DESC, ...) -> ours, which is LM-BFF's order."""
TOPICS: Final = ("World", "Sports", "Business", "Sci/Tech")
TOPIC_WORDS: Final = (" world", " sports", " business", " technology")

SENTIMENT_SOURCE: Final = "prompt: LM-BFF (arXiv 2012.15723) as in MeZO (arXiv 2305.17333)"


def causal(words: tuple[str, ...], lead: str) -> Render:
    """``"{text}{lead}"`` followed by the word: ``"{text} It was"`` -> ``" great"``."""

    def render(row: Row) -> Example:
        return Example(row["sentence"] + lead, words, (row["label"],), content_free=lead.lstrip(" "))

    return render


def masked(words: tuple[str, ...], lead: str, end: str = ".") -> Render:
    """``"{text}{lead}<mask>{end}"``; no space before the mask, which belongs to the word."""

    def render(row: Row) -> Example:
        text = row["sentence"]
        blank = lead.lstrip(" ") + MASK + end
        return Example(text + lead + MASK + end, words, (row["label"],), content_free=blank, first=(0, len(text)))

    return render


def masked_before(words: tuple[str, ...]) -> Render:
    """``"<mask>: {text}"`` (TREC)."""

    def render(row: Row) -> Example:
        lead = f"{MASK}: "
        prompt = lead + row["sentence"]
        span = (len(lead), len(prompt))
        return Example(prompt, words, (row["label"],), content_free=f"{MASK}:", first=span)

    return render


def tidy(names: tuple[str, ...], row: Row) -> Iterator[Row]:
    """Canonical row ``{"sentence", "label"}``; white space around the text is no part of it."""
    value = field(row, "label_text", "label", "Sentiment")
    yield {"sentence": _text(row), "label": class_index(value, names)}


def _text(row: Row) -> str:
    return str(field(row, "sentence", "text", "content", "Text")).strip(BLANK)


def tidy_trec(row: Row) -> Iterator[Row]:
    """The hub and the original files number the classes unlike LM-BFF: map by what the field says."""
    if row.get("coarse_label") is not None:
        label = TREC_HUB[class_index(row["coarse_label"], TREC_CODES)]
    else:
        label = class_index(field(row, "label"), TREC_CODES)
    yield {"sentence": _text(row), "label": label}


def tidy_imdb(row: Row) -> Iterator[Row]:
    """HTML line breaks, which every review is full of, become spaces."""
    for clean in tidy(POLARITY, row):
        yield clean | {"sentence": " ".join(clean["sentence"].replace("<br />", " ").split())}


def tidy_agnews(row: Row) -> Iterator[Row]:
    """Labels are 0-3 as numbers (hub), 1-4 as text (files), or class names."""
    value = field(row, "label")
    if isinstance(value, str) and value.isdecimal():
        value = int(value) - 1
    yield {"sentence": _text(row), "label": class_index(value, TOPICS)}


def _trec_lines(path: Path) -> Numbered:
    """The original files: ``COARSE:fine question text``."""
    for number, row in rated_lines(path, encoding="latin-1"):
        yield number, row | {"label": row["label"].partition(":")[0]}


_csv = partial(table, delimiter=",", columns=("label", "text"))

LMBFF: Final[Layout] = (Part("train", "train.csv", _csv), Part("test", "test.csv", _csv))
"""LM-BFF's own folders: two columns, no header."""

GLUE_TSV: Final[Layout] = (Part("train", "train.tsv", plain_table), Part("test", "dev.tsv", plain_table))


def _stsa(kind: str) -> Layout:
    return tuple(Part(split, f"stsa.{kind}.{split}", rated_lines) for split in ("train", "dev", "test"))


def _two_files(negative: str, positive: str, encoding: str) -> Layout:
    return (
        Part("pool", negative, one_class(0, encoding)),
        Part("pool", positive, one_class(1, encoding)),
    )


SST2_FILES: Final = Folder(
    subfolders=("sst2", "SST-2"), layouts=(GLUE_TSV, _stsa("binary")), tidy=partial(tidy, POLARITY)
)

SST2_UNALIGNED: Final = causal(GOOD_BAD, "")
"""ZO-Bench's: the sentence and the word. Its calibration prompt is one space, which here is the word's own."""

COLA_COLUMNS: Final = ("source", "label", "star", "sentence")
_cola = partial(plain_table, columns=COLA_COLUMNS)
_imdb = partial(table, delimiter="\t")
_agnews = partial(table, delimiter="\t", columns=("text", "label"))


def _sentiment(name: str, title: str, source: str, read: Folder, hub: tuple[str, str | None] | None) -> Task:
    """MR, CR, MPQA: SST-2's prompts, first sentence of at most 110 tokens."""
    return Task(
        name=name,
        title=title,
        kind="classification",
        metrics=("accuracy",),
        render=causal(GOOD_BAD, " It was"),
        render_masked=masked(GOOD_BAD, " It was"),
        read=read,
        hub=hub,
        hub_splits=("train", "test"),
        source=f"{source}; {SENTIMENT_SOURCE}; causal form as for SST-2",
        labels=POLARITY,
        label_words=GOOD_BAD,
        masked_words=GOOD_BAD,
        first_limit=110,
    )


SST2: Final = Task(
    name="sst2",
    title="SST-2",
    kind="classification",
    metrics=("accuracy",),
    render=causal(GOOD_BAD, " It was"),
    render_unaligned=SST2_UNALIGNED,
    render_masked=masked(GOOD_BAD, " It was"),
    read=SST2_FILES,
    hub=("nyu-mll/glue", "sst2"),
    source=f"Socher et al. 2013, GLUE; {SENTIMENT_SOURCE}; unaligned: ZO-Bench (arXiv 2402.11592)",
    labels=POLARITY,
    label_words=GOOD_BAD,
    masked_words=GOOD_BAD,
)

SST2_BARE: Final = Task(
    name="sst2-bare",
    title="SST-2 without the aligning prompt",
    kind="classification",
    metrics=("accuracy",),
    render=SST2_UNALIGNED,
    read=SST2_FILES,
    hub=("nyu-mll/glue", "sst2"),
    source="Socher et al. 2013, GLUE; no-alignment prompt of ZO-Bench (arXiv 2402.11592)",
    labels=POLARITY,
    label_words=GOOD_BAD,
)

SST5: Final = Task(
    name="sst5",
    title="SST-5",
    kind="classification",
    metrics=("accuracy",),
    render=causal(FIVE_STEPS, " It was"),
    render_masked=masked(FIVE_STEPS, " It was"),
    read=Folder(subfolders=("sst5", "sst-5"), layouts=(_stsa("fine"), LMBFF), tidy=partial(tidy, GRADES)),
    hub=("SetFit/sst5", None),
    hub_splits=("train", "test"),
    source=f"Socher et al. 2013; {SENTIMENT_SOURCE}; causal form ours",
    labels=GRADES,
    label_words=FIVE_STEPS,
    masked_words=FIVE_STEPS,
    first_limit=110,
)

MR: Final = _sentiment(
    "mr",
    "MR",
    "Pang and Lee 2005 (unsplit files: test drawn by a fixed permutation)",
    Folder(
        subfolders=("mr",),
        layouts=(_two_files("rt-polarity.neg", "rt-polarity.pos", "latin-1"), LMBFF),
        tidy=partial(tidy, POLARITY),
    ),
    ("cornell-movie-review-data/rotten_tomatoes", None),
)

CR: Final = _sentiment(
    "cr",
    "CR",
    "Hu and Liu 2004 (unsplit files: test drawn by a fixed permutation)",
    Folder(
        subfolders=("cr",),
        layouts=(_two_files("custrev.neg", "custrev.pos", "latin-1"), LMBFF),
        tidy=partial(tidy, POLARITY),
    ),
    ("SetFit/CR", None),
)

MPQA: Final = _sentiment(
    "mpqa",
    "MPQA",
    "Wiebe et al. 2005 (mpqa.all: test drawn by a fixed permutation)",
    Folder(
        subfolders=("mpqa",),
        layouts=((Part("pool", "mpqa.all", partial(rated_lines, encoding="latin-1")),), LMBFF),
        tidy=partial(tidy, POLARITY),
    ),
    None,
)

SUBJ: Final = Task(
    name="subj",
    title="Subj",
    kind="classification",
    metrics=("accuracy",),
    render=causal(SUBJ_WORDS, " This is"),
    render_masked=masked(SUBJ_WORDS, " This is"),
    read=Folder(
        subfolders=("subj",),
        layouts=(_two_files("quote.tok.gt9.5000", "plot.tok.gt9.5000", "latin-1"), LMBFF),
        tidy=partial(tidy, ("subjective", "objective")),
    ),
    hub=("SetFit/subj", None),
    hub_splits=("train", "test"),
    source=f"Pang and Lee 2004; {SENTIMENT_SOURCE}; causal form ours",
    labels=("subjective", "objective"),
    label_words=SUBJ_WORDS,
    masked_words=SUBJ_WORDS,
    first_limit=110,
)

TREC: Final = Task(
    name="trec",
    title="TREC",
    kind="classification",
    metrics=("accuracy",),
    render=causal(TREC_WORDS, " Type:"),
    render_masked=masked_before(TREC_WORDS),
    read=Folder(
        subfolders=("trec",),
        layouts=(
            (Part("train", "train_5500.label", _trec_lines), Part("test", "TREC_10.label", _trec_lines)),
            LMBFF,
        ),
        tidy=tidy_trec,
    ),
    hub=("CogComp/trec", None),
    hub_splits=("train", "test"),
    source=f"Li and Roth 2002; {SENTIMENT_SOURCE}; causal form ours",
    labels=tuple(word.strip() for word in TREC_WORDS),
    label_words=TREC_WORDS,
    masked_words=TREC_WORDS,
    first_limit=110,
)

COLA: Final = Task(
    name="cola",
    title="CoLA",
    kind="classification",
    metrics=("mcc", "accuracy"),
    render=causal(COLA_WORDS, " This is"),
    render_masked=masked(COLA_WORDS, " This is"),
    read=Folder(
        subfolders=("cola", "CoLA"),
        layouts=((Part("train", "train.tsv", _cola), Part("test", "dev.tsv", _cola)),),
        tidy=partial(tidy, ("unacceptable", "acceptable")),
    ),
    hub=("nyu-mll/glue", "cola"),
    source=f"Warstadt et al. 2019 (arXiv 1805.12471), GLUE; {SENTIMENT_SOURCE}; causal form ours",
    labels=("unacceptable", "acceptable"),
    label_words=COLA_WORDS,
    masked_words=COLA_WORDS,
)

IMDB: Final = Task(
    name="imdb",
    title="IMDb",
    kind="classification",
    metrics=("accuracy",),
    render=causal(GOOD_BAD, " It was"),
    render_masked=masked(GOOD_BAD, " It was"),
    read=Folder(
        subfolders=("imdb",),
        layouts=(tuple(Part(split, f"{split}.tsv", _imdb) for split in ("train", "dev", "test")),),
        tidy=tidy_imdb,
    ),
    hub=("stanfordnlp/imdb", None),
    hub_splits=("train", "test"),
    source="Maas et al. 2011; local subset of Kaushik et al. 2020 (arXiv 1909.12434); SST-2's prompt",
    labels=POLARITY,
    label_words=GOOD_BAD,
    masked_words=GOOD_BAD,
    first_limit=480,
    max_length=512,
)

AGNEWS: Final = Task(
    name="agnews",
    title="AG News",
    kind="classification",
    metrics=("accuracy",),
    render=causal(TOPIC_WORDS, " This is about"),
    render_masked=masked(TOPIC_WORDS, " This is about"),
    read=Folder(
        subfolders=("agnews", "ag_news"),
        layouts=((Part("train", "dev.tsv", _agnews), Part("test", "test.jsonl", jsonl)),),
        tidy=tidy_agnews,
    ),
    hub=("fancyzhx/ag_news", None),
    hub_splits=("train", "test"),
    source="Zhang et al. 2015 (arXiv 1509.01626); prompts ours; the local dev.tsv is used for training",
    labels=TOPICS,
    label_words=TOPIC_WORDS,
    masked_words=TOPIC_WORDS,
    first_limit=110,
)

TASKS: Final = (SST2, SST5, MR, CR, MPQA, SUBJ, TREC, COLA, IMDB, AGNEWS, SST2_BARE)

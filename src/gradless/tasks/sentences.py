"""Tasks about one sentence: sentiment, subjectivity, question type, acceptability, topic.

Masked prompts are LM-BFF's (Gao et al. 2021, arXiv 2012.15723), as MeZO (arXiv 2305.17333) uses them. The
causal prompt of SST-2 is MeZO's. **All other causal prompts here are ours**: the text before the mask where
that reads well (so SST-5, MR, CR, MPQA and IMDb share SST-2's), and for TREC "{text} Type:". IMDb and AG News
are in neither paper; both of their prompts are ours.

MR shares most of its sentences with SST-2 and SST-5: never train on one and test on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from gradless.tasks.base import MASK, Example, Render, Task, bare, by_label
from gradless.tasks.files import (
    BLANK,
    Folder,
    Layout,
    Numbered,
    Row,
    class_index,
    field,
    jsonl,
    layout,
    one_class,
    plain_table,
    rated_lines,
    table,
)

POLARITY: Final = ("negative", "positive")
GRADES: Final = ("very negative", "negative", "neutral", "positive", "very positive")
SUBJECTIVITY: Final = ("subjective", "objective")
ACCEPTABILITY: Final = ("unacceptable", "acceptable")
TOPICS: Final = ("World", "Sports", "Business", "Sci/Tech")
TYPES: Final = ("Description", "Entity", "Expression", "Human", "Location", "Number")
TYPE_WORDS: Final = tuple(f" {name}" for name in TYPES)
GOOD_BAD: Final = (" terrible", " great")
TREC_CODES: Final = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
TREC_HUB: Final = (2, 1, 0, 3, 4, 5)
"""Hub label (ABBR, ENTY, DESC, ...) -> ours, which is LM-BFF's order."""

SENTIMENT_SOURCE: Final = "prompt: LM-BFF (arXiv 2012.15723) as in MeZO (arXiv 2305.17333)"
LIKE_SST2: Final = f"{SENTIMENT_SOURCE}; causal form as for SST-2"


def masked(words: tuple[str, ...], lead: str, end: str = ".") -> Render:
    """Return the prompt ``"{sentence}{lead}<mask>{end}"``; the space before the mask belongs to the word."""

    def render(row: Row) -> Example:
        text = row["sentence"]
        blank = lead.lstrip(" ") + MASK + end
        return Example(text + lead + MASK + end, words, (row["label"],), content_free=blank, first=(0, len(text)))

    return render


def masked_before(words: tuple[str, ...]) -> Render:
    """Return the prompt ``"<mask>: {sentence}"`` (TREC)."""

    def render(row: Row) -> Example:
        lead = f"{MASK}: "
        prompt = lead + row["sentence"]
        span = (len(lead), len(prompt))
        return Example(prompt, words, (row["label"],), content_free=f"{MASK}:", first=span)

    return render


def tidy(names: tuple[str, ...], row: Row) -> Iterator[Row]:
    """Yield the canonical row ``{"sentence", "label"}``; white space around the text is removed."""
    value = field(row, "label_text", "label", "Sentiment")
    yield {"sentence": _text(row), "label": class_index(value, names)}


def _text(row: Row) -> str:
    return str(field(row, "sentence", "text", "content", "Text")).strip(BLANK)


def tidy_trec(row: Row) -> Iterator[Row]:
    """Yield the canonical row; the hub and the original files number the classes differently from LM-BFF."""
    if row.get("coarse_label") is not None:
        label = TREC_HUB[class_index(row["coarse_label"], TREC_CODES)]
    else:
        label = class_index(field(row, "label"), TREC_CODES)
    yield {"sentence": _text(row), "label": label}


def tidy_imdb(row: Row) -> Iterator[Row]:
    """Yield the canonical row; HTML line breaks, which every review is full of, become spaces."""
    for canonical in tidy(POLARITY, row):
        yield canonical | {"sentence": " ".join(canonical["sentence"].replace("<br />", " ").split())}


def _from_one(parse: Callable[[Path], Numbered], path: Path) -> Numbered:
    """Yield the rows of a file of AG News, whose labels that are written numbers count from 1; numbers do from 0."""
    for number, row in parse(path):
        if isinstance(row, dict):
            label = row.get("label")
            if isinstance(label, str) and label.strip(BLANK).isdecimal():
                row = row | {"label": int(label) - 1}
        yield number, row


def _trec_lines(path: Path) -> Numbered:
    """Yield the rows of the original files, ``COARSE:fine question text``."""
    for number, row in rated_lines(path, encoding="latin-1"):
        yield number, row | {"label": row["label"].partition(":")[0]}


LMBFF: Final = layout(partial(table, delimiter=",", columns=("label", "text")), train="train.csv", test="test.csv")
"""LM-BFF's folders: two columns, no header."""

_cola = partial(plain_table, columns=("source", "label", "star", "sentence"))
_agnews = partial(_from_one, partial(table, columns=("text", "label")))


def _stsa(kind: str) -> Layout:
    return layout(rated_lines, **{split: f"stsa.{kind}.{split}" for split in ("train", "dev", "test")})


def _two_files(negative: str, positive: str) -> Layout:
    return (*layout(one_class(0, "latin-1"), pool=negative), *layout(one_class(1, "latin-1"), pool=positive))


def _task(
    name: str,
    title: str,
    lead: str,
    *,
    source: str,
    subfolders: tuple[str, ...],
    layouts: tuple[Layout, ...],
    tidy_row: Callable[[Row], Iterable[Row]] | None = None,
    hub: tuple[str, str | None] | None,
    hub_splits: tuple[str, str] = ("train", "test"),
    labels: tuple[str, ...] = POLARITY,
    words: tuple[str, ...] = GOOD_BAD,
    metrics: tuple[str, ...] = ("accuracy",),
    render_unaligned: Render | None = None,
    render_masked: Render | None = None,
    first_limit: int | None = 110,
    max_length: int = 128,
) -> Task:
    """Return a task whose prompts are ``"{sentence}{lead}"`` and ``"{sentence}{lead}<mask>."``."""
    return Task(
        name=name,
        title=title,
        kind="classification",
        metrics=metrics,
        render=by_label(f"{{sentence}}{lead}", words, lead.lstrip(" ")),
        render_unaligned=render_unaligned,
        render_masked=render_masked or masked(words, lead),
        read=Folder(subfolders=subfolders, layouts=layouts, tidy=tidy_row or partial(tidy, labels)),
        hub=hub,
        hub_splits=hub_splits,
        source=source,
        labels=labels,
        label_words=words,
        masked_words=words,
        first_limit=first_limit,
        max_length=max_length,
    )


SST2: Final = _task(
    "sst2",
    "SST-2",
    " It was",
    source=f"Socher et al. 2013, GLUE; {SENTIMENT_SOURCE}; unaligned: ZO-Bench (arXiv 2402.11592)",
    # ZO-Bench's is the sentence and the word. Its calibration prompt is one space, which here is the word's own.
    render_unaligned=by_label("{sentence}", GOOD_BAD),
    subfolders=("sst2", "SST-2"),
    layouts=(layout(plain_table, train="train.tsv", test="dev.tsv"), _stsa("binary")),
    hub=("nyu-mll/glue", "sst2"),
    hub_splits=("train", "validation"),
    first_limit=None,
)

TASKS: Final = (
    SST2,
    _task(
        "sst5",
        "SST-5",
        " It was",
        source=f"Socher et al. 2013; {SENTIMENT_SOURCE}; causal form ours",
        subfolders=("sst5", "sst-5"),
        layouts=(_stsa("fine"), LMBFF),
        hub=("SetFit/sst5", None),
        labels=GRADES,
        words=(" terrible", " bad", " okay", " good", " great"),
    ),
    _task(
        "mr",
        "MR",
        " It was",
        source=f"Pang and Lee 2005 (unsplit files: test drawn by a fixed permutation); {LIKE_SST2}",
        subfolders=("mr",),
        layouts=(_two_files("rt-polarity.neg", "rt-polarity.pos"), LMBFF),
        hub=("cornell-movie-review-data/rotten_tomatoes", None),
    ),
    _task(
        "cr",
        "CR",
        " It was",
        source=f"Hu and Liu 2004 (unsplit files: test drawn by a fixed permutation); {LIKE_SST2}",
        subfolders=("cr",),
        layouts=(_two_files("custrev.neg", "custrev.pos"), LMBFF),
        hub=("SetFit/CR", None),
    ),
    _task(
        "mpqa",
        "MPQA",
        " It was",
        source=f"Wiebe et al. 2005 (mpqa.all: test drawn by a fixed permutation); {LIKE_SST2}",
        subfolders=("mpqa",),
        layouts=(layout(partial(rated_lines, encoding="latin-1"), pool="mpqa.all"), LMBFF),
        hub=None,
    ),
    _task(
        "subj",
        "Subj",
        " This is",
        source=f"Pang and Lee 2004; {SENTIMENT_SOURCE}; causal form ours",
        subfolders=("subj",),
        layouts=(_two_files("quote.tok.gt9.5000", "plot.tok.gt9.5000"), LMBFF),
        hub=("SetFit/subj", None),
        labels=SUBJECTIVITY,
        words=(" subjective", " objective"),
    ),
    _task(
        "trec",
        "TREC",
        " Type:",
        source=f"Li and Roth 2002; {SENTIMENT_SOURCE}; causal form ours",
        render_masked=masked_before(TYPE_WORDS),
        subfolders=("trec",),
        layouts=(layout(_trec_lines, train="train_5500.label", test="TREC_10.label"), LMBFF),
        tidy_row=tidy_trec,
        hub=("CogComp/trec", None),
        labels=TYPES,
        words=TYPE_WORDS,
    ),
    _task(
        "cola",
        "CoLA",
        " This is",
        source=f"Warstadt et al. 2019 (arXiv 1805.12471), GLUE; {SENTIMENT_SOURCE}; causal form ours",
        subfolders=("cola", "CoLA"),
        layouts=(layout(_cola, train="train.tsv", test="dev.tsv"),),
        hub=("nyu-mll/glue", "cola"),
        hub_splits=("train", "validation"),
        labels=ACCEPTABILITY,
        words=(" incorrect", " correct"),
        metrics=("mcc", "accuracy"),
        first_limit=None,
    ),
    _task(
        "imdb",
        "IMDb",
        " It was",
        source="Maas et al. 2011; local subset of Kaushik et al. 2020 (arXiv 1909.12434); SST-2's prompt",
        subfolders=("imdb",),
        layouts=(layout(table, train="train.tsv", dev="dev.tsv", test="test.tsv"),),
        tidy_row=tidy_imdb,
        hub=("stanfordnlp/imdb", None),
        first_limit=480,
        max_length=512,
    ),
    _task(
        "agnews",
        "AG News",
        " This is about",
        source="Zhang et al. 2015 (arXiv 1509.01626); prompts ours; the local dev.tsv is used for training",
        subfolders=("agnews", "ag_news"),
        layouts=((*layout(_agnews, train="dev.tsv"), *layout(partial(_from_one, jsonl), test="test.jsonl")),),
        hub=("fancyzhx/ag_news", None),
        labels=TOPICS,
        words=(" world", " sports", " business", " technology"),
    ),
    bare(SST2),
)

"""The record of a task: where its rows come from and how a row becomes a prompt.

A task has no behaviour of its own. Rows are plain dictionaries in *canonical* form, which is the form of the
Hugging Face hub with one exception: a class label is always an ``int``. Readers (`gradless.tasks.files`)
convert every other format to it, so that one prompt function serves all sources.

Text convention, the same for every task: a prompt never ends with a space; the space belongs to the option
(prompt ``"so"``, option ``" the toilet filled"``). The concatenation is what matters, and sub-word tokenizers
want the space on the word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from gradless.errors import BadInput
from gradless.tasks.files import BLANK, Folder, ReadRow, Row, listed

MASK: Final = "<mask>"
"""Placeholder in masked prompts; the encoder replaces it by the tokenizer's own mask token."""

MASK_IN_ROW: Final = f"the text holds {MASK!r}, which marks the word that a masked model fills in: take it out"
"""What is wrong with a row whose masked prompt has two masks, its own and the template's."""

Kind: TypeAlias = Literal["classification", "choice", "generation"]


class Example(NamedTuple):
    """A row as text.

    The full text of option ``i`` is ``prompt + options[i] + tail``; in a masked prompt the option is the word
    that stands at `MASK` instead (its leading space included, because no literal space precedes the mask).
    """

    prompt: str
    options: tuple[str, ...]
    """Candidates in label order, appended verbatim; empty for pure generation."""
    correct: tuple[int, ...]
    """Indices of the right options; training uses ``correct[0]``."""
    answers: tuple[str, ...] = ()
    """Generation: accepted answers, the first one is trained on (see `target`)."""
    content_free: str = ""
    """The prompt without its content, for calibration with the same options; may be empty."""
    tail: str = ""
    """Text after the option; unused by the built-in tasks."""
    first: tuple[int, int] | None = None
    """Masked prompts: ``prompt[first[0]:first[1]]`` is the first sentence (see `Task.first_limit`)."""
    contents: tuple[tuple[int, int], ...] = ()
    """Where the row's own text stands in the prompt, as pairs like ``first``. If the prompt is too long, the longest of
    these is shortened; without any, the prompt loses its beginning, as MeZO's prompts do."""
    columns: Mapping[str, Any] = MappingProxyType({})
    """The row that the text is of, which reward functions are told."""


Render: TypeAlias = Callable[[Row], Example]
"""A prompt function: a row in canonical form -> its text."""


class Splits(NamedTuple):
    """The rows of one run, in the order in which they were drawn."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]
    fingerprint: str
    """SHA-256 of the canonical JSON of the three lists: equal fingerprints mean equal data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task. To add one, write one such record and put it into the table of its module.

    Raises:
        BadInput: two classes have the same word.
    """

    name: str
    """Lower-case, as on the command line."""
    title: str
    version: int = 1
    """Raised when a prompt or a reader changes, so that old results can be told from new ones."""
    kind: Kind
    """``classification``: cross-entropy over the options; ``choice``: teacher forcing on the gold option;
    ``generation``: teacher forcing on the gold answer, scored by generating."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Names in `gradless.lm.metrics.METRICS`; the first one is the main one."""
    rewards: tuple[str, ...] = ()
    """Generation: built-in rewards that verify its answers; it is trained on them unless others are named."""
    render: Render | None
    """Prompt for causal language models."""
    render_unaligned: Render | None = None
    """`render` without the words that align the task to pre-training ("{text} It was great"): the same options, in
    the same order. Only where one was published; `gradless.tasks.unaligned` makes it the task's prompt."""
    render_masked: Render | None = None
    """Prompt for masked language models."""
    read: Folder | None
    """``read(folder)`` gives the rows of local files by split; None for a task made from a user's files."""
    generate: Callable[[], dict[str, list[Row]]] | None = None
    """Returns the rows by split without any file, the same everywhere; they are used where no folder is named."""
    hub: tuple[str, str | None] | None = None
    """Id and configuration for `datasets.load_dataset`."""
    hub_splits: tuple[str, str] = ("train", "validation")
    """Names on the hub of what is used as train and as test."""
    source: str
    """The data set's paper and where the prompt comes from."""
    labels: tuple[str, ...] | None = None
    """Classification: the names of the classes, in label order."""
    label_words: tuple[str, ...] | None = None
    """The options of `render` when they are the same in every row, else None."""
    masked_words: tuple[str, ...] | None = None
    """The same for `render_masked`."""
    first_limit: int | None = None
    """Masked prompts: most tokens of the first sentence."""
    max_length: int = 128
    """Masked prompts: most tokens in all; the tail is cut, the mask is kept."""
    max_new_tokens: int = 50
    """Generation: most new tokens, decoded greedily..."""
    stop: str = "\n"
    """...until this text (or the end-of-sequence token) appears; empty: only that token ends it."""
    more_stops: tuple[str, ...] = ()
    """Other texts that end it."""

    def __post_init__(self) -> None:
        for words in (self.label_words, self.masked_words):
            check_words_differ(words or (), self.labels)

    @property
    def stops(self) -> tuple[str, ...]:
        """All texts that end an answer."""
        return tuple(stop for stop in (self.stop, *self.more_stops) if stop)


def check_words_differ(words: Sequence[str], labels: Sequence[str] | None = None) -> None:
    """Refuse options of which two are the same but for white space around them.

    Args:
        words: The options.
        labels: Their names; None numbers them from 0.

    Raises:
        BadInput: Two are the same; the message names both.

    Example:
        >>> check_words_differ((" bad", " good"))
    """
    bare = [word.strip(BLANK) for word in words]
    for index, word in enumerate(bare):
        if (other := bare.index(word)) < index:
            first, second = ((labels or [*map(str, range(len(bare)))])[i] for i in (other, index))
            raise BadInput(f"the labels {first!r} and {second!r} have the same word {word!r}: give each its own word")


def check_one_mask(rows: Sequence[Mapping[str, Any]], prompts: Sequence[str]) -> None:
    """Refuse rows that hold the text of a mask themselves.

    Args:
        rows: Of a task.
        prompts: Their masked prompts.

    Raises:
        BadInput: Some do; the message names their files and lines where these are known.
    """
    bad = [(row, prompt) for row, prompt in zip(rows, prompts, strict=True) if prompt.count(MASK) > 1]
    lines: dict[str, list[int]] = {}
    for row, _ in bad:
        if isinstance(row, ReadRow):
            lines.setdefault(row.source, []).append(row.number)
    if lines:
        sources = (
            f"{name}, {listed({('line', MASK_IN_ROW): sorted(some)}, len(rows))}" for name, some in lines.items()
        )
        raise BadInput("; ".join(sources))
    if bad:
        raise BadInput(f"{len(bad)} of {len(rows)} rows, such as {bad[0][1][:60]!r}: {MASK_IN_ROW}")


def by_label(prompt: str, words: tuple[str, ...], content_free: str = "") -> Render:
    """Return the prompt function of a classification task: ``prompt`` with the row's fields in braces, then a word.

    Args:
        prompt: A format string over the fields of a row.
        words: The options, in label order.
        content_free: The prompt without its content, for calibration.

    Example:
        >>> by_label("{sentence} It was", (" bad", " good"))({"sentence": "a joy .", "label": 1})[:3]
        ('a joy . It was', (' bad', ' good'), (1,))
    """

    def render(row: Row) -> Example:
        return Example(prompt.format_map(row), words, (row["label"],), content_free=content_free)

    return render


def without_alignment(task: Task) -> Task:
    """Return the task with `Task.render_unaligned` as its prompt and no masked prompt, since nobody published one."""
    return replace(
        task,
        title=f"{task.title} without the aligning prompt",
        render=task.render_unaligned,
        render_masked=None,
        masked_words=None,
        first_limit=None,
    )


def bare(task: Task) -> Task:
    """Return `without_alignment` as a task of its own, named ``<name>-bare``."""
    paper = task.source.partition(";")[0]
    return replace(
        without_alignment(task),
        name=f"{task.name}-bare",
        render_unaligned=None,
        source=f"{paper}; no-alignment prompt of ZO-Bench (arXiv 2402.11592)",
    )


def target(task: Task, example: Example) -> str:
    """Return what training appends to the prompt: the gold option, or for generation the answer and `Task.stop`.

    Example:
        >>> from gradless.tasks import get
        >>> sst2 = get("sst2")
        >>> target(sst2, sst2.render({"sentence": "a joy .", "label": 1}))
        ' great'
    """
    if task.kind == "generation":
        return f" {example.answers[0]}{task.stop}"
    return example.options[example.correct[0]]

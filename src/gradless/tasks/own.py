"""Tasks made from a user's own files: a template, a label column and words for the labels, no Python.

``{column}`` in the template stands for that column of the row. Without ``{mask}`` the template is a causal
prompt that the label word follows; with ``{mask}`` it is a masked prompt that the word is filled into.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, unknown
from gradless.system import terminal, typed
from gradless.tasks import own_rows
from gradless.tasks.base import MASK, Example, Splits, Task, check_words_differ
from gradless.tasks.files import BLANK, Row, parse_json
from gradless.tasks.sources import Source, beside, resolve
from gradless.tasks.split import draw
from gradless.tasks.text_rows import Wanted

PATHS: Final = ("train", "dev", "test")
TEXTS: Final = ("name", "template", "label_column", "delimiter", "encoding")
LABELLED: Final = ("label_column", "labels")


class Template(NamedTuple):
    """A parsed template: text pieces, each followed by a column, ``"mask"``, or nothing (the last one)."""

    pieces: tuple[tuple[str, str | None], ...]
    columns: tuple[str, ...]
    masked: bool


def custom(
    *,
    template: str,
    label_column: str,
    labels: str | Mapping[str, str],
    train: Any = None,
    dev: Any = None,
    test: Any = None,
    name: str = "custom",
    num_train: int | None = None,
    num_dev: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    k_shot: int | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    say: Callable[[str], None] = terminal.say,
) -> tuple[Task, Splits]:
    """Return a classification task made from a user's own rows.

    Rows are named as on the command line: a CSV, TSV, JSONL, Parquet or Arrow file, a pattern of several, a folder that
    `datasets` saved or that holds such files (``folder:split``), or ``hub:owner/name:split``, which is fetched. Or they
    are in memory: a `datasets.Dataset`, a table of pyarrow, pandas or polars, or a list of dictionaries.

    Args:
        template: The prompt, such as ``"{text} It was"``; write ``{{`` for a brace.
        label_column: Name of the column with the label.
        labels: Label value -> word, as a mapping, as ``"0=terrible,1=great"``, or as the text of a JSON object, which
            can hold any character; words may be several tokens.
            A word gets a leading space unless it has one or the template ends with white space; spaces (not
            newlines) that the template ends with move to the words, as everywhere in `gradless.tasks`.
        train: Training rows; without it the task can only be evaluated.
        dev: Rows for model selection; without it ``num_dev`` training rows are held out.
        test: Test rows.
        name: Name of the task in results.
        num_train: Rows to draw; None takes all (of the training rows: all that are not held out).
        num_dev: The same for dev; None takes all of ``dev``, and holds nothing out if there is no such file.
        num_test: The same for test.
        seed: Of the permutations, see `gradless.tasks.load`.
        k_shot: See `gradless.tasks.load`.
        delimiter: What separates the cells of tables; None recognises it by the names of the columns.
        encoding: Of the files; None takes UTF-8, or what a byte order mark names.
        say: Receives a line for each thing that was guessed or left out.

    Returns:
        The task, and its rows as ``{"columns": {...}, "label": index}``.

    Raises:
        BadInput: The template, the labels or a file (named with its line) cannot be used, or nothing can be fetched.
    """
    parsed = parse_template(template)
    if label_column in parsed.columns:
        raise BadInput(f"the template shows the label column '{label_column}' to the model: take it out")
    words = checked_labels(labels)
    paths = {"train": train, "dev": dev, "test": test}
    if all(source is None for source in paths.values()):
        raise BadInput("no data given: pass a train or a test file")
    if k_shot is not None and dev is not None:
        raise BadInput("--k-shot takes dev rows from the training rows: leave out --dev, or give --num-train instead")
    sources = {split: resolve(source, split) for split, source in paths.items() if source is not None}
    task = _task(name, parsed, words)
    wanted = Wanted(parsed.columns, label_column, tuple(words), delimiter, encoding)
    read = read_all({source.name: source for source in sources.values()}, wanted, say)
    where = ", ".join(source.name for source in sources.values())
    sizes = {"num_train": num_train, "num_dev": num_dev, "num_test": num_test}
    pools = {split: read[source.name] for split, source in sources.items()}
    splits = draw(task, pools, where=where, seed=seed, k_shot=k_shot, **sizes)
    return task, splits


def read_all(sources: Mapping[str, Source], wanted: Wanted, say: Callable[[str], None]) -> dict[str, list[Row]]:
    """Return the rows of each source by its name; what is wrong with any of them is told at once."""
    rows: dict[str, list[Row]] = {}
    refused: list[str] = []
    for name, source in sources.items():
        try:
            rows[name] = own_rows.read(source, wanted, say)
        except BadInput as error:
            refused.append(str(error))
    if refused:
        raise BadInput("; ".join(dict.fromkeys(refused)))
    return rows


def parse_template(template: str) -> Template:
    """Return a template, split at its ``{columns}``.

    Raises:
        BadInput: Unbalanced braces, format specifications, no column at all, or more than one mask.
    """
    fix = "write {column} for a column and {{ for a brace"
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise BadInput(f"the template {template!r} cannot be read ({error}): {fix}") from error
    if any(column == "" or spec or conversion for _, column, spec, conversion in parsed):
        raise BadInput(f"the template {template!r} has a field that is not just a column's name: {fix}")
    pieces = tuple((text, column) for text, column, _, _ in parsed)
    named = [column for _, column in pieces if column is not None]
    columns = tuple(dict.fromkeys(column for column in named if column != "mask"))
    if not columns:
        raise BadInput(f"the template {template!r} shows no column: {fix}")
    if named.count("mask") > 1:
        raise BadInput(f"the template {template!r} has more than one {{mask}}: keep one")
    if "mask" in named and any(MASK in text for text, _ in pieces):
        raise BadInput(f"the template {template!r} holds {MASK!r} beside {{mask}}: take it out")
    return Template(pieces, columns, "mask" in named)


def parse_labels(text: str) -> dict[str, str]:
    """Return the words of labels written as ``"0=terrible,1=great"`` or as a JSON object, by label value.

    Raises:
        BadInput: An item is not VALUE=WORD, a value occurs twice, or the words do not tell the labels apart.

    Example:
        >>> parse_labels("0=terrible, 1=not bad at all")
        {'0': 'terrible', '1': 'not bad at all'}
        >>> parse_labels('{"a=b": "yes", "c, d": "no"}')
        {'a=b': 'yes', 'c, d': 'no'}
    """
    if text.lstrip(BLANK).startswith("{"):
        try:
            values = parse_json(text)
        except ValueError as error:
            raise BadInput(f'the labels are broken JSON ({error}): write them as {{"0": "terrible"}}') from None
        return _checked_labels(typed.value("labels", values, dict[str, str]))
    labels: dict[str, str] = {}
    for item in text.split(","):
        value, sign, option = item.partition("=")
        value = value.strip(BLANK)
        if not sign or not value:
            fix = 'write them as 0=terrible,1=great, or as JSON if one holds a comma or "="'
            raise BadInput(f"'{item}' in the labels is not VALUE=WORD: {fix}")
        if value in labels:
            raise BadInput(f"the labels give '{value}' twice: give each value one word")
        labels[value] = option
    return _checked_labels(labels)


def write_labels(labels: Mapping[str, str]) -> str:
    """Return labels in the form that `parse_labels` reads, the short one if it can hold them."""
    text = ",".join(f"{value}={option}" for value, option in labels.items())
    try:
        short = parse_labels(text) == labels
    except BadInput:
        short = False
    return text if short else json.dumps(dict(labels), ensure_ascii=False)


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    if len(labels) < 2:
        raise BadInput(f"{len(labels)} label(s) given: a task needs at least two, as in 0=terrible,1=great")
    words = [option.strip(BLANK) for option in labels.values()]
    if "" in words:
        raise BadInput("a label has an empty word: give each value a word, as in 0=terrible,1=great")
    check_words_differ(words, [*map(str, labels)])
    return {str(value): option for value, option in labels.items()}


def read_task_file(path: Path) -> dict[str, Any]:
    """Return the keyword arguments of `custom` that a TOML file holds.

    ``template``, ``label_column``, a table ``labels`` (or ``"0=terrible,1=great"``), and ``train``, ``dev``,
    ``test``, ``name``, ``delimiter``, ``encoding``; without the labels those of `prompts`. Paths are relative to the
    folder of the TOML file.

    Raises:
        BadInput: Missing file, broken TOML, unknown, missing or mistyped keys.
    """
    entries = typed.load(path)
    hints = {**dict.fromkeys((*PATHS, *TEXTS), str), "labels": str | dict[str, str]}
    with typed.within(path):
        for key in entries:
            if key not in hints:
                raise BadInput(unknown("key", key, hints))
        values = {key: typed.value(key, value, hints[key]) for key, value in entries.items()}
        for key in ("template", *(LABELLED if any(key in values for key in LABELLED) else ())):
            if key not in values:
                raise BadInput(f"{key} is missing: add it")
    return {key: beside(value, path.parent) if key in PATHS else value for key, value in values.items()}


def checked_labels(labels: str | Mapping[str, str]) -> dict[str, str]:
    """Return the words of labels by label value, written in any of the forms that `custom` takes.

    Raises:
        BadInput: they cannot be read, or do not tell the labels apart.
    """
    return parse_labels(labels) if isinstance(labels, str) else _checked_labels(labels)


def own_task(template: str, labels: str | Mapping[str, str], name: str = "custom") -> Task:
    """Return the classification task of a template and label words alone; see `custom` for both.

    Its rows are ``{"columns": {...}, "label": index}``.

    Raises:
        BadInput: the template or the labels cannot be used.
    """
    return _task(name, parse_template(template), checked_labels(labels))


def _task(name: str, template: Template, labels: dict[str, str]) -> Task:
    tail = "" if template.pieces[-1][1] is not None else template.pieces[-1][0]
    bare = not template.masked and tail.endswith(("\n", "\t", "\r"))
    words = tuple(option if bare or option.startswith(" ") else f" {option}" for option in labels.values())
    render = partial(_render, template, words)
    return Task(
        name=name,
        title=name,
        kind="classification",
        metrics=("accuracy", "macro_f1"),
        render=None if template.masked else render,
        render_masked=render if template.masked else None,
        read=None,
        source="your own files",
        labels=tuple(labels),
        label_words=None if template.masked else words,
        masked_words=words if template.masked else None,
        max_length=512,
    )


def _render(template: Template, words: tuple[str, ...], row: Row) -> Example:
    blank = dict.fromkeys(template.columns, "")
    prompt, contents = fill(template, row["columns"])
    return Example(prompt, words, (row["label"],), content_free=fill(template, blank)[0].lstrip(" "), contents=contents)


def fill(template: Template, columns: Mapping[str, str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the prompt, and where the columns stand in it."""
    text, contents = "", []
    for piece, column in template.pieces:
        text += piece
        if column == "mask":
            text = text.rstrip(" ") + MASK  # the space before the mask belongs to the word
        elif column is not None:
            start = len(text)
            text += columns[column].replace(MASK, "").strip(BLANK) if template.masked else columns[column]
            contents.append((start, len(text)))
    text = text.rstrip(" ")
    return text, tuple((start, end) for start, end in contents if start < end <= len(text))

"""Tasks made from a user's own files: a template, a label column and words for the labels, no Python.

``{column}`` in the template stands for that column of the row. Without ``{mask}`` the template is a causal
prompt that the label word follows; with ``{mask}`` it is a masked prompt that the word is filled into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, unknown
from gradless.system import typed
from gradless.tasks.base import MASK, Example, Splits, Task
from gradless.tasks.files import BLANK, Numbered, Row, jsonl, table
from gradless.tasks.split import draw

PARSERS: Final[dict[str, Callable[[Path], Numbered]]] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".json": jsonl,
    ".csv": partial(table, delimiter=","),
    ".tsv": table,
}

PATHS: Final = ("train", "dev", "test")
TEXTS: Final = ("name", "template", "label_column")


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
    train: Path | None = None,
    dev: Path | None = None,
    test: Path | None = None,
    name: str = "custom",
    num_train: int | None = None,
    num_dev: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    k_shot: int | None = None,
) -> tuple[Task, Splits]:
    """Return a classification task made from JSONL, CSV or TSV files (TSV quoted as CSV is; all may be gzipped).

    Args:
        template: The prompt, such as ``"{text} It was"``; write ``{{`` for a brace.
        label_column: Name of the column with the label.
        labels: Label value -> word, as a mapping or as ``"0=terrible,1=great"``; words may be several tokens.
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

    Returns:
        The task, and its rows as ``{"columns": {...}, "label": index}``.

    Raises:
        BadInput: The template, the labels or a file (named with its line) cannot be used.
    """
    parsed = parse_template(template)
    if label_column in parsed.columns:
        raise BadInput(f"the template shows the label column '{label_column}' to the model: take it out")
    words = parse_labels(labels) if isinstance(labels, str) else _checked_labels(labels)
    paths = {"train": train, "dev": dev, "test": test}
    files = {split: Path(path) for split, path in paths.items() if path is not None}
    if not files:
        raise BadInput("no data given: pass a train or a test file")
    task = _task(name, parsed, words)
    pools = {split: _read(path, parsed.columns, label_column, tuple(words)) for split, path in files.items()}
    where = ", ".join(map(str, files.values()))
    sizes = {"num_train": num_train, "num_dev": num_dev, "num_test": num_test}
    return task, draw(task, pools, where=where, seed=seed, k_shot=k_shot, **sizes)


def parse_template(template: str) -> Template:
    """Return a template, split at its ``{columns}``.

    Raises:
        BadInput: Unbalanced braces, format specifications, no column at all, or ``{mask}`` more than once.
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
    return Template(pieces, columns, "mask" in named)


def parse_labels(text: str) -> dict[str, str]:
    """Return the words of labels written as ``"0=terrible,1=great"``, by label value.

    Raises:
        BadInput: An item is not VALUE=WORD, a value occurs twice, or the words do not tell the labels apart.

    Example:
        >>> parse_labels("0=terrible, 1=not bad at all")
        {'0': 'terrible', '1': 'not bad at all'}
    """
    labels: dict[str, str] = {}
    for item in text.split(","):
        value, sign, option = item.partition("=")
        value = value.strip(BLANK)
        if not sign or not value:
            raise BadInput(f"'{item}' in the labels is not VALUE=WORD: write them as 0=terrible,1=great")
        if value in labels:
            raise BadInput(f"the labels give '{value}' twice: give each value one word")
        labels[value] = option
    return _checked_labels(labels)


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    if len(labels) < 2:
        raise BadInput(f"{len(labels)} label(s) given: a task needs at least two, as in 0=terrible,1=great")
    words = [option.strip(BLANK) for option in labels.values()]
    if "" in words:
        raise BadInput("a label has an empty word: give each value a word, as in 0=terrible,1=great")
    if len(set(words)) < len(words):
        raise BadInput(f"two labels have the same word ({', '.join(words)}): the model could not tell them apart")
    return {str(value): option for value, option in labels.items()}


def read_task_file(path: Path) -> dict[str, Any]:
    """Return the keyword arguments of `custom` that a TOML file holds.

    ``template``, ``label_column``, a table ``labels`` (or ``"0=terrible,1=great"``), and ``train``, ``dev``,
    ``test``, ``name``. Paths are relative to the folder of the TOML file.

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
        for key in ("template", "label_column", "labels"):
            if key not in values:
                raise BadInput(f"{key} is missing: add it")
    return {key: path.parent / value if key in PATHS else value for key, value in values.items()}


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
    return Example(
        _fill(template, row["columns"]),
        words,
        (row["label"],),
        content_free=_fill(template, blank).lstrip(" "),
    )


def _fill(template: Template, columns: Mapping[str, str]) -> str:
    text = ""
    for piece, column in template.pieces:
        text += piece
        if column == "mask":
            text = text.rstrip(" ") + MASK  # the space before the mask belongs to the word
        elif column is not None:
            text += columns[column].replace(MASK, "") if template.masked else columns[column]
    return text.rstrip(" ")


def _read(path: Path, columns: tuple[str, ...], label_column: str, values: tuple[str, ...]) -> list[Row]:
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if kind not in PARSERS:
        raise BadInput(f"{path} is of no known type: name it .jsonl, .csv or .tsv (each may end in .gz)")
    rows = []
    for number, raw in PARSERS[kind](path):
        line = f"{path}, line {number}"
        for column in (*columns, label_column):
            if raw.get(column) is None:
                raise BadInput(f"{line}: no column '{column}': there are {', '.join(raw)}")
        label = _text(line, label_column, raw[label_column]).strip(BLANK)
        if label not in values:
            raise BadInput(f"{line}: label '{label}' is none of {', '.join(values)}: add it to the labels")
        texts = {column: _text(line, column, raw[column]).strip(BLANK) for column in columns}
        rows.append({"columns": texts, "label": values.index(label)})
    if not rows:
        raise BadInput(f"{path} holds no rows: give a file with at least one")
    return rows


def _text(line: str, column: str, value: Any) -> str:
    """Return a cell as text; JSON booleans and numbers as JSON writes them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise BadInput(f"{line}: column '{column}' holds a {type(value).__name__}: give text or a number")

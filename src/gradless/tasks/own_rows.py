"""Rows of a user's own data, checked: the columns as text, the label as an index.

Everything that is wrong in a file is told in one sentence, with the lines.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from gradless.errors import BadInput, unknown
from gradless.system.typed import SHORT
from gradless.tasks import column_names
from gradless.tasks.arrow_rows import ArrowRows
from gradless.tasks.files import BLANK, SHOWN_LINES, SHOWN_PROBLEMS, Row, Unusable, listed
from gradless.tasks.sources import Listed, Part, Source
from gradless.tasks.text_rows import Content, Record, Wanted, read_text

HIDDEN: Final = "label '-1'"
"""How the sentence about a label begins that a data set hides."""
ONE_ROW: Final = "give a dictionary with the columns"
TYPED: Final = (Decimal, datetime.date, datetime.time, datetime.timedelta)
"""Cells that are neither text nor numbers, and read as Python writes them."""


def read(source: Source, wanted: Wanted, say: Callable[[str], None]) -> list[Row]:
    """Return rows as ``{"columns": {...}, "label": index}``; without the label where `Wanted.whole` is set.

    Args:
        source: files, data sets or rows in memory (`gradless.tasks.sources.resolve`).
        wanted: columns and labels.
        say: receives a line for each thing that was guessed or left out.

    Raises:
        BadInput: the source or some of its rows cannot be used; the message names all of them.
    """
    contents = [_content(part, wanted) for part in source.parts]
    content = contents[0] if len(contents) == 1 else _joined(source, contents)
    rows, more = _checked(source.name, content, wanted)
    short = re.sub(r"@([0-9a-f]{7})[0-9a-f]{33}", r"@\1", source.name.rpartition("/")[2] or source.name)
    for note in dict.fromkeys((*content.notes, *more)):
        say(f"{short}: {note}")
    return rows


def _content(part: Part, wanted: Wanted) -> Content:
    """Return the records of one part, which has all columns."""
    if isinstance(part, Path):
        content, name = read_text(part, wanted), str(part)
    elif isinstance(part, ArrowRows):
        content, name = _arrow(part, wanted), part.name
    else:
        content, name = _in_memory(part), part.name
    if renamed := column_names.spaced(content.columns, wanted.names):
        columns = tuple(renamed.get(name, name) for name in content.columns)
        records = (one._replace(cells=dict(column_names.named(one.cells, wanted.names))) for one in content.records)
        content = Content(records, content.unit, [*content.notes, column_names.note(renamed)], columns)
    for column in wanted.names if content.columns else ():
        if column not in content.columns:
            raise BadInput(f"{name}: {unknown('column', column, content.columns)}")
    return content


def _in_memory(part: Listed) -> Content:
    names = tuple(dict.fromkeys(name for row in part.rows if isinstance(row, dict) for name in row))
    records = (
        Record(number, row) if isinstance(row, dict) else Record(number, {}, f"it is a {type(row).__name__}: {ONE_ROW}")
        for number, row in enumerate(part.rows, start=1)
    )
    return Content(records, "row", [], names)


def _joined(source: Source, contents: Sequence[Content]) -> Content:
    """Return the records of several parts, which are numbered within their file."""
    names = [part.name for part in source.parts]  # of a path its last name
    records = (
        record._replace(number=f"{record.number} of {name.rpartition('/')[2]}")
        for name, content in zip(names, contents, strict=True)
        for record in content.records
    )
    notes = [note for content in contents for note in content.notes]
    return Content(records, contents[0].unit, notes, contents[0].columns)


def _arrow(table: ArrowRows, wanted: Wanted) -> Content:
    """Return the rows of a table of typed columns; classes that have names may be labelled by these."""
    notes: list[str] = []
    written = {name: name for name in wanted.names if name in table.columns}
    written |= {name: column for column, name in column_names.spaced(table.columns, wanted.names).items()}
    needed = [*dict.fromkeys(table.columns if wanted.whole else written.values())]
    label_column = written.get(wanted.label_column)
    for name in needed:
        if table.columns.count(name) > 1:
            raise BadInput(f"{table.name}: several columns are named {name!r}: rename or remove all but one")
        if name in written.values() and (kind := table.unreadable(name)):
            raise BadInput(f"{table.name}: column {name!r} holds {kind}: give a column of text or numbers")
    classes = () if label_column is None else table.class_names(label_column)
    by_name = _names_classes(table.name, classes, wanted.labels) if classes else False
    if classes:
        notes.append(f"labels are {'names' if by_name else 'numbers'} of classes: {_listed_classes(classes)}")

    def records() -> Iterator[Record]:
        number = 0
        for batch in table.rows(needed) if len(written) == len({*wanted.names}) else ():
            for cells in batch:
                number += 1
                if by_name and label_column is not None:
                    index = cells[label_column]
                    if isinstance(index, int) and 0 <= index < len(classes):
                        cells[label_column] = classes[index]
                yield Record(number, cells)

    return Content(records(), "row", notes, table.columns)


def _names_classes(name: str, classes: tuple[str, ...], values: tuple[str, ...]) -> bool:
    """Return whether labels are the names of classes, or else their numbers.

    Raises:
        BadInput: some are neither.
    """
    for known in (classes, tuple(map(str, range(len(classes))))):
        lookup = Labels(known)
        if all(lookup.index(value) is not None for value in values):
            return known is classes
    raise BadInput(
        f"{name}: the labels {', '.join(values[:SHOWN_LINES])} are neither names nor numbers of its classes: "
        f"{_listed_classes(classes)}: give these names or numbers"
    )


def _listed_classes(classes: tuple[str, ...]) -> str:
    listed = ", ".join(f"{index} is {name!r}" for index, name in enumerate(classes[:SHOWN_LINES]))
    return f"{listed}{', ...' if len(classes) > SHOWN_LINES else ''}"


class Labels:
    """Looks up the index of a label: as it is written, else without case, spaces and ``.0``.

    Attributes:
        read_as: what was found the second way, by how it is written in the file.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self.values = values
        self.read_as: dict[str, str] = {}
        folded = [self._folded(value) for value in values]
        self._loose = {name: i for i, name in enumerate(folded) if folded.count(name) == 1}

    def index(self, text: str) -> int | None:
        """Return the index, or None."""
        if text in self.values:
            return self.values.index(text)
        index = self._loose.get(self._folded(text))
        if index is not None:
            self.read_as[text] = self.values[index]
        return index

    @staticmethod
    def _folded(text: str) -> str:
        return re.sub(r"^([+-]?\d+)\.0+$", r"\1", " ".join(text.casefold().split()))


def _checked(name: str, content: Content, wanted: Wanted) -> tuple[list[Row], list[str]]:
    """Return the rows, and notes; all that is wrong is refused at once."""
    labels, rows, blank, blank_lines = Labels(wanted.labels), list[Row](), 0, 0
    problems: dict[tuple[str, str], list[int | str]] = {}
    total = 0
    for total, (number, cells, problem, _) in enumerate(content.records, 1):  # noqa: B007 (all of them are counted)
        if not problem and all(value is None or str(value).strip() == "" for value in cells.values()):
            blank_lines += not cells
            blank += bool(cells)
            continue
        blank, blank_lines = blank + blank_lines, 0  # blank lines at the end are not worth a word
        try:
            if problem:
                raise Unusable(problem)
            rows.append(_row(cells, wanted, labels))
        except Unusable as error:
            problems.setdefault((content.unit, str(error)), []).append(number)
    if problems:
        if not rows and all(what.startswith(HIDDEN) for _, what in problems):
            raise BadInput(f"{name} has no labels (-1 in every row): take another split of it, such as validation")
        raise BadInput(f"{name}, {listed(problems, total)}")
    if not rows:
        raise BadInput(f"{name} holds no rows: give a file with at least one")
    notes = [f"{blank} blank {'row is' if blank == 1 else 'rows are'} left out"] if blank else []
    notes += [f"the label {text!r} is read as {value!r}" for text, value in [*labels.read_as.items()][:SHOWN_PROBLEMS]]
    return rows, notes


def _row(cells: Row, wanted: Wanted, labels: Labels) -> Row:
    if wanted.whole:
        row_texts(cells, wanted.columns)
        return {"columns": {name: _plain(value, name) for name, value in cells.items()}}
    label = _cell(cells, wanted.label_column, "the label")
    if not label:
        raise Unusable("the label is empty: fill it in, or remove the row")
    index = labels.index(label)
    if index is None:
        known = ", ".join(wanted.labels[:10]) + (", ..." if len(wanted.labels) > 10 else "")
        raise Unusable(f"label {SHORT.repr(label)} is none of {known}: add it to the labels")
    return {"columns": row_texts(cells, wanted.columns), "label": index}


def row_texts(cells: Row, columns: Sequence[str]) -> dict[str, str]:
    """Return the cells of the columns that a template shows, as text.

    Raises:
        Unusable: one of them is no text, or there is nothing in any of them.
    """
    texts = {column: _cell(cells, column, f"column {column!r}") for column in columns}
    if not any(texts.values()):
        named = " and ".join(map(repr, columns))
        raise Unusable(f"nothing is in {named}: fill it in, or remove the row")
    return texts


def _plain(value: Any, column: str) -> Any:
    """Return a cell as JSON holds it: dates and the like as text; lists and objects stay.

    Raises:
        Unusable: JSON cannot hold it.
    """
    if isinstance(value, TYPED):
        return str(value)
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise Unusable(f"column {column!r} holds what JSON cannot: remove it, or give text, numbers or lists") from None
    return value


def _cell(cells: Row, column: str, what: str) -> str:
    """Return a cell as text; JSON booleans and numbers as JSON writes them."""
    if column not in cells:
        known = ", ".join(map(repr, [*cells][:SHOWN_LINES])) or "none"
        more = ", ..." if len(cells) > SHOWN_LINES else ""
        raise Unusable(f"no column {column!r} (its columns are {known}{more}): rename or add it, or remove the row")
    value = cells[column]
    if type(value) is str:  # most are
        return value.strip(BLANK)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise Unusable(f"{what} is {'NaN' if math.isnan(value) else 'infinite'}: fill it in, or remove the row")
    if isinstance(value, (str, int, float, *TYPED)):
        return str(value).strip(BLANK)
    if value is None:
        raise Unusable(f"{what} is null: fill it in, or remove the row")
    raise Unusable(f"{what} holds a {type(value).__name__}: give text or a number")

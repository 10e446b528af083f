"""Rows to predict: they need what a prompt shows, and no label; a label that is there is kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, unknown
from gradless.tasks import column_names
from gradless.tasks.base import MASK, MASK_IN_ROW, Task
from gradless.tasks.files import BLANK, Row, Unusable
from gradless.tasks.own_rows import Labels, row_texts

STAND_INS: Final[dict[str, Callable[[Row], Row]]] = {
    "classification": lambda row: {"label": 0},
    "choice": lambda row: {"label": 0, "answer": "1", "answers": list(row.get("entities") or ())[:1]},
    "generation": lambda row: {"answers": ["?"], "answer": {"number": "0"}, "solution": "?"},
}
"""What stands in for the answer that a row to predict has not, by kind of task: readers of data sets need one."""


class Unlabelled(NamedTuple):
    """A row in the form that a task's prompt takes."""

    row: Row
    labelled: bool
    """Whether the row's own label was read; otherwise another stands in for it and says nothing."""


Reader = Callable[[Mapping[str, Any]], Unlabelled]
"""Reads one record; raises `Unusable` with what is wrong and what to do."""


LABEL: Final = "label"
"""The field of built-in tasks whose numbers may count from 1 in a table of the user's."""
DIGITS: Final = 9
"""More than the number of any class has."""


@dataclass(slots=True)
class Numbering:
    """What the labels of a whole table count from, if they are numbers.

    Those of AG News in its authors' files count from 1, those of the same rows on the hub from 0. A single row does
    not tell; a table does whose labels are all within 1 and the number of classes, if that number is among them: from
    0 it would be the label of no class.
    """

    least: int | None = None
    most: int | None = None
    numbers: bool = True
    """Whether all labels so far are numbers."""

    def note(self, value: Any) -> None:
        """Take account of the label of a row; None and empty text are no label."""
        if isinstance(value, str):
            text = value.strip(BLANK)
            value = int(text) if text.isdecimal() and len(text) < DIGITS else text or None
        if isinstance(value, int) and not isinstance(value, bool):
            self.least = value if self.least is None else min(self.least, value)
            self.most = value if self.most is None else max(self.most, value)
        elif value is not None:
            self.numbers = False

    def from_one(self, task: Task) -> bool:
        """Return whether they count the classes of a built-in task from 1."""
        classes = len(task.labels or ()) if task.kind == "classification" else 0
        return self.numbers and self.least is not None and self.least >= 1 and self.most == classes > 0


def _from_zero(value: Any) -> Any:
    """Return the label of a row of a table whose labels count from 1 as others count."""
    return int(value) - 1 if str(value).strip(BLANK).isdecimal() else value


def own_reader(columns: Sequence[str], label_column: str | None, labels: Sequence[str]) -> Reader:
    """Return the reader of rows for a template: ``{"columns": {...}, "label": index}``.

    Args:
        columns: that the template shows.
        label_column: where a label may stand; None if there is none.
        labels: their values.
    """
    known = Labels(labels)
    names = (*columns, *([] if label_column is None else [label_column]))

    def read(cells: Mapping[str, Any]) -> Unlabelled:
        cells = column_names.named(cells, names)
        texts = row_texts(dict(cells), columns)
        value = cells.get(label_column) if label_column is not None else None
        index = None if value is None else known.index(str(value).strip())
        return Unlabelled({"columns": texts, "label": index or 0}, index is not None)

    return read


def task_reader(task: Task, *, masked: bool = False, from_one: bool = False) -> Reader:
    """Return the reader of rows for a built-in task, which have the fields of its data set.

    Args:
        task: of the rows.
        masked: whether a masked model reads them, whose prompt can hold no mask but its own.
        from_one: whether labels that are numbers count from 1, as `Numbering` tells.

    Raises:
        BadInput: the task reads no rows of its own.
    """
    if task.read is None:
        raise BadInput(f"task '{task.name}' has no fields of its own: give a template and labels")
    tidy = task.read.tidy

    def read(cells: Mapping[str, Any]) -> Unlabelled:
        raw = dict(cells)
        if from_one and LABEL in raw:
            raw[LABEL] = _from_zero(raw[LABEL])
        try:
            rows = list(tidy(raw))
        except (KeyError, ValueError, TypeError, AttributeError):
            rows = []
        labelled = len(rows) == 1
        rows = rows or _without_label(task, raw)
        if len(rows) != 1:
            raise Unusable(f"it holds {len(rows)} questions: give one a row")
        if masked and any(MASK in text for text in rows[0].values() if isinstance(text, str)):
            raise Unusable(MASK_IN_ROW)
        return Unlabelled(rows[0], labelled)

    return read


def _without_label(task: Task, raw: Row) -> list[Row]:
    """Return canonical rows of a record with another answer in place of its own.

    Raises:
        Unusable: a field of the prompt is missing, or cannot be used.
    """
    assert task.read is not None
    try:
        return list(task.read.tidy({**raw, **STAND_INS[task.kind](raw)}))
    except KeyError as error:
        raise Unusable(f"{unknown('field', str(error.args[0]), raw)}: add it") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise Unusable(f"{error}: correct it") from None

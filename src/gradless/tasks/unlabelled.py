"""Rows to predict: they need what a prompt shows, and no label; a label that is there is kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, unknown
from gradless.tasks import column_names
from gradless.tasks.base import MASK, MASK_IN_ROW, Task
from gradless.tasks.files import Row, Unusable
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


def task_reader(task: Task, *, masked: bool = False) -> Reader:
    """Return the reader of rows for a built-in task, which have the fields of its data set.

    Args:
        task: of the rows.
        masked: whether a masked model reads them, whose prompt can hold no mask but its own.

    Raises:
        BadInput: the task reads no rows of its own.
    """
    if task.read is None:
        raise BadInput(f"task '{task.name}' has no fields of its own: give a template and labels")
    tidy = task.read.tidy

    def read(cells: Mapping[str, Any]) -> Unlabelled:
        raw = dict(cells)
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

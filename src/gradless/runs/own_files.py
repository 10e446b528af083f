"""Settings of a task that is made of own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from gradless.errors import BadInput
from gradless.system import typed
from gradless.system.typed import Flag

Rows = Annotated[str, Flag(path="data")]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFiles:
    """A task made of own files, as `TuneConfig.own` holds it."""

    train: Rows | None = None
    """Own training rows instead of --task: a CSV, JSONL, Parquet or Arrow file, a folder or hub:OWNER/NAME[:SPLIT].

    The folder is one that `datasets` saved, or one of data files (FOLDER:SPLIT); a pattern names several files."""
    dev: Rows | None = None
    """Own dev rows, which choose the best step; without them --num-dev holds training rows out.

    With neither there are no dev rows, and the last step is kept."""
    test: Rows | None = None
    """Own test rows."""
    template: str
    """Prompt with column names, e.g. "{text} It was"; {mask} for masked models.

    On the command line a backslash and n are a newline, a backslash and t a tab."""
    label_column: str | None = None
    """Column that holds the label; none where a --reward scores what is generated."""
    labels: str | dict[str, str] | None = None
    """Words for the labels, e.g. "0=terrible,1=great" or a JSON object."""
    delimiter: str | None = None
    """What separates cells: comma, semicolon, tab, pipe; else recognised."""
    encoding: str | None = None
    """Of the files, e.g. cp1252; by default UTF-8."""


def check_own(own: dict[str, Any]) -> None:
    """Check the table ``own`` of a configuration: fields of `OwnFiles`, and the name that a task file may give.

    Raises:
        BadInput: another key, or a value of another type.
    """
    with typed.within("own"):
        for name in ("train", "dev", "test"):
            if (rows := own.get(name)) is not None and not isinstance(rows, str | int | float):
                fix = "write it to a file, such as dataset.to_parquet('train.parquet'), or call gradless.tune"
                raise BadInput(f"{name} is a {type(rows).__name__}, and a configuration holds names of files: {fix}")
        typed.value("name", own.get("name", ""), str)
        typed.table({name: one for name, one in own.items() if name != "name"}, OwnFiles, kind="key")


def check_size(name: str, size: Any, own: Mapping[str, Any], *, written: str = "{} = 0", option: str = "{}") -> None:
    """Refuse a user's 0 for the rows of own files that are given: in configurations 0 stands for all rows.

    Args:
        name: ``num_train``, ``num_dev`` or ``num_test``.
        size: what the user wrote; None if nothing.
        own: the own files.
        written: how it was written, of the name.
        option: how the files are named, of the split.

    Raises:
        BadInput: it is 0, and there are such files.
    """
    split = name.removeprefix("num_")
    if size == 0 and own.get(split) is not None:
        files = option.format(split)
        fix = f"leave it out for all rows, or leave out {files} for none"
        raise BadInput(f"{written.format(name)} asks for no row of {files}, and 0 means all: {fix}")

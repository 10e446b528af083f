"""Files that a run can lose: they are read whatever they hold, and put aside where they are in the way."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gradless.system.atomic import NEW
from gradless.system.typed import parse_json

Say = Callable[[str], None]


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None where there is no file that can be read."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_table(path: Path, kind: type[Any]) -> dict[str, Any] | None:
    """Return the table in a JSON file, or None where there is none with the fields of ``kind``; it may have others."""
    table: Any = read_json(path)
    try:
        msgspec.convert(table, kind)
    except (msgspec.ValidationError, OverflowError):
        return None
    return dict(table)


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the tables in a file of JSON lines, and the number of other lines, such as the one that a crash tore."""
    try:
        texts = [text for text in path.read_bytes().splitlines() if text.strip()]
    except OSError:
        return [], 0
    tables = [table for text in texts if isinstance(table := _parsed(text), dict)]
    return tables, len(texts) - len(tables)


def _parsed(text: bytes) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def put_aside(path: Path, say: Say) -> None:
    """Rename a file, folder or link that cannot be used, and say so."""
    names = (f"{path.name}.unreadable" + (f"-{number}" if number else "") for number in itertools.count())
    free = next(other for name in names if not os.path.lexists(other := path.with_name(name)))
    path.rename(free)
    say(f"{path} cannot be read or written: it is now {free.name}, and the run goes on without it")


def make_room(folder: Path, names: Iterable[str], say: Say) -> None:
    """Put aside what has the name of a file of a run, or of one being written, and is no file to read and write."""
    for path in _paths(folder, names):
        usable = path.is_file() and os.access(path, os.R_OK | os.W_OK)
        if os.path.lexists(path) and not usable:
            put_aside(path, say)


def _paths(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        yield from (folder / name, folder / f"{name}{NEW}")

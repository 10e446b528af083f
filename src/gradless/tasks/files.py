"""Reading data files: lines, JSONL, tables, and folders that hold the splits of a data set.

Everything may be gzipped. Text is split at line feeds only: `str.splitlines` would also split at U+0085 and
U+2028, which occur inside sentences of the movie-review data. Whatever is wrong with a file is a `BadInput`
that names file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias

from gradless.errors import BadInput

Row: TypeAlias = dict[str, Any]
"""One record: field name -> value."""

Numbered: TypeAlias = Iterator[tuple[int, Row]]
"""Rows with the number of their line in the file, from 1."""

BLANK = " \t\r\n"
"""What is stripped from text: not U+0085, which `str.strip` would take."""


@contextmanager
def text_file(path: Path, encoding: str = "utf-8-sig", newline: str = "\n") -> Iterator[TextIO]:
    """Open a text file, gzipped or not; damage and wrong encoding become `BadInput`."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding=encoding, newline=newline) as file:
                yield file
        else:
            with path.open(encoding=encoding, newline=newline) as file:
                yield file
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not {encoding} text ({error.reason}): convert it to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} is a damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """Non-blank lines with their numbers, without their ends."""
    with text_file(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            if line.strip(BLANK):
                yield number, line.rstrip("\r\n")


def jsonl(path: Path) -> Numbered:
    """One JSON object a line."""
    for number, line in lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, line {number}: broken JSON ({error.msg}): write one object a line") from error
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {number}: not a JSON object: write one object a line")
        yield number, row


def json_value(path: Path) -> Any:
    """A whole file as one JSON value."""
    with text_file(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, line {error.lineno}: broken JSON ({error.msg}): fetch it again") from error


def table(path: Path, delimiter: str = "\t", columns: Sequence[str] | None = None) -> Numbered:
    """A CSV or TSV with quoted fields; the first line names the columns unless ``columns`` does."""
    with text_file(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = list(columns) if columns is not None else next(reader, None)
            if header is None:
                return
            for cells in reader:
                if cells:
                    yield reader.line_num, _record(path, reader.line_num, header, cells)
        except csv.Error as error:
            raise BadInput(f"{path}, line {reader.line_num}: {error}: quote fields that hold quotes") from error


def plain_table(path: Path, columns: Sequence[str] | None = None, *, skip_short: bool = False) -> Numbered:
    """A TSV in which quotes mean nothing, as in GLUE.

    Args:
        path: The file.
        columns: Names of the columns of a file without a header line.
        skip_short: Leave out lines with the wrong number of fields instead of refusing the file.
    """
    header = columns
    for number, line in lines(path):
        cells = line.split("\t")
        if header is None:
            header = [cell.strip(BLANK) for cell in cells]
        elif not (skip_short and len(cells) != len(header)):
            yield number, _record(path, number, header, cells)


def _record(path: Path, number: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise BadInput(f"{path}, line {number}: {len(cells)} fields where {len(header)} are expected: mend the line")
    return dict(zip(header, cells, strict=True))


def rated_lines(path: Path, encoding: str = "utf-8-sig") -> Numbered:
    """Lines ``<label> <text>`` (the stsa.* and *.all files)."""
    for number, line in lines(path, encoding):
        value, _, text = line.partition(" ")
        yield number, {"label": value, "sentence": text}


def one_class(value: int, encoding: str = "utf-8-sig") -> Callable[[Path], Numbered]:
    """A parser of files that hold one example a line, all of class ``value``; blank lines are skipped."""

    def parse(path: Path) -> Numbered:
        for number, line in lines(path, encoding):
            yield number, {"label": value, "sentence": line}

    return parse


def field(row: Row, *names: str) -> Any:
    """The first of the named fields that the row has; ``KeyError`` with the first name if it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(names[0])


def class_index(value: Any, names: Sequence[str]) -> int:
    """A label as an index into ``names``: accepts the index (also as text or bool) and the name.

    Raises:
        ValueError: For anything else, such as the -1 of a test set with hidden labels.
    """
    if isinstance(value, str):
        folded = value.strip(BLANK).lower()
        known = [name.lower() for name in names]
        if folded in known:
            return known.index(folded)
        value = int(folded) if folded.isdecimal() else value
    if isinstance(value, int) and 0 <= value < len(names):
        return int(value)
    raise ValueError(f"label {value!r} is none of 0..{len(names) - 1} ({', '.join(names)})")


class Part(NamedTuple):
    """One file of a data set."""

    split: str
    """``train``, ``dev``, ``test``, or ``pool`` for a file that is not split yet."""
    file: str
    """Its name; NAME.gz is taken where NAME is absent."""
    parse: Callable[[Path], Numbered]


Layout: TypeAlias = tuple[Part, ...]
"""Files that belong together. Of the parts of one split the first that exists is used; of pool, all are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Reads a data set from a folder: ``Folder(...)(path)`` gives the rows by split."""

    subfolders: tuple[str, ...]
    """The files may lie in the folder itself or in one of these below it."""
    layouts: tuple[Layout, ...]
    """Tried in order; the first one of which any file exists is used."""
    tidy: Callable[[Row], Iterable[Row]]
    """A raw record -> canonical rows: none (no example by definition of the data set), one, or many (nested
    files). Raises KeyError for a missing field and ValueError for an impossible value."""
    hold_out: int = 2000
    """Pool files: so many rows, but at most half, become the test split, drawn by a fixed permutation."""

    def __call__(self, folder: Path) -> dict[str, list[Row]]:
        """The rows of every split that the folder holds, in file order.

        Raises:
            BadInput: If the folder or all of the files are missing, or a file cannot be used.
        """
        if not folder.is_dir():
            raise BadInput(f"{folder} is not a folder: pass --data with the folder that holds the files")
        for place in [*(folder / name for name in self.subfolders), folder]:
            for layout in self.layouts:
                found = [(part, path) for part in layout if (path := _existing(place / part.file)) is not None]
                if found:
                    return self._collect(found)
        wanted = "; or ".join(", ".join(part.file for part in layout) for layout in self.layouts)
        raise BadInput(f"no data file found in {folder}: expected {wanted} (each may be gzipped)")

    def expects(self, split: str) -> tuple[str, ...]:
        """Names of the files that would hold ``split``."""
        names = (part.file for layout in self.layouts for part in layout if part.split in (split, "pool"))
        return tuple(dict.fromkeys(names))

    def _collect(self, found: list[tuple[Part, Path]]) -> dict[str, list[Row]]:
        splits: dict[str, list[Row]] = {}
        for part, path in found:
            if part.split == "pool" or part.split not in splits:
                splits.setdefault(part.split, []).extend(self._rows(part, path))
        pool = splits.pop("pool", [])
        return splits | _split_pool(pool, self.hold_out) if pool else splits

    def _rows(self, part: Part, path: Path) -> Iterator[Row]:
        number, raw = 0, Row()
        try:
            for number, raw in part.parse(path):  # noqa: B007 (the errors below name them)
                yield from self.tidy(raw)
        except BadInput:
            raise
        except KeyError as error:
            what = f"no field {error} (there are: {', '.join(raw) or 'none'})"
            raise BadInput(f"{path}, record {number}: {what}: is this another task's data?") from error
        except (ValueError, TypeError) as error:
            raise BadInput(f"{path}, record {number}: {error}: is this another task's data?") from error
        if number == 0:
            raise BadInput(f"{path} is empty: fetch it again")


def _existing(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _split_pool(pool: list[Row], hold_out: int) -> dict[str, list[Row]]:
    from gradless.rng import permutation  # lazy: it imports torch, which listing the tasks does not need

    order = permutation(len(pool), seed=0, stream="split/pool").tolist()
    held = min(hold_out, len(pool) // 2)
    return {"test": [pool[i] for i in order[:held]], "train": [pool[i] for i in order[held:]]}

"""Records of a user's own tables and JSON files, as they are written: separators, quotes, lines.

Separators are recognised by the columns that the task needs; blank rows and spaces around names of columns are left
out, and what was guessed is noted. What is wrong with a single row is kept beside its number, for `own_rows` to tell.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from gradless.errors import BadInput
from gradless.tasks import column_names
from gradless.tasks.encodings import MARKS, decoded, encoding_of, readable
from gradless.tasks.files import BLANK, Row, parse_json

SUFFIXES: Final = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), ""),
    **{".csv": ",", ".tsv": "\t", ".psv": "|", ".txt": "\t"},
}
"""Names of files and what separates their cells if the header does not tell; "" is JSON."""
DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
SPELLINGS: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
LARGEST_CELL: Final = 2**31 - 1
HEAD: Final = 64
"""Lines that are read ahead to recognise separators."""
ONE_VALUE: Final = 10_000
"""Lines over which one JSON value is looked for, to tell what is wrong with a file that begins with broken JSON."""


class Wanted(NamedTuple):
    """What a task takes from a file, and how the user says the file is written."""

    columns: tuple[str, ...]
    label_column: str
    """Empty if no label is wanted."""
    labels: tuple[str, ...]
    delimiter: str | None = None
    encoding: str | None = None
    whole: bool = False
    """Whether rows keep all their columns, as they are, and not only those that are wanted, as text."""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.columns, *([self.label_column] if self.label_column else ()))


class Record(NamedTuple):
    """A row of a file before it is checked."""

    number: int | str
    cells: Row
    problem: str = ""
    """What is wrong with the row as a whole."""
    raw: Any = None
    """As it was written: the cells of a table in a list, the text of a JSON object."""


class Dialect(NamedTuple):
    """How a text file is written."""

    delimiter: str
    """Of cells; "" for JSON."""
    encoding: str = "utf-8"
    marked: bool = False
    """Whether it begins with UTF-8's byte order mark; those of UTF-16 and UTF-32 belong to the encoding."""
    newline: str = "\n"
    named: bool = False
    """Whether a line ``sep=;`` stands in front, for Excel."""


class TextRows(NamedTuple):
    """A text file that is read once, row by row, from its beginning to its end."""

    dialect: Dialect
    header: tuple[str, ...] | None
    """Names of the columns of a table as they are written; None for JSON."""
    records: Iterator[Record]
    """Blank lines are records without cells."""
    unit: str
    """What is counted: ``line`` or ``row``."""
    notes: list[str]
    """What was guessed, and warnings; reading may add some."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns of a table without the spaces around them; None for JSON."""
        return None if self.header is None else tuple(name.strip("\ufeff" + BLANK) for name in self.header)


class Content(NamedTuple):
    """A parsed file."""

    records: Iterable[Record]
    unit: str
    """What is counted: ``line`` or ``row``."""
    notes: list[str]
    """What was guessed or left out."""
    columns: tuple[str, ...]


def delimiter_of(text: str) -> str:
    """Return the character that ``--delimiter`` names: itself, or comma, semicolon, tab, pipe, space.

    Raises:
        BadInput: it is not one character, or one that cannot separate cells.
    """
    character = SPELLINGS.get(text.lower(), text)
    if len(character) != 1 or character in '"\r\n\0':
        raise BadInput(f"delimiter {text!r} is not one character: give comma, semicolon, tab, pipe or a character")
    return character


def read_text(path: Path, wanted: Wanted) -> Content:
    """Return the records of a table or JSON file, which may be gzipped.

    Raises:
        BadInput: the file as a whole cannot be read.
    """
    with open_file(path) as file:
        rows = open_rows(str(path), file, SUFFIXES[kind_of(path)], wanted)
        records = list(rows.records)
    columns = rows.columns or tuple(dict.fromkeys(name for record in records for name in record.cells))
    return Content(records, rows.unit, rows.notes, columns)


def kind_of(path: Path) -> str:
    """Return the suffix that tells what a file holds, in lower case and without ``.gz``."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def open_file(path: Path) -> BinaryIO:
    """Return a file to read.

    Raises:
        BadInput: it cannot be opened.
    """
    if path.is_dir():
        raise BadInput(f"{path} is a folder: give a file")
    try:
        return path.open("rb")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def open_rows(name: str, file: BinaryIO, usual: str | None, wanted: Wanted) -> TextRows:
    """Return the rows of an open file.

    Args:
        name: of the file, for sentences.
        file: its bytes, gzipped or not; it need not be seekable.
        usual: what separates cells if nothing tells, "" for JSON; None recognises JSON by its first character.
        wanted: columns by which the separator is recognised, and what the user says of delimiter and encoding.

    Raises:
        BadInput: here and while rows are read: no text of that encoding, a damaged file, a quote that never ends.
    """
    with readable(name):
        data = unzipped(name, file)
        start = data.peek(4)[:4]
    if start == b"PK\x03\x04":
        raise BadInput(f"{name} is a spreadsheet or an archive, not text: export it as CSV or JSONL")
    if start in (b"PAR1", b"ARRO"):
        raise BadInput(f"{name} is Parquet or Arrow, not text: let its name end in .parquet or .arrow")
    marked = next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "")
    encoding = encoding_of(wanted.encoding) if wanted.encoding else marked or "utf-8"
    notes = [f"read as {marked.upper()}"] if marked and not wanted.encoding else []
    texts = decoded(name, data, "utf-8-sig" if encoding == "utf-8" else encoding, notes)
    head = list(itertools.islice(texts, HEAD))
    everything = itertools.chain(head, texts)
    first = next((text.strip(BLANK)[:1] for text in head if text.strip(BLANK)), "")
    if usual is None:
        usual = "" if first in ("{", "[") else ","
    end = re.search(r"(\r\n|\r|\n)$", head[0]) if head else None
    bom = encoding == "utf-8" and start.startswith(codecs.BOM_UTF8)
    dialect = Dialect(usual, encoding, bom, end.group(1) if end else "\n")
    if usual:
        return _table(name, head, everything, wanted, dialect, notes)
    if first == "[":
        return TextRows(dialect, None, _json_list(name, everything), "row", notes)
    return TextRows(dialect, None, _json_lines(name, everything), "line", notes)


def unzipped(name: str, file: BinaryIO) -> io.BufferedReader:
    """Return a file without its compression, if it is gzipped."""
    data: Any = file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file))
    if data.peek(2)[:2] == b"\x1f\x8b" or name.endswith(".gz"):
        return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=data)))
    return cast(io.BufferedReader, data)


def _json_list(name: str, texts: Iterable[str]) -> Iterator[Record]:
    """Yield the objects of a list, which is read whole."""
    try:
        values = parse_json("".join(texts))
    except ValueError as error:
        raise BadInput(f"{name}: broken JSON ({error}): write a list of objects, or one object a line") from None
    for number, value in enumerate(values, start=1):
        yield _object(number, value)


def _json_lines(name: str, texts: Iterator[str]) -> Iterator[Record]:
    for number, text in enumerate(texts, start=1):
        if not text.strip(BLANK):
            yield Record(number, {})
            continue
        try:
            yield _object(number, parse_json(text), text.strip(BLANK))
        except ValueError as error:
            if number == 1:
                texts_after = list(itertools.islice(texts, ONE_VALUE))
                if _is_json(text + "".join(texts_after)):
                    what = "is one JSON value over several lines: write a list of objects, or one object a line"
                    raise BadInput(f"{name} {what}") from None
                texts = itertools.chain(texts_after, texts)
            yield Record(number, {}, f"broken JSON ({error}): write one object a line")


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _object(number: int, value: Any, text: str | None = None) -> Record:
    if not isinstance(value, dict):
        return Record(number, {}, "not a JSON object: write one object a line")
    return Record(number, value, raw=text)


def _table(
    name: str, head: Sequence[str], texts: Iterator[str], wanted: Wanted, dialect: Dialect, notes: list[str]
) -> TextRows:
    """Return the rows of a table; its first line that is not blank names the columns."""
    usual, skipped = dialect.delimiter, 0
    named = re.match(r"sep=(.)(\r\n|\r|\n)", head[0], re.IGNORECASE) if head else None
    if named:  # Excel's first line
        next(texts)
        head, skipped = head[1:], 1
    known = wanted.delimiter or (named and named.group(1))
    delimiter = delimiter_of(known) if known else _sniffed("".join(head), wanted, usual)
    if delimiter != usual and not wanted.delimiter:
        notes.append(f"cells are separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    lines = _csv(name, texts, delimiter, skipped)
    rows = TextRows(
        dialect._replace(delimiter=delimiter, named=bool(named)),
        tuple(next(lines, (0, []))[1]),
        iter(()),
        "line",
        notes,
    )
    assert rows.header is not None
    assert rows.columns is not None
    spaced = [column for column, plain in zip(rows.header, rows.columns, strict=True) if column != plain]
    if spaced:
        notes.append(column_names.note(spaced))
    for column in dict.fromkeys(wanted.names):
        if rows.columns.count(column) > 1:
            count = "two" if rows.columns.count(column) == 2 else str(rows.columns.count(column))
            raise BadInput(f"{name}: {count} columns are named {column!r}: rename or remove all but one")
    return rows._replace(records=_records(lines, rows.columns, delimiter))


def _records(lines: Iterator[tuple[int, list[str]]], columns: Sequence[str], delimiter: str) -> Iterator[Record]:
    """Yield the rows of a table below its header."""
    for number, cells in lines:
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()
        if len(cells) in (0, len(columns)) or not any(cell.strip() for cell in cells):
            yield Record(number, dict(zip(columns, cells, strict=False)), raw=cells)
        else:
            separator = DELIMITERS.get(delimiter, repr(delimiter))
            fix = f"quote fields that hold {separator}" if len(cells) > len(columns) else "add what is missing"
            fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
            yield Record(number, {}, f"{fields} where {len(columns)} are expected: {fix}")


def _csv(name: str, texts: Iterator[str], delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with the number of the line in which they begin; blank lines in front are left out."""
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    begun, first = 1, True
    try:
        while True:
            with _large_cells():
                cells = next(reader, None)
            if cells is None:
                return
            if cells or not first:
                yield begun + skipped, cells
                first = False
            begun = reader.line_num + 1
    except csv.Error as error:
        what = f"{error}: quote fields that hold quotes, and double the quotes inside"
        if "unexpected end" in str(error):
            what = "a quoted field begins here and never ends: close it, and double the quotes inside"
        raise BadInput(f"{name}, line {begun + skipped}: {what}") from error


def _sniffed(text: str, wanted: Wanted, usual: str) -> str:
    """Return the delimiter with which the header names the most columns of the task, the usual one if several do."""

    def fits(delimiter: str) -> tuple[int, bool, int]:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            header = [name.strip("\ufeff" + BLANK) for name in next((row for row in rows if row), [])]
        except csv.Error:
            return 0, False, 0
        return len({*wanted.names} & {*header}), delimiter == usual and len(header) > 1, len(header)

    with _large_cells():
        return max((usual, *DELIMITERS), key=fits)


@contextlib.contextmanager
def _large_cells() -> Iterator[None]:
    """Let cells be of any size; the limit of `csv` is one of the process."""
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)

"""Rows of a user's own tables and JSON files, as people have them.

Separators are recognised by the columns that the task needs, blank rows and spaces around column names are left out,
and what was guessed is said. Everything that is wrong in a file is told in one sentence, with the lines.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, unknown
from gradless.system.typed import SHORT
from gradless.tasks.files import BLANK, Row, parse_json

SUFFIXES: Final = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), ""),
    **{".csv": ",", ".tsv": "\t", ".psv": "|", ".txt": "\t"},
}
"""Names of files and what separates their cells if the header does not tell; "" is JSON."""
DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
SPELLINGS: Final = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
MARKS: Final = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""
LARGEST_CELL: Final = 2**31 - 1
SHOWN_LINES, SHOWN_PROBLEMS = 8, 5


class Wanted(NamedTuple):
    """What a task takes from a file, and how the user says the file is written."""

    columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    delimiter: str | None = None
    encoding: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.columns, self.label_column)


class Record(NamedTuple):
    """A row of a file before it is checked."""

    number: int
    cells: Row
    problem: str = ""
    """What is wrong with the row as a whole."""


class Content(NamedTuple):
    """A parsed file."""

    records: list[Record]
    unit: str
    """What is counted: ``line`` or ``row``."""
    notes: list[str]
    """What was guessed or left out."""


def delimiter_of(text: str) -> str:
    """Return the character that ``--delimiter`` names: itself, or comma, semicolon, tab, pipe, space.

    Raises:
        BadInput: it is not one character, or one that cannot separate cells.
    """
    character = SPELLINGS.get(text.lower(), text)
    if len(character) != 1 or character in '"\r\n\0':
        raise BadInput(f"delimiter {text!r} is not one character: give comma, semicolon, tab, pipe or a character")
    return character


def encoding_of(name: str) -> str:
    """Return the name of a text encoding that Python knows.

    Raises:
        BadInput: there is none of that name.
    """
    try:
        b"    ".decode(name, "ignore")  # refuses what Python calls an encoding and is none of text, such as hex
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise BadInput(f"unknown encoding {SHORT.repr(name)}: give one such as utf-8, cp1252 or utf-16") from None


def read(path: Path, wanted: Wanted, say: Callable[[str], None]) -> list[Row]:
    """Return the rows of a file as ``{"columns": {...}, "label": index}``.

    Args:
        path: a table or JSON file by its suffix; it may be gzipped.
        wanted: columns and labels.
        say: receives a line for each thing that was guessed or left out.

    Raises:
        BadInput: the file or some of its rows cannot be used; the message names all of them.
    """
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if path.is_dir():
        raise BadInput(f"{path} is a folder: give a file")
    if kind not in SUFFIXES:
        raise BadInput(f"{path} is of no known type: export it as .jsonl, .csv or .tsv (each may end in .gz)")
    text, notes = _text(path, wanted.encoding)
    content = _table(path, text, wanted, SUFFIXES[kind]) if SUFFIXES[kind] else _json(path, text)
    _check_columns(path, content, wanted)
    rows, more = _checked(path, content, wanted)
    for note in (*notes, *content.notes, *more):
        say(f"{path.name}: {note}")
    return rows


# ------------------------------------------------------------------------------------------------------------
# from bytes to records


def _text(path: Path, encoding: str | None) -> tuple[str, list[str]]:
    """Return the text of a file, and what was guessed of its encoding."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" or path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} is a damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    if data[:4] in (b"PK\x03\x04", b"PAR1"):
        raise BadInput(f"{path} is a spreadsheet, an archive or Parquet, not text: export it as CSV or JSONL")
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), "")
    used = encoding_of(encoding) if encoding else marked or "utf-8"
    fix = "convert it to UTF-8, or give its encoding, such as --encoding cp1252 (western European Windows) or utf-16"
    try:
        text = data.decode("utf-8-sig" if used == "utf-8" else used)
    except UnicodeError as error:
        at = data[: error.start].count(b"\n") + 1 if isinstance(error, UnicodeDecodeError) else 1
        raise BadInput(f"{path}, line {at}: this is no {used} text: {fix}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadInput(f"{path}, line {line} holds a zero byte: {fix}")
    return text, [f"read as {marked.upper()}"] if marked and not encoding else []


def _json(path: Path, text: str) -> Content:
    """Return the objects of a list, or of lines."""
    if text.lstrip(BLANK).startswith("["):
        try:
            values = list(enumerate(parse_json(text), start=1))
        except ValueError as error:
            raise BadInput(f"{path}: broken JSON ({error}): write a list of objects, or one object a line") from None
        return Content([_object(number, value) for number, value in values], "row", [])
    records: list[Record] = []
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if not line.strip(BLANK):
            records.append(Record(number, {}))
            continue
        try:
            records.append(_object(number, parse_json(line)))
        except ValueError as error:
            if not records and _is_json(text):
                what = "is one JSON value over several lines: write a list of objects, or one object a line"
                raise BadInput(f"{path} {what}") from None
            records.append(Record(number, {}, f"broken JSON ({error}): write one object a line"))
    return Content(records, "line", [])


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def _object(number: int, value: Any) -> Record:
    if not isinstance(value, dict):
        return Record(number, {}, "not a JSON object: write one object a line")
    return Record(number, value)


def _table(path: Path, text: str, wanted: Wanted, usual: str) -> Content:
    """Return the rows of a table; its first line that is not blank names the columns."""
    notes, skipped = [], 0
    named = re.match(r"sep=(.)(\r\n|\r|\n)", text, re.IGNORECASE)
    if named:  # Excel's first line
        text, skipped = text[named.end() :], 1
    known = wanted.delimiter or (named and named.group(1))
    delimiter = delimiter_of(known) if known else _sniffed(text, wanted, usual)
    if delimiter != usual and not wanted.delimiter:
        notes.append(f"cells are separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    records = []
    with _large_cells():
        lines = _csv(path, text, delimiter, skipped)
        header = [name.strip("\ufeff" + BLANK) for name in raw] if (raw := next(lines, (0, []))[1]) else []
        spaced = [name for name, plain in zip(raw, header, strict=True) if name != plain]
        if spaced:
            notes.append(f"spaces around names of columns are left out ({', '.join(map(repr, spaced[:5]))})")
        for name in dict.fromkeys(wanted.names):
            if header.count(name) > 1:
                count = "two" if header.count(name) == 2 else str(header.count(name))
                raise BadInput(f"{path}: {count} columns are named {name!r}: rename or remove all but one")
        for number, cells in lines:
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) in (0, len(header)) or not any(cell.strip() for cell in cells):
                records.append(Record(number, dict(zip(header, cells, strict=False))))
            else:
                separator = DELIMITERS.get(delimiter, repr(delimiter))
                fix = f"quote fields that hold {separator}" if len(cells) > len(header) else "add what is missing"
                fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
                what = f"{fields} where {len(header)} are expected: {fix}"
                records.append(Record(number, {}, what))
    records = records or [Record(1, dict.fromkeys(header, ""))]  # so that a header alone is checked too
    return Content(records, "line", notes)


def _csv(path: Path, text: str, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with the number of the line in which they begin; blank lines in front are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begun, first = 1, True
    try:
        for cells in reader:
            if cells or not first:
                yield begun + skipped, cells
                first = False
            begun = reader.line_num + 1
    except csv.Error as error:
        what = f"{error}: quote fields that hold quotes, and double the quotes inside"
        if "unexpected end" in str(error):
            what = "a quoted field begins here and never ends: close it, and double the quotes inside"
        raise BadInput(f"{path}, line {begun + skipped}: {what}") from error


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


# ------------------------------------------------------------------------------------------------------------
# from records to rows


def _check_columns(path: Path, content: Content, wanted: Wanted) -> None:
    """Refuse a file in which no row has one of the columns."""
    names = dict.fromkeys(name for record in content.records for name in record.cells)
    for name in wanted.names if names else ():
        if name not in names:
            raise BadInput(f"{path}: {unknown('column', name, names)}")


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


class _Unusable(ValueError):
    """A cell that cannot be used; the message says why and what to do."""


def _checked(path: Path, content: Content, wanted: Wanted) -> tuple[list[Row], list[str]]:
    """Return the rows, and notes; all that is wrong is refused at once."""
    labels, rows, blank, blank_lines = Labels(wanted.labels), list[Row](), 0, 0
    problems: dict[str, list[int]] = {}
    for number, cells, problem in content.records:
        if not problem and all(value is None or str(value).strip() == "" for value in cells.values()):
            blank_lines += not cells
            blank += bool(cells)
            continue
        blank, blank_lines = blank + blank_lines, 0  # blank lines at the end are not worth a word
        try:
            if problem:
                raise _Unusable(problem)
            rows.append(_row(cells, wanted, labels))
        except _Unusable as error:
            problems.setdefault(str(error), []).append(number)
    if problems:
        raise BadInput(f"{path}, {_listed(problems, content.unit)}")
    if not rows:
        raise BadInput(f"{path} holds no rows: give a file with at least one")
    notes = [f"{blank} blank {'row is' if blank == 1 else 'rows are'} left out"] if blank else []
    notes += [f"the label {text!r} is read as {value!r}" for text, value in [*labels.read_as.items()][:SHOWN_PROBLEMS]]
    return rows, notes


def _listed(problems: dict[str, list[int]], unit: str) -> str:
    """Return all problems as one sentence: ``lines 3, 7: WHAT; line 9: WHAT``."""
    parts = []
    for what, numbers in [*problems.items()][:SHOWN_PROBLEMS]:
        more = f" and {len(numbers) - SHOWN_LINES} more" if len(numbers) > SHOWN_LINES else ""
        listed = ", ".join(map(str, numbers[:SHOWN_LINES]))
        parts.append(f"{unit}{'s' if len(numbers) > 1 else ''} {listed}{more}: {what}")
    rest = sum(len(numbers) for numbers in [*problems.values()][SHOWN_PROBLEMS:])
    return "; ".join([*parts, *([f"and {rest} more {unit}s"] if rest else [])])


def _row(cells: Row, wanted: Wanted, labels: Labels) -> Row:
    label = _cell(cells, wanted.label_column, "the label")
    if not label:
        raise _Unusable("the label is empty: fill it in, or remove the row")
    index = labels.index(label)
    if index is None:
        known = ", ".join(wanted.labels[:10]) + (", ..." if len(wanted.labels) > 10 else "")
        raise _Unusable(f"label {SHORT.repr(label)} is none of {known}: add it to the labels")
    texts = {column: _cell(cells, column, f"column {column!r}") for column in wanted.columns}
    if not any(texts.values()):
        named = " and ".join(map(repr, wanted.columns))
        raise _Unusable(f"nothing is in {named}: fill it in, or remove the row")
    return {"columns": texts, "label": index}


def _cell(cells: Row, column: str, what: str) -> str:
    """Return a cell as text; JSON booleans and numbers as JSON writes them."""
    if column not in cells:
        raise _Unusable(f"no column {column!r}: fill it in, or remove the row")
    value = cells[column]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise _Unusable(f"{what} is {'NaN' if math.isnan(value) else 'infinite'}: fill it in, or remove the row")
    if isinstance(value, str | int | float):
        return str(value).strip(BLANK)
    if value is None:
        raise _Unusable(f"{what} is null: fill it in, or remove the row")
    raise _Unusable(f"{what} holds a {type(value).__name__}: give text or a number")

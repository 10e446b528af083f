"""Records of a user's own tables and JSON files, as they are written: encodings, separators, quotes, lines.

Separators are recognised by the columns that the task needs; blank rows and spaces around names of columns are left
out, and what was guessed is noted. What is wrong with a single row is kept beside its number, for `own_rows` to tell.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.system.typed import SHORT
from gradless.tasks.files import BLANK, Row, listed, parse_json

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

    number: int | str
    cells: Row
    problem: str = ""
    """What is wrong with the row as a whole."""


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


def read_text(path: Path, wanted: Wanted) -> Content:
    """Return the records of a table or JSON file, which may be gzipped.

    Raises:
        BadInput: the file as a whole cannot be read.
    """
    text, notes = _text(path, wanted.encoding)
    separator = SUFFIXES[kind_of(path)]
    content = _table(path, text, wanted, separator) if separator else _json(path, text)
    return content._replace(notes=[*notes, *content.notes])


def kind_of(path: Path) -> str:
    """Return the suffix that tells what a file holds, in lower case and without ``.gz``."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _text(path: Path, encoding: str | None) -> tuple[str, list[str]]:
    """Return the text of a file, and what was guessed of its encoding."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" or path.suffix == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} is a damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    if data[:4] == b"PK\x03\x04":
        raise BadInput(f"{path} is a spreadsheet or an archive, not text: export it as CSV or JSONL")
    if data[:4] in (b"PAR1", b"ARRO"):
        raise BadInput(f"{path} is Parquet or Arrow, not text: let its name end in .parquet or .arrow")
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), "")
    used = encoding_of(encoding) if encoding else marked or "utf-8"
    fix = "convert it to UTF-8, or give its encoding, such as --encoding cp1252 (western European Windows) or utf-16"
    try:
        text = data.decode("utf-8-sig" if used == "utf-8" else used)
    except UnicodeError as error:
        at = data[: error.start].count(b"\n") + 1 if isinstance(error, UnicodeDecodeError) else 1
        lines = _undecodable(data, used) or [at]
        bad = listed({("line", f"this is no {used} text: {fix}"): lines}, len(lines))
        raise BadInput(f"{path}, {bad}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise BadInput(f"{path}, line {line} holds a zero byte: {fix}")
    return text, [f"read as {marked.upper()}"] if marked and not encoding else []


def _undecodable(data: bytes, encoding: str) -> list[int]:
    """Return the lines that an encoding in which lines end as in ASCII cannot read; none of another encoding."""
    numbers = []
    for number, line in enumerate(data.split(b"\n") if "16" not in encoding and "32" not in encoding else (), 1):
        try:
            line.decode(encoding)
        except UnicodeError:
            numbers.append(number)
    return numbers


def _json(path: Path, text: str) -> Content:
    """Return the objects of a list, or of lines."""
    if text.lstrip(BLANK).startswith("["):
        try:
            values = list(enumerate(parse_json(text), start=1))
        except ValueError as error:
            raise BadInput(f"{path}: broken JSON ({error}): write a list of objects, or one object a line") from None
        return _content([_object(number, value) for number, value in values], "row")
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
    return _content(records, "line")


def _content(records: list[Record], unit: str) -> Content:
    return Content(records, unit, [], tuple(dict.fromkeys(name for record in records for name in record.cells)))


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
    return Content(records, "line", notes, tuple(header))


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

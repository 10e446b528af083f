"""Files of rows that are read and written a chunk at a time, so that they may be larger than memory.

What goes out is as it came in: cells, columns and their order, separators, encoding, line ends; new columns follow.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TextIO, cast

from gradless.errors import BadInput
from gradless.tasks import arrow_rows, column_names
from gradless.tasks.text_rows import SUFFIXES, Dialect, Record, Wanted, kind_of, open_file, open_rows

STDIN: Final = "-"
FORMATS: Final = {"csv": ",", "tsv": "\t", "jsonl": ""}
"""What rows of standard input may be said to be, and what separates their cells."""
PARQUET: Final = (".parquet", ".pq")
WRITES: Final = (*SUFFIXES, *PARQUET)


class Column(NamedTuple):
    """A column that is added."""

    name: str
    kind: type
    """str, int, float or list (of floats)."""


class Chunk(NamedTuple):
    """Some rows."""

    records: list[Record]
    batch: Any = None
    """The same rows as a `pyarrow.RecordBatch`, if they came from one."""

    def kept(self, indices: Sequence[int]) -> Chunk:
        """Return some of the rows."""
        if len(indices) == len(self.records):
            return self
        batch = None if self.batch is None else self.batch.take(list(indices))
        return Chunk([self.records[i] for i in indices], batch)


class Source(NamedTuple):
    """Rows that are read once."""

    name: str
    unit: str
    """What is counted: ``line`` or ``row``."""
    chunks: Iterator[Chunk]
    columns: tuple[str, ...] | None
    """Names of the columns, without spaces around them; None for JSON, whose rows may have others each."""
    header: tuple[str, ...] | None
    """The names as they are written."""
    dialect: Dialect | None
    """None for Parquet and Arrow."""
    notes: list[str]
    table: arrow_rows.ArrowRows | None = None


@contextlib.contextmanager
def opened(path: str, form: str | None, wanted: Wanted, size: int, *, needed_only: bool = False) -> Iterator[Source]:
    """Yield the rows of a file, or of standard input if ``path`` is ``-``.

    Args:
        path: the file; its suffix tells what it is.
        form: what standard input holds, a key of `FORMATS`; None recognises it.
        wanted: columns that the prompt shows (by which separators are recognised), and what the user says of the file.
        size: rows of a chunk.
        needed_only: read these columns of Parquet alone, if there are any.

    Raises:
        BadInput: the file cannot be read, here or while rows are read.
    """
    if path == STDIN:
        usual = None if form is None else FORMATS[form]
        yield _text_source("standard input", cast(Any, sys.stdin.buffer), usual, wanted, size)
        return
    kind = kind_of(Path(path))
    if kind in SUFFIXES:
        with open_file(Path(path)) as file:
            yield _text_source(path, file, SUFFIXES[kind], wanted, size)
    elif kind in arrow_rows.SUFFIXES:
        table = arrow_rows.open_file(Path(path))
        spaced = column_names.spaced(table.columns, wanted.names)
        some = [name for name in table.columns if name in wanted.names or name in spaced]
        columns = some if needed_only and some else list(table.columns)
        yield Source(path, "row", _arrow_chunks(table, columns, size), table.columns, table.columns, None, [], table)
    else:
        raise BadInput(f"{path} is of no known type: give .csv, .tsv, .jsonl or .parquet (text may end in .gz), or -")


def _text_source(name: str, file: Any, usual: str | None, wanted: Wanted, size: int) -> Source:
    rows = open_rows(name, file, usual, wanted)
    records = iter(rows.records)
    chunks = (Chunk(chunk) for chunk in iter(lambda: list(itertools.islice(records, size)), []))
    return Source(name, rows.unit, chunks, rows.columns, rows.header, rows.dialect, rows.notes)


def _arrow_chunks(table: arrow_rows.ArrowRows, columns: list[str], size: int) -> Iterator[Chunk]:
    number = 0
    with arrow_rows.readable(table.name):
        for batch in table.batches(columns, size):
            rows = arrow_rows.objects(batch)
            yield Chunk([Record(number + i, cells) for i, cells in enumerate(rows, start=1)], batch)
            number += len(rows)


# ------------------------------------------------------------------------------------------------------------
# writing


Write = Callable[[Chunk, Sequence[Sequence[Any]]], None]
"""Writes rows, each with the values of the new columns."""


@contextlib.contextmanager
def writer(
    path: Path | None, suffix: str, source: Source, kept: Sequence[str] | None, new: Sequence[Column]
) -> Iterator[Write]:
    """Yield a function that writes rows in their order.

    Args:
        path: file to write to; None is standard output.
        suffix: of the format, a key of `WRITES`, ``.gz`` behind it if it is to be zipped; "" is that of the source.
        source: of the rows.
        kept: columns of the source to write; None writes all.
        new: columns to add.

    Raises:
        BadInput: the format cannot hold a column, here or while rows are written.
    """
    kind, zipped = suffix.removesuffix(".gz"), suffix.endswith(".gz")
    if kind in PARQUET:
        assert path is not None
        with _parquet(path, source, kept, new) as write:
            yield write
        return
    separator = SUFFIXES.get(kind, "") if kind or source.dialect is None else source.dialect.delimiter
    _check_text(source, kept)
    dialect = source.dialect or Dialect(separator)
    if separator and dialect.delimiter and kind and SUFFIXES.get(kind_of(Path(source.name))) == separator:
        separator = dialect.delimiter  # a .csv of semicolons stays one
    if separator == "":
        dialect = Dialect("")
    encoding = "utf-8-sig" if dialect.marked else dialect.encoding
    with _text_file(path, encoding, zipped=zipped) as file:
        if separator:
            written = _csv(file, dialect._replace(delimiter=separator), source, kept, new)
        else:
            written = _json(file, source, kept, new, listed=kind == ".json")
        with written as write:
            yield write


@contextlib.contextmanager
def _text_file(path: Path | None, encoding: str, *, zipped: bool) -> Iterator[TextIO]:
    """Yield a text file without translation of line ends; standard output stays open behind it."""
    if path is not None:
        opener = gzip.open if zipped else open
        with cast(TextIO, opener(path, "wt", encoding=encoding, newline="")) as file:
            yield file
        return
    sys.stdout.flush()
    file = io.TextIOWrapper(cast(IO[bytes], sys.stdout.buffer), encoding=encoding, newline="")
    try:
        yield file
        file.flush()
    finally:
        with contextlib.suppress(BrokenPipeError):
            file.detach()


def _check_twice(source: Source, kept: Sequence[str] | None, form: str) -> None:
    """Refuse two columns of one name, of which all but CSV would keep one."""
    columns = [name for name in source.columns or () if kept is None or name in kept]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        what = f"two columns are named {twice!r}, which {form} cannot hold"
        raise BadInput(f"{source.name}: {what}: write to a .csv file")


def _check_text(source: Source, kept: Sequence[str] | None) -> None:
    """Refuse bytes and media, which text cannot hold."""
    for name in (kept or source.columns or ()) if source.table is not None else ():
        kind = source.table.unreadable(name) if source.table is not None else ""
        if kind == "bytes" or kind.startswith("the type"):
            raise BadInput(f"{source.name}: column {name!r} holds {kind}, which text cannot: write to a .parquet file")


@contextlib.contextmanager
def _csv(
    file: TextIO, dialect: Dialect, source: Source, kept: Sequence[str] | None, new: Sequence[Column]
) -> Iterator[Write]:
    """Yield what writes rows as a table; of JSON the columns are those of the first chunk."""
    lines = csv.writer(file, delimiter=dialect.delimiter, lineterminator=dialect.newline)
    names = [column.name for column in new]
    columns: list[str] = []
    indices: list[int] | None = None

    def begin(chunk: Chunk) -> None:
        nonlocal indices
        if source.columns is not None and source.header is not None:
            indices = [i for i, name in enumerate(source.columns) if kept is None or name in kept]
            columns.extend(source.columns[i] for i in indices)
            header = [source.header[i] for i in indices]
        else:
            seen = dict.fromkeys(name for record in chunk.records for name in record.cells)
            columns.extend(seen if kept is None else kept)
            header = columns
        if dialect.named:
            file.write(f"sep={dialect.delimiter}{dialect.newline}")
        lines.writerow([*header, *names])

    def write(chunk: Chunk, values: Sequence[Sequence[Any]]) -> None:
        try:
            if not columns:
                begin(chunk)
            for record, more in zip(chunk.records, values, strict=True):
                if isinstance(record.raw, list) and indices is not None:
                    cells = [record.raw[i] for i in indices]
                else:
                    _check_known(source, record, columns, kept)
                    cells = [_cell(record.cells.get(name)) for name in columns]
                lines.writerow([*cells, *map(_cell, more)])
        except UnicodeEncodeError as error:
            raise BadInput(
                f"{error.object[error.start]!r} of a label is no letter of {error.encoding}: write to a .jsonl file"
            ) from None

    yield write
    if not columns:
        begin(Chunk([]))


def _check_known(source: Source, record: Record, columns: Sequence[str], kept: Sequence[str] | None) -> None:
    """Refuse a row of JSON with a column that the first rows had not: it would be lost."""
    others = record.cells.keys() - columns if kept is None else ()
    if others:
        raise BadInput(
            f"{source.name}, {source.unit} {record.number}: column {min(others)!r} is in none of the first rows, and "
            "the names of columns are written already: write to a .jsonl file"
        )


def _cell(value: Any) -> str:
    """Return a value as the cell of a table."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _is_no_number(value: Any) -> bool:
    """Return whether a value is NaN or infinite, for which JSON has no word."""
    return isinstance(value, float) and not math.isfinite(value)


@contextlib.contextmanager
def _json(
    file: TextIO, source: Source, kept: Sequence[str] | None, new: Sequence[Column], *, listed: bool
) -> Iterator[Write]:
    """Yield what writes objects, one a line; what was JSON keeps its very text."""
    _check_twice(source, kept, "JSON")
    names = [column.name for column in new]
    begun = False

    def write(chunk: Chunk, values: Sequence[Sequence[Any]]) -> None:
        nonlocal begun
        for record, more in zip(chunk.records, values, strict=True):
            added = dict(zip(names, more, strict=True))
            if isinstance(record.raw, str) and kept is None and record.cells:
                text = f"{record.raw[:-1].rstrip()}, {json.dumps(added, ensure_ascii=False)[1:]}"
            else:
                cells = record.cells if kept is None else {name: record.cells.get(name) for name in kept}
                numbers = {name: None for name, value in cells.items() if _is_no_number(value)}
                text = json.dumps({**cells, **numbers, **added}, ensure_ascii=False, default=str)
            file.write(f"{',' if begun else '['}\n{text}" if listed else f"{text}\n")
            begun = True

    yield write
    if listed:
        file.write("\n]\n" if begun else "[]\n")


@contextlib.contextmanager
def _parquet(path: Path, source: Source, kept: Sequence[str] | None, new: Sequence[Column]) -> Iterator[Write]:
    """Yield what writes row groups; columns of Parquet keep their types, text stays text, JSON's types are inferred."""
    arrow = arrow_rows.need_pyarrow(path)
    from pyarrow import parquet

    _check_twice(source, kept, "Parquet")
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float32(), list: arrow.list_(arrow.float32())}
    fields = [arrow.field(column.name, kinds[column.kind]) for column in new]
    base: Any = None  # the schema without the new columns
    if source.table is not None:
        base = arrow.schema([f for f in source.table.schema if kept is None or f.name in kept])
    elif source.columns is not None:
        base = arrow.schema([(name, arrow.string()) for name in source.columns if kept is None or name in kept])
    out: Any = None

    def read(chunk: Chunk) -> Any:
        if chunk.batch is not None:
            return arrow.Table.from_batches([chunk.batch]).select(base.names)
        for record in chunk.records if base is not None else ():
            _check_known(source, record, base.names, kept)
        rows = [{n: v for n, v in record.cells.items() if kept is None or n in kept} for record in chunk.records]
        return arrow.Table.from_pylist(rows, schema=base)

    def write(chunk: Chunk, values: Sequence[Sequence[Any]]) -> None:
        nonlocal base, out
        try:
            table = read(chunk)
            base = base or table.schema
            for field, column in zip(fields, zip(*values, strict=True), strict=True):
                table = table.append_column(field, arrow.array(list(column), field.type))
            out = out or parquet.ParquetWriter(path, table.schema)
            out.write_table(table)
        except arrow.ArrowException as error:
            raise BadInput(
                f"{source.name}: from {source.unit} {chunk.records[0].number} on a column is of another type than "
                f"before ({str(error).splitlines()[0][:200]}): write to a .jsonl file"
            ) from None

    try:
        yield write
        out = out or parquet.ParquetWriter(path, arrow.schema([*(base or ()), *fields]))
    finally:
        if out is not None:
            out.close()

"""Rows of Parquet and Arrow files, and of tables in memory: batch by batch, the needed columns alone.

Columns that nobody asked for are neither read nor decoded, so a table may be larger than memory and hold images.
Files are read by pyarrow, which `datasets` brings.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.tasks.files import Row

SUFFIXES: Final = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
BATCH: Final = 1024
"""Rows that are Python objects at a time."""
IMAGES: Final = ("Image", "Audio", "Video", "Pdf", "Nifti")
"""What `datasets` calls columns of media."""


class ArrowRows(NamedTuple):
    """A table whose rows are read when they are asked for."""

    name: str
    """For sentences: the file."""
    schema: Any
    """`pyarrow.Schema`."""
    batches: Callable[[list[str], int], Iterator[Any]]
    """Columns and the number of rows at most -> `pyarrow.RecordBatch` or `pyarrow.Table`, again from the start."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        return tuple(self.schema.names)

    def rows(self, columns: Sequence[str] | None = None, *, batch_size: int = BATCH) -> Iterator[list[Row]]:
        """Yield lists of rows as Python objects, in order.

        Args:
            columns: the ones to read, each of which must be there once; None reads all.
            batch_size: rows of a list, at most.

        Raises:
            BadInput: the file is damaged, or holds what Python has no objects for.
        """
        with readable(self.name):
            for batch in self.batches(list(self.columns if columns is None else columns), batch_size):
                yield objects(batch)

    def class_names(self, column: str) -> tuple[str, ...]:
        """Return the names of the classes 0, 1, ... of a column, as `datasets` keeps them; () if it has none."""
        return tuple(map(str, self._feature(column).get("names") or ()))

    def unreadable(self, column: str) -> str:
        """Return what a column holds if no cell of it is a text or a number, such as ``lists``; else an empty text."""
        import pyarrow.types as kinds

        media = self._feature(column).get("_type")
        if media in IMAGES:
            return f"the type {media}"
        kind = self.schema.field(column).type
        nested = {"lists": kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)}
        nested |= {"structs": kinds.is_struct(kind), "maps": kinds.is_map(kind)}
        nested |= {"bytes": kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind)}
        return next((name for name, holds in nested.items() if holds), "")

    def _feature(self, column: str) -> dict[str, Any]:
        """What `datasets` wrote of a column into the table's metadata."""
        text = (self.schema.metadata or {}).get(b"huggingface", b"{}")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            feature = json.loads(text)["info"]["features"][column]
            return feature if isinstance(feature, dict) else {}
        return {}


def open_file(path: Path) -> ArrowRows:
    """Return the rows of a Parquet file, an Arrow file (also Feather 2) or an Arrow stream.

    Raises:
        BadInput: pyarrow is missing, or the file is none of these.
    """
    pyarrow = need_pyarrow(path)
    with readable(path):
        with path.open("rb") as file:
            magic = file.read(6)
        if magic[:4] == b"PAR1":
            return _parquet(path)
        if magic[:4] == b"FEA1":
            raise BadInput(f"{path} is Feather of version 1: write it again with a current pandas or pyarrow")
        return _arrow(path, pyarrow.ipc.open_file if magic == b"ARROW1" else pyarrow.ipc.open_stream)


def of_table(table: Any, name: str) -> ArrowRows:
    """Return the rows of a `pyarrow.Table`."""
    return ArrowRows(name, table.schema, lambda columns, size: iter(table.select(columns).to_batches(size)))


def of_dataset(dataset: Any, name: str) -> ArrowRows:
    """Return the rows of a `datasets.Dataset`, whatever its format; nothing of it is decoded."""
    return ArrowRows(
        name,
        dataset.features.arrow_schema,
        lambda columns, size: dataset.with_format("arrow").select_columns(columns).iter(size),
    )


def need_pyarrow(what: object) -> Any:
    """Return the module pyarrow.

    Raises:
        BadInput: it is not installed; the message names what asked for it.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise BadInput(f"reading {what} needs the package 'pyarrow': pip install 'gradless[data]'") from None
    return pyarrow


def _parquet(path: Path) -> ArrowRows:
    from pyarrow import parquet

    def batches(columns: list[str], size: int) -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(size, columns=columns)

    with parquet.ParquetFile(path) as file:
        return ArrowRows(str(path), file.schema_arrow, batches)


def _arrow(path: Path, opened: Callable[..., Any]) -> ArrowRows:
    """Return the rows of an Arrow file or stream; columns that nobody asked for stay on the disk."""
    import pyarrow

    def batches(columns: list[str], size: int) -> Iterator[Any]:
        fields = [schema.names.index(name) for name in columns]
        options = pyarrow.ipc.IpcReadOptions(included_fields=fields)
        with pyarrow.memory_map(str(path)) as file, opened(file, options=options) as reader:
            whole = (reader.get_batch(i) for i in range(reader.num_record_batches)) if _is_file(reader) else reader
            for batch in whole:
                yield from (batch.slice(start, size) for start in range(0, batch.num_rows, size))

    with pyarrow.memory_map(str(path)) as file, opened(file) as reader:
        schema = reader.schema
    return ArrowRows(str(path), schema, batches)


def objects(batch: Any) -> list[Row]:
    """Return rows as Python objects; numbers of 16 and 32 bits as they are written, 0.1 and not 0.10000000149."""
    import numpy

    rows: list[Row] = batch.to_pylist()
    for field in batch.schema:
        if str(field.type) in ("float", "halffloat"):
            narrow = getattr(numpy, field.type.to_pandas_dtype().__name__)
            for row in rows:
                row[field.name] = None if row[field.name] is None else float(str(narrow(row[field.name])))
    return rows


def _is_file(reader: Any) -> bool:
    return hasattr(reader, "num_record_batches")


@contextlib.contextmanager
def readable(name: object) -> Iterator[None]:
    """Tell in one sentence what pyarrow cannot read."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BadInput(f"{name} is damaged, or of another kind than its name says ({reason}): write it again") from None
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror or error}") from None

"""Reading data files: lines, JSONL, tables, and folders that hold the splits of a data set.

Every file may be gzipped. Text is split at line feeds only: `str.splitlines` would also split at U+0085 and
U+2028, which occur inside sentences of the movie-review data. Every error is a `BadInput` that names file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO, TypeAlias

from gradless.errors import BadInput
from gradless.system import typed

Row: TypeAlias = dict[str, Any]
"""One record: field name -> value."""


class ReadRow(dict[str, Any]):
    """A row that knows where it was read, so that a later refusal can say it."""

    __slots__ = ("number", "source")

    def __init__(self, row: Row, source: str, number: int) -> None:
        """Copy a row that was read from the file ``source``, from line ``number`` (counted from 1)."""
        super().__init__(row)
        self.source, self.number = source, number


class Unusable(ValueError):
    """A line or row that cannot be used; the message says why and what to do."""


Numbered: TypeAlias = Iterator[tuple[int, Row | Unusable]]
"""Rows with the number of their line in the file, from 1; what is broken comes in place of its row."""

BLANK = " \t\r\n"
"""What is stripped from text. `str.strip` would also remove U+0085."""
SHOWN_LINES, SHOWN_PROBLEMS = 8, 5


def listed(problems: Mapping[tuple[str, str], Sequence[object]], total: int) -> str:
    """Return everything that is wrong in a file: ``3 of 90 lines cannot be used: lines 3, 7: WHY; line 9: WHY``.

    Args:
        problems: What is counted (``line`` or ``row``) and what is wrong -> their numbers.
        total: How many there are in the file.
    """
    parts = []
    for (unit, what), numbers in [*problems.items()][:SHOWN_PROBLEMS]:
        more = f" and {len(numbers) - SHOWN_LINES} more" if len(numbers) > SHOWN_LINES else ""
        shown = ", ".join(map(str, numbers[:SHOWN_LINES]))
        parts.append(f"{unit}{'s' if len(numbers) > 1 else ''} {shown}{more}: {what}")
    rest = sum(len(numbers) for numbers in [*problems.values()][SHOWN_PROBLEMS:])
    parts += [f"and {rest} more"] if rest else []
    bad, (unit, _) = sum(map(len, problems.values())), next(iter(problems))
    lead = f"{bad} of {total} {unit}s cannot be used: " if len(problems) > 1 else ""
    return lead + "; ".join(parts)


KEPT: Final = "surrogateescape"
"""How bytes that an encoding lacks are read where rows are: as lone surrogates."""


@contextmanager
def text_file(path: Path, encoding: str = "utf-8-sig", newline: str = "\n", errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file, gzipped or not.

    Raises:
        BadInput: For a file that cannot be read, is damaged, or has another encoding.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding=encoding, newline=newline, errors=errors) as file:
                yield file
        else:
            with path.open(encoding=encoding, newline=newline, errors=errors) as file:
                yield file
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not {encoding} text ({error.reason}): convert it to UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path} is a damaged gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers and without their ends.

    Bytes that the encoding lacks come as lone surrogates, so that a reader can tell all such rows (see `_undecodable`).
    """
    with text_file(path, encoding, errors=KEPT) as file:
        for number, line in enumerate(file, start=1):
            if line.strip(BLANK):
                yield number, line.rstrip("\r\n")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, in which numbers may be NaN.

    Raises:
        ValueError: as `typed.parse_json`; or half of a surrogate pair, which no file and no tokenizer can take.
    """
    try:
        value = typed.parse_json(text, finite=False)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f" in line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(f"{error.msg}{where}") from error
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    return value


def jsonl(path: Path) -> Numbered:
    """Yield the objects of a file with one JSON object per line."""
    for number, line in lines(path):
        try:
            row = parse_json(line)
        except ValueError as error:
            yield number, Unusable(f"broken JSON ({error}): write one object a line")
            continue
        yield number, row if isinstance(row, dict) else Unusable("not a JSON object: write one object a line")


def json_value(path: Path) -> Any:
    """Return the one JSON value that a file holds."""
    with text_file(path) as file:
        text = file.read()
    try:
        return parse_json(text)
    except ValueError as error:
        raise BadInput(f"{path}: broken JSON ({error}): fetch it again") from error


def table(path: Path, delimiter: str = "\t", columns: Sequence[str] | None = None) -> Numbered:
    """Yield the rows of a CSV or TSV with quoted fields; its first line names the columns unless ``columns`` does."""
    with text_file(path, newline="", errors=KEPT) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = list(columns) if columns is not None else next(reader, None)
            if header is None:
                return
            for cells in reader:
                if cells:
                    yield reader.line_num, _record(header, cells)
        except csv.Error as error:
            raise BadInput(f"{path}, line {reader.line_num}: {error}: quote fields that hold quotes") from error


def plain_table(path: Path, columns: Sequence[str] | None = None, *, skip_short: bool = False) -> Numbered:
    """Yield the rows of a TSV in which quotes mean nothing, as in GLUE.

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
            yield number, _record(header, cells)


def json_list(path: Path) -> Numbered:
    """Yield the records of a file that holds one JSON list."""
    value = json_value(path)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadInput(f"{path} is not a JSON list of records: fetch it again")
    yield from enumerate(value, start=1)


def _record(header: Sequence[str], cells: Sequence[str]) -> Row | Unusable:
    if len(cells) != len(header):
        return Unusable(f"{len(cells)} fields where {len(header)} are expected: correct the line")
    return dict(zip(header, cells, strict=True))


def rated_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[int, Row]]:
    """Yield the rows of lines ``<label> <text>`` (the stsa.* and *.all files)."""
    for number, line in lines(path, encoding):
        value, _, text = line.partition(" ")
        yield number, {"label": value, "sentence": text}


def one_class(value: int, encoding: str = "utf-8-sig") -> Callable[[Path], Numbered]:
    """Return a parser of files with one example per line, all of class ``value``."""

    def parse(path: Path) -> Numbered:
        for number, line in lines(path, encoding):
            yield number, {"label": value, "sentence": line}

    return parse


def field(row: Row, *names: str) -> Any:
    """Return the first of the named fields that the row has.

    Raises:
        KeyError: With the first name, if the row has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(names[0])


def class_index(value: Any, names: Sequence[str]) -> int:
    """Return a label as an index into ``names``; it may be the index (also as text or bool) or the name.

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
    """Its name; if it is absent, NAME.gz is read."""
    parse: Callable[[Path], Numbered]


Layout: TypeAlias = tuple[Part, ...]
"""Files that belong together. Of the parts of one split the first that exists is used; of pool, all are."""


def layout(parse: Callable[[Path], Numbered], **files: str) -> Layout:
    """Return a layout whose files have one format: ``layout(jsonl, train="a.jsonl", test="b.jsonl")``."""
    return tuple(Part(split, file, parse) for split, file in files.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Reader of a data set's files: ``Folder(...)(path)`` returns the rows by split."""

    subfolders: tuple[str, ...]
    """The files may lie in one of these below the folder (searched first), or in the folder itself."""
    layouts: tuple[Layout, ...]
    """Tried in order; the first one of which any file exists is used."""
    tidy: Callable[[Row], Iterable[Row]]
    """A raw record -> canonical rows: none (by definition of the data set it is no example), one, or many (nested
    files). Raises KeyError for a missing field and ValueError for an impossible value."""
    hold_out: int = 2000
    """Pool files: number of rows, at most half of all, that a fixed permutation draws for the test split."""

    def __call__(self, folder: Path) -> dict[str, list[Row]]:
        """Return the rows of every split that the folder holds, in file order.

        Raises:
            BadInput: If the folder or all of the files are missing, or a file cannot be used.
        """
        if not folder.is_dir():
            raise BadInput(
                f"{folder} is not a folder: name the folder that holds the files with --data, or data = ... in a file"
            )
        for directory in [*(folder / name for name in self.subfolders), folder]:
            for parts in self.layouts:
                present = [(part, path) for part in parts if (path := _existing(directory / part.file)) is not None]
                if present:
                    return self._collect(present)
        expected = "; or ".join(", ".join(part.file for part in parts) for parts in self.layouts)
        raise BadInput(f"no data file found in {folder}: expected {expected} (each may be gzipped)")

    def expects(self, split: str) -> tuple[str, ...]:
        """Return the names of the files that would hold ``split``."""
        names = (part.file for parts in self.layouts for part in parts if part.split in (split, "pool"))
        return tuple(dict.fromkeys(names))

    def _collect(self, present: list[tuple[Part, Path]]) -> dict[str, list[Row]]:
        splits: dict[str, list[Row]] = {}
        refused: list[str] = []
        for part, path in present:
            if part.split == "pool" or part.split not in splits:
                try:
                    splits.setdefault(part.split, []).extend(self._rows(part, path))
                except BadInput as error:  # of all files, what is wrong is told at once
                    refused.append(str(error))
        if refused:
            raise BadInput("; ".join(refused))
        pool = splits.pop("pool", [])
        return splits | _split_pool(pool, self.hold_out) if pool else splits

    def _rows(self, part: Part, path: Path) -> list[Row]:
        rows: list[Row] = []
        problems: dict[tuple[str, str], list[int]] = {}
        total, number = 0, 0
        try:
            for total, (number, raw) in enumerate(part.parse(path), 1):  # noqa: B007 (all of them are counted)
                try:
                    rows += (ReadRow(row, str(path), number) for row in _tidied(raw, self.tidy))
                except (KeyError, ValueError, TypeError) as error:
                    problems.setdefault(_problem(error, raw), []).append(number)
        except BadInput:
            raise
        except (KeyError, ValueError, TypeError) as error:  # of a nested file, which cannot be read on
            problems[_problem(error, {})] = [number + 1]
        if problems:
            raise BadInput(f"{path}, {listed(problems, total)}")
        if total == 0:
            raise BadInput(f"{path} is empty: fetch it again")
        return rows


def _problem(error: Exception, raw: Row | Unusable) -> tuple[str, str]:
    """Return the unit in which the number of a bad row counts, and what is wrong with it."""
    if isinstance(error, Unusable):
        return "line", str(error)
    what = str(error)
    if isinstance(error, KeyError):
        names = ", ".join(raw) if isinstance(raw, dict) else ""
        what = f"no field {error} (there are: {names or 'none'})"
    return "record", f"{what}: is this another task's data?"


def _tidied(raw: Row | Unusable, tidy: Callable[[Row], Iterable[Row]]) -> list[Row]:
    """Return the canonical rows of a raw record.

    Raises:
        Unusable: it is broken.
        KeyError, ValueError, TypeError: it is another task's, see `Folder.tidy`.
    """
    if isinstance(raw, Unusable):
        raise raw
    if any(isinstance(value, str) and _undecodable(value) for value in raw.values()):
        raise Unusable("this is no UTF-8 text: convert the file to UTF-8")
    return [*tidy(raw)]


def _undecodable(text: str) -> bool:
    """Return whether a text holds bytes that its encoding lacks, as `KEPT` reads them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _existing(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _split_pool(pool: list[Row], hold_out: int) -> dict[str, list[Row]]:
    from gradless.rng import permutation  # lazy: it imports torch, which listing the tasks does not need

    order = permutation(len(pool), seed=0, stream="split/pool").tolist()
    held = min(hold_out, len(pool) // 2)
    return {"test": [pool[i] for i in order[:held]], "train": [pool[i] for i in order[held:]]}

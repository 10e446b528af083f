"""Files of new rows, which are likely written as the rows were that a model was tuned on."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable
from pathlib import Path

from gradless.errors import BadInput
from gradless.tasks.encodings import MARKS
from gradless.tasks.text_rows import DELIMITERS, SUFFIXES, Wanted, kind_of, open_file, open_rows, unzipped

SIZE = 1 << 20


def as_before(
    path: Path, wanted: Wanted, encoding: str | None, delimiter: str | None, say: Callable[[str], None]
) -> Wanted:
    """Return how a file is written: as the user says, else as it tells itself, else as the rows of the tuning were.

    Args:
        path: a file of rows, of any kind.
        wanted: columns, and what the user says of this file.
        encoding: of the rows of the tuning.
        delimiter: of them.
        say: receives a line for what is taken from the tuning.

    Cost: where the tuning had another encoding than UTF-8, the file is read once.
    """
    if not path.is_file() or kind_of(path) not in SUFFIXES:
        return wanted
    if encoding and not wanted.encoding and not _is_utf8(path):
        say(f"{path} is no UTF-8 text: it is read as {encoding}, as the rows of the tuning were")
        wanted = wanted._replace(encoding=encoding)
    if delimiter and delimiter not in DELIMITERS and not wanted.delimiter and SUFFIXES[kind_of(path)]:
        again = wanted._replace(delimiter=delimiter)
        if not _names(path, wanted) and _names(path, again):
            say(f"cells of {path} are separated by {delimiter!r}, as those of the tuning were")
            return again
    return wanted


def _is_utf8(path: Path) -> bool:
    """Return whether a file is UTF-8, or begins with the mark of another encoding; a damaged one is told elsewhere."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open_file(path) as file:
            data = unzipped(str(path), file)
            if data.peek(4)[:4].startswith((*MARKS,)):
                return True
            while piece := data.read(SIZE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except (BadInput, OSError, EOFError, zlib.error):
        return True
    return True


def _names(path: Path, wanted: Wanted) -> bool:
    """Return whether the header of a table names all columns."""
    try:
        with open_file(path) as file:
            columns = open_rows(str(path), file, SUFFIXES[kind_of(path)], wanted).columns
    except BadInput:
        return False
    return columns is not None and {*wanted.names} <= {*columns}

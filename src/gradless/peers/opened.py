"""Rows that a peer opens to an auditor: their file, and what is read in it.

All of it was written by the peer that is checked. A commitment shows that bytes were not chosen later, and nothing
about what they hold: they are parsed as strictly as a message of a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from gradless.errors import BadInput
from gradless.peers.claims import Opening, row_bytes
from gradless.system import typed
from gradless.system.atomic import write_text
from gradless.tasks import own as own_tasks

LONGEST: Final = 1 << 20
"""Characters of an opened row."""
LARGEST: Final = 1 << 28
"""Bytes of a file of opened rows."""


class _OpenedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    place: int
    row: Annotated[str, msgspec.Meta(max_length=LONGEST)]
    salt: str
    path: list[str]


class _Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run: str
    peer: str
    rows: list[_OpenedRow]


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is committed to: see `gradless.peers.claims.row_bytes`."""

    columns: dict[str, str]
    label: Annotated[int, msgspec.Meta(ge=0)]


def write_opened(path: Path, run: str, peer: str, openings: Sequence[Opening]) -> None:
    """Write openings for an auditor, as JSON.

    Raises:
        BadInput: rows that no auditor would read, since they are too large.
    """
    rows = [
        _OpenedRow(one.place, one.row.decode(), one.salt.hex(), [part.hex() for part in one.path]) for one in openings
    ]
    data = msgspec.json.encode(_Opened(run, peer, rows)) + b"\n"
    if len(data) > LARGEST or any(len(row.row) > LONGEST for row in rows):
        raise BadInput(
            f"the rows of the drawn steps are too long to be opened (a row has at most {LONGEST:,} characters, a file "
            f"{LARGEST >> 20} MiB): have your claims checked with --data"
        )
    write_text(path, data.decode())


def read_opened(path: Path, run: str, peer: str) -> list[Opening]:
    """Return the openings in a file.

    Raises:
        BadInput: no such file, one that is too large, or of another run or peer.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise BadInput(f"{path} is larger than {LARGEST >> 20} MiB, as no file of opened rows is: do not read it")
        held = msgspec.json.decode(data, type=_Opened)
        rows = [
            Opening(one.place, one.row.encode(), bytes.fromhex(one.salt), tuple(map(bytes.fromhex, one.path)))
            for one in held.rows
        ]
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): give the file that --open wrote") from None
    except BadInput:
        raise
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise BadInput(f"{path} holds no opened rows ({error}): give the file that --open wrote") from None
    if (held.run, held.peer) != (run, peer):
        theirs = f"{typed.shown(held.peer)} in run {typed.shown(held.run[:12])}"
        raise BadInput(f"{path} opens rows of {theirs}, not of {peer} in run {run[:12]}: give its own")
    return rows


def training_file(openings: Sequence[Opening], own: Mapping[str, Any], peer: str) -> str:
    """Return opened rows as the lines of a training file of JSON, in their order.

    Args:
        openings: rows that the peer is committed to.
        own: template, label_column and labels of the run.
        peer: its name, for sentences.

    Raises:
        BadInput: a row is none that a training file of this run can give.
    """
    values = list(own_tasks.checked_labels(own["labels"]))
    lines = []
    for one in openings:
        row = _parsed(one, peer, len(values))
        lines.append(json.dumps({**row.columns, own["label_column"]: values[row.label]}) + "\n")
    return "".join(lines)


def _parsed(opening: Opening, peer: str, labels: int) -> _Row:
    try:
        row = msgspec.json.decode(opening.row, type=_Row)
        canonical = row_bytes({"columns": row.columns, "label": row.label})
        problem = "" if canonical == opening.row else "it is not written as rows are committed to"
        problem = problem or ("" if row.label < labels else f"label {row.label} of {labels}")
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        problem = str(error)
    if problem:
        raise BadInput(
            f"row {opening.place} of {peer} is no row of this run ({problem}), and its owner committed to it all the "
            "same: its claims cannot be checked, so trust none of them"
        )
    return row

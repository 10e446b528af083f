"""What is intact in a ledger, and cutting it there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gradless.errors import BadInput
from gradless.ledger.file import Examined, cut, examine
from gradless.ledger.header import COMMAND, TRAINER, Header, check_release
from gradless.system.locks import close_appended, opened_for_appending


def report(path: Path) -> tuple[bool, list[str]]:
    """Return whether a ledger is intact to its last byte, and lines that say what it holds.

    Raises:
        BadInput: not a ledger, or a damaged header.
    """
    examined = examine(path)
    header, steps = examined.contents.header, len(examined.contents.moves)
    lines = [
        f"{path}: version {examined.version}, {_writer(header)}",
        f"base weights: {header.get('base_sha256') or header.get('frozen_sha256') or 'not in the header'}",
        f"streams and arithmetic: {_release(header)}",
        f"{steps} steps are intact ({examined.contents.good_bytes} bytes)",
        f"tail: {_tail(examined)}",
    ]
    return not examined.contents.torn_bytes, lines


def _writer(header: Header) -> str:
    """Return who wrote a ledger, in half a sentence."""
    release = f"gradless {header.get('gradless', 'of an unknown release')}"
    if COMMAND in header:
        config = header[COMMAND]
        return f"{release}, tune of {config.get('model')} with {config.get('method')}"
    return f"{release}, ZOTrainer" if TRAINER in header else release


def _release(header: Header) -> str:
    try:
        check_release(header)
    except BadInput as error:
        return str(error)
    return "those of this release"


def _tail(examined: Examined) -> str:
    """Return what lies behind the last intact record."""
    torn = examined.contents.torn_bytes
    if not torn:
        return "none"
    if examined.changed:
        return f"{torn} bytes from a changed or damaged record on ({examined.changed})"
    return f"{torn} bytes that are no record, as a crash leaves them: resuming a run cuts them"


class Repaired(NamedTuple):
    """A ledger that was cut behind its last intact record."""

    steps: int
    lost_bytes: int
    copy: Path | None  # of the whole file; None if there was nothing to cut


def repair(path: Path) -> Repaired:
    """Cut a ledger behind its last intact record, and keep a copy of the whole file beside it.

    Raises:
        BadInput: not a ledger, a damaged header, or another process is writing to it.
        OSError: the copy cannot be written; the ledger is then as it was.
    """
    examine(path)  # refuses what is no ledger before anything is opened for writing
    file = opened_for_appending(path)
    try:
        contents = examine(path).contents
        return Repaired(len(contents.moves), contents.torn_bytes, cut(path, contents))
    finally:
        close_appended(file)

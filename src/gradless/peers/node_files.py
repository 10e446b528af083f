"""Files in the folder of a peer's run, and what others read in them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from gradless.system.atomic import replacing
from gradless.system.locks import LOCK

LOG: Final = "peers.log"
VOTES: Final = "votes.wal"
LEDGER: Final = "ledger"
METRICS: Final = "metrics.jsonl"
STATUS: Final = "status.json"
RESULT: Final = "result.json"
EVIDENCE: Final = "evidence"
BASE: Final = "base"
"""Folder beside a manifest with the weights that its run begins with, if it continues another one."""
LOSABLE: Final = (METRICS, STATUS, RESULT)
"""Files that may be lost, or hold anything, without harm."""


class Result(TypedDict):
    """What others read of a ``result.json``; a run on a reward also counts, under ``rewards``, what functions gave."""

    status: Literal["done", "interrupted"]
    steps: int
    weights_sha256: str
    digest: str
    """Of the last value; empty where nothing was agreed on."""
    seconds: float
    bytes_per_step: float
    """Sent, counted once for each receiver."""
    agree_seconds: float | None
    """Median of a step: from the own row to the decision."""
    accuracy: float | None
    banned: dict[str, int]
    """First step in which messages of a convicted peer count for nothing, by name."""
    # What `gradless replay --verify` and others read of any tuning run (`gradless.runs.record.Result`):
    selected_step: int
    data_sha256: str
    zero_shot: dict[str, float]
    test: dict[str, float]
    interval: dict[str, tuple[float, float]]
    seconds_per_step: float
    ledger_bytes: int
    versions: dict[str, Any]


class Metrics:
    """``metrics.jsonl``, a line an event; a line that a crash tore is cut.

    Args:
        path: the file; it is continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = path.read_bytes() if path.exists() else b""
        kept = whole.rfind(b"\n") + 1
        if kept < len(whole):
            os.truncate(path, kept)
        self._file = path.open("ab", buffering=0)

    def write(self, **values: Any) -> None:
        """Append a line with one write."""
        self._file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Leave nothing in a folder that was empty before, if what begins in it is refused before it has done anything.

    It has once a vote may be signed, and, where no votes are kept, once there is a line of ``metrics.jsonl``.
    """
    existed, was_empty = folder.exists(), not _entries(folder)
    try:
        yield
    except BaseException:
        if was_empty and not _begun(folder):
            for path in _entries(folder):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if not existed:
                folder.rmdir()
        raise


def _begun(folder: Path) -> bool:
    return any(folder.rglob(VOTES)) or any(path.stat().st_size for path in folder.rglob(METRICS))


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, beside the file that locks it."""
    return [path for path in folder.iterdir() if path.name != LOCK] if folder.exists() else []


def write_evidence(folder: Path, name: str, step: int, pair: tuple[bytes, bytes]) -> str:
    """Write two messages that convict a peer; returns the name of the file.

    The file holds each message behind its length (u32, little-endian). With the manifest anybody can check it: two
    messages of one kind, step and round with different contents, both signed by one peer.
    """
    file = f"{name}-{step}.bin"
    path = folder / EVIDENCE / file
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(len(part).to_bytes(4, "little") + part for part in pair))
    return file


def read_evidence(path: Path) -> tuple[bytes, bytes] | None:
    """Return the two messages in a file; None if it holds something else."""
    data, parts = path.read_bytes(), []
    while len(data) >= 4:
        end = 4 + int.from_bytes(data[:4], "little")
        parts.append(data[4:end])
        data = data[end:]
    return (parts[0], parts[1]) if len(parts) == 2 and not data else None


def located(model: str, folder: Path) -> str:
    """Return where a model is that a manifest names: beside the manifest if it is there."""
    beside = folder / model
    return str(beside) if model == BASE and beside.is_dir() else model

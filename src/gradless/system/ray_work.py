"""What tasks on a cluster have in common: threads, variables, and the files of a run before and after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from gradless.system.atomic import replacing
from gradless.system.ray_cluster import Outcome, Work
from gradless.system.shipped import Shipment

THREADS: Final = "OMP_NUM_THREADS"
SENT: Final = ("GRADLESS_ENGINE", "GRADLESS_KERNELS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that a run on a node has from here."""
LIVES: Final = 3
"""Nodes or workers that a run may lose."""
RESULT: Final = "result.json"


def cpus(threads: int | None) -> int:
    """Return the CPUs of a run: its threads, else OMP_NUM_THREADS, else one."""
    usual = os.environ.get(THREADS, "")
    return threads or (int(usual) if usual.isdecimal() and int(usual) else 1)


def environment(threads: int) -> dict[str, str]:
    """Return the variables that a run has on its node beside those of the node."""
    return {name: os.environ[name] for name in SENT if name in os.environ} | {THREADS: str(threads)}


def kept(folder: Path, without: Iterable[str]) -> dict[str, bytes]:
    """Return the files of a run that has begun, by path below its directory, but for some names."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in without]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write(folder: Path, work: Work, outcome: Outcome, shipment: Shipment) -> None:
    """Write the files that a task returns, its result last, with the paths of this machine; remove what it removed.

    Raises:
        OSError: the directory cannot be written.
    """
    for name in sorted(outcome.files, key=lambda one: (one == RESULT, one)):
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            continue
        path = folder / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            new.write_bytes(shipment.returned(name, outcome.files[name], outcome.root))
    for name in work.kept:
        if name not in outcome.files:
            (folder / name).unlink(missing_ok=True)


def lost(reasons: list[str], total: int) -> str:
    """Return a sentence about runs that were lost at once."""
    count = f"{len(reasons)} runs were" if len(reasons) > 1 else "1 run was"
    return f"{count} lost: {reasons[0]} ({total} in all so far); what is lost starts again"

"""What tasks on a cluster have in common: threads, variables, and the files of a run before and after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final

from gradless.system.atomic import FULL, replacing
from gradless.system.ray_cluster import Cluster, Outcome, Work
from gradless.system.shipped import Shipment

THREADS: Final = "OMP_NUM_THREADS"
SENT: Final = ("GRADLESS_ENGINE", "GRADLESS_KERNELS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that a run on a node has from here."""
LIVES: Final = 3
"""Times that a run may be lost."""
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

    Args:
        folder: run directory.
        work: the task.
        outcome: of a task that is not lost; a lost one has no files, though it has removed none.
        shipment: files that the run needed.

    Raises:
        OSError: the directory cannot be written.
    """
    assert not outcome.lost
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


def stderr(folder: Path, work: Work, outcome: Outcome, shipment: Shipment) -> str:
    """Return the stderr of a task with the paths of this machine.

    Args:
        folder: run directory.
        work: the task.
        outcome: how it ended, not lost.
        shipment: files that the run needed.
    """
    text = shipment.returned("stderr.txt", outcome.stderr.encode(), outcome.root).decode()
    return text.replace(f"{outcome.root}/{work.folder}", str(folder))


def ended(cluster: Cluster, seconds: float) -> list[tuple[Work, Outcome]]:
    """Return what `Cluster.ended` does; a run that finds the disk of its node full is lost: others may have room.

    Raises:
        BadInput: as `Cluster.ended`.
    """
    return [(work, _lost_if_full(outcome)) for work, outcome in cluster.ended(seconds)]


def _lost_if_full(outcome: Outcome) -> Outcome:
    reason = next((line.strip() for line in reversed(outcome.stderr.splitlines()) if line.strip()), "")
    if RESULT in outcome.files or not FULL.search(reason):
        return outcome
    return Outcome(lost=f"{outcome.host}: {reason.removeprefix('gradless: ')}", host=outcome.host)


def failure(outcome: Outcome) -> str:
    """Return why a run that was lost `LIVES` times has failed."""
    memory = "" if outcome.host else " (out of memory?)"  # a node that can still be asked tells the reason
    return f"{outcome.lost}, {LIVES} times{memory}"


def on_gpu(device: str, *, has_gpu: bool) -> bool:
    """Return whether a run asks for a GPU: auto does if a node of the cluster has one."""
    return device.startswith("cuda") or (has_gpu and device.startswith("auto"))


def lost(reasons: list[str], total: int) -> str:
    """Return a sentence about runs that were lost at once."""
    count = f"{len(reasons)} runs were" if len(reasons) > 1 else "1 run was"
    return f"{count} lost: {reasons[0]} ({total} in all so far); what is lost starts again"

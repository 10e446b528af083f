"""How a command ends that was given something impossible, and what is wrong with that.

The command line runs in a fork of this process, in which everything is imported already.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final, NamedTuple

from fuzz import Case, World
from gradless.cli import main

LIMIT: Final = 10.0  # seconds until something is refused
WORK: Final = 60.0  # seconds for a command that goes on without the damaged file, such as a page with its pictures


class Ending(NamedTuple):
    """What came of a case."""

    code: int | None
    """None: it was still at work when its time was over."""
    seconds: float
    stderr: str
    changed: tuple[str, ...]
    """Files that were made, changed or removed."""


def run(world: World, one: Case) -> Ending:
    """Call the command line in a fork of this process; kills it when its time is over."""
    limit = WORK if one.kind == "damaged" else LIMIT
    folder = world.folder / "cases" / str(world.cases)
    before = _listing(world.folder)
    errors = world.folder.parent / f"{world.folder.name}-stderr"
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _call(one.arguments, folder, errors)
    code = None
    while time.monotonic() - begun < limit and code is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.003)
    if code is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    seconds = time.monotonic() - begun
    after = _listing(world.folder)
    changed = tuple(sorted(name for name in {*before, *after} if before.get(name) != after.get(name)))
    return Ending(code, seconds, errors.read_text(errors="replace"), changed)


def _call(arguments: list[str], folder: Path, errors: Path) -> None:
    """In the child: never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        null, file = os.open(os.devnull, os.O_RDWR), os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for target, source in ((0, null), (1, null), (2, file)):
            os.dup2(source, target)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        os.environ["HF_HUB_OFFLINE"] = "1"
        main(args=arguments, prog_name="gradless")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder; folders, and what was there but is written anew, count by their names."""
    listed = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        listed[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (facts.st_size, facts.st_mtime_ns)
    return listed


def fault(one: Case, ending: Ending) -> str:
    """Return what is wrong with an ending, or ""."""
    lines = [line for line in ending.stderr.splitlines() if line.strip()]
    if ending.code is None:
        return f"still at work after {ending.seconds:.0f} s"
    if "Traceback" in ending.stderr:
        return f"a traceback: {lines[-1]}"
    if one.kind == "damaged" and ending.code in (0, 1):
        return ""  # a file that may be lost, or damage in a place that nothing depends on
    if ending.code != 2:
        return f"exit code {ending.code}: {' '.join(lines)[-200:]}"
    if ending.seconds > LIMIT:
        return f"refused after {ending.seconds:.0f} s"
    if len(lines) != 1 or not lines[0].startswith("gradless: "):
        return f"{len(lines)} lines: {' | '.join(lines)[:300]}"
    if ending.changed:
        return f"it wrote {', '.join(ending.changed[:5])} and said {lines[0]}"
    if not lines[0].isprintable():
        return f"not printable: {lines[0]!r}"
    return ""

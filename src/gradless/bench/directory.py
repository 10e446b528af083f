"""The directory of a grid: which grids may go on in it, and what is asked for there.

``requests`` holds exactly the runs that are asked for at present, beside ``grid.toml``, a copy of the grid. A grid may
grow in place (more values, seeds, tasks): every run asked for so far then is one of its own, and counts. Final runs
of a point that is no longer the best are no longer asked for; their directories stay, in case it is the best again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradless.bench import grid_file, results
from gradless.bench.grid import Request
from gradless.bench.grid_file import Grid
from gradless.errors import BadInput
from gradless.runs.config import TuneConfig, difference
from gradless.system import locks, typed
from gradless.system.atomic import write_json, write_text
from gradless.system.side_files import read_json
from gradless.system.typed import parse_json, read_text

GRID = "grid.toml"
WHOLE = "directory"  # the lock on results.jsonl, the requests and the grid


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot hold the runs of a grid."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file, not a folder: choose another --out")
    if (out / "config.json").exists():
        raise BadInput(f"{out} holds a single run: choose another --out")


def check_runs(asked: Grid, possible: Sequence[Request], out: Path) -> None:
    """Refuse a directory some of whose runs this grid would never ask for.

    Args:
        asked: the grid.
        possible: every run that it may come to ask for.
        out: the directory, which need not exist.
    """
    known = {one.id for one in possible}
    strange = [path for path in sorted((out / "requests").glob("*.json")) if path.stem not in known]
    strange = [path for path in strange if not _extended(path)]
    if not strange:
        return
    changed = _difference(asked, out)
    if changed:
        raise BadInput(f"{out} holds another grid ({changed}), which can grow but not change: choose another --out")
    reason = _reason(strange[0], possible)
    raise BadInput(f"{out} holds other runs of this grid ({reason}): choose another --out")


def check_grid(asked: Grid, out: Path) -> None:
    """Refuse to go on after another worker has widened the grid: this one does not know all of its runs."""
    changed = _difference(asked, out)
    if changed:
        raise BadInput(f"{out} now holds another grid ({changed}): start this worker again with that grid")


def join(asked: Grid, possible: Sequence[Request], out: Path) -> None:
    """Make the directory, or join the workers in it."""
    for name in ("requests", "runs", "locks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    with alone(out):
        check_runs(asked, possible, out)  # again: another may have begun here with another grid
        if not (out / GRID).exists() or _difference(asked, out):
            write_text(out / GRID, read_text(asked.path))


def ask(wanted: Sequence[Request], out: Path) -> None:
    """Write the requests of the wanted runs and remove all others; only inside `alone`."""
    ids = {one.id for one in wanted}
    for path in (out / "requests").glob("*.json"):
        if path.stem not in ids:
            path.unlink()
    for one in wanted:
        path = results.request_file(out, one.id)
        if not path.exists():
            write_json(path, one.to_json())


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Lock what all workers share: inside the block no other one reads or writes it."""
    with locks.alone(out / "locks" / WHOLE):
        yield


def _extended(path: Path) -> bool:
    """Return whether a request has a value that a search added: of a grid that has grown, others may follow."""
    request = read_json(path)
    return isinstance(request, dict) and request.get("extended") is True


def _difference(asked: Grid, out: Path) -> str | None:
    """Return the first key in which the directory's grid differs, as a sentence, or None."""
    copy = out / GRID
    return grid_file.difference(typed.load(copy), asked.values) if copy.exists() else None


def _reason(path: Path, possible: Sequence[Request]) -> str:
    """Return why the same grid does not know a run: a file beside it, or gradless itself, has changed."""
    try:
        old = parse_json(path.read_text(encoding="utf-8"))
        key = (old["phase"], old["cell"], old["point"], old["seed"])
        same = [one for one in possible if (one.phase, one.cell, one.point, one.seed) == key]
        changed = difference(TuneConfig.from_json(old["config"]), same[0].config) if same else None
    except (BadInput, ValueError, KeyError, TypeError):
        changed = None
    return changed or "its runs were made with another release of gradless"

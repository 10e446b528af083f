"""Run a grid: every run a process, any number of workers on one directory, continued after any interruption.

All that workers know of each other is in the directory: requests, claims and run directories. A worker takes the
first run in the order of the grid that is neither finished nor claimed. Which point of a cell is best follows from its
finished search runs, so every worker comes to the same final runs without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gradless.bench import directory, estimate, grid, results
from gradless.bench import process as processes
from gradless.bench.forkserver import ForkServer
from gradless.bench.grid import FINAL, SEARCH, Cost, Request, cell_name
from gradless.bench.grid_file import Grid
from gradless.bench.process import Child, Command
from gradless.bench.results import overhead
from gradless.errors import BadInput
from gradless.runs import build
from gradless.runs.config import TuneConfig
from gradless.runs.record import DIVERGED, DONE
from gradless.system import finished_runs, locks
from gradless.system.progress import Reporter

__all__ = ["Outcome", "bench", "overhead"]

# Settings that a step's cost does not depend on.
NO_COST = ("lr", "eps", "seed", "steps", "eval_every", "num_train", "num_dev", "num_test", "own", "data")
POLL = 0.2  # seconds between two looks at what runs, and ten times that where only others work


class Outcome(NamedTuple):
    """What a worker leaves behind."""

    total: int
    """Runs that the grid asks for, as far as its choices are made."""
    done: int
    diverged: int
    failed: int
    hopeless: tuple[str, ...]
    """Cells all of whose search runs diverged or failed, so that they have no final run."""
    stopped: str = ""
    """The sentence with which the disk refused; the same call continues."""

    def __bool__(self) -> bool:
        """Whether nothing is left to do."""
        return not self.stopped


@dataclass(kw_only=True, slots=True)
class Board:
    """What one worker knows."""

    grid: Grid
    out: Path
    possible: list[Request]
    """In the order in which runs are started."""
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of finished runs, by id."""
    settled: set[str] = field(default_factory=set)
    wanted: list[Request] = field(default_factory=list)
    hopeless: list[str] = field(default_factory=list)


def bench(
    grid_path: Path,
    out: Path,
    *,
    workers: int = 1,
    dry_run: bool = False,
    threads: int | None = None,
    known: Sequence[Path] = (),
    reporter: Reporter | None = None,
    cost: Cost | None = None,
    command: Command = processes.command,
    poll: float = POLL,
) -> Outcome:
    """Make all runs of a grid that are not finished yet, and write ``results.jsonl``.

    Args:
        grid_path: TOML file, see `gradless.bench.grid`.
        out: bench directory; several calls may work on it at once.
        workers: runs at a time.
        dry_run: only tell what there is to do and what it is expected to take; nothing is written.
        threads: of each run; None leaves it to the environment.
        known: ``results.jsonl`` of other directories; runs that are finished there are not made again.
        reporter: where progress goes.
        cost: forwards of a step of a configuration; None: `gradless.runs.build.step_cost`.
        command: makes the command line of a run.
        poll: seconds between two looks at the processes.

    Raises:
        BadInput: anything wrong with the grid or the directory, before anything runs.
        OSError: the directory cannot be written; runs are stopped first, and the same call continues.
        KeyboardInterrupt: the same after Ctrl-C.
    """
    reporter = reporter or Reporter()
    for name, number in (("workers", workers), ("threads", threads)):
        if number is not None and number < 1:
            raise BadInput(f"--{name} is {number}: it must be at least 1")
    asked, price = grid.read(grid_path), _remembered(cost or build.step_cost)
    out = out.resolve()
    directory.check_folder(out)
    board = Board(grid=asked, out=out, possible=_in_order(asked, price))
    directory.check_runs(asked, board.possible, out)
    _check_data(board)
    lines = _known(board, known)
    if dry_run:
        board.lines.update(lines)
        board.settled.update(lines)
        _refresh(board)
        estimate.show(board.wanted, _expected(board), board.lines, price, reporter.say)
        return _outcome(board)
    directory.join(asked, board.possible, out)
    with directory.alone(out):
        taken_over = finished_runs.take_over(lines, out / "runs")
    if lines:
        reporter.say(f"{taken_over} of {len(lines)} runs taken over; the others are here or have begun")
    return _work(board, workers, threads, reporter, command, poll)


# ---------------------------------------------------------------------------------------------------------------
# before anything runs


def _in_order(asked: Grid, cost: Cost) -> list[Request]:
    """Every possible run: untouched models first, then cell by cell, each cell's search before its final runs."""
    places = {cell.name: place for place, cell in enumerate(grid.cells(asked))}
    runs = grid.possible_runs(asked, cost)
    return sorted(runs, key=lambda one: (places.get(cell_name(one.cell), -1), one.phase == FINAL))


def _remembered(cost: Cost) -> Cost:
    """Ask once for all runs that differ in nothing that a step's cost could depend on: it may take a model to tell."""
    known: dict[str, int] = {}

    def told(config: TuneConfig) -> int:
        values = {name: value for name, value in config.to_json().items() if name not in NO_COST}
        key = json.dumps(values, sort_keys=True)
        if key not in known:
            known[key] = cost(config)
        return known[key]

    return told


def _check_data(board: Board) -> None:
    """Read the local files of each task once, so that a missing file or row is known at once."""
    seen = set()
    for one in board.possible:
        config = one.config
        sizes = (config.num_train, config.num_dev, config.num_test, config.k_shot)
        key = json.dumps([config.task, config.data, config.own, sizes], sort_keys=True)
        if one.phase == FINAL and key not in seen and (config.data or config.own):
            seen.add(key)
            try:
                build.load_task(config)
            except BadInput as error:
                raise BadInput(f"{board.grid.path}: cell {cell_name(one.cell)}: {error}") from None


def _known(board: Board, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Runs of this grid that are finished elsewhere."""
    ids = [one.id for one in board.possible]
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        found |= finished_runs.finished(path, ids, (DONE, DIVERGED))
    return found


def _expected(board: Board) -> list[Request]:
    """Final runs of cells whose point is not chosen yet, at their first point instead."""
    open_cells = {cell_name(one.cell) for one in board.wanted if one.phase == SEARCH}
    open_cells -= {cell_name(one.cell) for one in board.wanted if one.phase == FINAL} | set(board.hopeless)
    first = {cell.name: cell.points[0] for cell in grid.cells(board.grid)}
    finals = [one for one in board.possible if one.phase == FINAL and cell_name(one.cell) in open_cells]
    return [one for one in finals if one.point == first[cell_name(one.cell)]]


# ---------------------------------------------------------------------------------------------------------------
# the work


def _work(
    board: Board, workers: int, threads: int | None, reporter: Reporter, command: Command, poll: float
) -> Outcome:
    """Start, watch and record runs until none is left to anybody."""
    children: list[Child] = []
    stopped, waits, looked = "", False, 0.0
    with _terminable(), processes.fork_server(board.possible if command is processes.command else []) as home:
        try:
            _record(board, reporter)
            while not stopped:
                left = [one for one in board.wanted if one.id not in board.lines]
                _start_free(board, left, children, workers, threads, command, home)
                if not left and not children:
                    break
                if not children and not waits:
                    waits = True
                    reporter.say("waiting for runs that others do")
                time.sleep(0 if children else 10 * poll)
                ended = _ended(children, poll)
                if ended:
                    stopped = _finish(board, children, ended, reporter)
                elif len(children) < workers and time.monotonic() - looked > 10 * poll:
                    _record(board, reporter)  # what others finished may set runs free
                    looked = time.monotonic()
        finally:
            processes.stop(children, board.out)
    if stopped:
        reporter.say(f"stopped: {stopped}; the same command then continues")
    else:
        _record(board, reporter)
        reporter.say(_summary(board))
    return _outcome(board)._replace(stopped=stopped)


def _start_free(
    board: Board,
    left: list[Request],
    children: list[Child],
    workers: int,
    threads: int | None,
    command: Command,
    home: ForkServer | None,
) -> None:
    """Claim and start runs until this worker is busy."""
    mine = {child.request.id for child in children}
    for one in left:
        if len(children) >= workers:
            return
        claim = None if one.id in mine else locks.take(board.out / "locks" / one.id)
        if claim is None:
            continue
        if results.line(board.out, one) is not None:  # another finished it before it gave its claim back
            os.close(claim)
            continue
        try:
            children.append(processes.start(one, board.out, claim, threads, command, home))
        except BaseException:
            os.close(claim)
            raise


def _ended(children: list[Child], poll: float) -> list[tuple[Child, str]]:
    """Those that have ended, after at most about ``poll`` seconds, and what they said on stderr."""
    share = poll / max(len(children), 1)
    said = [(child, processes.ended(child, share)) for child in children]
    return [(child, stderr) for child, stderr in said if stderr is not None]


def _finish(board: Board, children: list[Child], ended: list[tuple[Child, str]], reporter: Reporter) -> str:
    """Record ended processes and give their claims back; returns why to stop, if the disk is full."""
    for child, _ in ended:
        children.remove(child)
    try:
        said = [processes.close(child, stderr, board.out) for child, stderr in ended]
        stopped = next((sentence for sentence in said if sentence), "")
        if not stopped:
            _record(board, reporter, [child.request for child, _ in ended])
        return stopped
    finally:
        for child, _ in ended:
            os.close(child.lock)  # after its result can be seen by all


def _record(board: Board, reporter: Reporter, made: list[Request] | None = None) -> None:
    """Learn what is finished, ask for what follows from it, and write both down."""
    before, known = len(board.settled), set(board.hopeless)
    with directory.alone(board.out):
        directory.check_grid(board.grid, board.out)
        _refresh(board)
        directory.ask(board.wanted, board.out)
        if len(board.settled) > before or made or not (board.out / results.RESULTS).exists():
            results.rebuild(board.out, board.lines.values())
    for name in board.hopeless:
        if name not in known:
            reporter.say(f"{name}: every search run diverged or failed, so there is no final run")
    for one in made or []:
        if one.id in board.lines:
            reporter.say(_progress(board, one))


def _refresh(board: Board) -> None:
    """Read what is finished; a finished search adds final runs, which may be finished too."""
    while True:
        chosen = grid.choose(board.grid, board.lines.values())
        board.hopeless = [name for name, point in chosen.items() if point is None]
        board.wanted = [
            one for one in board.possible if one.phase != FINAL or one.point == chosen.get(cell_name(one.cell))
        ]
        before = len(board.lines)
        for one in board.wanted:
            if one.id in board.settled:
                continue
            settled = results.settled(board.out, one.id)  # first: what is read after it is complete
            found = results.line(board.out, one)
            if found is not None:
                board.lines[one.id] = found
                board.settled |= {one.id} if settled else set()
        if len(board.lines) == before:
            return


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, a request to end (what Slurm sends, for instance) is Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


# ---------------------------------------------------------------------------------------------------------------
# what is said


def _progress(board: Board, one: Request) -> str:
    """A finished run in one line, with the time that is left to one worker."""
    line = board.lines[one.id]
    expected = len(_expected(board))
    left = [other for other in [*board.wanted, *_expected(board)] if other.id not in board.lines]
    seconds = estimate.left(left, board.lines.values())
    if line["status"] == "done":
        split = "dev" if line["dev"] else "test"
        scores = [f"{name} {value:.4f}" for name, value in line[split].items()]
        said = f"{split} {'  '.join(scores)}"
    else:
        said = line["reason"] if line["status"] == results.FAILED else f"{line['status']}, {line['reason']}"
        said = f"failed: {said}" if line["status"] == results.FAILED else said
    point = " ".join(f"{name}={value}" for name, value in one.point.items())
    name = "  ".join(part for part in (cell_name(one.cell), point, f"{one.phase}, seed {one.seed}") if part)
    took = f"{line['wall_seconds'] or 0:.0f} s"
    total = len(board.wanted) + expected
    return f"{len(board.lines)}/{total}  {name}: {said}  ({took}; {estimate.duration(seconds)} of work left)"


def _summary(board: Board) -> str:
    found = _outcome(board)
    advice = ""
    if found.failed:
        advice = f"; to try a failed run again, remove its failed.json in {board.out / 'runs'}"
    return f"{found.total} runs: {found.done} done, {found.diverged} diverged, {found.failed} failed{advice}"


def _outcome(board: Board) -> Outcome:
    found = [line["status"] for line in board.lines.values()]
    done, diverged = found.count("done"), found.count("diverged")
    return Outcome(len(board.wanted), done, diverged, len(found) - done - diverged, tuple(board.hopeless))

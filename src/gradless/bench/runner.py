"""Run a grid: every run a process, any number of workers on one directory, continued after any interruption.

All that workers know of each other is in the directory: requests, locks and run directories. A worker takes the
first run in the order of the grid that is neither finished nor locked. Which point of a cell is best follows from its
finished search runs, so every worker comes to the same final runs without a word.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gradless.bench import data, directory, estimate, grid, results
from gradless.bench import process as processes
from gradless.bench.executor import Ended, Executor
from gradless.bench.grid import SEARCH, Cost, Request, cell_name
from gradless.bench.grid_file import Grid
from gradless.bench.process import Command, LocalProcesses
from gradless.bench.results import overhead
from gradless.bench.search import Search
from gradless.runs import build
from gradless.runs.config import TuneConfig
from gradless.runs.record import DIVERGED, DONE
from gradless.system import finished_runs, locks, typed
from gradless.system.progress import Reporter
from gradless.system.signals import interrupting
from gradless.system.typed import Processes

__all__ = ["Outcome", "bench", "overhead"]

# Settings that a step's cost does not depend on.
NO_COST = ("lr", "eps", "seed", "steps", "eval_every", "num_train", "num_dev", "num_test", "own", "data")
ALIKE, AT_ONCE = 20, 5.0  # runs in a row that fail alike, each within so many seconds: it is not the runs
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
    """Why the disk refused, or why all runs fail; the same call continues."""

    def __bool__(self) -> bool:
        """Whether nothing is left to do."""
        return not self.stopped


@dataclass(kw_only=True, slots=True)
class Board:
    """What one worker knows."""

    grid: Grid
    out: Path
    search: Search
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of finished runs, by id."""
    settled: set[str] = field(default_factory=set)
    wanted: list[Request] = field(default_factory=list)
    """In the order in which runs are started."""
    expected: list[Request] = field(default_factory=list)
    """Stand-ins for runs whose point is not known yet."""
    hopeless: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    alike: list[Request] = field(default_factory=list)
    """Runs that ended last, at once and with the same failure."""

    @property
    def possible(self) -> list[Request]:
        """Every run that the grid may come to ask for."""
        return self.search.possible


def bench(
    grid_path: Path,
    out: Path,
    *,
    workers: int | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    on: str | None = None,
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
        workers: runs at a time; None: one, or on a cluster as many as have room.
        dry_run: only tell what there is to do and what it is expected to take; nothing is written.
        threads: of each run; None leaves it to the environment.
        on: a Ray cluster that makes the runs (`gradless.system.ray_address.FORMS`); None: processes here.
        known: ``results.jsonl`` of other directories; runs that are finished there are not made again.
        reporter: where progress goes.
        cost: forwards of a step of a configuration; None: `gradless.runs.build.step_cost`.
        command: makes the command line of a run.
        poll: seconds between two looks at the processes.

    Raises:
        BadInput: anything wrong with the grid, the directory or the cluster, before anything runs.
        OSError: the directory cannot be written; runs are stopped first, and the same call continues.
        KeyboardInterrupt: the same after Ctrl-C.
    """
    reporter = reporter or Reporter()
    typed.value("workers", workers, Processes | None)
    typed.value("threads", threads, Processes | None)
    asked, price = grid.read(grid_path), estimate.remembered(cost or build.step_cost, _relevant)
    out = out.resolve()
    directory.check_folder(out)
    board = Board(grid=asked, out=out, search=Search(asked, price))
    directory.check_runs(asked, board.possible, out)
    data.check(board.possible, asked.path, reporter.say, describe_all=dry_run)
    lines = _known(board, known)
    with _executor(board, on, workers, threads, command, reporter) as executor:
        if dry_run:
            board.lines.update(lines)
            board.settled.update(lines)
            _refresh(board)
            estimate.show(board.wanted, board.expected, board.lines, price, reporter.say)
            for sentence in board.edges:
                reporter.say(sentence)
            return _outcome(board)
        directory.join(asked, board.possible, out)
        with directory.alone(out):
            taken_over = finished_runs.take_over(lines, out / "runs")
        if lines:
            reporter.say(f"{taken_over} of {len(lines)} runs taken over; the others are here or have begun")
        return _work(board, executor, reporter, poll)


@contextlib.contextmanager
def _executor(
    board: Board, on: str | None, workers: int | None, threads: int | None, command: Command, reporter: Reporter
) -> Iterator[Executor]:
    """Yield what makes the runs: processes here, or a cluster that was checked."""
    if on is None:
        yield LocalProcesses(board.out, workers or 1, threads, command, board.possible)
        return
    from gradless.bench import ray_runs

    with ray_runs.joined(on, board.possible, threads) as (nodes, line):
        reporter.say(line)
        yield nodes.executor(board.out, workers)


# ---------------------------------------------------------------------------------------------------------------
# before anything runs


def _relevant(config: TuneConfig) -> dict[str, Any]:
    """Return all that a step's cost could depend on: to tell it may take a model."""
    return {name: value for name, value in config.to_json().items() if name not in NO_COST}


def _known(board: Board, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the lines of runs of this grid that are finished elsewhere, by id."""
    ids = [one.id for one in board.possible]
    lines: dict[str, dict[str, Any]] = {}
    for path in files:
        lines |= finished_runs.finished(path, ids, (DONE, DIVERGED))
    return lines


# ---------------------------------------------------------------------------------------------------------------
# the work


def _work(board: Board, executor: Executor, reporter: Reporter, poll: float) -> Outcome:
    """Start, watch and record runs until none is left to anybody."""
    stopped, waits, looked = "", False, 0.0
    with interrupting(signal.SIGTERM):
        try:
            with executor:
                _record(board, reporter)
                while not stopped:
                    left = [one for one in board.wanted if one.id not in board.lines]
                    _start_free(board, left, executor)
                    if not left and not executor.busy():
                        break
                    if not executor.busy() and not waits:
                        waits = True
                        reporter.say("waiting for runs that others do")
                    time.sleep(0 if executor.busy() else 10 * poll)
                    ended = executor.ended(poll)
                    if ended:
                        stopped = _finish(board, ended, reporter)
                    elif executor.free() and time.monotonic() - looked > 10 * poll:
                        _record(board, reporter)  # what others finished may set runs free
                        looked = time.monotonic()
        except KeyboardInterrupt:
            done = f"{len(board.lines)} of {len(board.wanted)} runs are finished"
            raise KeyboardInterrupt(f"{done} in {board.out}; the same command continues") from None
    if stopped:
        reporter.say(f"stopped: {stopped}; the same command then continues")
    else:
        _record(board, reporter)
        for sentence in board.edges:
            reporter.say(sentence)
        reporter.say(_summary(board))
    return _outcome(board)._replace(stopped=stopped)


def _start_free(board: Board, left: list[Request], executor: Executor) -> None:
    """Lock and start runs until this worker is busy."""
    for one in left:
        if not executor.free():
            return
        lock = None if executor.has(one) else locks.take(board.out / "locks" / one.id)
        if lock is None:
            continue
        if results.line(board.out, one) is not None:  # another finished it before it gave its lock back
            os.close(lock)
            continue
        try:
            executor.start(one, lock)
        except BaseException:
            os.close(lock)
            raise


def _finish(board: Board, ended: list[Ended], reporter: Reporter) -> str:
    """Record what has ended and give the locks back; returns why to stop, if the disk is full or all runs fail."""
    try:
        for note in dict.fromkeys(one.note for one in ended if one.note):
            reporter.say(note)
        stopped = next((one.stop for one in ended if one.stop), "")
        if not stopped:
            _record(board, reporter, [one.request for one in ended])
            stopped = _all_alike(board, [one.request for one in ended])
        return stopped
    finally:
        for one in ended:
            os.close(one.lock)  # after its result can be seen by all


def _all_alike(board: Board, ended: Sequence[Request]) -> str:
    """Return why to stop, if the last runs of several methods failed at once and alike; they will be tried again.

    A package or a file that changed below the runs would otherwise fail thousands of them in minutes.
    """
    for one in ended:
        line = board.lines.get(one.id, {})
        fails = line.get("status") == results.FAILED and (line["wall_seconds"] or 0.0) < AT_ONCE
        if not fails or (board.alike and board.lines[board.alike[-1].id]["reason"] != line["reason"]):
            board.alike.clear()
        if fails:
            board.alike.append(one)
    if len(board.alike) < ALIKE:
        return ""
    fewest = min(2, len({one.config.method for one in board.possible}))
    if len({one.config.method for one in board.alike}) < fewest:
        return ""
    count, reason = len(board.alike), board.lines[board.alike[-1].id]["reason"]
    with directory.alone(board.out):
        for one in board.alike:
            (results.run_folder(board.out, one.id) / "failed.json").unlink(missing_ok=True)
            board.settled.discard(one.id)
            del board.lines[one.id]
        results.rebuild(board.out, board.lines.values())
    return f"the last {count} runs failed at once and alike, so it is not the runs ({reason}): mend that"


def _record(board: Board, reporter: Reporter, ended: Sequence[Request] = ()) -> None:
    """Read what is finished, ask for what follows from it, and write both down."""
    settled, hopeless = len(board.settled), set(board.hopeless)
    with directory.alone(board.out):
        directory.check_grid(board.grid, board.out)
        _refresh(board)
        directory.ask(board.wanted, board.out)
        if len(board.settled) > settled or ended or not (board.out / results.RESULTS).exists():
            results.rebuild(board.out, board.lines.values())
    for name in board.hopeless:
        if name not in hopeless:
            reporter.say(f"{name}: every search run diverged or failed, so there is no final run")
    for one in ended:
        if one.id in board.lines:
            reporter.say(_progress(board, one))


def _refresh(board: Board) -> None:
    """Read what is finished; a finished search adds final runs, which may be finished too."""
    while True:
        board.wanted, board.expected, board.hopeless, board.edges = board.search.standing(board.lines.values())
        finished, begun = len(board.lines), _begun(board.out)
        for one in board.wanted:
            if one.id in board.settled or one.id not in begun:
                continue
            settled = results.settled(board.out, one.id)  # first: what is read after it is complete
            line = results.line(board.out, one)
            if line is not None:
                board.lines[one.id] = line
                board.settled |= {one.id} if settled else set()
        if len(board.lines) == finished:
            return


def _begun(out: Path) -> set[str]:
    """Return the runs that have a directory: to look into thousands that do not takes longer than some runs."""
    try:
        return set(os.listdir(out / "runs"))
    except FileNotFoundError:
        return set()


# ---------------------------------------------------------------------------------------------------------------
# what is printed


def _progress(board: Board, one: Request) -> str:
    """Return a sentence about a finished run, with the time that is left to one worker."""
    line, expected = board.lines[one.id], board.expected
    left = [other for other in [*board.wanted, *expected] if other.id not in board.lines]
    seconds = estimate.left(left, board.lines.values())
    if line["status"] == DONE:
        split = "dev" if line["dev"] else "test"
        outcome = f"{split} " + "  ".join(f"{name} {value:.4f}" for name, value in line[split].items())
    else:
        outcome = f"{line['status']}{':' if line['status'] == results.FAILED else ','} {line['reason']}"
    point = " ".join(f"{name}={value}" for name, value in one.point.items())
    name = "  ".join(part for part in (cell_name(one.cell), point, f"{_phase(board, one)}, seed {one.seed}") if part)
    count = f"{len(board.lines)}/{len(board.wanted) + len(expected)}"
    wall = f"{line['wall_seconds']:.0f} s; " if line["wall_seconds"] else ""
    return f"{count}  {name}: {outcome}  ({wall}{estimate.duration(seconds)} of work left)"


def _phase(board: Board, one: Request) -> str:
    """Return the phase of a run, with its rung if there are several."""
    rungs = board.grid.budget.search
    return (
        f"{one.phase} ({rungs[one.rung]} {board.grid.budget.unit})" if one.phase == SEARCH and rungs[1:] else one.phase
    )


def _summary(board: Board) -> str:
    outcome = _outcome(board)
    advice = ""
    if outcome.failed:
        advice = f"; to try a failed run again, remove its failed.json in {board.out / 'runs'}"
    return f"{outcome.total} runs: {outcome.done} done, {outcome.diverged} diverged, {outcome.failed} failed{advice}"


def _outcome(board: Board) -> Outcome:
    statuses = [line["status"] for line in board.lines.values()]
    done, diverged = statuses.count(DONE), statuses.count(DIVERGED)
    return Outcome(len(board.wanted), done, diverged, len(statuses) - done - diverged, tuple(board.hopeless))

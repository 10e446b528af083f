"""The leaderboard: every benchmark in `benchmarks/results`, from its lines and its grid alone; `fields` writes it.

A result file of a benchmark is any ``NAME.jsonl`` whose first line has a phase and a cell. Its grid is
``NAME-grid.toml`` beside it, or ``benchmarks/grids/NAME.toml``. Results stand in one table if model, way of prompting,
budget and batch size are the same, and no task has other rows.
"""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from result_tables import RESULTS, table

from gradless.bench import timing
from gradless.bench.grid import FINAL
from gradless.bench.grid_file import Keys
from gradless.bench.timing import TIMED, side_by_side
from gradless.report.bench.study import Cell, memory_ratio, read_cell
from gradless.report.bench.study import Run as Line
from gradless.report.common.numbers import comparable, median, metric_of, number, show, unique
from gradless.runs.config import DEFAULTS, TuneConfig
from gradless.runs.record import DONE

GRIDS = RESULTS.parent / "grids"
ROWS = ("num_train", "num_dev", "num_test", "k_shot", "max_length")
"""Settings that say which rows a run sees."""
UNKNOWN = "unknown budget"


class Damaged(ValueError):
    """A result file that cannot be read; the sentence names file, line and remedy."""


class Entry(NamedTuple):
    """A row of the leaderboard: cells of one file that differ in their task alone."""

    file: str
    grid: str
    label: str
    scheme: str
    seeds: int
    results: dict[str, list[float]]
    """Test results of the seeds that came to their end, by task."""
    forwards: float | None
    seconds: float | None
    """Training seconds over those of mezo in the same file, task and scheme; median over tasks."""
    timed: bool
    """Whether those were measured side by side."""
    memory: float | None
    versions: str

    def complete(self, task: str) -> bool:
        """Whether all seeds have come to their end."""
        return len(self.results.get(task, ())) >= self.seeds


class Board(NamedTuple):
    """Entries that are comparable."""

    model: str
    aligned: bool
    budget: str
    tasks: dict[str, dict[str, Any]]
    """What rows each task has."""
    entries: list[Entry]


def read(path: Path) -> list[Line]:
    """Return the lines of a benchmark's file; none if it is the file of something else.

    Raises:
        Damaged: a line of a benchmark is no result; named.
    """
    lines = []
    for row, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            if row == 1 and not {"phase", "cell"} <= record.keys():
                return []
            cell, status = read_cell(record), str(record["status"])
            names = {"id": str(record["id"]), "phase": str(record["phase"]), "point": record.get("point") or {}}
            lines.append(Line(**names, cell=cell, seed=record.get("seed"), status=status, record=record))
        except (ValueError, KeyError, TypeError, AttributeError):
            if row == 1 and '"phase"' not in text:
                return []
            reason = f"benchmarks/results/{path.name}, line {row} is not a result of a benchmark"
            raise Damaged(f"{reason}: publish the file again, or remove the line") from None
    return lines


def boards(results: Path = RESULTS, grids: Path = GRIDS) -> list[Board]:
    """Return every table: for each file in order of its name, each entry in the first table that it fits.

    A run that another file took over (``--reuse``) counts for the file that made it, if that is here.
    """
    files = {path.stem: read(path) for path in sorted(results.glob("*.jsonl"))}
    own = {line.id for lines in files.values() for line in lines if "reused" not in line.record}
    listed: list[Board] = []
    for name, lines in files.items():
        kept = [line for line in lines if line.phase == FINAL and not ("reused" in line.record and line.id in own)]
        if not kept:
            continue
        path = next((p for p in (results / f"{name}-grid.toml", grids / f"{name}.toml") if p.is_file()), None)
        grid = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
        linked = path.relative_to(results.parent).as_posix() if path else ""
        timed = timing.read(results / f"{name}-timings.json")
        lines, kept = ([one._replace(record=side_by_side(one.record, timed)) for one in some] for some in (lines, kept))
        mezo = [line for line in lines if (line.phase, line.cell.method, line.status) == (FINAL, "mezo", DONE)]
        for key in unique((line.cell.model, line.cell.aligned) for line in kept):
            some = [line for line in kept if (line.cell.model, line.cell.aligned) == key]
            for budget in unique(_budget(grid, line.cell, name) for line in some):
                group = [line for line in some if _budget(grid, line.cell, name) == budget]
                baseline = [
                    line
                    for line in mezo
                    if (line.cell.model, line.cell.aligned) == key and _budget(grid, line.cell, name) == budget
                ]
                seeds = grid.get("seeds") or (Keys().seeds if grid else unique(line.seed for line in group))
                for entry in unique((line.cell.label, line.cell.scheme) for line in group):
                    finals = [line for line in group if (line.cell.label, line.cell.scheme) == entry]
                    rows = {line.cell.task: _rows(grid, line.cell) for line in finals}
                    _board(listed, *key, budget, rows).entries.append(
                        _entry(name, linked, grid, finals, baseline, len(seeds))
                    )
    return listed


def _board(listed: list[Board], model: str, aligned: bool, budget: str, rows: dict[str, dict[str, Any]]) -> Board:
    """Return the first table in which no task has other rows, its tasks added to; a new one if there is none."""
    for board in listed:
        same = (board.model, board.aligned, board.budget) == (model, aligned, budget)
        if same and all(board.tasks.get(task, values) == values for task, values in rows.items()):
            board.tasks.update(rows)
            return board
    listed.append(Board(model, aligned, budget, dict(rows), []))
    return listed[-1]


def _settings(grid: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Return the settings of a cell's runs, as far as the grid says them: [base], then every [[when]] that matches."""
    values = {name: getattr(cell, name) for name in ("model", "task", "scheme", "method", "aligned")}
    values |= dict(cell.extras)
    settings = {**grid.get("base", {}), **values}
    for when in grid.get("when", ()):
        match = {name: value for name, value in when.items() if name not in ("base", "grid", "skip")}
        if all(_like(values.get(name), pattern) for name, pattern in match.items()):
            settings |= when.get("base", {})
    return settings


def _like(value: Any, patterns: Any) -> bool:
    several = patterns if isinstance(patterns, list) else [patterns]
    return any(fnmatchcase(str(value), str(pattern)) for pattern in several)


def _budget(grid: Mapping[str, Any], cell: Cell, name: str) -> str:
    """Return forwards (or steps) of a run and rows of a step; a file without a grid has a table of its own."""
    budget = grid.get("budget", {})
    unit = next((unit for unit in ("forwards", "steps") if unit in budget), None)
    if unit is None:
        return f"{UNKNOWN}, {name}.jsonl"
    batch = _settings(grid, cell).get("batch_size", TuneConfig.__dataclass_fields__["batch_size"].default)
    return f"{budget[unit]:,} {unit} of {batch} rows"


def _rows(grid: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Return which rows the runs of a cell see."""
    settings = _settings(grid, cell)
    return {name: settings[name] for name in ROWS if settings.get(name) is not None}


def _entry(
    name: str, linked: str, grid: Mapping[str, Any], lines: list[Line], baseline: list[Line], seeds: int
) -> Entry:
    """Return the row of the lines of one label and scheme."""
    first = lines[0].cell
    done = [line for line in lines if line.status == DONE]
    results: dict[str, list[float]] = {}
    for line in lines:
        value = line.metric("test", metric_of(line.cell.task)) if line.status == DONE else None
        results.setdefault(line.cell.task, []).extend([] if value is None else [value])
    ratios = []
    beside = [line for line in baseline if line.cell.scheme == first.scheme and line.cell.task in results]
    for task in results:
        base, own = (
            median(line.number("train_seconds") for line in some if line.cell.task == task) for some in (beside, done)
        )
        ratios.append(own / base if own and base else None)
    versions = unique(_versions(line.record) for line in done)
    rate = _settings(grid, first).get("lr")
    return Entry(
        file=f"{name}.jsonl",
        grid=linked,
        label=first.label if rate is None else f"{first.label}, lr {show(rate)}",
        scheme=first.scheme,
        seeds=seeds,
        results=results,
        forwards=median(line.number("forwards") for line in done),
        seconds=median(ratios),
        timed=bool(done) and all(line.record.get(TIMED) for line in (*done, *beside)),
        memory=median(map(memory_ratio, done)),
        versions=", ".join(text for text in versions if text) or "not recorded",
    )


def _versions(record: Mapping[str, Any]) -> str:
    """Return processor and releases that a line records."""
    known = record.get("versions")
    versions = known if isinstance(known, dict) else {}
    parts = [versions.get("machine")]
    parts += [f"{name} {versions[name]}" for name in ("gradless", "torch") if name in versions]
    return ", ".join(str(part) for part in parts if part)


# ---------------------------------------------------------------------------------------------------------------
# the page


def leaderboard() -> str:
    """All tables, each with its heading and what its tasks are."""
    return "\n\n".join(map(section, boards()))


def section(board: Board) -> str:
    """One table as Markdown; bold: the best of the column among results of all seeds."""
    tasks = sorted(board.tasks)
    best = {
        task: max((_mean(e.results[task]) for e in board.entries if e.complete(task)), default=None) for task in tasks
    }
    rows = []
    for entry in sorted(board.entries, key=lambda entry: _order(entry, tasks)):
        cells = [_result(entry, task, best[task]) for task in tasks]
        seconds = "-" if entry.seconds is None else f"{'' if entry.timed else '~'}{entry.seconds:.2f}"
        grid = f"`{entry.grid}`" if entry.grid else "-"
        numbers = [_number(entry.forwards, "{:,.0f}"), seconds, _number(entry.memory, "{:.2f}")]
        file = f"`{entry.file}`"
        rows.append([f"`{entry.label}`", entry.scheme, *cells, *numbers, grid, entry.versions, file])
    plain = "" if board.aligned else ", plain templates"
    title = f"### {board.model}{plain}, {board.budget}"
    about = "; ".join(f"{task}: {_about(board.tasks[task])}" for task in tasks)
    heads = ["method", "scheme", *tasks, "forwards", "seconds / mezo", "memory / inference", "grid", "made on", "file"]
    return f"{title}\n\n{table(heads, rows, left=2)}\n\nRows: {about}."


def _about(rows: Mapping[str, Any]) -> str:
    names = {"num_train": "train", "num_dev": "dev", "num_test": "test", "k_shot": "a class", "max_length": "tokens"}
    return ", ".join(f"{value:,} {names[name]}" for name, value in rows.items()) or "not recorded"


def _order(entry: Entry, tasks: list[str]) -> tuple[Any, ...]:
    """Schemes in their order; what has every task and seed by its mean, then the rest by name."""
    whole = all(entry.complete(task) for task in tasks)
    mean = statistics.fmean(statistics.fmean(entry.results[task]) for task in tasks) if whole else 0.0
    schemes = list(DEFAULTS)
    scheme = schemes.index(entry.scheme) if entry.scheme in schemes else len(schemes)
    return (scheme, not whole, -mean, entry.label, entry.file)


def _result(entry: Entry, task: str, best: float | None) -> str:
    values = entry.results.get(task)
    if values is None:
        return "-"
    if not values:
        return f"0 of {entry.seeds} seeds"
    mean = statistics.fmean(values)
    text = f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
    if not entry.complete(task):
        return f"{text} ({len(values)} of {entry.seeds} seeds)"
    return f"**{text}**" if _mean(values) == best else text


def _mean(values: Sequence[float]) -> float:
    return comparable(statistics.fmean(values))


def _number(value: float | None, form: str) -> str:
    known = number(value)
    return "-" if known is None else form.format(known)


TABLES = {"leaderboard": leaderboard}

"""What a bench directory holds: finished runs, grouped into the cells of the grid."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradless.bench import timing
from gradless.bench.grid import DONE, EVALUATED, FINAL, SEARCH, ZERO_SHOT
from gradless.bench.grid_file import Keys
from gradless.bench.results import FAILED
from gradless.bench.timing import side_by_side
from gradless.errors import BadInput
from gradless.methods import FIRST, METHODS, ZEROTH
from gradless.report.common.numbers import Score, metric_of, number, score, show, slug, sortable, unique
from gradless.report.common.read import mapping, parse_json
from gradless.runs.config import DEFAULTS

KINDS = {
    "zo": "zeroth order",
    "forward-mode": "forward-mode gradient",
    "hybrid": "hybrid",
    "fo": "backpropagation",
}
"""Families of methods, told apart in tables and pictures."""
Axes = tuple[tuple[str, Any], ...]
"""Names and values of axes."""
NAMED = ("model", "task", "scheme", "method", "aligned")


class Cell(NamedTuple):
    """One cell of the grid: everything but the searched hyper-parameters and the seed."""

    model: str
    task: str
    scheme: str
    method: str
    aligned: bool = True
    extras: Axes = ()
    """Other axes that the grid varies, by name: (("options.keep", 0.2),)."""

    @property
    def label(self) -> str:
        """Method and further axes: "zo-sparse (keep 0.2)"."""
        more = ", ".join(f"{axis_name(name)} {show(value)}" for name, value in self.extras)
        return f"{self.method} ({more})" if more else self.method

    @property
    def kind(self) -> str:
        """Family of the method, see `KINDS`."""
        return kind(self.method)


class Section(NamedTuple):
    """Cells whose numbers share a table: one model, one way of prompting."""

    model: str
    aligned: bool


class Run(NamedTuple):
    """One line of ``results.jsonl``."""

    id: str
    phase: str
    cell: Cell
    point: dict[str, Any]
    seed: Any
    status: str
    record: dict[str, Any]

    @property
    def rung(self) -> int:
        """Of a run of the search; 0 where there is one rung."""
        return int(self.number("rung") or 0)

    def number(self, name: str) -> float | None:
        """A field as a finite number, or None."""
        return number(self.record.get(name))

    def metric(self, split: str, name: str) -> float | None:
        """A metric of "dev", "test" or "zero_shot" as a finite number, or None."""
        return number(mapping(self.record.get(split)).get(name))


class Results(NamedTuple):
    """The runs of one cell."""

    search: list[Run]
    final: list[Run]
    awaited: int
    """Runs of the search that were requested and have no result yet."""
    tried: list[dict[str, Any]]
    """Every searched point, those still awaited included."""

    @property
    def done(self) -> list[Run]:
        """Final runs that came to their end, in the order of their seeds."""
        return [run for run in self.final if run.status == DONE]

    @property
    def hopeless(self) -> bool:
        """Every searched point has a run that diverged or failed, so there will be no final runs."""
        last = [run for run in self.search if run.rung == max(run.rung for run in self.search)]
        bad = [run.point for run in last if run.status != DONE]
        return bool(last) and not self.awaited and all(run.point in bad for run in last)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A bench directory, read."""

    folder: Path
    grid: dict[str, Any]
    grid_text: str
    runs: tuple[Run, ...]
    requests: dict[str, dict[str, Any]]
    """Request by run id."""
    cells: dict[Cell, Results]
    """Those with a result, in the order of the grid's axes."""
    waiting: tuple[Cell, ...]
    """Requested cells without any result: tables leave them out."""
    final_settings: dict[Cell, dict[str, Any]]
    """Of cells whose final runs were requested: the settings of one of these."""
    unread: int
    """Lines of results.jsonl that are damaged."""

    @property
    def name(self) -> str:
        """Of the grid, or else of the folder."""
        return str(self.grid.get("name") or self.folder.resolve().name)

    @property
    def seeds(self) -> list[Any]:
        """Seeds that every cell is to have: the grid's, or without one all that any final run has."""
        asked = self.grid.get("seeds", list(Keys().seeds) if self.grid else None)
        return unique(asked) if isinstance(asked, list) else unique(run.seed for run in self.runs if run.phase == FINAL)

    def complete(self, results: Results) -> bool:
        """Whether each of the seeds has a final run that came to its end: only such cells are ranked."""
        return bool(self.seeds) and {repr(seed) for seed in self.seeds} <= {repr(run.seed) for run in results.done}

    def lacking(self, results: Results) -> str:
        """What a cell lacks to be ranked: ``2 of 3 seeds``, and what came of the others; "" if nothing."""
        if self.complete(results):
            return ""
        if not results.final and results.hopeless:
            return "diverged in the search"
        statuses = [run.status for run in results.final if run.status != DONE]
        text = f"{len(results.done)} of {len(self.seeds)} seeds"
        return text + "".join(f", {statuses.count(status)} {status}" for status in unique(statuses))

    @property
    def sections(self) -> list[Section]:
        """Models and ways of prompting, in the order of the cells."""
        return unique(Section(cell.model, cell.aligned) for cell in self.cells)

    def within(self, section: Section) -> dict[Cell, Results]:
        """The cells of a section."""
        return {cell: results for cell, results in self.cells.items() if (cell.model, cell.aligned) == section}

    def title(self, section: Section) -> str:
        """What tells a section from the others: ", gemma-3-270m, without task alignment", or nothing."""
        parts = [section.model] if self._differ("model") else []
        parts += [f"with{'' if section.aligned else 'out'} task alignment"] if self._differ("aligned") else []
        return "".join(f", {part}" for part in parts)

    def suffix(self, section: Section) -> str:
        """The same for names of files."""
        parts = [slug(section.model)] if self._differ("model") else []
        parts += ["unaligned"] if self._differ("aligned") and not section.aligned else []
        return "".join(f"-{part}" for part in parts)

    def not_begun(self, section: Section) -> list[Cell]:
        """Requested cells of a section without any result."""
        return [cell for cell in self.waiting if (cell.model, cell.aligned) == section]

    def chosen(self, cell: Cell) -> bool:
        """Whether the search of a cell has ended, so that its final runs are asked for."""
        return bool(self.cells[cell].final) or cell in self.final_settings

    def _differ(self, field: str) -> bool:
        return len({getattr(section, field) for section in self.sections}) > 1

    def config(self, run: Run) -> dict[str, Any]:
        """The settings that a run was asked for; empty if its request is gone."""
        return mapping(self.requests.get(run.id, {}).get("config"))

    def variants(self, section: Section) -> list[Axes]:
        """The untouched models of a section: one, but where an axis such as ``chat`` changes what it answers."""
        return unique(_untouched_axes(cell) for cell in self.within(section)) or [()]

    def zero_shot(self, section: Section, task: str, variant: Axes = ()) -> Score | None:
        """Main test metric of an untouched model over the seeds; final runs tell it where no run of its own does."""
        name = metric_of(task)
        by_seed: dict[str, float] = {}
        runs = [run for run in self.runs if (run.cell.model, run.cell.aligned, run.cell.task) == (*section, task)]
        runs = [run for run in runs if self._answers(run, dict(variant))]
        for run in sorted(runs, key=lambda run: run.phase != ZERO_SHOT):
            value = run.metric("test", name) if run.phase == ZERO_SHOT else None
            if value is None and run.phase in (ZERO_SHOT, FINAL):
                value = run.metric("zero_shot", name)
            if value is not None:
                by_seed.setdefault(repr(run.seed), value)
        return score(by_seed.values())

    def _answers(self, run: Run, variant: Mapping[str, Any]) -> bool:
        """Whether a run tells of an untouched model; lines of older releases lack axes, which their requests have."""
        own, asked = dict(_untouched_axes(run.cell)), self.config(run)
        same = all(own.get(name, asked.get(name, value)) == value for name, value in variant.items())
        return same and own.keys() <= variant.keys()

    def untouched(self, section: Section, task: str) -> Score | None:
        """The result of the untouched model where a section has one; None where an axis makes several."""
        variants = self.variants(section)
        return self.zero_shot(section, task, variants[0]) if len(variants) == 1 else None

    def missing(self) -> int:
        """Runs that the grid asks for, as far as its requests and seeds tell, and that have no result."""
        seen = {run.id for run in self.runs}
        count = sum(name not in seen for name in self.requests)
        asked = Counter(read_cell(request) for request in self.requests.values() if request["phase"] == FINAL)
        if self.grid:
            ended = {cell: len(results.final) for cell, results in self.cells.items() if not results.hopeless}
            ended |= dict.fromkeys(self.waiting, 0)
            count += sum(max(0, len(self.seeds) - max(asked[cell], finals)) for cell, finals in ended.items())
        return count


def load(folder: Path) -> Study:
    """Read a bench directory.

    Raises:
        BadInput: there is no result in it, or its grid cannot be read.
    """
    path = folder / "results.jsonl"
    advice = f"run `gradless bench GRID.toml --out {folder}` first"
    if not path.is_file():
        raise BadInput(f"{folder} holds no run and no results: give the --out directory of one, or {advice}")
    timed = timing.read(folder / timing.FILE)
    by_id, unread = {}, 0
    for text in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
        try:
            run = _run(side_by_side(parse_json(text), timed))
            by_id[run.id] = run
        except (ValueError, KeyError, TypeError, AttributeError):
            unread += 1
    if not by_id:
        raise BadInput(f"{path} holds no result yet: {advice}")
    grid, grid_text = _grid(folder / "grid.toml")
    requests = _requests(folder / "requests")
    runs = tuple(by_id.values())
    asked = _cells(runs, requests, grid)
    cells = {cell: results for cell, results in asked.items() if results.search or results.final}
    return Study(
        folder=folder,
        grid=grid,
        grid_text=grid_text,
        runs=runs,
        requests=requests,
        cells=cells,
        waiting=tuple(cell for cell in asked if cell not in cells),
        final_settings={
            read_cell(request): mapping(request.get("config"))
            for request in requests.values()
            if request["phase"] == FINAL
        },
        unread=unread,
    )


def _run(record: dict[str, Any]) -> Run:
    return Run(
        id=str(record["id"]),
        phase=str(record["phase"]),
        cell=read_cell(record),
        point=mapping(record.get("point")),
        seed=record.get("seed"),
        status=str(record.get("status", FAILED)),
        record=record,
    )


def read_cell(record: Mapping[str, Any]) -> Cell:
    """The cell of a result or a request."""
    cell = record["cell"]
    extras = tuple(sorted((name, _plain(value)) for name, value in cell.items() if name not in NAMED))
    model, task, scheme, method = (str(cell.get(name) or "") for name in ("model", "task", "scheme", "method"))
    return Cell(model, task, scheme, method, cell.get("aligned") is not False, extras)


def _untouched_axes(cell: Cell) -> Axes:
    """The further axes of a cell that change what the untouched model answers."""
    return tuple((name, value) for name, value in cell.extras if name in EVALUATED)


def _plain(value: Any) -> Any:
    """Something to hash and to show."""
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)


def _grid(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        return {}, ""
    text = path.read_text(encoding="utf-8")
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path} cannot be read ({error}): restore it from a copy") from None


def _requests(folder: Path) -> dict[str, dict[str, Any]]:
    """Requests that can be read; one that a crash tore is nobody's result."""
    requests = {}
    for path in sorted(folder.glob("*.json")):
        try:
            request = parse_json(path.read_text(encoding="utf-8"))
            read_cell(request)
            requests[str(request.get("id", path.stem))] = {**request, "phase": str(request["phase"])}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return requests


def _cells(
    runs: Sequence[Run], requests: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Any]
) -> dict[Cell, Results]:
    cells: dict[Cell, Results] = {}
    done = {run.id for run in runs}
    for run in runs:
        if run.phase in (SEARCH, FINAL):
            results = cells.setdefault(run.cell, Results([], [], 0, []))
            (results.search if run.phase == SEARCH else results.final).append(run)
    for name, request in requests.items():
        if request["phase"] not in (SEARCH, FINAL):
            continue
        cell, point = read_cell(request), request.get("point")
        results = cells.setdefault(cell, Results([], [], 0, []))
        if request["phase"] == SEARCH and name not in done:
            results.tried.extend([point] if isinstance(point, dict) else [])
            cells[cell] = results._replace(awaited=results.awaited + 1)
    for results in cells.values():
        results.tried.extend(run.point for run in results.search)
        results.final.sort(key=lambda run: (str(type(run.seed)), run.seed if run.seed is not None else 0))
    return {cell: cells[cell] for cell in sorted(cells, key=_order(grid))}


def _order(grid: Mapping[str, Any]) -> Any:
    """A sort key of cells: the order of the grid's axes, then that of `METHODS` and the schemes."""
    axes = mapping(grid.get("axes"))
    known = {"method": list(METHODS), "scheme": list(DEFAULTS), "model": [], "task": []}

    def rank(axis: str, value: str) -> tuple[int, str]:
        listed = axes.get(axis)
        order = [*(listed if isinstance(listed, list) else []), *known[axis]]
        return (order.index(value) if value in order else len(order), value)

    def key(cell: Cell) -> tuple[Any, ...]:
        extras = tuple((name, sortable(value)) for name, value in cell.extras)
        named = [rank(axis, getattr(cell, axis)) for axis in ("model", "task", "scheme", "method")]
        return (named[0], not cell.aligned, *named[1:], extras)

    return key


def kind(method: str) -> str:
    """Family of a method, see `KINDS`."""
    family = METHODS[method].family if method in METHODS else ZEROTH
    return {ZEROTH: "zo", FIRST: "fo"}.get(family, family)


def tested(cell: Cell, results: Results) -> Score | None:
    """Test metric over the final seeds that came to their end."""
    return score(run.metric("test", metric_of(cell.task)) for run in results.done)


def memory_ratio(run: Run) -> float | None:
    """Peak memory of training over that of inference; None where either was not measured."""
    peak, floor = run.number("peak_memory_bytes"), run.number("inference_memory_bytes")
    return peak / floor if peak and floor else None


def axis_name(name: str) -> str:
    """``options.keep`` -> ``keep``."""
    return name.removeprefix("options.")

"""A grid of runs: cells, searched points and seeds, unrolled into requests with everything that decides a run.

The product of ``[axes]`` is the cells of a table. In every cell each point of ``[grid]`` is run once with the search
seed and without test rows; the point that is best on dev rows is run with every seed, and test rows are scored then,
once. A cell with one point has nothing to search and goes to its final runs at once.

Every step of a method costs a number of forwards (a backward counts as two), so a budget in forwards gives methods
different numbers of steps. The caller passes a function ``cost(config) -> int`` that returns the forwards of a step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from gradless import __version__, plugins, rng, tasks
from gradless.bench.grid_file import EVALUATIONS, NAMED, OPTION, OWN, Axes, Grid, Settings, load_plugins, parse
from gradless.errors import BadInput
from gradless.lm import objectives
from gradless.methods import HYBRID, METHODS
from gradless.runs.config import TuneConfig
from gradless.runs.config_io import SIZES
from gradless.runs.fixed_engine import fixed_engine
from gradless.runs.record import DONE as DONE
from gradless.system import typed
from gradless.system.typed import within

PHASES = SEARCH, FINAL, ZERO_SHOT = "search", "final", "zero-shot"
# Schemes that tune nothing by layers of the model, which some methods tell apart.
NO_BLOCKS: Final = ("prompt", "prefix", "head")
NO_CUT: Final = ("prompt", "prefix")
# What the answer of an untouched model depends on.
EVALUATED: Final = ("model", "task", "data", "own", "aligned", "chat", "dtype", "device", "max_length", "num_test")
UNEVEN: Final = 'its steps cost more and more forwards: write query_schedule = "constant", or a budget in steps'

Cost = Callable[[TuneConfig], int]
Point = dict[str, Any]


class Cell(NamedTuple):
    """One cell: everything but the searched hyper-parameters and the seed."""

    name: str
    values: dict[str, Any]
    """method, scheme, task, model, aligned, and what else the axes vary."""
    base: Settings
    searched: Axes

    @property
    def points(self) -> list[Point]:
        """All points of the searched axes, the first axis slowest; one empty point if nothing is searched."""
        return [dict(zip(self.searched, values, strict=True)) for values in itertools.product(*self.searched.values())]


class Request(NamedTuple):
    """One run to make."""

    id: str
    phase: str
    cell: dict[str, Any]
    point: Point
    seed: int
    config: TuneConfig

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as the request's file holds it."""
        return {**self._asdict(), "config": self.config.to_json()}


def read(path: Path) -> Grid:
    """Load the plugins of a grid, and return it after a check of every cell and point of it.

    Raises:
        BadInput: anything unknown or impossible, with the cell named; see also `search_runs`, which knows the costs.
    """
    load_plugins(path)
    grid = parse(path)
    every = cells(grid)
    if not every:
        raise BadInput(f"{path}: every cell is skipped: leave one")
    names = [cell.name for cell in every]
    for cell in every:
        with _named(grid, cell):
            if names.count(cell.name) > 1:
                raise BadInput("this cell is there twice: leave one")
            metric = main_metric(cell)
            if grid.select not in ("loss", "metric", metric):
                raise BadInput(f'its metric is {metric}, not {grid.select}: write select = "metric" (or "loss")')
            for point in cell.points:
                _check(configure(grid, cell, point, seed=grid.search_seed, test=True), several=len(cell.points) > 1)
    return grid


def cells(grid: Grid) -> list[Cell]:
    """Return the cells that are not skipped, in the order of the axes."""
    fields = typed.settings(TuneConfig)
    every = []
    for values in itertools.product(*grid.axes.values()):
        varied = dict(zip(grid.axes, values, strict=True))
        named = {name: {**grid.base, **varied}.get(name, fields[name].default) for name in NAMED}
        if OWN in grid.base:
            named["task"] = OWN
        every.append(_changed(grid, {**named, **varied}))
    return [cell for cell in every if cell is not None]


def cell_name(values: Mapping[str, Any]) -> str:
    """Return a cell in one line: ``mezo/lora/sst2/gemma-3-270m``, then ``unaligned`` and what else is varied.

    Example:
        >>> cell_name({"method": "mezo", "scheme": "full", "task": "sst2", "model": "m", "options.keep": 0.2})
        'mezo/full/sst2/m/keep=0.2'
    """
    parts = [str(values[name]) for name in NAMED[:-1] if name in values]
    parts += [] if values.get("aligned", True) else ["unaligned"]
    more = {name.removeprefix(OPTION): value for name, value in values.items() if name not in NAMED}
    parts += [f"{name}={value if isinstance(value, str) else _canonical(value)}" for name, value in more.items()]
    return "/".join(parts)


def search_runs(grid: Grid, cost: Cost) -> list[Request]:
    """Return a run for each point of each cell that has several: the search seed, no test rows.

    Args:
        grid: what `read` returned.
        cost: forwards of one step of a configuration.

    Raises:
        BadInput: the budget is too small for one step, or two cells ask for the same run; with the cell named.
    """
    searches = [cell for cell in cells(grid) if len(cell.points) > 1]
    return _distinct(
        grid,
        [request(grid, cell, point, SEARCH, grid.search_seed, cost) for cell in searches for point in cell.points],
    )


def final_runs(grid: Grid, chosen: Mapping[str, Point | None], cost: Cost) -> list[Request]:
    """Return the runs of each cell's chosen point: every seed, test rows included.

    Args:
        grid: what `read` returned.
        chosen: point by the name of its cell (`choose`); None and cells that are absent have no final runs.
        cost: as in `search_runs`.
    """
    points = [(cell, chosen.get(cell.name)) for cell in cells(grid)]
    return _finals(grid, [(cell, point) for cell, point in points if point is not None], cost)


def zero_shot_runs(grid: Grid) -> list[Request]:
    """Return an evaluation of the untouched model for each model, task, template and seed."""
    requests: dict[str, Request] = {}
    for cell in cells(grid) if grid.zero_shot else []:
        for seed in grid.seeds:
            with _named(grid, cell):
                tuned = configure(grid, cell, cell.points[0], seed=seed, test=True)
                kept = {name: getattr(tuned, name) for name in EVALUATED}
                config = _fixed(TuneConfig(**kept, seed=seed, num_train=0, num_dev=0)).resolved()
            named = (*NAMED, *(["chat"] if "chat" in cell.values else []))  # its axis, which asks for two evaluations
            values = {**{name: cell.values[name] for name in named}, "method": ZERO_SHOT, "scheme": "none"}
            one = Request(run_id(config), ZERO_SHOT, values, {}, seed, config)
            requests.setdefault(one.id, one)
    return list(requests.values())


def possible_runs(grid: Grid, cost: Cost) -> list[Request]:
    """Return every run that the grid may ask for, whichever points are chosen.

    Raises:
        BadInput: as `search_runs`.
    """
    finals = _finals(grid, [(cell, point) for cell in cells(grid) for point in cell.points], cost)
    return _distinct(grid, [*zero_shot_runs(grid), *search_runs(grid, cost), *finals])


def _finals(grid: Grid, points: Iterable[tuple[Cell, Point]], cost: Cost) -> list[Request]:
    runs = [request(grid, cell, point, FINAL, seed, cost) for cell, point in points for seed in grid.seeds]
    return _distinct(grid, runs)


def choose(grid: Grid, results: Iterable[Mapping[str, Any]]) -> dict[str, Point | None]:
    """Return the best point of each cell whose search is finished, from dev rows alone.

    The selected metric decides, equal ones by loss, equal ones again by the order of the grid. A run that diverged
    or failed is worse than all others.

    Args:
        grid: what `read` returned.
        results: lines of ``results.jsonl``; those of other phases are passed over.

    Returns:
        By the name of the cell: its point, or None where every run diverged or failed. Cells that still wait for a
        run are absent.
    """
    searched = {(cell_name(r["cell"]), _canonical(r["point"])): r for r in results if r["phase"] == SEARCH}
    chosen: dict[str, Point | None] = {}
    for cell in cells(grid):
        points = cell.points
        if len(points) == 1:
            chosen[cell.name] = points[0]
            continue
        runs = [searched.get((cell.name, _canonical(point))) for point in points]
        ranked = [(_rank(run, main_metric(cell), grid.select), i) for i, run in enumerate(runs) if run is not None]
        if len(ranked) == len(points):
            (worst, *_), best = min(ranked)
            chosen[cell.name] = None if worst else points[best]
    return chosen


def main_metric(cell: Cell) -> str:
    """Return the first metric of the cell's task."""
    return "accuracy" if cell.values["task"] == OWN else tasks.get(cell.values["task"]).metrics[0]


def run_id(config: TuneConfig) -> str:
    """Return what determines a run, as 12 hexadecimal digits.

    Args:
        config: resolved; its device and the folders of data and plugins do not count, for a run may continue elsewhere.
    """
    values = {name: value for name, value in config.to_json().items() if name not in ("device", "data")}
    if not config.chat:  # an id of before there was a choice stays what it was
        del values["chat"]
    if config.plugins:
        values["plugins"] = plugins.named(config.plugins)
    whole = {"config": values, "gradless": __version__, "stream": rng.STREAM_VERSION}
    return hashlib.sha256(_canonical(whole).encode()).hexdigest()[:12]


def request(grid: Grid, cell: Cell, point: Point, phase: str, seed: int, cost: Cost) -> Request:
    """Return one run of a cell, with its steps counted from the budget.

    Raises:
        BadInput: the budget is too small for one step.
    """
    with _named(grid, cell):
        config = configure(grid, cell, point, seed=seed, test=phase == FINAL)
        steps = amount = grid.budget.search if phase == SEARCH else grid.budget.amount
        if grid.budget.unit == "forwards":
            if config.query_schedule != "constant":
                raise BadInput(UNEVEN)
            price = cost(config.resolved())
            steps = amount // price
            if steps < 1:
                raise BadInput(f"a step costs {price} forwards and the budget is {amount}: raise it")
        # Rounded up, so that the last of them falls on the last step.
        every = -(-steps // cell.base.get(EVALUATIONS, 5))
        config = dataclasses.replace(config, steps=steps, eval_every=every).resolved()
    return Request(run_id(config), phase, cell.values, point, seed, config)


def configure(grid: Grid, cell: Cell, point: Point, *, seed: int, test: bool) -> TuneConfig:
    """Return the settings of a run, apart from its number of steps."""
    settings = {**cell.base, **cell.values, **point}
    settings.pop(EVALUATIONS, None)
    if OWN in settings:
        settings["task"] = None
        # Own files are used whole unless a number says otherwise, so that no test rows means no test file.
        sizes = {name: settings.get(name, 0) for name in SIZES}
        files = {key: value for key, value in settings[OWN].items() if test or key != "test"}
        settings |= {**sizes, OWN: files}
    if not test:
        settings["num_test"] = 0
    if settings.get("data") is not None:
        settings["data"] = _data(grid, cell, settings["data"])
    local = grid.folder / settings["model"]
    settings["model"] = str(local) if local.exists() else settings["model"]
    options = {name.removeprefix(OPTION): settings.pop(name) for name in list(settings) if name.startswith(OPTION)}
    select: Literal["loss", "metric"] = "loss" if grid.select == "loss" else "metric"
    return _fixed(TuneConfig(**settings, options=options, seed=seed, select=select, zero_shot=False))


# ---------------------------------------------------------------------------------------------------------------
# inside


def _fixed(config: TuneConfig) -> TuneConfig:
    """The settings with an engine by name; those of an unknown method are refused later."""
    return dataclasses.replace(config, engine=fixed_engine(config)) if config.method in METHODS else config


def _changed(grid: Grid, values: dict[str, Any]) -> Cell | None:
    """A cell after all ``[[when]]`` that match, in order."""
    base, searched, skip = dict(grid.base), dict(grid.searched), False
    for when in grid.whens:
        if all(any(_like(values[name], one) for one in several) for name, several in when.match.items()):
            skip = skip if when.skip is None else when.skip
            searched |= when.grid
            for name in when.grid:
                base.pop(name, None)
            for name in when.base:
                searched.pop(name, None)
            base |= when.base
    return None if skip else Cell(cell_name(values), values, base, searched)


def _like(value: Any, pattern: Any) -> bool:
    if isinstance(value, str) and isinstance(pattern, str):
        return fnmatchcase(value, pattern)
    return type(value) is type(pattern) and bool(value == pattern)


def _data(grid: Grid, cell: Cell, folder: str) -> str:
    for name in ("task", "scheme", "method"):
        folder = folder.replace(f"{{{name}}}", cell.values[name])
    if "{" in folder:
        raise BadInput(f"data = '{folder}': only {{task}}, {{scheme}} and {{method}} are filled in")
    return str(grid.folder / folder)


def _check(config: TuneConfig, *, several: bool) -> None:
    """Refuse what cannot run, as far as that shows without data and model."""
    config.resolved()
    method, scheme = METHODS[config.method], config.scheme
    if scheme in (NO_BLOCKS if method.blocks else NO_CUT if method.family == HYBRID else ()):
        raise BadInput(f"{config.method} goes by layers of the model, which scheme {scheme} does not tune: skip it")
    task = tasks.get(config.task) if config.task else dataclasses.replace(tasks.get("sst2"), name=OWN)
    objectives.choose(task, config.objective, backprop=method.differentiates)
    if not config.aligned:
        tasks.unaligned(task)
    if several and config.k_shot is None and not (config.num_dev or config.own.get("dev")):
        raise BadInput("its points are chosen on dev rows: raise num_dev, or leave one point")
    if not (config.num_test or config.own):
        raise BadInput("there are no test rows: raise num_test")


def _named(grid: Grid, cell: Cell) -> AbstractContextManager[None]:
    """Put the file and the cell in front of what is wrong."""
    return within(f"{grid.path}: cell {cell.name}")


def _distinct(grid: Grid, requests: Iterable[Request]) -> list[Request]:
    """Refuse two requests for the same run: their results could not be told apart."""
    distinct: dict[str, Request] = {}
    for one in requests:
        other = distinct.setdefault(one.id, one)
        if other is not one:
            names = " and ".join(f"{cell_name(r.cell)} {r.point or ''}".strip() for r in (other, one))
            raise BadInput(f"{grid.path}: cell {names}: these are the same run: leave one")
    return list(distinct.values())


def _rank(run: Mapping[str, Any], metric: str, select: str) -> tuple[bool, float, float]:
    """Smaller is better; the first is True for runs that may not be chosen."""
    dev = run.get("dev") or {}
    loss = dev.get("loss")
    loss = math.inf if loss is None else loss
    value = loss if select == "loss" else -(dev[metric] if dev.get(metric) is not None else -math.inf)
    bad = run["status"] != DONE or not math.isfinite(value)
    return bad, value, loss


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

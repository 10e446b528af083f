"""A grid of runs: cells, searched points and seeds, unrolled into requests with everything that decides a run.

The product of ``[axes]`` is the cells of a table. In every cell each point of ``[grid]`` is run with the search seeds
and without test rows; the point that is best on dev rows (`gradless.bench.search`) is run with every seed, and test
rows are scored then, once. A cell with one point has nothing to search and goes to its final runs at once.

Every step of a method costs a number of forwards (a backward counts as two), so a budget in forwards gives methods
different numbers of steps. The caller passes a function ``cost(config) -> int`` that returns the forwards of a step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
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
from gradless.runs import walks
from gradless.runs.build import auto_rate
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
# What the answer of an untouched model depends on, or how it is read.
STORED_AS: Final = ("dtype", "compute_dtype", "quantise", "offload", "device")
EVALUATED: Final = ("model", "task", "data", "own", "aligned", "chat", *STORED_AS, "max_length", "num_test")
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
    rung: int = 0
    """Of a run of the search: which of the amounts of ``budget.search`` it spends."""
    extended: bool = False
    """Whether the point has a value that the search added to its axis."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as the request's file holds it."""
        return {**self._asdict(), "config": self.config.to_json()}


def read(path: Path) -> Grid:
    """Load the plugins of a grid, and return it after a check of every cell and point of it.

    Raises:
        BadInput: anything unknown or impossible, with the cell named; see also `requests`, which knows the costs.
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
                check(configure(grid, cell, point, seed=grid.search_seeds[0], test=True), several=len(cell.points) > 1)
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
    parts += [f"{name}={value if isinstance(value, str) else canonical(value)}" for name, value in more.items()]
    return "/".join(parts)


def final_runs(grid: Grid, chosen: Mapping[str, Point | None], cost: Cost) -> list[Request]:
    """Return the runs of each cell's chosen point: every seed, test rows included.

    Args:
        grid: what `read` returned.
        chosen: point by the name of its cell; None and absent cells have no final runs.
        cost: forwards of one step of a configuration.

    Raises:
        BadInput: the budget is too small for one step, or two cells ask for the same run; with the cell named.
    """
    points = [(cell, chosen.get(cell.name)) for cell in cells(grid)]
    return finals(grid, [(cell, point) for cell, point in points if point is not None], cost)


def finals(grid: Grid, points: Iterable[tuple[Cell, Point]], cost: Cost) -> list[Request]:
    """Return the final runs of points of cells, as `final_runs`."""
    return distinct(grid, [run for cell, point in points for run in requests(grid, cell, point, FINAL, cost)])


def zero_shot_runs(grid: Grid) -> list[Request]:
    """Return an evaluation of the untouched model for each model, task, template and seed."""
    runs: dict[str, Request] = {}
    for cell in cells(grid) if grid.zero_shot else []:
        for seed in grid.seeds:
            with _named(grid, cell):
                tuned = configure(grid, cell, cell.points[0], seed=seed, test=True)
                kept = {name: getattr(tuned, name) for name in EVALUATED}
                config = _fixed(TuneConfig(**kept, seed=seed, num_train=0, num_dev=0)).resolved()
            named = {name: value for name, value in cell.values.items() if name in (*NAMED, *EVALUATED)}
            values = {**named, "method": ZERO_SHOT, "scheme": "none"}
            one = Request(run_id(config), ZERO_SHOT, values, {}, seed, config)
            runs.setdefault(one.id, one)
    return list(runs.values())


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
    if config.lr == "auto":  # another law is another run
        values["lr"] = f"auto {auto_rate(config):.6g}" + ("" if config.walk else f", a walk of {walks.RISE:.0%}")
    whole = {"config": values, "gradless": __version__, "stream": rng.STREAM_VERSION}
    return hashlib.sha256(canonical(whole).encode()).hexdigest()[:12]


def canonical(value: Any) -> str:
    """Return a value as JSON, the same text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def requests(grid: Grid, cell: Cell, point: Point, phase: str, cost: Cost, rung: int = 0) -> list[Request]:
    """Return the runs of a point on a rung of the search, or its final runs: one a seed, steps counted from the budget.

    Raises:
        BadInput: the budget is too small for one step.
    """
    seeds, budget = (
        (grid.search_seeds, grid.budget.search[rung]) if phase == SEARCH else (grid.seeds, grid.budget.amount)
    )
    with _named(grid, cell):
        config = configure(grid, cell, point, seed=seeds[0], test=phase == FINAL).resolved()
        steps = budget
        if grid.budget.unit == "forwards":
            if config.query_schedule != "constant":
                raise BadInput(UNEVEN)
            price = cost(config)
            steps = budget // price
            if steps < 1:
                raise BadInput(f"a step costs {price} forwards and the budget is {budget}: raise it")
    # Rounded up, so that the last of them falls on the last step.
    counts = {"steps": steps, "eval_every": -(-steps // cell.base.get(EVALUATIONS, 5))}
    # What is resolved, which takes a millisecond, depends on neither these counts nor the seed.
    configs = [dataclasses.replace(config, seed=seed, **counts) for seed in seeds]
    extended = any(value not in cell.searched[name] for name, value in point.items())
    return [
        Request(run_id(one), phase, cell.values, point, seed, one, rung, extended)
        for seed, one in zip(seeds, configs, strict=True)
    ]


def distinct(grid: Grid, runs: Iterable[Request]) -> list[Request]:
    """Return requests as they are; two for the same run are refused, whose results could not be told apart.

    Raises:
        BadInput: with the cells and points of both.
    """
    distinct: dict[str, Request] = {}
    for one in runs:
        other = distinct.setdefault(one.id, one)
        if other is not one:
            names = " and ".join(f"{cell_name(r.cell)} {r.point or ''}".strip() for r in (other, one))
            raise BadInput(f"{grid.path}: cell {names}: these are the same run: leave one")
    return list(distinct.values())


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


def check(config: TuneConfig, *, several: bool) -> None:
    """Refuse what cannot run, as far as that shows without data and model.

    Raises:
        BadInput: with the fix.
    """
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


def _named(grid: Grid, cell: Cell) -> AbstractContextManager[None]:
    """Put the file and the cell in front of what is wrong."""
    return within(f"{grid.path}: cell {cell.name}")

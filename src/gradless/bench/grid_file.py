"""The TOML file of a grid: read into frozen records, every key and value checked.

The words of the file are settings: fields of `gradless.runs.config.TuneConfig`, the number ``evaluations``, and
``options.NAME`` for a method's own hyper-parameters (as a quoted key, or in a table ``options``). What they mean
together is `gradless.bench.grid`'s part.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta

from gradless import plugins, tasks
from gradless.errors import BadInput, unknown
from gradless.lm.metrics import METRICS
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.runs.config_io import SIZES
from gradless.runs.own_files import check_size
from gradless.system import typed
from gradless.system.typed import Count, Seed, within
from gradless.tasks.sources import beside

NAMED: Final = ("method", "scheme", "task", "model", "aligned")
"""What every cell has."""
OWN: Final = "own"
"""The task of cells whose rows come from the user's files."""
OPTION: Final = "options."
EVALUATIONS: Final = "evaluations"
EXTENDED: Final = 2
"""What ``extend = true`` allows."""
OWN_FILES: Final = ("train", "dev", "test")
# Settings of every run that the grid itself decides, and where it does.
DECIDED: Final = {
    "seed": "set seeds and search_seeds at the top of the file",
    "steps": "set budget at the top of the file",
    "eval_every": "set evaluations, the number of them in a run",
    "select": "set select at the top of the file",
    "zero_shot": "set zero_shot at the top of the file",
    "plugins": 'set plugins at the top of the file, as in plugins = ["own.py"]',
}
SETTINGS: Final = {name: setting for name, setting in typed.settings(TuneConfig).items() if name not in DECIDED}
SELECTIONS: Final = ("loss", "metric", *METRICS)

Settings = dict[str, Any]
Axes = dict[str, tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """The top of the file."""

    name: str | None = None
    """Title of tables and figures; by default the name of the file."""
    search_seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)] = (0, 100)
    """Seeds of the runs that choose among the points of [grid]: a point is judged by the mean over all of them."""
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)] = (1, 2, 3)
    """Seeds of the final runs of each cell; tables have their mean and standard deviation."""
    budget: dict[str, Any] = field(default_factory=dict)
    """What a run may spend: the table below. It must be given."""
    select: str = "metric"
    """What chooses on dev rows: loss, metric (the first of each task) or the name of that metric."""
    judge: Literal["last", "best"] = "last"
    """Evaluations of a search run that count: the mean of its last two, or its best one, which favours noise."""
    extend: bool | Annotated[int, Meta(ge=1, le=8)] = False
    """Values that a numeric axis of [grid] may add by itself at each end while the best point lies there; true is 2."""
    zero_shot: bool = True
    """Evaluate the untouched model too, once for each model, task and seed."""
    plugins: tuple[str, ...] = ()
    """Files (relative to the grid) and modules that define methods, tasks and other parts of your own."""
    base: dict[str, Any] = field(default_factory=dict)
    """Settings of every run."""
    axes: dict[str, Any] = field(default_factory=dict)
    """Setting = list of values: every combination is a cell of the table."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Setting = list of values: every combination is a point that is tried in each cell."""
    when: list[dict[str, Any]] = field(default_factory=list)
    """Changes for cells that match, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetKeys:
    """The table ``budget``: one of the two units, and what a run of the search may spend."""

    forwards: Count | None = None
    """Forward passes of a final run, a backward pass counted as two: methods get different numbers of steps."""
    steps: Count | None = None
    """Steps of a final run, in place of forwards: methods may differ in cost."""
    search: Count | tuple[Count, ...] | None = None
    """The same for a run that only chooses a point; by default as much as a final run. A list of rising amounts is
    successive halving: each is a rung, on which fewer points are judged than on the one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WhenKeys:
    """What a table ``[[when]]`` changes; its other keys say which cells it is for."""

    base: dict[str, Any] = field(default_factory=dict)
    """Settings that replace or add to those of [base], and end a search of the same name."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Lists that replace or add to those of [grid], and replace a setting of the same name in [base]."""
    skip: bool | None = None
    """true leaves the cells out; false takes them back in."""


class Budget(NamedTuple):
    """What one run may spend."""

    unit: str  # forwards or steps; a backward counts as two forwards
    amount: int
    search: tuple[int, ...]  # the same for runs that only compare hyper-parameters, rung by rung


@dataclass(frozen=True, kw_only=True, slots=True)
class When:
    """Changes for the cells that match."""

    match: Axes
    """Name of an axis -> patterns, of which one has to fit (`fnmatch`)."""
    grid: Axes
    base: Settings
    skip: bool | None
    """None: as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A grid as its file states it."""

    path: Path
    name: str
    search_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    budget: Budget
    select: str
    """``loss``, ``metric`` (every task's main one), or the name of that metric."""
    judge: str
    extend: int
    """Values that an axis may add at each end."""
    zero_shot: bool
    base: Settings
    axes: Axes
    searched: Axes
    whens: tuple[When, ...]
    values: dict[str, Any]
    """The file, parsed and otherwise untouched."""

    @property
    def folder(self) -> Path:
        """What paths in the file are relative to."""
        return self.path.resolve().parent


def load_plugins(path: Path) -> None:
    """Load the plugins that a grid names; files are relative to the grid.

    Raises:
        BadInput: the file cannot be read, or as `gradless.plugins.load`.
    """
    values = typed.load(path)
    with within(path):
        plugins.load(typed.value("plugins", values.get("plugins", []), tuple[str, ...]), folder=path.resolve().parent)


def parse(path: Path) -> Grid:
    """Return the grid in a file, whose plugins are loaded (`load_plugins`).

    Raises:
        BadInput: no such file, not TOML, an unknown key, or a value that cannot be; with its table in the file.
    """
    values = typed.load(path)
    with within(path):
        return _grid(path, values)


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """Return the first key in which two parsed files differ, as a sentence, or None."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            inner = difference(a, b, f"{prefix}{key}.")
            if inner:
                return inner
        elif a != b or type(a) is not type(b):
            return f"{prefix}{key} was {a!r} and is now {b!r}"
    return None


def _grid(path: Path, values: dict[str, Any]) -> Grid:
    if "search_seed" in values:
        raise BadInput(f"search_seed is now a list: write search_seeds = [{values['search_seed']}, 100] in its place")
    keys = Keys(**typed.table(values, Keys, kind="key"))
    for name, seeds in (("seeds", keys.seeds), ("search_seeds", keys.search_seeds)):
        if len(set(seeds)) < len(seeds):
            raise BadInput(f"{name} is {list(seeds)}: one seed is there twice, which would be the same run again")
    if keys.select not in SELECTIONS:
        raise BadInput(unknown("selection", keys.select, SELECTIONS))
    base = _settings(keys.base, "[base]", path)
    axes, searched = _axes(keys.axes, "[axes]"), _axes(keys.grid, "[grid]")
    for name in [*axes, *searched]:
        if name in base or (name in axes and name in searched):
            raise BadInput(f"{name} is given twice: leave it in one of [base], [axes] and [grid]")
    if OWN in base and "task" in {*axes, *base}:
        raise BadInput("own files are a task: leave out either own or task")
    whens = tuple(_when(table, f"[[when]] {number}", axes, path) for number, table in enumerate(keys.when, 1))
    for table in (base, axes, searched, *(part for one in whens for part in (one.base, one.grid))):
        _check_sizes(table, base.get(OWN, {}))
    for name in ("model", *(() if OWN in base else ("task",))):
        if name not in {*axes, *base}:
            raise BadInput(f'no {name}: name it in [base] ({name} = "...") or [axes] ({name} = ["...", ...])')
    return Grid(
        path=path,
        name=path.stem if keys.name is None else keys.name,
        search_seeds=keys.search_seeds,
        seeds=keys.seeds,
        budget=_budget(keys.budget),
        select=keys.select,
        judge=keys.judge,
        extend=EXTENDED if keys.extend is True else int(keys.extend),
        zero_shot=keys.zero_shot,
        base=base,
        axes=axes,
        searched=searched,
        whens=whens,
        values=values,
    )


def _budget(table: dict[str, Any]) -> Budget:
    with within("budget"):
        limits = typed.table(table, BudgetKeys, kind="key")
    units = [name for name in limits if name != "search"]
    if len(units) != 1:
        raise BadInput("budget must name one of forwards and steps, as in budget = { forwards = 200 }")
    (unit,) = units
    search = limits.get("search", limits[unit])
    rungs = search if isinstance(search, tuple) else (search,)
    if not rungs or any(one >= following for one, following in itertools.pairwise(rungs)):
        raise BadInput(f"budget: search is {list(rungs)}: give amounts that rise, as in search = [400, 1600]")
    return Budget(unit, limits[unit], rungs)


def _when(table: dict[str, Any], where: str, axes: Axes, path: Path) -> When:
    names = tuple(dict.fromkeys((*NAMED, *axes)))
    with within(where):
        keys = {name: table[name] for name in typed.settings(WhenKeys) if name in table}
        parts = dataclasses.asdict(WhenKeys(**typed.table(keys, WhenKeys, kind="key")))
        match: Axes = {}
        for name, patterns in _flat(table).items():
            if name in parts:
                continue
            if name not in names:
                raise BadInput(unknown("key", name, (*names, *parts)))
            several = patterns if isinstance(patterns, list) else [patterns]
            match[name] = tuple(_pattern(name, pattern) for pattern in several)
            if not several:
                raise BadInput(f"{name} is empty: give a pattern")
    base = _settings(parts["base"], f"{where}, base", path)
    searched = _axes(parts["grid"], f"{where}, grid")
    with within(where):
        for name in (*base, *searched):
            if name in names or name == OWN:
                raise BadInput(f"{name} names the cell: neither base nor grid can change it")
            if name in base and name in searched:
                raise BadInput(f"{name} is given twice: leave it in one of base and grid")
        if not (base or searched or parts["skip"] is not None):
            raise BadInput("it changes nothing: give it a grid, a base, or skip = true")
    return When(match=match, grid=searched, base=base, skip=parts["skip"])


def _pattern(name: str, pattern: Any) -> Any:
    """A pattern for an axis; one without a wildcard must be a known name, or a slip would go unnoticed."""
    wild = not isinstance(pattern, str) or any(letter in pattern for letter in "*?[")
    return pattern if wild or (name, pattern) == ("task", OWN) or name not in SETTINGS else setting(name, pattern)


# ---------------------------------------------------------------------------------------------------------------
# settings


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """``options = {keep = 1}`` as ``options.keep``, like the quoted key."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        inner = value if name == "options" and isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{OPTION}{option}": one for option, one in inner.items()}
    return flat


def _settings(table: dict[str, Any], where: str, path: Path) -> Settings:
    with within(where):
        return {
            name: _own(value, path) if name == OWN else setting(name, value) for name, value in _flat(table).items()
        }


def _axes(table: dict[str, Any], where: str) -> Axes:
    axes: Axes = {}
    with within(where):
        for name, values in _flat(table).items():
            if name in (OWN, EVALUATIONS):
                raise BadInput(f"{name} is the same for all runs: put it into [base]")
            if where != "[axes]" and name in NAMED:
                raise BadInput(f"{name} is not searched: put it into [axes]")
            if not isinstance(values, list):
                raise BadInput(f"{name} is {values!r}: give a list, as in {name} = [{values!r}]")
            if not values:
                raise BadInput(f"{name} is an empty axis: give it a value, or leave it out")
            axes[name] = tuple(setting(name, value) for value in values)
            if any(axes[name].count(value) > 1 for value in axes[name]):
                raise BadInput(f"{name} holds a value twice, which would be the same run again")
    return axes


def setting(name: str, value: Any) -> Any:
    """Return a value in the type of the setting, and names as their tables spell them; 1 and 1.0 are one rate.

    Raises:
        BadInput: no such setting, one that the grid decides, or a value out of its range.
    """
    if name == EVALUATIONS:
        return typed.value(name, value, Count)
    if name.startswith(OPTION):
        return typed.value(name, value, bool | int | float | str)
    if name in DECIDED:
        raise BadInput(f"{name} is not set for single runs: {DECIDED[name]}")
    if name not in SETTINGS:
        raise BadInput(unknown("key", name, (*SETTINGS, EVALUATIONS)))
    value = typed.value(name, value, SETTINGS[name].hint)
    return tasks.get(value).name if name == "task" else value


def _check_sizes(table: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse no rows of own files, in settings or in axes."""
    for name in SIZES:
        values = table.get(name)
        for value in values if isinstance(values, tuple) else (values,):
            check_size(name, value, own)


def _own(table: Any, path: Path) -> Settings:
    """Return own files, with absolute paths."""
    own = typed.value("own", table, dict[str, Any])
    with within("own"):
        own = typed.table(own, OwnFiles, kind="key")
        for key in ("train", "test", "template", "label_column", "labels"):
            if key not in own:
                raise BadInput(f"{key} is missing: add it")
    folder = path.resolve().parent
    return {key: str(beside(value, folder)) if key in OWN_FILES else value for key, value in own.items()}

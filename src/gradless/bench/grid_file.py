"""The TOML file of a grid: read into frozen records, every key and value checked.

The words of the file are settings: fields of `gradless.runs.config.TuneConfig`, the number ``evaluations``, and
``options.NAME`` for a method's own hyper-parameters (as a quoted key, or in a table ``options``). What they mean
together is `gradless.bench.grid`'s part.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from gradless import tasks
from gradless.errors import BadInput, pick, unknown
from gradless.lm.metrics import METRICS
from gradless.methods import METHODS
from gradless.runs.config import DEFAULTS, TuneConfig

NAMED: Final = ("method", "scheme", "task", "model", "aligned")
"""What every cell has."""
OWN: Final = "own"
"""The task of cells whose rows come from the user's files."""
KEYS: Final = ("name", "search_seed", "seeds", "budget", "select", "zero_shot", "base", "axes", "grid", "when")
UNITS: Final = ("forwards", "steps")
OPTION: Final = "options."
EVALUATIONS: Final = "evaluations"
OWN_FILES: Final = ("train", "dev", "test")
OWN_KEYS: Final = (*OWN_FILES, "template", "label_column", "labels")
# Settings of every run that the grid itself decides, and where it does.
DECIDED: Final = {
    "seed": "set seeds and search_seed at the top of the file",
    "steps": "set budget at the top of the file",
    "eval_every": "set evaluations, the number of them in a run",
    "select": "set select at the top of the file",
    "zero_shot": "set zero_shot at the top of the file",
}
HINTS: Final = typing.get_type_hints(TuneConfig)
WORDS: Final = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false", tuple: "a list"}

Settings = dict[str, Any]
Axes = dict[str, tuple[Any, ...]]


class Budget(NamedTuple):
    """What one run may spend."""

    unit: str  # one of UNITS; a backward counts as two forwards
    amount: int
    search: int  # the same for a run that only compares hyper-parameters


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
    """A grid as its file says it."""

    path: Path
    name: str
    search_seed: int
    seeds: tuple[int, ...]
    budget: Budget
    select: str
    """``loss``, ``metric`` (every task's main one), or the name of that metric."""
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


def parse(path: Path) -> Grid:
    """Read a grid's file.

    Raises:
        BadInput: no such file, not TOML, an unknown key, or a value that cannot be; with the place in the file.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read the grid {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from None
    try:
        return _grid(path, values)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """The first key in which two parsed files differ, as a sentence, or None."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found = difference(a, b, f"{prefix}{key}.")
            if found:
                return found
        elif a != b or type(a) is not type(b):
            return f"{prefix}{key} was {a!r} and is now {b!r}"
    return None


def _grid(path: Path, values: dict[str, Any]) -> Grid:
    for key in values:
        if key not in KEYS:
            raise BadInput(unknown("key", key, KEYS))
    base = _settings(_table(values, "base"), "[base]", path)
    axes = _axes(_table(values, "axes"), "[axes]")
    searched = _axes(_table(values, "grid"), "[grid]")
    for name in [*axes, *searched]:
        if name in base or (name in axes and name in searched):
            raise BadInput(f"{name} is given twice: leave it in one of [base], [axes] and [grid]")
    if OWN in base and "task" in {*axes, *base}:
        raise BadInput("own files are a task: leave out either own or task")
    for name in ("model", *(() if OWN in base else ("task",))):
        if name not in {*axes, *base}:
            raise BadInput(f'no {name}: name it in [base] ({name} = "...") or [axes] ({name} = ["...", ...])')
    grid = Grid(
        path=path,
        name=_typed(values, "name", str, path.stem),
        search_seed=_typed(values, "search_seed", int, 0),
        seeds=_seeds(values),
        budget=_budget(_table(values, "budget")),
        select=_typed(values, "select", str, "metric"),
        zero_shot=_typed(values, "zero_shot", bool, True),
        base=base,
        axes=axes,
        searched=searched,
        whens=_whens(values, axes, path),
        values=values,
    )
    if grid.select not in ("loss", "metric", *METRICS):
        raise BadInput(unknown("selection", grid.select, ("loss", "metric", *METRICS)))
    return grid


def _typed(values: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = values.get(key, default)
    if type(value) is not kind:
        raise BadInput(f"{key} = {value!r}: it must be {WORDS[kind]}")
    return value


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise BadInput(f"{key} = {found!r}: it must be a table of names and values")
    return found


def _seeds(values: dict[str, Any]) -> tuple[int, ...]:
    seeds = values.get("seeds", [1, 2, 3])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise BadInput(f"seeds = {seeds!r}: it must be a list of whole numbers such as [1, 2, 3]")
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"seeds = {seeds!r}: one seed is there twice, which would be the same run again")
    return tuple(seeds)


def _budget(table: dict[str, Any]) -> Budget:
    for name in table:
        pick("budget", name, dict.fromkeys((*UNITS, "search")))
    units = [name for name in table if name in UNITS]
    if len(units) != 1:
        raise BadInput("budget must name one of forwards and steps, as in budget = { forwards = 200 }")
    for name, amount in table.items():
        if type(amount) is not int or amount < 1:
            raise BadInput(f"budget: {name} = {amount!r}: it must be a whole number of at least 1")
    (unit,) = units
    return Budget(unit, table[unit], table.get("search", table[unit]))


def _whens(values: dict[str, Any], axes: Axes, path: Path) -> tuple[When, ...]:
    given = values.get("when", [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadInput("when must be tables that begin with [[when]]")
    return tuple(_when(one, f"[[when]] {number}", axes, path) for number, one in enumerate(given, 1))


def _when(given: dict[str, Any], where: str, axes: Axes, path: Path) -> When:
    places = dict.fromkeys((*NAMED, *axes))
    match: Axes = {}
    for name, patterns in _flat(given).items():
        if name in ("grid", "base", "skip"):
            continue
        if name not in places:
            raise BadInput(f"{where}: {unknown('key', name, (*places, 'grid', 'base', 'skip'))}")
        several = patterns if isinstance(patterns, list) else [patterns]
        match[name] = tuple(_pattern(name, pattern, where) for pattern in several)
        if not match[name]:
            raise BadInput(f"{where}: {name} is empty: give a pattern")
    base = _settings(_table(given, "base"), f"{where}, base", path)
    for name in base:
        if name in places or name == OWN:
            raise BadInput(f"{where}, base: {name} names the cell: it cannot be changed there")
    found = _axes(_table(given, "grid"), f"{where}, grid")
    for name in found:
        if name in places:
            raise BadInput(f"{where}, grid: {name} names the cell: it cannot be searched there")
        if name in base:
            raise BadInput(f"{where}: {name} is given twice: leave it in one of base and grid")
    skip = given.get("skip")
    if skip is not None and type(skip) is not bool:
        raise BadInput(f"{where}: skip = {skip!r}: it must be true or false")
    if not (base or found or skip is not None):
        raise BadInput(f"{where} changes nothing: give it a grid, a base, or skip = true")
    return When(match=match, grid=found, base=base, skip=skip)


def _pattern(name: str, pattern: Any, where: str) -> Any:
    """A pattern for an axis; one without a wildcard must be a known name, or a slip would go unnoticed."""
    if not isinstance(pattern, str) or any(letter in pattern for letter in "*?["):
        return pattern
    return pattern if (name, pattern) == ("task", OWN) else _known(name, pattern, where)


def _known(name: str, value: Any, where: str) -> Any:
    """A name that must be in a table, as the table spells it."""
    try:
        if name == "task":
            return tasks.get(value).name
        if name in ("method", "scheme"):
            pick(name, value, METHODS if name == "method" else dict.fromkeys(DEFAULTS))
        return value
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------
# settings


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """``options = {keep = 1}`` as ``options.keep``, like the quoted key."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name == "options" and isinstance(value, dict):
            found |= {f"{OPTION}{option}": inner for option, inner in value.items()}
        else:
            found[name] = value
    return found


def _settings(table: dict[str, Any], where: str, path: Path) -> Settings:
    found: Settings = {}
    for name, value in _flat(table).items():
        if name == OWN:
            found[name] = _own(value, where, path)
        elif name == EVALUATIONS:
            if type(value) is not int or value < 1:
                raise BadInput(f"{where}: evaluations = {value!r}: it must be a whole number of at least 1")
            found[name] = value
        else:
            found[name] = _setting(name, value, where)
    return found


def _axes(table: dict[str, Any], where: str) -> Axes:
    found: Axes = {}
    for name, values in _flat(table).items():
        if name in (OWN, EVALUATIONS):
            raise BadInput(f"{where}: {name} is the same for all runs: put it into [base]")
        if not isinstance(values, list):
            raise BadInput(f"{where}: {name} = {values!r}: it must be a list, as in {name} = [{values!r}]")
        if not values:
            raise BadInput(f"{where}: {name} is an empty axis: give it a value, or leave it out")
        if where != "[axes]" and name in NAMED:
            raise BadInput(f"{where}: {name} is not searched: put it into [axes]")
        found[name] = tuple(_setting(name, value, where) for value in values)
        if any(found[name].count(value) > 1 for value in found[name]):
            raise BadInput(f"{where}: {name} holds a value twice, which would be the same run again")
    return found


def _setting(name: str, value: Any, where: str) -> Any:
    """One value of one setting, in the type that the configuration has it in."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{where}: {name} is {value}: it must be finite")
    if name.startswith(OPTION):
        if not isinstance(value, int | float | str):
            raise BadInput(f"{where}: {name} = {value!r}: it must be a number, text, true or false")
        return value
    if name in DECIDED:
        raise BadInput(f"{where}: {name} is not set for single runs: {DECIDED[name]}")
    if name not in HINTS:
        fields = [field.name for field in dataclasses.fields(TuneConfig) if field.name not in DECIDED]
        raise BadInput(f"{where}: {unknown('key', name, (*fields, EVALUATIONS))}")
    return _known(name, _fitted(name, value, where), where)


def _fitted(name: str, value: Any, where: str) -> Any:
    hint = HINTS[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)  # 1 and 1.0 are the same run
    if isinstance(value, list) and tuple in kinds and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    wanted = " or ".join(WORDS[kind] for kind in kinds if kind in WORDS)
    raise BadInput(f"{where}: {name} = {value!r}: it must be {wanted or 'a table'}")


def _own(given: Any, where: str, path: Path) -> Settings:
    """Own files, with absolute paths."""
    if not isinstance(given, dict):
        raise BadInput(f"{where}: own must be a table such as own = {{ train = ..., test = ..., template = ... }}")
    for key, value in given.items():
        if key not in OWN_KEYS:
            raise BadInput(f"{where}, own: {unknown('key', key, OWN_KEYS)}")
        if not isinstance(value, str) and not (key == "labels" and isinstance(value, dict)):
            raise BadInput(f"{where}, own: {key} must be text in quotes")
    for key in ("train", "test", "template", "label_column", "labels"):
        if key not in given:
            raise BadInput(f"{where}, own: {key} is missing: add it")
    folder = path.resolve().parent
    return {key: str(folder / value) if key in OWN_FILES else value for key, value in given.items()}

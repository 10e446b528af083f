"""Which searched point a cell ended with, whether the search may have stopped too early, and ``best.toml``.

``best.toml`` holds the chosen settings of every cell, as `gradless tune --config` reads them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from gradless.bench.search import HIGHEST, LOWEST, score, together
from gradless.report.bench.study import Cell, Results, Run, Study, axis_name, tested
from gradless.report.common.numbers import metric_of, number, show
from gradless.report.common.read import read_json
from gradless.report.common.table import score_text
from gradless.runs.config import TuneConfig


class Choice(NamedTuple):
    """The point that the final runs of a cell use."""

    point: dict[str, Any]
    runs: tuple[Run, ...]
    """The search runs of that point on the last rung, one a search seed."""
    edges: dict[str, str]
    """Axes on whose edge it lies: "lowest tried" or "highest tried"."""
    final: bool
    """Whether the search has ended; else it is the best point so far."""

    def dev(self, name: str) -> float | None:
        """Return the mean of a dev metric over its search runs, or None if one lacks it."""
        values = [run.metric("dev", name) for run in self.runs]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None


def choose(study: Study, cell: Cell) -> Choice | None:
    """The point of the final runs, or until there are any the best one so far; None while nothing is searched."""
    results = study.cells[cell]
    if results.final:
        point = results.final[0].point
        runs = _judged(results, point)
    else:
        runs = _best(study, cell, results)
        if not runs:
            return None
        point = runs[0].point
    return Choice(point, runs, _edges(point, results.tried), study.chosen(cell))


def _judged(results: Results, point: dict[str, Any]) -> tuple[Run, ...]:
    """The search runs of a point on the last rung that it reached."""
    runs = [run for run in results.search if run.point == point]
    return tuple(run for run in runs if run.rung == max(one.rung for one in runs))


def _best(study: Study, cell: Cell, results: Results) -> tuple[Run, ...]:
    """The runs of the point that is best so far, of those that reached the last rung: as the bench judges them."""
    select, judge = study.grid.get("select", "metric"), str(study.grid.get("judge", "last"))
    quantity = "loss" if select == "loss" else metric_of(cell.task)
    last = max((run.rung for run in results.search), default=0)
    by_point = [_judged(results, run.point) for run in results.search if run.rung == last]
    most = max(map(len, by_point), default=0)
    by_point = [runs for runs in by_point if len(runs) == most]  # a mean over some of the seeds is no match
    scored = [(together([score(run.record, quantity, judge) for run in runs]), runs) for runs in by_point]
    good = [(worth, runs) for worth, runs in scored if not worth.bad]
    return min(good, key=lambda pair: pair[0])[1] if good else ()


def _edges(point: dict[str, Any], tried: list[dict[str, Any]]) -> dict[str, str]:
    """Axes with several values of which the point has the first or the last; below one query there is nothing.

    A value that was tried and diverged, or whose result is awaited, counts as tried.
    """
    edges = {}
    for name in dict.fromkeys(name for other in tried for name in other):
        values = {other[name] for other in tried if number(other.get(name)) is not None}
        value = point.get(name)
        if len(values) < 2 or number(value) is None:
            continue
        if value == max(values):
            edges[name] = HIGHEST
        elif value == min(values) and (name.removeprefix("options."), value) != ("queries", 1):
            edges[name] = LOWEST
    return edges


BARE = re.compile(r"[A-Za-z0-9_-]+")


def best_toml(study: Study) -> str:
    """A table ``[cell."METHOD/SCHEME/TASK/MODEL"]`` for every cell with a chosen point: what differs from defaults.

    Other axes of the grid, and ``unaligned``, follow the method's name. The settings are those of a final run, its seed
    included. Cells whose search has not ended have a comment: their runs were short, and another point may win.
    """
    lines = [
        f"# Chosen by dev in the benchmark {one_line(study.name)}; gradless report wrote this file.",
        '# gradless tune --config best.toml --cell "NAME" --out DIR',
    ]
    for name, cell in names(study).items():
        choice = choose(study, cell)
        if choice is not None and not choice.final:
            lines += ["", f"# {one_line(name)}: the search has not ended"]
            continue
        settings = best_settings(study, cell)
        if settings is not None:
            lines += ["", f"# {_summary(study, cell)}", f"[cell.{quoted(name)}]", *assignments(settings)]
    return "\n".join([*lines, ""])


def names(study: Study) -> dict[str, Cell]:
    """Cells by name. A model that is a path goes by its last part, unless two models would share that."""
    models = {cell.model for cell in study.cells}
    short = {model: Path(model).name if model.startswith(("/", ".", "~")) else model for model in models}
    shared = Counter(short.values())
    cells = {}
    for cell in study.cells:
        model = short[cell.model] if shared[short[cell.model]] == 1 else cell.model
        parts = [cell.method, cell.scheme, cell.task, model, *([] if cell.aligned else ["unaligned"])]
        cells["/".join([*parts, *(f"{axis_name(name)}={show(value)}" for name, value in cell.extras)])] = cell
    return cells


def best_settings(study: Study, cell: Cell) -> dict[str, Any] | None:
    """Fields of `TuneConfig` that differ from its defaults, with the best point filled in; None before any result."""
    choice = choose(study, cell)
    if choice is None:
        return None
    results = study.cells[cell]
    run = next(iter([*results.done, *results.final]), None)
    config = study.final_settings.get(cell, {}) if run is None else _config(study, run)
    if not config:  # the request is gone: what the result itself tells
        config = {"model": cell.model, "task": cell.task, "scheme": cell.scheme, "method": cell.method}
        config |= {} if cell.aligned else {"aligned": False}
        for name, value in (*cell.extras, *choice.point.items()):
            if name.startswith("options."):
                config.setdefault("options", {})[axis_name(name)] = value
            else:
                config[name] = value
    defaults = _defaults()
    return {
        name: value
        for name, value in config.items()
        if value is not None and (name not in defaults or value != defaults[name])
    }


def _config(study: Study, run: Run) -> dict[str, Any]:
    """The configuration that a run was asked for, or that it resolved."""
    return study.config(run) or read_json(study.folder / "runs" / run.id / "config.json")


def _defaults() -> dict[str, Any]:
    """The fields' defaults as JSON would give them back."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TuneConfig):
        if field.default is not dataclasses.MISSING:
            values[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


def _summary(study: Study, cell: Cell) -> str:
    """The cell's results on dev and test, for a comment."""
    choice, name = choose(study, cell), metric_of(cell.task)
    dev = choice.dev(name) if choice else None
    test = tested(cell, study.cells[cell])
    parts = [] if dev is None else [f"dev {dev:.3f}"]
    parts += [] if test is None else [f"test {score_text(test)}"]
    parts += [f"{axis_name(axis)} is the {edge}" for axis, edge in (choice.edges if choice else {}).items()]
    return one_line(f"{name}: {', '.join(parts) or 'no result yet'}")


def one_line(text: str) -> str:
    """Text for a comment: TOML allows no control characters there."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """``key = value`` lines of a TOML table; None is left out, since TOML has no such value."""
    return [f"{key(name)} = {literal(value)}" for name, value in settings.items() if value is not None]


def key(name: str) -> str:
    """A TOML key, quoted where it must be."""
    return name if BARE.fullmatch(name) else quoted(name)


def quoted(text: str) -> str:
    r"""A TOML basic string: the same as in JSON, but for DEL.

    Example:
        >>> print(quoted('say "a\\b"'))
        "say \"a\\b\""
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def literal(value: Any) -> str:
    """A TOML value: strings, numbers, booleans, and lists and tables of them in line."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else "nan" if math.isnan(value) else f"{value:+}"
        case list() | tuple():
            return f"[{', '.join(literal(item) for item in value if item is not None)}]"
        case dict():
            return f"{{ {', '.join(assignments({str(k): v for k, v in value.items()}))} }}" if value else "{}"
        case _:
            return quoted(str(value))

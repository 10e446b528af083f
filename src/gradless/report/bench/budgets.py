"""Dev results over training: curves, and the three views of equal steps, equal forwards and equal seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gradless.report.bench.study import Cell, Results, Run, Section, Study
from gradless.report.common.numbers import Score, metric_of, number, score, unique
from gradless.report.common.table import NOTHING, Column, Item, Table, marked, score_record, score_text

VIEWS = ("steps", "forwards", "seconds")
SHARES = ((0.25, "1/4"), (0.5, "1/2"), (1.0, "all"))
ROUNDING = 1 + 1e-9


class Point(NamedTuple):
    """A dev evaluation during training."""

    steps: float
    forwards: float
    seconds: float
    value: float


class MeanPoint(NamedTuple):
    """An evaluation over seeds: mean place, mean and spread of the value."""

    x: float
    score: Score


def curve(run: Run) -> list[Point]:
    """Dev evaluations with a finite main metric, in the order of training."""
    name = metric_of(run.cell.task)
    lines = run.record.get("curve")
    found = []
    for line in lines if isinstance(lines, list) else ():
        if isinstance(line, dict):
            values = [number(line.get(key)) for key in ("step", "forwards", "seconds", name)]
            if all(value is not None for value in values):
                found.append(Point(*(value for value in values if value is not None)))
    return sorted(found)


def mean_curve(runs: Sequence[Run], view: str) -> list[MeanPoint]:
    """Mean over seeds at the steps that every run was evaluated at."""
    curves = [{point.steps: point for point in curve(run)} for run in runs]
    curves = [found for found in curves if found]
    shared = set.intersection(*map(set, curves)) if curves else set()
    points = []
    for step in sorted(shared):
        at = [found[step] for found in curves]
        value = score(point.value for point in at)
        if value is not None:
            points.append(MeanPoint(sum(getattr(point, view) for point in at) / len(at), value))
    return points


def budget(runs: Sequence[Run], view: str) -> float | None:
    """The smallest total among runs: what all of them reach."""
    ends = [getattr(points[-1], view) for points in map(curve, runs) if points]
    return min(ends, default=None)


def value_within(run: Run, view: str, limit: float) -> float | None:
    """The main dev metric of the last evaluation within a budget; None before the first. Nothing is interpolated."""
    seen = [point.value for point in curve(run) if getattr(point, view) <= limit * ROUNDING]
    return seen[-1] if seen else None


def view_tables(study: Study, section: Section) -> list[Table]:
    """A table for each view: dev metric of every method at a quarter, a half and all of the common budget."""
    return [_view_table(study, section, view) for view in VIEWS]


def _view_table(study: Study, section: Section, view: str) -> Table:
    cells = study.within(section)
    places = unique((cell.task, cell.scheme) for cell in cells)
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    for task, scheme in places:
        mine = {cell: found for cell, found in cells.items() if (cell.task, cell.scheme) == (task, scheme)}
        mine = {cell: found for cell, found in mine.items() if any(curve(run) for run in found.done)}
        total = budget([run for found in mine.values() for run in found.done], view)
        if total is None:
            continue
        items, more = _group(mine, view, total)
        label = Item(f"{task} · {scheme}, {amount(total, view)}")
        rows += [(label, Item(cell.label), *row) for cell, row in zip(mine, items, strict=True)]
        records += more
    return Table(
        name=f"views-{view}{study.suffix(section)}",
        title=f"Dev results at equal {view}{study.title(section)}",
        caption="Dev numbers, not test (test is scored once a seed, at the selected step): the last evaluation within "
        "the share of the budget, which is the smallest total of the methods in the group, mean ± sample standard "
        f"deviation over the final seeds. {NOTHING}: no evaluation that early. Diverged runs are left out. Bold: best "
        "of the group's column; †: best zeroth-order method.",
        labels=2,
        columns=(Column("Budget"), Column("Method"), *(Column(text, "share of it") for _, text in SHARES)),
        rows=tuple(rows),
        records=tuple(records),
    )


def _group(cells: dict[Cell, Results], view: str, total: float) -> tuple[list[tuple[Item, ...]], list[dict[str, Any]]]:
    """Entries (a row for each cell) and records of the cells of one task and scheme."""
    columns, records = [], []
    usual = max(len(found.done) for found in cells.values())
    for share, _ in SHARES:
        scores = [score(value_within(run, view, share * total) for run in found.done) for found in cells.values()]
        texts = [score_text(found, usual=usual) for found in scores]
        columns.append(marked(texts, [s and s.mean for s in scores], [cell.kind == "zo" for cell in cells]))
        for cell, found in zip(cells, scores, strict=True):
            extras = {name.removeprefix("options."): value for name, value in cell.extras}
            records.append(
                {name: getattr(cell, name) for name in ("model", "task", "aligned", "scheme", "method")} | extras
                | {"view": view, "budget": total, "share": share, "split": "dev", "metric": metric_of(cell.task)}
                | score_record(found)
            )  # fmt: skip
    return list(zip(*columns, strict=True)), records


def amount(total: float, view: str) -> str:
    """A budget for people: "200 forwards"."""
    return f"{total:.0f} {view}" if total >= 100 or total == int(total) else f"{total:.3g} {view}"

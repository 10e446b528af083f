"""Dev results over training: curves, and the three views of equal steps, equal forwards and equal seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gradless.report.bench.study import Cell, Run, Section, Study
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
    """An evaluation over seeds: mean abscissa, mean and spread of the value."""

    x: float
    score: Score


def curve(run: Run) -> list[Point]:
    """Dev evaluations with a finite main metric, in the order of training."""
    names, lines = ("step", "forwards", "seconds", metric_of(run.cell.task)), run.record.get("curve")
    points = []
    for line in lines if isinstance(lines, list) else ():
        numbers = [number(line.get(name)) for name in names] if isinstance(line, dict) else [None]
        values = [value for value in numbers if value is not None]
        points += [Point(*values)] if len(values) == len(names) else []
    return sorted(points)


def mean_curve(runs: Sequence[Run], view: str) -> list[MeanPoint]:
    """Mean over seeds at the steps that every run was evaluated at."""
    curves = [{point.steps: point for point in points} for points in map(curve, runs) if points]
    means = []
    for step in sorted(set.intersection(*map(set, curves)) if curves else ()):
        points = [by_step[step] for by_step in curves]
        mean = score(point.value for point in points)
        if mean is not None:
            means.append(MeanPoint(sum(getattr(point, view) for point in points) / len(points), mean))
    return means


def budget(runs: Sequence[Run], view: str) -> float | None:
    """The smallest total among runs: what all of them reach."""
    return min((getattr(points[-1], view) for points in map(curve, runs) if points), default=None)


def value_within(run: Run, view: str, limit: float) -> float | None:
    """The main dev metric of the last evaluation within a budget; None before the first. Nothing is interpolated."""
    seen = [point.value for point in curve(run) if getattr(point, view) <= limit * ROUNDING]
    return seen[-1] if seen else None


def view_tables(study: Study, section: Section) -> list[Table]:
    """A table for each view: dev metric of every method at a quarter, a half and all of the common budget."""
    return [_view_table(study, section, view) for view in VIEWS]


def _view_table(study: Study, section: Section, view: str) -> Table:
    curved = {cell: runs.done for cell, runs in study.within(section).items() if any(map(curve, runs.done))}
    rows: list[tuple[Item, ...]] = []
    records: list[dict[str, Any]] = []
    for task, scheme in unique((cell.task, cell.scheme) for cell in curved):
        group = {cell: runs for cell, runs in curved.items() if (cell.task, cell.scheme) == (task, scheme)}
        total = budget([run for runs in group.values() for run in runs], view)
        assert total is not None
        items, more = _group(group, view, total, len(study.seeds))
        label = Item(f"{task} · {scheme}, {amount(total, view)}")
        rows += [(label, Item(cell.label), *row) for cell, row in zip(group, items, strict=True)]
        records += more
    return Table(
        name=f"views-{view}{study.suffix(section)}",
        title=f"Dev results at equal {view}{study.title(section)}",
        caption="Dev numbers, not test (test is scored once a seed, at the selected step): the last evaluation within "
        "the share of the budget, which is the smallest total of the methods in the group, mean ± sample standard "
        f"deviation over the final seeds; (n=2): of two, and no best. {NOTHING}: no evaluation that early. "
        "Diverged runs are left out. Bold: best of the group's column; †: best zeroth-order method.",
        labels=2,
        columns=(Column("Budget"), Column("Method"), *(Column(text, "share of it") for _, text in SHARES)),
        rows=tuple(rows),
        records=tuple(records),
    )


def _group(
    cells: dict[Cell, list[Run]], view: str, total: float, seeds: int
) -> tuple[list[tuple[Item, ...]], list[dict[str, Any]]]:
    """Entries (a row for each cell) and records of the cells of one task and scheme."""
    columns, records = [], []
    for share, _ in SHARES:
        scores = [score(value_within(run, view, share * total) for run in runs) for runs in cells.values()]
        texts = [score_text(mean, usual=seeds) for mean in scores]
        ranked = [mean if mean is not None and mean.n == seeds else None for mean in scores]
        columns.append(marked(texts, ranked, [cell.kind == "zo" for cell in cells]))
        for cell, mean in zip(cells, scores, strict=True):
            named = {name: getattr(cell, name) for name in ("model", "task", "aligned", "scheme", "method")}
            named |= {name.removeprefix("options."): value for name, value in cell.extras}
            named |= {"view": view, "budget": total, "share": share, "split": "dev", "metric": metric_of(cell.task)}
            records.append(named | score_record(mean))
    return list(zip(*columns, strict=True)), records


def amount(total: float, view: str) -> str:
    """A budget for people: "200 forwards"."""
    return f"{total:.0f} {view}" if total >= 100 or total == int(total) else f"{total:.3g} {view}"

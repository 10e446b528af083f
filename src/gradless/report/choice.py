"""Which searched point a cell ended with, and whether the search may have stopped too early."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gradless.report.study import DONE, Cell, Results, Run, Study, metric_of, number

LOWEST, HIGHEST = "lowest tried", "highest tried"


class Choice(NamedTuple):
    """The point that the final runs of a cell use."""

    point: dict[str, Any]
    run: Run | None
    """The search run of that point."""
    edges: dict[str, str]
    """Axes on whose edge it lies: "lowest tried" or "highest tried"."""


def choose(study: Study, cell: Cell) -> Choice | None:
    """The point of the final runs, or until there are any the best one so far; None while nothing is searched."""
    found = study.cells[cell]
    if found.final:
        point = found.final[0].point
        run = next((run for run in found.search if run.point == point), None)
    else:
        run = _best(study, cell, found)
        if run is None:
            return None
        point = run.point
    return Choice(point, run, _edges(point, found.tried))


def _best(study: Study, cell: Cell, found: Results) -> Run | None:
    """The finished search run with the best dev value, as the grid selects: a metric, or the loss."""
    wanted = study.grid.get("select", "metric")

    def goodness(run: Run) -> tuple[float, float] | None:
        """Higher is better; equal metrics are told apart by the loss."""
        loss = run.metric("dev", "loss")
        low = -loss if loss is not None else -math.inf
        if wanted == "loss":
            return None if loss is None else (low, 0.0)
        named = run.metric("dev", str(wanted))
        named = named if named is not None else run.metric("dev", metric_of(cell.task))
        return None if named is None else (named, low)

    scored = [(goodness(run), run) for run in found.search if run.status == DONE]
    known = [(value, run) for value, run in scored if value is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


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

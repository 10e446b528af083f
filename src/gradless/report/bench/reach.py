"""How soon each method has what MeZO ends with: forwards as a share of MeZO's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradless.report.bench.budgets import ROUNDING, mean_curve
from gradless.report.bench.study import Cell, Section, Study
from gradless.report.common.numbers import metric_of, unique
from gradless.report.common.table import NOTHING, Column, Item, Table

HALF = 0.5
NEVER = "not reached"


def reach_table(study: Study, section: Section) -> Table:
    """Return the share of MeZO's forwards after which each method's mean dev curve reaches MeZO's last value."""
    cells = study.within(section)
    tasks = unique(cell.task for cell in cells)
    names = unique((cell.scheme, cell.method, cell.extras) for cell in cells)
    rows, records = [], []
    for scheme, method, extras in sorted(names, key=lambda name: [one[0] for one in names].index(name[0])):
        shares, items = [], []
        for task in tasks:
            cell = Cell(section.model, task, scheme, method, section.aligned, extras)
            text, share = _reach(study, cells, cell)
            shares.append(share)
            items.append(Item(text, best=share is not None and share <= HALF))
            named = {"model": section.model, "task": task, "scheme": scheme, "method": method, "label": cell.label}
            records.append({**named, "metric": metric_of(task), "share_of_mezo": share, "note": "" if share else text})
        known = [share for share, item in zip(shares, items, strict=True) if share is not None or item.text == NEVER]
        count = f"{sum(share is not None and share <= HALF for share in shares)} of {len(known)}" if known else NOTHING
        if known:
            rows.append((Item(scheme), Item(Cell("", "", "", method, extras=extras).label), *items, Item(count)))
    return Table(
        name=f"reach-mezo{study.suffix(section)}",
        title=f"Forwards to MeZO's final dev result{study.title(section)}",
        caption="The first evaluation at which a method's dev curve, the mean over all seeds, reaches the last value "
        "of that of mezo with the same scheme: its forwards over all that mezo spends. Bold: at most half. Last "
        "column: tasks with at most half, of those where both have all seeds. mezo's own row says when its curve first "
        "had that value: a curve that goes up and down makes early arrivals cheap.",
        labels=2,
        columns=tuple(map(Column, ("Scheme", "Method", *tasks, "half or less"))),
        rows=tuple(rows),
        records=tuple(records),
    )


def _reach(study: Study, cells: Mapping[Cell, Any], cell: Cell) -> tuple[str, float | None]:
    """Return a table's entry and the share; None where it is not reached or not known."""
    mezo = cell._replace(method="mezo", extras=())
    if cell not in cells or mezo not in cells:
        return NOTHING, None
    for one in (cell, mezo):
        if not study.complete(cells[one]):
            return study.lacking(cells[one]) + (" of mezo" if one != cell else ""), None
    own, base = (mean_curve(cells[one].done, "forwards") for one in (cell, mezo))
    if not own or not base:
        return NOTHING, None
    target, whole = base[-1].score.mean, base[-1].x
    reached = next((point.x for point in own if point.score.mean * ROUNDING >= target), None)
    return (NEVER, None) if reached is None else (f"{reached / whole:.2f}", reached / whole)

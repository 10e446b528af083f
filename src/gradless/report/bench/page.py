"""What ``report.html`` of a benchmark says; ``page.html.j2`` says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gradless.bench.grid import FINAL
from gradless.bench.results import FAILED
from gradless.report.bench.study import Run, Study
from gradless.report.common.numbers import count_endings, counted, show
from gradless.report.common.page import inlined, render
from gradless.report.common.pictures import Picture
from gradless.report.common.read import mapping, plugin_note, read_json
from gradless.report.common.table import Table

SECTIONS = (
    ("results", "Results", ("accuracy", "effect-", "alignment")),
    ("front", "Memory and accuracy", ("front-",)),
    ("compared", "Told apart or not", ("compare-",)),
    ("ranks", "Ranks over tasks", ("ranks-",)),
    ("reach", "Half of MeZO's forwards", ("reach-",)),
    ("curves", "During training", ("curves-",)),
    ("views", "At equal budgets", ("views-",)),
    ("cost", "Cost", ("cost",)),
    ("settings", "Hyper-parameters", ("hyper-parameters",)),
)
"""Id, heading, and the first letters of the names of the tables and pictures in it."""
LONGEST_REASON = 300


def page(study: Study, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The page; text of users is escaped, pictures are inlined and take the page's colours."""
    sections, headings = [], {"read": "How to read this"}
    for name, heading, starts in SECTIONS:
        section = {
            "id": name,
            "tables": [table for table in tables if table.name.startswith(starts)],
            "pictures": [picture for picture in pictures if picture.name.startswith(starts)],
        }
        if section["tables"] or section["pictures"]:
            sections.append(section)
            headings[name] = heading
    return render(
        "bench/page.html.j2",
        study=study,
        counts=count_endings(run.status for run in study.runs),
        shortfall=shortfall(study),
        note=note(study),
        headings=headings | {"made": "How it was made"},
        sections=sections,
        drawings=inlined(
            (picture.name, picture.title, picture.svg.read_text(encoding="utf-8")) for picture in pictures
        ),
        **_how_to_read(study),
        versions=_versions(study),
        failures=[_failure(run) for run in study.runs if run.status == FAILED],
    )


def shortfall(study: Study) -> str:
    """What is missing, in a sentence, or nothing."""
    missing = study.missing()
    parts = [f"{counted(missing, 'run has', 'runs have')} no result yet"] if missing else []
    if study.waiting:
        parts.append(f"{counted(len(study.waiting), 'cell has', 'cells have')} none at all and no row in the tables")
    parts += [f"{counted(study.unread, 'damaged line')} of results.jsonl left out"] if study.unread else []
    return "; ".join(parts)


def note(study: Study) -> str:
    """What the page lacks for want of a plugin, in a sentence, or nothing."""
    methods = sorted({cell.method for cell in study.cells})
    return plugin_note((study.config(run) for run in study.runs), {"methods": methods})


def _how_to_read(study: Study) -> dict[str, Any]:
    """What the grid and the runs tell of how numbers came about."""
    select = study.grid.get("select")
    metric = show(select) if isinstance(select, str) else "metric or loss"
    return {
        "selected_by": f"its {metric}",
        "seeds": sorted({show(run.seed) for run in study.runs if run.phase == FINAL}),
        "budget": budget_sentence(mapping(study.grid.get("budget"))),
    }


def budget_sentence(budget: Mapping[str, Any]) -> str:
    """Return what runs had; empty of a grid that says nothing of it.

    Example:
        >>> budget_sentence({"forwards": 4000, "search": [400, 1000]})
        'A final run had 4,000 forwards, runs of the search 400, then 1,000.'
    """
    unit = next((name for name in ("forwards", "steps") if isinstance(budget.get(name), int)), None)
    if unit is None:
        return ""
    search = budget.get("search", budget[unit])
    rungs = ", then ".join(f"{value:,}" for value in (search if isinstance(search, list) else [search]))
    return f"A final run had {budget[unit]:,} {unit}, runs of the search {rungs}."


def _failure(run: Run) -> str:
    cell = run.cell
    names = ", ".join(part for part in (cell.model, cell.task, cell.scheme, cell.label) if part)
    reason = str(run.record.get("reason") or "no reason noted")
    reason = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + " ..."
    return f"{run.phase}, seed {show(run.seed)}, {names}: {reason}"


def _versions(study: Study) -> dict[str, str]:
    """Distinct versions and machines of the runs, most frequent first."""
    seen: dict[str, Counter[str]] = {}
    for run in study.runs:
        facts = mapping(read_json(study.folder / "runs" / run.id / "result.json").get("versions"))
        facts |= {name: study.config(run).get(name) for name in ("device", "dtype")}
        facts["threads"] = run.record.get("threads")
        for name, value in facts.items():
            if value is not None:
                seen.setdefault(str(name), Counter())[show(value)] += 1
    return {name: ", ".join(value for value, _ in counter.most_common()) for name, counter in seen.items()}

"""``report.html``: one page with everything, without scripts and without anything to load."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gradless.bench.grid import FINAL
from gradless.bench.results import FAILED
from gradless.report.bench.study import Run, Study
from gradless.report.common.numbers import show
from gradless.report.common.page import assemble, definitions, inline
from gradless.report.common.pictures import Picture
from gradless.report.common.read import mapping, read_json
from gradless.report.common.table import Table, as_html
from gradless.runs.record import DIVERGED, DONE

SECTIONS = (
    ("results", "Results", ("accuracy", "effect-", "alignment")),
    ("front", "Memory and accuracy", ("front-",)),
    ("curves", "During training", ("curves-",)),
    ("views", "At equal budgets", ("views-",)),
    ("cost", "Cost", ("cost",)),
    ("settings", "Hyper-parameters", ("hyper-parameters",)),
)
"""Id, heading, and the first letters of the names of the tables and pictures in it."""


def page(study: Study, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The page; text of users is escaped, pictures are inlined and take the page's colours."""
    parts = [("read", "How to read this", _reading(study))]
    for name, heading, starts in SECTIONS:
        body = "".join(as_html(table) for table in tables if table.name.startswith(starts))
        shown = [picture for picture in pictures if picture.name.startswith(starts)]
        if shown:
            figures = "".join(_figure(picture, f"p{pictures.index(picture)}") for picture in shown)
            body += f'<div class="pictures{" wide" if name == "front" else ""}">{figures}</div>'
        if body:
            parts.append((name, heading, body))
    parts.append(("made", "How it was made", _made(study)))
    return assemble(study.name, "gradless benchmark", _state(study), parts)


def counts(study: Study) -> str:
    """How many runs came to which end, in a sentence."""
    found = Counter(run.status for run in study.runs)
    ends = [f"{found[status]} {status}" for status in (DONE, DIVERGED, FAILED) if found[status]]
    return f"{len(study.runs)} {'run' if len(study.runs) == 1 else 'runs'}: {', '.join(ends)}"


def shortfall(study: Study) -> str:
    """What is missing, in a sentence, or nothing."""
    missing = study.missing()
    said = []
    if missing:
        said.append(f"{missing} {'run has' if missing == 1 else 'runs have'} no result yet")
    if study.unread:
        said.append(f"{study.unread} damaged {'line' if study.unread == 1 else 'lines'} of results.jsonl left out")
    return "; ".join(said)


def _state(study: Study) -> str:
    lead = f'<p class="lead">A gradless benchmark. {html.escape(counts(study))}.</p>'
    lack = shortfall(study)
    return lead + (f'<p class="missing">Not complete: {html.escape(lack)}.</p>' if lack else "")


def _reading(study: Study) -> str:
    grid = study.grid
    seeds = sorted({show(run.seed) for run in study.runs if run.phase == FINAL})
    over = f" (here {', '.join(seeds)})" if seeds else ""
    select = grid.get("select")
    by = "its loss" if select == "loss" else f"its {show(select)}" if isinstance(select, str) else "its metric or loss"
    budget = grid.get("budget")
    each = f" Each run had {_words(budget)}." if isinstance(budget, dict) and budget else ""
    points = (
        f"Hyper-parameters were chosen on dev data alone, by {by}, in runs with a search seed of their own. The best "
        f"point was then run with the final seeds{over}, and test was scored once a seed, at the step that dev chose.",
        "Test numbers: the results, the effects of options, alignment, and the front of memory and accuracy. Dev "
        "numbers: the curves, the views at equal budgets, and the values beside hyper-parameters.",
        f"Costs count forward passes; a backward pass counts as two.{each} Seconds are of training steps, without "
        "evaluations, and are comparable only within one machine.",
        "Three views answer three questions with the same runs: who is ahead after equally many steps, after equally "
        "many forward passes, after equally many seconds.",
        "± is the sample standard deviation over seeds. With few seeds, differences of its size mean little.",
        "A method diverged where every searched point, or every final run, met losses that are not finite. Where some "
        "final runs did, the mean is of the others: (2 of 3).",
    )
    return "<ul>" + "".join(f"<li>{html.escape(point)}</li>" for point in points) + "</ul>"


def _words(values: dict[str, Any]) -> str:
    return " and ".join(f"{show(value)} {name}" for name, value in values.items())


def _made(study: Study) -> str:
    """Versions, machines, runs that failed, and the grid."""
    facts = {name: ", ".join(values) for name, values in _versions(study).items()}
    body = definitions(facts) if facts else "<p>The run directories, which tell versions and machine, are gone.</p>"
    failed = [run for run in study.runs if run.status == FAILED]
    if failed:
        body += f"<h3>Failed runs</h3><ul>{''.join(map(_failure, failed[:20]))}</ul>"
        body += f"<p>... and {len(failed) - 20} more.</p>" if len(failed) > 20 else ""
    if study.grid_text:
        body += f"<h3>The grid</h3><pre><code>{html.escape(study.grid_text.strip())}</code></pre>"
    return body


def _failure(run: Run) -> str:
    cell = run.cell
    where = ", ".join(part for part in (cell.model, cell.task, cell.scheme, cell.label) if part)
    reason = str(run.record.get("reason") or "no reason noted")
    reason = reason if len(reason) <= 300 else reason[:300] + " ..."
    return f"<li>{html.escape(f'{run.phase}, seed {show(run.seed)}, {where}: {reason}')}</li>"


def _versions(study: Study) -> dict[str, list[str]]:
    """Distinct versions and machines of the runs, most frequent first."""
    seen: dict[str, Counter[str]] = {}
    for run in study.runs:
        facts = mapping(read_json(study.folder / "runs" / run.id / "result.json").get("versions"))
        facts |= {name: study.config(run).get(name) for name in ("device", "dtype")}
        facts["threads"] = run.record.get("threads")
        for name, value in facts.items():
            if value is not None:
                seen.setdefault(str(name), Counter())[show(value)] += 1
    return {name: [value for value, _ in counter.most_common()] for name, counter in seen.items()}


def _figure(picture: Picture, prefix: str) -> str:
    return f'<figure id="{html.escape(picture.name)}">{inline(picture.svg.read_text(), prefix, picture.title)}</figure>'

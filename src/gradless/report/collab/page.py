"""``report.html`` of collaborative runs, by the same builder as that of a benchmark."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradless.bench.results import FAILED
from gradless.report.collab.curves import all_curves
from gradless.report.collab.heatmaps import heatmaps
from gradless.report.collab.names import ALPHA, GAMMA, REFERENCE, algorithm_name, attack_name
from gradless.report.collab.study import Collab, Run, facts_of, outcome
from gradless.report.collab.tables import outcome_text, usual_seeds
from gradless.report.common.numbers import show, sortable, unique
from gradless.report.common.page import assemble, definitions, inline
from gradless.report.common.pictures import Picture
from gradless.report.common.read import mapping
from gradless.report.common.table import Table, as_html, latex
from gradless.runs.record import DIVERGED, DONE

PIXELS = 1.36  # of the page for a point of a picture
MOST_VALUES, MOST_RUNS, LONGEST = 12, 20, 160
SYMBOLS = {
    ALPHA: r"$\alpha$", GAMMA: r"$\gamma$", "≤": r"$\leq$", "\u2191": r"$\uparrow$",
    "\u2212": "$-$",
}  # fmt: skip
SECTIONS = (
    ("results", "Accuracy under attack", ("accuracy", "mean-accuracy", "curves-accuracy"), (
        "Every panel is one attack; every line is one algorithm. The strong line is the worst honest peer, the mean "
        "over the seeds, with a band of one sample standard deviation; the thin line of the same colour is the mean of "
        "the honest peers. The dashed grey line is D-SGD without attackers: what the peers would reach in peace. A "
        "cross marks the end of a line of which a seed diverged; that seed counts on with the accuracy it ended with, "
        "as in the tables.")),
    ("worst", "The worst attack", ("heatmap", "worst-attack"), (
        "Each cell takes the attack that hurts most. All cells share one colour scale; brighter is better. Hatched: "
        "no result. ≤: an attack has no result yet, so the true number may be lower. *: a seed diverged; div.: none "
        "ended with an accuracy.")),
    ("consensus", "Consensus distance", ("curves-consensus",), (
        "How far the models of the honest peers lie from their mean. The axis is logarithmic, so lines are geometric "
        "means over the seeds and bands one standard deviation of the logarithm. A distance of zero has no place on "
        "such an axis and is left out.")),
    ("mixing", "What a mixing does", ("alpha", "lambda"), (
        "Measured in every mixing of the runs, not bounds. A rule that reduces the disagreement has alpha below 1; one "
        "that also keeps the mean where it is has a small lambda.")),
    ("cost", "Cost", ("cost",), ""),
)  # fmt: skip
"""Id, heading, first letters of the names of the tables and pictures in it, and how to read them."""
AT_A_GLANCE = (
    "At a glance",
    "Each cell is one algorithm under one attack: the accuracy of the worst honest peer, mean over the seeds. Brighter "
    "is better. Hatched: no result. *: a seed diverged; div.: none ended with an accuracy.",
)
"""Heading and how to read it of the heat map where all runs have the same data and peers."""


def figures(study: Collab, folder: Path) -> list[Picture]:
    """Draw everything the results have something for, as SVG and PNG. Within `pictures.settings`."""
    return [*all_curves(study, folder), *heatmaps(study, folder)]


def tex(table: Table) -> str:
    """LaTeX, Greek letters and signs of relation in math mode."""
    text = latex(table)
    for letter, command in SYMBOLS.items():
        text = text.replace(letter, command)
    return text


def page(study: Collab, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The page; text of users is escaped, pictures are inlined and take the page's colours."""
    parts = [("read", "How to read this", _reading(study))]
    # Over several f the heat maps are the summary, and the curves many.
    ordered = sorted(SECTIONS, key=lambda section: section[0] != "worst") if len(study.peers) > 1 else SECTIONS
    for name, usual, starts, read in ordered:
        heading, how = AT_A_GLANCE if name == "worst" and len(study.places) == 1 else (usual, read)
        shown = [picture for picture in pictures if picture.name.startswith(starts)]
        body = "".join(_figure(picture, f"p{pictures.index(picture)}") for picture in shown)
        body += "".join(as_html(table) for table in tables if table.name in starts)
        if body:
            told = f"<p>{html.escape(how)}</p>" if how and (shown or name == "mixing") else ""
            parts.append((name, heading, told + body))
    parts.append(("made", "How it was made", _made(study)))
    return assemble(study.name, "gradless collaborative runs", _state(study), parts)


def counts(study: Collab) -> str:
    """How many runs came to which end, in a sentence."""
    found = Counter(run.status for run in study.runs)
    order = [*(status for status in (DONE, DIVERGED, FAILED) if status in found)]
    ends = [f"{found[status]} {status}" for status in [*order, *sorted(set(found) - set(order))]]
    return f"{len(study.runs)} {'run' if len(study.runs) == 1 else 'runs'}: {', '.join(ends)}"


def shortfall(study: Collab) -> str:
    """What is missing, in a sentence, or nothing."""
    said = []
    if study.unfinished:
        said.append(f"{study.unfinished} {'run is' if study.unfinished == 1 else 'runs are'} begun and not finished")
    if study.unread:
        said.append(f"{study.unread} damaged {'line' if study.unread == 1 else 'lines'} of results.jsonl left out")
    if study.replaced:
        said.append(f"{study.replaced} {'run' if study.replaced == 1 else 'runs'} replaced by later ones of that seed")
    return "; ".join(said)


def _state(study: Collab) -> str:
    sizes = {"algorithm": len(study.algorithms), "attack": len(study.attacks), "setting": len(study.places)}
    told = ", ".join(f"{size} {name}{'' if size == 1 else 's'}" for name, size in sizes.items())
    lead = f'<p class="lead">Collaborative runs under attack. {html.escape(counts(study))}. {told}.</p>'
    lack = shortfall(study)
    return lead + (f'<p class="missing">Note: {html.escape(lack)}.</p>' if lack else "")


def _reading(study: Collab) -> str:
    seeds = unique(show(run.seed) for run in sorted(study.runs, key=lambda run: sortable(run.seed)))
    usual = usual_seeds(study)
    listed = f" Seeds: {', '.join(seeds[:MOST_VALUES])}{', ...' if len(seeds) > MOST_VALUES else ''}." if seeds else ""
    kinds = {split.head for split in study.splits}
    calm = []
    for split in study.splits:
        runs = study.reference(next(place for place in study.places if place.split == split))
        name = (split.short if len(kinds) == 1 else split.label) or "all data"
        calm += [f"{name}: {outcome_text(outcome(runs), usual=usual)}\u00a0%"] if runs else []
    points = [
        "n peers learn together without a server. Up to f of them attack; every honest one keeps a model of its own, "
        "so there are as many test accuracies as honest peers. Worst is the lowest of them: what the protocol "
        "promises to each.",
        f"± is the sample standard deviation over seeds. With few seeds, differences of its size mean little.{listed}",
        "A run that diverged counts with the accuracy it had and is marked; a run that failed does not count.",
        "f is what the algorithm is told to withstand. D-SGD averages everything it hears and withstands nobody.",
    ]
    if calm:
        points.append(f"D-SGD without attackers, the line to measure against: {'; '.join(calm)} (worst honest peer).")
    elif REFERENCE not in study.algorithms:
        points.append("There is no run of D-SGD without attackers, so there are no gaps to it.")
    return "<ul>" + "".join(f"<li>{html.escape(point)}</li>" for point in points) + "</ul>"


def _made(study: Collab) -> str:
    """Recipe, versions, settings of the runs, and runs that did not end well."""
    configs, versions = [], Counter[tuple[str, str]]()
    for run in study.runs:
        result = facts_of(study, run, "result.json")
        found = facts_of(study, run, "config.json") or mapping(result.get("config"))
        configs += [_flat(found)] if found else []
        told = mapping(run.record.get("versions")) or mapping(result.get("versions"))
        versions.update((str(name), show(value)) for name, value in told.items())
    facts: dict[str, list[str]] = {"recipe": [study.name]}
    for (name, value), _ in versions.most_common():
        facts.setdefault(name, []).append(value)
    body = definitions({name: ", ".join(values) for name, values in facts.items()})
    if configs:
        same, varied = settings(configs)
        body += f"<h3>Settings of all {len(configs)} runs</h3>{definitions(same)}" if same else ""
        body += f"<h3>Settings that vary</h3>{definitions(varied)}" if varied else ""
    else:
        body += "<p>The run directories, which tell versions and settings, are gone.</p>"
    bad = [run for run in study.runs if run.status in (DIVERGED, FAILED)]
    if bad:
        body += f"<h3>Runs that diverged or failed</h3><ul>{''.join(map(_ending, bad[:MOST_RUNS]))}</ul>"
        body += f"<p>... and {len(bad) - MOST_RUNS} more.</p>" if len(bad) > MOST_RUNS else ""
    return body


def settings(configs: Sequence[dict[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """What every run was set to, and the values of the settings that differ between runs."""
    values: dict[str, dict[str, None]] = {}
    for name in dict.fromkeys(name for config in configs for name in config):
        values[name] = dict.fromkeys(config.get(name, "not set") for config in configs)
    same = {name: _cut(next(iter(found))) for name, found in values.items() if len(found) == 1}
    varied = {}
    for name, found in values.items():
        if len(found) > 1:
            more = f", ... ({len(found)} values)" if len(found) > MOST_VALUES else ""
            varied[name] = ", ".join(_cut(value) for value in list(found)[:MOST_VALUES]) + more
    return same, varied


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as text."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list | dict) else show(value)
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def _ending(run: Run) -> str:
    where = [algorithm_name(run.algorithm), attack_name(run.attack), run.place.peers, run.place.split.label]
    told = f"{run.status}: {', '.join(part for part in where if part)}, seed {show(run.seed)}"
    reason = run.record.get("reason")
    told += f": {_cut(reason)}" if isinstance(reason, str) and reason else ""
    return f"<li>{html.escape(told)}</li>"


def _figure(picture: Picture, prefix: str) -> str:
    """A picture as wide as its text can be read at, and no wider; on small screens it scrolls."""
    svg = picture.svg.read_text()
    box = re.search(r'viewBox="0 0 ([\d.]+) ', svg)
    wide = round(PIXELS * float(box[1])) if box else 800
    return (
        f'<figure id="{html.escape(picture.name)}"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{html.escape(picture.title)}"><div style="width: {wide}px; max-width: max(100%, 44rem)">'
        f"{inline(svg, prefix, picture.title)}</div></div></figure>"
    )

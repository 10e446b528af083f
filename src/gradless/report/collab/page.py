"""What ``report.html`` of collaborative runs says; ``page.html.j2`` says it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradless.bench.results import FAILED
from gradless.collab.config import CollabConfig
from gradless.report.collab import connectivity
from gradless.report.collab.curves import all_curves
from gradless.report.collab.heatmaps import heatmaps
from gradless.report.collab.names import REFERENCE, algorithm_name, attack_name
from gradless.report.collab.study import Collab, Run, facts_of, outcome
from gradless.report.collab.tables import outcome_text, usual_seeds
from gradless.report.common.numbers import count_endings, counted, show, sortable, unique
from gradless.report.common.page import inlined, render
from gradless.report.common.pictures import Picture
from gradless.report.common.read import mapping, plugin_note
from gradless.report.common.table import Table
from gradless.runs.record import DIVERGED

MOST_VALUES, LONGEST = 12, 160
SECTIONS = {
    "results": ("Accuracy under attack", ("accuracy", "mean-accuracy", "reward", "curves-accuracy", "curves-reward")),
    "graphs": ("Graphs", ("connectivity",)),
    "worst": ("The worst attack", ("heatmap", "worst-attack")),
    "consensus": ("Consensus distance", ("curves-consensus",)),
    "mixing": ("What a mixing does", ("alpha", "lambda")),
    "cost": ("Cost", ("cost",)),
}
"""Heading, and the names of the tables and first letters of those of the pictures in it."""


def figures(study: Collab, folder: Path) -> list[Picture]:
    """Draw everything the results have something for, as SVG and PNG. Within `pictures.settings`."""
    over_graphs = connectivity.picture(study, folder)
    if over_graphs:  # every graph would have curves and cells of its own, too many to tell apart
        return over_graphs
    return [*all_curves(study, folder), *heatmaps(study, folder)]


def page(study: Collab, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The page; text of users is escaped, pictures are inlined and take the page's colours."""
    # Over several f the heat maps are the summary, and the curves many.
    order = sorted(SECTIONS, key=lambda id_: id_ != "worst") if len(study.peers) > 1 else list(SECTIONS)
    sections, headings = [], {"read": "How to read this"}
    for id_ in order:
        heading, starts = SECTIONS[id_]
        glance = id_ == "worst" and len(study.settings) == 1  # shows every attack, not the worst one of each setting
        section = {
            "id": id_,
            "how": "glance" if glance else id_ if id_ != "cost" else "",
            "tables": [table for table in tables if table.name in starts],
            "pictures": [picture for picture in pictures if picture.name.startswith(starts)],
        }
        if section["tables"] or section["pictures"]:
            sections.append(section)
            headings[id_] = "At a glance" if glance else heading
    sizes = {"algorithm": len(study.algorithms), "attack": len(study.attacks), "setting": len(study.settings)}
    return render(
        "collab/page.html.j2",
        study=study,
        counts=count_endings(run.status for run in study.runs),
        sizes=", ".join(counted(size, name) for name, size in sizes.items()),
        shortfall=shortfall(study),
        note=note(study),
        headings=headings | {"made": "How it was made"},
        sections=sections,
        drawings=inlined(
            (picture.name, picture.title, picture.svg.read_text(encoding="utf-8")) for picture in pictures
        ),
        seeds=_few(unique(show(run.seed) for run in sorted(study.runs, key=lambda run: sortable(run.seed)))),
        references=_references(study),
        lacks_reference=REFERENCE not in study.algorithms,
        **_origin(study),
        failures=[_ending(run) for run in study.runs if run.status in (DIVERGED, FAILED)],
    )


def shortfall(study: Collab) -> str:
    """What is missing, in a sentence, or nothing."""
    counts = (
        (study.unfinished, counted(study.unfinished, "run is", "runs are") + " begun and not finished"),
        (study.unread, counted(study.unread, "damaged line") + " of results.jsonl left out"),
        (study.replaced, counted(study.replaced, "run") + " replaced by later ones of that seed"),
    )
    return "; ".join(text for count, text in counts if count)


def note(study: Collab) -> str:
    """What the page lacks for want of a plugin, in a sentence, or nothing."""
    configs = (facts_of(study, run, "config.json") for run in study.runs)
    return plugin_note(configs, {"algorithms": study.algorithms, "attacks": study.attacks})


def _references(study: Collab) -> list[str]:
    """The accuracy of D-SGD without attackers for every split where it ran."""
    usual, kinds, texts = usual_seeds(study), {split.head for split in study.splits}, []
    for split in study.splits:
        runs = study.reference(next(setting for setting in study.settings if setting.split == split))
        name = (split.short if len(kinds) == 1 else split.label) or "all data"
        texts += [f"{name}: {outcome_text(outcome(runs), usual=usual)}\u00a0%"] if runs else []
    return texts


def _origin(study: Collab) -> dict[str, Any]:
    """Recipe, versions, and the settings of the runs."""
    configs, versions = [], Counter[tuple[str, str]]()
    for run in study.runs:
        result = facts_of(study, run, "result.json")
        config = facts_of(study, run, "config.json") or mapping(result.get("config"))
        configs += [_flat(config)] if config else []
        run_versions = mapping(run.record.get("versions")) or mapping(result.get("versions"))
        versions.update((str(name), show(value)) for name, value in run_versions.items())
    facts: dict[str, list[str]] = {"recipe": [study.name]}
    for (name, value), _ in versions.most_common():
        facts.setdefault(name, []).append(value)
    same, varied = shared_and_varied(configs)
    texts = {name: ", ".join(values) for name, values in facts.items()}
    usual = {name: _cut(text) for name, text in _flat(CollabConfig().to_json()).items()}
    chosen = {name: text for name, text in same.items() if usual.get(name) != text}
    rest = {name: text for name, text in same.items() if name not in chosen}
    counted = {"versions": texts, "runs_with_settings": len(configs)}
    return {**counted, "chosen": chosen, "usual": rest, "varied": varied}


def shared_and_varied(configs: Sequence[dict[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """What every run was set to, and the values of the settings that differ between runs."""
    values = {
        name: unique(config.get(name, "not set") for config in configs)
        for name in unique(name for config in configs for name in config)
    }
    same = {name: _cut(distinct[0]) for name, distinct in values.items() if len(distinct) == 1}
    varied = {}
    for name, distinct in values.items():
        if len(distinct) > 1:
            more = f", ... ({len(distinct)} values)" if len(distinct) > MOST_VALUES else ""
            varied[name] = ", ".join(map(_cut, distinct[:MOST_VALUES])) + more
    return same, varied


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as text."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list | dict) else show(value)
    return flat


def _few(values: Sequence[str]) -> list[str]:
    return [*values[:MOST_VALUES], *(["..."] if len(values) > MOST_VALUES else [])]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def _ending(run: Run) -> str:
    names = [algorithm_name(run.algorithm), attack_name(run.attack), run.setting.peers, run.setting.split.label]
    reason = run.record.get("reason")
    more = f": {_cut(reason)}" if isinstance(reason, str) and reason else ""
    return f"{run.status}: {', '.join(part for part in names if part)}, seed {show(run.seed)}{more}"

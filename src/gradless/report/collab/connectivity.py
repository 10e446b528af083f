"""Accuracy over the connectivity of the graph on which peers hear each other: a table, and a panel for each attack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradless.bench.results import FAILED
from gradless.collab.network.topology import COMPLETE
from gradless.report.collab.curves import COLOURS, MARKERS, log_ticks
from gradless.report.collab.names import NO_ATTACK, algorithm_name, algorithm_order, attack_name
from gradless.report.collab.study import Collab, Run, outcome
from gradless.report.collab.tables import outcome_text, seeds_sentence, usual_seeds
from gradless.report.common.numbers import Score, number, score, show, unique
from gradless.report.common.pictures import (
    INK,
    LITERAL,
    PALE,
    Look,
    Picture,
    canvas,
    draw_title,
    key_line,
    marker,
    plain_axes,
    save,
    stroke,
)
from gradless.report.common.read import mapping
from gradless.report.common.table import NOTHING, Column, Item, Table

TITLE = "Accuracy over the connectivity of the graph"
LINES = ("-", "--", ":", "-.")
"""Of the kinds of graphs."""
WIDTH, HEIGHT, LEFT, RIGHT, ACROSS = 2.3, 1.9, 0.62, 0.16, 0.24  # inches
HEAD, PANEL_TITLE, AXIS, LEGEND_LINE = 0.34, 0.25, 0.5, 0.185
ACROSS_MOST = 4


class Graph(NamedTuple):
    """A graph of the study, or the complete one."""

    title: str
    """With its degree."""
    kind: str
    facts: dict[str, Any]
    """Of one run on it; without seeds of its own, of all."""


class Spot(NamedTuple):
    """Runs of all seeds on one graph."""

    connectivity: float
    score: Score


def graph_of(run: Run) -> Graph | None:
    """Return the graph of a run; None if its facts are gone."""
    facts = mapping(run.record.get("graph"))
    if facts and isinstance(facts.get("topology"), str):
        return Graph(facts["topology"], str(run.record.get("topology") or facts["topology"]), facts)
    honest = _honest(run)
    if run.record.get("topology") or honest is None:
        return None
    # Of a complete graph every eigenvalue but one is the number of peers; its weights leave nothing to mix.
    return Graph(COMPLETE, COMPLETE, {"mean_degree": (run.setting.n or 1) - 1, "algebraic_connectivity": honest})


def _honest(run: Run) -> float | None:
    attackers = number(run.record.get("attackers")) if run.attack != NO_ATTACK else 0.0
    return None if run.setting.n is None or attackers is None else run.setting.n - attackers


def base_of(run: Run) -> str:
    """Return the algorithm without the graph that `gradless.report.collab.study` puts behind its name."""
    facts = mapping(run.record.get("graph"))
    return run.algorithm.removesuffix(f" ({facts.get('topology')})")


def on_graphs(study: Collab) -> list[Run]:
    """Return the runs that can be compared over graphs: none if there is no graph but the complete one."""
    sparse = [run for run in study.runs if mapping(run.record.get("graph"))]
    attacks, names = {run.attack for run in sparse}, {base_of(run) for run in sparse}
    ended = [run for run in study.runs if run.status != FAILED and graph_of(run) is not None]
    return [run for run in ended if run.attack in attacks and base_of(run) in names]


def table(study: Collab) -> list[Table]:
    """Return the accuracy of every algorithm (columns) on every graph (rows) under each attack, or nothing."""
    runs = on_graphs(study)
    if not runs:
        return []
    usual, names = usual_seeds(study), sorted({base_of(run) for run in runs}, key=algorithm_order)
    rows, records = [], []
    for attack in _attacks(study, runs):
        under = [run for run in runs if run.attack == attack]
        graphs = unique(graph.title for run in under if (graph := graph_of(run)) is not None)
        for title in sorted(graphs, key=lambda title: _connectivity(_on(under, title)) or 0.0):
            here = _on(under, title)
            endings = [[run for run in here if base_of(run) == name] for name in names]
            texts = [outcome_text(outcome(some), usual=usual) if some else NOTHING for some in endings]
            labels = [attack_name(attack), title, show(_mean(here, "mean_degree")), _digits(_connectivity(here))]
            rows.append(tuple(map(Item, [*labels, *texts])))
            records += [
                {
                    **{"attack": attack, "topology": title, "algorithm": name, "connectivity": _connectivity(here)},
                    "worst_accuracy": ending.worst.mean if (ending := outcome(some)).worst else None,
                    "seeds": len(some),
                }
                for name, some in zip(names, endings, strict=True)
                if some
            ]
    heads = ("Attack", "Graph", "degree", "connectivity")
    columns = tuple(map(Column, (*heads, *map(algorithm_name, names))))
    caption = (
        f"Accuracy of the worst honest peer, in %. {seeds_sentence(usual)} Degree: mean number of neighbours of an "
        "honest peer. Connectivity: second smallest eigenvalue of the Laplacian of the graph's honest part (algebraic "
        "connectivity), mean over seeds. Where a graph has fewer neighbours than an algorithm needs it is not run."
    )
    return [Table("connectivity", TITLE, caption, len(heads), columns, tuple(rows), tuple(records))]


def picture(study: Collab, folder: Path) -> list[Picture]:
    """Draw the accuracy over the connectivity, if there are two graphs. Within `pictures.settings`."""
    runs = on_graphs(study)
    if len({graph.title for run in runs if (graph := graph_of(run)) is not None}) < 2:
        return []
    return [save(draw(study, runs), folder / "connectivity", TITLE)]


def draw(study: Collab, runs: Sequence[Run]) -> Any:
    """Return the figure: a panel for each attack, a colour for each algorithm, a stroke for each kind of graph."""
    figure, _ = canvas(8, 4)
    attacks = _attacks(study, runs)
    names = sorted({base_of(run) for run in runs}, key=algorithm_order)
    kinds = unique(graph.kind for run in runs if (graph := graph_of(run)) is not None and graph.kind != COMPLETE)
    looks = {
        (name, kind): Look(COLOURS[i % len(COLOURS)], LINES[k % len(LINES)], MARKERS[i % len(MARKERS)], "full")
        for i, name in enumerate(names)
        for k, kind in enumerate(kinds)
    }
    across = min(len(attacks), ACROSS_MOST)
    down = math.ceil(len(attacks) / across)
    width = LEFT + RIGHT + across * WIDTH + (across - 1) * ACROSS
    head = HEAD + 2 * LEGEND_LINE + 0.14
    height = head + down * (PANEL_TITLE + HEIGHT + AXIS)
    figure.set_size_inches(max(width, 5.0), height)
    width = max(width, 5.0)
    _legend(figure, [key_line(algorithm_name(name), looks[name, kinds[0]], 1.5, 4) for name in names], HEAD)
    lines = [key_line(kind, Look(INK, LINES[k % len(LINES)], "", "full"), 1.3, 0) for k, kind in enumerate(kinds)]
    _legend(figure, lines, HEAD + LEGEND_LINE)
    spots = {attack: _lines([run for run in runs if run.attack == attack], looks) for attack in attacks}
    places = [math.log10(spot.connectivity) for lines in spots.values() for line in lines.values() for spot in line]
    limits = (min(places, default=0.0) - 0.06, max(places, default=1.0) + 0.06)
    for index, attack in enumerate(attacks):
        row, column = divmod(index, across)
        left = LEFT + column * (WIDTH + ACROSS)
        bottom = height - head - (row + 1) * (PANEL_TITLE + HEIGHT) - row * AXIS
        axes = plain_axes(figure, (left / width, bottom / height, WIDTH / width, HEIGHT / height))
        _panel(axes, attack, spots[attack], limits, edge=column == 0)
    draw_title(figure, TITLE)
    return figure


def _legend(figure: Any, keys: list[Any], below: float) -> None:
    width, height = figure.get_size_inches()
    figure.legend(
        handles=keys,
        ncols=len(keys),
        bbox_to_anchor=(0.1 / width, 1 - below / height),
        **{"loc": "upper left", "frameon": False, "fontsize": 8, "labelcolor": INK, "borderaxespad": 0},
        **{"borderpad": 0, "handlelength": 2.6, "columnspacing": 1.2},
    )


def _lines(runs: Sequence[Run], looks: dict[tuple[str, str], Look]) -> dict[Look, list[Spot]]:
    by_look = {look: _spots(runs, *key) for key, look in looks.items()}
    return {look: spots for look, spots in by_look.items() if spots}


def _panel(axes: Any, attack: str, lines: dict[Look, list[Spot]], limits: tuple[float, float], *, edge: bool) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axes.tick_params(labelsize=8, length=2.5, labelleft=edge)
    axes.set_title(attack_name(attack), loc="left", fontsize=9, color=INK, pad=4, **LITERAL)
    axes.set_xlim(*limits)
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _digits(10**value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("algebraic connectivity", fontsize=8.5, labelpad=2)
    if edge:
        axes.set_ylabel("worst accuracy in %", fontsize=8.5)
    for look, spots in lines.items():
        at = [math.log10(spot.connectivity) for spot in spots]
        means = [100 * spot.score.mean for spot in spots]
        axes.plot(at, means, clip_on=False, **stroke(look, 1.4), **marker(look, 4))
        for where, mean, spot in zip(at, means, spots, strict=True):
            if spot.score.std:
                spread = 100 * spot.score.std
                axes.plot([where, where], [mean - spread, mean + spread], color=look.colour, linewidth=0.8)
    axes.axhline(0, color=PALE, linewidth=0.6)


def _spots(runs: Iterable[Run], name: str, kind: str) -> list[Spot]:
    """Return the graphs of one kind, and the complete one at their end, by connectivity."""
    own = [(graph, run) for run in runs if base_of(run) == name and (graph := graph_of(run)) is not None]
    shown = [pair for pair in own if pair[0].kind in (kind, COMPLETE)]
    if all(graph.kind == COMPLETE for graph, _ in shown):
        return []
    spots = []
    for title in unique(graph.title for graph, _ in shown):
        here = [run for graph, run in shown if graph.title == title]
        connectivity, mean = _connectivity(here), score(run.number("worst_accuracy") for run in here)
        if connectivity and mean is not None:
            spots.append(Spot(connectivity, mean))
    return sorted(spots, key=lambda spot: spot.connectivity)


def _attacks(study: Collab, runs: Sequence[Run]) -> list[str]:
    """Return the attacks of some runs, none at all first."""
    names = {run.attack for run in runs}
    return [attack for attack in unique((NO_ATTACK, *study.attacks)) if attack in names]


def _on(runs: Iterable[Run], title: str) -> list[Run]:
    return [run for run in runs if (graph := graph_of(run)) is not None and graph.title == title]


def _mean(runs: Iterable[Run], fact: str) -> float | None:
    graphs = [graph_of(run) for run in runs]
    known = score(number(graph.facts.get(fact)) for graph in graphs if graph is not None)
    return None if known is None else round(known.mean, 2)


def _connectivity(runs: Iterable[Run]) -> float | None:
    return _mean(runs, "algebraic_connectivity")


def _digits(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2g}"

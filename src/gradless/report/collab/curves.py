"""Small multiples of collaborative runs: a panel for each attack, a row of them for each way the data are split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gradless.report.collab.names import NO_ATTACK, REFERENCE, REFERENCE_LABEL, algorithm_name, attack_name
from gradless.report.collab.study import Collab, Point, Run, Setting, curve
from gradless.report.common.numbers import slug
from gradless.report.common.pictures import (
    INK,
    LITERAL,
    PALE,
    POINT,
    Look,
    Picture,
    band,
    canvas,
    draw_title,
    key_line,
    marker,
    plain_axes,
    save,
    stroke,
    text_size,
)
from gradless.runs.record import DIVERGED

# To be told apart by people who confuse red and green, and read on white and on near-black; in grey by their markers.
COLOURS = ("#0f73c6", "#e08214", "#0a9a76", "#c8447e", "#7d63d6", "#8c6a1f", "#3fa7dc", "#d4502f", "#6f9a1c", "#b079c9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">")
GREY = "#7b838d"
PANEL_WIDTH, PANEL_HEIGHT = 2.1, 1.6  # inches
LEFT, RIGHT, TITLE = 0.66, 0.16, 0.34
ACROSS, PANEL_TITLE, HEADING, AXIS = 0.2, 0.25, 0.2, 0.47
LEGEND_LINE, ENTRY = 0.185, 0.54  # of a legend: height of a line, width of an entry besides its text
MOST_COLUMNS = {False: 4, True: 5}  # panels beside each other, of one split and of several
MOST_BANDS = 6  # algorithms with a band of usual strength
MARKS = 4  # markers along a line


class Kind(NamedTuple):
    """What is drawn over the steps."""

    name: str
    title: str
    axis: str
    field: str
    thin: str
    """A second field, as a thin line; or nothing."""
    scale: str
    """percent, plain or logarithmic."""


PERCENT, PLAIN, LOGARITHMIC = "percent", "plain", "logarithmic"
KINDS = (
    Kind("curves-accuracy", "Accuracy during training", "accuracy in %", "worst", "mean", PERCENT),
    Kind("curves-reward", "Reward during training", "mean reward", "worst_reward", "mean_reward", PLAIN),
    Kind("curves-consensus", "Consensus distance during training", "consensus distance", "consensus", "", LOGARITHMIC),
)
LEAST_ROOM = {PERCENT: 0.5, PLAIN: 0.01, LOGARITHMIC: 0.15}
"""Beyond the lowest and highest value of an axis."""


class Line(NamedTuple):
    """An algorithm's curve in a panel."""

    look: Look
    points: list[Point]
    thin: list[Point]
    diverged: bool


class Panel(NamedTuple):
    """The lines under one attack in one setting."""

    attack: str
    heading: str
    """Above the first panel of a row, where it differs from the row before."""
    lines: dict[str, Line]


class Limits(NamedTuple):
    """The axes that all panels share: first and last step, lowest and highest value."""

    first: float
    last: float
    low: float
    high: float


def looks(study: Collab) -> dict[str, Look]:
    """Colour and marker of each algorithm, the same in every picture; filled and hollow by turns."""
    return {
        name: Look(
            INK if name == REFERENCE else COLOURS[i % len(COLOURS)],
            "-" if i < len(COLOURS) else "-.",
            MARKERS[i % len(MARKERS)],
            "none" if i % 2 else "full",
        )
        for i, name in enumerate(study.algorithms)
    }


def all_curves(study: Collab, folder: Path) -> list[Picture]:
    """Accuracy and consensus distance for each (n, f) that occurs. Within `pictures.settings`."""
    pictures = []
    for kind in KINDS:
        for n, f in study.peers:
            settings = [setting for setting in study.settings if (setting.n, setting.f) == (n, f)]
            rows = _rows(study, kind, settings)
            if not any(line.points for row in rows for panel in row for line in panel.lines.values()):
                continue
            peers = settings[0].peers
            tail = f"-{slug(peers.replace(' = ', ''))}" if len(study.peers) > 1 else ""
            title = ", ".join(filter(None, [kind.title, peers, settings[0].split.label if len(settings) == 1 else ""]))
            figure = small_multiples(rows, looks(study), kind, title)
            pictures.append(save(figure, folder / f"{kind.name}{tail}", title))
    return pictures


def _rows(study: Collab, kind: Kind, settings: Sequence[Setting]) -> list[list[Panel]]:
    """Panels in rows: a split begins a new one."""
    several = len(settings) > 1
    rows = []
    for setting in settings:
        tried = {run.attack for run in study.runs if run.setting == setting and not run.is_reference}
        attacks = [attack for attack in study.attacks if attack in tried] or study.attacks
        across = math.ceil(len(attacks) / math.ceil(len(attacks) / MOST_COLUMNS[several]))
        panels = [
            Panel(attack, setting.split.label if several and i == 0 else "", _lines(study, kind, setting, attack))
            for i, attack in enumerate(attacks)
        ]
        rows += [panels[start : start + across] for start in range(0, len(panels), across)]
    return rows


def _lines(study: Collab, kind: Kind, setting: Setting, attack: str) -> dict[str, Line]:
    """By label: the algorithms, and D-SGD without attackers."""
    styles = looks(study)
    lines = {
        algorithm_name(name): _line(study.of(name, attack, setting), kind, styles[name])
        for name in study.algorithms
        if (name, attack) != (REFERENCE, NO_ATTACK)
    }
    lines[REFERENCE_LABEL] = _line(study.reference(setting), kind, Look(GREY, "--", "", "full"))
    return {label: line for label, line in lines.items() if line.points}


def _line(runs: Sequence[Run], kind: Kind, look: Look) -> Line:
    def scaled(value: float) -> float | None:
        """Percent, the value, or a logarithm: zero, where all peers hold the same, is on no such axis."""
        if kind.scale != LOGARITHMIC:
            return 100 * value if kind.scale == PERCENT else value
        return math.log10(value) if value > 0 else None

    thin = curve(runs, kind.thin, scaled) if look.marker else []
    return Line(look, curve(runs, kind.field, scaled), thin, any(run.status == DIVERGED for run in runs))


def small_multiples(rows: Sequence[Sequence[Panel]], styles: dict[str, Look], kind: Kind, title: str) -> Any:
    """One figure with shared axes and one legend above."""
    figure, renderer = canvas(8, 4)
    across = max(map(len, rows))
    drawn = {label: line for row in rows for panel in row for label, line in panel.lines.items()}
    order = [algorithm_name(name) for name in styles] + [REFERENCE_LABEL]
    legends = [_algorithm_keys([(label, drawn[label].look) for label in order if label in drawn]), _width_keys(kind)]
    needed = max(text_size(figure, renderer, title, 10)[0] / POINT * 1.12 + 0.3, 3.9)
    width = max(LEFT + RIGHT + across * PANEL_WIDTH + (across - 1) * ACROSS, needed)
    columns = [_columns([_key_width(figure, renderer, key) for key in legend], width - 0.3) for legend in legends]
    lines = [math.ceil(len(legend) / count) for legend, count in zip(legends, columns, strict=True)]
    head = TITLE + sum(lines) * LEGEND_LINE + 0.12
    heights = [_heights(rows, number) for number in range(len(rows))]
    height = head + sum(map(sum, heights))
    figure.set_size_inches(width, height)
    spacing = {"columnspacing": 1.2, "labelspacing": 0.35, "borderaxespad": 0, "borderpad": 0, "handlelength": 2.6}
    style: dict[str, Any] = {"loc": "upper left", "frameon": False, "fontsize": 8, "labelcolor": INK, **spacing}
    for legend, count, above in zip(legends, columns, (0, lines[0]), strict=True):
        corner = (0.1 / width, 1 - (TITLE + above * LEGEND_LINE) / height)
        figure.legend(handles=legend, ncols=count, bbox_to_anchor=corner, **style)
    _draw_rows(figure, rows, heights, height - head, kind, crowd=len(drawn))
    draw_title(figure, title)
    return figure


def _draw_rows(
    figure: Any,
    rows: Sequence[Sequence[Panel]],
    heights: Sequence[tuple[float, float, float]],
    top: float,
    kind: Kind,
    *,
    crowd: int,
) -> None:
    """The panels, from ``top`` (in inches) downwards."""
    width, height = figure.get_size_inches()
    limits = _limits(rows, kind)
    style = {"color": INK, "fontsize": 9, "fontweight": "bold", "va": "top", **LITERAL}
    for number, (row, (above, panel_height, under)) in enumerate(zip(rows, heights, strict=True)):
        if row[0].heading:
            figure.text(0.1 / width, (top - 0.05) / height, row[0].heading, **style)
        bottom = top - above - panel_height
        for column, panel in enumerate(row):
            left = LEFT + column * (PANEL_WIDTH + ACROSS)
            box = (left / width, bottom / height, PANEL_WIDTH / width, panel_height / height)
            below = number + 1 == len(rows) or column >= len(rows[number + 1])
            axes = plain_axes(figure, box)
            axes.set_axisbelow("line")
            _panel(axes, panel, kind, limits, edge=column == 0, below=below, crowd=crowd)
        top = bottom - under


def _heights(rows: Sequence[Sequence[Panel]], number: int) -> tuple[float, float, float]:
    """Inches above a row of panels, of the panels, and below."""
    row = rows[number]
    labelled = number + 1 == len(rows) or len(rows[number + 1]) < len(row)
    return PANEL_TITLE + bool(row[0].heading) * HEADING, PANEL_HEIGHT, AXIS if labelled else 0.12


def _columns(sizes: Sequence[float], width: float) -> int:
    """The most columns of entries of these widths that fit, filled as matplotlib does: longer ones first."""

    def total(columns: int) -> float:
        rows, longer = divmod(len(sizes), columns)
        ends = [(i + 1) * rows + min(i + 1, longer) for i in range(columns)]
        return sum(max(sizes[start:end]) for start, end in pairwise([0, *ends]))

    most = next((columns for columns in range(len(sizes), 1, -1) if total(columns) <= width), 1)
    return math.ceil(len(sizes) / math.ceil(len(sizes) / most)) if sizes else 1


def _key_width(figure: Any, renderer: Any, key: Any) -> float:
    """Width of an entry of a legend, in inches."""
    return text_size(figure, renderer, key.get_label(), 8)[0] / POINT + ENTRY


def _algorithm_keys(named: Sequence[tuple[str, Look]]) -> list[Any]:
    """Entries of the legend of algorithms."""
    return [key_line(label, look, 1.7 if look.marker else 1.3, 4.5) for label, look in named]


def _width_keys(kind: Kind) -> list[Any]:
    """Entries of the legend of strong and thin lines."""
    named = {"worst honest peer": 1.7, "mean of the honest peers": 0.6} if kind.thin else {}
    return [key_line(label, Look(INK, "-", "", "full"), width, 0) for label, width in named.items()]


def _limits(rows: Sequence[Sequence[Panel]], kind: Kind) -> Limits:
    lines = [line for row in rows for panel in row for line in panel.lines.values()]
    points = [point for line in lines for point in (*line.points, *line.thin)]
    steps, values = [point.step for point in points], [point.score.mean for point in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    first = 0.0 if first >= 0 else first
    last = last if last > first else first + 1
    room = max(0.05 * (high - low), LEAST_ROOM[kind.scale])
    low, high = low - room, high + room
    if kind.scale != PERCENT:
        return Limits(first, last, low, high)
    return Limits(first, last, max(low, -2.0), 100.0 if high > 85 else high)


def _panel(axes: Any, panel: Panel, kind: Kind, limits: Limits, *, edge: bool, below: bool, crowd: int) -> None:
    axes.tick_params(labelsize=8, length=2.5, labelleft=edge, labelbottom=below)
    room = 0.02 * (limits.last - limits.first)
    axes.set_xlim(limits.first - room, limits.last + room)
    axes.set_ylim(limits.low, limits.high)
    _ticks(axes, kind)
    axes.set_title(attack_name(panel.attack), loc="left", fontsize=9, color=INK, pad=4, **LITERAL)
    if edge:
        axes.set_ylabel(kind.axis, fontsize=8.5)
    if below:
        axes.set_xlabel("step", fontsize=8.5, labelpad=2)
    for number, line in enumerate(panel.lines.values()):
        _draw(axes, line, number, len(panel.lines), pale=crowd > MOST_BANDS)
    if not panel.lines:
        nothing = "no result yet, or zero throughout" if kind.scale == LOGARITHMIC else "no result yet"
        style = {"color": PALE, "fontsize": 8.5, "ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, nothing, **style)


def _ticks(axes: Any, kind: Kind) -> None:
    """Few round ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if kind.scale == LOGARITHMIC:
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_ylim())))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round numbers between two exponents: 1, 2 and 5, 1 and 3, or powers of ten, as there is room.

    Example:
        >>> [round(10**tick, 2) for tick in log_ticks(-1.2, 0.4)]
        [0.1, 0.3, 1.0]
    """
    if high - low > 2.2:
        step = math.ceil((high - low) / 6)
        return [float(tick) for tick in range(math.ceil(low), math.floor(high) + 1) if tick % step == 0]
    digits = (1, 2, 5) if high - low < 1.3 else (1, 3)
    ticks = [power + math.log10(d) for power in range(math.floor(low), math.ceil(high) + 1) for d in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _power(exponent: float) -> str:
    """``-3`` -> ``0.001``; small and large ones as ``1e-7``."""
    value = 10.0**exponent
    if 0.9e-3 < value < 1e4:
        return f"{value:.1g}" if value < 10 else f"{value:.0f}"
    mantissa, _, power = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(power)}"


def _draw(axes: Any, line: Line, number: int, lines: int, *, pale: bool) -> None:
    """A line with its band of a standard deviation, markers out of step with those of the others."""
    look, points = line.look, line.points
    steps, scores = [point.step for point in points], [point.score for point in points]
    means = [score.mean for score in scores]
    order = 3 + 0.01 * (lines - number)  # the first algorithms lie on top
    if any(score.std for score in scores):
        band(axes, steps, scores, color=look.colour, alpha=0.07 if pale else 0.14, zorder=order - 1)
    if line.thin:
        thin = ([point.step for point in line.thin], [point.score.mean for point in line.thin])
        axes.plot(*thin, alpha=0.9, clip_on=False, zorder=order - 0.5, **stroke(look, 0.6))
    if look.marker:
        stride = max(1, len(points) // MARKS)
        first = min(number * stride // lines, len(points) - 1)
        shown = {**stroke(look, 1.5), **marker(look, 3.8)}
        axes.plot(steps, means, zorder=order, clip_on=False, markevery=(first, stride), **shown)
    else:
        axes.plot(steps, means, zorder=2.5, clip_on=False, **stroke(look, 1.2))
        if len(points) == 1:
            axes.plot(steps, means, color=look.colour, marker="_", markersize=7)
    if line.diverged:
        cross = {"color": look.colour, "marker": "x", "markersize": 8, "markeredgewidth": 2.2, "linestyle": "none"}
        axes.plot(steps[-1:], means[-1:], zorder=4, clip_on=False, **cross)

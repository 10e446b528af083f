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
from gradless.report.common.pictures import INK, PALE, POINT, Look, Picture, draw_title, marker, save, text_size
from gradless.runs.record import DIVERGED

# To be told apart by people who confuse red and green, and read on white and on near-black; in grey by their markers.
COLOURS = (
    "#0f73c6", "#e08214", "#0a9a76", "#c8447e", "#7d63d6", "#8c6a1f", "#3fa7dc", "#d4502f", "#6f9a1c", "#b079c9",
)  # fmt: skip
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
    logarithmic: bool


KINDS = (
    Kind("curves-accuracy", "Accuracy during training", "accuracy in %", "worst", "mean", False),
    Kind("curves-consensus", "Consensus distance during training", "consensus distance", "consensus", "", True),
)


class Line(NamedTuple):
    """An algorithm's curve in a panel."""

    look: Look
    points: list[Point]
    thin: list[Point]
    diverged: bool


class Panel(NamedTuple):
    """The lines under one attack at one setting."""

    attack: str
    heading: str
    """Above the first panel of a row, where it differs from the row before."""
    lines: dict[str, Line]


def looks(study: Collab) -> dict[str, Look]:
    """Colour and marker of each algorithm, the same in every picture; filled and hollow by turns."""
    return {
        name: Look(
            INK if name == REFERENCE else COLOURS[i % len(COLOURS)], "-" if i < len(COLOURS) else "-.",
            MARKERS[i % len(MARKERS)], "none" if i % 2 else "full",
        ) for i, name in enumerate(study.algorithms)
    }  # fmt: skip


def all_curves(study: Collab, folder: Path) -> list[Picture]:
    """Accuracy and consensus distance for each (n, f) that occurs. Within the settings of `figures.SETTINGS`."""
    pictures = []
    for kind in KINDS:
        for n, f in study.peers:
            settings = [setting for setting in study.settings if (setting.n, setting.f) == (n, f)]
            rows = _rows(study, kind, settings)
            if not any(line.points for row in rows for panel in row for line in panel.lines.values()):
                continue
            tail = f"-{slug(settings[0].peers.replace(' = ', ''))}" if len(study.peers) > 1 else ""
            told = [settings[0].peers] + ([settings[0].split.label] if len(settings) == 1 else [])
            title = ", ".join([kind.title, *filter(None, told)])
            figure = small_multiples(rows, looks(study), kind, title)
            pictures.append(save(figure, folder / f"{kind.name}{tail}", title))
    return pictures


def _rows(study: Collab, kind: Kind, settings: Sequence[Setting]) -> list[list[Panel]]:
    """Panels in rows: a split begins a new one."""
    several = len(settings) > 1
    rows = []
    for setting in settings:
        attacks = [attack for attack in study.attacks if any(run.attack == attack for run in _there(study, setting))]
        attacks = attacks or study.attacks
        across = math.ceil(len(attacks) / math.ceil(len(attacks) / MOST_COLUMNS[several]))
        panels = [
            Panel(attack, setting.split.label if several and i == 0 else "", _lines(study, kind, setting, attack))
            for i, attack in enumerate(attacks)
        ]
        rows += [panels[start : start + across] for start in range(0, len(panels), across)]
    return rows


def _there(study: Collab, setting: Setting) -> list[Run]:
    return [run for run in study.runs if run.setting == setting and not run.is_reference]


def _lines(study: Collab, kind: Kind, setting: Setting, attack: str) -> dict[str, Line]:
    """By label: the algorithms, and D-SGD without attackers."""
    styles, found = looks(study), {}
    for name in study.algorithms:
        if (name, attack) != (REFERENCE, NO_ATTACK):
            found[algorithm_name(name)] = _line(study.of(name, attack, setting), kind, styles[name])
    found[REFERENCE_LABEL] = _line(study.reference(setting), kind, Look(GREY, "--", "", "full"))
    return {label: line for label, line in found.items() if line.points}


def _line(runs: Sequence[Run], kind: Kind, look: Look) -> Line:
    def logarithm(value: float) -> float | None:
        """Zero, where all peers hold the same, has no setting on the axis."""
        return math.log10(value) if value > 0 else None

    def points(field: str) -> list[Point]:
        return curve(runs, field, logarithm) if kind.logarithmic else curve(runs, field, lambda value: 100 * value)

    return Line(
        look, points(kind.field), points(kind.thin) if look.marker else [], any(run.status == DIVERGED for run in runs)
    )


def small_multiples(rows: Sequence[Sequence[Panel]], styles: dict[str, Look], kind: Kind, title: str) -> Any:
    """One figure with shared axes and one legend above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=POINT)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.patch.set_alpha(0)
    across = max(map(len, rows))
    named = {label: line for row in rows for panel in row for label, line in panel.lines.items()}
    order = [algorithm_name(name) for name in styles] + [REFERENCE_LABEL]
    legends = [_entries([(label, named[label].look) for label in order if label in named]), _strengths(kind)]
    needed = max(text_size(figure, renderer, title, 10)[0] / POINT * 1.12 + 0.3, 3.9)
    width = max(LEFT + RIGHT + across * PANEL_WIDTH + (across - 1) * ACROSS, needed)
    columns = [_columns([_entry(figure, renderer, handle) for handle in legend], width - 0.3) for legend in legends]
    lines = [math.ceil(len(legend) / count) for legend, count in zip(legends, columns, strict=True)]
    head = TITLE + sum(lines) * LEGEND_LINE + 0.12
    heights = [_heights(rows, number) for number in range(len(rows))]
    height = head + sum(map(sum, heights))
    figure.set_size_inches(width, height)
    for legend, count, before in zip(legends, columns, (0, lines[0]), strict=True):
        figure.legend(
            handles=legend, loc="upper left", ncols=count, frameon=False, fontsize=8, labelcolor=INK,
            bbox_to_anchor=(0.1 / width, 1 - (TITLE + before * LEGEND_LINE) / height), handlelength=2.6,
            columnspacing=1.2, labelspacing=0.35, borderaxespad=0, borderpad=0,
        )  # fmt: skip
    limits, top = _limits(rows, kind), height - head
    for row, (above, panel_height, under) in zip(rows, heights, strict=True):
        if row[0].heading:
            figure.text(0.1 / width, (top - 0.05) / height, row[0].heading, color=INK, fontsize=9, fontweight="bold",
                        va="top", parse_math=False)  # fmt: skip
        bottom = top - above - panel_height
        for column, panel in enumerate(row):
            left = LEFT + column * (PANEL_WIDTH + ACROSS)
            axes = figure.add_axes((left / width, bottom / height, PANEL_WIDTH / width, panel_height / height))
            below = row is rows[-1] or column >= len(rows[rows.index(row) + 1])
            _panel(axes, panel, kind, limits, edge=column == 0, below=below, crowd=len(named))
        top = bottom - under
    draw_title(figure, title)
    return figure


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

    found = next((columns for columns in range(len(sizes), 1, -1) if total(columns) <= width), 1)
    return math.ceil(len(sizes) / math.ceil(len(sizes) / found)) if sizes else 1


def _entry(figure: Any, renderer: Any, handle: Any) -> float:
    """Width of an entry of a legend, in inches."""
    return text_size(figure, renderer, handle.get_label(), 8)[0] / POINT + ENTRY


def _entries(found: Sequence[tuple[str, Look]]) -> list[Any]:
    """Handles of the legend of algorithms."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=look.colour, linestyle=look.line, linewidth=1.7 if look.marker else 1.3, label=label,
               **(marker(look, 4.5) if look.marker else {}))
        for label, look in found
    ]  # fmt: skip


def _strengths(kind: Kind) -> list[Any]:
    """Handles of the legend of strong and thin lines."""
    from matplotlib.lines import Line2D

    found = (("worst honest peer", 1.7), ("mean of the honest peers", 0.6)) if kind.thin else ()
    return [Line2D([], [], color=INK, linewidth=width, label=label) for label, width in found]


def _limits(rows: Sequence[Sequence[Panel]], kind: Kind) -> tuple[float, float, float, float]:
    """The axes that all panels share: first and last step, lowest and highest value."""
    lines = [line for row in rows for panel in row for line in panel.lines.values()]
    points = [point for line in lines for point in (*line.points, *line.thin)]
    steps, values = [point.step for point in points], [point.score.mean for point in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    first = 0.0 if first >= 0 else first
    last = last if last > first else first + 1
    room = max(0.05 * (high - low), 0.15 if kind.logarithmic else 0.5)
    low, high = low - room, high + room
    if kind.logarithmic:
        return first, last, low, high
    return first, last, max(low, -2.0), 101.0 if high > 85 else high


def _panel(
    axes: Any, panel: Panel, kind: Kind, limits: tuple[float, float, float, float], *, edge: bool, below: bool,
    crowd: int,
) -> None:  # fmt: skip
    first, last, low, high = limits
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=8, length=2.5, labelleft=edge, labelbottom=below)
    axes.grid(axis="y", color=PALE, alpha=0.25, linewidth=0.6)
    axes.patch.set_alpha(0)
    room = 0.02 * (last - first)
    axes.set_xlim(first - room, last + room)
    axes.set_ylim(low, high)
    _ticks(axes, kind)
    axes.set_title(attack_name(panel.attack), loc="left", fontsize=9, color=INK, pad=4, parse_math=False)
    if edge:
        axes.set_ylabel(kind.axis, color=INK, fontsize=8.5)
    if below:
        axes.set_xlabel("step", color=INK, fontsize=8.5, labelpad=2)
    for setting, line in enumerate(panel.lines.values()):
        _draw(axes, line, setting, len(panel.lines), pale=crowd > MOST_BANDS)
    if not panel.lines:
        nothing = "no result yet, or zero throughout" if kind.logarithmic else "no result yet"
        axes.text(0.5, 0.5, nothing, color=PALE, fontsize=8.5, ha="center", va="center",
                  transform=axes.transAxes)  # fmt: skip


def _ticks(axes: Any, kind: Kind) -> None:
    """Few round ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if kind.logarithmic:
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
    settings = [power + math.log10(d) for power in range(math.floor(low), math.ceil(high) + 1) for d in digits]
    return [setting for setting in settings if low <= setting <= high]


def _power(exponent: float) -> str:
    """``-3`` -> ``0.001``; small and large ones as ``1e-7``."""
    value = 10.0**exponent
    if 0.9e-3 < value < 1e4:
        return f"{value:.1g}" if value < 10 else f"{value:.0f}"
    mantissa, _, power = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(power)}"


def _draw(axes: Any, line: Line, setting: int, lines: int, *, pale: bool) -> None:
    """A line with its band of a standard deviation, markers out of step with those of the others."""
    look, points = line.look, line.points
    steps, means = [point.step for point in points], [point.score.mean for point in points]
    spread = [point.score.std or 0.0 for point in points]
    order = 3 + 0.01 * (lines - setting)  # the first algorithms lie on top
    if any(spread):
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(
            steps, low, high, color=look.colour, alpha=0.07 if pale else 0.14, linewidth=0, zorder=order - 1
        )
    if line.thin:
        axes.plot(
            [point.step for point in line.thin], [point.score.mean for point in line.thin], color=look.colour,
            linewidth=0.6, linestyle=look.line, alpha=0.9, zorder=order - 0.5,
        )  # fmt: skip
    stride = max(1, len(points) // MARKS)
    style = marker(look, 3.8) | {"markevery": (min(setting * stride // lines, len(points) - 1), stride)}
    axes.plot(
        steps, means, color=look.colour, linestyle=look.line, linewidth=1.5 if look.marker else 1.2,
        zorder=order if look.marker else 2.5, **(style if look.marker else {}),
    )  # fmt: skip
    if len(points) == 1 and not look.marker:
        axes.plot(steps, means, color=look.colour, marker="_", markersize=7)
    if line.diverged:
        axes.plot(
            steps[-1:], means[-1:], color=look.colour, marker="x", markersize=8, markeredgewidth=2.2, zorder=4,
            clip_on=False, linestyle="none",
        )  # fmt: skip

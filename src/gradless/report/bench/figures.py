"""The pictures of a study: dev results against forwards and seconds, and the front of memory and accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gradless.report.bench import intervals, rank_figures
from gradless.report.bench.budgets import MeanPoint, mean_curve
from gradless.report.bench.comparisons import VIEWS
from gradless.report.bench.study import KINDS, Cell, Section, Study, memory_ratio, tested
from gradless.report.common.label_layout import Box, place, spread
from gradless.report.common.numbers import Score, median, metric_of, slug, unique
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

# Middle tones, to be read on white and on near-black.
COLOURS = {
    "zo": ("#2f7fd1", "#0d9488", "#8262d9", "#5d8a1f", "#4f8fb8", "#a855b5", "#5c6fd6", "#3a9a5f"),
    "forward-mode": ("#7c8590",),
    "hybrid": ("#c9418f", "#e0569b", "#a83279"),
    "fo": ("#d9542b", "#c47f0e", "#c23b4b", "#a5672a"),
}
# Family by line and by how a marker is filled, so that they differ in grey as well.
LINES = {"zo": "-", "forward-mode": ":", "hybrid": "-.", "fo": "--"}
FILLS = {"zo": "full", "forward-mode": "bottom", "hybrid": "left", "fo": "none"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p", "d")
HEIGHT, WIDTH = 3.7, 4.6  # inches of a picture of curves, its labels excluded
LEFT, BOTTOM, TOP = 0.74, 0.52, 0.56  # inches around the axes
GAP = 12.5  # points between labels below each other
MOST_LEADERS = 9
MOST_LABELS = 26
TICKS = (1, 2, 5, 10, 20, 50, 100, 3, 1.5, 4, 7, 30, 70, 15, 1.2, 1.1, 2.5, 1.3, 1.05, 1.15, 1.75)  # the roundest first
LABEL: dict[str, Any] = {"va": "center", "fontsize": 8.5, **LITERAL}


class Line(NamedTuple):
    """A method's curve."""

    cell: Cell
    points: list[MeanPoint]


class Spot(NamedTuple):
    """A method in the plane of memory and accuracy."""

    cell: Cell
    memory: float
    score: Score

    @property
    def xy(self) -> tuple[float, float]:
        """Its coordinates."""
        return self.memory, self.score.mean


def figures(study: Study, folder: Path) -> list[Picture]:
    """Draw everything the results have something for, as SVG and PNG. Within `pictures.settings`."""
    looks = _looks(study)
    pictures = [
        picture
        for section in study.sections
        for picture in (*_fronts(study, section, looks, folder), *_all_curves(study, section, looks, folder))
    ]
    return [*pictures, *(rank_figures.figures(study, looks, VIEWS, folder) if intervals.available() else ())]


def _looks(study: Study) -> dict[str, Look]:
    """Colour, line and marker by label; the n-th method of a family takes its n-th colour and marker."""
    counters = {kind: count() for kind in KINDS}
    looks: dict[str, Look] = {}
    for cell in sorted(study.cells, key=lambda cell: list(KINDS).index(cell.kind)):
        if cell.label not in looks:
            kind = cell.kind
            n, colours = next(counters[kind]), COLOURS[kind]
            looks[cell.label] = Look(colours[n % len(colours)], LINES[kind], MARKERS[n % len(MARKERS)], FILLS[kind])
    return looks


def _all_curves(study: Study, section: Section, looks: Mapping[str, Look], folder: Path) -> list[Picture]:
    cells = study.within(section)
    pictures = []
    for task, scheme in unique((cell.task, cell.scheme) for cell in cells):
        group = {cell: results.done for cell, results in cells.items() if (cell.task, cell.scheme) == (task, scheme)}
        for view in ("forwards", "seconds"):
            lines = [Line(cell, mean_curve(runs, view)) for cell, runs in group.items()]
            lines = [line for line in lines if line.points]
            if lines:
                title = f"{task}, {scheme}: dev {metric_of(task)} against {view}{study.title(section)}"
                figure = curves(lines, looks, view=view, title=title)
                stem = slug(f"curves-{task}-{scheme}-{view}{study.suffix(section)}")
                pictures.append(save(figure, folder / stem, title))
    return pictures


def curves(lines: Sequence[Line], looks: Mapping[str, Look], *, view: str, title: str) -> Any:
    """Mean over seeds with a band of a standard deviation; each line has its name and last value at its right."""
    figure, renderer = canvas(WIDTH, HEIGHT)
    axes = plain_axes(figure, (0.1, 0.1, 0.8, 0.8))
    for cell, points in lines:
        look = looks[cell.label]
        x = [point.x for point in points]
        means = band(axes, x, [point.score for point in points], color=look.colour, alpha=0.13)
        axes.plot(x, means, **stroke(look, 1.6), **marker(look, 5))
    axes.set_xlim(0, None)
    axes.set_xlabel({"forwards": "forward passes (a backward counts as two)"}.get(view, "seconds of training"))
    axes.set_ylabel(f"dev {metric_of(lines[0].cell.task)}")
    ends = [(line.points[-1].x, line.points[-1].score.mean) for line in lines]
    texts = [f"{line.cell.label}  {y:.3f}" for line, (_, y) in zip(lines, ends, strict=True)]
    widest = max(text_size(figure, renderer, text)[0] for text in texts)
    height = max(HEIGHT, ((len(lines) - 1) * GAP + 6) / POINT + BOTTOM + TOP)
    _frame(figure, axes, width=WIDTH, height=height, right=widest / POINT + 0.75)
    _end_labels(axes, ends, texts, [looks[line.cell.label] for line in lines])
    _legend(axes, {line.cell.kind for line in lines})
    draw_title(figure, title)
    return figure


def _end_labels(axes: Any, ends: Sequence[tuple[float, float]], texts: Sequence[str], looks: Sequence[Look]) -> None:
    """Names in a column beside the axes, in the order of the ends of their lines and as near to them as they fit.

    Each has a sample of its line; where there are few, leaders join them to the ends.
    """
    bounds = axes.get_window_extent()
    heights = [axes.transData.transform(end)[1] for end in ends]
    sample = [1 + 12 / bounds.width, 1 + 23 / bounds.width, 1 + 34 / bounds.width]
    beside: dict[str, Any] = {"annotation_clip": False}
    for end, text, look, y in zip(ends, texts, looks, spread(heights, GAP, bounds.y0, bounds.y1 - 6), strict=True):
        up = (y - bounds.y0) / bounds.height
        style = stroke(look, 1.6) | marker(look, 5)
        axes.plot(sample, [up] * 3, markevery=[1], clip_on=False, transform=axes.transAxes, **style)
        corner = {"xytext": (1 + 39 / bounds.width, up), "textcoords": "axes fraction"}
        axes.annotate(text, end, color=look.colour, **corner, **beside, **LABEL)
        if len(ends) <= MOST_LEADERS:
            leader = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 5}
            start = {"xycoords": "axes fraction", "xytext": end, "textcoords": "data"}
            axes.annotate("", (sample[0], up), arrowprops=leader | {"shrinkB": 0}, **start, **beside)


def _mark_untouched(axes: Any, untouched: Score | None) -> None:
    """A dotted line at the result of the untouched model, or a note where it lies far off the axes."""
    if untouched is None:
        return
    (low, high), value = axes.get_ylim(), untouched.mean
    inside = low - 0.35 * (high - low) <= value <= high + 0.35 * (high - low)
    if inside:
        axes.axhline(value, color=PALE, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.set_ylim(min(low, value - 0.04 * (high - low)), max(high, value + 0.06 * (high - low)))
    where = "" if inside else ", below" if value < low else ", above"
    y = value if inside else 0 if value < low else 1
    coordinates = {"xycoords": ("axes fraction", "data" if inside else "axes fraction"), "textcoords": "offset points"}
    style = {"ha": "right", "va": "bottom", "color": PALE, "fontsize": 8}
    axes.annotate(f"untouched {value:.3f}{where}", (1, y), xytext=(-3, 3), **coordinates, **style)


def _fronts(study: Study, section: Section, looks: Mapping[str, Look], folder: Path) -> list[Picture]:
    """A front for each task; for each task and scheme where one would hold too many labels."""
    spots = []
    for cell, results in study.within(section).items():
        if not study.complete(results):
            continue
        memory, mean = median(memory_ratio(run) for run in results.done), tested(cell, results)
        if memory is not None and mean is not None:
            spots.append(Spot(cell, memory, mean))
    pictures = []
    for task in unique(spot.cell.task for spot in spots):
        of_task = [spot for spot in spots if spot.cell.task == task]
        schemes = unique(spot.cell.scheme for spot in of_task)
        parts = {"": of_task}
        if len(of_task) > MOST_LABELS and len(schemes) > 1:
            parts = {scheme: [spot for spot in of_task if spot.cell.scheme == scheme] for scheme in schemes}
        for scheme, part in parts.items():
            name = f"{task}, {scheme}" if scheme else task
            title = f"{name}: test {metric_of(task)} against memory{study.title(section)}"
            figure = front(part, looks, title=title, untouched=study.untouched(section, task))
            stem = slug(f"front-{task}-{scheme}{study.suffix(section)}")
            pictures.append(save(figure, folder / stem, title))
    return pictures


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (memory, accuracy) that no other point beats with no more memory, by rising memory."""
    kept: list[tuple[float, float]] = []
    for memory, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or value > kept[-1][1]:
            kept.append((memory, value))
    return kept


def front(spots: Sequence[Spot], looks: Mapping[str, Look], *, title: str, untouched: Score | None = None) -> Any:
    """Test results (mean, bar of a standard deviation) against peak memory over that of inference."""
    figure, renderer = canvas(WIDTH, HEIGHT)
    axes = plain_axes(figure, (0.1, 0.1, 0.8, 0.8))
    _memory_axis(axes, [spot.memory for spot in spots])
    best = pareto([spot.xy for spot in spots])
    steps = zip(*best, (axes.get_xlim()[1], best[-1][1]), strict=True)
    axes.plot(*map(list, steps), drawstyle="steps-post", color=PALE, linewidth=1.1, zorder=1)
    for spot in spots:
        look = looks[spot.cell.label]
        axes.errorbar(*spot.xy, spot.score.std or 0.0, color=look.colour, alpha=0.45, linewidth=1, zorder=2)
        axes.plot(*spot.xy, color=look.colour, linestyle="none", zorder=3, **marker(look, 7))
    axes.margins(y=0.12)
    axes.set_ylabel(f"test {metric_of(spots[0].cell.task)}")
    _mark_untouched(axes, untouched)
    _frame(figure, axes, width=7.2, height=4.6, right=0.2)
    several = len({spot.cell.scheme for spot in spots}) > 1
    texts = [spot.cell.label + (f" · {spot.cell.scheme}" if several else "") for spot in spots]
    sizes = [text_size(figure, renderer, text, 8.5) for text in texts]
    boxes = place(*_anchors(axes, spots, best), sizes=[(width + 4, height + 2) for width, height in sizes])
    for spot, text, box in zip(spots, texts, boxes, strict=True):
        _spot_label(axes, spot, text, box, looks[spot.cell.label].colour)
    _legend(axes, {spot.cell.kind for spot in spots}, line=False)
    draw_title(figure, title)
    return figure


def _memory_axis(axes: Any, memory: Sequence[float]) -> None:
    """Logarithmic, with room on both sides and ticks at round ratios."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(1.0, *memory), max(1.1, *memory)
    room = (high / low) ** 0.09
    low, high = low / room, high * room
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    kept: list[float] = []
    for tick in TICKS:
        clear = all(abs(math.log(tick / other)) > 0.085 * math.log(high / low) for other in kept)
        if low <= tick <= high and clear:
            kept.append(tick)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}\u00d7"))
    axes.set_xlabel("peak memory of training / memory of inference")


def _anchors(
    axes: Any, spots: Sequence[Spot], best: Sequence[tuple[float, float]]
) -> tuple[list[tuple[float, float]], Box, list[Box]]:
    """Where the spots are, the area for their labels, and what no label may cover: spots, their bars, the front."""
    anchors, obstacles = [], []
    for spot in spots:
        x, y = axes.transData.transform(spot.xy)
        reach = y - axes.transData.transform((spot.memory, spot.score.mean - (spot.score.std or 0.0)))[1]
        anchors.append((float(x), float(y)))
        obstacles += [Box(x - 4.5, y - 4.5, x + 4.5, y + 4.5), Box(x - 1, y - reach, x + 1, y + reach)]
    bounds = axes.get_window_extent()
    corners = axes.transData.transform([*best, (axes.get_xlim()[1], best[-1][1])])
    obstacles += [Box(x, y - 1, right, y + 1) for (x, y), (right, _) in pairwise(corners)]
    return anchors, Box(bounds.x0 + 2, bounds.y0 + 2, bounds.x1 - 2, bounds.y1 - 2), obstacles


def _spot_label(axes: Any, spot: Spot, text: str, box: Box, colour: str) -> None:
    """A name in its box, with a leader where it is far from its spot."""
    x, y = map(float, axes.transData.transform(spot.xy))
    near = box.nearest(x, y)
    if math.dist(near, (x, y)) > 9:
        ends = axes.transData.inverted().transform([(x, y), near])
        style = {"color": colour, "linewidth": 0.6, "alpha": 0.6, "zorder": 2}
        axes.plot(ends[:, 0], ends[:, 1], scalex=False, scaley=False, **style)
    offset = ((box.left + box.right) / 2 - x, (box.bottom + box.top) / 2 - y)
    axes.annotate(text, spot.xy, xytext=offset, textcoords="offset points", ha="center", color=colour, **LABEL)


def _frame(figure: Any, axes: Any, *, width: float, height: float, right: float) -> None:
    """Set the size, in inches, with ``right`` inches beside the axes; the limits stay as they are from here on."""
    whole = width + right
    figure.set_size_inches(whole, height)
    axes.set_position((LEFT / whole, BOTTOM / height, (width - LEFT) / whole, (height - BOTTOM - TOP) / height))
    axes.set_xlim(*axes.get_xlim())
    axes.set_ylim(*axes.get_ylim())


def _legend(axes: Any, kinds: set[str], *, line: bool = True) -> None:
    """What line styles and fillings stand for, above the axes."""
    looks = {
        KINDS[kind]: Look(INK, LINES[kind] if line else "none", "o", FILLS[kind]) for kind in KINDS if kind in kinds
    }
    handles = [key_line(label, look, 1.4, 5) for label, look in looks.items()]
    position = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 4, "borderaxespad": 0.2}
    style = {"frameon": False, "fontsize": 8, "labelcolor": INK, "handlelength": 2.8 if line else 1.2}
    axes.legend(handles=handles, columnspacing=1.4, **position, **style)

"""Critical-difference diagrams (Demšar 2006, JMLR 7:1-30): mean ranks on a line, bars over what is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradless.report.bench.ranks import Ranking, rankings
from gradless.report.bench.study import Study
from gradless.report.common.numbers import slug
from gradless.report.common.pictures import (
    INK,
    LITERAL,
    PALE,
    POINT,
    Look,
    Picture,
    canvas,
    draw_title,
    save,
    text_size,
)

AXIS = 4.2  # inches
ROW = 15.0  # points between names
BAR = 7.0  # points between bars
TOP = 62.0  # points from the upper edge to the axis
PAD = 0.22  # inches beside the names


def figures(study: Study, looks: Mapping[str, Look], views: Sequence[str], folder: Path) -> list[Picture]:
    """Draw a diagram for each view and scheme with enough tasks and methods. Within `pictures.settings`."""
    pictures = []
    for section in study.sections:
        for view in views:
            for ranking in rankings(study, section, view):
                if ranking.critical is None:
                    continue
                title = f"Mean ranks at equal {view}, {ranking.scheme}{study.title(section)}"
                title += f" ({len(ranking.tasks)} tasks)"
                stem = slug(f"ranks-{view}-{ranking.scheme}{study.suffix(section)}")
                pictures.append(save(diagram(ranking, looks, title=title), folder / stem, title))
    return pictures


def diagram(ranking: Ranking, looks: Mapping[str, Look], *, title: str) -> Any:
    """The better half of the methods is named on the left, the others on the right; rank 1 is at the left."""
    figure, renderer = canvas(AXIS, 2)
    order = ranking.order
    half = (len(order) + 1) // 2
    texts = {label: f"{label}  {ranking.ranks[label]:.2f}" for label in order}
    left, right = (
        max((text_size(figure, renderer, texts[label])[0] for label in some), default=0.0) / POINT + PAD
        for some in (order[:half], order[half:])
    )
    bars = BAR * len(ranking.alike) + 8
    height = (TOP + bars + ROW * half + 12) / POINT
    width = left + AXIS + right
    needed = text_size(figure, renderer, title, 10)[0] * 1.1 / POINT + 0.2
    left += max(0.0, needed - width) / 2
    width = max(width, needed)
    figure.set_size_inches(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.patch.set_alpha(0)
    axes.set_axis_off()
    axes.set_xlim(0, width * POINT)
    axes.set_ylim(height * POINT, 0)
    x = _scale(axes, left * POINT, len(order), ranking.critical or 0.0)
    for number, group in enumerate(ranking.alike):
        ends = [x(ranking.ranks[group[0]]) - 3, x(ranking.ranks[group[-1]]) + 3]
        axes.plot(ends, [TOP + 8 + BAR * number] * 2, color=INK, linewidth=3, solid_capstyle="butt", alpha=0.75)
    for rank, label in enumerate(order):
        better = rank < half
        row = rank if better else len(order) - 1 - rank
        y = TOP + bars + ROW * (row + 0.5)
        end = left * POINT - 8 if better else (left + AXIS) * POINT + 8
        colour = looks[label].colour if label in looks else INK
        at = x(ranking.ranks[label])
        axes.plot([at, at, end], [TOP, y, y], color=colour, linewidth=1)
        style = {"color": colour, "va": "center", "fontsize": 8.5, **LITERAL}
        axes.text(end + (-4 if better else 4), y, texts[label], ha="right" if better else "left", **style)
    draw_title(figure, title)
    return figure


def _scale(axes: Any, start: float, methods: int, critical: float) -> Any:
    """Draw the axis of ranks and the length of the critical difference above it; returns rank -> x in points."""
    whole = AXIS * POINT

    def x(rank: float) -> float:
        return start + whole * (rank - 1) / (methods - 1)

    axes.plot([x(1), x(methods)], [TOP, TOP], color=PALE, linewidth=1.1)
    for rank in range(1, methods + 1):
        axes.plot([x(rank)] * 2, [TOP - 4, TOP], color=PALE, linewidth=1.1)
        axes.text(x(rank), TOP - 6, str(rank), ha="center", va="bottom", color=INK, fontsize=8)
    end = min(1 + critical, methods)
    y = TOP - 24
    axes.plot([x(1), x(end)], [y, y], color=INK, linewidth=1.4)
    for tick in (x(1), x(end)):
        axes.plot([tick] * 2, [y - 3, y + 3], color=INK, linewidth=1.4)
    more = "" if 1 + critical <= methods else ", more than the axis is long"
    axes.text(x(1), y - 5, f"critical difference {critical:.2f}{more}", va="bottom", color=INK, fontsize=8)
    return x

"""Heat maps of collaborative runs: worst accuracy under the worst attack, over declared attackers and data."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradless.report.collab.names import NO_ATTACK, REFERENCE, algorithm_name, attack_codes, attack_name
from gradless.report.collab.study import Collab, Setting, Split, Weakest
from gradless.report.collab.tables import outcome_text
from gradless.report.common.pictures import INK, LITERAL, PALE, POINT, Picture, canvas, draw_title, save, text_size

CELL_WIDTH, CELL_HEIGHT = 0.62, 0.46  # inches
PANEL_GAP, TOP, TITLE, BAR = 0.3, 0.34, 0.34, 0.62
MOST_WIDTH = 9.5
LOST = "#5a6068"
TITLE_TEXT = "Worst accuracy under the worst attack, in %"


class Square(NamedTuple):
    """One cell."""

    value: float | None
    """Percent; None where there is no accuracy."""
    text: str
    code: str
    note: str
    """What a pointer shows over it."""


class Matrix(NamedTuple):
    """A grid of cells with names of its rows and columns; None where there is nothing."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Square | None, ...], ...]


class Axes(NamedTuple):
    """Names of what runs down and across."""

    down: str
    across: str


def heatmaps(study: Collab, folder: Path) -> list[Picture]:
    """The picture, if there is more than one cell. Within `pictures.settings`."""
    matrices, axes, tail = matrices_of(study)
    squares = [square for matrix in matrices for row in matrix.cells for square in row if square is not None]
    if len(squares) < 2:
        return []
    title = f"{TITLE_TEXT}{tail}" if study.splits[1:] or study.peers[1:] else f"Worst accuracy in %{tail}"
    used = {square.code for square in squares if square.code}
    known = {code: attack_name(name) for name, code in _codes(study).items() if code in used}
    codes = [f"{code} {name}" for code, name in known.items() if code.lower() != name.lower()]
    figure, by_id = draw(matrices, axes, title, codes)
    picture = save(figure, folder / "heatmap", title)
    picture.svg.write_text(_with_notes(picture.svg.read_text(encoding="utf-8"), by_id), encoding="utf-8")
    return [picture]


def matrices_of(study: Collab) -> tuple[list[Matrix], Axes, str]:
    """A matrix f x data for each algorithm; one of all algorithms where f or the data are the same throughout.

    With a single setting, the columns are the attacks.

    Returns:
        The matrices, the names of their axes, and what the title has to add.
    """
    splits, peers, codes = study.splits, study.peers, _codes(study)
    names = [name for name in study.algorithms if any(study.weakest(name, setting) for setting in study.settings)]
    labels = tuple(map(algorithm_name, names))
    several = len({n for n, _ in peers}) > 1
    by_f = tuple(f"{f} of {n}" if several else "?" if f is None else str(f) for n, f in peers)
    by_split = tuple(split.short or "data" for split in splits)
    f_axis = "declared attackers f" + (" of n peers" if several else "")
    n_text = "" if several or peers[0][0] is None else f"n = {peers[0][0]}"
    first = study.settings[0]

    def square(name: str, setting: Setting) -> Square | None:
        return _square(study.weakest(name, setting), name, setting, codes)

    if len(splits) > 1 and len(peers) > 1:
        matrices = []
        for name, label in zip(names, labels, strict=True):
            cells = tuple(tuple(square(name, Setting(split, *pair)) for split in splits) for pair in peers)
            matrices.append(Matrix(label, by_f, by_split, cells))
        return matrices, Axes(f_axis, _data_axis(splits)), _tail(n_text)
    if len(splits) == len(peers) == 1:
        return [_of_attacks(study, names, labels)], Axes("", "attack"), _tail(first.peers, splits[0].label)
    cells = tuple(tuple(square(name, setting) for setting in study.settings) for name in names)
    if len(splits) > 1:
        return [Matrix("", labels, by_split, cells)], Axes("", _data_axis(splits)), _tail(first.peers)
    return [Matrix("", labels, by_f, cells)], Axes("", f_axis), _tail(n_text, first.split.label)


def _tail(*texts: str) -> str:
    return "".join(f", {text}" for text in texts if text)


def _of_attacks(study: Collab, names: Sequence[str], labels: tuple[str, ...]) -> Matrix:
    setting = study.settings[0]

    def square(name: str, attack: str) -> Square | None:
        outcome = None if (name, attack) == (REFERENCE, NO_ATTACK) else study.outcome(name, attack, setting)
        return _square(Weakest(attack, outcome, True) if outcome is not None else None, name, setting, {})

    cells = tuple(tuple(square(name, attack) for attack in study.attacks) for name in names)
    return Matrix("", labels, tuple(map(attack_name, study.attacks)), cells)


def _codes(study: Collab) -> dict[str, str]:
    return attack_codes([NO_ATTACK, *(attack for attack in study.attacks if attack != NO_ATTACK)])


def _data_axis(splits: Sequence[Split]) -> str:
    kinds = {split.head for split in splits}
    return f"data: {kinds.pop()}" if len(kinds) == 1 and "" not in kinds else "data"


def _square(weakest: Weakest | None, name: str, setting: Setting, codes: dict[str, str]) -> Square | None:
    if weakest is None:
        return None
    outcome, mean = weakest.outcome, weakest.outcome.worst
    value = 100 * mean.mean if mean is not None else None
    text = "div." if value is None else f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"
    text = weakest.bound.strip() + text + ("*" if outcome.diverged and value is not None else "")
    where = ", ".join(filter(None, (algorithm_name(name), setting.peers, setting.split.label)))
    note = f"{where}: {outcome_text(outcome)} under {attack_name(weakest.attack)}"
    return Square(value, text, codes.get(weakest.attack, ""), note)


def draw(matrices: Sequence[Matrix], names: Axes, title: str, codes: Sequence[str]) -> tuple[Any, dict[str, Square]]:
    """The figure, and its cells by the ids they have in the SVG."""
    figure, renderer = canvas(8, 4)

    def longest(texts: Sequence[str], size: float) -> float:
        return max(text_size(figure, renderer, text, size)[0] for text in texts) / POINT

    rows, columns = len(matrices[0].rows), len(matrices[0].columns)
    step = max(CELL_WIDTH, longest(matrices[0].columns, 8) + 0.1)
    left = longest(matrices[0].rows, 8.5) + (0.42 if names.down else 0.26)
    tall = CELL_HEIGHT * rows
    inner = max(step * columns, longest([matrix.title or " " for matrix in matrices], 9) * 1.15)
    most = max(1, int((MOST_WIDTH - left - BAR) / (inner + PANEL_GAP)))
    across = min(len(matrices), math.ceil(len(matrices) / math.ceil(len(matrices) / most)))
    down = math.ceil(len(matrices) / across)
    head = TOP if matrices[0].title else 0.08
    notes = _wrapped(codes, 8)
    right = left + across * inner + (across - 1) * PANEL_GAP
    below = 0.5 + 0.17 * len(notes) + (0.1 if notes else 0)
    needed = max(longest([title], 10) * 1.12 + 0.3, longest([*notes, " "], 8) + 0.3)
    width, height = max(right + BAR + 0.3, needed), TITLE + down * (head + tall) + (down - 1) * 0.1 + below
    figure.set_size_inches(width, height)

    def axes_at(x: float, y: float, box_width: float, box_height: float) -> Any:
        return figure.add_axes((x / width, y / height, box_width / width, box_height / height))

    shade = _shade(matrices)
    squares: dict[str, Square] = {}
    for i, matrix in enumerate(matrices):
        row, column = divmod(i, across)
        bottom = height - TITLE - (row + 1) * (head + tall) - row * 0.1
        axes = axes_at(left + column * (inner + PANEL_GAP), bottom, step * columns, tall)
        last = i + across >= len(matrices)
        squares |= _matrix(axes, matrix, names, shade, f"cell-{i}", edge=column == 0, last=last)
    bar = max(min(tall, 1.9), 0.9)
    _bar(axes_at(right + 0.2, height - TITLE - head - bar, 0.13, bar), shade)
    for i, note in enumerate(reversed(notes)):
        figure.text(0.1 / width, (0.06 + 0.17 * i) / height, note, color=INK, fontsize=8, **LITERAL)
    draw_title(figure, title)
    return figure, squares


def _wrapped(codes: Sequence[str], most: int) -> list[str]:
    """What the codes stand for, so many in a line."""
    lines = [" · ".join(codes[start : start + most]) for start in range(0, len(codes), most)]
    return [("Below a number the worst attack: " if i == 0 else "") + line for i, line in enumerate(lines)]


class Shade(NamedTuple):
    """The colour scale that all cells share."""

    low: float
    high: float
    colours: Any

    def of(self, value: float) -> tuple[float, float, float]:
        """Colour of a percentage."""
        red, green, blue, _ = self.colours((value - self.low) / (self.high - self.low))
        return float(red), float(green), float(blue)


def _shade(matrices: Sequence[Matrix]) -> Shade:
    from matplotlib import colormaps

    squares = [square for matrix in matrices for row in matrix.cells for square in row if square]
    values = [square.value for square in squares if square.value is not None]
    low = 10 * math.floor(min(values, default=0.0) / 10)
    high = 10 * math.ceil(max(values, default=100.0) / 10)
    return Shade(low, high if high > low else low + 10, colormaps["viridis"])


def ink_on(colour: tuple[float, float, float]) -> str:
    """White or black, whichever stands out more (contrast of WCAG 2)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05
    return "#ffffff" if 1.05 / light > light / 0.05 else "#000000"


def _matrix(
    axes: Any, matrix: Matrix, names: Axes, shade: Shade, prefix: str, *, edge: bool, last: bool
) -> dict[str, Square]:
    from matplotlib.patches import Rectangle

    rows, columns = len(matrix.rows), len(matrix.columns)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.patch.set_alpha(0)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, length=0, labelsize=8, labelleft=edge, labelbottom=last)
    axes.set_xticks([x + 0.5 for x in range(columns)], matrix.columns, **LITERAL)
    axes.set_yticks([y + 0.5 for y in range(rows)], matrix.rows, fontsize=8.5, **LITERAL)
    axes.set_title(matrix.title, loc="left", fontsize=9, fontweight="bold", color=INK, pad=4, **LITERAL)
    if edge and names.down:
        axes.set_ylabel(names.down, color=INK, fontsize=8.5)
    if last:
        axes.set_xlabel(names.across, color=INK, fontsize=8.5, labelpad=3)
    squares = {}
    for y, row in enumerate(matrix.cells):
        for x, square in enumerate(row):
            box = Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, linewidth=0)
            axes.add_patch(box)
            if square is None:
                box.set(facecolor="none", edgecolor=PALE, hatch="////", linewidth=0.4, alpha=0.7)
                continue
            colour = shade.of(square.value) if square.value is not None else None
            box.set(facecolor=colour or LOST, gid=f"{prefix}-{y}-{x}")
            squares[f"{prefix}-{y}-{x}"] = square
            ink = ink_on(colour) if colour else "#ffffff"
            style: dict[str, Any] = {"color": ink, "ha": "center", "va": "center", **LITERAL}
            axes.text(x + 0.5, y + (0.38 if square.code else 0.5), square.text, fontsize=9, **style)
            axes.text(x + 0.5, y + 0.74, square.code, fontsize=6.5, **style)
    return squares


def _bar(axes: Any, shade: Shade) -> None:
    """The scale, of rectangles over each other: no bitmap and no seams in the SVG."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    size = (shade.high - shade.low) / 64
    for i in range(64):
        colour, start = shade.of(shade.low + (i + 0.5) * size), shade.low + i * size
        axes.add_patch(Rectangle((0, start), 1, shade.high - start, facecolor=colour, linewidth=0))
    axes.set_xlim(0, 1)
    axes.set_ylim(shade.low, shade.high)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(colors=INK, labelsize=8, length=2)
    axes.spines[:].set_visible(False)


def _with_notes(svg: str, squares: dict[str, Square]) -> str:
    """The SVG with a note for a pointer over each cell."""

    def with_note(match: re.Match[str]) -> str:
        return f"{match[0]}<title>{html.escape(squares[match[1]].note)}</title>"

    return re.sub(r'<g id="(cell-\d+-\d+-\d+)">', with_note, svg)

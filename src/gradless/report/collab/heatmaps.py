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
from gradless.report.common.pictures import INK, PALE, POINT, Picture, draw_title, save, text_size

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
    told: str
    """What a pointer is told over it."""


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
    """The picture, if there is more than one cell. Within the settings of `figures.SETTINGS`."""
    matrices, axes, tail = matrices_of(study)
    found = [cell for matrix in matrices for row in matrix.cells for cell in row if cell is not None]
    if len(found) < 2:
        return []
    title = f"{TITLE_TEXT}{tail}" if study.splits[1:] or study.peers[1:] else f"Worst accuracy in %{tail}"
    used = {cell.code for cell in found if cell.code}
    known = {code: attack_name(name) for name, code in _codes(study).items() if code in used}
    codes = [f"{code} {name}" for code, name in known.items() if code.lower() != name.lower()]
    figure, squares = draw(matrices, axes, title, codes)
    picture = save(figure, folder / "heatmap", title)
    picture.svg.write_text(_pointed(picture.svg.read_text(), squares))
    return [picture]


def matrices_of(study: Collab) -> tuple[list[Matrix], Axes, str]:
    """A matrix f x data for each algorithm; one of all algorithms where f or the data are the same throughout.

    With a single setting, the columns are the attacks.

    Returns:
        The matrices, the names of their axes, and what the title has to add.
    """
    splits, peers, codes = study.splits, study.peers, _codes(study)
    names = [name for name in study.algorithms if any(study.weakest(name, setting) for setting in study.settings)]
    several = len({n for n, _ in peers}) > 1
    downs = [f"{f} of {n}" if several else _known(f) for n, f in peers]
    acrosses = [split.short or "data" for split in splits]
    f_axis = "declared attackers f" + (" of n peers" if several else "")
    same = [] if several or peers[0][0] is None else [f"n = {peers[0][0]}"]
    labels = tuple(algorithm_name(name) for name in names)

    def square(name: str, setting: Setting) -> Square | None:
        return _square(study.weakest(name, setting), name, setting, codes)

    if len(splits) > 1 and len(peers) > 1:
        made = []
        for name, label in zip(names, labels, strict=True):
            cells = tuple(tuple(square(name, Setting(split, *pair)) for split in splits) for pair in peers)
            made.append(Matrix(label, tuple(downs), tuple(acrosses), cells))
        return made, Axes(f_axis, _data_axis(splits)), "".join(f", {text}" for text in same)
    if len(splits) > 1 or len(peers) > 1:
        settings = study.settings
        cells = tuple(tuple(square(name, setting) for setting in settings) for name in names)
        fixed = [settings[0].peers] if len(splits) > 1 else [*same, settings[0].split.label]
        axis = _data_axis(splits) if len(splits) > 1 else f_axis
        matrix = Matrix("", labels, tuple(acrosses if len(splits) > 1 else downs), cells)
        return [matrix], Axes("", axis), "".join(f", {text}" for text in fixed if text)
    return (
        [_of_attacks(study, names)],
        Axes("", "attack"),
        "".join(f", {text}" for text in (study.settings[0].peers, splits[0].label) if text),
    )


def _of_attacks(study: Collab, names: Sequence[str]) -> Matrix:
    setting = study.settings[0]
    cells = []
    for name in names:
        row = []
        for attack in study.attacks:
            found = None if (name, attack) == (REFERENCE, NO_ATTACK) else study.outcome(name, attack, setting)
            one = Weakest(attack, found, True) if found is not None else None
            square = _square(one, name, setting, {})
            row.append(square)
        cells.append(tuple(row))
    columns = tuple(attack_name(attack) for attack in study.attacks)
    return Matrix("", tuple(map(algorithm_name, names)), columns, tuple(cells))


def _codes(study: Collab) -> dict[str, str]:
    return attack_codes([NO_ATTACK, *(attack for attack in study.attacks if attack != NO_ATTACK)])


def _known(value: int | None) -> str:
    return "?" if value is None else str(value)


def _data_axis(splits: Sequence[Split]) -> str:
    kinds = {split.head for split in splits}
    return f"data: {kinds.pop()}" if len(kinds) == 1 and "" not in kinds else "data"


def _square(found: Weakest | None, name: str, setting: Setting, codes: dict[str, str]) -> Square | None:
    if found is None:
        return None
    mean = found.outcome.worst
    value = 100 * mean.mean if mean is not None else None
    text = "div." if value is None else f"{value:.0f}" if value >= 99.95 else f"{value:.1f}"
    text = ("" if found.complete else "≤") + text + ("*" if found.outcome.diverged and value is not None else "")
    where = ", ".join(part for part in (algorithm_name(name), setting.peers, setting.split.label) if part)
    told = f"{where}: {outcome_text(found.outcome)} under {attack_name(found.attack)}"
    return Square(value, text, codes.get(found.attack, ""), told)


def draw(matrices: Sequence[Matrix], names: Axes, title: str, codes: Sequence[str]) -> tuple[Any, dict[str, Square]]:
    """The figure, and its cells by the ids they have in the SVG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=POINT)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.patch.set_alpha(0)

    def longest(texts: Sequence[str], size: float) -> float:
        return max(text_size(figure, renderer, text, size)[0] for text in texts) / POINT

    rows, columns = len(matrices[0].rows), len(matrices[0].columns)
    step = max(CELL_WIDTH, longest(matrices[0].columns, 8) + 0.1)
    left = longest(matrices[0].rows, 8.5) + (0.42 if names.down else 0.26)
    inner, tall = step * columns, CELL_HEIGHT * rows
    inner = max(inner, longest([matrix.title or " " for matrix in matrices], 9) * 1.15)
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
    shade = _shade(matrices)
    squares: dict[str, Square] = {}
    for i, matrix in enumerate(matrices):
        row, column = divmod(i, across)
        bottom = height - TITLE - (row + 1) * (head + tall) - row * 0.1
        where = (left + column * (inner + PANEL_GAP), bottom, step * columns, tall)
        axes = figure.add_axes(_share(where, width, height))
        last = i + across >= len(matrices)
        squares |= _matrix(axes, matrix, names, shade, f"cell-{i}", edge=column == 0, last=last)
    tops = height - TITLE - head
    _bar(figure.add_axes(_share((right + 0.2, tops - max(min(tall, 1.9), 0.9), 0.13, max(min(tall, 1.9), 0.9)),
                                width, height)), shade)  # fmt: skip
    for i, note in enumerate(notes):
        figure.text(0.1 / width, (0.06 + 0.17 * (len(notes) - 1 - i)) / height, note, color=INK, fontsize=8,
                    parse_math=False)  # fmt: skip
    draw_title(figure, title)
    return figure, squares


def _share(box: tuple[float, float, float, float], width: float, height: float) -> tuple[float, float, float, float]:
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


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

    values = [cell.value for m in matrices for row in m.cells for cell in row if cell and cell.value is not None]
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
    axes.set_xticks([x + 0.5 for x in range(columns)], matrix.columns, parse_math=False)
    axes.set_yticks([y + 0.5 for y in range(rows)], matrix.rows, fontsize=8.5, parse_math=False)
    axes.set_title(matrix.title, loc="left", fontsize=9, fontweight="bold", color=INK, pad=4, parse_math=False)
    if edge and names.down:
        axes.set_ylabel(names.down, color=INK, fontsize=8.5)
    if last:
        axes.set_xlabel(names.across, color=INK, fontsize=8.5, labelpad=3)
    squares = {}
    for y, row in enumerate(matrix.cells):
        for x, cell in enumerate(row):
            box = Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, linewidth=0)
            if cell is None:
                box.set(facecolor="none", edgecolor=PALE, hatch="////", linewidth=0.4, alpha=0.7)
                axes.add_patch(box)
                continue
            colour = shade.of(cell.value) if cell.value is not None else None
            box.set(facecolor=colour or LOST, gid=f"{prefix}-{y}-{x}")
            squares[f"{prefix}-{y}-{x}"] = cell
            axes.add_patch(box)
            ink = ink_on(colour) if colour else "#ffffff"
            up = 0.38 if cell.code else 0.5
            axes.text(x + 0.5, y + up, cell.text, color=ink, fontsize=9, ha="center", va="center", parse_math=False)
            axes.text(x + 0.5, y + 0.74, cell.code, color=ink, fontsize=6.5, ha="center", va="center",
                      parse_math=False)  # fmt: skip
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


def _pointed(svg: str, squares: dict[str, Square]) -> str:
    """Tells a pointer what is behind each cell."""

    def told(match: re.Match[str]) -> str:
        return f"{match[0]}<title>{html.escape(squares[match[1]].told)}</title>"

    return re.sub(r'<g id="(cell-\d+-\d+-\d+)">', told, svg)

"""The picture of who has what: a bubble for each peer and class, its area the number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from gradless.collab.data import datasets, splits
from gradless.errors import BadInput, pick
from gradless.system import terminal
from gradless.system.cache import Say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_SPLIT, DEFAULT_ALPHA = "dirichlet-classes", 5.0
BLUE, PALE, INK = "#1f4e79", "#9db8d2", "#444444"
LARGEST: Final = 0.94  # diameter of the largest bubble, in cells
TINY: Final = 0.05  # diameter of the smallest, so that one row can be seen


def draw(
    path: Path,
    *,
    peers: int,
    byzantine: int = 0,
    dataset: str | None = None,
    data: Path | str | None = None,
    split: str | None = None,
    split_parameter: float | None = None,
    seed: int | None = None,
    image_size: int | None = None,
    say: Say = terminal.say,
) -> Path:
    """Load a data set, deal its training rows and draw who has what (`split_picture`).

    Args:
        path: PNG, SVG or PDF to write.
        peers: all of them.
        byzantine: how many of them have no rows, for they attack.
        dataset: row of `gradless.collab.data.datasets.DATASETS`; None: digits.
        data: folder of its files.
        split: row of `gradless.collab.data.splits.SPLITS`; None: ``dirichlet-classes``.
        split_parameter: its alpha (None: 5) or gamma.
        seed: which draw; None: 0.
        image_size: as `datasets.load` takes it.
        say: told what was left out or held out of own images.

    Raises:
        BadInput: data that cannot be read, or a split that cannot be made of it.
    """
    name = split or DEFAULT_SPLIT
    wanted = pick("split", name, splits.SPLITS).parameter
    if wanted == "alpha" and split_parameter is None:
        split_parameter = DEFAULT_ALPHA
    if (wanted is None) != (split_parameter is None):
        raise BadInput(f"the split '{name}' " + (f"needs its {wanted}" if wanted else "takes no parameter"))
    if data is not None and not datasets.needs_files(dataset or "digits"):
        raise BadInput(f"the data set '{dataset or 'digits'}' needs no files: leave out --data")
    if not 0 <= byzantine < peers:
        raise BadInput(f"byzantine is {byzantine}: give a number from 0 to {peers - 1}, below peers")
    images = datasets.load(dataset or "digits", data, size=image_size, say=say)
    labels = images.train_labels
    parameter = {wanted: split_parameter} if wanted and split_parameter is not None else {}
    parts = splits.split(name, labels, peers - byzantine, seed=seed or 0, **parameter)
    called = Path(data).resolve().name if data is not None and images.name in datasets.OWN else images.name
    people = f"{peers - byzantine} honest of {peers} peers" if byzantine else f"{peers} peers"
    title = ", ".join([called, name, *(f"{key} = {value:g}" for key, value in parameter.items()), people])
    counts = splits.histogram(labels, parts, len(images.classes))
    return split_picture(counts, images.classes, path, title=title, rows=len(labels))


def split_picture(
    counts: Tensor, classes: Sequence[str], path: Path, *, title: str = "", rows: int | None = None
) -> Path:
    """Draw who has what.

    One colour for all bubbles: nothing depends on telling hues apart, and a grey print shows the same.

    Args:
        counts: int64 ``[P, C]`` from `gradless.collab.data.splits.histogram`.
        classes: names of the C classes.
        path: file to write; its suffix says what: PNG, SVG or PDF. Needs matplotlib (extra ``plots``).
        title: of the picture, for example ``"dirichlet-classes, alpha = 1"``.
        rows: size of the whole training set, to say how much of it is used; None: not said.

    Returns:
        ``path``.

    Raises:
        BadInput: matplotlib is missing, or the suffix is unknown.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput("pictures need matplotlib: pip install 'gradless[plots]'") from error
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise BadInput(f"a picture is a .png, .svg or .pdf file, not {path.name}")
    peers, kinds = counts.shape
    cell = max(0.12, min(0.3, 11 / peers))  # inches; a hundred peers still fit on a page
    left, right, below, between, bars, above = 0.55 + 0.075 * max(map(len, classes)), 1.15, 0.5, 0.1, 0.6, 0.62
    inner = max(cell * peers, 3.4)
    width, height = left + inner + right, below + cell * kinds + between + bars + above
    figure = Figure(figsize=(width, height), dpi=200)
    FigureCanvasAgg(figure)

    def relative(x: float, y: float, wide: float, high: float) -> tuple[float, float, float, float]:
        return x / width, y / height, wide / width, high / height

    body = figure.add_axes(relative(left, below, inner, cell * kinds))
    top = figure.add_axes(relative(left, below + cell * kinds + between, inner, bars))
    key = figure.add_axes(relative(left + inner, below, right, cell * kinds))
    stretch = inner / (cell * peers)  # few peers: cells wider than high, bubbles stay round
    _bubbles(body, counts, stretch)
    _frame(body, peers, list(classes))
    _totals(top, counts.sum(1).tolist())
    _key(key, int(counts.max()), right / cell, kinds)
    start = 0.12 / width
    figure.text(start, 1 - 0.1 / height, title or "Who has what", va="top", fontsize=10, fontweight="bold")
    figure.text(start, 1 - 0.32 / height, _summary(counts, rows), va="top", fontsize=8, color=INK)
    figure.savefig(path)
    return path


def _bubbles(axes: Axes, counts: Tensor, stretch: float) -> None:
    from matplotlib.collections import EllipseCollection

    where = counts.nonzero().tolist()
    high = [_diameter(int(counts[peer, kind]), int(counts.max())) for peer, kind in where]
    wide = [size / stretch for size in high]
    placed: Any = {"units": "xy", "offsets": where, "transOffset": axes.transData}
    axes.add_collection(EllipseCollection(wide, high, [0.0] * len(where), facecolors=BLUE, linewidths=0, **placed))


def _diameter(count: int, most: int) -> float:
    return max(TINY, LARGEST * math.sqrt(count / most))


def _frame(axes: Axes, peers: int, classes: list[str]) -> None:
    axes.set(xlim=(-0.5, peers - 0.5), ylim=(len(classes) - 0.5, -0.5))
    axes.set_xlabel("peer", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xticks(range(0, peers, 1 if peers <= 32 else 5 if peers <= 120 else 20))
    axes.set_xticks([edge + 0.5 for edge in range(-1, peers)], minor=True)
    axes.set_yticks([edge + 0.5 for edge in range(-1, len(classes))], minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=8)
    axes.spines[:].set_visible(False)


def _totals(axes: Axes, totals: list[int]) -> None:
    """Rows of each peer, as bars above the bubbles."""
    axes.bar(range(len(totals)), totals, width=0.72, color=PALE)
    axes.set(xlim=(-0.5, len(totals) - 0.5), ylim=(0, max(totals) * 1.05), xticks=[])
    axes.set_yticks([0, max(totals)], ["0", f"{max(totals):,}"])
    axes.set_ylabel("rows", fontsize=8)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)


def _key(axes: Axes, most: int, cells: float, kinds: int) -> None:
    """What a bubble's size means, in the scale of the bubbles."""
    from matplotlib.patches import Circle

    axes.set(xlim=(0, cells), ylim=(kinds - 0.5, -0.5))
    axes.axis("off")
    line = max(1.0, cells / 1.15 * 0.16)  # cells between lines of text, at least their height
    shown = list(dict.fromkeys((most, _round(most / 4), _round(most / 16))))
    top = min(0.0, kinds - 1 - len(shown) * line)  # few classes: it begins above them, beside the bars
    axes.text(0.62, top, "area: rows", va="center", fontsize=8, color=INK)
    for number, count in enumerate(shown, 1):
        at = top + number * line
        axes.add_patch(Circle((1.1, at), _diameter(count, most) / 2, color=BLUE, linewidth=0, clip_on=False))
        axes.text(1.9, at, f"{count:,}", va="center", fontsize=8, color=INK)


def _round(value: float) -> int:
    """To one significant digit, at least 1."""
    whole = max(1, round(value))
    unit = 10 ** (len(str(whole)) - 1)
    return int(max(1, round(whole / unit) * unit))


def _summary(counts: Tensor, rows: int | None) -> str:
    dealt = int(counts.sum())
    sizes = counts.sum(1)
    known = (counts > 0).sum(1).double().mean()
    lead = f"{dealt:,} rows dealt" + (f" ({dealt / rows:.0%} of {rows:,})" if rows else "")
    least, most = int(sizes.min()), int(sizes.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{lead}, {each} a peer, of {known:.1f} classes on average"

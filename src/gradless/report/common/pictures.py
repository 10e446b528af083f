"""What all pictures share: settings of matplotlib, canvas, axes, markers, legends, titles and files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gradless.report.common.numbers import Score

T = TypeVar("T")

# Middle tones, to be read on white and on near-black; the page replaces INK by its own text colour.
INK, PALE = "#30353b", "#8b929b"
POINT = 72.0
"""Points in an inch; figures have as many dots, so that their pixels are points."""
SETTINGS = {"svg.hashsalt": "gradless", "svg.fonttype": "none", "font.size": 9, "font.family": "DejaVu Sans"}
"""Of matplotlib, for the same files every time and text that stays text."""
LITERAL: dict[str, Any] = {"parse_math": False}
"""For text of users, in which a dollar sign begins no formula."""


class Picture(NamedTuple):
    """A picture and its files."""

    name: str
    title: str
    svg: Path
    png: Path

    @property
    def width(self) -> float:
        """Of the SVG, in points."""
        box = re.search(r'viewBox="0 0 ([\d.]+) ', self.svg.read_text(encoding="utf-8"))
        assert box is not None, "matplotlib writes a viewBox"
        return float(box[1])


class Look(NamedTuple):
    """How a method is drawn, the same in every picture."""

    colour: str
    line: str
    marker: str
    fill: str


@contextmanager
def settings() -> Iterator[None]:
    """The settings that all pictures are drawn and saved within. Needs matplotlib (extra ``plots``)."""
    from matplotlib import rc_context

    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in letters that the font lacks
        yield


def drawn(draw: Callable[[], Sequence[T]], say: Callable[[str], object]) -> Sequence[T] | None:
    """What ``draw`` returns within `settings`; without matplotlib None, and ``say`` gets the reason."""
    try:
        with settings():
            return draw()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        say("no figures, since matplotlib is not installed: pip install 'gradless[plots]'")
        return None


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A transparent figure of so many inches, and a renderer to measure text with."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=POINT)
    figure.patch.set_alpha(0)
    return figure, FigureCanvasAgg(figure).get_renderer()


def plain_axes(figure: Any, box: tuple[float, float, float, float], grid: str = "y") -> Any:
    """Axes in a box (left, bottom, width, height; shares of the figure) in the page's colours, on nothing."""
    axes = figure.add_axes(box)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis=grid, color=PALE, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)
    return axes


def text_size(figure: Any, renderer: Any, text: str, fontsize: float = 8.5) -> tuple[float, float]:
    """Width and height of a text in points."""
    note = figure.text(0, 0, text, fontsize=fontsize, **LITERAL)
    bounds = note.get_window_extent(renderer)
    note.remove()
    return float(bounds.width), float(bounds.height)


def marker(look: Look, size: float) -> dict[str, Any]:
    """Arguments of matplotlib for a look's marker, ``size`` points wide."""
    edge = {"markeredgewidth": 1.2, "markeredgecolor": look.colour}
    return {"marker": look.marker, "markersize": size, "fillstyle": look.fill, "markerfacecoloralt": "none", **edge}


def stroke(look: Look, width: float) -> dict[str, Any]:
    """Arguments of matplotlib for a look's line, ``width`` points wide."""
    return {"color": look.colour, "linestyle": look.line, "linewidth": width}


def band(axes: Any, x: Sequence[float], scores: Sequence[Score], **style: Any) -> list[float]:
    """Shade a standard deviation around the means, where there is one; returns the means."""
    means, spreads = [score.mean for score in scores], [score.std or 0.0 for score in scores]
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, linewidth=0, **style)
    return means


def key_line(label: str, look: Look, width: float, size: float) -> Any:
    """An entry of a legend: a line with a marker, if the look has one."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **stroke(look, width), **(marker(look, size) if look.marker else {}))


def draw_title(figure: Any, title: str) -> None:
    """The title, in bold, at the top left."""
    width, height = figure.get_size_inches()
    style = {"color": INK, "fontsize": 10, "fontweight": "bold", "va": "top", **LITERAL}
    figure.text(0.1 / width, 1 - 0.08 / height, title, **style)


def save(figure: Any, stem: Path, title: str) -> Picture:
    """Both files; the PNG on white, the SVG without a background and without a date, so that it is reproducible."""
    svg, png = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    figure.savefig(svg, metadata={"Date": None, "Title": title})
    figure.savefig(png, dpi=170, facecolor="white", transparent=False)
    return Picture(stem.name, title, svg, png)

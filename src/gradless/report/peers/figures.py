"""The pictures of a peer's run, as SVG for the middle of its page; nothing is written to disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradless.collab.aggregation.pair_scores import FEWEST, THRESHOLD, WINDOW
from gradless.cost.figures import running_mean
from gradless.peers.scores import scores
from gradless.report.common.pictures import INK, LITERAL, PALE, canvas, plain_axes
from gradless.report.peers.record import PeerRecord
from gradless.report.run.figures import BLUE, ORANGE, RED, Drawing

WIDTH, HEIGHT = 5.2, 3.0  # inches
BOX = (0.13, 0.16, 0.84, 0.72)  # of axes: left, bottom, width, height, as shares
POINTS = 60
"""Steps at which scores are drawn: each looks back `WINDOW` steps."""
COLUMNS = 400
"""Most columns of the picture of presence; of more steps several share one."""
COLOURS = (BLUE, ORANGE, "#3d9a50", "#8a63c9", "#b0548f", "#6b7f2a", "#2a8f8f", "#a0522d")
STATES = {"in the value": BLUE, "in some of them": "#9cc3ea", "late here": ORANGE, "left out": PALE, "banned": RED}


def drawings(record: PeerRecord) -> list[Drawing]:
    """Draw everything that the run has something for. Within `pictures.settings`."""
    makers: list[Callable[[PeerRecord], Drawing | None]] = [_presence, _scores, _latency, _loss, _accuracy]
    return [drawing for make in makers if (drawing := make(record)) is not None]


def _presence(record: PeerRecord) -> Drawing | None:
    """A row a peer, a column a step: whose row is in the value."""
    log = record.log
    if log is None or not log.steps:
        return None
    height = 0.75 + 0.26 * len(record.names)
    figure, _ = canvas(WIDTH, height)
    axes = plain_axes(figure, (0.2, 0.42 / height, 0.77, 1 - 0.75 / height), "x")
    width = -(-log.steps // COLUMNS)
    shown: set[str] = set()
    late = np.zeros(log.present.shape, bool)
    for step in record.steps:
        if step.step < log.steps:
            late[step.step, [peer for peer in step.late if 0 <= peer < len(record.names)]] = True
    for peer in range(len(record.names)):
        kinds: dict[str, list[tuple[int, int]]] = {}
        for start in range(0, log.steps, width):
            part = slice(start, start + width)
            kind = _kind(log.present[part, peer], late[part, peer], log.banned.get(peer, log.steps) <= start)
            kinds.setdefault(kind, []).append((start, width))
        shown |= kinds.keys()
        for kind, spans in kinds.items():
            axes.broken_barh(spans, (peer - 0.36, 0.72), facecolors=STATES[kind])
    for label, colour in STATES.items():
        if label in shown:
            axes.plot([], [], "s", color=colour, label=label, markersize=6)
    axes.set_yticks(range(len(record.names)), record.names, **LITERAL)
    axes.invert_yaxis()
    axes.set(xlabel="step", xlim=(0, log.steps))
    caption = (
        "Whose row each decided value holds. Late here: it is left out, and had not come to this peer when the step "
        "was decided."
    )
    return _drawing(figure, axes, "who-presence", "Rows in the values", caption, columns=5)


def _kind(present: np.ndarray, late: np.ndarray, banned: bool) -> str:
    if banned:
        return "banned"
    if present.all():
        return "in the value"
    if present.any():
        return "in some of them"
    return "late here" if late.any() else "left out"


def _scores(record: PeerRecord) -> Drawing | None:
    log = record.log
    if log is None or log.steps < FEWEST:
        return None
    at = sorted({*np.linspace(FEWEST, log.steps, POINTS).astype(int).tolist()})
    lines = [scores(log, until=step) for step in at]
    if all(value is None for line in lines for value in line):
        return None
    figure, axes = _canvas()
    for peer, name in enumerate(record.names):
        points = [(step, line[peer]) for step, line in zip(at, lines, strict=True) if line[peer] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=COLOURS[peer % len(COLOURS)], linewidth=1.4, label=name)
    axes.axhline(THRESHOLD, color=RED, linewidth=1.0, linestyle=(0, (3, 2)))
    axes.axhline(0, color=PALE, linewidth=1)
    axes.set(xlabel="step", ylabel="score")
    caption = (
        f"How each peer's coefficients agree with those of the others over the last {WINDOW} steps. Dashed: "
        f"{THRESHOLD:g}, below which the option memory leaves a peer out. Honest peers with unlike data can lie low, "
        "and liars who know the score can lie high."
    )
    return _drawing(figure, axes, "who-scores", "Scores", caption)


def _latency(record: PeerRecord) -> Drawing | None:
    points = [(step.step + 1, 1000 * step.agree_seconds) for step in record.steps if step.agree_seconds is not None]
    if not points:
        return None
    figure, axes = _canvas()
    _smoothed(axes, points, "agreement")
    later = [(step.step + 1, 1000 * step.agree_seconds) for step in record.steps if step.round and step.agree_seconds]
    if later:
        axes.plot(*zip(*later, strict=True), "x", color=RED, markersize=5, label="in a later round")
    axes.set_ylim(0, None)
    axes.set(xlabel="step", ylabel="milliseconds")
    caption = "From this peer's own row to the decision. A later round means that a leader lost its turn."
    return _drawing(figure, axes, "time-agreement", "Agreement", caption)


def _smoothed(axes: Any, points: Sequence[tuple[int, float]], label: str) -> None:
    """Draw values over steps thin, and their running mean over a twentieth of them thick."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    width = max(1, len(values) // 20)
    axes.plot(steps, values, color=BLUE, alpha=0.45, linewidth=0.8, label=label)
    if width > 1:
        axes.plot(steps, running_mean(values, width), color=BLUE, linewidth=1.8, label=f"mean of {width} steps")


def _loss(record: PeerRecord) -> Drawing | None:
    name = "reward" if record.rewarded else "loss"
    points = [(step.step + 1, value) for step in record.steps if (value := getattr(step, name)) is not None]
    if not points:
        return None
    figure, axes = _canvas()
    _smoothed(axes, points, "own batch")
    axes.set(xlabel="step", ylabel=name)
    whose = "Of texts behind this peer's own prompts" if record.rewarded else "On this peer's own rows"
    caption = f"{whose}, at the weights that all share."
    return _drawing(figure, axes, f"training-{name}", name.capitalize(), caption)


def _accuracy(record: PeerRecord) -> Drawing | None:
    if len(record.evaluations) < 2:
        return None
    figure, axes = _canvas()
    axes.plot(*zip(*record.evaluations, strict=True), "o-", color=ORANGE, markersize=4.5, linewidth=1.5)
    axes.set(xlabel="step", ylabel=record.metric)
    return _drawing(figure, axes, "training-accuracy", record.metric.capitalize(), "On this peer's own test rows.")


def _canvas() -> tuple[Any, Any]:
    figure, _ = canvas(WIDTH, HEIGHT)
    axes = plain_axes(figure, BOX)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _drawing(figure: Any, axes: Any, name: str, title: str, caption: str, *, columns: int = 4) -> Drawing:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        position = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "ncols": columns, "borderaxespad": 0.1}
        style = {"frameon": False, "fontsize": 8.5, "labelcolor": INK, "handlelength": 1.4, "columnspacing": 1.1}
        legend = axes.legend(handles, labels, **position, **style)
        for text in legend.get_texts():
            text.set_parse_math(False)  # names of peers begin no formula
    file = io.BytesIO()
    figure.savefig(file, format="svg", dpi=200, metadata={"Date": None, "Title": title})
    return Drawing(name, title, caption, file.getvalue().decode())

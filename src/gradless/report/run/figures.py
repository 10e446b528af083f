"""The pictures of one run, as SVG for the middle of its page; nothing is written to disk."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from gradless.cost.figures import running_mean
from gradless.report.common.numbers import counted, median, show
from gradless.report.common.pictures import INK, PALE, canvas, plain_axes
from gradless.report.run.record import RunRecord
from gradless.report.run.tables import memory_rows, size_text

BLUE, ORANGE, RED = "#2f7fd1", "#c47f0e", "#d9542b"  # middle tones, to be read on white and on near-black
WIDTH, HEIGHT = 5.2, 3.0  # inches
LEFT, RIGHT, BOTTOM, TOP = 0.66, 0.14, 0.48, 0.32  # inches around the axes
VECTORS = 4000  # more dots than this are drawn as an image: one of each would weigh more than the rest of the page
WINDOW = 20  # a running value is over this part of the run
FAR = 30.0  # times the median; losses beyond it need a logarithmic axis
DEV: dict[str, Any] = {"color": ORANGE, "markersize": 4.5, "linewidth": 1.5, "label": "dev"}


class Drawing(NamedTuple):
    """A picture of the page."""

    name: str
    """First the section that it belongs to."""
    title: str
    caption: str
    svg: str


def drawings(record: RunRecord) -> list[Drawing]:
    """Draw everything that the run has something for. Within `pictures.settings`."""
    makers: list[Callable[[RunRecord], Drawing | None]] = [_reward if record.rewarded else _loss, _metric]
    makers += [_valid, _length, _speed, _memory, _histogram, _coefficients, _rate]
    return [drawing for make in makers if (drawing := make(record)) is not None]


# ------------------------------------------------------------------------------------------------------------
# during training


def _loss(record: RunRecord) -> Drawing | None:
    points = [(step.step + 1, step.loss) for step in record.steps if step.loss is not None]
    dev = [(one.step, one.loss) for one in record.evaluations if one.split == "dev" and one.loss is not None]
    if not points and not dev:
        return None
    figure, axes = _canvas()
    if points:
        x, y = [step for step, _ in points], [loss for _, loss in points]
        width = max(1, len(y) // WINDOW)
        look: dict[str, Any] = {"alpha": 0.4, "linewidth": 0.8} if width > 1 else {"marker": ".", "linewidth": 1.0}
        axes.plot(x, y, color=BLUE, label="training batch", **look)
        if width > 1:
            axes.plot(x, running_mean(y, width), color=BLUE, linewidth=1.8, label=f"mean of {width} steps")
    if dev:
        axes.plot(*zip(*dev, strict=True), "o-", **DEV)
    values = [loss for _, loss in (*points, *dev)]
    if min(values) > 0 and max(values) > FAR * statistics.median(values):
        axes.set_yscale("log")
    elif min(values) >= 0:
        axes.set_ylim(0, None)
    notes = _mark_skipped(axes, record) + _mark_selected(axes, record)
    _steps_axis(axes, record, "loss")
    return _drawing(figure, axes, "training-loss", "Loss", "The loss that training minimises." + notes)


def _reward(record: RunRecord) -> Drawing | None:
    points = [(step.step + 1, step.reward) for step in record.steps if step.reward is not None]
    if not points:
        return None
    figure, axes = _canvas()
    members = [(step.step + 1, min(step.members), max(step.members)) for step in record.steps if step.members]
    x, y = [step for step, _ in points], [reward for _, reward in points]
    width = max(1, len(y) // WINDOW)
    if any(low < high for _, low, high in members):
        axes.fill_between(*zip(*members, strict=True), color=BLUE, alpha=0.22, linewidth=0, label="members")
    axes.plot(x, y, color=BLUE, label="mean", **({"alpha": 0.5, "linewidth": 0.8} if width > 1 else {"marker": "."}))
    if width > 1:
        axes.plot(x, running_mean(y, width), color=BLUE, linewidth=1.8, label=f"mean of {width} steps")
    most = max(len(step.members) for step in record.steps)
    caption = "Reward of the texts of each training batch."
    caption += f" Band: from the lowest to the highest mean of {most} perturbed models." if members else ""
    caption += f" Texts are {_chosen(record)}." + _mark_skipped(axes, record) + _mark_selected(axes, record)
    _steps_axis(axes, record, "reward")
    return _drawing(figure, axes, "training-reward", "Reward in training", caption)


def _chosen(record: RunRecord) -> str:
    temperature = record.config.get("temperature", 1.0)
    return "written greedily" if temperature == 0 else f"sampled at temperature {show(temperature)}"


def _valid(record: RunRecord) -> Drawing | None:
    training = [(step.step + 1, step.valid) for step in record.steps if step.valid is not None]
    passed = [
        (one.step, one.metrics["passed"])
        for one in record.evaluations
        if one.split == "dev" and "passed" in one.metrics
    ]
    if not training:
        return None
    figure, axes = _canvas()
    axes.plot(*zip(*training, strict=True), color=BLUE, linewidth=1.4, label="valid, training")
    caption = "Valid: the share of texts that have a reward, since no function refused, failed or timed out."
    if passed:
        axes.plot(*zip(*passed, strict=True), "o-", **{**DEV, "label": "passed, dev"})
        caption += (
            f" Passed: the share of dev rows with a reward of {show(record.config.get('pass_reward', 1.0))} or more."
        )
    axes.set_ylim(-0.03, 1.05)
    _steps_axis(axes, record, "share of texts")
    return _drawing(figure, axes, "training-valid", "Valid and passed", caption)


def _length(record: RunRecord) -> Drawing | None:
    training = [(step.step + 1, step.tokens) for step in record.steps if step.tokens is not None]
    dev = [(one.step, one.tokens) for one in record.evaluations if one.split == "dev" and one.tokens is not None]
    if not training:
        return None
    figure, axes = _canvas()
    axes.plot(*zip(*training, strict=True), color=BLUE, linewidth=1.4, label="training batch")
    if dev:
        axes.plot(*zip(*dev, strict=True), "o-", **DEV)
    axes.set_ylim(0, 1.12 * max(1.0, *(tokens for _, tokens in (*training, *dev))))
    _steps_axis(axes, record, "new tokens")
    caption = (
        "Mean number of new tokens of a text. One that grows or shrinks without need may be how a reward is gamed."
    )
    return _drawing(figure, axes, "training-length", "Length of the texts", caption)


def _metric(record: RunRecord) -> Drawing | None:
    name = record.metric
    dev = [(one.step, one.metrics[name]) for one in record.evaluations if one.split == "dev" and name in one.metrics]
    test = [
        (step, record.numbers(part)[name], record.interval_of(name, part))
        for step, part in ((0, "zero_shot"), (record.selected, "test"))
        if step is not None and name in record.numbers(part)
    ]
    earlier = [(one.step, one.metrics[name]) for one in record.earlier_ends if name in one.metrics]
    if not dev and not test:
        return None
    figure, axes = _canvas()
    title = name.replace("_", " ")
    if dev:
        axes.plot(*zip(*dev, strict=True), "o-", **DEV)
    caption = f"Dev {title} during training." if dev else ""
    squares: dict[str, Any] = {"fmt": "s", "color": BLUE, "markersize": 5.5, "linewidth": 1.4, "capsize": 4}
    for number, (step, value, ends) in enumerate(test):
        label = "test" if number == 0 else None
        bars = [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]] if ends else None
        axes.errorbar([step], [value], bars, label=label, zorder=3, **squares)
    if test:
        intervals = ", with 95 % intervals" if any(ends for *_, ends in test) else ""
        caption += f" Squares: test, before and after{intervals}."
        caption += "" if record.earlier_ends else " Test was not looked at in between."
    if earlier:
        axes.plot(*zip(*earlier, strict=True), "s", color=BLUE, fillstyle="none", label="test, earlier end")
        at = " and ".join(f"{one.taken:,}" for one in record.earlier_ends)
        caption += f" Hollow: test at the end that the run had at step {at}; steps were added after that."
    axes.margins(y=0.15)
    caption += _mark_selected(axes, record)
    _steps_axis(axes, record, title)
    return _drawing(figure, axes, "training-metric", title[:1].upper() + title[1:], caption.strip())


def _rate(record: RunRecord) -> Drawing | None:
    """Only where it varies."""
    points = [(step.step + 1, step.lr) for step in record.steps if step.lr is not None]
    if len({lr for _, lr in points}) < 2:
        return None
    figure, axes = _canvas()
    axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.6, drawstyle="steps-mid")
    if min(lr for _, lr in points) >= 0:
        axes.set_ylim(0, None)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    _steps_axis(axes, record, "learning rate")
    caption = "What multiplied the update of each step: the schedule, times what the method's acceptance made of it."
    return _drawing(figure, axes, "training-rate", "Learning rate", caption)


def _speed(record: RunRecord) -> Drawing | None:
    points = [(step.step + 1, step.speed) for step in record.steps if step.speed is not None]
    if not points:
        return None
    figure, axes = _canvas()
    middle = median(speed for _, speed in points) or 0.0
    axes.plot(*zip(*points, strict=True), color=BLUE, alpha=0.55, linewidth=0.9, marker="." if len(points) < 60 else "")
    axes.axhline(middle, color=BLUE, linewidth=1.6, linestyle=(0, (4, 2)), label=f"median {middle:.3g}")
    axes.set_ylim(0, 1.12 * max(speed for _, speed in points))
    _steps_axis(axes, record, "forward passes / s")
    caption = "Training steps alone, without evaluations; a backward pass counts as two forwards."
    return _drawing(figure, axes, "speed", "Forward passes per second", caption)


def _memory(record: RunRecord) -> Drawing | None:
    rows = [(name, size) for name, size in memory_rows(record) if size]
    if not rows:
        return None
    figure, axes = _canvas(height=0.62 + 0.42 * len(rows), left=1.62, right=0.95, bottom=0.42, top=0.08, grid="x")
    colours = {"training, peak": ORANGE, "inference, peak": BLUE}
    unit = 1e9 if max(size for _, size in rows) >= 1e9 else 1e6
    beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    for number, (name, size) in enumerate(rows):
        axes.barh(number, size / unit, height=0.6, color=colours.get(name, PALE))
        axes.annotate(size_text(size), (size / unit, number), color=INK, **beside)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("GB" if unit == 1e9 else "MB")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    caption = "Inference is the evaluation of the largest batch that training draws. Bars are to scale."
    return _drawing(figure, axes, "memory", "Memory", caption)


# ------------------------------------------------------------------------------------------------------------
# coefficients


def _histogram(record: RunRecord) -> Drawing | None:
    values = [c for step in record.steps for c in step.coeffs if math.isfinite(c)]
    if len(values) < 2:
        return None
    typical = sorted(map(abs, values))[int(0.98 * (len(values) - 1))]
    edge = min(max(map(abs, values)), 2.5 * typical) or 1.0
    beyond = sum(abs(value) > edge for value in values)
    bins = 2 * max(4, min(25, round(math.sqrt(len(values)))))  # even, so that zero is an edge
    figure, axes = _canvas()
    inside = [min(max(value, -edge), edge) for value in values]
    axes.hist(inside, bins=bins, range=(-edge, edge), color=BLUE, alpha=0.75, edgecolor="none")
    axes.axvline(0, color=PALE, linewidth=1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="coefficient", ylabel="number")
    caption = f"{counted(len(values), 'coefficient')}: root mean square {math.sqrt(_mean_square(values)):.3g}, mean "
    caption += f"{statistics.fmean(values):+.3g}, {sum(value > 0 for value in values) / len(values):.0%} positive."
    caption += f" {counted(beyond, 'value')} further out stand in the outermost bins." if beyond else ""
    return _drawing(figure, axes, "gradients-histogram", "Histogram of the coefficients", caption)


def _coefficients(record: RunRecord) -> Drawing | None:
    steps = [step for step in record.steps if step.coeffs]
    if not steps:
        return None
    figure, axes = _canvas()
    dots = [(step.step + 1, c) for step in steps for c in step.coeffs]
    axes.axhline(0, color=PALE, linewidth=1)
    few = len(dots) < 600
    look: dict[str, Any] = {"alpha": 0.8, "markersize": 3.6} if few else {"alpha": 0.3, "markersize": 1.8}
    look |= {"color": BLUE, "linestyle": "none", "marker": "o", "markeredgewidth": 0}
    axes.plot(*zip(*dots, strict=True), rasterized=len(dots) > VECTORS, **look)
    width = max(1, len(steps) // WINDOW)
    if width > 1:
        spread = [math.sqrt(value) for value in running_mean([_mean_square(step.coeffs) for step in steps], width)]
        x = [step.step + 1 for step in steps]
        for sign, label in ((1, f"± root mean square of {width} steps"), (-1, None)):
            axes.plot(x, [sign * value for value in spread], color=ORANGE, linewidth=1.4, label=label)
    most = max(len(step.coeffs) for step in steps)
    caption = f"A dot for each of up to {most} directions a step." if most > 1 else "A dot for each step."
    caption += _mark_skipped(axes, record) + _mark_selected(axes, record)
    _steps_axis(axes, record, "coefficient")
    return _drawing(figure, axes, "gradients-steps", "Coefficients over time", caption)


def _mean_square(values: Iterable[float]) -> float:
    return statistics.fmean(value * value for value in values)


# ------------------------------------------------------------------------------------------------------------
# parts of pictures


def _canvas(
    *,
    height: float = HEIGHT,
    left: float = LEFT,
    right: float = RIGHT,
    bottom: float = BOTTOM,
    top: float = TOP,
    grid: str = "y",
) -> tuple[Any, Any]:
    """A figure with room, in inches, around its axes."""
    figure, _ = canvas(WIDTH, height)
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + top) / height)
    return figure, plain_axes(figure, box, grid)


def _steps_axis(axes: Any, record: RunRecord, label: str) -> None:
    end = max([record.planned, *(step.step + 1 for step in record.steps[-1:])])
    axes.set_xlim(-0.02 * end, 1.02 * max(end, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="step", ylabel=label)


def _mark_skipped(axes: Any, record: RunRecord) -> str:
    """Crosses at the bottom where a step was skipped, and a sentence for the caption."""
    skipped = [step.step + 1 for step in record.steps if step.skipped]
    if not skipped:
        return ""
    crosses: dict[str, Any] = {"marker": "x", "color": RED, "markersize": 6, "markeredgewidth": 1.6, "label": "skipped"}
    crosses |= {"transform": axes.get_xaxis_transform(), "linestyle": "none", "clip_on": False, "zorder": 4}
    axes.plot(skipped, [0.03] * len(skipped), **crosses)
    return f" {counted(len(skipped), 'step was', 'steps were')} skipped, where a loss was no finite number (crosses)."


def _mark_selected(axes: Any, record: RunRecord) -> str:
    """A dotted line where dev chose the weights, unless that is the end."""
    if not record.selected or record.selected == len(record.steps):
        return ""
    axes.axvline(record.selected, color=PALE, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    return f" Dotted: step {record.selected:,}, which dev chose."


def _drawing(figure: Any, axes: Any, name: str, title: str, caption: str) -> Drawing:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        position = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "ncols": 4, "borderaxespad": 0.1}
        style = {"frameon": False, "fontsize": 8.5, "labelcolor": INK, "handlelength": 1.8, "columnspacing": 1.3}
        axes.legend(handles, labels, **position, **style)
    file = io.BytesIO()
    figure.savefig(file, format="svg", dpi=200, metadata={"Date": None, "Title": title})
    return Drawing(name, title, caption, file.getvalue().decode())

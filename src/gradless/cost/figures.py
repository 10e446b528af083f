"""Pictures of a run, and of where the time of a step goes."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

LOSS, SCORE, PALE = "#1f4e79", "#c1571b", "#9db8d2"
# What a forward needs in blues, what zeroth-order training adds in orange; also apart in grey.
PARTS = {
    **{"matrix products": LOSS, "attention": "#5b8db8", "everything else": "#cfd6dd"},
    **{"sweeps": SCORE, "interception": "#e9a36a"},
}


def run_picture(folder: Path, *, metric: str = "accuracy", title: str = "") -> Path:
    """Draw loss and dev/test metric over steps from ``metrics.jsonl`` into ``curves.png``.

    Needs matplotlib (extra ``plots``). The training loss is the mean of a step's evaluations on its batch; the dark
    line is its running mean over a twentieth of the run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step" and line["loss"] is not None]
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    x = [line["step"] + 1 for line in steps]
    y = [line["loss"] for line in steps]
    left.plot(x, y, color=PALE, linewidth=0.8, label="each batch")
    left.plot(x, running_mean(y, max(1, len(y) // 20)), color=LOSS, linewidth=1.8, label="running mean")
    dev = _evaluations(lines, "dev")
    left.plot([line["step"] for line in dev], [line["loss"] for line in dev], "o-", color=SCORE, ms=4, label="dev")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend(frameon=False)
    for split, style in (("dev", "o-"), ("test", "s--")):
        scored = [line for line in _evaluations(lines, split) if line.get(metric) is not None]
        right.plot(
            [line["step"] for line in scored],
            [line[metric] for line in scored],
            style,
            color=SCORE if split == "dev" else LOSS,
            ms=4,
            label=split,
        )
    right.set(xlabel="step", ylabel=metric)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.suptitle(title)
    target = folder / "curves.png"
    figure.savefig(target)
    return target


def profile_picture(result: dict[str, Any], path: Path) -> Path:
    """Draw where the time of a step goes, a stacked bar for each candidate of `gradless.cost.profile.profile`'s result.

    Needs matplotlib (extra ``plots``). The suffix of ``path`` says what is written: PNG, SVG or PDF. The dashed line is
    the floor, two forwards of the same batch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {"floor": result["floor"], "eager-mezo": result["eager_mezo"], **result["engines"]}
    rows = {name: row for name, row in rows.items() if row is not None}
    named = {"floor": "two forwards", "eager-mezo": "eager MeZO"}
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(rows)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    unit, factor = ("s", 1.0) if result["floor_seconds"] >= 0.1 else ("ms", 1e3)
    for height, (name, row) in enumerate(rows.items()):
        left = 0.0
        for part, colour in PARTS.items():
            width = result["share"][name].get(part, 0.0) * factor  # older files know no interception
            axes.barh(height, width, left=left, height=0.66, color=colour, label=part if height == 0 else None)
            left += width
        text = f"{row['step_seconds'] * factor:.3g} {unit}   {row['ratio']:.2f} x"
        weight = "bold" if name == result["fastest"] else "normal"
        at: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (left, height), fontweight=weight, **at)
    axes.axvline(result["floor_seconds"] * factor, color="black", linestyle="--", linewidth=1)
    used = {name: row.get("used", name) for name, row in rows.items()}
    labels = [named.get(name, name) if used[name] == name else f"{name} (ran as {used[name]})" for name in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    longest = max(row["step_seconds"] for row in rows.values()) * factor
    axes.set(xlabel=f"{unit} a step (median); dashed: two forwards", xlim=(0, 1.25 * longest))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(PARTS), frameon=False)
    axes.set_title(profile_title(result), fontsize=9)
    figure.savefig(path)
    return path


def profile_title(result: dict[str, Any]) -> str:
    """Return what was measured, and where, in one line."""
    keys = ("model", "scheme", "method", "dtype", "device_name")
    size = f"{result['batch_size']} x {result['length']} tokens"
    threads = [f"{result['threads']} thread(s)"] if result["device"] == "cpu" else []
    return ", ".join([*(result[key] for key in keys[:3]), size, *(result[key] for key in keys[3:]), *threads])


def _evaluations(lines: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "eval" and line["split"] == split]


def running_mean(values: list[float], width: int) -> list[float]:
    """Return the mean of the last ``width`` values at each index."""
    sums = [0.0, *accumulate(values)]
    ends = range(1, len(sums))
    return [(sums[end] - sums[max(0, end - width)]) / min(width, end) for end in ends]

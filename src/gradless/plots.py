"""Pictures of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOSS, SCORE, PALE = "#1f4e79", "#c1571b", "#9db8d2"


def run_picture(folder: Path, *, metric: str = "accuracy", title: str = "") -> Path:
    """Draw loss and dev/test metric over steps from ``metrics.jsonl`` into ``curves.png``.

    Needs matplotlib (extra ``plots``). The training loss is the mean of a step's evaluations on its batch; the dark
    line is its running mean over a twentieth of the run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step" and line["loss"] is not None]
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    x = [line["step"] + 1 for line in steps]
    y = [line["loss"] for line in steps]
    left.plot(x, y, color=PALE, linewidth=0.8, label="each batch")
    left.plot(x, _running_mean(y, max(1, len(y) // 20)), color=LOSS, linewidth=1.8, label="running mean")
    dev = _evaluations(lines, "dev")
    left.plot([line["step"] for line in dev], [line["loss"] for line in dev], "o-", color=SCORE, ms=4, label="dev")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend(frameon=False)
    for split, style in (("dev", "o-"), ("test", "s--")):
        found = [line for line in _evaluations(lines, split) if line.get(metric) is not None]
        right.plot(
            [line["step"] for line in found],
            [line[metric] for line in found],
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


def _evaluations(lines: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "eval" and line["split"] == split]


def _running_mean(values: list[float], width: int) -> list[float]:
    """Mean of the last ``width`` values at each place."""
    return [sum(part) / len(part) for part in (values[max(0, i - width + 1) : i + 1] for i in range(len(values)))]

"""Tables of studies whose result files have a line a run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gradless.lm.metrics import wilson

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NAMES = {"codes": "`codes`", "scales": "`scales`", "lora": "LoRA", "full": "all weights, float32"}
SETTINGS = {"codes": "density", "scales": "eps", "lora": "eps", "full": "eps"}
Line = dict[str, Any]
Table = Callable[..., str]


def lines(name: str) -> list[Line]:
    """The runs in a result file."""
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def quantised_schemes(table: Table) -> str:
    """Ways to tune a 4-bit model: the best searched setting of each, and all seeds with it."""
    runs, rows = lines("quantised-schemes.jsonl"), []
    for task in dict.fromkeys(run["task"] for run in runs):
        untouched = next(run["zero_shot"] for run in runs if run["task"] == task and run["zero_shot"])
        rows.append([task, "untouched model", "", "", f"{untouched['accuracy']:.3f}", f"{untouched['loss']:.3f}", ""])
        for scheme, setting in SETTINGS.items():
            own = [run for run in runs if (run["task"], run["scheme"]) == (task, scheme)]
            best = min((run for run in own if run["seed"] == 1), key=lambda run: run["dev"]["loss"])[setting]
            chosen = [run for run in own if run[setting] == best]
            values = sorted({run[setting] for run in own})
            seconds = statistics.median(run["seconds_per_step"] for run in chosen)
            rows.append(
                [
                    task,
                    NAMES[scheme],
                    f"{setting} {tried(best, values)}",
                    str(len(chosen)),
                    *(spread([run["test"][name] for run in chosen]) for name in ("accuracy", "loss")),
                    f"{seconds:.1f} s",
                ]
            )
    heads = ["", "", "setting, by dev loss of one seed", "seeds", "test accuracy", "test loss", "a step"]
    return table(heads, rows, left=3)


def tried(value: float, values: Iterable[float]) -> str:
    """Return a setting with the others that were tried: ``0.02 (tried: 0.005, 0.06)``."""
    others = [f"{other:g}" for other in values if other != value]
    return f"{value:g} (tried: {', '.join(others)})" if others else f"{value:g}"


def reward_study(table: Table) -> str:
    """Evolution strategies and GRPO on rewards: the best searched rate of each, and others that several seeds had."""
    runs, rows = lines("reward-study.jsonl"), []
    for task in dict.fromkeys(run["task"] for run in runs):
        for method in dict.fromkeys(run["method"] for run in runs if run["task"] == task):
            own = [run for run in runs if (run["task"], run["method"]) == (task, method)]
            first = [run for run in own if run["seed"] == 1]
            best = max(first, key=lambda run: run["after"]["dev"]["reward"][0])["value"]
            values = sorted({run["value"] for run in own})
            seeds = {value: sum(run["value"] == value for run in own) for value in values}
            shown = [run for run in own if run["value"] == best or seeds[run["value"]] > 1]
            for run in sorted(shown, key=lambda run: (run["value"] != best, run["value"], run["seed"])):
                cells = [reward(run[when]["test"]["rewards"]) for when in ("before", "after")]
                pairs = zip(run["before"]["test"]["rewards"], run["after"]["test"]["rewards"], strict=True)
                cells.append(difference([after - before for before, after in pairs]))
                right = f"{run['after']['test']['right'][0]:.2f}"
                rate = tried(run["value"], values)
                numbers = [str(run["steps"]), f"{run['completions']:,}", f"{run['cpu_seconds']:,.0f}"]
                rows.append([task, method, rate, str(run["seed"]), *cells, right, *numbers])
    heads = [
        "",
        "",
        "rate",
        "seed",
        "reward before",
        "after",
        "difference",
        "right after",
        "steps",
        "completions",
        "CPU s",
    ]
    return table(heads, rows, left=3)


LONG_WALK = 9.0
"""What `--lr auto` let every model walk before it measured, in eps."""


def auto_rate(table: Table) -> str:
    """`--lr auto` on a small model by length of the run: beside the best constant of a grid, and two earlier rules."""
    runs, rows = lines("auto-rate.jsonl"), []
    for task, scheme in dict.fromkeys((run["task"], run["scheme"]) for run in runs):
        own = [run for run in runs if (run["task"], run["scheme"]) == (task, scheme)]
        for length in (100, 400, 1000, 2000, 20_000):
            points = [(run, point) for run in own for point in run["points"] if point["step"] == length]
            constant = [(run, point) for run, point in points if run["kind"] in ("rate", "step")]
            if not constant:
                continue
            earlier = [nearest(constant, min(0.45, walk / math.sqrt(length))) for walk in (2.0, LONG_WALK)]
            run, best = max(constant, key=lambda pair: pair[1]["accuracy"])
            name = f"lr {run['value']:g}" if run["kind"] == "rate" else f"{run['value']:.2g} eps"
            measured = [(run, point) for run, point in points if run["kind"] == "auto" and run["steps"] == length]
            cells = [f"{name} (best of {len(constant)})", metrics(best), *map(metrics, earlier)]
            auto, point = measured[0] if measured else (None, None)
            cells += [f"{auto['walk']:g}", f"{auto['step']:.2g} eps"] if auto else ["-", "-"]
            behind = f"{100 * (point['accuracy'] - best['accuracy']):+.1f}" if point else "-"
            rows.append([f"{task}, {scheme}", f"{length:,}", *cells, metrics(point), behind])
    heads = ["", "steps", "best constant", "its dev accuracy (loss)", "walk of 2", "walk of 9"]
    return table([*heads, "walk measured", "its step", "`--lr auto`", "points"], rows, left=1)


def nearest(points: list[tuple[Line, Line]], step: float) -> Line | None:
    """The point of the run whose step is nearest to one, at most 30 % off."""
    steps = [(run["value"], point) for run, point in points if run["kind"] == "step"]
    near = [(abs(value / step - 1), point) for value, point in steps if abs(value / step - 1) < 0.3]
    return min(near, key=lambda pair: pair[0])[1] if near else None


def metrics(point: Line | None) -> str:
    """Accuracy and loss."""
    return f"{point['accuracy']:.3f} ({point['loss']:.3f})" if point else "-"


def reward(values: list[float]) -> str:
    """The mean of rewards in [0, 1] with its 95 % interval."""
    low, high = wilson(sum(values), len(values))
    return f"{statistics.mean(values):.3f} ({low:.3f} to {high:.3f})"


def difference(values: list[float]) -> str:
    """The mean of paired differences with half of its 95 % interval."""
    return f"{statistics.mean(values):+.3f} ± {1.96 * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def spread(values: list[float]) -> str:
    """A mean, with its standard deviation if there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


CANDIDATES = {
    "mezo": "MeZO, all weights",
    "mezo-decay": "MeZO, all weights, falling rate",
    "linear": "MeZO, linear layers, falling rate",
    "per-example": "a direction for each row, linear layers, falling rate",
    "lozo": "LOZO",
    "lozo-momentum": "LOZO with momentum",
    "svrg": "MeZO-SVRG",
    "head": "MeZO, label words' rows, 16 directions over one forward, falling rate",
    "probe": "linear probe",
}


def candidates(table: Table) -> str:
    """Prototypes beside MeZO at twice their forwards: test accuracy at the rate that dev loss chose, over seeds."""
    runs = lines("candidates.jsonl")
    names = list(dict.fromkeys(run["task"] for run in runs))
    rows = []
    for candidate, title in CANDIDATES.items():
        own = [run for run in runs if run["candidate"] == candidate]
        if own:
            forwards = sorted({run["forwards"] for run in own})
            span = f"{forwards[0]:,}" if len(forwards) == 1 else f"{forwards[0]:,} to {forwards[-1]:,}"
            rows.append([title, span, *(_chosen([run for run in own if run["task"] == task]) for task in names)])
    return table(["", "forwards", *names], rows)


def _chosen(runs: list[Line]) -> str:
    """Test accuracy over seeds at the rate with the best mean of the last two dev losses of seed 1."""
    if not runs:
        return "-"

    def loss(run: Line) -> float:
        last = [point["loss"] for point in run["curve"]][-2:]
        return math.inf if None in last else statistics.mean(last)

    first = [run for run in runs if run["seed"] == 1]
    best = min(first, key=loss)["lr"]
    each = [run["test"]["accuracy"] for run in runs if run["lr"] == best]
    few = "" if len(each) == 3 else f" ({len(each)} of 3 seeds)"
    return f"{spread(each)}{few}"

"""Tables of what was measured (files in `benchmarks/results`) and of what the program has; `fields` writes them."""

from __future__ import annotations

import functools
import json
import statistics
from pathlib import Path
from typing import Any

import papers_tables
import peers_tables
import study_tables

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

SIDES = ("gradless", "byzfl", "byzpy")


def table(heads: list[str], rows: list[list[str]], *, left: int = 1) -> str:
    """A Markdown table, its first columns to the left and all others to the right."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def read(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / name).read_text())


def sst2() -> str:
    """Accuracy on SST-2."""
    study = read("sst2-gemma-3-270m.json")
    untouched = next(iter(study["runs"].values()))["zero_shot"]["accuracy"]
    rows = [["zero-shot", f"{untouched:.3f}", "-", "-"]]
    rows += [
        [mode, f"{evaluation['test']['accuracy']:.3f}", "-", "-"] for mode, evaluation in study["evaluations"].items()
    ]
    schemes = dict.fromkeys(run["config"]["scheme"] for run in study["runs"].values())
    for scheme in schemes:
        runs = [run for run in study["runs"].values() if run["config"]["scheme"] == scheme]
        each = [run["test"]["accuracy"] for run in runs]
        config = runs[0]["config"]
        name = f"{config['method']}, {scheme}, lr {config['lr']:g}, eps {config['eps']:g}"
        mean = f"{statistics.mean(each):.3f} ± {statistics.stdev(each):.3f}"
        size = max(run["ledger_bytes"] for run in runs)
        rows.append([name, mean, ", ".join(f"{one:.3f}" for one in each), f"{size:,} bytes"])
    return table(["", "test accuracy", "seeds", "ledger"], rows)


def profile() -> str:
    """Step times."""
    rows = []
    for path in sorted(RESULTS.glob("profile-*.json")):
        figures = json.loads(path.read_text())
        ratios = [
            f"{figures['engines'][engine]['ratio']:.2f}" if engine in figures["engines"] else "-"
            for engine in ("stream", "dual")
        ]
        eager = figures["eager_mezo_seconds"]
        eager = f"{eager / figures['floor_seconds']:.2f}" if eager else "-"
        what = f"{figures['model']}, {figures['scheme']}, {figures['method']}, {figures['dtype']}"
        rows.append([what, f"{figures['floor_seconds']:.2f} s", *ratios, eager])
    return table(["", "floor", "`stream`", "`dual`", "eager MeZO"], rows)


def plan() -> str:
    """Planned against measured memory."""
    rows = []
    for row in read("plan-cpu.json")["whole"]:
        what = f"{row['model'].removeprefix('shape:')}, {row['batch_size']} x {row['length']} tokens"
        way = "forward" if row["method"] == "inference" else f"{row['method']}, {row['scheme']}"
        way += f", `{row['engine']}`" if not row["method"].startswith(("fo", "inference")) else ""
        sizes = [row["planned_bytes"], row["measured_bytes"], row["usual_allocator_bytes"]]
        ratios = [f"{row['ratio']:.2f}", f"{row['usual_allocator_ratio']:.2f}"]
        rows.append([what, way, *(f"{size / 1e9:.2f}" for size in sizes), *ratios])
    heads = ["", "GB", "planned", "alive", "usual allocator", "planned / alive", "planned / usual"]
    return table(heads, rows, left=2)


def plan_profiles() -> str:
    """What a step takes more than a forward."""
    rows = [
        [f"{row['model']}, {row['method']}, {row['scheme']}, `{row['engine']}`"]
        + [f"{row[f'{kind}_bytes'] / 1e9:.2f} GB" for kind in ("planned", "measured")]
        for row in read("plan-cpu.json")["beside_inference"]
    ]
    return table(["a step beside a forward", "planned", "measured"], rows)


def aggregators() -> str:
    """Robust rules against ByzFL's and ByzPy's."""
    rows = []
    for name, row in read("aggregators-cpu.json")["rules"].items():
        cells = [f"{row['gradless_seconds']:.3f} s"]
        for side, ratio in (("byzfl", "speedup"), ("byzpy", "speedup_over_byzpy")):
            cells += [f"{row[f'{side}_seconds']:.3f} s", _times(row[ratio])] if ratio in row else ["", ""]
        errors = [f"{row[f'{side}_error']:.0e}" if f"{side}_error" in row else "" for side in SIDES]
        rows.append([name, *cells, *errors])
    return table(["rule", "gradless", "ByzFL", "faster", "ByzPy", "faster", "error", "ByzFL's", "ByzPy's"], rows)


def _times(ratio: float) -> str:
    return f"{ratio:.0f} x" if ratio >= 3 else f"{ratio:.1f} x"


def auto() -> str:
    """`--lr auto` against tuned learning rates."""

    def finals(name: str) -> dict[tuple[str, str], list[dict[str, Any]]]:
        by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in (RESULTS / name).read_text().splitlines():
            run = json.loads(line)
            if run["phase"] == "final" and run["cell"]["method"] == "mezo":
                by_cell.setdefault((run["cell"]["task"], run["cell"]["scheme"]), []).append(run)
        return by_cell

    tuned, low, untuned = (finals(f"{name}.jsonl") for name in ("study", "lora-rate", "auto"))
    rows = []
    for cell, runs in untuned.items():
        each = [[run["test"]["accuracy"] for run in some] for some in (tuned[cell], low.get(cell, []), runs)]
        means = [f"{statistics.mean(one):.3f} ± {statistics.stdev(one):.3f}" if one else "-" for one in each]
        difference = 100 * (statistics.mean(each[2]) - max(statistics.mean(one) for one in each[:2] if one))
        rows.append([", ".join(cell), f"{tuned[cell][0]['point']['lr']:g}", *means, f"{difference:+.1f}"])
    heads = ["", "chosen lr", "chosen", "lr 6e-4", "`--lr auto`", "points to the better one"]
    return table(heads, sorted(rows))


def methods() -> str:
    """All methods."""
    from gradless.methods import METHODS

    rows = [
        [f"`{name}`", method.summary, method.paper, f"{method.copies:g}", "yes" if method.replays else "no"]
        for name, method in METHODS.items()
    ]
    return table(["method", "", "paper", "float32 copies", "ledger"], rows, left=3)


def tasks() -> str:
    """All tasks."""
    from gradless.tasks import TASKS

    rows = [
        [f"`{name}`", task.title, task.kind, ", ".join(task.labels or ()) or "-", ", ".join(task.metrics)]
        for name, task in sorted(TASKS.items())
    ]
    return table(["task", "", "kind", "classes", "metrics"], rows, left=5)


def committee() -> str:
    """Chances that a drawn committee holds more liars than it stands, in one of 20 draws."""
    chances = read("committee.json")["chances"]
    sizes = sorted({one["committee"] for one in chances})
    rows = []
    for peers, liars in dict.fromkeys((one["peers"], one["liars"]) for one in chances):
        here = {
            one["committee"]: one["chance_in_20_draws"]
            for one in chances
            if (one["peers"], one["liars"]) == (peers, liars)
        }
        rows.append([f"{liars} of {peers:,}", *(_chance(here.get(size)) for size in sizes)])
    return table(["liars", *(f"of {size}" for size in sizes)], rows)


def _chance(value: float | None) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1%}" if value >= 0.001 else f"{value:.0e}"


def agreement_sizes() -> str:
    """Payload of a step of the agreement by the number of peers."""
    rows = [
        [
            f"{one['peers']:,}",
            f"{one['bytes_a_peer_and_step'] / 1000:,.1f} kB",
            f"{one['decided_bytes'] / 1000:,.1f} kB",
        ]
        for one in read("committee.json")["sizes"]
    ]
    return table(["peers", "a peer sends in a step", "a decided step with its certificate"], rows)


TABLES = {
    "committee": committee,
    "agreement_sizes": agreement_sizes,
    "sst2": sst2,
    "profile": profile,
    "plan": plan,
    "plan_profiles": plan_profiles,
    "aggregators": aggregators,
    "auto": auto,
    "methods": methods,
    "tasks": tasks,
    "quantised_schemes": functools.partial(study_tables.quantised_schemes, table),
    "auto_rate": functools.partial(study_tables.auto_rate, table),
    "candidates": functools.partial(study_tables.candidates, table),
    "reward_study": functools.partial(study_tables.reward_study, table),
    **peers_tables.TABLES,
    **{name: functools.partial(write, table) for name, write in papers_tables.TABLES.items()},
}

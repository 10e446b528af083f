"""Tables of what liars do to groups that agree on coefficients (`benchmarks/peers_robustness.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RULES = ("mean", "median", "trimmed-mean", "meamed", "krum", "nnm+trimmed-mean", "nnm+median", "nnm+krum")
ATTACKS = {"none": "nobody lies", "sign-flip": "sign-flip", "alie": "ALIE against the mean", "mimic": "mimic"}
TOY = {
    "honest": "nobody lies",
    "flip": "flip",
    "alie": "alie",
    "worst": "worst",
    "patient": "patient",
    "framer": "framer",
}


def table(heads: list[str], rows: list[list[str]], *, left: int) -> str:
    """A Markdown table, its first columns to the left and all others to the right."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def lines(part: str) -> list[dict[str, Any]]:
    """The lines of a result file, without the one that tells where it was made."""
    return [json.loads(line) for line in (RESULTS / f"peers-{part}.jsonl").read_text().splitlines()][1:]


def peers_push() -> str:
    """Push of the worst liars."""
    pushes = {(one["n"], one["f"], one["K"], one["data"], "leader" in one, one["rule"]): one for one in lines("push")}
    rows = []
    for n, f, width, data, led in dict.fromkeys(key[:5] for key in pushes):
        cells = [pushes.get((n, f, width, data, led, rule)) for rule in RULES]
        shown = ["-" if one is None else "no bound" if one["push"] is None else f"{one['push']:.2f}" for one in cells]
        rows.append([f"{n}, {f}{', a lying leader' if led else ''}", str(width), data, *shown])
    return table(["n, f", "K", "data", *RULES], rows, left=3)


def peers_toy() -> str:
    """Accuracy of small models."""
    results = {tuple(one[key] for key in ("n", "data", "attack", "rule", "memory")): one for one in lines("toy")}
    rows = []
    for n, data in dict.fromkeys(key[:2] for key in results):
        alone = results[n, data, "none", "mean", ""]
        rows.append([str(n), data, "only the honest peers", f"{alone['accuracy']:.3f}", *["-"] * 5])
        for attack, title in TOY.items():
            cells = []
            for rule in ("mean", "trimmed-mean", "nnm+trimmed-mean"):
                cells += [results.get((n, data, attack, rule, memory)) for memory in ("", "lower f")]
            if not any(cells):
                continue
            texts = ["-" if one is None else f"{one['accuracy']:.3f}" for one in cells]
            last = cells[-1]
            wrong = "-" if last is None else f"{last['honest_left_out']:.1%}"
            rows.append([str(n), data, title, *texts[::1], wrong])
    heads = ["n", "data", "", "mean", "+ memory", "trimmed-mean", "+ memory", "nnm+trimmed-mean", "+ memory"]
    return table([*heads, "honest rows left out"], [[*row, *["-"] * (10 - len(row))] for row in rows], left=3)


def peers_real() -> str:
    """Accuracy of SmolLM2."""
    results = lines("real")
    untouched = next(one for one in results if one["run"] == "untouched")
    rows = [["untouched", "-", f"{untouched['accuracy']:.3f}", "-", f"{untouched['accuracy']:.3f}", "-"]]
    runs = {(one["run"], one["rule"], one["split"]): one for one in results if one["run"] != "untouched"}
    for attack, rule in dict.fromkeys(key[:2] for key in runs):
        cells = []
        for split in ("iid", "extreme"):
            one = runs.get((attack, rule, split))
            cells += ["-", "-"] if one is None else [f"{one['accuracy']:.3f}", f"{one['last_loss']:.3f}"]
        rows.append([ATTACKS[attack], rule, *cells])
    return table(["", "rule", "like: accuracy", "loss", "unlike: accuracy", "loss"], rows, left=2)


TABLES = {"peers_push": peers_push, "peers_toy": peers_toy, "peers_real": peers_real}

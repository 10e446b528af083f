"""Gather run directories into one JSON file, and print the README's table from it.

Usage: python benchmarks/collect.py RUNS_DIR TARGET.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

KEPT = (
    "status", "zero_shot", "dev", "test", "interval", "steps", "selected_step", "skipped_steps", "forwards",
    "train_seconds", "seconds_per_step", "peak_memory_bytes", "inference_memory_bytes", "weights_sha256",
    "base_sha256", "data_sha256", "tuned_parameters", "ledger_bytes", "versions",
)  # fmt: skip


def collect(folder: Path) -> dict[str, Any]:
    """Finished runs and evaluations below ``folder`` by name."""
    found: dict[str, Any] = {"runs": {}, "evaluations": {}}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        if "mode" in result:
            kept = {key: result[key] for key in ("mode", "test", "interval", "forwards", "seconds", "versions")}
            found["evaluations"][result["mode"]] = kept
            continue
        config = json.loads((path.parent / "config.json").read_text())
        config["data"] = Path(config["data"]).name if config["data"] else None
        found["runs"][path.parent.name] = {"config": config, **{key: result[key] for key in KEPT}}
    return found


def table(found: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    lines = ["| | test accuracy | seeds | ledger |", "|---|---|---|---|"]
    for mode, evaluation in found["evaluations"].items():
        lines.append(f"| {mode} | {evaluation['test']['accuracy']:.3f} | - | - |")
    schemes = sorted({run["config"]["scheme"] for run in found["runs"].values()})
    for scheme in schemes:
        runs = [run for run in found["runs"].values() if run["config"]["scheme"] == scheme]
        scores = [run["test"]["accuracy"] for run in runs]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        name = f"MeZO {scheme}, lr {runs[0]['config']['lr']:g}, eps {runs[0]['config']['eps']:g}"
        lines.append(
            f"| {name} | {statistics.mean(scores):.3f} +- {spread:.3f} | {', '.join(f'{s:.3f}' for s in scores)} "
            f"| {max(run['ledger_bytes'] for run in runs):,} bytes |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    gathered = collect(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(gathered, indent=1) + "\n")
    print(table(gathered))

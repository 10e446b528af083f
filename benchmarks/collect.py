"""Gather the finished runs and evaluations below a folder into one JSON file.

    python benchmarks/collect.py runs/sst2 benchmarks/results/sst2-gemma-3-270m.json

The documentation makes its table of SST-2 from that file (docs/site/hooks.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

KEPT = (
    *("status", "zero_shot", "dev", "test", "interval", "steps", "selected_step", "skipped_steps", "forwards"),
    *("train_seconds", "seconds_per_step", "peak_memory_bytes", "inference_memory_bytes", "weights_sha256"),
    *("base_sha256", "data_sha256", "tuned_parameters", "ledger_bytes", "versions"),
)


def collect(folder: Path) -> dict[str, Any]:
    """Finished runs and evaluations below ``folder`` by name."""
    gathered: dict[str, Any] = {"runs": {}, "evaluations": {}}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        if "mode" in result:
            kept = {key: result[key] for key in ("mode", "test", "interval", "forwards", "seconds", "versions")}
            gathered["evaluations"][result["mode"]] = kept
            continue
        config = json.loads((path.parent / "config.json").read_text())
        config["data"] = Path(config["data"]).name if config["data"] else None
        gathered["runs"][path.parent.name] = {"config": config, **{key: result[key] for key in KEPT}}
    return gathered


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="its subfolders are run directories")
    parser.add_argument("target", type=Path, help="the JSON file")
    options = parser.parse_args()
    options.target.write_text(json.dumps(collect(options.folder), indent=1) + "\n")

"""Make src/gradless/runs/engines.json, the default engine of a run, from committed profiles.

    python benchmarks/choose_engine.py

For each kind of device and scheme the engine whose ratio to the floor has the lowest geometric mean over all profiles
of method mezo wins. Schemes that were not measured on a device take what won for ``lora`` there: like it, they leave
the base weights alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LIKE_LORA = ("head", "prefix", "prompt")


def profiles() -> list[dict]:
    """All committed profiles."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("profile-*.json"))]


def winners(measured: list[dict]) -> dict[str, dict[str, str]]:
    """Device kind -> scheme -> engine."""
    logs: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for profile in measured:
        if profile["method"] == "mezo":
            for engine, row in profile["engines"].items():
                if row.get("used", engine) == engine:
                    logs[profile["device"].split(":")[0], profile["scheme"]][engine].append(math.log(row["ratio"]))
    chosen: dict[str, dict[str, str]] = defaultdict(dict)
    for (device, scheme), engines in sorted(logs.items()):
        chosen[device][scheme] = min(engines, key=lambda name: sum(engines[name]) / len(engines[name]))
    for schemes in chosen.values():
        if "lora" in schemes:
            schemes.update({scheme: schemes["lora"] for scheme in LIKE_LORA if scheme not in schemes})
    return {device: dict(sorted(schemes.items())) for device, schemes in chosen.items()}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    chosen = json.dumps(winners(profiles()), indent=2)
    (ROOT / "src" / "gradless" / "runs" / "engines.json").write_text(chosen + "\n")
    print(chosen)

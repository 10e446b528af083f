"""The memory that the recipes of published memory need here: planned from the shapes of the models alone.

    python benchmarks/recipe_memory.py [--out FILE]

Computed, not measured: `benchmarks/plan.py` compares plans with runs. A file that is there is completed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gradless.cli.plan import plan as command
from gradless.cost import plan
from gradless.cost.settings import PlanSettings
from gradless.runs import recipes


def main() -> None:
    """Plan what has no entry yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recipe-memory.json"))
    out = parser.parse_args().out
    held = json.loads(out.read_text()) if out.exists() else {}
    for name, one in recipes.recipes().items():
        if one.command[:1] == ("plan",) and name not in held:
            held[name] = planned(list(one.command[1:]))
            out.write_text(json.dumps(held, indent=1) + "\n")


def planned(arguments: list[str]) -> dict[str, Any]:
    """Return bytes of the way that a command of ``gradless plan`` names, and of inference."""
    options = command.make_context("plan", arguments).params
    settings = PlanSettings(**{name: value for name, value in options.items() if name not in ("memory", "json_file")})
    subject = plan.subject(settings, settings.scheme)
    inference = plan.inference(subject)
    need = plan.of_method(subject, settings.method, "stream", settings.method)
    return {"total_bytes": need.total, "weights_bytes": need.weights, "inference_bytes": inference.total}


if __name__ == "__main__":
    main()

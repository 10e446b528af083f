"""Measure what a step takes above inference on small models and small batches, where it weighs most.

Usage: python benchmarks/extra_memory.py benchmarks/results/extra-memory.json     about five minutes, models are fetched

Each row is the high-water mark of the resident set of a process of its own: of one forward pass before anything of
gradless is compiled, and of three steps after it. So Python, the libraries and the code of compiled kernels are in both
figures as a user sees them; how much of the second is compiled code is told apart (``kernels_memory_bytes``).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from gradless.cost import memory
from gradless.cost.settings import FLOOR, ProfileSettings
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import device_name
from gradless.system.progress import Reporter

ENGINES = ("stream", "dual")
MEASURED = [
    (model, scheme, batch_size)
    for model in ("smollm2-135m", "gemma-3-270m")
    for scheme in ("full", "lora")
    for batch_size in (1, 8)
]


def measure(model: str, scheme: str, batch_size: int) -> dict[str, Any]:
    """Peak bytes of inference and of each engine."""
    settings = ProfileSettings(
        model=model, dtype="float32", scheme=scheme, batch_size=batch_size, engines=ENGINES, eager=False
    )
    peaks = memory.in_processes(settings, Reporter(quiet=True))
    return {
        "model": model,
        "scheme": scheme,
        "batch_size": batch_size,
        "length": settings.length,
        "inference_memory_bytes": peaks[FLOOR]["inference_memory_bytes"],
        "engines": {
            name: {
                **peaks[name],
                "ratio": peaks[name]["peak_memory_bytes"] / peaks[FLOOR]["inference_memory_bytes"],
            }
            for name in ENGINES
        },
    }


def main(path: Path) -> None:
    """Write all rows, one after the other, so that a cut loses one."""
    rows: list[dict[str, Any]] = []
    for case in MEASURED:
        rows.append(measure(*case))
        write_json(path, {"versions": versions(), "processor": device_name(torch.device("cpu")), "rows": rows})
        ratios = "  ".join(f"{name} {row['ratio']:.2f}" for name, row in rows[-1]["engines"].items())
        print(*case, f"inference {rows[-1]['inference_memory_bytes'] / 1e9:.2f} GB", ratios, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

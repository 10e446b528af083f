"""What a run on a Ray cluster takes beyond a local one: the same grid of short runs, one at a time, here and there.

    pip install 'gradless[bench,ray]'
    OMP_NUM_THREADS=1 python benchmarks/ray_overhead.py --out benchmarks/results/ray-overhead-cpu.json

The cluster is a new one of this machine alone. The runs take a random model of two layers, so that nearly all of their
time is overhead; it does not grow with the length of a run. A local run is forked from a process that has imported all
and read the model; on a node each imports for itself, at the priority 15 at which Ray starts its workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from gradless.bench import bench
from gradless.system import machine
from gradless.system.progress import Reporter

GRID = """
seeds = {seeds}
budget = {{ forwards = 40 }}
zero_shot = false
[base]
model = "tiny-llama"
lr = 1e-3
own = {{ train = "train.csv", test = "test.csv", template = "{{text}} so", label_column = "label", labels = "0=a,1=b" }}
batch_size = 4
num_dev = 8
[axes]
scheme = ["full"]
method = ["mezo"]
"""


def measured(folder: Path, name: str, on: str | None) -> tuple[dict[str, Any], list[Any]]:
    """Return the times of a grid's runs in seconds, and what does not depend on the machine."""
    out, begun = folder / name, time.perf_counter()
    bench(folder / "grid.toml", out, workers=1, threads=1, on=on, reporter=Reporter(quiet=True))
    seconds = time.perf_counter() - begun
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    hashes = [json.loads(path.read_text())["weights_sha256"] for path in sorted(out.glob("runs/*/result.json"))]
    times = {
        "seconds": seconds,
        "seconds_per_run": seconds / len(rows),
        "median_wall_seconds": statistics.median(row["wall_seconds"] for row in rows),
        "median_overhead_seconds": statistics.median(row["overhead"] for row in rows),
    }
    return times, hashes


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, count in (("train", 32), ("test", 16)):
            rows = [f"film {i} is {'lovely' if i % 2 else 'dull'},{i % 2}" for i in range(count)]
            (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        (folder / "grid.toml").write_text(GRID.format(seeds=list(range(1, arguments.runs + 1))))
        local, hashes = measured(folder, "local", None)
        there, others = measured(folder, "there", "ray")
    figures = {
        "runs": arguments.runs,
        "local": local,
        "ray": there,
        "same_weights": hashes == others,
        "ray_version": metadata.version("ray"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": machine.processor(),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

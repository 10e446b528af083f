"""What backpropagation reaches with the small masked model: AdamW on the tasks of the masked-LM recipes.

    python benchmarks/small_model.py --data FOLDER --work DIR [--tasks sst2 mr] [--out FILE]

Three learning rates a task, one seed, one thread; the rate is the one whose dev accuracy is best, and a line has the
test accuracy at that rate beside that of the untouched model and of the most frequent class. Lines are written as
tasks end, and tasks that have a line are passed over. MNLI is missing: its local files have no training rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import torch

from gradless.runs import train
from gradless.runs.config import TuneConfig
from gradless.system.machine import processor
from gradless.system.progress import Reporter

MODEL: Final = "splade-tiny"
RATES: Final = (3e-5, 1e-4, 3e-4)
FOLDERS: Final = {"snli": "nli", "rte": "superglue"}
"""Folder of a task's rows where it has another name."""
SHOTS: Final = {"sst2": 512, "sst5": 512, "mr": 512, "cr": 256, "agnews": 512, "snli": 256, "rte": 512}
"""Training rows of each class, and as many dev rows: 512, or 256 where the files have fewer than 1,024 of a class."""
TEST: Final = {"rte": 277}


def main() -> None:
    """Make the lines that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with a folder for each task.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--tasks", nargs="+", default=list(SHOTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small-model.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    held = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for task in args.tasks:
        if task not in {line["task"] for line in held}:
            line = ceiling(task, args.data / FOLDERS.get(task, task), args.work)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def ceiling(task: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the line of a task: AdamW at each rate, and the one that dev rows choose."""
    runs = {}
    for lr in RATES:
        config = TuneConfig(
            model=MODEL,
            task=task,
            data=str(data),
            method="fo-adam",
            lr=lr,
            steps=625,
            batch_size=16,
            eval_every=125,
            k_shot=SHOTS[task],
            num_test=TEST.get(task, 500),
            select="metric",
            seed=0,
        )
        out = work / f"{task}-{lr:g}"
        runs[lr] = train.tune(config, out, resume=out.exists(), reporter=Reporter(quiet=True))
    best = max(runs, key=lambda lr: runs[lr]["dev"]["accuracy"])
    chosen = runs[best]
    classes = chosen["data"]["classes"]
    tested = sum(one["rows"]["test"] for one in classes)
    return {
        **{"model": MODEL, "task": task, "method": "fo-adam", "k_shot": SHOTS[task], "seed": 0},
        **{"steps": 625, "lr": best},
        "test": chosen["test"]["accuracy"],
        "test_interval": chosen["interval"]["test"],
        "untouched": chosen["zero_shot"]["accuracy"],
        "majority": max(one["rows"]["test"] for one in classes) / tested,
        "test_rows": tested,
        "dev": {f"{lr:g}": run["dev"]["accuracy"] for lr, run in runs.items()},
        "selected_step": {f"{lr:g}": run["selected_step"] for lr, run in runs.items()},
        "seconds_per_step": chosen["seconds_per_step"],
        "threads": 1,
        "processor": processor()["name"],
        "versions": chosen["versions"],
    }


if __name__ == "__main__":
    main()

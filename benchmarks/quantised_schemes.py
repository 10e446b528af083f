"""Tuning a 4-bit model four ways: its codes, its scales, LoRA over it, and all weights decoded to float32.

    python benchmarks/quantised_schemes.py --data FOLDER --work DIR [--steps 200] [--out FILE]

Every run is `gradless tune` of MeZO on SmolLM2-135M (Q4_1) with ``--lr auto``; one setting of each scheme is searched
over three values, on the first seed, by the loss on dev rows: eps, or for codes the share of codes that move. Where the
best is the least or the largest, the search goes on beyond it, twice at most. Then come two more seeds with the best
value. Test rows are looked at by none of this: a line has the metrics of the step that dev
rows chose. Lines are written as runs end, runs that have a line are passed over, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gradless.runs import train
from gradless.runs.config import TuneConfig
from gradless.system.progress import Reporter

MODEL: Final = "smollm2-135m"
TASKS: Final = ("sst2", "cr")
SEARCH: Final[dict[str, tuple[str, tuple[float, ...]]]] = {
    "codes": ("density", (0.02, 0.005, 0.06)),
    "scales": ("eps", (1e-4, 3e-5, 3e-4)),
    "lora": ("eps", (1e-2, 3e-3, 3e-2)),
    "full": ("eps", (1e-3, 3e-4, 3e-3)),
}
"""What is searched, and where: the first value is the default."""
SEEDS: Final = (1, 2, 3)
FIRST, BEYOND, FURTHER = 3, 2, 10**0.5
"""Values of a search, how many more at an end of it, and their ratio."""


def main() -> None:
    """Make the runs that have no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the folders sst2 and cr.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantised-schemes.jsonl"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--num-test", type=int, default=500)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for task, scheme, value, seed in runs(args.tasks, args.steps, lines):
        line = {"task": task, "scheme": scheme, SEARCH[scheme][0]: value, "seed": seed, "steps": args.steps}
        result = one(task, scheme, value, seed, args)
        kept = (
            "status",
            "selected_step",
            "zero_shot",
            "dev",
            "test",
            "forwards",
            "seconds_per_step",
            "peak_memory_bytes",
        )
        line |= {name: result[name] for name in kept} | {"num_test": args.num_test}
        lines.append(line)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def runs(tasks: list[str], steps: int, lines: list[dict[str, Any]]) -> Iterator[tuple[str, str, float, int]]:
    """Yield the runs without a line, in an order in which every prefix is of use: first all schemes as they are."""
    first = SEEDS[0]
    asked = [(task, scheme, SEARCH[scheme][1][index]) for index in range(3) for task in tasks for scheme in SEARCH]
    for task, scheme, value in asked:
        if line_of(lines, task, scheme, steps, value, first) is None:
            yield task, scheme, value, first
    for task in tasks:
        for scheme in SEARCH:
            while (value := beyond(searched(lines, task, scheme, steps))) is not None:
                yield task, scheme, value, first
    for seed in SEEDS[1:]:
        for task in tasks:
            for scheme in SEARCH:
                losses = searched(lines, task, scheme, steps)
                best = min(losses, key=losses.__getitem__)
                if line_of(lines, task, scheme, steps, best, seed) is None:
                    yield task, scheme, best, seed


def searched(lines: list[dict[str, Any]], task: str, scheme: str, steps: int) -> dict[float, float]:
    """Return the dev losses of the first seed by the values that were searched."""
    wanted = {"task": task, "scheme": scheme, "steps": steps, "seed": SEEDS[0]}
    return {line[SEARCH[scheme][0]]: line["dev"]["loss"] for line in lines if wanted.items() <= line.items()}


def beyond(losses: dict[float, float]) -> float | None:
    """Return the next value of a search whose best one is at an end; None where it is inside, or after `BEYOND`."""
    least, *_, largest = sorted(losses)
    best = min(losses, key=losses.__getitem__)
    if best not in (least, largest) or len(losses) >= FIRST + BEYOND:
        return None
    return float(f"{best / FURTHER if best == least else best * FURTHER:.1g}")


def line_of(
    lines: list[dict[str, Any]], task: str, scheme: str, steps: int, value: float, seed: int
) -> dict[str, Any] | None:
    """Return the line of a run, if it has one."""
    wanted = {"task": task, "scheme": scheme, "steps": steps, "seed": seed, SEARCH[scheme][0]: value}
    return next((line for line in lines if wanted.items() <= line.items()), None)


def one(task: str, scheme: str, value: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a run; one that was stopped goes on."""
    config = TuneConfig(
        model=MODEL,
        task=task,
        data=str(args.data / task),
        scheme=scheme,
        dtype="float32" if scheme == "full" else None,
        steps=args.steps,
        batch_size=8,
        lr="auto",
        engine="dual" if scheme == "lora" else "stream",
        seed=seed,
        num_train=500,
        num_dev=64,
        num_test=args.num_test,
        max_length=64,
        eval_every=max(1, args.steps // 2),
        zero_shot=seed == SEEDS[0] and value == SEARCH[scheme][1][0] and scheme == "lora",
        **{SEARCH[scheme][0]: value},
    )
    folder = args.work / f"{task}-{scheme}-{value:g}-{seed}-{args.steps}"
    return train.tune(config, folder, resume=folder.exists(), reporter=Reporter(quiet=True))


if __name__ == "__main__":
    main()

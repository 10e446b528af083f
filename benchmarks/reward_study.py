"""Training on a reward: evolution strategies beside GRPO of TRL, at equal CPU seconds, on a small model.

    python benchmarks/reward_study.py --work DIR [--out FILE] [--tasks sums squad-greedy ...] [--data FOLDER]

Every run is a process of its own with one thread. The learning rate of GRPO is searched on the first seed, by the mean
reward of greedy completions of dev rows, and ends with a value that earns all there is; where the best value is the
least or the largest, the search goes on beyond it, twice at most. Evolution strategies have one rate, which is not
searched. Then come two more seeds with the best value. GRPO has the CPU seconds (``time.process_time`` of the training
process) that the first run of ours took, and as many completions a step. Lines are written as runs end, and runs that
have a line are passed over.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

METHODS: Final = ("es", "grpo")
GRPO_RATES: Final = (1e-3, 3e-4, 1e-4)
ES_RATES: Final = {"sums": (0.024,), "squad": (0.002,), "squad-greedy": (0.002,), "countdown": (0.024,)}
"""Learning rates that are searched; one alone is not."""
FACTOR: Final = 10**0.5
"""How far a search goes on beyond its best value."""
SEEDS: Final = (1, 2, 3)
BEYOND: Final = 2  # values at most that a search goes on with
Line = dict[str, Any]


def main() -> None:
    """Make the runs that have no line yet, or one run, as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reward-study.jsonl"))
    parser.add_argument("--tasks", nargs="+", default=["sums", "squad", "squad-greedy", "countdown"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--data", type=Path, help="Folder of squad.")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(one(args, **json.loads(args.run))))
        return
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for task in args.tasks:
        for method, seed, value in missing(task, args.methods, lines):
            lines.append(process(args, task, method, seed, value, budget(lines, task, method)))
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")


def missing(task: str, methods: list[str], lines: list[Line]) -> Iterator[tuple[str, int, float]]:
    """Yield the runs of a task that have no line yet, in an order in which every prefix is of use."""
    for number in range(max(len(rates(task, method)) for method in methods)):
        for method in methods:
            if number >= len(rates(task, method)) or perfect(searched(lines, task, method)):
                continue
            value = rates(task, method)[number]
            if line_of(lines, task, method, SEEDS[0], value) is None:
                yield method, SEEDS[0], value
    for method in methods:
        while (value := beyond(searched(lines, task, method), rates(task, method))) is not None:
            yield method, SEEDS[0], value
    for seed in SEEDS[1:]:
        for method in methods:
            value = best(searched(lines, task, method))
            if line_of(lines, task, method, seed, value) is None:
                yield method, seed, value


def rates(task: str, method: str) -> tuple[float, ...]:
    return ES_RATES[task] if method == "es" else GRPO_RATES


def searched(lines: list[Line], task: str, method: str) -> dict[float, float]:
    """Mean rewards of dev rows by value, on the first seed."""
    wanted = (task, method, SEEDS[0])
    return {
        line["value"]: line["after"]["dev"]["reward"][0]
        for line in lines
        if (line["task"], line["method"], line["seed"]) == wanted
    }


def best(values: dict[float, float]) -> float:
    """The value with the largest reward; the least of several."""
    return min(values, key=lambda value: (-values[value], value))


def perfect(values: dict[float, float]) -> bool:
    """Whether some value earned all that can be earned."""
    return max(values.values(), default=0.0) >= 1.0


def beyond(values: dict[float, float], grid: tuple[float, ...]) -> float | None:
    """The next value where the best one is at an end of those that were tried."""
    top = best(values)
    if (
        perfect(values)
        or len(values) == 1
        or len(values) >= len(grid) + BEYOND
        or top not in (min(values), max(values))
    ):
        return None
    return float(f"{top * FACTOR if top == max(values) else top / FACTOR:.2g}")


def budget(lines: list[Line], task: str, method: str) -> float | None:
    """CPU seconds that a run may take: those of the first run of evolution strategies; None: of these themselves."""
    if method == "es":
        return None
    return float(next(line["cpu_seconds"] for line in lines if (line["task"], line["method"]) == (task, "es")))


def line_of(lines: list[Line], task: str, method: str, seed: int, value: float) -> Line | None:
    wanted = (task, method, seed, value)
    return next((one for one in lines if (one["task"], one["method"], one["seed"], one["value"]) == wanted), None)


def process(args: argparse.Namespace, task: str, method: str, seed: int, value: float, limit: float | None) -> Line:
    """The line of a run, which is made in a process of its own."""
    asked = {"task": task, "method": method, "seed": seed, "value": value, "budget": limit}
    command = [sys.executable, __file__, "--work", str(args.work), "--run", json.dumps(asked)]
    if args.data:
        command += ["--data", str(args.data)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    output = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def one(args: argparse.Namespace, *, task: str, method: str, seed: int, value: float, budget: float | None) -> Line:
    """Make a run in this process."""
    import torch

    torch.set_num_threads(1)
    from reward_parts import methods

    from gradless.runs.record import versions
    from gradless.system.machine import processor

    work = args.work / f"{task}-{method}-{seed}-{value:g}"
    result = methods.run(task, method, seed, value, budget=budget, data=args.data, work=work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = {"task": task, "method": method, "seed": seed, "value": value, **result, "peak_memory_bytes": peak}
    return {**line, "processor": processor(), "versions": versions()}


if __name__ == "__main__":
    main()

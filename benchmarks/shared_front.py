"""Measure a step over the label words' rows alone, with the frozen body computed for each point and once.

Usage: python benchmarks/shared_front.py RESULT.json [--models splade-tiny smollm2-135m] [--queries 1 16] [--rounds 5]

MeZO under the scheme head. ``each`` and ``shared`` are the engine ``stream``, without and with the body shared by the
points of a step; ``dual`` shares it among up to eight. All take turns in one process over one batch (16 x 40 tokens).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from gradless.cost import workload
from gradless.cost.settings import ProfileSettings
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import device_name

ENGINES = {"each": "stream", "shared": "stream", "dual": "dual"}
WARMUP = 2


def measure(subject: workload.Subject, queries: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of a step by the way that it takes."""
    ways = {
        name: workload.optimizer(subject, engine=engine, defer=True, queries=queries)
        for name, engine in ENGINES.items()
    }
    ways["shared"].reuse_prefixes(subject.lm.model)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARMUP + rounds):
        for name, optimizer in ways.items():
            begun = time.perf_counter()
            optimizer.step(subject.closure)
            if turn >= WARMUP:
                seconds[name].append(time.perf_counter() - begun)
    return {name: 1e3 * statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    """Measure and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--models", nargs="+", default=["splade-tiny", "smollm2-135m"])
    parser.add_argument("--queries", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = {}
    with workload.threads(1):
        for model in args.models:
            subject = workload.subject(ProfileSettings(model=model, dtype="float32", scheme="head"), print)
            for queries in args.queries:
                row = rows[f"{model}, {2 * queries} points"] = measure(subject, queries, args.rounds)
                print(model, 2 * queries, "  ".join(f"{way} {each:.0f} ms" for way, each in row.items()), flush=True)
    machine = {"processor": device_name(torch.device("cpu")), "threads": 1, "versions": versions()}
    write_json(args.result, {"rounds": args.rounds, **machine, "milliseconds": rows})


if __name__ == "__main__":
    main()

"""Measure what waiting for an embedding's rows costs: a step under three policies of writing the leaf.

Usage: python benchmarks/row_updates.py RESULT.json [--model splade-tiny] [--methods mezo mezo-rms fzoo] [--rounds 3]

``now`` is the policy of `gradless.forward.deferred`, ``late`` writes a leaf that is read by rows every 64 steps,
``each`` in every step. Weights and losses are the same bits under all three. The policies take turns of 64 steps
in one process after 128 steps that fill the windows of momentum; figures are medians of their mean steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from gradless.cost import workload
from gradless.cost.settings import ProfileSettings
from gradless.forward import deferred
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import device_name

POLICIES = {"now": deferred.PASS, "late": float("inf"), "each": 0}
TURN = deferred.LIMIT


def measure(model: str, method: str, rounds: int) -> dict[str, float]:
    """Return the milliseconds of a step under each policy."""
    subject = workload.subject(ProfileSettings(model=model, dtype="float32", scheme="full", method=method), print)
    step = workload.candidate(subject, "stream").step
    seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for _ in range(2 * TURN):
        step()
    for _ in range(rounds):
        for policy, factor in POLICIES.items():
            deferred.PASS = factor
            begun = time.perf_counter()
            for _ in range(TURN):
                step()
            seconds[policy].append((time.perf_counter() - begun) / TURN)
    return {policy: 1e3 * statistics.median(each) for policy, each in seconds.items()}


def main() -> None:
    """Measure and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--model", default="splade-tiny")
    parser.add_argument("--methods", nargs="+", default=["mezo", "mezo-rms", "fzoo"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with workload.threads(1):
        rows = {method: measure(args.model, method, args.rounds) for method in args.methods}
    machine = {"processor": device_name(torch.device("cpu")), "threads": 1, "versions": versions()}
    write_json(args.result, {"model": args.model, "rounds": args.rounds, **machine, "milliseconds": rows})
    for method, row in rows.items():
        print(method, "  ".join(f"{policy} {each:.1f} ms" for policy, each in row.items()))


if __name__ == "__main__":
    main()

"""Measure the host's share of a step on a CPU: wall clock, fresh pages, context switches and resident memory.

Usage: python benchmarks/cpu_step.py MODEL RESULT.json [--method mezo] [--rounds 9] [--candidates floor dual ...]

Candidates take turns in one process; figures are medians over the rounds. ``floor`` is two forwards of the batch and
nothing else; ``dual`` and ``stream`` defer their updates, as `tune` and the Trainer do; with ``-at-once`` behind the
name an engine writes them in the step, as ``gl.mezo(...)`` does by default. The share of sweeps is measured in two
steps of its own, with torch's profiler.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from gradless.cost import time_shares, workload
from gradless.cost.settings import FLOOR, ProfileSettings
from gradless.cost.turns import WARMUP, Candidate
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import device_name

AT_ONCE = "-at-once"
FIGURES = ("seconds", "minor_faults", "voluntary_switches", "involuntary_switches", "system_seconds")


def _candidate(subject: workload.Subject, name: str) -> Candidate:
    """Return the floor or an engine."""
    if not name.endswith(AT_ONCE):
        return workload.candidate(subject, name)
    opt = workload.optimizer(subject, engine=name.removesuffix(AT_ONCE))
    return Candidate(name, lambda: opt.step(subject.closure), opt)


def _used() -> tuple[float, ...]:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), now.ru_minflt, now.ru_nvcsw, now.ru_nivcsw, now.ru_stime


def _resident() -> int:
    """Return the resident bytes of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def measure(subject: workload.Subject, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Return the figures of every candidate."""
    candidates = [_candidate(subject, name) for name in names]
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for turn in range(WARMUP + rounds):
        first = turn % len(candidates)
        for candidate in (*candidates[first:], *candidates[:first]):
            before = _used()
            candidate.step()
            after = _used()
            if turn >= WARMUP:
                samples[candidate.name].append(tuple(b - a for a, b in zip(before, after, strict=True)))
    rows: dict[str, dict[str, Any]] = {
        name: dict(zip(FIGURES, map(statistics.median, zip(*samples[name], strict=True)), strict=True))
        for name in names
    }
    for candidate in candidates:
        row = rows[candidate.name]
        row["ratio"] = row["seconds"] / rows[FLOOR]["seconds"] if FLOOR in rows else None
        shares = time_shares.measure(candidate.step, lambda: None).of
        row["shares"] = {name: share * row["seconds"] for name, share in shares.items()}
    return rows


def main() -> None:
    """Measure and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("result", type=Path)
    parser.add_argument("--scheme", default="full")
    parser.add_argument("--method", default="mezo")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--candidates", nargs="+", default=[FLOOR, "dual", "dual" + AT_ONCE, "stream"])
    args = parser.parse_args()
    settings = ProfileSettings(model=args.model, dtype="float32", scheme=args.scheme, method=args.method)
    with workload.threads(None):
        rows = measure(workload.subject(settings, print), args.candidates, args.rounds)
        result = {
            "model": args.model,
            "scheme": args.scheme,
            "method": args.method,
            "batch_size": settings.batch_size,
            "length": settings.length,
            "rounds": args.rounds,
            "processor": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "resident_bytes": _resident(),
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "candidates": rows,
        }
    write_json(args.result, result)
    for name, row in rows.items():
        ratio = f"{row['ratio']:.3f}" if row["ratio"] else ""
        shares = "  ".join(f"{kind} {seconds:.3f}" for kind, seconds in row["shares"].items())
        print(f"{name:16} {row['seconds']:.3f} s {ratio:6} faults {row['minor_faults']:.0f}", end=" ")
        print(f"switches {row['voluntary_switches']:.0f}+{row['involuntary_switches']:.0f} {shares}")
    print(f"resident {result['resident_bytes'] / 1e6:.0f} MB, peak {result['peak_resident_bytes'] / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

"""Compare `gradless plan` with measured peaks: committed profiles, and processes that this script runs.

Usage: OMP_NUM_THREADS=1 python benchmarks/plan.py [--json benchmarks/results/plan-cpu.json]     a few minutes

A child process measures its resident set before there is a model (Python, torch, transformers, compiled kernels), and
its peak while it runs; what lies between is compared with the planned total. It runs twice: as it is, and with an
allocator that gives memory back at once (`RETURNING`), which tells what is alive from what glibc keeps for later.
Weights are random, so none are mapped from a file. Committed profiles did not measure the time before a model; of
those, what a step takes more than a forward is compared.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from gradless.cost import memory, plan, workload
from gradless.runs.record import versions
from gradless.system.machine import device_name
from gradless.system.peak_memory import PeakMeter

RESULTS = Path(__file__).parent / "results"
PROFILES = ("profile-cpu-gemma-3-270m-full-mezo.json", "profile-cpu-smollm2-135m-full-mezo.json")
INFERENCE = "inference"
STEPS = 3
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
# model, batch, tokens, then method, scheme, engine
MEASURED = [
    ("shape:opt-125m", 8, 128, way)
    for way in (
        (INFERENCE, "full", "stream"),
        ("mezo", "full", "stream"),
        ("mezo", "full", "dual"),
        ("mezo", "full", "in-place"),
        ("mezo", "lora", "stream"),
        ("lozo", "full", "stream"),
        ("zo-adam", "full", "stream"),
        ("fo-adam", "lora", "stream"),
        ("fo-adam-ckpt", "full", "stream"),
        ("fo-adam", "full", "stream"),
    )
] + [
    ("shape:roberta-large", 4, 64, way)
    for way in ((INFERENCE, "full", "stream"), ("mezo", "full", "dual"), ("fo-adam", "lora", "stream"))
]


def settings_of(model: str, rows: int, length: int, way: tuple[str, str, str]) -> workload.Settings:
    """The same to `gradless profile`."""
    method, scheme, engine = way
    method = "mezo" if method == INFERENCE else method
    return workload.Settings(
        model=model, batch_size=rows, length=length, method=method, scheme=scheme, engines=(engine,), threads=1
    )


def child(number: int) -> None:
    """Measure one row and print it."""
    torch.set_num_threads(1)
    model, rows, length, way = MEASURED[number]
    settings = settings_of(model, rows, length, way)
    small = workload.subject(workload.Settings(model="tiny-opt", method=settings.method, scheme=way[1]), print)
    run(small, way)
    del small
    gc.collect()
    device = torch.device("cpu")
    before = memory._now(device)
    meter = PeakMeter(device)
    with meter.measured():
        run(workload.subject(settings, print), way)
    print(json.dumps({"before": before, "peak": meter.peak}))


def run(subject: workload.Subject, way: tuple[str, str, str]) -> None:
    """A forward, or steps of an engine."""
    if way[0] == INFERENCE:
        with torch.no_grad():
            subject.closure()
        return
    step = workload.candidate(subject, way[2]).step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            if "ckpt" in way[0]:
                from gradless.forward import model_blocks

                with model_blocks.checkpointing([block for _, block in model_blocks.blocks(subject.lm.model)]):
                    step()
            else:
                step()


def planned(model: str, rows: int, length: int, way: tuple[str, str, str]) -> plan.Need:
    """What the planner says of one row, in float32 as on a CPU."""
    method, scheme, engine = way
    settings = plan.Settings(model=model, batch_size=rows, length=length, dtype="float32")
    subject = plan.subject(settings, scheme)
    return plan.inference(subject) if method == INFERENCE else plan.of_method(subject, method, engine, method)


def measured_rows() -> list[dict[str, Any]]:
    """Every row of `MEASURED`, each in a process of its own."""
    entries = []
    for number, (model, rows, length, way) in enumerate(MEASURED):
        command, peaks = [sys.executable, __file__, "--child", str(number)], []
        for more in (RETURNING, {}):
            output = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **more}
            ).stdout
            measured = json.loads(output.splitlines()[-1])
            peaks.append(measured["peak"] - measured["before"])
        need = planned(model, rows, length, way)
        entry = row(model, rows, length, way, need.total, peaks[0])
        entries.append({**entry, "usual_allocator_bytes": peaks[1], "usual_allocator_ratio": need.total / peaks[1]})
        print(line(entries[-1]), flush=True)
    return entries


def profiled_rows() -> list[dict[str, Any]]:
    """What a step takes more than inference, in committed profiles; the kernels' code is taken out."""
    entries = []
    for name in PROFILES:
        profile = json.loads((RESULTS / name).read_text())
        model, rows, length = profile["model"], profile["batch_size"], profile["length"]
        forward = planned(model, rows, length, (INFERENCE, "full", "stream")).total
        for engine, entry in profile["engines"].items():
            way = (profile["method"], profile["scheme"], engine)
            more = entry["peak_memory_bytes"] - entry["inference_memory_bytes"] - entry["kernels_memory_bytes"]
            need = planned(model, rows, length, way)
            entries.append({**row(model, rows, length, way, need.total - forward, more), "file": name})
            print(line(entries[-1]), flush=True)
    return entries


def row(model: str, rows: int, length: int, way: tuple[str, str, str], guess: int, truth: int) -> dict[str, Any]:
    """One line of the table."""
    return {
        **{"model": model, "batch_size": rows, "length": length},
        **dict(zip(("method", "scheme", "engine"), way, strict=True)),
        **{"planned_bytes": guess, "measured_bytes": truth},
        "ratio": guess / truth,
    }


def line(entry: dict[str, Any]) -> str:
    """One line for people."""
    what = f"{entry['model']} {entry['method']} {entry['scheme']} {entry['engine']}"
    sizes = f"{entry['planned_bytes'] / 1e6:9.1f} {entry['measured_bytes'] / 1e6:9.1f} MB {entry['ratio']:6.2f}"
    usual = f" {entry['usual_allocator_ratio']:6.2f}" if "usual_allocator_ratio" in entry else ""
    return f"{what:<50} {sizes}{usual}"


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS / "plan-cpu.json")
    parser.add_argument("--child", type=int)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    result = {
        "whole": measured_rows(),
        "beside_inference": profiled_rows(),
        "device_name": device_name(torch.device("cpu")),
        "versions": versions(),
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

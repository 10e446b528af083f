"""Weights kept in 16 bits and computed with in float32 on a CPU: time of a step and memory of a run, and hashing.

    python benchmarks/compute_dtype.py --json benchmarks/results/compute-dtype-cpu.json

Of each model a checkpoint in bfloat16 is written. Then steps of three kinds take turns in one process: float32 weights,
bfloat16 weights under --compute-dtype float32, and bfloat16 products. Seconds are those of the processor (one thread),
so that others at work on the machine weigh on all alike. A process of its own for each kind of weights tells the memory
of a run of two steps: what is anonymous, what are pages of the checkpoint, and the peak. One linear layer is timed in
each type, with all instructions that the processor has and with those of AVX2 alone; steps of the first two kinds are
timed with AVX2 alone as well. The kernels are timed on four million weights of each type. Last, the hash of a file:
read, and remembered. Every part is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {
    "float32": {"dtype": "float32"},
    "bfloat16, float32 products": {"dtype": "bfloat16", "compute_dtype": "float32"},
    "bfloat16 products": {"dtype": "bfloat16", "compute_dtype": "bfloat16"},
}


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma-3-270m"])
    parser.add_argument("--schemes", nargs="+", default=["full", "lora"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of a step that is timed")
    parser.add_argument("--child", nargs="+")
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    results: dict[str, Any] = {"command": "benchmarks/compute_dtype.py " + " ".join(sys.argv[1:]), **machine()}
    results |= {"batch_size": options.batch_size, "length": options.length, "rounds": options.rounds}

    def keep(name: str, values: Any) -> None:
        results[name] = values
        print(name, json.dumps(values), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    keep("linear_layer", {isa or "all": run(["linear"], ONEDNN_MAX_CPU_ISA=isa) for isa in ("", "AVX2")})
    keep("kernels", run(["kernels"]))
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            checkpoint = str(Path(folder) / model)
            run(["save", model, checkpoint])
            sizes = ["--batch-size", str(options.batch_size), "--length", str(options.length)]
            for scheme in options.schemes:
                keep(
                    f"memory, {model}, {scheme}",
                    {kind: run(["memory", checkpoint, scheme, kind], *sizes) for kind in list(KINDS)[:2]},
                )
                rounds = ["--rounds", str(options.rounds)]
                keep(f"step, {model}, {scheme}", run(["step", checkpoint, scheme], *sizes, *rounds))
                slow = ["--kinds", *list(KINDS)[:2], *rounds]  # 16-bit products would take minutes
                child_arguments = ["step", checkpoint, scheme]
                keep(
                    f"step with AVX2, {model}, {scheme}", run(child_arguments, *sizes, *slow, ONEDNN_MAX_CPU_ISA="AVX2")
                )
            weights = Path(checkpoint) / "model.safetensors"
            keep(f"hash, {model}", run(["hash", str(weights)], GRADLESS_CACHE=folder + "/cache"))


def run(child_arguments: list[str], *more: str, **environment: str) -> Any:
    """Return what a process of its own prints last."""
    command = [sys.executable, __file__, *more, "--child", *child_arguments]
    own = os.environ | {"OMP_NUM_THREADS": "1", **{name: value for name, value in environment.items() if value}}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def child(options: argparse.Namespace) -> None:
    """Do what a process is for, and print the result."""
    what, *arguments = options.child
    jobs: dict[str, Callable[..., Any]] = {
        "save": save,
        "linear": linear,
        "kernels": kernels,
        "hash": hashing,
        "memory": lambda *own: memory(*own, options),
        "step": lambda *own: step(*own, options),
    }
    print(json.dumps(jobs[what](*arguments)))


def machine() -> dict[str, Any]:
    """Return what the processor is called here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = dict(line.split("\t", 1) for line in lines if "\t" in line)
    names = ("cpu family", "model", "model name")
    return {name: facts[name].split(":")[-1].strip() for name in names if name in facts}


def save(model: str, folder: str) -> None:
    """Write a model as a checkpoint in bfloat16."""
    from gradless import lm

    loaded = lm.load(model, dtype="bfloat16")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def optimizer(checkpoint: str, scheme: str, kind: str, options: argparse.Namespace) -> tuple[Any, Any]:
    """Return an optimizer over a model, and the loss of a batch of random tokens."""
    import torch

    import gradless as gl
    from gradless import lm
    from gradless.lm import schemes

    tuned = schemes.apply(lm.load(checkpoint, **KINDS[kind]), scheme)
    ids = torch.arange(options.batch_size * options.length).view(options.batch_size, -1) * 7 % 5000 + 10
    logits: Any = tuned.model

    def closure() -> torch.Tensor:
        hidden = logits(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        return hidden.float().logsumexp(-1).mean()

    eps = {"full": 1e-3, "lora": 1e-2}[scheme]
    return gl.mezo(schemes.trainable(tuned), lr=1e-7, eps=eps, engine="dual", defer=True), closure


def memory(checkpoint: str, scheme: str, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Return megabytes after two steps, and the peak."""
    opt, closure = optimizer(checkpoint, scheme, kind, options)
    for _ in range(2):
        opt.step(closure)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    names = {"anonymous": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    return {name: round(int(status[field].split()[0]) / 1e3) for name, field in names.items()}


def step(checkpoint: str, scheme: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of the processor for a step of every kind, in turns, and the ratios of a round."""
    optimizers = {kind: optimizer(checkpoint, scheme, kind, options) for kind in options.kinds}
    coefficients = {}
    for kind, (opt, closure) in optimizers.items():
        coefficients[kind] = opt.step_with(closure)[0].sketch.coeffs[0]
        opt.step(closure)
    seconds: dict[str, list[float]] = {kind: [] for kind in optimizers}
    for _ in range(options.rounds):
        for kind, (opt, closure) in optimizers.items():
            start = time.process_time()
            opt.step(closure)
            seconds[kind].append(time.process_time() - start)
    base = seconds["float32"]
    return {
        "first_coefficient": coefficients,
        "seconds_median": {kind: round(statistics.median(values), 3) for kind, values in seconds.items()},
        "seconds_minimum": {kind: round(min(values), 3) for kind, values in seconds.items()},
        "ratio_median": {
            kind: round(statistics.median(a / b for a, b in zip(values, base, strict=True)), 3)
            for kind, values in seconds.items()
        },
        "ratio_of_minima": {kind: round(min(values) / min(base), 3) for kind, values in seconds.items()},
    }


def linear() -> dict[str, float]:
    """Return nanoseconds a weight of one product with 160 tokens, the best of several, by type."""
    import torch
    from torch.nn.functional import linear as product

    best: dict[str, float] = {}
    for _ in range(10):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, weight = torch.ones(160, 576, dtype=dtype), torch.ones(576, 576, dtype=dtype)
            start = time.process_time()
            product(x, weight)
            nanoseconds = (time.process_time() - start) / weight.numel() * 1e9
            name = str(dtype).removeprefix("torch.")
            best[name] = min(best.get(name, nanoseconds), nanoseconds)
    return {name: round(value, 2) for name, value in best.items()}


def kernels() -> dict[str, dict[str, float]]:
    """Return nanoseconds a weight of updates and branches, medians of turns, by type.

    Wide branches are float32, own ones of the type of the leaf; both: an update and two wide branches in one visit.
    """
    import torch

    from gradless import rng
    from gradless.kernels import DTYPES, NOTHING, fan, program, sweep

    size, leaf = 1 << 22, rng.leaf_id("weights")
    step, near = program([(1.0, [11], [1e-5])], rounding=[3]), program([(1.0, [11], [1e-5])])
    probes, mask = program([(1.0, [17], [1e-3])], rounding=[5]), torch.arange(size) % 3 > 0
    wide, jobs = torch.empty(2, size), {}
    branches: Any = {"leaf": leaf, "mirrored": True}
    for dtype in DTYPES:
        p, own = (rng.normal(0, "weights", (size,)) * 0.02).to(dtype), torch.empty(2, size, dtype=dtype)
        jobs[dtype] = {
            "update": lambda p=p: sweep(p, p, step, leaf=leaf),
            "update to nearest": lambda p=p: sweep(p, p, near, leaf=leaf),
            "update with a mask": lambda p=p: sweep(p, p, step, leaf=leaf, mask=mask),
            "wide branches": lambda p=p: fan(wide, p, NOTHING, probes, keep=False, **branches),
            "own branches": lambda p=p, own=own: fan(own, p, NOTHING, probes, keep=False, **branches),
            "both": lambda p=p: fan(wide, p, step, probes, keep=True, **branches),
        }
    seconds: dict[tuple[Any, str], list[float]] = {}
    for turn in range(10):
        for dtype, own_jobs in jobs.items():
            for name, job in own_jobs.items():
                start = time.process_time()
                job()
                if turn:  # the first one compiles
                    seconds.setdefault((dtype, name), []).append((time.process_time() - start) / size * 1e9)
    return {
        str(dtype).removeprefix("torch."): {
            name: round(statistics.median(seconds[dtype, name]), 2) for name in own_jobs
        }
        for dtype, own_jobs in jobs.items()
    }


def hashing(path: str) -> dict[str, float]:
    """Return gigabytes a second of the processor for a file that is read, and seconds for one that is remembered."""
    from gradless.system.file_hashes import sha256

    file = Path(path)
    time.sleep(max(0.0, file.stat().st_ctime + 3 - time.time()))  # a file of this moment is not remembered
    size, results = file.stat().st_size, {"gigabytes": round(file.stat().st_size / 1e9, 3)}
    for name in ("read", "remembered"):
        start, wall = time.process_time(), time.perf_counter()
        sha256(file)
        results[f"{name}_seconds"] = round(time.perf_counter() - wall, 5)
        results[f"{name}_processor_seconds"] = round(time.process_time() - start, 5)
    results["gigabytes_a_processor_second"] = round(size / 1e9 / results["read_processor_seconds"], 2)
    return results


if __name__ == "__main__":
    main()

"""Measure float32 products, and steps made of them, with MKL and with oneDNN; torch brings both.

Usage: python benchmarks/float32_products.py RESULT.json [--models splade-tiny smollm2-135m] [--rounds 7]

Products of one thread by the shapes of a small language model's layers; steps over 16 x 40 tokens: MeZO with the
engines ``stream`` and ``dual``, and backpropagation with AdamW, over all weights and over adapters; some also over
other numbers of tokens, which blocks of a product do not divide. Both libraries take turns in one process; what counts
are ratios. With oneDNN turned off, gradless multiplies as torch does.
"""

from __future__ import annotations

import argparse
import functools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from gradless.cost import workload
from gradless.cost.settings import ProfileSettings
from gradless.kernels import products
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import device_name, processor

LAYERS = ((64, 64), (128, 128), (128, 512), (512, 128), (576, 1536), (1536, 576), (640, 2048), (640, 32768))
ROWS = (1, 4, 16, 64, 160, 640)
LARGEST = 1 << 32  # multiplications of a product
STEPS = [("full", "mezo", "stream"), ("full", "fo-adam", "auto"), ("full", "mezo", "dual")]
STEPS += [("lora", method, engine) for _, method, engine in STEPS]
TOKENS = {(16, 40): STEPS, (16, 23): STEPS[:2], (8, 15): STEPS[:2]}
SHAPES = 2000  # numbers of rows
WARMUP = 2


@contextmanager
def library(onednn: bool) -> Iterator[None]:
    """Inside, products are those of one library."""
    torch._C._set_mkldnn_enabled(onednn)  # as torch.backends.mkldnn.flags does it, but without its warning
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def in_turns(step: Callable[[bool], object], rounds: int) -> dict[str, float]:
    """Return the median seconds of the process by library, and their ratio."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(WARMUP + rounds):
        for onednn in (False, True):
            with library(onednn):
                begun = time.process_time()
                step(onednn)
                if turn >= WARMUP:
                    seconds[onednn].append(time.process_time() - begun)
    mkl, other = (statistics.median(seconds[onednn]) for onednn in (False, True))
    return {"mkl": mkl, "onednn": other, "ratio": other / mkl}


def of_products(rounds: int) -> dict[str, dict[str, float]]:
    """Return the times of products, however small, by ``rows x in x out``."""
    ways: dict[bool, Callable[..., Any]] = {False: functional.linear, True: products._by_onednn}
    times = {}
    for columns, out in LAYERS:
        for rows in ROWS:
            if rows * columns * out > LARGEST:
                continue
            x, weight, bias = torch.randn(rows, columns), torch.randn(out, columns), torch.randn(out)
            repeats = max(1, (1 << 24) // (rows * columns * out))

            def step(onednn: bool, tensors: Any = (x, weight, bias), repeats: int = repeats) -> None:
                for _ in range(repeats):
                    ways[onednn](*tensors)

            both = in_turns(step, rounds)
            times[f"{rows} x {columns} x {out}"] = both | {name: both[name] / repeats for name in ("mkl", "onednn")}
    return times


def of_steps(model: str, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the times of steps by scheme, method, engine and tokens."""
    for (sequences, length), steps in TOKENS.items():
        for scheme, method, engine in steps:
            settings = ProfileSettings(
                model=model, dtype="float32", scheme=scheme, method=method, batch_size=sequences, length=length
            )
            subject = workload.subject(settings, print)
            how: dict[str, Any] = {"engine": engine, "defer": True} if method == "mezo" else {}
            ways = {onednn: workload.optimizer(subject, **how) for onednn in (True, False)}
            name = f"{model}, {scheme}, {method}{f', {engine}' if how else ''}, {sequences} x {length}"
            yield name, in_turns(lambda onednn: ways[onednn].step(subject.closure), rounds)  # noqa: B023


def resident() -> float:
    """Return the bytes of this process that are in memory (Linux)."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory(shapes: int, split: bool) -> float:
    """Return the bytes by which a process grows while it multiplies that many different numbers of rows."""
    torch.set_num_threads(1)
    weight, rows = torch.randn(1536, 576), torch.randn(shapes + 10, 576)
    product = functional.linear if split else functools.partial(products._by_onednn, bias=None)
    with products.faster():
        product(rows, weight)
        before = resident()
        for count in torch.randperm(shapes, generator=torch.Generator().manual_seed(0)).tolist():
            product(rows[: 10 + count], weight)
    return resident() - before


def of_memory(shapes: int) -> dict[str, float]:
    """Return the growth of a process each, with rows as they come and split into powers of two."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return {
            name: pool.submit(memory, shapes, split).result() for name, split in (("whole", False), ("split", True))
        }


def main() -> None:
    """Measure and write one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--models", nargs="*", default=["splade-tiny", "smollm2-135m"])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    steps: dict[str, dict[str, float]] = {}
    growth = of_memory(SHAPES)
    print("  ".join(f"{name} {each / 1e6:.0f} MB" for name, each in growth.items()), flush=True)
    with workload.threads(1):
        of_layers = of_products(args.rounds)
        for name, both in of_layers.items():
            print(f"{name:20}  {1e6 * both['mkl']:9.1f} us  {both['ratio']:.2f}", flush=True)
        for model in args.models:
            for name, both in of_steps(model, args.rounds):
                steps[name] = both
                print(f"{name:50}  {1e3 * both['mkl']:7.0f} ms  {both['ratio']:.2f}", flush=True)
    machine = {"processor": device_name(torch.device("cpu")), "instructions": processor()["flags"], "threads": 1}
    facts = {"rounds": args.rounds, "used": products.is_faster(), "versions": versions()}
    write_json(
        args.result,
        facts
        | machine
        | {f"bytes of {SHAPES} numbers of rows": growth, "seconds of products": of_layers, "seconds of steps": steps},
    )


if __name__ == "__main__":
    main()

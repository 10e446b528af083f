"""Seconds for one gradient of every peer, by each way there is: what the column ``way`` of NETS was chosen by.

    python benchmarks/collab_gradients.py [--json benchmarks/results/collab-gradients-cpu-2-threads.json] [--threads 2]

The ways take turns, so that a busy machine slows all of them; medians of ``--repeats`` turns, after one that is not
counted. "shared out" deals the peers to ``--threads`` threads that run PyTorch on one core each (the default of a
Stack); the plain ways leave all threads to PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gradless.collab.learners.nets import NETS, Net
from gradless.collab.learners.stacked import WAYS, Stack

# Peers and rows of the published runs (n - f honest peers).
SIZES = {"cnn-mnist": (21, 25), "mlp": (21, 25), "logreg": (21, 25), "mlp-digits": (21, 25), "empire-cnn": (13, 50)}


def candidates(net: Net, peers: int, threads: int, device: str) -> dict[str, Stack]:
    """What is measured, by name."""
    ways = {way: Stack(net, peers, way=way, device=device, threads=0) for way in WAYS}
    if device != "cpu" or threads == 1:
        return ways
    return ways | {f"{way}, shared out": Stack(net, peers, way=way, threads=threads) for way in WAYS}


def measure(net: Net, *, threads: int, repeats: int, device: str) -> dict:
    """Median seconds of each way."""
    peers, rows = SIZES[net.name]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(peers, rows, *net.shape, generator=generator).to(device)
    labels = torch.randint(net.classes, (peers, rows), generator=generator).to(device)
    stacks = candidates(net, peers, threads, device)
    theta = stacks["loop"].initial()
    out = torch.empty_like(theta)
    wait: Callable[[], None] = torch.cuda.synchronize if device != "cpu" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in stacks}
    for turn in range(repeats + 1):
        for name, stack in stacks.items():
            wait()
            start = time.perf_counter()
            stack.gradients(theta, images, labels, step=turn, out=out)
            wait()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    best = min(medians, key=lambda name: medians[name])
    return {"net": net.name, "peers": peers, "rows": rows, "seconds": medians, "best": best, "table": net.way}


def main() -> None:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.nets.split(","):
        rows.append(measure(NETS[name], threads=arguments.threads, repeats=arguments.repeats, device=arguments.device))
        times = ", ".join(f"{way} {value * 1e3:.1f} ms" for way, value in rows[-1]["seconds"].items())
        print(f"{name} ({rows[-1]['peers']} x {rows[-1]['rows']}): {times}", flush=True)
    if arguments.json:
        where = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        where |= {"device": arguments.device, "threads": arguments.threads, "repeats": arguments.repeats}
        where |= {"load_average": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
        arguments.json.write_text(json.dumps({**where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

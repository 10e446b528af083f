"""Host time and launches of a step on a GPU, measured without one: with a driver for Triton that launches nothing.

Models have the layers of large ones and tiny widths, in float32, so that what torch computes on the CPU in place of its
own launches takes little time; every weight matrix counts as a large leaf. Times are those of one thread of the
processor, in milliseconds; the ratio to a plain forward is what carries over. Not measured: launches of torch's own
functions, the copy of a step's numbers, and anything that runs on a GPU.

    python benchmarks/cuda_host.py --out benchmarks/results/cuda-host.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import torch

import gradless as gl
import silent_driver
from gradless.forward import batched, perturbed, read_order
from gradless.optimizer import zeroth_order
from gradless.runs.record import versions
from gradless.system.atomic import write_json
from gradless.system.machine import processor
from launch_models import model_of

CASES = [("opt", 40, "full"), ("opt", 24, "full"), ("llama", 32, "lora")]
TINY = 200  # elements of the longest vector among the leaves


def milliseconds(function, rounds: int) -> float:
    for _ in range(3):
        function()
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        function()
        times.append(time.process_time() - begun)
    return 1e3 * statistics.median(times)


def measure(kind: str, layers: int, scheme: str, rounds: int) -> dict:
    model = model_of(kind, layers, scheme)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    ids = torch.arange(8).view(2, 4) + 3

    def closure():
        return model(input_ids=ids, labels=ids).loss

    with torch.no_grad():
        plain = milliseconds(closure, rounds)
    result = {"model": kind, "layers": layers, "scheme": scheme, "leaves": len(named), "plain_forward_ms": plain}
    for engine in ("stream", "dual"):
        opt = gl.mezo(named, lr=1e-9, engine=engine, defer=True, check=False)
        for _ in range(3):
            opt.step(closure)
        silent_driver.forget()
        opt.step(closure)
        launches = sum(silent_driver.LAUNCHES.values())
        spent = milliseconds(lambda opt=opt: opt.step(closure), rounds)
        result[engine] = {"launches": launches, "step_ms": spent, "plain_forwards": spent / plain}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    perturbed.SMALL = batched.SMALL = TINY
    read_order.ROW = 0
    zeroth_order.math = types.SimpleNamespace(isfinite=lambda number: True)  # losses of memory that nothing wrote
    with silent_driver.kernels_on_the_cpu(interpreted=False):
        results = []
        for case in CASES:
            results.append(measure(*case, options.rounds))
            print(results[-1], flush=True)
            if options.out:
                facts = {"versions": versions(), "driver": "launches nothing", "processor": processor()}
                write_json(options.out, {**facts, "note": options.note, "results": results})


if __name__ == "__main__":
    main()

"""Several processes of one owner against one: seconds and bytes of a step, for both ways to split the work.

    python benchmarks/ranks.py --model smollm2-135m --out benchmarks/results/ranks-cpu-smollm2-135m.json

The script starts ``--sizes``' largest number of processes by torchrun. In every round each case takes one step, in
turns, so that a busy machine slows all of them alike: medians over the rounds, and ratios of these. ``speedup`` is the
seconds of one process over those of a case; all processes have ``--threads`` threads, so ``efficiency`` is the speedup
over the number of processes. With more processes than cores times threads it says nothing about separate machines:
read ``message_seconds`` then, the time that one exchange of the step's scalars takes by itself.

``bytes_per_step`` is the payload that each rank sends to all others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from gradless import lm, methods, ranks
from gradless.lm import objectives, schemes, shapes
from gradless.lm.encode import Encoded
from gradless.runs.config import DEFAULTS
from gradless.runs.record import versions

LR = 1e-9  # too small to change what is measured
ALONE = "alone"


class Case(NamedTuple):
    """One way to take a step."""

    size: int
    split: str
    engine: str
    group: ranks.Ranks | None  # None: alone, or this process has no part in it
    step: Callable[[], Any] | None


def examples(model: lm.LanguageModel, rows: int, length: int) -> list[Encoded]:
    """Random tokens, and two candidate tokens behind them."""
    tokens = torch.randint(3, model.head.weight.shape[0], (rows, length), generator=torch.Generator().manual_seed(0))
    mask_position = length - 1 if model.masked else None
    return [Encoded(tuple(row), (tuple(row),), ((0,), (1,)), mask_position, (0,)) for row in tokens.tolist()]


def cases(arguments: argparse.Namespace, rank: int) -> list[Case]:
    """Every number of processes, engine and split; collective, since groups are."""
    if arguments.model.startswith(shapes.PREFIX):
        model = shapes.load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    else:
        model = lm.load(arguments.model, dtype=arguments.dtype, device=arguments.device)
    model = schemes.apply(model, arguments.scheme)
    named, objective = schemes.trainable(model), objectives.OBJECTIVES["option_ce"]
    encoded = examples(model, arguments.batch_size, arguments.length)
    eps = DEFAULTS[arguments.scheme][1]

    def stepper(group: ranks.Ranks | None, engine: str) -> Callable[[], Any]:
        shard = group.own(encoded) if group is not None and group.split == ranks.BATCH else encoded
        batches = objectives.prepare(model, objective, shard)
        if group is not None:
            group.weight = float(len(shard))
        options: dict[str, Any] = {"queries": arguments.queries} if arguments.queries > 1 else {}
        make: Any = methods.METHODS[arguments.method].make
        opt = make(named, lr=LR, eps=eps, engine=engine, defer=True, ranks=group, **options)
        return lambda: opt.step(lambda: objectives.loss_over(model, objective, batches))

    ways_to_step = []
    for size in arguments.sizes:
        part = dist.new_group(list(range(size)), backend="gloo") if size > 1 else None
        ways = [(ALONE, engine) for engine in arguments.engines]
        if size > 1:
            ways = [*((ranks.BATCH, engine) for engine in arguments.engines), (ranks.DIRECTIONS, "stream")]
        for split, engine in ways:
            group, member = None, rank < size
            if member and size > 1:
                group = ranks.Ranks(rank=rank, size=size, split=split, group=part)
            ways_to_step.append(Case(size, split, engine, group, stepper(group, engine) if member else None))
    return ways_to_step


def measure(arguments: argparse.Namespace) -> None:
    """What every process does; rank 0 writes the result."""
    torch.set_num_threads(arguments.threads)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if arguments.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")
    everyone = ranks.Ranks(rank=rank, size=size)
    all_cases = cases(arguments, rank)
    seconds: list[list[float]] = [[] for _ in all_cases]
    sent = [0] * len(all_cases)
    for turn in range(arguments.repeats + 2):  # two turns warm up: kernels, caches, the order of leaves
        for number, case in enumerate(all_cases):
            sent_so_far = case.group.sent if case.group else 0
            everyone.gather((0.0,))
            begun = time.perf_counter()
            if case.step is not None:
                case.step()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - begun
            sent[number] = (case.group.sent if case.group else 0) - sent_so_far
            if turn >= 2:
                seconds[number].append(max(row[0] for row in everyone.gather((took,))))
            else:
                everyone.gather((took,))
    messages = [_message(case, everyone) for case in all_cases]
    if rank == 0:
        _write(arguments, all_cases, seconds, sent, messages)
    dist.destroy_process_group()


def _message(case: Case, everyone: ranks.Ranks, repeats: int = 100) -> float:
    """Seconds of one exchange of a step's scalars, by itself."""
    took = []
    for _ in range(repeats):
        everyone.gather((0.0,))
        begun = time.perf_counter()
        if case.group is not None:
            case.group.gather((0.0, 0.0, 0.0))
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _write(
    arguments: argparse.Namespace,
    all_cases: list[Case],
    seconds: list[list[float]],
    sent: list[int],
    messages: list[float],
) -> None:
    median = [statistics.median(each) for each in seconds]
    alone = {case.engine: took for case, took in zip(all_cases, median, strict=True) if case.size == 1}
    rows = []
    for number, case in enumerate(all_cases):
        against = alone.get(case.engine)
        rows.append(
            {
                "processes": case.size,
                "split": case.split,
                "engine": case.engine,
                "seconds_per_step": median[number],
                "quartiles": statistics.quantiles(seconds[number], n=4)[::2],
                "speedup": against / median[number] if against else None,
                "efficiency": against / median[number] / case.size if against else None,
                "bytes_per_step": sent[number],
                "message_seconds": messages[number] if case.size > 1 else 0.0,
            }
        )
        print(
            f"{case.size} {case.split:<10} {case.engine:<8} {median[number] * 1e3:9.1f} ms/step  "
            f"{sent[number]:>4} bytes  {messages[number] * 1e3 * (case.size > 1):.2f} ms/message",
            flush=True,
        )
    names = ("model", "scheme", "method", "queries", "batch_size", "length", "dtype", "device", "threads", "repeats")
    result = {
        **{name: getattr(arguments, name) for name in names},
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": versions(),
        "rows": rows,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="what gradless tune takes, or shape:NAME")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--scheme", default="full")
    parser.add_argument("--method", default="mezo")
    parser.add_argument("--engines", nargs="+", default=["stream", "dual"])
    parser.add_argument("--queries", type=int, default=2, help="directions a step; 2 give four ranks a point each")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments)
        return
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(max(arguments.sizes)))
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    sys.exit(subprocess.run([sys.executable, *torchrun, __file__, *sys.argv[1:]], env=environment).returncode)


if __name__ == "__main__":
    main()

"""Learning rates over lengths of a run: fixed rates, fixed steps and falling steps, on a small real model.

    python benchmarks/auto_rate.py --data FOLDER [--kinds step --values 0.447 --lengths 100 400] [--out FILE]

MeZO on ``splade-tiny`` (a masked language model of 4.4M weights), batches of 16. A run with a constant rate is also
every shorter run with it, so one run of the longest length, evaluated at every length, gives a point of each length.
Kinds of runs, with one number each: ``rate``, a learning rate; ``step``, the change of a weight in a step in units of
eps, which is what ``--lr auto`` keeps; ``linear``, the same, falling to zero at the end; ``auto``, the step of ``--lr
auto`` (the number is 0), a run for each length, since it depends on that. A line a run: metrics on the
dev rows at each length, and the root mean square of the coefficients since the length before. Lines are written as
runs end, and runs that have a line are passed over. Cost: one minute a run of 2,000 steps on a free core.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch

import gradless as gl
from gradless.errors import Diverged
from gradless.lm import objectives
from gradless.methods.common import MEMORY
from gradless.rules import Rule, linear, rms_normalised
from gradless.runs import build, describe, walks
from gradless.runs.config import TuneConfig
from gradless.runs.context import RunContext, closure_of, evaluate_split
from gradless.system.progress import Reporter

MODEL: Final = "splade-tiny"
AUTO: Final = "auto"
LENGTHS: Final = (100, 400, 1000, 2000)
SHOTS: Final = {"agnews": 256}  # rows of a label, 512 for tasks of two: 1,024 training and 1,024 dev rows in all
TOKENS: Final = {"agnews": 48}  # most tokens of a sequence
HOPELESS: Final = 1.0  # dev loss above that of the untouched model, from which a run is given up
VALUES: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "full": {"rate": (3e-5, 6e-5, 1e-5), "step": (0.2, 0.0447, 0.447)},
    "lora": {"rate": (3e-3, 1e-2, 1e-3), "step": (0.2, 0.0447, 0.447)},
}
"""Numbers of each kind, the most telling first. Steps 0.2 and 0.0447 are 2 / sqrt(steps) at 100 and 2,000 steps."""

RULES: Final[dict[str, Callable[[float, float, int], Rule]]] = {
    "rate": lambda value, eps, steps: gl.scale(value),
    "step": lambda value, eps, steps: gl.chain(rms_normalised(MEMORY), gl.scale(value * eps)),
    "linear": lambda value, eps, steps: gl.chain(rms_normalised(MEMORY), gl.scale(linear(value * eps, steps))),
}
"""By kind, functions from the number of a run, its eps and its steps to its rule."""


def main() -> None:
    """Make the runs that have no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with a folder for each task.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/auto-rate.jsonl"))
    parser.add_argument("--tasks", nargs="+", default=["sst2", "agnews"])
    parser.add_argument("--schemes", nargs="+", default=["full", "lora"])
    parser.add_argument("--kinds", nargs="+", default=["rate", "step"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--values", nargs="+", type=float, help="Instead of those of the table.")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["task"], line["scheme"], line["seed"], line["kind"], line["value"], line["steps"]) for line in lines}
    for task, scheme, seed, kind, value, lengths in runs(args):
        if (task, scheme, seed, kind, value, max(lengths)) in done:
            continue
        line = {"model": MODEL, "task": task, "scheme": scheme, "seed": seed, "kind": kind, "value": value}
        line |= one(*prepared(task, scheme, seed, args.data), kind, value, lengths)
        print(json.dumps(line), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def runs(args: argparse.Namespace) -> Iterator[tuple[str, str, int, str, float, list[int]]]:
    """Yield the runs: all tasks and schemes with the first number of a kind, then with the second."""
    for seed in args.seeds:
        for kind in args.kinds:
            numbers = {
                scheme: (0.0,) if kind == AUTO else args.values or VALUES[scheme][kind] for scheme in args.schemes
            }
            for index in range(max(map(len, numbers.values()))):
                for task, scheme in itertools.product(args.tasks, args.schemes):
                    for lengths in [[n] for n in args.lengths] if kind == AUTO else [args.lengths]:
                        if index < len(numbers[scheme]):
                            yield task, scheme, seed, kind, numbers[scheme][index], lengths


@functools.cache
def prepared(task: str, scheme: str, seed: int, data: Path) -> tuple[RunContext, dict[str, torch.Tensor]]:
    """Return the data, the model and the objective of a cell, and its tuned weights as they are before any run."""
    config = TuneConfig(
        model=MODEL,
        task=task,
        data=str(data / task),
        scheme=scheme,
        method="mezo",
        lr=1.0,  # `one` makes an optimizer of its own
        k_shot=SHOTS.get(task, 512),
        num_test=1,
        max_length=TOKENS.get(task),
        batch_size=16,
        engine="dual",
        seed=seed,
    ).resolved()
    own, splits = build.load_task(config)
    objective = objectives.choose(own, config.objective)
    with tempfile.TemporaryDirectory() as folder:
        model, _ = build.build_for(config, Path(folder), own, splits.train)
    _, encoded = describe.described(model.lm, own, splits, objective, config.own, config.max_length)
    context = RunContext(config, Path(), own, splits, objective, model, Reporter(quiet=True), encoded=encoded)
    return context, {name: p.detach().clone() for name, p in tuned(context)}


def tuned(context: RunContext) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the tuned parameters by name."""
    return [(name, p) for name, p in context.model.lm.model.named_parameters() if p.requires_grad]


def one(
    context: RunContext, start: dict[str, torch.Tensor], kind: str, value: float, lengths: list[int]
) -> dict[str, Any]:
    """Return what a run from the untouched weights gave."""
    config = context.config
    with torch.no_grad():
        for name, p in tuned(context):
            p.copy_(start[name])
    told: dict[str, Any] = {}
    if kind == AUTO:
        asked = dataclasses.replace(config, lr="auto", steps=max(lengths))
        fresh = context.model._replace(optimizer=build.optimizer(asked, tuned(context)))
        config = walks.settled(context._replace(config=asked, model=fresh)).config
        kind, value = "step", build.auto_rate(config) / config.eps
        told = {"walk": config.walk, "step": round(value, 4)}
    opt = gl.ZerothOrder(
        tuned(context),
        seed=config.seed,
        estimator=gl.spsa(eps=config.eps),
        rule=RULES[kind](value, config.eps, max(lengths)),
        engine="dual",
        defer=True,
    )
    context = context._replace(model=context.model._replace(optimizer=opt))
    begun, points, coeffs, diverged = time.process_time(), [measured(context, 0)], [], False
    try:
        while opt.t < max(lengths) and not diverged:
            _, update = opt.step_with(closure_of(context, opt.t))
            coeffs.extend(update.coeffs)
            if opt.t in lengths:
                opt.flush()
                points.append(measured(context, opt.t) | {"rms": math.sqrt(sum(c * c for c in coeffs) / len(coeffs))})
                diverged = not points[-1]["loss"] < points[0]["loss"] + HOPELESS
                coeffs = []
    except Diverged:
        diverged = True
    return told | {
        "eps": config.eps,
        "steps": max(lengths),
        "rows": len(context.splits.dev),
        "status": "diverged" if diverged else "done",
        "points": points,
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def measured(context: RunContext, step: int) -> dict[str, Any]:
    """Return the metrics on dev rows."""
    evaluation = evaluate_split(context, "dev", "")
    assert evaluation.loss is not None
    return {"step": step, "loss": round(evaluation.loss, 5), "accuracy": evaluation.metrics["accuracy"]}


if __name__ == "__main__":
    main()

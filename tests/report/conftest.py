"""Results of a small benchmark, and a finished run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import run_helpers as h
from report_bench_helpers import MODEL, Bench, cell, costs, curve


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three methods, two schemes, one of them diverged in lora; test values of search runs must never be shown."""
    bench = Bench(tmp_path / "bench")
    for seed in (1, 2, 3):
        untouched = {"model": MODEL, "task": "sst2", "aligned": True}
        bench.run("zero-shot", untouched, {}, seed, test={"accuracy": 0.5}, dev={"accuracy": 0.52})
    spec = {"mezo": (0.80, 2, 1.0, 1.05e9), "lozo": (0.84, 2, 1.5, 1.1e9), "fo-adam": (0.88, 3, 2.0, 4e9)}
    for scheme in ("full", "lora"):
        for method, (level, *cost) in spec.items():
            bad = (method, scheme) == ("lozo", "lora")
            for lr in (1e-6, 3e-6, 1e-5):
                lost = bad or lr == 1e-5
                dev = {} if lost else {"accuracy": level - 0.1 * (lr == 1e-6), "loss": 0.4}
                status = "diverged" if lost else "done"
                bench.run(
                    "search", cell(method, scheme), {"lr": lr}, 0, status=status, dev=dev, test={"accuracy": 0.999}
                )
            for seed in () if bad else (1, 2, 3):
                test = {"accuracy": level + 0.01 * (seed - 2)}
                line = curve(level - 0.1, level - 0.05, level, forwards=20 * cost[0], seconds=10 * cost[1])
                bench.run(
                    "final", cell(method, scheme), {"lr": 3e-6}, seed, test=test, dev=test, curve=line, **costs(*cost)
                )
    return bench.folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A run with two directions a step, a schedule, and dev evaluations."""
    folder = tmp_path_factory.mktemp("finished")
    settings = h.config(
        folder, steps=6, queries=2, schedule="linear", lr=1e-3, eval_every=2, num_test=24, select="metric", seed=3
    )
    h.tune(settings, folder / "run")
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))

"""Results as a benchmark writes them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from gradless.report import tables
from gradless.report.common.table import Table

MODEL = "gemma-3-270m"


GRID = """name = "small & <b>bold</b>"
search_seeds = [0]
seeds = [1, 2, 3]
budget = { forwards = 200 }
select = "accuracy"
[axes]
method = ["lozo", "mezo", "fo-adam"]
"""


def grid(*seeds: int) -> str:
    """The grid with other final seeds."""
    return GRID.replace("[1, 2, 3]", str([*seeds]))


class Bench:
    """Writes results as a bench does."""

    def __init__(self, folder: Path, *, grid: str = GRID) -> None:
        self.folder, self.records = folder, []
        (folder / "requests").mkdir(parents=True)
        (folder / "grid.toml").write_text(grid)

    def request(self, phase: str, cell: dict, point: dict, seed: int | None, **config) -> str:
        name = f"r{len(list((self.folder / 'requests').iterdir())):04d}"
        asked = {"model": cell["model"], "task": cell["task"], "method": cell.get("method", "mezo"), "batch_size": 16}
        asked |= {"lr": point.get("lr"), "seed": seed, "scheme": cell.get("scheme", "full"), **config}
        request = {"id": name, "phase": phase, "cell": cell, "point": point, "seed": seed, "config": asked}
        (self.folder / "requests" / f"{name}.json").write_text(json.dumps(request))
        return name

    def run(self, phase: str, cell: dict, point: dict, seed: int | None, *, config=None, **record) -> None:
        name = self.request(phase, cell, point, seed, **(config or {}))
        base = {"id": name, "phase": phase, "cell": cell, "point": point, "seed": seed, "status": "done", "reason": ""}
        self.records.append(base | {"test": {}, "dev": {}, "zero_shot": {}, "curve": [], "threads": 2} | record)
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        (self.folder / "results.jsonl").write_text(text)


def cell(method: str = "mezo", scheme: str = "full", task: str = "sst2", *, aligned: bool = True, **more) -> dict:
    return {"model": MODEL, "task": task, "scheme": scheme, "method": method, "aligned": aligned, **more}


def curve(*values: float, forwards: float = 40, seconds: float = 10.0, metric: str = "accuracy") -> list[dict]:
    return [
        {"step": 10 * n, "forwards": forwards * n, "seconds": seconds * n, "loss": 1.0 / n, metric: value}
        for n, value in enumerate(values, start=1)
    ]


def costs(forwards: float, seconds: float, peak: float, floor: float = 1e9) -> dict:
    return {
        "steps": 100,
        "forwards_per_step": forwards,
        "seconds_per_step": seconds,
        "peak_memory_bytes": peak,
        "inference_memory_bytes": floor,
        "tuned_parameters": 1000,
    }


def named(folder: Path, name: str) -> Table:
    return next(table for table in tables(folder) if table.name == name)


def row(table: Table, *labels: str) -> list[str]:
    (cells,) = [r for r in table.rows if tuple(i.text for i in r[: len(labels)]) == labels]
    return [item.text for item in cells[table.labels :]]


METHODS = ("mezo", "lozo", "fzoo", "fo-adam")


def study(
    tmp_path, levels, *, tasks=("sst2", "mr", "cr"), schemes=("full",), seeds=(1, 2, 3), skip=(), noise=0.01, more=1.0
):
    """A benchmark whose methods have a level each, lower by task, with noise by seed, and each ``more`` memory."""
    bench = Bench(tmp_path / "b", grid=grid(*seeds))
    for scheme in schemes:
        for t, task in enumerate(tasks):
            for m, (method, level) in enumerate(levels.items()):
                for seed in seeds:
                    if (method, task, seed) in skip:
                        continue
                    value = level - 0.05 * t + noise * math.sin(7 * seed + 3 * m + t)
                    line = curve(value - 0.1, value - 0.05, value)
                    test = {"accuracy": value}
                    extra = costs(2, 1.0, 1e9 * (1.05 + more * m)) | {"forwards": 120}
                    bench.run("final", cell(method, scheme, task), {}, seed, test=test, curve=line, **extra)
    return bench

"""Grids of one cell, and the lines of runs whose dev losses a function of the request says."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradless.bench import grid
from gradless.bench.search import Search
from grid_helpers import SMALL, cost, read

ONE = SMALL.replace('["mezo", "fo-adam"]', '["mezo"]').replace('["full", "lora"]', '["full"]')
ONE = ONE.replace('"accuracy"', '"loss"')
CELL = "mezo/full/sst2/tiny-llama"
RATES = "[1e-6, 3e-6, 1e-5]"
FIVE = "[1e-7, 3e-7, 1e-6, 3e-6, 1e-5]"
HALVED = ONE.replace(RATES, FIVE).replace("{ forwards = 200 }", "{ forwards = 200, search = [20, 50] }")
Loss = Callable[[grid.Request], float]


def line(one: grid.Request, *losses: float | None, status: str = "done", **dev: float) -> dict[str, Any]:
    """A finished run with these dev losses after its evaluations."""
    fields = {name: value for name, value in one.to_json().items() if name != "config"}
    curve = [{"step": number, "loss": loss, **dev} for number, loss in enumerate(losses, 1)]
    best = min((loss for loss in losses if loss is not None), default=None)
    return json.loads(json.dumps({**fields, "status": status, "dev": {"loss": best, **dev}, "curve": curve}))


def asked(text: str, folder: Path) -> Search:
    return Search(read(folder, text), cost)


def finish(search: Search, loss: Loss, *, seed: int = 0, order: int = 0) -> list[dict[str, Any]]:
    """Lines of all runs that the search asks for until it has what it wants, in some order of finishing."""
    shuffled = random.Random(order)
    lines: dict[str, dict[str, Any]] = {}
    while left := [one for one in search.standing(lines.values()).wanted if one.id not in lines]:
        shuffled.shuffle(left)
        for one in left[: 1 + order % 3]:
            value = loss(one) if one.phase == grid.SEARCH else 1.0
            lines[one.id] = line(one, value, value) if math.isfinite(value) else line(one, status="diverged")
    return list(lines.values())


def bowl(best: float) -> Loss:
    """A loss that is least at a rate."""
    return lambda one: 1 + abs(math.log10(one.point["lr"] / best))


def rates(lines: list[dict[str, Any]], rung: int = 0) -> list[float]:
    return sorted({one["point"]["lr"] for one in lines if one["phase"] == "search" and one["rung"] == rung})

"""Small grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradless.bench import grid, grid_file
from gradless.bench.search import Search
from gradless.methods import FIRST, METHODS
from gradless.runs.config import TuneConfig

SMALL = """
name = "small"
search_seeds = [0]
seeds = [1, 2, 3]
budget = { forwards = 200 }
select = "accuracy"

[base]
model = "tiny-llama"
num_train = 16
num_dev = 8
num_test = 8

[axes]
method = ["mezo", "fo-adam"]
scheme = ["full", "lora"]
task = ["sst2"]

[grid]
lr = [1e-6, 3e-6, 1e-5]
"""


OWN = 'own = { train = "a.csv", test = "b.csv", template = "{text} so", label_column = "label", labels = "0=a,1=b" }\n'


def cost(config: TuneConfig) -> int:
    """Forwards of a step, as far as these tests care."""
    return (3 if METHODS[config.method].family == FIRST else 2) * config.options.get("queries", 1)


def write(folder: Path, text: str = SMALL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def read(folder: Path, text: str = SMALL) -> grid_file.Grid:
    return grid.read(write(folder, text))


def search_runs(asked: grid_file.Grid) -> list[grid.Request]:
    """Every run that the search may ask for."""
    return [one for one in Search(asked, cost).possible if one.phase == grid.SEARCH]


def choose(asked: grid_file.Grid, lines: list[dict[str, Any]]) -> dict[str, grid.Point | None]:
    return Search(asked, cost).choose(lines)

"""The data sets of a grid, read before anything runs: what is wrong with them, what was guessed, and what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from gradless.bench.grid import FINAL, Request, cell_name
from gradless.errors import BadInput
from gradless.runs import build, describe
from gradless.runs.config import TuneConfig
from gradless.runs.facts import SPLITS, lines
from gradless.tasks import Splits, Task

UNKNOWN: Final = "not known before a model is loaded: the tokens of words, and which prompts are cut (gradless eval)"


def check(requests: Iterable[Request], grid: Path, say: Callable[[str], None], *, describe_all: bool = False) -> None:
    """Read the local rows of each data set once, so that a missing file or row is known at once.

    Args:
        requests: all runs that may be made.
        grid: the file of the grid, for errors.
        say: receives a line for each thing that was guessed.
        describe_all: say what each data set holds as well.

    Raises:
        BadInput: a data set cannot be read.
    """
    seen: set[str] = set()
    guessed: set[str] = set()

    def say_once(line: str) -> None:
        if line not in guessed:
            guessed.add(line)
            say(line)

    for one in requests:
        config = one.config
        if one.phase != FINAL or (key := _key(config)) in seen:
            continue
        seen.add(key)
        if not (config.data or config.own):
            if describe_all:
                say(f"{_title(config)}: its rows are on the hub, and are read by the runs")
            continue
        try:
            task, splits = build.load_task(config, say_once)
        except BadInput as error:
            raise BadInput(f"{grid}: cell {cell_name(one.cell)}: {error}") from None
        for line in _described(config, task, splits) if describe_all else ():
            say(line)


def _key(config: TuneConfig) -> str:
    sizes = (config.num_train, config.num_dev, config.num_test, config.k_shot)
    return json.dumps([config.task, config.data, config.own, config.aligned, sizes], sort_keys=True)


def _title(config: TuneConfig) -> str:
    name = config.task or ", ".join(str(config.own[split]) for split in SPLITS if split in config.own)
    return f"{name}{'' if config.aligned else ', unaligned'}, seed {config.seed}"


def _described(config: TuneConfig, task: Task, splits: Splits) -> list[str]:
    """Return what the rows of a run hold, as lines, without a model."""
    render = task.render or task.render_masked
    assert render is not None
    examples = {split: [render(dict(row)) for row in getattr(splits, split)] for split in SPLITS}
    facts = lines(describe.of_rows(task, splits, examples, config.own))
    return [_title(config), *(f"  {line}" for line in (*facts, UNKNOWN))]

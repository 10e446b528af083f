"""What is trained on: models, rows with prompts, and rewards, the same for all methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gradless import rewards, tasks
from gradless.lm import load
from gradless.lm.batching import Prompts, collate_prompts
from gradless.lm.encoded import Encoded
from gradless.lm.generation import write
from gradless.lm.loading import LanguageModel
from gradless.tasks import arithmetic

Rows = list[dict[str, Any]]
OPENED: Final = re.compile("<answer>")
NUMBERED: Final = re.compile(r"<answer>\s*-?\d+")
CLOSED: Final = re.compile(r"<answer>\s*-?\d+\s*</answer>")
TERMS: Final = r"<answer>[\d\s()+*/-]*\d"
EXPRESSIONS: Final = (OPENED, re.compile(TERMS), re.compile(TERMS + r"[\s)]*</answer>"))


class Problem(NamedTuple):
    model: str
    rows: Callable[[Path | None], dict[str, Rows]]  # train, dev and test; the folder of the data
    reward: Callable[..., Any]  # in TRL's form
    passes: float  # least reward of a completion that counts as right
    new_tokens: int
    stop: tuple[str, ...]
    prompts: int  # of a step
    members: int
    steps: int
    eps: float  # how far members are from the weights: where their answers differ and are not nonsense yet
    temperature: float = 1.0  # of members' answers; GRPO samples at 1
    test_rows: int = 128
    at_once: int = 64  # completions that GRPO's backward takes at once


def graded(completions: Sequence[str], **columns: Any) -> list[float]:
    """A third each for an answer that is opened, a number in it, and its end."""
    return [sum(bool(form.search(one)) for form in (OPENED, NUMBERED, CLOSED)) / 3 for one in completions]


def sums(data: Path | None) -> dict[str, Rows]:
    """Two-digit sums; pairs of numbers are in one of the three parts."""
    return {
        split: [
            {"prompt": f"What is {row['a']} + {row['b']}? Write the answer as <answer>n</answer>.\n"} for row in rows
        ]
        for split, rows in arithmetic.generate().items()
    }


def countdown(data: Path | None) -> dict[str, Rows]:
    """The task's rows, with a prompt that ends in a line break: behind "Answer:" a small model opens no tag."""
    rows = _of_task("countdown", None, {"train": 1000, "dev": 200, "test": 200}, longest=1000)
    for part in rows.values():
        for row in part:
            row["prompt"] = row["prompt"].removeprefix("Question: ").removesuffix("Answer:")
    return rows


def squad(data: Path | None) -> dict[str, Rows]:
    """Questions about short paragraphs: what a processor can train on in an hour."""
    return _of_task("squad", data, {"train": 3800, "dev": 500, "test": 1190}, longest=700)


def _of_task(name: str, data: Path | None, sizes: dict[str, int], longest: int) -> dict[str, Rows]:
    """Rows of a task whose prompts have no more than ``longest`` characters."""
    task = tasks.get(name)
    splits = tasks.load(task, data=data, seed=0, num_train=sizes["train"], num_dev=sizes["dev"], num_test=sizes["test"])
    parts: dict[str, Rows] = {}
    for split in sizes:
        rows = []
        for row in getattr(splits, split):
            example = task.render(row)
            if len(example.prompt) <= longest:
                rows.append({**row, "prompt": example.prompt, "answers": list(example.answers)})
        parts[split] = rows
    return parts


def token_f1(completions: Sequence[str], answers: Sequence[Any], **columns: Any) -> list[float | None]:
    with rewards.load("token_f1") as function:
        return list(function([""] * len(completions), completions, {"answers": answers}).tolist())


def solves(
    completions: Sequence[str], nums: Sequence[Any], target: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 for a solution; else a tenth each for an answer that is opened, an expression in it, and its end."""
    with rewards.load("countdown") as function:
        solved = function([""] * len(completions), completions, {"nums": nums, "target": target}).tolist()
    formed = [sum(bool(form.search(one)) for form in EXPRESSIONS) / 10 for one in completions]
    return [max(pair) for pair in zip(solved, formed, strict=True)]


PROBLEMS: Final = {
    "sums": Problem("smollm2-135m", sums, graded, 1.0, 16, (), prompts=8, members=8, steps=60, eps=0.006),
    "squad": Problem("gemma-3-270m", squad, token_f1, 1.0, 12, ("\n",), prompts=4, members=8, steps=40, eps=0.001),
    "squad-greedy": Problem(
        *("gemma-3-270m", squad, token_f1, 1.0, 12, ("\n",)),
        **{"prompts": 8, "members": 8, "steps": 30, "eps": 0.001, "temperature": 0.0, "test_rows": 256, "at_once": 16},
    ),
    "countdown": Problem("smollm2-135m", countdown, solves, 1.0, 24, (), prompts=8, members=8, steps=60, eps=0.006),
}
DEV_ROWS: Final = 32


def model_of(problem: Problem) -> LanguageModel:
    return load(problem.model, dtype="float32")


def measured(lm: LanguageModel, problem: Problem, rows: Rows, batch: int = 32) -> dict[str, Any]:
    """Rewards of greedy completions of some rows: each, mean and interval, share that is right and interval."""
    values: list[float] = []
    texts: list[str] = []
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        written = write(lm, _prompts(lm, problem, part))
        texts += [one.text for one in written]
        columns = {name: [row[name] for row in part] for name in part[0] if name != "prompt"}
        values += problem.reward(completions=[one.text for one in written], **columns)
    right = [float(value >= problem.passes) for value in values]
    return {
        "reward": interval(values),
        "right": interval(right),
        "rewards": values,
        "completions": texts[:4],
    }


def interval(values: Sequence[float]) -> list[float]:
    """Mean and its 95 % interval, normal over rows."""
    array = np.asarray(values, dtype=np.float64)
    half = 1.96 * array.std(ddof=1) / len(array) ** 0.5
    return [round(float(number), 5) for number in (array.mean(), array.mean() - half, array.mean() + half)]


def _prompts(lm: LanguageModel, problem: Problem, rows: Rows) -> Prompts:
    encoded = [Encoded(tuple(lm.tokenizer(row["prompt"])["input_ids"]), (), (), None, ()) for row in rows]
    return collate_prompts(lm, encoded, problem.stop, problem.new_tokens)

"""Small runs on tiny models: files, configurations and a patched loss."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradless.lm import objectives
from gradless.runs import train
from gradless.runs.config import TuneConfig
from gradless.system.progress import Reporter

WORDS = (("bad", "incorrect"), ("good", "correct"))
SQUAD_FILES = ("train-v1.1.json", "dev-v1.1.json")


def write_csv(path: Path, rows: int, seed: int) -> Path:
    """Sentences whose last word gives the label away."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for i in range(rows):
            table.writerow([f"{draw.randrange(10_000)} was {draw.choice(WORDS[i % 2])}", i % 2])
    return path


def sentiment(folder: Path, *, train_rows: int = 48, test_rows: int = 24) -> dict[str, Any]:
    """Own files as the command line hands them on."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "train": str(write_csv(folder / "train.csv", train_rows, 0)),
        "test": str(write_csv(folder / "test.csv", test_rows, 1)),
        "template": "{text} so",
        "label_column": "label",
        "labels": "0=terrible,1=great",
    }


def squad(folder: Path, rows: int = 12) -> Path:
    """A folder in SQuAD's own format."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SQUAD_FILES:
        paragraphs = [
            {
                "context": f"The number is {i}.",
                "qas": [
                    {
                        "id": f"{name}/{i}",
                        "question": "What is the number?",
                        "answers": [{"text": str(i), "answer_start": 14}],
                    }
                ],
            }
            for i in range(rows)
        ]
        data = {"version": "1.1", "data": [{"title": "Numbers", "paragraphs": paragraphs}]}
        (folder / name).write_text(json.dumps(data))
    return folder


def config(folder: Path, **changes: Any) -> TuneConfig:
    """A run of three steps over own files in ``folder``."""
    if "task" not in changes and "own" not in changes:
        changes["own"] = sentiment(folder / "data")
        if "roberta" in changes.get("model", ""):
            changes["own"]["template"] = "{text} so {mask}."
    usual = {"model": "tiny-llama", "steps": 3, "batch_size": 4, "num_train": 16, "num_dev": 8, "num_test": 8}
    return TuneConfig(**{**usual, **changes})


def tune(settings: TuneConfig, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """`gradless.runs.train.tune` without words."""
    return train.tune(settings, out, resume=resume, reporter=Reporter(quiet=True))


def notes(out: Path, event: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, read as strictly as the JSON standard says."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def patch_loss(monkeypatch: Any, change: Callable[[int, int, torch.Tensor], Any]) -> None:
    """Let ``change(step, number of the forward in that step, loss)`` replace what training steps measure."""
    true_step, true_loss, at = train._step, objectives.loss_over, [0, 0]

    def step(parts: Any, *args: Any) -> Any:
        at[:] = [parts.model.optimizer.t, 0]
        return true_step(parts, *args)

    def loss_over(*args: Any) -> Any:
        at[1] += 1
        return change(at[0], at[1], true_loss(*args))

    monkeypatch.setattr(train, "_step", step)
    monkeypatch.setattr(objectives, "loss_over", loss_over)

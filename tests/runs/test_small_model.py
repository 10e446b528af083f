"""The small masked model learns from forward passes alone what a tiny model with random weights cannot."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gradless.errors import BadInput
from gradless.lm import assets
from gradless.runs import train
from gradless.runs.config import TuneConfig
from gradless.system.progress import Reporter

THINGS = (
    "the film",
    "this story",
    "the acting",
    "her new book",
    "the second half",
    "every scene",
    "the song",
    "his show",
)
BAD = ("a chore to sit through", "dull and cold", "a sloppy piece of work", "flat and stupid", "false", "full of holes")
GOOD = ("a joy to watch", "funny and warm", "a fine piece of work", "bright and clever", "moving", "full of charm")


def rows(*, test: bool) -> list[tuple[str, int]]:
    """Sentences of which a third is for testing: the same words in pairs that training has not seen."""
    return [
        (f"{thing} is {words} .", label)
        for i, thing in enumerate(THINGS)
        for j, pair in enumerate(zip(BAD, GOOD, strict=True))
        for label, words in enumerate(pair)
        if ((i + j) % 3 == 0) == test
    ]


def write(path: Path, some: list[tuple[str, int]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *some])
    return str(path)


def test_mezo_learns_sentiment_on_the_small_masked_model(tmp_path):
    try:
        assets.fetch("splade-tiny", lambda _: None)
    except BadInput as error:
        pytest.skip(f"the model cannot be had: {error}")
    own = {
        "train": write(tmp_path / "train.csv", rows(test=False)),
        "test": write(tmp_path / "test.csv", rows(test=True)),
        **{"template": "{text} It was{mask}.", "label_column": "label", "labels": "0=terrible,1=great"},
    }
    config = TuneConfig(
        model="splade-tiny",
        own=own,
        method="mezo",
        lr=5e-5,
        steps=400,
        batch_size=16,
        engine="dual",
        num_train=64,
        num_dev=0,
        num_test=32,
    )
    result = train.tune(config, tmp_path / "run", reporter=Reporter(quiet=True))
    assert result["zero_shot"]["accuracy"] < 0.7
    assert result["test"]["accuracy"] > 0.8
    assert result["test"]["loss"] < result["zero_shot"]["loss"] - 0.15

"""Settings from files, and what the command line makes of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

import run_helpers
from gradless.cli import main
from gradless.errors import BadInput
from gradless.methods import METHODS
from gradless.runs import config_io
from gradless.runs.build import optimizer
from gradless.runs.config import TuneConfig

TWO = """
[cell."tiny/own/full/mezo"]
model = "tiny-llama"
lr = 1e-3

[cell."tiny/own/full/lezo"]
model = "tiny-llama"
method = "lezo"
options = { keep = 0.5 }
"""


def test_files_of_one_run_and_of_several(tmp_path):
    one, many, request = tmp_path / "one.toml", tmp_path / "many.toml", tmp_path / "request.json"
    one.write_text('model = "m"\nlr = 1e-3\n')
    many.write_text(TWO)
    request.write_text(json.dumps({"id": "x", "config": {"model": "m", "steps": 3}}))
    assert config_io.read(one) == {"model": "m", "lr": 1e-3}
    assert config_io.read(request) == {"model": "m", "steps": 3}
    assert config_io.read(many, "tiny/own/full/lezo")["options"] == {"keep": 0.5}
    for path, cell, sentence in (
        (many, None, "holds 2 cells: choose one with --cell"),
        (many, "tiny/own/full/mezzo", "did you mean 'tiny/own/full/mezo'"),
        (one, "x", "leave out --cell"),
        (tmp_path / "none.toml", None, "cannot be read"),
    ):
        with pytest.raises(BadInput, match=sentence):
            config_io.read(path, cell)
    one.write_text("lrr = 1")
    with pytest.raises(BadInput, match="did you mean 'lr'"):
        config_io.read(one)
    one.write_text("lr = = 1")
    with pytest.raises(BadInput, match="is not TOML"):
        config_io.read(one)


def test_options_are_numbers_or_words():
    assert config_io.parse_options(["keep=0.5", "mask=wanda", "rank=4"]) == {"keep": 0.5, "mask": "wanda", "rank": 4}
    with pytest.raises(BadInput, match="write --set name=value"):
        config_io.parse_options(["keep"])


def test_the_command_line_wins_over_the_file(tmp_path):
    own = run_helpers.sentiment(tmp_path / "data")
    settings = {"model": "tiny-llama", "own": own, "method": "lezo", "options": {"keep": 0.5}, "steps": 2}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": {**settings, "batch_size": 4, "num_test": 4, "zero_shot": False}}))
    out = tmp_path / "run"
    command = ["tune", "--config", str(path), "--steps", "3", "--set", "keep=1.0", "--out", str(out)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    used = json.loads((out / "config.json").read_text())
    assert (used["steps"], used["options"], used["method"], used["batch_size"]) == (3, {"keep": 1.0}, "lezo", 4)
    result = json.loads((out / "result.json").read_text())
    assert result["zero_shot"] == {}
    assert list(result["interval"]) == ["test"]


def test_options_of_another_method_are_refused(tmp_path):
    own = [
        part for key, value in run_helpers.sentiment(tmp_path).items() for part in (f"--{key.replace('_', '-')}", value)
    ]
    command = ["tune", "--model", "tiny-llama", *own, "--set", "keep=1", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2
    assert "the method mezo has no option keep" in done.output
    done = CliRunner().invoke(
        main, [*command[:-4], "--method", "fo-adam", "--queries", "3", "--out", str(tmp_path / "r")]
    )
    assert done.exit_code == 2
    assert "the method fo-adam has no choice there" in done.output


@pytest.mark.parametrize(
    "text",
    [
        "steps = [1]",
        "lr = [1]",
        'eps = "auto"',
        "data = 5",
        "options = 5",
        "own = 5",
        "config = 5",
        "cell = 5",
        "[cell]",
        "[cell]\nx = 3",
        "steps = 2.5",
        "seed = 1.7",
        "lr = true",
        "freeze = [1]",
        "zero_shot = 1",
    ],
)
def test_settings_of_the_wrong_kind_are_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"a\.toml"):
        config_io.read(path)


@pytest.mark.parametrize("value", ["2.5", "NaN", "1e999", "-1", '"x"', "true", "0", "[]", "null"])
@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in sorted(METHODS) for option in METHODS[name].options()]
)
def test_any_value_of_an_option_is_taken_or_refused_in_one_sentence(name, option, value):
    params = [(f"layers.{i}.weight", torch.nn.Parameter(torch.ones(32, 32))) for i in range(5)]
    options = config_io.parse_options([f"{option}={value}"])
    refusal = ""
    try:
        optimizer(TuneConfig(model="tiny-llama", task="sst2", method=name, options=options).resolved(), params, None)
    except BadInput as error:
        refusal = str(error)
        assert option in refusal
        assert "\n" not in refusal
    assert refusal or value not in ("[]", '"x"')  # no option is a list, nor any word


def test_options_of_a_file_and_of_the_command_line_are_merged(tmp_path):
    own = run_helpers.sentiment(tmp_path / "data")
    path = tmp_path / "run.json"
    settings = {"model": "tiny-llama", "own": own, "method": "zo-sparse", "options": {"mask": "random", "keep": 0.1}}
    path.write_text(json.dumps({**settings, "steps": 1, "batch_size": 2, "num_test": 2, "zero_shot": False}))
    done = CliRunner().invoke(
        main, ["tune", "--config", str(path), "--set", "keep=0.5", "--out", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    used = json.loads((tmp_path / "run" / "config.json").read_text())
    assert used["options"] == {"mask": "random", "keep": 0.5}
    alone = CliRunner().invoke(main, ["tune", "--cell", "x", "--model", "tiny-llama", "--out", str(tmp_path / "r")])
    assert alone.exit_code == 2
    assert "give the file with --config" in alone.output


@pytest.mark.parametrize(
    ("changes", "named"),
    [({}, False), ({"eval_every": 3}, True), ({"eval_every": 3, "num_dev": 0}, False), ({"steps": 60}, True)],
)
def test_the_steps_between_evaluations_are_named_if_they_say_something(changes, named):
    config = dataclasses.replace(TuneConfig(model="tiny-llama", task="sst2", steps=10).resolved(), **changes)
    assert ("--eval-every" in config_io.tune_command(config, "again")) is named

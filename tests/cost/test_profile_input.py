"""Profiles that are refused, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from gradless.cli import main
from gradless.cost import workload
from gradless.errors import BadInput
from gradless.lm import shapes
from profile_helpers import measured


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"model": "shape:opt-1.3"}, "unknown shape 'opt-1.3': did you mean 'opt-1.3b'?"),
        ({"model": "tiny-lama"}, "did you mean 'llama'?"),
        ({"method": "mezzo"}, "did you mean 'mezo'?"),
        ({"scheme": "loar"}, "did you mean 'lora'?"),
        ({"engines": ("streem",)}, "unknown engine 'streem': did you mean 'stream'?"),
        ({"engines": ()}, "no engine to measure"),
        ({"batch_size": 0}, "batch_size is 0: give a whole number of at least 1"),
        ({"length": 0}, "length is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"replay_steps": -1}, "replay_steps is -1: give a whole number of at least 0"),
        ({"length": 257}, "--length 257 is more than the 256 tokens that tiny-llama takes"),
        ({"length": 252, "scheme": "prefix"}, "the 251 tokens"),
        ({"dtype": "bf16"}, "did you mean 'bfloat16'?"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
    ],
)
def test_bad_choices_are_one_sentence(choices, sentence):
    with pytest.raises(BadInput) as error:
        measured(**choices)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_timed(small, monkeypatch):
    monkeypatch.setattr(shapes, "SCALE", float("inf"))
    with pytest.raises(BadInput, match="the loss of shape:small in float32 is not finite"):
        measured(small)


def test_files_are_refused_before_anything_is_measured(tmp_path, monkeypatch):
    def never(*_: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(workload, "subject", never)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for choices, sentence in (
        ({"json": tmp_path / "file" / "x.json"}, "cannot be written"),
        ({"json": tmp_path}, "cannot be written (it is a folder): choose another file"),
        ({"picture": tmp_path / "folder.png"}, "it is a folder"),
        ({"picture": tmp_path / "x.jpg"}, "end its name with .png, .svg, .pdf"),
    ):
        with pytest.raises(BadInput) as error:
            measured(**choices)
        assert sentence in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_the_command_line(tmp_path):
    path = tmp_path / "p.json"
    command = [
        *("profile", "--model", "tiny-opt", "--batch-size", "2", "--length", "6", "--repeats", "1", "--no-memory"),
        *("--no-eager", "--engine", "stream", "--engine", "in-place", "--json", str(path)),
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "two forwards (floor)" in result.output
    assert list(json.loads(path.read_text())["engines"]) == ["stream", "in-place"]
    wrong = CliRunner().invoke(main, [*command, "--engine", "strem"])
    assert wrong.exit_code == 2
    assert wrong.stderr == (
        "gradless: unknown engine 'strem': did you mean 'stream'? (known: dual, in-place, stream)\n"
    )
    refused = CliRunner().invoke(main, ["profile", "--model", "tiny-opt", "--only", "streams", "--json", str(path)])
    assert (refused.exit_code, "did you mean 'stream'?" in refused.stderr) == (2, True)


@pytest.mark.sweep
def test_the_profiler_is_quiet():
    """Torch's profiler announces itself on stderr unless it is told not to."""
    code = """
from gradless.cost.profile import Reporter, profile
small = {"batch_size": 2, "length": 6, "repeats": 1, "memory": False, "eager": False}
profile("tiny-opt", **small, engines=("stream",), reporter=Reporter(quiet=True))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout == ""

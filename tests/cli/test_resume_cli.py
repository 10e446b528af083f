"""``gradless tune --resume``: with the run's own settings, with more steps, and again after it has finished."""

from __future__ import annotations

import json

import pytest

from cli_helpers import call, refused
from gradless.runs.config import read_config


@pytest.fixture
def odd(tmp_path, own) -> list[str]:
    """A command whose settings are of all kinds, some of which no single option says."""
    options = dict(zip(own[::2], own[1::2], strict=True))
    (tmp_path / "task.toml").write_text(
        f'name = "mine"\ntemplate = "{{text}}\\n\\tso"\nlabel_column = "label"\n'
        f"train = {json.dumps(options['--train'])}\n"
        f'test = {json.dumps(options["--test"])}\n[labels]\n0 = "terrible"\n1 = "so = great, really"\n'
    )
    return [
        *("tune", "--model", "tiny-llama", "--task-file", str(tmp_path / "task.toml"), "--method", "zo-sparse"),
        *("--set", "keep=0.25", "--set", "mask=random", "--freeze", "embed", "--freeze", "head|norm"),
        *("--steps", "2", "--lr", "1e-5", "--max-length", "40", "--select", "metric", "--seed", "5"),
        *("--batch-size", "4", "--micro-batch-size", "2", "--num-train", "16", "--num-dev", "8", "--no-zero-shot"),
        *("--out", str(tmp_path / "run")),
    ]


def test_resume_alone_goes_on_with_the_settings_of_the_run(odd, tmp_path):
    assert call(*odd).exit_code == 0
    run, config = tmp_path / "run", read_config(tmp_path / "run")
    (run / "result.json").unlink()
    for arguments in (["--out", run], ["--config", run / "config.json", "--out", run], [*odd[1:]]):
        again = call("tune", "--resume", *arguments)
        assert again.exit_code == 0, again.output
        assert read_config(run) == config
    longer = call("tune", "--resume", "--out", run, "--steps", "3")
    assert longer.exit_code == 0, longer.output
    assert "goes on from step 2 to step 3 instead of 2" in longer.output
    assert read_config(run).steps == 3
    refused(call(*odd, "--resume"), "has taken 3 steps, more than --steps 2")
    refused(call("tune", "--resume", "--out", run, "--lr", "1"), "other settings (lr was 1e-05 and is now 1.0)")


def test_without_steps_a_resumed_run_has_those_that_it_has(tune, tmp_path):
    index = tune.index("--steps")
    command = tune[:index] + tune[index + 2 :]
    assert call(*tune).exit_code == 0
    again = call(*command, "--resume")  # and not the thousand of a new run
    assert again.exit_code == 0
    assert "is finished; nothing to do" in again.output
    assert json.loads(again.stdout.splitlines()[-1])["status"] == "done"


def test_resume_without_a_run_and_without_settings_says_so(tmp_path):
    refused(call("tune", "--resume", "--out", tmp_path / "no"), "no holds no run to continue", "give its --out")
    refused(call("tune", "--resume"), "--model")
    assert not (tmp_path / "no").exists()


def test_commands_again_after_they_finished_are_success(tune, own, tmp_path):
    save = ["--save", tmp_path / "saved"]
    commands = (
        [*tune, "--resume", *save],
        ["replay", tmp_path / "run", *save],
        ["replay", tmp_path / "run", "--until", "1", "--save", tmp_path / "first"],
        ["eval", "--model", "tiny-llama", *own, "--out", tmp_path / "eval"],
        ["report", tmp_path / "run"],
    )
    for command in commands:
        assert call(*command).exit_code == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".html"}
    for command in commands:
        again = call(*command)
        assert again.exit_code == 0, again.output
    assert files == {path: path.read_bytes() for path in files}
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".html"} == files.keys()
    refused(call("replay", tmp_path / "run", "--until", "1", *save), "saved exists already and is not empty")
    refused(call("replay", tmp_path / "run", "--save", tmp_path / "first"), "first exists already and is not empty")
    refused(call("eval", "--model", "tiny-opt", *own, "--out", tmp_path / "eval"), "already holds a run or another")

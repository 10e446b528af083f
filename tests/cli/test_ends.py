"""The last lines on a terminal: where the work lies, what it reached, and commands that are true for this very run."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_helpers import call, refused, without
from gradless import ledger
from gradless.cli import ends
from gradless.runs import save as saving
from gradless.runs import train
from gradless.runs.config import read_config
from gradless.system import terminal


@pytest.fixture
def live(monkeypatch):
    """A wide terminal."""
    monkeypatch.setattr(terminal, "live", lambda **_: True)
    monkeypatch.setenv("COLUMNS", "1000")


def last(output: str) -> list[str]:
    """The lines from that which begins with a path up to the commands."""
    return output.splitlines()[-3:]


def commands(line: str) -> list[list[str]]:
    """The commands of the last line, as arguments; each must be one of gradless."""
    assert line.startswith(ends.NEXT), line
    words = [shlex.split(text) for text in line.removeprefix(ends.NEXT).split(" | ")]
    assert all(one[0] == "gradless" for one in words)
    return [one[1:] for one in words]


def run_all(line: str, tmp_path: Path, own: list[str]) -> None:
    """Run the commands of the last line, in the order in which they stand there."""
    for arguments in commands(line):
        values = {"DIR": str(tmp_path / f"dir-{arguments[0]}"), "FILE": own[own.index("--test") + 1]}
        done = call(*(values.get(one, one) for one in arguments))
        assert done.exit_code == 0, (arguments, done.output, done.exception)


def test_a_finished_run_says_where_what_and_next(live, tune, own, tmp_path):
    result = call(*tune)
    assert result.exit_code == 0, result.output
    location, scores, following = last(result.stdout)
    assert location.startswith(f"{tmp_path / 'run'}: 3 steps in ")
    assert "of ledger" in location
    assert scores.startswith("test accuracy 0.")
    assert "untouched 0." in scores
    assert '; always "' in scores
    assert "weights_sha256" not in result.stdout
    assert [one[0] for one in commands(following)] == ["report", "predict", "replay"]
    run_all(following, tmp_path, own)
    again = call(*tune, "--resume", "--save", tmp_path / "saved")
    assert last(again.stdout)[0].endswith(f"; model in {tmp_path / 'saved'}")
    assert "replay" not in last(again.stdout)[2]


def test_json_is_one_line_on_a_terminal_too(live, tune, own, tmp_path):
    line = json.loads(call(*tune, "--json").stdout.splitlines()[-1])
    assert line["status"] == "done"
    assert json.loads(call("replay", tmp_path / "run", "--json").stdout.splitlines()[-1])["step"] == 3
    result = call("eval", "--model", "tiny-llama", *own, "--json")
    assert json.loads(result.stdout.splitlines()[-1])["test"]["accuracy"] >= 0


def test_a_pipe_has_what_it_had(tune, tmp_path):
    lines = call(*tune).stdout.splitlines()
    assert lines[-3].startswith("test ")
    assert lines[-2].startswith("difference in accuracy: ")
    assert set(json.loads(lines[-1])) >= {"status", "weights_sha256"}
    assert not any(line.startswith(ends.NEXT) for line in lines)


def _raise_in_step(monkeypatch, at: int, error: BaseException) -> None:
    true_step = train._step

    def step(run, *args):
        if run.model.optimizer.t == at:
            raise error
        return true_step(run, *args)

    monkeypatch.setattr(train, "_step", step)


def _raise_at_the_end(monkeypatch, error: BaseException) -> None:
    def finish(*args):
        raise error

    monkeypatch.setattr(train.finish, "finish", finish)


@pytest.mark.parametrize("twice", [pytest.param(False, marks=pytest.mark.sweep), True])
def test_ctrl_c_names_the_command_that_goes_on(live, tune, own, tmp_path, monkeypatch, twice):
    with monkeypatch.context() as patched:
        _raise_in_step(patched, 2, KeyboardInterrupt())
        if twice:
            _raise_at_the_end(patched, KeyboardInterrupt())
        result = call(*tune, "--save", tmp_path / "my model")
    assert result.exit_code == 1
    location, scores, following = last(result.stdout)
    assert location == f"{tmp_path / 'run'}: stopped after 2 of 3 steps; nothing is lost"
    assert "untouched test accuracy 0." in scores
    assert commands(following)[0] == [
        "tune",
        "--resume",
        "--out",
        str(tmp_path / "run"),
        "--save",
        str(tmp_path / "my model"),
    ]
    run_all(following, tmp_path, own)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "done"
    assert (tmp_path / "my model" / "config.json").exists()


def test_an_extension_that_is_stopped_before_it_is_noted_is_named(live, tune, tmp_path, monkeypatch):
    assert call(*tune).exit_code == 0
    config = (tmp_path / "run" / "config.json").read_bytes()

    def interrupted(*args, **how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "_assembled", interrupted)
        result = call("tune", "--resume", "--out", tmp_path / "run", "--steps", "5")
    assert (tmp_path / "run" / "config.json").read_bytes() == config
    assert commands(last(result.stdout)[2])[0] == ["report", str(tmp_path / "run")]  # the run is finished as it is


def test_a_run_that_diverged_names_a_gentler_one(live, tune, own, tmp_path):
    result = call(*tune, "--lr", "1e300", "--labels", "0=terrible,1=great")
    assert result.exit_code == 1
    location, _, following = last(result.stdout)
    assert "run: diverged after " in location
    gentler = commands(following)[0]
    assert gentler[:2] == ["tune", "--config"]
    assert gentler[-4:] == ["--lr", "1e+299", "--out", str(tmp_path / "run-2")]
    done = call(*gentler, "--lr", "1e-6")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device", "ledger"), "cannot write"),
        pytest.param(MemoryError(), "out of memory (MemoryError): lower --batch-size, or", marks=pytest.mark.sweep),
        pytest.param(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out of memory (",
            marks=pytest.mark.sweep,
        ),
        pytest.param(ValueError("a fault of ours"), "", marks=pytest.mark.sweep),
    ],
)
def test_a_failure_behind_the_first_step_says_how_to_go_on(live, tune, tmp_path, monkeypatch, error, sentence):
    with monkeypatch.context() as patched:
        _raise_in_step(patched, 2, error)
        result = call(*tune)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert "stopped after" in last(result.stdout)[0]
    assert call(*commands(last(result.stdout)[2])[0]).exit_code == 0


def test_refused_input_stays_one_sentence(live, tune, own, tmp_path):
    result = call(*tune, "--lr", "-1")
    refused(result)
    assert result.stdout == ""
    assert call(*tune).exit_code == 0
    result = call(*tune, "--resume", "--lr", "3")
    refused(result, "other settings")
    assert ends.NEXT not in result.stdout


@pytest.mark.sweep
def test_a_model_that_cannot_be_saved_leaves_the_run_and_says_so(live, tune, tmp_path, monkeypatch):
    def deliver(*args, **how):
        raise OSError(28, "No space left on device", "saved")

    monkeypatch.setattr(saving, "deliver", deliver)
    result = call(*tune, "--save", tmp_path / "saved")
    assert result.exit_code == 1
    assert last(result.stdout)[0].startswith(f"{tmp_path / 'run'}: 3 steps in ")
    assert ["replay", str(tmp_path / "run"), "--save", "DIR"] in commands(last(result.stdout)[2])


@pytest.mark.sweep
def test_without_test_rows_dev_is_told(live, tune, tmp_path):
    result = call(*without(tune, "--test"))
    assert result.exit_code == 0, result.output
    assert "dev loss " in last(result.stdout)[1]


@pytest.mark.sweep
def test_eval_replay_and_report_say_what_next(live, tune, own, tmp_path):
    assert call(*tune).exit_code == 0
    for arguments in (
        ["eval", "--model", "tiny-llama", *own, "--out", tmp_path / "evaluated"],
        ["replay", tmp_path / "run", "--save", tmp_path / "saved"],
        ["replay", tmp_path / "run", "--until", "1"],
        ["report", tmp_path / "run"],
    ):
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        for number, command in enumerate(commands(result.stdout.splitlines()[-1])):
            values = {"DIR": str(tmp_path / f"{arguments[0]}-{len(arguments)}-{number}"), "FILE": own[3]}
            few = ["--steps", "2"] if command[0] == "tune" else []
            done = call(*(values.get(argument, argument) for argument in command), *few)
            assert done.exit_code == 0, (command, done.output)


def test_a_narrow_terminal_has_a_command_a_line(live, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    ends.show(ends.End("here", "", ["gradless report runs/a", "gradless replay runs/a --save DIR"]))
    assert capsys.readouterr().out.splitlines() == [
        "here",
        "next: gradless report runs/a",
        "      gradless replay runs/a --save DIR",
    ]


def _in_terminal(arguments: list[str], stop: str = "", number: int = signal.SIGINT) -> tuple[int, list[str]]:
    """Run a command under a pseudo-terminal of 200 columns; send a signal once ``stop`` is there."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gradless", *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(child)
    output, sent, until = b"", False, time.monotonic() + 300
    while time.monotonic() < until:
        if not select.select([parent], [], [], 1)[0]:
            continue
        try:
            data = os.read(parent, 1 << 16)
        except OSError:  # Linux: all writers are gone
            break
        output += data
        if stop and not sent and stop.encode() in output:
            process.send_signal(number)
            sent = True
        if not data:
            break
    os.close(parent)
    text = output.decode(errors="replace").replace("\r", "\n")
    return process.wait(), [line for line in text.splitlines() if line.strip()]


@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_under_a_pseudo_terminal(tune, tmp_path, number):
    code, lines = _in_terminal([*tune, "--steps", "100000", "--eval-every", "50000"], "s a step", number)
    assert code == 1, lines
    at = next(index for index, line in enumerate(lines) if line.startswith(f"{tmp_path / 'run'}: stopped after "))
    assert commands(lines[at + 2].strip())[0] == ["tune", "--resume", "--out", str(tmp_path / "run")]
    steps = int(lines[at].split("stopped after ")[1].split()[0])
    assert 0 < steps < 100000
    assert len(ledger.read(tmp_path / "run" / "ledger").moves) == steps
    assert read_config(tmp_path / "run").steps == 100000


GRID = """
name = "small"
seeds = [1]
budget = { forwards = 8 }
zero_shot = true

[base]
model = "tiny-llama"
batch_size = 4
num_dev = 8
own = { train = "{train}", test = "{test}", template = "{text} so", label_column = "label", labels = "0=bad,1=good" }

[axes]
method = ["mezo", "zo-sign"]
"""


@pytest.mark.sweep
def test_a_benchmark_says_what_next_and_again_is_success(live, own, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID.replace("{train}", own[1]).replace("{test}", own[3]))
    bench = ["bench", tmp_path / "grid.toml", "--out", tmp_path / "bench"]
    for again in (False, True):
        result = call(*bench)
        assert result.exit_code == 0, result.output
        location, scores, following = last(result.stdout)
        assert location == f"{tmp_path / 'bench'}: 3 of 3 runs have ended (3 done, 0 diverged, 0 failed)"
        assert scores.startswith("best of ")
        assert "untouched 0." in scores
        if not again:
            run_all(following, tmp_path, own)
    assert json.loads(call(*bench, "--json").stdout.splitlines()[-1])["done"] == 3
    result = call("report", tmp_path / "bench")
    assert result.exit_code == 0
    tune = commands(result.stdout.splitlines()[-1])[0]
    assert tune[:2] == ["tune", "--config"]


def test_a_simulation_says_what_next_and_again_is_success(live, tmp_path):
    arguments = ["collab", "simulate", "--dataset", "digits", "--peers", "4", "--byzantine", "1", "--attack", "alie"]
    arguments += ["--steps", "3", "--out", tmp_path / "group"]
    for _ in range(2):
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        location, scores, following = last(result.stdout)
        assert location == f"{tmp_path / 'group'}: done after 3 steps"
        assert scores.startswith("worst honest accuracy 0.")
        assert commands(following) == [["report", str(tmp_path / "group")]]
    assert json.loads(call(*arguments, "--json").stdout.splitlines()[-1])["status"] == "done"


def test_a_stopped_simulation_names_the_same_command(live, tmp_path, monkeypatch):
    from gradless.collab.simulation import simulate

    def step(run):
        raise KeyboardInterrupt

    arguments = ["collab", "simulate", "--dataset", "digits", "--peers", "4", "--steps", "3", "--out", tmp_path / "a b"]
    with monkeypatch.context() as patched:
        patched.setattr(simulate, "_step", step)
        result = call(*arguments)
    assert result.exit_code == 1
    assert commands(last(result.stdout)[2])[0] == [*map(str, arguments)]
    assert call(*commands(last(result.stdout)[2])[0]).exit_code == 0

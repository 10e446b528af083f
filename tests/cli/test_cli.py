"""The command line: its help, its sentences for bad input, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cli_helpers import call, refused, without
from gradless import tasks
from gradless.runs import config_io
from gradless.runs.config import read_config

COMMANDS = (
    *("demo", "tune", "eval", "replay", "profile", "bench", "report", "list", "plan", "doctor", "completion"),
    "recipe",
)


LISTS = {
    "methods": "mezo-momentum",
    "schemes": "prefix",
    "tasks": "multirc",
    "models": "gemma-3-270m",
    "objectives": "option_ce",
}


# ---------------------------------------------------------------------------------------------------------------
# help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    for flag in ("--help", "-h"):
        result = call(command, flag)
        assert result.exit_code == 0
        assert f"gradless {command} " in result.output.split("Usage:")[1].split("\n", 1)[1]


def test_help_lists_the_commands_and_the_version_is_told():
    result = call("--help")
    assert all(f"  {command}" in result.output for command in COMMANDS)
    assert "0.1" in call("--version").output


def test_the_module_runs_and_answers_at_once():
    process = subprocess.run([sys.executable, "-m", "gradless", "list", "models"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "tiny-llama" in process.stdout
    wrong = subprocess.run([sys.executable, "-m", "gradless", "tunne"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "gradless: unknown command 'tunne': did you mean 'tune'? (known: bench, collab, completion, demo, doctor, "
        "eval, ledger, list, peers, plan, predict, profile, recipe, replay, report, tune)"
    ]


@pytest.mark.parametrize(("what", "entry"), LISTS.items())
def test_lists(what, entry):
    result = call("list", what)
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.output.splitlines()]
    assert entry in names
    assert len(names) == len(set(names))
    assert all(len(line.split(maxsplit=1)) == 2 for line in result.output.splitlines())
    if what == "tasks":
        assert names == tasks.names()


# ---------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [
        ("--method", "meso", "did you mean 'mezo'?"),
        ("--scheme", "loar", "did you mean 'lora'?"),
        ("--model", "tiny-lama", "did you mean 'llama'?"),
        ("--dtype", "bfloat", "did you mean 'bfloat16'?"),
        ("--objective", "option-ce", "did you mean 'option_ce'?"),
        ("--schedule", "cosin", "did you mean 'cosine'?"),
        ("--query-schedule", "liner", "did you mean 'linear'?"),
        ("--layer-scale", "varianz", "did you mean 'variance'?"),
        ("--select", "los", "did you mean 'loss'?"),
        ("--device", "gpu", "use cpu, cuda"),
    ],
)
def test_unknown_names_suggest_the_nearest(tune, tmp_path, option, value, near):
    refused(call(*tune, option, value), f"'{value.removeprefix('tiny-')}'", near)
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_mode_or_list_suggests_the_nearest(tmp_path, own):
    refused(call("tune", "--model", "tiny-opt", "--task", "SST-22", "--out", tmp_path / "x"), "did you mean 'sst2'?")
    refused(call("list", "task"), "did you mean 'tasks'?")
    refused(call("eval", "--model", "tiny-opt", *own, "--mode", "zeroshot"), "did you mean 'zero-shot'?")
    refused(call("tune", "--modell", "x"), "--model", "see main tune --help")
    refused(call("tune", "--model", "tiny-opt"), "--out", "see main tune --help")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--lr", "0"), ("--lr", "-1"), ("--lr", "nan"), ("--eps", "0"), ("--eps", "inf"), ("--weight-decay", "-1")),
        *(("--steps", "0"), ("--batch-size", "0"), ("--queries", "0"), ("--micro-batch-size", "0"), ("--rank", "0")),
        *(("--warmup", "-1"), ("--eval-every", "0"), ("--num-train", "-5"), ("--max-length", "0"), ("--k-shot", "0")),
        *(("--steps", "many"), ("--max-length", "1")),
    ],
)
def test_impossible_numbers_are_refused(tune, tmp_path, option, value):
    more = ["--scheme", "lora"] if option == "--rank" else []
    refused(call(*tune, *more, option, value))
    assert not (tmp_path / "run").exists()


def test_numbers_of_rows_that_nothing_would_read_are_refused(own, tmp_path):
    for name in ("train", "dev"):
        asked = ("--out", tmp_path / "run", "--k-shot", 2, f"--num-{name}", 4)
        refused(call("tune", "--model", "tiny-opt", *own, *asked), f"leave out one of it and --num-{name}")
    for command in (["tune", "--out", tmp_path / "run"], ["eval"]):
        refused(call(*command, "--model", "tiny-opt", *own, "--num-test", 0), "leave out --test")
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_together_is_refused_before_anything_is_written(tune, tmp_path):
    masked = ["--model", "tiny-roberta", "--template", "{text} so {mask}."]
    refused(call(*tune, "--model", "tiny-roberta"), "no prompt for masked models")
    refused(call(*tune, *masked, "--labels", "0=terrible,1=not so bad"), "' not so bad' is", "one token")
    refused(call(*tune, *masked, "--objective", "lm"), "needs a causal model")
    refused(call(*tune, "--scheme", "head", "--objective", "gold"), "a label head scores labels")
    refused(call(*tune, "--scheme", "head", "--labels", "0=terrible,1=not so bad"), "not one token")
    refused(call(*tune, "--scheme", "lora", "--target", "query"), "no linear module named query")
    refused(call(*tune, "--freeze", "nowhere"), "no parameter matches the pattern 'nowhere'")
    refused(call(*tune, "--freeze", "("), "not a regular expression")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named(tune, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(call(*tune, "--scheme", "lora"), "'peft' is not installed: pip install 'gradless[lm]'")


@pytest.mark.parametrize("option", ["--template", "--label-column", "--labels"])
def test_own_files_need_their_options(tune, option):
    refused(call(*without(tune, option)), f"need {option}")


def test_files_that_are_not_there_are_named(tune, tmp_path):
    for option in ("--train", "--test", "--dev", "--task-file"):
        refused(call(*tune, option, tmp_path / "no.csv"), "no.csv")
    for model in (tmp_path / "nothing", tmp_path / "nothing.gguf"):
        refused(call(*tune, "--model", model), "there is no model at")
    refused(call("tune", "--model", "tiny-opt", "--task", "sst2", "--data", tmp_path / "no", "--out", tmp_path / "x"))
    refused(call("replay", tmp_path / "no"), "there is no ledger")
    refused(call("replay", tmp_path / "no", "--verify"), "no result.json")
    assert not (tmp_path / "run").exists()


def test_data_are_named_once(tune, tmp_path, own):
    refused(call(*tune, "--task", "sst2"), "not both")
    refused(call(*tune, "--data", tmp_path), "--data goes with a --task")
    refused(call("tune", "--model", "tiny-opt", "--out", tmp_path / "x"), "--task", "--train")


def test_a_split_smaller_than_asked_names_the_numbers(tune, tmp_path):
    refused(call(*tune, "--num-train", "45"), "45 train rows", "8 dev rows", "has 48", "lower --num-train")
    refused(call(*tune, "--num-test", "25"), "25 test rows", "has 24", "lower --num-test")
    assert not (tmp_path / "run").exists()


def test_no_rows_of_a_file_that_is_given_are_refused(tune, tmp_path, own):
    """A configuration of gradless's own has 0 for all rows, which stays."""
    fix = "0 means all: leave it out for all rows, or leave out {} for none"
    refused(call(*tune, "--num-test", "0"), "--num-test 0 asks for no row of --test, and", fix.format("--test"))
    path = tmp_path / "a.toml"
    path.write_text("num_test = 0\n")
    refused(call(*tune, "--config", path), f"num_test = 0 in {path} asks for no row of test", fix.format("test"))
    path.write_text('[cell."x"]\nnum_test = 0\n')  # as best.toml
    assert call(*tune, "--config", path, "--num-train", "4", "--steps", "1").exit_code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["num_test"] == 0
    again = call("tune", "--config", tmp_path / "run" / "config.json", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "again" / "result.json").read_text())["rows"]["test"] == 24


def test_a_broken_gguf_is_refused(tune, tmp_path):
    good = b"GGUF" + struct.pack("<IQQ", 3, 5, 5)
    for name, data in (("a.gguf", b"PK\x03\x04" * 10), ("b.gguf", good[:9]), ("c.gguf", good + b"\xff" * 100)):
        (tmp_path / name).write_bytes(data)
        refused(call(*tune, "--model", tmp_path / name), name, "download it again")


def test_an_existing_run_is_not_overwritten(tune, tmp_path, own):
    assert call(*tune).exit_code == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused(call(*tune), "already holds a run", "--resume")
    refused(call(*tune, "--resume", "--lr", "0.5"), "other settings", "lr was 1e-06 and is now 0.5")
    refused(call(*tune, "--resume", "--labels", "0=bad,1=good"), "labels was", "0=bad")
    refused(call("eval", "--model", "tiny-llama", *own, "--out", tmp_path / "run"), "already holds")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = call(*tune, "--resume")
    assert again.exit_code == 0
    assert "is finished" in again.output


def test_out_must_not_be_a_file(tune, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(call(*tune, "--out", tmp_path / "file"), "is a file")
    refused(call(*tune, "--out", tmp_path / "file" / "below"), "Not a directory")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "ledger").write_bytes(b"?")
    refused(call(*tune, "--out", tmp_path / "half", "--resume"), "without its config.json")


def test_a_damaged_configuration_is_named(tune, tmp_path):
    assert call(*tune).exit_code == 0
    for text in ("{", "[]", '{"model": "x", "stepz": 3}'):
        (tmp_path / "run" / "config.json").write_text(text)
        refused(call(*tune, "--resume"))
    (tmp_path / "run" / "result.json").write_text("{")
    refused(call("replay", tmp_path / "run", "--verify"), "result.json cannot be read")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--steps", "ten"), "steps is 'ten': give a whole number of at least 1"),
        (("--lr", "nan"), "lr is nan: give a finite number above 0 or auto"),
        (("--weight-decay", "-1"), "weight_decay is -1.0: give a finite number of at least 0"),
    ],
)
def test_options_are_checked_as_fields_are(tmp_path, option, sentence):
    refused(call("tune", "--model", "m", "--task", "sst2", "--out", tmp_path, *option), sentence)


def test_paths_that_cannot_be_are_refused(tune, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / "loop", tmp_path / ("n" * 300), tmp_path / "file" / "x", ""):
        refused(call(*tune, "--out", path), "cannot be used")
        refused(call(*tune, "--config", path), "cannot be")
        refused(call(*tune, "--train", path), "cannot be used")
    refused(call(*tune, "--save", tmp_path / "file"), "is a file")


def test_what_names_hold_moves_nothing_on_the_terminal(tune, tmp_path):
    odd = tmp_path / "\x1b[31mred\u202e\n[blue]"
    result = call(*tune, "--out", odd, "--labels", "0=bad\x1b[5m,1=good\u2066[red]")
    assert result.exit_code == 0, result.output
    for output in (
        result.output,
        call("report", odd).output,
        call(*tune, "--out", odd).output,
        call("plan", "--model", odd).output,
    ):
        assert output
        assert all(line.isprintable() for line in output.split("\n")), output
    assert "\\x1b[31mred\\u202e\\n[blue]" in call("report", odd).output


def test_a_backslash_and_n_is_a_newline_on_the_command_line_only(tune, tmp_path):
    """A shell keeps the two characters; a file has escapes of its own; the command of a run says the same again."""
    typed = call(*without(tune, "--template"), "--template", r"a\tb \\n {text}\nso", "--steps", "1", "--num-dev", "0")
    assert typed.exit_code == 0, typed.output
    assert "a backslash and n is a newline" in typed.stderr
    out = Path(tune[tune.index("--out") + 1])
    template = read_config(out).own["template"]
    assert template == "a\tb \\n {text}\nso"
    (tmp_path / "run.json").write_text(json.dumps({"own": {"template": template}}))
    options = [*without(without(tune, "--template"), "--out"), "--steps", "1", "--num-dev", "0", "--no-zero-shot"]
    filed = call(*options, "--config", tmp_path / "run.json", "--out", tmp_path / "filed")
    assert filed.exit_code == 0, filed.output
    assert "backslash" not in filed.stderr
    assert read_config(tmp_path / "filed").own["template"] == template
    command = shlex.split(config_io.tune_command(read_config(out), "x"))
    assert config_io.unescape(command[command.index("--template") + 1]) == template


def test_a_stop_text_is_typed_as_a_template_is(own, tmp_path):
    score = "def length(prompts, completions, **_):\n    return [len(c) for c in completions]\n"
    (tmp_path / "score.py").write_text(score)
    asked = ["tune", "--model", "tiny-opt", "--train", own[1], "--template", "{text}", "--max-new-tokens", "2"]
    more = ["--reward", f"{tmp_path / 'score.py'}:length", "--method", "es", "--steps", "1", "--out", tmp_path / "run"]
    done = call(*asked, *more, "--stop", r"\n\n", "--stop", "end")
    assert done.exit_code == 0, done.output
    assert read_config(tmp_path / "run").stop == ("\n\n", "end")
    command = shlex.split(config_io.tune_command(read_config(tmp_path / "run"), "x"))
    assert command[command.index("--stop") + 1] == r"\n\n"


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--learning-rate=1", "--lr"),
        ("--batch_size=4", "--batch-size"),
        ("--epochs=3", "--steps"),
        ("--keep=0.5", "--set keep=... (of zo-sparse, zo-block, sparse-mezo, lezo)"),
        ("--stepz=3", "--steps"),
    ],
)
def test_an_option_of_another_name_is_one_sentence_with_the_right_one(option, meant):
    refused(call("tune", option), f"no option {option.partition('=')[0]}: did you mean {meant}? (see main tune --help)")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("learning_rate=1", "learning_rate is no option of the method mezo: write --lr"),
        ("keep=0.5", "the method mezo has no option keep: leave it out, or choose a method that has: zo-sparse, "),
    ],
)
def test_an_option_of_other_methods_is_told(tune, option, sentence):
    refused(call(*tune, "--set", option), sentence)

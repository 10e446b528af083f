"""The command line: its help, its sentences for bad input, its exit codes, and what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import run_helpers as h
from gradless import lm, tasks
from gradless.cli import main
from gradless.runs import replay

COMMANDS = ("demo", "tune", "eval", "replay", "profile", "bench", "report", "list", "plan", "doctor", "completion")
LISTS = {
    "methods": "mezo-momentum",
    "schemes": "prefix",
    "tasks": "multirc",
    "models": "gemma-3-270m",
    "objectives": "option_ce",
}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(found: Result, *parts: str, code: int = 2) -> None:
    """One sentence on stderr, the exit code, no traceback."""
    assert found.exit_code == code, (found.output, found.exception)
    assert found.exception is None or isinstance(found.exception, SystemExit)
    assert found.stderr.startswith("gradless: ")
    assert found.stderr.count("\n") == 1
    assert "Traceback" not in found.output
    for part in parts:
        assert part in found.stderr, found.stderr


@pytest.fixture
def own(tmp_path) -> list[str]:
    """Options for small own files."""
    files = h.sentiment(tmp_path / "data")
    return [
        *("--train", files["train"], "--test", files["test"], "--template", files["template"]),
        *("--label-column", "label", "--labels", files["labels"]),
    ]


@pytest.fixture
def tune(tmp_path, own) -> list[str]:
    """A run of three steps into ``run``; later options override earlier ones."""
    return [
        *("tune", "--model", "tiny-llama", *own, "--steps", "3", "--batch-size", "4"),
        *("--num-train", "16", "--num-dev", "8", "--out", str(tmp_path / "run")),
    ]


def without(options: list[str], name: str) -> list[str]:
    place = options.index(name)
    return options[:place] + options[place + 2 :]


# ---------------------------------------------------------------------------------------------------------------
# help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    for flag in ("--help", "-h"):
        found = call(command, flag)
        assert found.exit_code == 0
        assert f"gradless {command} " in found.output.split("Usage:")[1].split("\n", 1)[1]


def test_help_lists_the_commands_and_the_version_is_told():
    found = call("--help")
    assert all(f"  {command}" in found.output for command in COMMANDS)
    assert "0.1" in call("--version").output


def test_the_module_runs_and_answers_at_once():
    found = subprocess.run([sys.executable, "-m", "gradless", "list", "models"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "tiny-llama" in found.stdout
    wrong = subprocess.run([sys.executable, "-m", "gradless", "tunne"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "gradless: unknown command 'tunne': did you mean 'tune'? "
        "(known: bench, collab, completion, demo, doctor, eval, list, plan, profile, replay, report, tune)"
    ]


@pytest.mark.parametrize(("what", "entry"), LISTS.items())
def test_lists(what, entry):
    found = call("list", what)
    assert found.exit_code == 0
    names = [line.split()[0] for line in found.output.splitlines()]
    assert entry in names
    assert len(names) == len(set(names))
    assert all(len(line.split(maxsplit=1)) == 2 for line in found.output.splitlines())
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


def test_a_broken_gguf_is_refused(tune, tmp_path):
    good = b"GGUF" + struct.pack("<IQQ", 3, 5, 5)
    for name, data in (("a.gguf", b"PK\x03\x04" * 10), ("b.gguf", good[:9]), ("c.gguf", good + b"\xff" * 100)):
        (tmp_path / name).write_bytes(data)
        refused(call(*tune, "--model", tmp_path / name), name, "download it again")


def test_an_existing_run_is_not_overwritten(tune, tmp_path, own):
    assert call(*tune).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused(call(*tune), "already holds a run", "--resume")
    refused(call(*tune, "--resume", "--lr", "0.5"), "other settings", "lr was 1e-06 and is now 0.5")
    refused(call(*tune, "--resume", "--labels", "0=bad,1=good"), "labels was", "0=bad")
    refused(call("eval", "--model", "tiny-llama", *own, "--out", tmp_path / "run"), "already holds")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = call(*tune, "--resume")
    assert again.exit_code == 0
    assert "is finished" in again.output


def test_out_must_not_be_a_file(tune, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(call(*tune, "--out", tmp_path / "file"), "is a file")
    refused(call(*tune, "--out", tmp_path / "file" / "below"), "is a file")
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


# ---------------------------------------------------------------------------------------------------------------
# a full disk


@pytest.mark.parametrize("place", ["ledger", "metrics.jsonl", "result.json", "config.json"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tune, tmp_path, monkeypatch, place):
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if place == "ledger":
            true_write, count = os.write, [0]

            def write(file, data):
                if len(data) == 17:  # a record
                    count[0] += 1
                    if count[0] == 2:
                        true_write(file, data[:5])
                        raise full
                return true_write(file, data)

            patch.setattr(os, "write", write)
        else:
            true_open = Path.open

            def open_(path, *args, **kwargs):
                mode = args[0] if args else kwargs.get("mode", "r")
                if path.name.startswith(place) and mode in ("w", "a"):
                    true_open(path, mode).close()
                    raise OSError(full.errno, full.strerror, str(path))
                return true_open(path, *args, **kwargs)

            patch.setattr(Path, "open", open_)
        refused(call(*tune), "No space left on device", "free", code=1)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "result.json" not in left
    assert not [name for name in left if name.endswith(".new")]
    # With space again the run goes on where it stopped.
    assert call(*tune, "--resume").exit_code == 0
    whole = call(*tune, "--out", tmp_path / "whole")
    assert whole.exit_code == 0
    hashes = {json.loads((tmp_path / name / "result.json").read_text())["weights_sha256"] for name in ("run", "whole")}
    assert len(hashes) == 1


def test_a_full_disk_while_saving_leaves_no_folder(tune, tmp_path, monkeypatch):
    assert call(*tune).exit_code == 0
    model = type(lm.load("tiny-llama").model)

    def save_pretrained(self, folder, **kwargs):
        (Path(folder) / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", save_pretrained)
    found = call("replay", tmp_path / "run", "--save", tmp_path / "saved" / "model")
    refused(found, "No space left on device", code=1)
    assert list((tmp_path / "saved").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------
# jobs


def test_tune_prints_what_it_did_and_is_silent_on_stderr(tune, tmp_path):
    found = call(*tune)
    assert found.exit_code == 0
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert any(line.startswith("zero-shot test: accuracy") for line in lines)
    assert any(line.startswith("tune 3/3  loss ") for line in lines)
    assert any(line.startswith("test accuracy: ") and "->" in line for line in lines)
    last = json.loads(lines[-1])
    assert last["status"] == "done"
    assert last["weights_sha256"] == json.loads((tmp_path / "run" / "result.json").read_text())["weights_sha256"]


@pytest.mark.parametrize("mode", ["zero-shot", "icl", "calibrated"])
def test_eval_in_three_modes(own, tmp_path, mode):
    arguments = ["eval", "--model", "tiny-llama", *own, "--mode", mode, "--num-demonstrations", "3"]
    found = call(*arguments, "--num-test", "20", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["mode"] == mode
    assert f"accuracy {result['test']['accuracy']:.4f}" in found.output
    low, high = result["interval"]["test"]
    assert low <= result["test"]["accuracy"] <= high
    refused(call(*arguments, "--out", tmp_path / "out"), "already holds")


def test_eval_needs_only_test_rows(own):
    found = call("eval", "--model", "tiny-roberta", *without(own, "--train"), "--template", "{text} so {mask}.")
    assert found.exit_code == 0, found.output
    refused(call("eval", "--model", "tiny-llama", *without(own, "--test")), "no test rows")
    found = call("eval", "--model", "tiny-llama", *without(own, "--train"), "--mode", "icl")
    refused(found, "demonstrations")


def test_a_task_file_stands_for_the_options(tune, tmp_path, own):
    values = dict(zip(own[::2], own[1::2], strict=True))
    text = "".join(
        f"{key} = {json.dumps(value)}\n"
        for key, value in (
            ("template", values["--template"]),
            ("label_column", "label"),
            ("train", "data/train.csv"),  # relative to the TOML file
            ("test", "data/test.csv"),
        )
    )
    (tmp_path / "task.toml").write_text(text + '[labels]\n0 = "terrible"\n1 = "great"\n')
    rest = tune[:3] + tune[3 + len(own) :]
    found = call(*rest, "--task-file", tmp_path / "task.toml", "--out", tmp_path / "toml")
    assert found.exit_code == 0, found.output
    assert call(*tune).exit_code == 0
    hashes = {json.loads((tmp_path / name / "result.json").read_text())["weights_sha256"] for name in ("run", "toml")}
    assert len(hashes) == 1
    resumed = call(*rest, "--task-file", tmp_path / "task.toml", "--out", tmp_path / "toml", "--resume")
    assert "is finished" in resumed.output
    # The command line has the last word.
    refused(
        call(*rest, "--task-file", tmp_path / "task.toml", "--labels", "0=bad", "--out", tmp_path / "x"), "at least two"
    )
    (tmp_path / "task.toml").write_text("template = 3")
    refused(call(*rest, "--task-file", tmp_path / "task.toml", "--out", tmp_path / "x"), "template must be text")


def test_a_run_on_a_known_task_from_its_files(tmp_path):
    found = call(
        *("tune", "--model", "tiny-qwen", "--task", "SQuAD", "--data", h.squad(tmp_path / "squad"), "--steps", "2"),
        *("--batch-size", "2", "--num-train", "6", "--num-dev", "2", "--num-test", "2", "--out", tmp_path / "run"),
    )
    assert found.exit_code == 0, found.output
    assert "test token_f1" in found.output


def test_replay_goes_to_any_step(tune, tmp_path):
    assert call(*tune).exit_code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    found = call("replay", tmp_path / "run", "--verify")
    assert found.exit_code == 0
    assert f"step {result['selected_step']}: weights {result['weights_sha256']}" in found.output
    hashes = set()
    for step in range(4):
        found = call("replay", tmp_path / "run", "--until", step)
        assert found.output.startswith(f"step {step}: weights ")
        hashes.add(found.output.split()[-1])
    assert len(hashes) == 4
    refused(call("replay", tmp_path / "run", "--until", 4), "holds 3 steps")
    refused(call("replay", tmp_path / "run", "--until", -1), "out of reach")
    refused(
        call("replay", tmp_path / "run", "--verify", "--until", (result["selected_step"] + 1) % 4), "verify without"
    )


def test_a_ledger_alone_replays(tune, tmp_path):
    assert call(*tune).exit_code == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "run" / "ledger").rename(tmp_path / "alone" / "ledger")
    assert call("replay", tmp_path / "alone").output.startswith("step 3: weights ")


@pytest.mark.parametrize("where", ["plain", "no/such/parent", "../beside"])
@pytest.mark.parametrize("model", ["tiny-gemma", "tiny-roberta"])
def test_a_saved_model_loads_with_transformers(tune, tmp_path, monkeypatch, model, where):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    masked = model == "tiny-roberta"
    template = ["--template", "{text} so {mask}."] if masked else []
    assert call(*tune, "--model", model, *template, "--lr", "1e-3").exit_code == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # relative paths
    found = call("replay", tmp_path / "run", "--until", "2", "--save", where)
    assert found.exit_code == 0, found.output
    head = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with lm.quiet_transformers():
        saved, report = head.from_pretrained(where, output_loading_info=True)
        AutoTokenizer.from_pretrained(where)
    assert saved.config.use_cache != masked
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=2)
    tensors = dict(saved.named_parameters())
    assert tensors.keys() == {leaf.name for leaf in rebuilt.optimizer.leaves}
    assert all(torch.equal(leaf.param, tensors[leaf.name]) for leaf in rebuilt.optimizer.leaves)
    assert [p.name for p in Path(where).resolve().parent.iterdir() if p.name.startswith(".")] == []
    refused(call("replay", tmp_path / "run", "--save", where), "exists already")


@pytest.mark.parametrize("scheme", ["lora", "prefix", "prompt"])
def test_a_saved_adapter_loads_with_peft(tune, tmp_path, scheme):
    from peft import PeftModel

    assert call(*tune, "--scheme", scheme, "--lr", "1e-2").exit_code == 0
    assert call("replay", tmp_path / "run", "--until", "2", "--save", tmp_path / "saved").exit_code == 0
    with lm.quiet_transformers():
        loaded = PeftModel.from_pretrained(lm.load("tiny-llama").model, tmp_path / "saved")
    rebuilt, _ = replay.rebuild(tmp_path / "run", until=2)
    tensors = dict(loaded.named_parameters())
    for leaf in rebuilt.optimizer.leaves:
        assert torch.equal(leaf.param, tensors[leaf.name])

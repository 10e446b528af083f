"""Jobs from the command line: tune, eval, replay and saved models."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

import run_helpers as h
from cli_helpers import call, refused, without
from gradless import lm
from gradless.runs import replay

# ---------------------------------------------------------------------------------------------------------------
# a full disk


@pytest.mark.parametrize("file_name", ["ledger", "metrics.jsonl", "result.json", "config.json"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tune, tmp_path, monkeypatch, file_name):
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if file_name == "ledger":
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
                if path.name.startswith(file_name) and mode in ("w", "a"):
                    true_open(path, mode).close()
                    raise OSError(full.errno, full.strerror, str(path))
                return true_open(path, *args, **kwargs)

            patch.setattr(Path, "open", open_)
        refused(call(*tune), "No space left on device", "free", code=1)
    left = {path.name for path in (tmp_path / "run").glob("*")}  # the folder is gone if nothing was begun in it
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
    result = call("replay", tmp_path / "run", "--save", tmp_path / "saved" / "model")
    refused(result, "No space left on device", code=1)
    assert not (tmp_path / "saved").exists()


# ---------------------------------------------------------------------------------------------------------------
# jobs


def test_tune_prints_what_it_did_and_is_silent_on_stderr(tune, tmp_path):
    result = call(*tune)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert any(line.startswith("zero-shot test: accuracy") for line in lines)
    assert any(line.startswith("tune 3/3  loss ") for line in lines)
    assert any(line.startswith("test accuracy: ") and "->" in line for line in lines)
    last = json.loads(lines[-1])
    assert last["status"] == "done"
    assert last["weights_sha256"] == json.loads((tmp_path / "run" / "result.json").read_text())["weights_sha256"]


@pytest.mark.parametrize("mode", ["zero-shot", "icl", "calibrated"])
def test_eval_in_three_modes(own, tmp_path, mode):
    arguments = ["eval", "--model", "tiny-llama", *own, "--mode", mode, "--num-demonstrations", "3"]
    invocation = call(*arguments, "--num-test", "20", "--out", tmp_path / "out")
    assert invocation.exit_code == 0, invocation.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["mode"] == mode
    assert f"accuracy {result['test']['accuracy']:.4f}" in invocation.output
    low, high = result["interval"]["test"]
    assert low <= result["test"]["accuracy"] <= high
    refused(call(*arguments, "--out", tmp_path / "out"), "already holds")


def test_eval_of_a_linear_probe(own, tmp_path):
    arguments = ["eval", "--model", "tiny-llama", *own, "--num-dev", "12", "--mode", "probe", "--out", tmp_path / "out"]
    invocation = call(*arguments)
    assert invocation.exit_code == 0, invocation.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["mode"] == "probe"
    assert result["test"]["accuracy"] > 0.6  # the word before the last is in plain sight
    assert 0 <= result["probe"]["dev_accuracy"] <= 1
    assert "is finished" in call(*arguments).output
    refused(call("predict", tmp_path / "out", "--input", own[3]), "linear probe", "not kept")
    refused(call("eval", "--model", "tiny-llama", "--task", "arithmetic", "--mode", "probe"), "needs fixed classes")
    refused(call("eval", "--model", "tiny-llama", *own, "--mode", "probe"), "needs dev rows", "--num-dev")


def test_eval_needs_only_test_rows(own):
    result = call("eval", "--model", "tiny-roberta", *without(own, "--train"), "--template", "{text} so {mask}.")
    assert result.exit_code == 0, result.output
    refused(call("eval", "--model", "tiny-llama", *without(own, "--test")), "no test rows")
    result = call("eval", "--model", "tiny-llama", *without(own, "--train"), "--mode", "icl")
    refused(result, "demonstrations")


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
    result = call(*rest, "--task-file", tmp_path / "task.toml", "--out", tmp_path / "toml")
    assert result.exit_code == 0, result.output
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
    refused(call(*rest, "--task-file", tmp_path / "task.toml", "--out", tmp_path / "x"), "template is 3: give text")


def test_a_run_on_a_known_task_from_its_files(tmp_path):
    result = call(
        *("tune", "--model", "tiny-qwen", "--task", "SQuAD", "--data", h.squad(tmp_path / "squad"), "--steps", "2"),
        *("--batch-size", "2", "--num-train", "6", "--num-dev", "2", "--num-test", "2", "--out", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.output
    assert "test token_f1" in result.output


def test_replay_goes_to_any_step(tune, tmp_path):
    assert call(*tune).exit_code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    invocation = call("replay", tmp_path / "run", "--verify")
    assert invocation.exit_code == 0
    assert f"step {result['selected_step']}: weights {result['weights_sha256']}" in invocation.output
    hashes = set()
    for step in range(4):
        invocation = call("replay", tmp_path / "run", "--until", step)
        assert invocation.output.startswith(f"step {step}: weights ")
        hashes.add(invocation.output.split()[-1])
    assert len(hashes) == 4
    refused(call("replay", tmp_path / "run", "--until", 4), "holds 3 steps")
    refused(call("replay", tmp_path / "run", "--until", -1), "until is -1: give a whole number of at least 0")
    refused(
        call("replay", tmp_path / "run", "--verify", "--until", (result["selected_step"] + 1) % 4), "verify without"
    )


def test_a_ledger_alone_replays(tune, tmp_path):
    assert call(*tune).exit_code == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "run" / "ledger").rename(tmp_path / "alone" / "ledger")
    assert call("replay", tmp_path / "alone").output.startswith("step 3: weights ")


@pytest.mark.few(2)
@pytest.mark.parametrize("where", ["plain", "no/such/parent", "../beside"])
@pytest.mark.parametrize("model", ["tiny-gemma", "tiny-roberta"])
def test_a_saved_model_loads_with_transformers(tune, tmp_path, monkeypatch, model, where):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    masked = model == "tiny-roberta"
    template = ["--template", "{text} so {mask}."] if masked else []
    assert call(*tune, "--model", model, *template, "--lr", "1e-3").exit_code == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # relative paths
    result = call("replay", tmp_path / "run", "--until", "2", "--save", where)
    assert result.exit_code == 0, result.output
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

"""A folder is written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from safetensors import SafetensorError
from transformers import PreTrainedModel

import run_helpers as h
from cli_helpers import call, refused
from gradless.errors import BadInput
from gradless.runs import card, jobs
from gradless.system import locks
from gradless.system.progress import Reporter
from save_helpers import QUIET, tuned


def test_only_an_empty_folder_is_written_to(tmp_path):
    run = tuned(tmp_path)
    (tmp_path / "empty").mkdir()
    jobs.replay(run, save=tmp_path / "empty", reporter=QUIET)
    modes = {path.stat().st_mode for path in (tmp_path / "empty").rglob("*") if path.is_file()}
    assert modes == {run.joinpath("config.json").stat().st_mode}
    assert (tmp_path / "empty" / "model.safetensors").exists()
    jobs.replay(run, save=tmp_path / "empty", reporter=QUIET)  # by a scheduler that tries again
    with pytest.raises(BadInput, match="exists already and is not empty: choose a new folder"):
        jobs.replay(run, until=0, save=tmp_path / "empty", reporter=QUIET)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="is a file: choose"):
        jobs.replay(run, save=tmp_path / "file", reporter=QUIET)
    with pytest.raises(BadInput, match="not empty"):  # before anything is computed
        jobs.tune(h.config(tmp_path), tmp_path / "second", save=tmp_path / "empty", reporter=QUIET)
    assert not (tmp_path / "second").exists()


def test_tune_saves_what_it_measured(tmp_path):
    result = jobs.tune(h.config(tmp_path, scheme="lora"), tmp_path / "run", save=tmp_path / "saved", reporter=QUIET)
    assert result["weights_sha256"] in (tmp_path / "saved" / "README.md").read_text()
    with pytest.raises(BadInput, match="not empty"):
        jobs.tune(h.config(tmp_path), tmp_path / "run", resume=True, save=tmp_path / "saved", reporter=QUIET)


def test_a_run_that_did_not_end_is_not_saved(tmp_path, monkeypatch):
    h.patch_loss(monkeypatch, lambda step, n, loss: loss * float("nan"))
    lines: list[str] = []
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "say", lines.append)
    config = h.config(tmp_path, steps=20, num_dev=0, num_test=0)
    assert jobs.tune(config, tmp_path / "run", save=tmp_path / "saved", reporter=reporter)["status"] == "diverged"
    assert not (tmp_path / "saved").exists()
    assert "nothing is saved" in lines[-1]


def test_what_appears_while_a_model_is_saved_is_left_alone(tmp_path, monkeypatch):
    run, render = tuned(tmp_path), card.render

    def slow(facts: Any) -> str:
        (tmp_path / "out" / "saved").mkdir()
        (tmp_path / "out" / "saved" / "mine.txt").write_text("mine")
        return render(facts)

    monkeypatch.setattr(card, "render", slow)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="not empty: choose a new folder"):  # and is not said to be saved
        jobs.replay(run, save=tmp_path / "out" / "saved", reporter=QUIET)
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["saved", "mine.txt"]


@pytest.mark.parametrize("name", ["run", ""])
def test_a_folder_that_will_hold_the_run_is_refused_first(tmp_path, name):
    out = tmp_path / "all" / "run"
    with pytest.raises(BadInput, match="--save needs a folder of its own"):
        jobs.tune(h.config(tmp_path), out, save=tmp_path / "all" / name, reporter=QUIET)
    assert not out.exists()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    run = tuned(tmp_path)

    def full(facts: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(card, "render", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        jobs.replay(run, save=tmp_path / "out" / "saved", reporter=QUIET)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.sweep
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_save_that_a_signal_ends_leaves_nothing(tmp_path, number):
    run, out = tuned(tmp_path), tmp_path / "out"
    out.mkdir()
    code = (
        "import time; from pathlib import Path; from gradless.runs import card, jobs\n"
        "card.render = lambda facts: (print('now', flush=True), time.sleep(60))\n"
        f"jobs.replay(Path({str(run)!r}), save=Path({str(out / 'saved')!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    while child.stdout.readline() != "now\n":
        pass
    with pytest.raises(BadInput, match=r"another process .* is working on .*\.saving-saved"):
        jobs.replay(run, save=out / "saved", reporter=QUIET)
    child.send_signal(number)
    child.wait()
    child.stdout.close()
    left = [] if number != signal.SIGKILL else [".saving-saved"]
    assert [path.name for path in out.iterdir()] == left
    jobs.replay(run, save=out / "other", reporter=QUIET)  # removes what the killed one left beside it
    assert [path.name for path in out.iterdir()] == ["other"]


def test_what_a_killed_save_left_is_removed_and_folders_of_others_are_not(tmp_path):
    run, out = tuned(tmp_path), tmp_path / "out"
    for name in (".saving-dead/model", ".saving-saved/model", ".saving-mine/photos"):
        (out / name).mkdir(parents=True)
        (out / name / "file").touch()
    with locks.claimed(out / ".saving-alive"):
        (out / ".saving-alive" / "model").mkdir()
        jobs.replay(run, save=out / "saved", reporter=QUIET)
        assert {path.name for path in out.iterdir()} == {"saved", ".saving-alive", ".saving-mine"}


def test_saving_a_run_again_succeeds_and_another_run_or_a_damaged_save_is_refused(tmp_path):
    config, out, saved = h.config(tmp_path, scheme="lora"), tmp_path / "run", tmp_path / "saved"
    lines: list[str] = []
    reporter = Reporter(quiet=True)
    reporter.say = lines.append  # type: ignore[method-assign]
    jobs.tune(config, out, save=saved, reporter=QUIET)
    files = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    jobs.tune(config, out, resume=True, save=saved, reporter=reporter)
    assert any("holds the model of" in line for line in lines)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == files
    with pytest.raises(BadInput, match="not empty: choose a new folder"):
        jobs.tune(h.config(tmp_path, seed=1), tmp_path / "second", save=saved, reporter=QUIET)
    weights = saved / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadInput, match="not empty: choose a new folder"):
        jobs.tune(config, out, resume=True, save=saved, reporter=QUIET)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_a_library_finds_full_is_one_sentence(tmp_path, monkeypatch, number):
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    run, out = tuned(tmp_path), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    refused(call("replay", run, "--save", out / "saved"), "cannot write", os.strerror(number), code=1)
    assert list(out.iterdir()) == []


def test_a_name_that_is_no_utf8_is_refused_before_work(tmp_path):
    with pytest.raises(BadInput, match="is no UTF-8"):
        jobs.tune(h.config(tmp_path), tmp_path / "run", save=tmp_path / "na\udcffme" / "saved", reporter=QUIET)
    assert not (tmp_path / "run").exists()

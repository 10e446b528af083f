"""A run that was cut short goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from collab_helpers import Cut, cut_at
from gradless.collab.config import CollabConfig
from gradless.collab.learners.nets import NETS, Net, named
from gradless.collab.learners.stacked import Stack
from gradless.collab.learners.vision import Vision
from gradless.collab.simulation import progress, simulate
from gradless.system import tensor_state
from gradless.system.progress import Reporter

QUIET = Reporter(quiet=True)
DIGITS = CollabConfig(
    dataset="digits",
    peers=7,
    byzantine=1,
    steps=8,
    batch_size=4,
    lr=0.5,
    momentum=0.9,
    eval_every=3,
    eval_rows=50,
    seed=3,
)
LANGUAGE = CollabConfig(
    dataset=None,
    model="tiny-llama",
    num_train=None,
    num_test=None,
    scheme="full",
    payload="coefficients",
    algorithm="monna",
    momentum=0.0,
    method="mezo-momentum",
    peers=4,
    byzantine=1,
    attack="sign-flip",
    queries=2,
    eps=1e-3,
    lr=1e-2,
    steps=6,
    batch_size=2,
    eval_every=2,
    sync=3,
    split="iid",
    split_parameter=None,
)
RUNS = {
    "alie": dataclasses.replace(DIGITS, attack="alie"),
    "label-flip": dataclasses.replace(DIGITS, attack="label-flip", rounds=2),
    "mimic": dataclasses.replace(DIGITS, attack="mimic", attack_options={"learn": 20}),
    "learn": dataclasses.replace(DIGITS, attack="foe", algorithm="learn"),
    "batch norm": dataclasses.replace(DIGITS, attack="foe", net="norm-digits"),
    "coefficients": LANGUAGE,
    "shared weights": dataclasses.replace(LANGUAGE, algorithm="mocwtm", sync=None, steps=4),
    "lora": dataclasses.replace(
        LANGUAGE, payload="parameters", scheme="lora", momentum=0.9, method="mezo", sync=None, steps=4
    ),
}
OF_THE_PROCESS = ("train_seconds", "seconds_per_step", "peak_memory_bytes")


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{('fine', 'poor')[i % 2]} {i},{1 - i % 2}\n" for i in range(24)))
    own = {"train": str(file), "test": str(file), "template": "{text} it is", "label_column": "label"}
    return {**own, "labels": "0=bad,1=good"}


@pytest.fixture(autouse=True)
def a_small_net_with_statistics(monkeypatch):
    def make():
        flat = {"flat": nn.Flatten(), "full": nn.Linear(144, 10)}
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(), **flat))

    net = Net("norm-digits", make, (1, 8, 8), 10, 1_498, "loop", False, "for this file", "")
    monkeypatch.setitem(NETS, net.name, net)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_cut_short_ends_with_the_same_bits(name, rows, tmp_path, monkeypatch):
    config = dataclasses.replace(RUNS[name], own=rows) if RUNS[name].model else RUNS[name]
    whole = simulate.simulate(config, tmp_path / "whole", reporter=QUIET)
    assert not (tmp_path / "whole" / progress.CHECKPOINT).exists()  # it was too short for one
    folder, real = tmp_path / "cut", simulate._step
    tried: list[int] = []

    def stumble(now):
        tried.append(now.step)
        if now.step == stumble.at:
            now.simulation.learner.propose(now.step, now.simulation.learner.exchanges(now.step)[0])  # half of its work
            raise stumble.how
        return real(now)

    monkeypatch.setattr(progress, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(simulate, "_step", stumble)
    stumble.at, stumble.how = 1, KeyboardInterrupt
    first = simulate.simulate(config, folder, reporter=QUIET)
    assert first["status"] == "interrupted"
    if config.eval_rows == 50:  # of more that there are: nobody who interrupts waits for all
        assert all(round(50 * share, 9).is_integer() for share in first["accuracy"])
    stumble.how = Cut
    for stumble.at in (1, 2, 3):
        with pytest.raises(Cut):
            simulate.simulate(config, folder, reporter=QUIET)
    assert (folder / progress.CHECKPOINT).exists()
    stumble.at = None
    result = simulate.simulate(config, folder, reporter=QUIET)
    assert tried == [0, 1, 1, 1, 2, 2, 3, *range(3, config.steps)]
    for key in OF_THE_PROCESS:
        del result[key], whole[key]
    assert result == whole
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert not (folder / progress.CHECKPOINT).exists()


def half(folder, monkeypatch, at: int = 4):
    """An unfinished run with a checkpoint."""
    cut_at(at, RUNS["alie"], folder, monkeypatch)


@pytest.mark.few(1)
@pytest.mark.parametrize("damage", ["torn", "foreign", "metrics", "release"])
def test_a_checkpoint_that_does_not_fit_is_passed_over(damage, tmp_path, monkeypatch):
    half(tmp_path, monkeypatch)
    file = tmp_path / progress.CHECKPOINT
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "foreign":
        tensor_state.write(file, {**tensor_state.read(file), "run": ["another", "release"]})
    elif damage == "metrics":
        (tmp_path / "metrics.jsonl").write_text("")
    else:
        monkeypatch.setattr(progress, "__version__", "0.0.0")
    steps: list[int] = []
    real = simulate._step
    monkeypatch.setattr(simulate, "_step", lambda now: steps.append(now.step) or real(now))
    result = simulate.simulate(RUNS["alie"], tmp_path, reporter=QUIET)
    assert steps == list(range(8))
    assert result["steps"] == 8
    notes = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes if note["event"] == "step"] == steps


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "SAVE_EVERY", 0.0)
    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr(simulate, "write_json", lambda *args: None)  # it renames too
    left = tmp_path / (progress.CHECKPOINT + tensor_state.NEW)
    left.write_bytes(b"left by a kill")
    result = simulate.simulate(RUNS["alie"], tmp_path, reporter=Reporter())
    assert result["status"] == "done"
    assert "no checkpoint" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}


def test_statistics_of_batch_normalisation_are_kept():
    net = named("empire-cnn")
    one, two = (Stack(net, 2, seed=1) for _ in range(2))
    for name, tensor in one.statistics.items():
        tensor += len(name)
    first, second = (Vision.__new__(Vision) for _ in range(2))
    first.stack, second.stack = one, two
    tensors: dict[str, torch.Tensor] = {}
    second.load(tensor_state.unpack(tensor_state.pack(first.state(), tensors), tensors))
    assert one.statistics.keys() == two.statistics.keys()
    assert all(torch.equal(tensor, two.statistics[name]) for name, tensor in one.statistics.items())


def test_folders_in_the_place_of_files_are_put_aside(tmp_path, capsys):
    config = dataclasses.replace(DIGITS, steps=2)
    whole = simulate.simulate(config, tmp_path / "whole", reporter=QUIET)
    simulate.simulate(config, tmp_path / "run", reporter=QUIET)
    for name in ("metrics.jsonl", "result.json", "checkpoint.safetensors"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name / "below").mkdir(parents=True)
    assert simulate.simulate(config, tmp_path / "run")["weights_sha256"] == whole["weights_sha256"]
    assert "is now metrics.jsonl.unreadable" in capsys.readouterr().out

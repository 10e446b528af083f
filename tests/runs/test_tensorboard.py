"""TensorBoard events say what metrics.jsonl says, once, however often a run was stopped."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import run_helpers as h
from gradless.cli import main
from gradless.errors import BadInput
from gradless.runs import jobs, record, tensorboard, train
from gradless.system.progress import Reporter

pytest.importorskip("tensorboard")
QUIET = Reporter(quiet=True)


def read(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """Scalars as (step, value), and histograms as (step, number of values), by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    tags = accumulator.Tags()
    scalars = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    histograms = {
        tag: [(e.step, e.histogram_value.num) for e in accumulator.Histograms(tag)] for tag in tags["histograms"]
    }
    return scalars, histograms


def expected(out: Path, steps: int) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    scalars: dict[str, list[tuple[int, float]]] = {}
    histograms: dict[str, list[tuple[int, float]]] = {}
    for event in tensorboard.events(
        record.read_lines(out / "metrics.jsonl"), every=max(1, steps // tensorboard.HISTOGRAMS)
    ):
        if isinstance(event.value, tuple):
            histograms.setdefault(event.tag, []).append((event.step, len(event.value)))
        else:
            scalars.setdefault(event.tag, []).append((event.step, pytest.approx(event.value, rel=1e-6)))
    return scalars, histograms


def same(folder: Path, out: Path, steps: int) -> None:
    scalars, histograms = read(folder)
    wanted = expected(out, steps)
    assert scalars == wanted[0]
    assert histograms == wanted[1]


def test_events_are_what_was_noted(tmp_path):
    done = CliRunner().invoke(main, command(tmp_path, "--tensorboard"))
    assert done.exit_code == 0, done.output
    out = tmp_path / "run"
    result = json.loads((out / "result.json").read_text())
    scalars, histograms = read(out / "tensorboard")
    steps = h.notes(out, "step")
    assert [step for step, _ in scalars["train/loss"]] == [line["step"] for line in steps] == [0, 1, 2]
    assert [value for _, value in scalars["train/loss"]] == pytest.approx([line["loss"] for line in steps])
    assert scalars["train/lr"] == [(t, pytest.approx(1e-6)) for t in range(3)]
    assert all(value > 0 for _, value in scalars["train/forwards_per_second"])
    assert scalars["memory/peak_bytes"][-1][1] == pytest.approx(result["peak_memory_bytes"], rel=1e-6)
    assert scalars["memory/inference_bytes"][0][1] == pytest.approx(result["inference_memory_bytes"], rel=1e-6)
    assert scalars["test/accuracy"] == [
        (0, pytest.approx(result["zero_shot"]["accuracy"])),
        (result["selected_step"], pytest.approx(result["test"]["accuracy"])),
    ]
    assert [step for step, _ in scalars["dev/loss"]] == [0, 1, 2, 3]
    assert histograms["train/coefficients"] == [(0, 1), (1, 1), (2, 1)]
    same(out / "tensorboard", out, 3)


def command(folder: Path, *more: str) -> list[str]:
    files = h.sentiment(folder / "data")
    return [
        *("tune", "--model", "tiny-llama", "--steps", "3", "--batch-size", "4", "--num-train", "16", "--num-dev", "8"),
        *("--train", files["train"], "--test", files["test"], "--template", files["template"]),
        *("--label-column", "label", "--labels", files["labels"], "--out", str(folder / "run"), *more),
    ]


def test_tracking_is_no_part_of_a_run(tmp_path):
    config = h.config(tmp_path)
    tracked = jobs.tune(config, tmp_path / "a", tensorboard=tmp_path / "a" / "tensorboard", reporter=QUIET)
    plain = jobs.tune(config, tmp_path / "b", reporter=QUIET)
    assert tracked["weights_sha256"] == plain["weights_sha256"]
    assert (tmp_path / "a" / "ledger").read_bytes() == (tmp_path / "b" / "ledger").read_bytes()
    assert not (tmp_path / "b" / "tensorboard").exists()


def test_a_resumed_run_has_every_event_once(tmp_path, monkeypatch):
    config, events = h.config(tmp_path, steps=6), tmp_path / "events"
    true_step, calls = train._step, [0]

    def step(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] in (3, 6):
            raise RuntimeError("killed")
        return true_step(*args)

    monkeypatch.setattr(train, "_step", step)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            jobs.tune(config, tmp_path / "run", resume=True, tensorboard=events, reporter=QUIET)
        same(events, tmp_path / "run", 6)
    (events / "notes.txt").write_text("of somebody else")
    assert jobs.tune(config, tmp_path / "run", resume=True, tensorboard=events, reporter=QUIET)["status"] == "done"
    same(events, tmp_path / "run", 6)
    assert [step for step, _ in read(events)[0]["train/loss"]] == list(range(6))
    assert (events / "notes.txt").exists()
    assert len(list(events.glob("events.*"))) == 1


def test_a_crash_before_the_result_doubles_no_evaluation(tmp_path, monkeypatch):
    config, events = h.config(tmp_path, zero_shot=False), tmp_path / "events"
    with monkeypatch.context() as patch:
        patch.setattr("gradless.runs.finish.versions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            jobs.tune(config, tmp_path / "run", tensorboard=events, reporter=QUIET)
    result = jobs.tune(config, tmp_path / "run", resume=True, tensorboard=events, reporter=QUIET)
    assert len(read(events)[0]["test/loss"]) == 1
    assert {example["before"] for example in result["examples"]} == {None}  # nobody asked the untouched model


def test_a_finished_run_gets_events_from_its_notes(tmp_path):
    config = h.config(tmp_path)
    jobs.tune(config, tmp_path / "run", reporter=QUIET)
    for _ in range(2):
        jobs.tune(config, tmp_path / "run", resume=True, tensorboard=tmp_path / "events", reporter=QUIET)
        same(tmp_path / "events", tmp_path / "run", 3)


def test_runs_that_share_a_folder_leave_each_other_alone(tmp_path):
    events = tmp_path / "events"
    for name in ("a", "b", "a"):
        jobs.tune(h.config(tmp_path), tmp_path / name, resume=True, tensorboard=events, reporter=QUIET)
    assert len(list(events.glob("events.*"))) == 2


def test_histograms_gather_coefficients():
    line = {"event": "step", "loss": None, "lr": 1.0, "forwards": 4, "seconds": 0.5, "peak_memory_bytes": 7}
    lines = [{**line, "step": t, "coeffs": None if t == 1 else [float(t), -1.0]} for t in range(7)]
    histograms = [e for e in tensorboard.events(lines, every=3) if isinstance(e.value, tuple)]
    assert [(e.step, e.value) for e in histograms] == [
        (2, (0.0, -1.0, 2.0, -1.0)),
        (5, (3.0, -1.0, 4.0, -1.0, 5.0, -1.0)),
        (6, (6.0, -1.0)),
    ]
    assert [e.seconds for e in histograms] == [1.5, 3.0, 3.5]
    speeds = [e for e in tensorboard.events(lines[:1], every=3) if e.tag == "train/forwards_per_second"]
    assert speeds == [("train/forwards_per_second", 0, 0.5, 8.0)]
    assert not [e for e in tensorboard.events(lines, every=3) if e.tag == "train/loss"]  # none was finite


def test_a_run_goes_on_where_events_cannot_be_written(tmp_path, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines: list[str] = []
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "say", lines.append)
    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", full)
        result = jobs.tune(h.config(tmp_path), tmp_path / "run", tensorboard=tmp_path / "events", reporter=reporter)
    assert result["status"] == "done"
    assert [line for line in lines if "no more TensorBoard events" in line and "No space left" in line] == [
        line for line in lines if "TensorBoard" in line
    ]
    assert sum("TensorBoard" in line for line in lines) == 1
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(SummaryWriter, "__init__", full)
    result = jobs.tune(h.config(tmp_path), tmp_path / "two", tensorboard=tmp_path / "locked", reporter=reporter)
    assert result["status"] == "done"


def test_what_is_missing_or_wrong_is_said_before_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file, not a folder: choose another --tensorboard"):
        jobs.tune(h.config(tmp_path), tmp_path / "run", tensorboard=tmp_path / "file", reporter=QUIET)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = CliRunner().invoke(main, command(tmp_path, "--tensorboard", str(tmp_path / "events")))
    assert done.exit_code == 2
    assert done.stderr == "gradless: TensorBoard is not installed: pip install 'gradless[tensorboard]'\n"
    assert not (tmp_path / "run").exists()

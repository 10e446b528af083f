"""Benchmarks from a grid to results.jsonl: every run is made once, and what goes wrong in one is a result."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from bench_helpers import GRID, RUNS, BenchDirectory
from gradless.bench import results
from gradless.bench.runner import Outcome, overhead
from gradless.errors import BadInput

# ---------------------------------------------------------------------------------------------------------------
# runs that are finished elsewhere


def test_runs_that_are_finished_elsewhere_are_not_made_again(tmp_path):
    first = BenchDirectory(tmp_path / "a")
    second = BenchDirectory(tmp_path / "b", GRID.replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    first.bench()
    known = first.out / results.RESULTS
    heard = len(second.messages)
    assert second.bench(known=[known], dry_run=True).done == RUNS
    assert f"finished: {RUNS} of {RUNS + 3} runs" in second.messages[-1]
    assert not second.out.exists()
    outcome = second.bench(known=[known])
    assert outcome.total == outcome.done == RUNS + 3  # zero-shot and two finals of the new seed
    assert any(message.startswith(f"{RUNS} of {RUNS} runs taken over") for message in second.messages[heard:])
    assert len(second.started) == 3
    old = {line["id"]: line for line in first.lines}
    reused = {line["id"]: line for line in second.lines if line.get("reused")}
    assert reused == {name: {**line, "reused": "results.jsonl"} for name, line in old.items()}
    assert second.bench() == outcome  # nor later, without the file
    assert len(second.started) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("forwards = 40, search = 40", "forwards = 40, search = [20, 40]"),
        ('task = ["sst2"]', 'task = ["sst2"]\nbatch_size = [16]'),
    ],
    ids=["another rung", "another axis"],
)
def test_runs_of_a_grid_that_names_them_otherwise_are_judged_here(tmp_path, old, new):
    grid = GRID.replace("forwards = 20", "forwards = 40, search = 40")
    assert old in grid
    first, second = BenchDirectory(tmp_path / "a", grid), BenchDirectory(tmp_path / "b", grid.replace(old, new))
    first.bench()
    second.bench(known=[first.out / results.RESULTS])
    assert any(line.get("reused") for line in second.lines)
    final = [line for line in second.lines if line["phase"] == "final"]
    assert {(line["cell"]["method"], line["seed"], line["point"]["lr"]) for line in final} == {
        (method, seed, 1e-3) for method in ("mezo", "lozo") for seed in (1, 2)
    }
    for line in second.lines:
        request = json.loads(results.request_file(second.out, line["id"]).read_text())
        assert all(line[name] == request[name] for name in ("phase", "cell", "point", "seed", "rung"))


def test_what_has_begun_is_not_taken_over(tmp_path):
    first, second = BenchDirectory(tmp_path / "a"), BenchDirectory(tmp_path / "b")
    for directory in (first, second):
        directory.bench()
    second.bench(known=[first.out / results.RESULTS])
    assert any(message.startswith(f"0 of {RUNS} runs taken over") for message in second.messages)
    assert not any(line.get("reused") for line in second.lines)


def test_a_failed_run_elsewhere_is_made_here(tmp_path):
    first, second = (
        BenchDirectory(tmp_path / "a", GRID.replace("1e-2", "7.0")),
        BenchDirectory(tmp_path / "b", GRID.replace("1e-2", "7.0")),
    )
    first.bench()
    second.bench(known=[first.out / results.RESULTS])
    assert len(second.started) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ('{"id": "0123456789ab", "status": "done"}\n', "no finished run that is asked for here"),
        ('{"id": "0123', "damaged or foreign lines"),
        ("[1, 2]\n", "damaged or foreign lines"),
        ("\x00\xff", "damaged or foreign lines"),
    ],
)
def test_no_results_to_take_over(directory, tmp_path, text, message):
    path = tmp_path / "others.jsonl"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=message):
        directory.bench(known=[path])
    assert not directory.out.exists()


# ---------------------------------------------------------------------------------------------------------------
# a whole grid


def test_every_run_is_made_once_and_told(directory):
    outcome = directory.bench()
    assert outcome == Outcome(RUNS, RUNS, 0, 0, ())
    assert len(directory.started) == len(set(directory.started)) == RUNS
    assert [line["id"] for line in directory.lines] == sorted(directory.started)
    assert directory.messages[-1] == f"{RUNS} runs: {RUNS} done, 0 diverged, 0 failed"
    assert sum(f"/{RUNS}  " in message for message in directory.messages) == RUNS
    assert "accuracy" in directory.messages[-2]
    assert "0 s of work left" in directory.messages[-2]
    assert (directory.out / "grid.toml").read_text() == directory.grid.read_text()


def test_the_best_point_on_dev_gets_the_final_runs(directory):
    directory.bench()
    final = [line for line in directory.lines if line["phase"] == "final"]
    assert {(line["cell"]["method"], line["seed"], line["point"]["lr"]) for line in final} == {
        (method, seed, 1e-3) for method in ("mezo", "lozo") for seed in (1, 2)
    }
    assert all(line["test"] for line in final)
    assert not any(line["test"] for line in directory.lines if line["phase"] == "search")


def test_a_line_holds_the_request_and_what_was_measured(directory):
    directory.bench(threads=3)
    line = next(line for line in directory.lines if line["phase"] == "final" and line["seed"] == 2)
    request = json.loads(results.request_file(directory.out, line["id"]).read_text())
    assert request["config"]["num_test"] == 1000
    assert {k: line[k] for k in request if k != "config"} == {k: v for k, v in request.items() if k != "config"}
    wall, beyond = line.pop("wall_seconds"), line.pop("overhead")
    assert beyond == pytest.approx(wall - 0.01 - 2 * 0.002 - 0.003)
    assert {k: v for k, v in line.items() if k not in request} == {
        "status": "done",
        "reason": "",
        "steps": 10,
        "selected_step": 10,
        "forwards": 20,
        "forwards_per_step": 2,
        "train_seconds": 0.01,
        "seconds_per_step": 0.001,
        "peak_memory_bytes": 2000,
        "inference_memory_bytes": 1000,
        "tuned_parameters": 7,
        "dev": {"loss": 1.0, "accuracy": 1.0},
        "test": {"accuracy": 0.98},
        "zero_shot": {},
        "threads": 3,
        "curve": [
            {"step": 5, "forwards": 10, "seconds": pytest.approx(0.005), "loss": 1.0, "accuracy": 1.0},
            {"step": 10, "forwards": 20, "seconds": pytest.approx(0.01), "loss": 1.0, "accuracy": 1.0},
        ],
    }
    untouched = next(line for line in directory.lines if line["phase"] == "zero-shot")
    assert untouched["test"] == untouched["zero_shot"] == {"accuracy": 0.5}
    assert untouched["forwards"] == 0
    assert untouched["cell"]["method"] == "zero-shot"


def test_overhead_is_the_share_that_is_neither_training_nor_evaluation(directory):
    directory.bench()
    known = [line for line in directory.lines if line["overhead"] is not None]
    assert len(known) == RUNS
    expected = sum(line["overhead"] for line in known) / sum(line["wall_seconds"] for line in known)
    assert overhead(directory.out) == pytest.approx(expected)
    assert 0 < overhead(directory.out) < 1
    assert overhead(directory.out / "nowhere") == 0.0


def test_threads_reach_the_runs(directory, monkeypatch):
    directory.fake.write_text(
        'import os; open(os.environ["SEEN"], "a").write(os.environ["OMP_NUM_THREADS"] + "\\n")\n'
        + directory.fake.read_text()
    )
    monkeypatch.setenv("SEEN", str(directory.log) + ".threads")
    directory.bench(threads=5, workers=3)
    assert Path(str(directory.log) + ".threads").read_text().split() == ["5"] * RUNS


def test_final_runs_of_a_cell_do_not_wait_for_the_next_cell(directory):
    directory.bench()
    lines = {line["id"]: line for line in directory.lines}
    order = [(lines[run]["cell"]["method"], lines[run]["phase"]) for run in directory.started]
    assert order.index(("mezo", "final")) < order.index(("lozo", "search"))
    assert order[0][1] == "zero-shot"


# ---------------------------------------------------------------------------------------------------------------
# what goes wrong in runs


def test_diverged_and_failed_runs_are_results(tmp_path):
    directory = BenchDirectory(tmp_path, GRID.replace("[1e-4, 1e-3, 1e-2]", "[8.0, 7.0, 6.0, 1e-2]"))
    outcome = directory.bench()
    assert (outcome.done, outcome.diverged, outcome.failed) == (2 + 2 + 4, 2, 4)
    by_lr = {line["point"].get("lr"): line for line in directory.lines if line["phase"] == "search"}
    assert (by_lr[8.0]["status"], by_lr[8.0]["reason"]) == ("diverged", "diverged at step 3")
    assert (by_lr[7.0]["status"], by_lr[7.0]["reason"]) == ("failed", "there is no model at nowhere: check the path")
    assert by_lr[6.0]["reason"] == "killed by SIGKILL (out of memory?)"
    assert {line["point"]["lr"] for line in directory.lines if line["phase"] == "final"} == {1e-2}
    record = json.loads((results.run_folder(directory.out, by_lr[7.0]["id"]) / "failed.json").read_text())
    assert record["exit_code"] == 2
    assert "something" in record["stderr"]
    assert "remove its failed.json" in directory.messages[-1]
    starts = directory.started
    assert directory.bench() == outcome
    assert directory.started == starts


def test_a_failed_run_is_tried_again_once_its_record_is_removed(tmp_path):
    directory = BenchDirectory(tmp_path, GRID.replace("[1e-4, 1e-3, 1e-2]", "[7.0, 1e-2]"))
    directory.bench()
    (failed, _) = (line for line in directory.lines if line["status"] == "failed")
    (results.run_folder(directory.out, failed["id"]) / "failed.json").unlink()
    directory.bench()
    assert directory.started.count(failed["id"]) == 2


def test_a_cell_that_always_diverges_has_no_final_run(tmp_path):
    text = GRID.replace("[1e-4, 1e-3, 1e-2]", "[1e-3, 1e-2]")
    directory = BenchDirectory(tmp_path, text + '[[when]]\nmethod = "lozo"\ngrid = { lr = [8.0, 7.0] }\n')
    outcome = directory.bench()
    assert outcome.hopeless == ("lozo/full/sst2/tiny-llama",)
    assert {line["cell"]["method"] for line in directory.lines if line["phase"] == "final"} == {"mezo"}
    sentence = "lozo/full/sst2/tiny-llama: every search run diverged or failed, so there is no final run"
    assert directory.messages.count(sentence) == 1
    assert outcome.total == 2 + 4 + 2


def test_a_full_disk_stops_everything_and_can_be_continued(directory):
    full = Path(f"{directory.log}.full")
    full.touch()
    outcome = directory.bench()
    assert outcome.stopped.startswith("cannot write at ")
    assert not outcome
    assert directory.messages[-1].startswith("stopped: cannot write at ")
    assert len(directory.started) == 1
    assert not list(directory.out.glob("runs/*/failed.json"))
    full.unlink()
    assert directory.bench() == Outcome(RUNS, RUNS, 0, 0, ())


def test_our_own_full_disk_stops_runs_and_can_be_continued(directory, monkeypatch):
    true, calls = results.rebuild, []

    def rebuild(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "results.jsonl")
        true(*args)

    monkeypatch.setattr(results, "rebuild", rebuild)
    with pytest.raises(OSError, match="No space left"):
        directory.bench(workers=2)
    assert directory.bench() == Outcome(RUNS, RUNS, 0, 0, ())
    assert len(directory.lines) == RUNS

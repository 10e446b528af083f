"""The benchmark: runs as processes, claims, interruptions, and what is written about them."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import run_helpers as h
from gradless.bench import directory as place_module
from gradless.bench import grid, results
from gradless.bench import process as processes
from gradless.bench.runner import Outcome, bench, overhead
from gradless.cli import commands
from gradless.errors import BadInput
from gradless.report.bench.selection import choose
from gradless.report.bench.study import load
from gradless.runs.config import TuneConfig
from gradless.system import locks
from gradless.system.progress import Reporter

GRID = """
seeds = [1, 2]
budget = { forwards = 20 }
select = "accuracy"
[base]
model = "tiny-llama"
evaluations = 2
[axes]
method = ["mezo", "lozo"]
task = ["sst2"]
[grid]
lr = [1e-4, 1e-3, 1e-2]
"""
RUNS = 2 + 2 * 3 + 2 * 2  # zero-shot, search, final

# Stands for `gradless tune` and `gradless eval`: what they write, without a model. The learning rate says how it ends.
FAKE = r"""
import json, math, os, sys, time
request, folder = json.load(open(sys.argv[1])), sys.argv[2]
open(sys.argv[3], "a").write(request["id"] + "\n")
config = request["config"]
def done(**more):
    with open(folder + "/result.json.new", "w") as file:
        json.dump({"status": "done", **more}, file)
    os.replace(folder + "/result.json.new", folder + "/result.json")
lr, pause = config["lr"], float(os.environ.get("FAKE_SECONDS", "0"))
if os.path.exists(sys.argv[3] + ".full"):
    sys.exit("gradless: cannot write at " + folder + " (No space left on device): free space")
time.sleep(pause)
if request["phase"] == "zero-shot":
    done(test={"accuracy": 0.5}, forwards=872, seconds=0.001)
    sys.exit(0)
if lr == 7.0:
    sys.stderr.write("something\ngradless: there is no model at nowhere: check the path\n")
    sys.exit(2)
if lr == 6.0:
    os.kill(os.getpid(), 9)
accuracy = round(1 - abs(math.log10(lr) + 3) / 10, 4)
with open(folder + "/metrics.jsonl", "w") as file:
    file.write(json.dumps({"event": "inference", "step": 0, "bytes": 1000, "seconds": 0.003}) + "\n")
    for step in range(10):
        file.write(json.dumps({"event": "step", "step": step, "forwards": 2, "seconds": 0.001}) + "\n")
        if step in (4, 9):
            file.write(json.dumps({"event": "eval", "split": "dev", "step": step + 1, "loss": 1.0,
                                   "accuracy": accuracy, "forwards": 9, "seconds": 0.002}) + "\n")
test = {"accuracy": accuracy - config["seed"] / 100} if config["num_test"] else {}
status = "diverged" if lr == 8.0 else "done"
done(status=status, dev={"loss": 1.0, "accuracy": accuracy}, test=test, zero_shot={}, steps=10, selected_step=10,
     forwards=20, train_seconds=0.01, seconds_per_step=0.001, peak_memory_bytes=2000, inference_memory_bytes=1000,
     tuned_parameters=7) if lr != 8.0 else done(status=status, dev={}, test={}, zero_shot={}, steps=3,
     selected_step=3, forwards=6, train_seconds=0.01, seconds_per_step=0.001)
sys.exit(0 if status == "done" else 1)
"""


def cost(config: TuneConfig) -> int:
    """Forwards of a step."""
    return 2


class Place:
    """A grid, a bench directory, and a record of which runs were started."""

    def __init__(self, folder: Path, text: str = GRID) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.grid, self.out, self.log = folder / "grid.toml", folder / "out", folder / "log"
        self.fake = folder / "fake.py"
        self.grid.write_text(text)
        self.fake.write_text(FAKE.replace('done(status="done"', "done("))
        self.said: list[str] = []

    def command(self, request: grid.Request, out: Path) -> list[str]:
        places = (results.request_file(out, request.id), results.run_folder(out, request.id), self.log)
        return [sys.executable, "-S", str(self.fake), *map(str, places)]

    def bench(self, **more: Any) -> Outcome:
        reporter = Reporter(quiet=True)
        reporter.say = self.said.append  # type: ignore[method-assign]
        given = {"reporter": reporter, "cost": cost, "command": self.command, "poll": 0.02, **more}
        return bench(self.grid, self.out, **given)

    @property
    def started(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    @property
    def lines(self) -> list[dict[str, Any]]:
        return results.read(self.out)

    def table(self) -> list[dict[str, Any]]:
        """results.jsonl without what the clock says."""
        return [{k: v for k, v in line.items() if k not in ("wall_seconds", "overhead")} for line in self.lines]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ---------------------------------------------------------------------------------------------------------------
# runs that are finished elsewhere


def test_runs_that_are_finished_elsewhere_are_not_made_again(tmp_path):
    first, second = Place(tmp_path / "a"), Place(tmp_path / "b", GRID.replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    first.bench()
    found = first.out / results.RESULTS
    before = len(second.said)
    assert second.bench(known=[found], dry_run=True).done == RUNS
    assert f"finished: {RUNS} of {RUNS + 3} runs" in second.said[-1]
    assert not second.out.exists()
    outcome = second.bench(known=[found])
    assert outcome.total == outcome.done == RUNS + 3  # zero-shot and two finals of the new seed
    assert any(said.startswith(f"{RUNS} of {RUNS} runs taken over") for said in second.said[before:])
    assert len(second.started) == 3
    old = {line["id"]: line for line in first.lines}
    taken = {line["id"]: line for line in second.lines if line.get("reused")}
    assert taken == {name: {**line, "reused": "results.jsonl"} for name, line in old.items()}
    assert second.bench() == outcome  # nor later, without the file
    assert len(second.started) == 3


def test_what_has_begun_is_not_taken_over(tmp_path):
    first, second = Place(tmp_path / "a"), Place(tmp_path / "b")
    for place in (first, second):
        place.bench()
    second.bench(known=[first.out / results.RESULTS])
    assert any(said.startswith(f"0 of {RUNS} runs taken over") for said in second.said)
    assert not any(line.get("reused") for line in second.lines)


def test_a_failed_run_elsewhere_is_made_here(tmp_path):
    first, second = (
        Place(tmp_path / "a", GRID.replace("1e-2", "7.0")),
        Place(tmp_path / "b", GRID.replace("1e-2", "7.0")),
    )
    first.bench()
    second.bench(known=[first.out / results.RESULTS])
    assert len(second.started) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ('{"id": "0123456789ab", "status": "done"}\n', "no finished run that is asked for here"),
        ('{"id": "0123', "damaged or foreign lines"),
        ("[1, 2]\n", "damaged or foreign lines"),
        ("\x00\xff", "damaged or foreign lines"),
    ],
)
def test_no_results_to_take_over(place, tmp_path, text, said):
    path = tmp_path / "others.jsonl"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=said):
        place.bench(known=[path])
    assert not place.out.exists()


# ---------------------------------------------------------------------------------------------------------------
# a whole grid


def test_every_run_is_made_once_and_told(place):
    outcome = place.bench()
    assert outcome == Outcome(RUNS, RUNS, 0, 0, ())
    assert len(place.started) == len(set(place.started)) == RUNS
    assert [line["id"] for line in place.lines] == sorted(place.started)
    assert place.said[-1] == f"{RUNS} runs: {RUNS} done, 0 diverged, 0 failed"
    assert sum(f"/{RUNS}  " in said for said in place.said) == RUNS
    assert "accuracy" in place.said[-2]
    assert "0 s of work left" in place.said[-2]
    assert (place.out / "grid.toml").read_text() == place.grid.read_text()


def test_the_best_point_on_dev_gets_the_final_runs(place):
    place.bench()
    final = [line for line in place.lines if line["phase"] == "final"]
    assert {(line["cell"]["method"], line["seed"], line["point"]["lr"]) for line in final} == {
        (method, seed, 1e-3) for method in ("mezo", "lozo") for seed in (1, 2)
    }
    assert all(line["test"] for line in final)
    assert not any(line["test"] for line in place.lines if line["phase"] == "search")


def test_a_line_holds_the_request_and_what_was_measured(place):
    place.bench(threads=3)
    line = next(line for line in place.lines if line["phase"] == "final" and line["seed"] == 2)
    request = json.loads(results.request_file(place.out, line["id"]).read_text())
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
    untouched = next(line for line in place.lines if line["phase"] == "zero-shot")
    assert untouched["test"] == untouched["zero_shot"] == {"accuracy": 0.5}
    assert untouched["forwards"] == 0
    assert untouched["cell"]["method"] == "zero-shot"


def test_overhead_is_the_share_that_is_neither_training_nor_evaluation(place):
    place.bench()
    known = [line for line in place.lines if line["overhead"] is not None]
    assert len(known) == RUNS
    expected = sum(line["overhead"] for line in known) / sum(line["wall_seconds"] for line in known)
    assert overhead(place.out) == pytest.approx(expected)
    assert 0 < overhead(place.out) < 1
    assert overhead(place.out / "nowhere") == 0.0


def test_threads_reach_the_runs(place, monkeypatch):
    place.fake.write_text(
        'import os; open(os.environ["SEEN"], "a").write(os.environ["OMP_NUM_THREADS"] + "\\n")\n'
        + place.fake.read_text()
    )
    monkeypatch.setenv("SEEN", str(place.log) + ".threads")
    place.bench(threads=5, workers=3)
    assert Path(str(place.log) + ".threads").read_text().split() == ["5"] * RUNS


def test_final_runs_of_a_cell_do_not_wait_for_the_next_cell(place):
    place.bench()
    lines = {line["id"]: line for line in place.lines}
    order = [(lines[run]["cell"]["method"], lines[run]["phase"]) for run in place.started]
    assert order.index(("mezo", "final")) < order.index(("lozo", "search"))
    assert order[0][1] == "zero-shot"


# ---------------------------------------------------------------------------------------------------------------
# what goes wrong in runs


def test_diverged_and_failed_runs_are_results(tmp_path):
    place = Place(tmp_path, GRID.replace("[1e-4, 1e-3, 1e-2]", "[8.0, 7.0, 6.0, 1e-2]"))
    outcome = place.bench()
    assert (outcome.done, outcome.diverged, outcome.failed) == (2 + 2 + 4, 2, 4)
    by_lr = {line["point"].get("lr"): line for line in place.lines if line["phase"] == "search"}
    assert (by_lr[8.0]["status"], by_lr[8.0]["reason"]) == ("diverged", "diverged at step 3")
    assert (by_lr[7.0]["status"], by_lr[7.0]["reason"]) == ("failed", "there is no model at nowhere: check the path")
    assert by_lr[6.0]["reason"] == "killed by SIGKILL (out of memory?)"
    assert {line["point"]["lr"] for line in place.lines if line["phase"] == "final"} == {1e-2}
    record = json.loads((results.run_folder(place.out, by_lr[7.0]["id"]) / "failed.json").read_text())
    assert record["exit_code"] == 2
    assert "something" in record["stderr"]
    assert "remove its failed.json" in place.said[-1]
    before = place.started
    assert place.bench() == outcome
    assert place.started == before


def test_a_failed_run_is_tried_again_once_its_record_is_removed(tmp_path):
    place = Place(tmp_path, GRID.replace("[1e-4, 1e-3, 1e-2]", "[7.0, 1e-2]"))
    place.bench()
    (failed, _) = (line for line in place.lines if line["status"] == "failed")
    (results.run_folder(place.out, failed["id"]) / "failed.json").unlink()
    place.bench()
    assert place.started.count(failed["id"]) == 2


def test_a_cell_that_always_diverges_has_no_final_run(tmp_path):
    text = GRID.replace("[1e-4, 1e-3, 1e-2]", "[1e-3, 1e-2]")
    place = Place(tmp_path, text + '[[when]]\nmethod = "lozo"\ngrid = { lr = [8.0, 7.0] }\n')
    outcome = place.bench()
    assert outcome.hopeless == ("lozo/full/sst2/tiny-llama",)
    assert {line["cell"]["method"] for line in place.lines if line["phase"] == "final"} == {"mezo"}
    assert (
        place.said.count("lozo/full/sst2/tiny-llama: every search run diverged or failed, so there is no final run")
        == 1
    )
    assert outcome.total == 2 + 4 + 2


def test_a_full_disk_stops_everything_and_can_be_continued(place):
    full = Path(f"{place.log}.full")
    full.touch()
    outcome = place.bench()
    assert outcome.stopped.startswith("cannot write at ")
    assert not outcome
    assert place.said[-1].startswith("stopped: cannot write at ")
    assert len(place.started) == 1
    assert not list(place.out.glob("runs/*/failed.json"))
    full.unlink()
    assert place.bench() == Outcome(RUNS, RUNS, 0, 0, ())


def test_our_own_full_disk_stops_runs_and_can_be_continued(place, monkeypatch):
    true, calls = results.rebuild, []

    def rebuild(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", "results.jsonl")
        true(*args)

    monkeypatch.setattr(results, "rebuild", rebuild)
    with pytest.raises(OSError, match="No space left"):
        place.bench(workers=2)
    assert place.bench() == Outcome(RUNS, RUNS, 0, 0, ())
    assert len(place.lines) == RUNS


# ---------------------------------------------------------------------------------------------------------------
# several workers, and interruptions


def test_workers_of_one_call_share_the_runs(place):
    assert place.bench(workers=4).done == RUNS
    assert len(place.started) == len(set(place.started)) == RUNS


def test_two_calls_on_one_directory_share_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    alone = Place(tmp_path / "alone")
    alone.bench()
    place = Place(tmp_path / "shared")
    found: list[Outcome] = []
    others = [threading.Thread(target=lambda: found.append(place.bench(workers=2))) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert found == [Outcome(RUNS, RUNS, 0, 0, ())] * 3
    assert len(place.started) == len(set(place.started)) == RUNS
    assert place.table() == alone.table()
    assert all(line["overhead"] is not None for line in place.lines)


SCRIPT = """
import sys, test_bench as t
from pathlib import Path
place = t.Place(Path(sys.argv[1]))
place.bench(workers=2)
"""


def started(place: Place, runs: int, *, seconds: float = 0.3, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A benchmark in a process of its own that has started so many runs."""
    environment = {**os.environ, "FAKE_SECONDS": str(seconds), "PYTHONPATH": os.pathsep.join([*sys.path])}
    command = [*before, sys.executable, "-c", SCRIPT, str(place.grid.parent)]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    until = time.monotonic() + 60
    while len(place.started) < runs:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_half_way_it_continues_to_the_same_results(tmp_path, number):
    whole = Place(tmp_path / "whole")
    whole.bench()
    place = Place(tmp_path / "killed")
    process = started(place, 5)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    if number != signal.SIGKILL:
        assert "KeyboardInterrupt" in stderr
        # Its runs were stopped with it: their claims are free.
        for path in (place.out / "locks").iterdir():
            claim = locks.take(path)
            assert claim is not None, path
            os.close(claim)
    assert 0 < len(place.lines) < RUNS
    finished = {line["id"] for line in place.lines}
    before = place.started
    assert place.bench(workers=2).done == RUNS
    assert not finished & set(place.started[len(before) :])
    if number == signal.SIGKILL:  # its runs went on and kept their claims, so nobody started them again
        assert len(place.started) == len(set(place.started)) == RUNS
    assert place.table() == whole.table()


def test_in_the_background_it_stops_its_runs_too(tmp_path):
    place = Place(tmp_path)
    process = started(place, 2, seconds=60, before=("sh", "-c", 'trap "" INT; exec "$@"', "sh"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    claim = locks.take(place.out / "locks" / place.started[0])
    assert claim is not None
    os.close(claim)


def test_a_claim_is_exclusive_until_it_is_given_back(tmp_path):
    claim = locks.take(tmp_path / "run")
    assert claim is not None
    assert locks.take(tmp_path / "run") is None
    os.close(claim)
    again = locks.take(tmp_path / "run")
    assert again is not None
    os.close(again)


def test_a_run_whose_worker_was_killed_has_no_known_overhead(tmp_path):
    results.began(tmp_path, 1)
    results.began(tmp_path, 1)
    results.ended(tmp_path, 2.0)
    assert results._times(tmp_path, 1.0) == {"threads": 1, "wall_seconds": None, "overhead": None}


def test_a_continued_run_adds_its_seconds(tmp_path):
    for seconds in (2.0, 3.0):
        results.began(tmp_path, 4)
        results.ended(tmp_path, seconds)
    assert results._times(tmp_path, 1.0) == {"threads": 4, "wall_seconds": 5.0, "overhead": 4.0}


def test_the_command_line_of_a_run(place):
    one, *_ = grid.search_runs(grid.read(place.grid), cost)
    untouched, *_ = grid.zero_shot_runs(grid.read(place.grid))
    assert processes.command(one, Path("/o"))[1:] == [
        *("-m", "gradless", "tune", "--resume"),
        *("--config", f"/o/requests/{one.id}.json", "--out", f"/o/runs/{one.id}"),
    ]
    assert processes.command(untouched, Path("/o"))[3] == "eval"


def test_the_curve_counts_what_was_spent_until_each_evaluation():
    def step(number: int, forwards: int = 2) -> dict[str, Any]:
        return {"event": "step", "step": number, "forwards": forwards, "seconds": 0.5}

    def dev(step: int, **scores: Any) -> dict[str, Any]:
        return {"event": "eval", "split": "dev", "step": step, "seconds": 9.0, "forwards": 99, **scores}

    notes = [step(0), step(1), dev(2, loss=1.0), step(3, 4), dev(4, loss=None, accuracy=0.5), dev(0, loss=3.0)]
    assert results.curve(notes) == [
        {"step": 2, "forwards": 4, "seconds": 1.0, "loss": 1.0},
        {"step": 4, "forwards": 12, "seconds": 2.0, "loss": None, "accuracy": 0.5},
    ]


# ---------------------------------------------------------------------------------------------------------------
# bad input


def test_another_grid_is_refused_with_what_differs(place):
    place.bench()
    place.grid.write_text("# a remark\n" + GRID)
    place.bench()
    place.grid.write_text(GRID.replace("evaluations = 2", "evaluations = 3"))
    with pytest.raises(
        BadInput,
        match=r"holds another grid .base.evaluations was 2 and is now 3., which can grow but not change: choose",
    ):
        place.bench()


WIDER = GRID.replace("lr = [1e-4, 1e-3, 1e-2]", "lr = [1e-4, 1e-3, 1e-2, 1e-1]")


def test_a_grid_may_grow_in_place(place):
    narrow = GRID.replace("1e-4, 1e-3, 1e-2", "1e-5, 1e-4")  # the best of it, 1e-4, is not the best of all
    place.grid.write_text(narrow)
    place.bench()
    before, kept = set(place.started), (place.out / "grid.toml").read_text()
    place.grid.write_text(narrow.replace("1e-4]", "1e-4, 1e-3]").replace("seeds = [1, 2]", "seeds = [1, 2, 3]"))
    place.bench(dry_run=True)
    assert (place.out / "grid.toml").read_text() == kept
    place.bench()
    new = set(place.started) - before
    assert len(place.started) == len(before) + len(new)  # nothing was made twice
    assert len(new) == 1 + 2 + 2 * 3  # a zero-shot run of the third seed, a search run and three final ones a cell
    assert (place.out / "grid.toml").read_text() == place.grid.read_text()
    finals = [line for line in place.lines if line["phase"] == "final"]
    assert {line["point"]["lr"] for line in finals} == {1e-3}  # those of 1e-4 are no longer asked for ...
    assert len(finals) == 2 * 3
    study = load(place.out)
    assert study.missing() == 0
    assert {choose(study, cell).edges["lr"] for cell in study.cells} == {"highest tried"}
    assert all((place.out / "runs" / run).is_dir() for run in before)  # ... and stay


def test_a_grid_does_not_shrink(place):
    place.grid.write_text(WIDER)
    place.bench()
    place.grid.write_text(GRID)
    with pytest.raises(BadInput, match=r"holds another grid .grid.lr was .* can grow but not change"):
        place.bench()
    assert (place.out / "grid.toml").read_text() == WIDER


def test_a_worker_ends_when_another_widens_the_grid(place, monkeypatch):
    asked = place_module.ask

    def widened(wanted, out):
        asked(wanted, out)
        (out / "grid.toml").write_text(WIDER)

    monkeypatch.setattr(place_module, "ask", widened)
    with pytest.raises(BadInput, match="start this worker again"):
        place.bench()
    assert (place.out / "grid.toml").read_text() == WIDER


def test_runs_of_another_release_are_refused(place, monkeypatch):
    place.bench()
    monkeypatch.setattr(grid, "__version__", "99")
    with pytest.raises(BadInput, match="another release of gradless"):
        place.bench()


def test_the_same_grid_with_data_elsewhere_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("gradless.runs.build.load_task", lambda config: None)
    place = Place(tmp_path / "one", GRID.replace("[base]", '[base]\ndata = "rows"'))
    place.bench()
    other = Place(tmp_path / "other", place.grid.read_text())
    other.out = place.out
    other.bench()
    assert place.started
    assert other.started == []  # all is done


def test_bad_numbers_and_places_are_refused(place, tmp_path):
    for wrong in ({"workers": 0}, {"threads": 0}):
        with pytest.raises(BadInput, match="must be at least 1"):
            place.bench(**wrong)
    place.out.write_text("")
    with pytest.raises(BadInput, match="is a file"):
        place.bench()
    place.out.unlink()
    place.out.mkdir()
    (place.out / "config.json").touch()
    with pytest.raises(BadInput, match="single run"):
        place.bench()
    assert place.started == []


def test_missing_data_are_refused_before_anything_runs(tmp_path):
    place = Place(tmp_path, GRID.replace("[base]", '[base]\ndata = "nowhere"'))
    with pytest.raises(BadInput, match=r"cell mezo/full/sst2/tiny-llama: .*nowhere"):
        place.bench()
    assert not place.out.exists()


# ---------------------------------------------------------------------------------------------------------------
# dry runs


def own_grid(folder: Path, text: str = GRID) -> str:
    """The grid with small files of its own."""
    own = h.sentiment(folder)
    files = ", ".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    text = text.replace('task = ["sst2"]\n', "").replace("[base]\n", f"[base]\nown = {{ {files} }}\nbatch_size = 4\n")
    return text.replace("evaluations", "num_train = 16\nnum_dev = 8\nevaluations")


def test_a_dry_run_tells_and_writes_nothing(tmp_path, monkeypatch):
    place = Place(tmp_path, own_grid(tmp_path / "data"))
    monkeypatch.setattr("gradless.bench.estimate.matmul_speed", lambda *_: 1e9)
    outcome = place.bench(dry_run=True)
    assert outcome.done == 0
    assert not place.out.exists()
    assert place.said[0] == f"2 cells, {RUNS} runs: 6 search, 4 final, 2 zero-shot"
    rows = {said.split("  ")[0]: said.split() for said in place.said[2:-1]}
    assert rows["mezo x full"][3:5] == ["5", "100"]
    assert rows["zero-shot"][1:3] == ["2", "0"]
    assert rows["all"][1:3] == [str(RUNS), "200"]
    assert place.said[-1].startswith("expected time: a guess")
    assert "without activations" in place.said[-1]


def test_a_dry_run_takes_seconds_and_memory_from_finished_runs(place):
    place.bench()
    before = sorted(path.stat().st_mtime_ns for path in place.out.rglob("*"))
    wall = sum(line["wall_seconds"] for line in place.lines)
    said = len(place.said)
    assert place.bench(dry_run=True).done == RUNS
    assert sorted(path.stat().st_mtime_ns for path in place.out.rglob("*")) == before
    assert place.said[-1] == f"finished: {RUNS} of {RUNS} runs; 0 s of work left"
    assert "from finished runs" in place.said[-2]
    assert f"{wall:.0f} s" in next(row for row in place.said[said:] if row.startswith("all "))


def test_costs_are_asked_for_once_for_each_kind_of_step(place):
    asked: list[str] = []

    def counted(config: TuneConfig) -> int:
        asked.append(config.method)
        return 2

    place.bench(cost=counted)
    assert sorted(asked) == ["lozo", "mezo"]


def test_more_tokens_are_expected_to_take_longer(tmp_path, monkeypatch):
    from gradless.bench import estimate as bench_estimate

    place = Place(tmp_path, own_grid(tmp_path / "data"))
    monkeypatch.setattr(bench_estimate, "matmul_speed", lambda *_: 1e9)
    one = grid.search_runs(grid.read(place.grid), cost)[0]
    guess = bench_estimate.from_sizes(cost, lambda line: None)
    longer = one._replace(config=dataclasses.replace(one.config, steps=2 * one.config.steps))
    short, long = guess(one), guess(longer)
    assert 0 < short.seconds < long.seconds < 2.5 * short.seconds
    assert short.memory == long.memory > 0
    assert math.isfinite(long.seconds)


# ---------------------------------------------------------------------------------------------------------------
# the real thing

CONFIG_OPTION = any("--config" in option.opts for option in commands.main.commands["tune"].params)


@pytest.mark.slow
@pytest.mark.skipif(not CONFIG_OPTION, reason="gradless tune has no --config yet")
def test_a_tiny_grid_from_end_to_end(tmp_path):
    text = GRID.replace("[1e-4, 1e-3, 1e-2]", "[1e-3, 1e-2]").replace("seeds = [1, 2]", "seeds = [1]")
    text = own_grid(tmp_path / "data", text.replace('["mezo", "lozo"]', '["mezo"]').replace("20 }", "8 }"))
    place = Place(tmp_path, text)
    reporter = Reporter(quiet=True)
    outcome = bench(place.grid, place.out, reporter=reporter, threads=1)
    reasons = [line["reason"] for line in place.lines]
    assert outcome == Outcome(4, 4, 0, 0, ()), reasons
    final = next(line for line in place.lines if line["phase"] == "final")
    assert set(final["test"]) >= {"accuracy"}
    assert final["forwards"] == 2 * final["steps"] == 8
    assert final["curve"][-1]["step"] == final["steps"]
    assert final["curve"][-1]["forwards"] == final["forwards"]
    assert final["overhead"] > 0
    assert all(not line["test"] for line in place.lines if line["phase"] == "search")
    untouched = next(line for line in place.lines if line["phase"] == "zero-shot")
    assert 0 <= untouched["test"]["accuracy"] <= 1

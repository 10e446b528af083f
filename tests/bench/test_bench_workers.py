"""Several workers on one directory, interruptions, and what a run's line says."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench_helpers import RUNS, BenchDirectory
from gradless.bench import grid, results
from gradless.bench import process as processes
from gradless.bench.runner import Outcome
from gradless.system import locks
from grid_helpers import search_runs


def test_workers_of_one_call_share_the_runs(directory):
    assert directory.bench(workers=4).done == RUNS
    assert len(directory.started) == len(set(directory.started)) == RUNS


def test_two_calls_on_one_directory_share_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    alone = BenchDirectory(tmp_path / "alone")
    alone.bench()
    directory = BenchDirectory(tmp_path / "shared")
    outcomes: list[Outcome] = []
    others = [threading.Thread(target=lambda: outcomes.append(directory.bench(workers=2))) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert outcomes == [Outcome(RUNS, RUNS, 0, 0, ())] * 3
    assert len(directory.started) == len(set(directory.started)) == RUNS
    assert directory.table() == alone.table()
    assert all(line["overhead"] is not None for line in directory.lines)


SCRIPT = """
import sys, bench_helpers as t
from pathlib import Path
directory = t.BenchDirectory(Path(sys.argv[1]))
directory.bench(workers=2)
"""


def started(
    directory: BenchDirectory, runs: int, *, seconds: float = 0.3, prefix: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """A benchmark in a process of its own that has started so many runs."""
    environment = {**os.environ, "FAKE_SECONDS": str(seconds), "PYTHONPATH": os.pathsep.join([*sys.path])}
    command = [*prefix, sys.executable, "-c", SCRIPT, str(directory.grid.parent)]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    until = time.monotonic() + 300
    while len(directory.started) < runs:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_half_way_it_continues_to_the_same_results(tmp_path, number):
    whole = BenchDirectory(tmp_path / "whole")
    whole.bench()
    directory = BenchDirectory(tmp_path / "killed")
    process = started(directory, 5)
    process.send_signal(number)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode != 0
    if number != signal.SIGKILL:
        assert "KeyboardInterrupt" in stderr
        # Its runs were stopped with it: their claims are free.
        for path in (directory.out / "locks").iterdir():
            claim = locks.take(path)
            assert claim is not None, path
            os.close(claim)
    assert 0 < len(directory.lines) < RUNS
    finished = {line["id"] for line in directory.lines}
    starts = directory.started
    assert directory.bench(workers=2).done == RUNS
    assert not finished & set(directory.started[len(starts) :])
    if number == signal.SIGKILL:  # its runs went on and kept their claims, so nobody started them again
        assert len(directory.started) == len(set(directory.started)) == RUNS
    assert directory.table() == whole.table()


@pytest.mark.sweep
def test_in_the_background_it_stops_its_runs_too(tmp_path):
    directory = BenchDirectory(tmp_path)
    process = started(directory, 2, seconds=60, prefix=("sh", "-c", 'trap "" INT; exec "$@"', "sh"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    claim = locks.take(directory.out / "locks" / directory.started[0])
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


def test_the_command_line_of_a_run(directory):
    one, *_ = search_runs(grid.read(directory.grid))
    untouched, *_ = grid.zero_shot_runs(grid.read(directory.grid))
    assert processes.command(one, Path("/o"))[1:] == [
        *("-P", "-m", "gradless", "tune", "--resume"),
        *("--config", f"/o/requests/{one.id}.json", "--out", f"/o/runs/{one.id}"),
    ]
    assert processes.command(untouched, Path("/o"))[4] == "eval"


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

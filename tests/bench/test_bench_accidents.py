"""What happens to a benchmark whose files are damaged, that is interrupted, or killed at random instants."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from test_bench_workers import started

from bench_helpers import RUNS, BenchDirectory
from gradless.bench import process, results, runner
from gradless.system import locks

ODD = (b"", b"[]", b"3", b"\xff\xfe", b'{"status": 3}', b'{"status": "done", "steps": "x"}', b"[" * 9999, b"{", b"NaN")


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["result.json", "process.json", "metrics.jsonl", "failed.json", "reused.json"])
@pytest.mark.parametrize("content", ODD)
def test_files_of_a_run_may_hold_anything(tmp_path, name, content):
    directory = BenchDirectory(tmp_path)
    directory.bench()
    run = next(line["id"] for line in directory.lines if line["phase"] == "final")
    (directory.out / "runs" / run / name).write_bytes(content)
    assert directory.bench().done == RUNS
    assert len(directory.lines) == RUNS


def test_a_run_that_somebody_has_extended_fails_once(directory):
    directory.bench()
    run = next(line["id"] for line in directory.lines if line["phase"] == "final")
    path = directory.out / "runs" / run / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 20}))
    refuse = (
        'import os, sys\nif os.path.exists(sys.argv[2] + "/result.json"):\n    sys.exit("gradless: 20 steps taken")\n'
    )
    directory.fake.write_text(refuse + directory.fake.read_text())
    starts = len(directory.started)
    assert directory.bench().failed == 1
    assert next(line["reason"] for line in directory.lines if line["id"] == run) == "20 steps taken"
    assert len(directory.started) == starts  # refused before it wrote its name


def test_an_interrupted_benchmark_tells_where_things_lie(directory, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(process.LocalProcesses, "ended", interrupted)
    with pytest.raises(KeyboardInterrupt, match=rf"0 of \d+ runs are finished in {directory.out}; the same"):
        directory.bench()


def killed_again_and_again(directory: BenchDirectory, kills: int, seed: int) -> int:
    """Kill a benchmark at random instants until it was killed often enough or has come to its end."""
    draw, done = random.Random(seed), 0
    for _ in range(kills):
        if len(results.read(directory.out)) == RUNS:
            break
        process = started(directory, len(directory.started), seconds=0.05)
        time.sleep(draw.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        done += 1
    return done


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_it_comes_to_the_same_results(tmp_path, record_property, seed):
    whole = BenchDirectory(tmp_path / "whole")
    whole.bench()
    directory = BenchDirectory(tmp_path / "killed")
    record_property("kills", killed_again_and_again(directory, 10, seed))
    assert directory.bench(workers=2).done == RUNS
    assert directory.table() == whole.table()
    assert len(directory.started) == len(set(directory.started)) == RUNS
    assert not [path for path in directory.out.rglob("*") if path.name.endswith(".new")]
    for path in (directory.out / "locks").iterdir():
        claim = locks.take(path)
        assert claim is not None
        os.close(claim)


def test_a_grid_stops_where_every_run_fails_alike_and_tries_them_again(directory, monkeypatch):
    """As when the package was changed below it: each of thousands would have failed in a tenth of a second."""
    monkeypatch.setattr(runner, "ALIKE", 4)
    working = directory.fake.read_text()
    directory.fake.write_text(
        f'import json, sys\nif json.load(open(sys.argv[1]))["phase"] != "zero-shot":\n'
        f'    sys.exit("gradless: no attribute")\n{working}'
    )
    outcome = directory.bench()
    assert not outcome
    assert (
        outcome.stopped == "the last 4 runs failed at once and alike, so it is not the runs (no attribute): mend that"
    )
    assert outcome.failed == 0
    assert not list(directory.out.glob("runs/*/failed.json"))
    assert all(line["status"] == "done" for line in directory.lines)
    directory.fake.write_text(working)
    assert directory.bench().done == RUNS


def test_a_method_that_always_fails_does_not_stop_the_others(directory, monkeypatch):
    monkeypatch.setattr(runner, "ALIKE", 2)
    refuse = 'import json, sys\nif json.load(open(sys.argv[1]))["config"]["method"] == "lozo":\n    sys.exit("no")\n'
    directory.fake.write_text(refuse + directory.fake.read_text())
    outcome = directory.bench()
    assert outcome
    assert outcome.failed == 3
    assert {line["cell"]["method"] for line in directory.lines if line["phase"] == "final"} == {"mezo"}

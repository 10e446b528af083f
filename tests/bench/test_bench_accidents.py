"""What happens to a benchmark whose files are damaged, that is interrupted, or killed at random instants."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from test_bench_workers import started

from bench_helpers import RUNS, Place
from gradless.bench import process, results
from gradless.system import locks

ODD = (b"", b"[]", b"3", b"\xff\xfe", b'{"status": 3}', b'{"status": "done", "steps": "x"}', b"[" * 9999, b"{", b"NaN")


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["result.json", "process.json", "metrics.jsonl", "failed.json", "reused.json"])
@pytest.mark.parametrize("content", ODD)
def test_files_of_a_run_may_hold_anything(tmp_path, name, content):
    place = Place(tmp_path)
    place.bench()
    run = next(line["id"] for line in place.lines if line["phase"] == "final")
    (place.out / "runs" / run / name).write_bytes(content)
    assert place.bench().done == RUNS
    assert len(place.lines) == RUNS


def test_a_run_that_somebody_has_extended_fails_once(place):
    place.bench()
    run = next(line["id"] for line in place.lines if line["phase"] == "final")
    path = place.out / "runs" / run / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": 20}))
    refuse = (
        'import os, sys\nif os.path.exists(sys.argv[2] + "/result.json"):\n    sys.exit("gradless: 20 steps taken")\n'
    )
    place.fake.write_text(refuse + place.fake.read_text())
    before = len(place.started)
    assert place.bench().failed == 1
    assert next(line["reason"] for line in place.lines if line["id"] == run) == "20 steps taken"
    assert len(place.started) == before  # refused before it wrote its name


def test_an_interrupted_benchmark_tells_where_things_lie(place, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(process.LocalProcesses, "ended", interrupted)
    with pytest.raises(KeyboardInterrupt, match=rf"0 of \d+ runs are finished in {place.out}; the same"):
        place.bench()


def killed_again_and_again(place: Place, kills: int, seed: int) -> int:
    """Kill a benchmark at random instants until it was killed often enough or has come to its end."""
    draw, done = random.Random(seed), 0
    for _ in range(kills):
        if len(results.read(place.out)) == RUNS:
            break
        process = started(place, len(place.started), seconds=0.05)
        time.sleep(draw.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        done += 1
    return done


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_it_comes_to_the_same_results(tmp_path, record_property, seed):
    whole = Place(tmp_path / "whole")
    whole.bench()
    place = Place(tmp_path / "killed")
    record_property("kills", killed_again_and_again(place, 10, seed))
    assert place.bench(workers=2).done == RUNS
    assert place.table() == whole.table()
    assert len(place.started) == len(set(place.started)) == RUNS
    assert not [path for path in place.out.rglob("*") if path.name.endswith(".new")]
    for path in (place.out / "locks").iterdir():
        claim = locks.take(path)
        assert claim is not None
        os.close(claim)
